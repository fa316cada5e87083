//! Room for the next record: where it comes from when the store is full.

use super::record::Kind;
use super::rewrite::FILES_KEPT;
use super::{Store, Sync};
use crate::error::{Error, Result};

/// What a full store does with an append or a new group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It is a [`Error::Capacity`].
    Refuse,
    /// The same for the core; the bindings wait until another thread has made room.
    Block,
    /// Groups that were created first are removed.
    EvictOldest,
    /// Groups with the oldest tokens are removed.
    EvictStalest,
}

impl WhenFull {
    /// The policy of a name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "refuse" => Ok(Self::Refuse),
            "block" => Ok(Self::Block),
            "evict_oldest" => Ok(Self::EvictOldest),
            "evict_stalest" => Ok(Self::EvictStalest),
            _ => Err(Error::invalid(
                "when_full",
                format!("{name:?}"),
                "refuse, block, evict_oldest or evict_stalest",
            )),
        }
    }
}

/// The share of the capacity, and the least number of files, that data may not take: what frees a
/// full store needs records too (samples, marks, evictions), and so does moving what is in the way.
const RESERVED_SHARE: u64 = 8;
const RESERVED_FILES: u64 = 2;

/// Moving what is in the way needs room itself. It begins when a quarter of the capacity is left and
/// a quarter of the log is garbage; an eighth is enough when data can have no more, and from half of
/// the capacity on when it is the last call.
const EARLY_SHARE: u64 = 4;
const EARLY_WORTH: u64 = 4;
const LATE_WORTH: u64 = 8;

/// What a record is to a full store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A new group, tokens, values: leaves the reserve alone.
    Data,
    /// Says something about data: leaves the last file to what frees space.
    Word,
    /// Frees space.
    Freeing,
}

impl Store {
    /// Write a record of data: a new group or tokens. May find the store full.
    pub(super) fn write_data(&mut self, kind: Kind, subject: u64, parts: &[&[u8]]) -> Result<()> {
        self.write(kind, subject, parts, Need::Data)
    }

    /// Write a record that says something about data. Has the reserve to itself; its last file is for
    /// what frees space.
    pub(super) fn write_control(&mut self, kind: Kind, subject: u64, part: &[u8]) -> Result<()> {
        let need = match kind {
            Kind::Claim | Kind::Finish | Kind::Reward => Need::Word,
            _ => Need::Freeing,
        };
        self.write(kind, subject, &[part], need)
    }

    fn write(&mut self, kind: Kind, subject: u64, parts: &[&[u8]], need: Need) -> Result<()> {
        self.check_usable()?;
        let payload = parts.iter().map(|part| part.len()).sum();
        let largest = self.log.largest_payload(self.index.base.encode().len());
        if payload > largest {
            return Err(Error::invalid(
                "bytes in one call",
                payload,
                format!(
                    "at most {largest}, what one log file holds; split it, or open the store \
                         with a larger file_bytes"
                ),
            ));
        }
        // A file that was opened for what frees space is not for data, however much room it has: once
        // the last one was full, nothing could be freed any more.
        if !self.log.fits(payload) || self.files_left() < self.spared(need) {
            self.make_room(need)?;
            if !self.log.fits(payload) {
                self.open_next_file()?;
            }
        }
        self.commit(kind, subject, parts)
    }

    /// See to it that the next file can be opened, and that what is left then does for the rest.
    fn make_room(&mut self, need: Need) -> Result<()> {
        loop {
            self.recycle()?;
            let (left, most) = (self.files_left(), self.most_files());
            if left > most / 2 {
                return Ok(());
            }
            let reserve = self.reserve();
            // A little later what holds up the oldest file would not fit into what is left any more, and
            // a store that is mostly garbage could be full.
            let last_call = left <= self.files_to_rewrite() + FILES_KEPT + 1;
            if left > most / EARLY_SHARE && !last_call {
                return Ok(());
            }
            let patient = left > reserve && !last_call;
            let worth = if patient { EARLY_WORTH } else { LATE_WORTH };
            if self.rewrite_oldest(worth)? {
                continue;
            }
            if left > self.spared(need) {
                return Ok(());
            }
            // An eviction helps only if no mark keeps what it removes.
            let evict = need == Need::Data && self.index.base.marks.is_empty();
            let evicted = if evict { self.evict_one()? } else { None };
            if evicted.is_none() {
                return Err(self.full());
            }
        }
    }

    /// Files that a record may not take, nor what is left of the open one when there are no more than these.
    fn spared(&self, need: Need) -> u64 {
        match need {
            Need::Data => self.reserve(),
            Need::Word => 1,
            Need::Freeing => 0,
        }
    }

    fn most_files(&self) -> u64 {
        self.capacity_bytes / self.log.file_bytes as u64
    }

    fn reserve(&self) -> u64 {
        RESERVED_FILES.max(self.most_files() / RESERVED_SHARE)
    }

    /// Files that may still be opened.
    pub(super) fn files_left(&self) -> u64 {
        // Files of another size, from an earlier opening, count by their bytes.
        self.most_files().saturating_sub(self.log.taken().div_ceil(self.log.file_bytes as u64))
    }

    fn full(&self) -> Error {
        let marks = &self.index.base.marks;
        let way_out = if marks.is_empty() {
            "sample or drop groups, or open it with more".into()
        } else {
            let kept: u64 = self.index.dead_bytes();
            format!(
                "{kept} bytes of it are used up or removed, and kept for a rewind to mark {}; the \
                 next marks free them. Or open it with more",
                marks.first().map_or(0, |mark| mark.id)
            )
        };
        Error::Capacity(format!(
            "capacity_bytes = {}: the store is full, {} bytes of it are still needed: {way_out}",
            self.capacity_bytes,
            self.index.live.values().sum::<u64>()
        ))
    }

    /// Remove the group that the policy names, and say how much of the log it kept; none if there is no such
    /// group, or no such policy.
    fn evict_one(&mut self) -> Result<Option<u64>> {
        let Some(victim) = self.index.shelves.victim(self.when_full) else { return Ok(None) };
        let bytes = self.group_of(victim)?.bytes();
        // Evictions are what makes room: there is always some left for them in the reserve.
        let payload = victim.to_le_bytes();
        if !self.log.fits(payload.len()) {
            self.open_reserved_file()?;
        }
        self.commit(Kind::Evict, 0, &[&payload])?;
        Ok(Some(bytes))
    }

    /// A store that is marked must evict ahead, since what it evicts stays for two marks: at each
    /// mark, until what is alive takes half of the capacity.
    pub(super) fn evict_ahead(&mut self) -> Result<()> {
        if matches!(self.when_full, WhenFull::Refuse | WhenFull::Block) {
            return Ok(());
        }
        let mut alive = self.index.alive_bytes();
        while alive > self.capacity_bytes / 2 {
            let Some(bytes) = self.evict_one()? else { break };
            alive -= bytes;
        }
        Ok(())
    }

    /// Open the next file out of the reserve.
    pub(super) fn open_reserved_file(&mut self) -> Result<()> {
        if self.files_left() == 0 {
            return Err(self.full());
        }
        self.open_next_file()
    }

    /// Take files out of the log that hold nothing which is still needed.
    pub(super) fn recycle(&mut self) -> Result<()> {
        let mut flushed = self.log.sync == Sync::Never;
        while self.log.files.len() > 1 {
            let oldest = self.log.files.front().map_or(0, |file| file.sequence);
            if self.index.live.get(&oldest).is_some_and(|live| *live > 0) {
                break;
            }
            if !flushed {
                // What made the file dispensable must be on the disk before the file goes.
                self.flush()?;
                flushed = true;
            }
            self.log.retire_oldest()?;
            self.index.live.remove(&oldest);
        }
        Ok(())
    }
}
