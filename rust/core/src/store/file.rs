//! One file of the log: a header of 128 bytes, then records; or the same in anonymous memory.
//!
//! # Design
//!
//! The header's word `committed` is where the log ends in this file. It is published after the
//! record before it, so a process that is killed at any instant leaves whole records below it.
//! `synced` is how far the disk is known to have it all: what is damaged below that was damaged
//! later. Both words carry a checksum of their own in their upper half, so that each is one store.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::map::Map;
use super::record::{self, Header, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::pages;

/// The format that this code writes; it reads all from 1 on.
pub(super) const FORMAT: u32 = 2;

/// Where the records begin.
pub(super) const DATA: usize = 128;

const MAGIC: &[u8; 8] = b"k15store";
const COMMITTED: usize = 64;
const SYNCED: usize = 72;

/// Where a payload lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) file: u64,
    pub(super) offset: u32,
}

/// Files and records are numbered below this. They count up by one, so no store ever comes near, and
/// numbers that are counted on from there stay numbers.
pub(super) const NUMBERS: u64 = 1 << 62;

/// A mapped file of the log.
pub(super) struct LogFile {
    pub(super) sequence: u64,
    pub(super) first_number: u64,
    pub(super) format: u32,
    pub(super) path: Option<PathBuf>,
    pub(super) end: usize,
    pub(super) synced: usize,
    map: Map,
}

/// A record that is not what it should be.
pub(super) enum Damage {
    Header,
    Payload(Header),
}

/// What the header of a file says that others may be writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) format: u32,
    pub(super) sequence: u64,
    pub(super) first_number: u64,
    pub(super) committed: usize,
}

impl Head {
    /// The header, if it matches its checksums.
    pub(super) fn decode(head: &[u8; DATA]) -> Option<Self> {
        let whole = head[..8] == *MAGIC && u32_at(head, 12)? == header_checksum(head);
        let committed = read_word(u64_at(head, COMMITTED)?).filter(|&end| end >= DATA)?;
        let (sequence, first_number) = (u64_at(head, 16)?, u64_at(head, 32)?);
        let format = u32_at(head, 8)?;
        let is_ours = whole && sequence < NUMBERS && first_number < NUMBERS;
        is_ours.then_some(Self { format, sequence, first_number, committed })
    }
}

/// A file that may be damaged.
pub(super) struct Examined {
    pub(super) file: LogFile,
    /// What is wrong with its header: offset and description.
    pub(super) faults: Vec<(u64, String)>,
    /// Whether its number and that of its first record are known.
    pub(super) has_fields: bool,
    /// Whether it is known where the log ends in it; else its end is that of the file.
    pub(super) has_end: bool,
    /// Where the log ended when it was written; beyond the file if that was truncated.
    pub(super) committed: usize,
    /// Whether a whole header names another format.
    pub(super) is_foreign: bool,
}

impl Examined {
    fn fault(&mut self, offset: usize, what: String) {
        self.faults.push((offset as u64, what));
    }

    fn read_header(&mut self) {
        let size = self.file.len();
        let Some(head) = self.file.map.bytes().get(..DATA) else {
            return self.fault(0, format!("{size} bytes, too short for a header"));
        };
        let format = u32_at(head, 8).unwrap_or(0);
        let whole = u32_at(head, 12) == Some(header_checksum(head));
        let padded = head[80..].iter().all(|&byte| byte == 0);
        let field = |at| u64_at(head, at).unwrap_or(0);
        let (sequence, length, first_number) = (field(16), field(24), field(32));
        let (end, synced) = (read_word(field(COMMITTED)), read_word(field(SYNCED)));
        let named = head[..8] == *MAGIC;
        if !named {
            self.fault(0, "offset 0: not a log file of a k15core store".into());
        } else if !whole || !padded {
            let what = format!(
                "offset 0: the file's header does not match its checksum (its format field says \
                 {format}, this version reads formats 1 to {FORMAT})"
            );
            self.fault(0, what);
        }
        if whole && named {
            if !(1..=FORMAT).contains(&format) {
                self.is_foreign = true;
                let what = format!(
                    "written in format {format}; this version of k15core reads formats 1 to \
                     {FORMAT}. \
                     Nothing was changed: open it with a version that knows format {format}"
                );
                return self.fault(8, what);
            }
            self.has_fields = true;
            for (at, number) in [(16, sequence), (32, first_number)] {
                if number >= NUMBERS {
                    self.has_fields = false;
                    self.fault(at, format!("offset {at}: {number}: expected less than {NUMBERS}"));
                }
            }
            self.file.format = format;
        }
        if self.has_fields {
            (self.file.sequence, self.file.first_number) = (sequence, first_number);
            if length != size as u64 {
                let what = format!(
                    "{size} bytes long, but its header says {length}: it was truncated or extended"
                );
                self.fault(24, what);
            }
        }
        let longest = if self.has_fields { size.max(index(length)) } else { size };
        match end.filter(|&end| end <= longest) {
            Some(end) if end < DATA => {
                self.fault(
                    COMMITTED,
                    format!("offset {COMMITTED}: `committed` is inside the header"),
                );
            }
            Some(end) => {
                (self.file.end, self.committed, self.has_end) = (end.min(size), end, true);
            }
            None => self.word_fault("committed", COMMITTED),
        }
        match synced.filter(|&synced| synced <= longest) {
            Some(synced) => self.file.synced = synced.min(size),
            None => self.word_fault("synced", SYNCED),
        }
    }

    fn word_fault(&mut self, name: &str, at: usize) {
        self.fault(at, format!("offset {at}: the word `{name}` does not match its checksum"));
    }
}

impl LogFile {
    /// Begin a file in fresh or recycled memory: from now on it is empty.
    pub(super) fn create(mut map: Map, sequence: u64, first_number: u64) -> Self {
        map.reuse();
        let size = map.bytes().len() as u64;
        let head = &mut map.bytes_mut()[..DATA];
        head.fill(0);
        head[0..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        head[16..24].copy_from_slice(&sequence.to_le_bytes());
        head[24..32].copy_from_slice(&size.to_le_bytes());
        head[32..40].copy_from_slice(&first_number.to_le_bytes());
        let checksum = header_checksum(head);
        head[12..16].copy_from_slice(&checksum.to_le_bytes());
        map.publish(SYNCED, checked_word(0));
        map.publish(COMMITTED, checked_word(DATA));
        let (path, format) = (None, FORMAT);
        Self { sequence, first_number, format, path, end: DATA, synced: 0, map }
    }

    /// Take up a file that is there; refuses what is damaged or of another format, untouched.
    pub(super) fn open(map: Map, path: &Path) -> Result<Self> {
        let examined = Self::examine(map, path);
        match examined.faults.into_iter().next() {
            Some((_, what)) => Err(Error::Corruption(format!("{}: {what}", path.display()))),
            None => Ok(examined.file),
        }
    }

    /// Take up a file as far as it can be: with everything that is wrong with its header.
    pub(super) fn examine(map: Map, path: &Path) -> Examined {
        let size = map.bytes().len();
        let path = Some(path.to_owned());
        let (sequence, first_number, format) = (0, 0, 0);
        let file = Self { sequence, first_number, format, path, end: size, synced: 0, map };
        let mut examined = Examined {
            file,
            faults: Vec::new(),
            has_fields: false,
            has_end: false,
            committed: 0,
            is_foreign: false,
        };
        examined.read_header();
        examined
    }

    pub(super) fn len(&self) -> usize {
        self.map.bytes().len()
    }

    /// How an error calls this file.
    pub(super) fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => format!("memory block {}", self.sequence),
        }
    }

    /// Whether a record with such a payload still fits.
    pub(super) fn fits(&self, payload: usize) -> bool {
        self.end + record::size(payload) <= self.len()
    }

    /// Add one record, which must fit, and publish it. Returns where its payload lies.
    pub(super) fn push(&mut self, header: &Header, parts: &[&[u8]]) -> Location {
        let start = self.end;
        let payload = start + record::HEADER;
        let end = start + record::size(header.payload);
        // Memory without a file is read by nobody who was not there when it was written.
        let durable = self.map.is_durable();
        if pages::is_much(header.payload) {
            self.map.prepare(start, end);
        }
        let bytes = &mut self.map.bytes_mut()[..end];
        // The header goes first: if we are killed now, recovery can say what was being written.
        bytes[start..payload].copy_from_slice(&header.encode());
        let body = payload..payload + header.payload;
        bytes[body.end..end].fill(0);
        pages::copy_parts(&mut bytes[body.clone()], parts);
        if durable {
            let sum = parts.iter().fold(0, |sum, part| crc32c::crc32c_append(sum, part));
            let checksum = crc32c::crc32c_append(sum, &bytes[body.end..end]);
            bytes[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
        }
        self.set_end(end);
        Location { file: self.sequence, offset: u32::try_from(payload).unwrap_or(u32::MAX) }
    }

    /// Move the end of the log in this file.
    pub(super) fn set_end(&mut self, end: usize) {
        self.end = end;
        self.map.publish(COMMITTED, checked_word(end));
    }

    /// Make `end` the end of the log in this file, and clear what lies behind, so that nothing of
    /// it can be taken for a record later: on the disk too, if there is one.
    pub(super) fn cut(&mut self, end: usize, disk: Option<&dyn Disk>) -> io::Result<()> {
        self.set_end(end);
        self.map.bytes_mut()[end..].fill(0);
        match (disk, &self.path) {
            (Some(disk), Some(path)) => disk.sync(path, &self.map, 0, self.len()),
            _ => Ok(()),
        }
    }

    /// The header of the record that begins at `at`, if there is one.
    pub(super) fn header(&self, at: usize) -> Option<Header> {
        self.map.bytes().get(at..).and_then(Header::decode)
    }

    /// The record that begins at `at`, checked, and what it takes in the log.
    pub(super) fn record(&self, at: usize) -> Result<(Header, &[u8], usize), Damage> {
        let found = self.whole_record(at)?;
        let (header, _, size) = found;
        let bytes = self.map.bytes();
        let checked = &bytes[at + record::HEADER..at + size];
        if u32_at(bytes, at + 4) != Some(crc32c::crc32c(checked)) {
            return Err(Damage::Payload(header));
        }
        Ok(found)
    }

    /// The same of a record whose payload is known to match its checksum.
    pub(super) fn whole_record(&self, at: usize) -> Result<(Header, &[u8], usize), Damage> {
        let header = self.header(at).ok_or(Damage::Header)?;
        let payload = at + record::HEADER;
        let end = at + record::size(header.payload);
        let padded = self.map.bytes().get(payload..end).ok_or(Damage::Header)?;
        Ok((header, &padded[..header.payload], end - at))
    }

    pub(super) fn payload(&self, offset: u32, len: usize) -> &[u8] {
        &self.map.bytes()[offset as usize..offset as usize + len]
    }

    /// Put everything up to the end on the disk.
    pub(super) fn sync(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if let Some(path) = self.path.as_ref().filter(|_| self.synced < self.end) {
            disk.sync(path, &self.map, 0, self.end)?;
            self.synced = self.end;
            self.map.publish(SYNCED, checked_word(self.end));
        }
        Ok(())
    }

    /// Put the header on the disk, of a file that has another name as yet.
    pub(super) fn sync_header(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        disk.sync(path, &self.map, 0, DATA)
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}

fn header_checksum(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[0..12]), &head[16..64])
}

fn checked_word(end: usize) -> u64 {
    let low = u32::try_from(end).unwrap_or(u32::MAX);
    u64::from(crc32c::crc32c(&low.to_le_bytes())) << 32 | u64::from(low)
}

fn index(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn read_word(word: u64) -> Option<usize> {
    let low = usize::try_from(word & 0xffff_ffff).ok()?;
    (checked_word(low) == word).then_some(low)
}
