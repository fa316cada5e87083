//! Watching a store that another process has open, or nobody.
//!
//! # Design
//!
//! The log says everything but the leases. So a watcher reads what was added to it since its last
//! look and lets an index of its own follow, through the same [`Index::apply`] as the writer's.
//! It maps, locks and writes nothing: the files are read as files, up to `committed`, and tokens
//! are passed over, so that a look costs what was written since the last one, and not its tokens.
//!
//! The writer does not know of it and may take a file for later records while it is being read. A
//! file's header says its number, which is never given twice: if that has changed when the reading
//! is done, what was read is worth nothing and the watcher starts over.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use super::event::Event;
use super::index::Index;
use super::log::log_name;
use super::query::count_states;
use super::watch_file::{Followed, Record, Records, Stop};
use super::{recover, verify};
use crate::error::{Error, Result};

/// How often a look is begun again because the log went on without it.
const TRIES: usize = 8;

/// Follows the log of a store without opening it. See the module's documentation.
pub struct Watcher {
    directory: PathBuf,
    max_uses: usize,
    index: Index,
    /// Files of the log that were read to their end or are being read.
    files: VecDeque<Extent>,
    current: Option<Followed>,
    next_number: u64,
    flow: Flow,
    restarts: u64,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    sequence: u64,
    bytes: u64,
    read: u64,
}

/// What went in and out since the oldest record that was read. Differences between two looks are
/// rates, as long as [`Watched::restarts`] is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Response tokens that were appended.
    pub tokens_in: u64,
    /// Response tokens that went into batches, once for each batch.
    pub tokens_out: u64,
    /// Groups that were added.
    pub groups_in: u64,
    /// Groups that went into batches.
    pub groups_out: u64,
    /// Leases that were given.
    pub leases: u64,
}

/// How a store is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Trajectories by [`super::State`]: unfinished, finished, scored, gone.
    pub trajectories: [u64; 4],
    /// Unfinished trajectories that have tokens.
    pub begun: u64,
    /// Groups that the index knows, of these those that can be sampled, and those that are used up
    /// or gone.
    pub groups: [u64; 3],
    /// Response tokens that are stored.
    pub tokens: u64,
    /// How many groups that can still be trained on are so many versions behind the newest.
    pub staleness: BTreeMap<u32, u64>,
    /// The newest policy version that the store has seen.
    pub version: u32,
    /// The most policy versions that an unfinished trajectory has tokens of.
    pub most_versions: u64,
    /// Marks that can be returned to: id and policy version.
    pub marks: Vec<(u64, u32)>,
    /// Bytes of the log that are still needed.
    pub bytes_live: u64,
    /// Of these, bytes that only a return to a mark needs.
    pub bytes_kept: u64,
    /// Bytes of the log that are written.
    pub bytes_written: u64,
    /// Bytes that files and spares take.
    pub bytes_allocated: u64,
    /// Files of the log.
    pub files: u64,
    /// Files that wait to be used again.
    pub spare_files: u64,
    /// What went in and out.
    pub flow: Flow,
    /// How often the watcher has begun anew, with its counts at 0.
    pub restarts: u64,
}

impl Watcher {
    /// Watch the store in a directory. `max_uses` decides which groups count as used up; the log
    /// does not say it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if there is no store.
    pub fn new(directory: &Path, max_uses: usize) -> Result<Self> {
        if max_uses == 0 {
            return Err(Error::invalid("max_uses", 0, "at least 1"));
        }
        verify::check_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            max_uses,
            index: Index::new(max_uses),
            files: VecDeque::new(),
            current: None,
            next_number: 1,
            flow: Flow::default(),
            restarts: 0,
        })
    }

    /// Read what was added, and say how the store is doing.
    ///
    /// # Errors
    ///
    /// Those of [`Watcher::read`].
    pub fn look(&mut self) -> Result<Watched> {
        self.read()?;
        self.watched()
    }

    /// Read what was added to the log since the last time.
    ///
    /// # Errors
    ///
    /// [`Error::Corruption`] if a record is damaged, or a file of another format: what was read
    /// before it is kept, and the next look tries again. [`Error::Storage`] if the system refuses,
    /// [`Error::Conflict`] if the log is written faster than it can be read.
    pub fn read(&mut self) -> Result<()> {
        for _ in 0..TRIES {
            match self.follow() {
                Ok(()) => return Ok(()),
                Err(Stop::Changed) => self.start_over(),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        Err(Error::Conflict(format!(
            "{}: the log's files are used again faster than they can be read; look again",
            self.directory.display()
        )))
    }

    fn start_over(&mut self) {
        self.index = Index::new(self.max_uses);
        self.files.clear();
        self.current = None;
        self.flow = Flow::default();
        self.restarts += 1;
    }

    /// Go on to the end of the log.
    fn follow(&mut self) -> Result<(), Stop> {
        if self.current.is_none() && !self.begin()? {
            return Ok(());
        }
        while let Some(mut current) = self.current.take() {
            // Asked first: once there is a next file, this one has all that it will ever have.
            let next = Followed::open(&self.directory, current.sequence + 1);
            let read = self.read_file(&mut current);
            let is_there = current.is_there();
            self.current = Some(current);
            read?;
            match next? {
                Some((next, head)) if head.first_number == self.next_number => self.go_on(next),
                Some((next, head)) => {
                    return Err(Stop::Failed(Error::Corruption(format!(
                        "{}: begins with record {}, where record {} was expected",
                        next.path.display(),
                        head.first_number,
                        self.next_number
                    ))));
                }
                None if is_there => break,
                // It has gone, and its successor with it.
                None => return Err(Stop::Changed),
            }
        }
        while let Some(oldest) = self.files.front().filter(|_| self.files.len() > 1) {
            if self.directory.join(log_name(oldest.sequence)).exists() {
                break;
            }
            self.index.live.remove(&oldest.sequence);
            self.files.pop_front();
        }
        Ok(())
    }

    /// Open the oldest file; false if there is none yet.
    fn begin(&mut self) -> Result<bool, Stop> {
        let (paths, _) = recover::list(&self.directory)?;
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
        let Some(oldest) = paths.iter().filter_map(number).min() else { return Ok(false) };
        // A listing may miss what is renamed meanwhile.
        let before = log_name(oldest.saturating_sub(1));
        if self.directory.join(before).exists() {
            return Err(Stop::Changed);
        }
        let (current, head) = Followed::open(&self.directory, oldest)?.ok_or(Stop::Changed)?;
        self.next_number = head.first_number;
        self.go_on(current);
        Ok(true)
    }

    fn go_on(&mut self, file: Followed) {
        let Followed { sequence, bytes, .. } = file;
        self.files.push_back(Extent { sequence, bytes, read: file.at as u64 });
        self.current = Some(file);
    }

    /// Read the records of a file up to where the log ends in it now.
    fn read_file(&mut self, file: &mut Followed) -> Result<(), Stop> {
        let end = file.head()?.committed;
        if end < file.at {
            // An opening has cut what a power loss left.
            return Err(Stop::Changed);
        }
        let (mut at, mut records) = (file.at, Records::new(file, end));
        let mut read = Ok(());
        while read.is_ok() && at < end {
            read = self.read_one(file, &mut records, &mut at);
        }
        // Whether it is still the same file decides what an error means.
        file.head()?;
        file.at = at;
        if let Some(extent) = self.files.back_mut() {
            extent.read = at as u64;
        }
        read.map_err(Stop::Failed)
    }

    fn read_one(
        &mut self,
        file: &Followed,
        records: &mut Records<'_>,
        at: &mut usize,
    ) -> Result<()> {
        let Record { header, event, place, size } = records.record(*at, self.next_number)?;
        let payload = u32::try_from(header.payload).unwrap_or(u32::MAX);
        let moved = flow(&self.index, &event);
        let applied = self.index.apply(&event, place, payload, size as u64);
        applied.map_err(|error| file.fault(*at, self.next_number, &error.to_string()))?;
        self.flow.add(moved);
        self.next_number += 1;
        *at += size;
        Ok(())
    }

    fn watched(&self) -> Result<Watched> {
        let index = &self.index;
        let (mut spare_files, mut spare_bytes) = (0, 0);
        for path in recover::list(&self.directory)?.1 {
            // One that is used in between is none any more.
            if let Ok(data) = fs::metadata(&path) {
                spare_files += 1;
                spare_bytes += data.len();
            }
        }
        let (trajectories, tokens) = count_states(index);
        let mut watched = Watched {
            trajectories,
            tokens,
            version: index.base.version,
            marks: index.base.marks.iter().map(|mark| (mark.id, mark.version)).collect(),
            bytes_live: index.live.values().sum(),
            bytes_kept: index.dead_bytes(),
            bytes_written: self.files.iter().map(|file| file.read).sum(),
            bytes_allocated: spare_bytes + self.files.iter().map(|file| file.bytes).sum::<u64>(),
            files: self.files.len() as u64,
            spare_files,
            flow: self.flow,
            restarts: self.restarts,
            ..Watched::default()
        };
        for group in index.groups.values() {
            if index.is_alive(group) {
                let age = index.base.version.saturating_sub(index.oldest_version(group));
                *watched.staleness.entry(age).or_default() += 1;
            }
        }
        let alive = watched.staleness.values().sum::<u64>();
        let groups = index.groups.len() as u64;
        watched.groups = [groups, index.shelves.ready.len() as u64, groups - alive];
        for trajectory in index.queue.begun().filter_map(|id| index.trajectories.get(&id)) {
            let mut versions: Vec<u32> = trajectory.chunks.iter().map(|c| c.version).collect();
            versions.dedup();
            watched.begun += 1;
            watched.most_versions = watched.most_versions.max(versions.len() as u64);
        }
        Ok(watched)
    }
}

/// What a record moves. Asked before the index follows it: a use may be the last that it knows of a
/// group.
fn flow(index: &Index, event: &Event<'_>) -> Flow {
    let mut flow = Flow::default();
    match event {
        Event::Append { n, .. } => flow.tokens_in = u64::from(*n),
        Event::Group(_) => flow.groups_in = 1,
        Event::Claim { next_epoch } => {
            flow.leases = next_epoch.saturating_sub(index.base.next_epoch);
        }
        Event::Use(ids) => {
            for group in ids.iter().filter_map(|id| index.groups.get(id)) {
                let members = group.members().filter_map(|id| index.trajectories.get(&id));
                flow.tokens_out += members.map(|t| u64::from(t.length)).sum::<u64>();
                flow.groups_out += 1;
            }
        }
        _ => {}
    }
    flow
}

impl Flow {
    fn add(&mut self, more: Self) {
        self.tokens_in += more.tokens_in;
        self.tokens_out += more.tokens_out;
        self.groups_in += more.groups_in;
        self.groups_out += more.groups_out;
        self.leases += more.leases;
    }
}
