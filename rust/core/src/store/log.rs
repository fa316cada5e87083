//! The log: files one after another, the last one open for writing.
//!
//! # Design
//!
//! A file enters the log by a rename, complete with its header, and leaves it by a rename, to be
//! used again. So a directory holds at any instant a run of files that can be read, and spares.
//! Space is freed at the old end only: a record that kills another is always younger, so it never
//! goes first.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::disk::{Disk, FileSystem, make_directory};
use super::file::{DATA, FORMAT, Location, LogFile};
use super::map::Map;
use super::record::{self, Header, Kind};
use crate::error::{Error, Result};

/// When appends reach the disk. What a killed process leaves is kept in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// When the operating system likes.
    Never,
    /// At `mark`, `flush` and `close`.
    Batch,
    /// Before each call returns.
    Always,
}

impl Sync {
    /// The policy of a name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "never" => Ok(Self::Never),
            "batch" => Ok(Self::Batch),
            "always" => Ok(Self::Always),
            _ => Err(Error::invalid("sync", format!("{name:?}"), "never, batch or always")),
        }
    }
}

/// The directory of a store, locked against other openers.
pub(super) struct Home {
    pub(super) directory: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    _lock: Option<File>,
}

pub(super) struct Log {
    pub(super) home: Option<Home>,
    pub(super) files: VecDeque<LogFile>,
    /// Bytes that `files` take.
    taken: u64,
    /// All that was written, also what is no longer in any file.
    #[cfg(test)]
    pub(super) written: std::collections::BTreeMap<u64, (Header, Vec<u8>)>,
    pub(super) spares: Vec<(Map, Option<PathBuf>)>,
    pub(super) file_bytes: usize,
    pub(super) next_number: u64,
    pub(super) sync: Sync,
}

pub(super) fn storage(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Storage { path, action, source }
}

impl Home {
    /// Make the directory if need be, and lock it.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        make_directory(directory).map_err(storage(directory, "create the directory"))?;
        let path = directory.join("lock");
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(storage(&path, "open"))?;
        Self::lock(directory, Some(lock), FlockOperation::NonBlockingLockExclusive)
    }

    /// Lock a directory that is there against openers, to read it. Nothing is made or changed.
    pub(super) fn open_to_read(directory: &Path) -> Result<Self> {
        let lock = match File::open(directory.join("lock")) {
            Ok(lock) => Some(lock),
            // A copy of the log without its lock: whoever opens it would make one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(storage(&directory.join("lock"), "open")(error)),
        };
        Self::lock(directory, lock, FlockOperation::NonBlockingLockShared)
    }

    /// The same directory for a log that lives while this holds the lock.
    pub(super) fn under_lock(&self) -> Self {
        let (directory, disk) = (self.directory.clone(), Arc::clone(&self.disk));
        Self { directory, disk, _lock: None }
    }

    /// The same directory on another disk.
    #[cfg(test)]
    pub(super) fn on(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    fn lock(directory: &Path, lock: Option<File>, how: FlockOperation) -> Result<Self> {
        match lock.as_ref().map_or(Ok(()), |lock| rustix::fs::flock(lock, how)) {
            Ok(()) => {
                let (directory, disk) = (directory.to_owned(), Arc::new(FileSystem));
                Ok(Self { directory, disk, _lock: lock })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(storage(directory, "open the store")(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another opener holds it; a store has one at a time (close it there first)",
                )))
            }
            Err(error) => Err(storage(&directory.join("lock"), "lock")(error.into())),
        }
    }

    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.disk.sync_directory(&self.directory);
        synced.map_err(storage(&self.directory, "sync the directory"))
    }
}

impl Log {
    pub(super) fn new(home: Option<Home>, file_bytes: usize, sync: Sync) -> Self {
        let (files, spares) = (VecDeque::new(), Vec::new());
        Self {
            home,
            files,
            taken: 0,
            #[cfg(test)]
            written: std::collections::BTreeMap::new(),
            spares,
            file_bytes,
            next_number: 1,
            sync,
        }
    }

    /// Bytes that the log's files and spares take on the disk or in memory.
    pub(super) fn allocated(&self) -> u64 {
        let spares = self.spares.iter().map(|(map, _)| map.bytes().len());
        self.files.iter().map(LogFile::len).chain(spares).sum::<usize>() as u64
    }

    /// Bytes that the log's files take.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Add a file at the end.
    pub(super) fn add(&mut self, file: LogFile) {
        self.taken += file.len() as u64;
        self.files.push_back(file);
    }

    /// Whether a record with such a payload fits into the open file.
    pub(super) fn fits(&self, payload: usize) -> bool {
        self.files.back().is_some_and(|file| file.fits(payload))
    }

    /// Whether the open file is of the format that is written.
    pub(super) fn is_current(&self) -> bool {
        self.files.back().is_some_and(|file| file.format == FORMAT)
    }

    /// Identifies the running system.
    pub(super) fn boot(&self) -> [u8; 16] {
        self.home.as_ref().map_or_else(|| FileSystem.boot(), |home| home.disk.boot())
    }

    /// Bytes that the open file still takes.
    pub(super) fn left(&self) -> usize {
        self.files.back().map_or(0, |file| file.len() - file.end)
    }

    /// The largest payload that fits into any file behind its base.
    pub(super) fn largest_payload(&self, base: usize) -> usize {
        self.file_bytes - DATA - record::size(base) - record::HEADER
    }

    /// Open the next file. A full disk is an error here, and nothing has changed.
    pub(super) fn roll(&mut self) -> Result<()> {
        let sequence = self.files.back().map_or(1, |file| file.sequence + 1);
        let (map, path) = match self.spares.pop() {
            Some(spare) => spare,
            None => self.allocate(sequence)?,
        };
        let mut file = LogFile::create(map, sequence, self.next_number);
        if let (Some(home), Some(spare)) = (&self.home, path) {
            let is_synced = self.sync != Sync::Never;
            if is_synced {
                let synced = file.sync_header(&*home.disk, &spare);
                synced.map_err(storage(&spare, "sync the header"))?;
            }
            let path = home.directory.join(log_name(sequence));
            home.disk.rename(&spare, &path).map_err(storage(&spare, "rename"))?;
            file.path = Some(path);
            if is_synced {
                home.sync()?;
            }
        }
        self.add(file);
        Ok(())
    }

    /// A new spare with all its blocks on the disk.
    fn allocate(&self, sequence: u64) -> Result<(Map, Option<PathBuf>)> {
        let Some(home) = &self.home else {
            let map = Map::anonymous(self.file_bytes);
            return Ok((map.map_err(storage(Path::new("memory"), "map"))?, None));
        };
        let path = home.directory.join(spare_name(sequence));
        let map = home.disk.create(&path, self.file_bytes);
        Ok((map.map_err(storage(&path, "allocate the next log file"))?, Some(path)))
    }

    /// Write one record, which must fit the open file.
    pub(super) fn push(&mut self, kind: Kind, subject: u64, parts: &[&[u8]]) -> Location {
        let payload = parts.iter().map(|part| part.len()).sum();
        let header = Header { kind, payload, number: self.next_number, subject };
        #[cfg(test)]
        self.written.insert(header.number, (header, parts.concat()));
        self.next_number += 1;
        match self.files.back_mut() {
            Some(file) => file.push(&header, parts),
            None => unreachable!("a log has an open file from its first roll on"),
        }
    }

    pub(super) fn payload(&self, at: Location, len: usize) -> &[u8] {
        let first = self.files.front().map_or(0, |file| file.sequence);
        let place = usize::try_from(at.file - first).unwrap_or(usize::MAX);
        self.files[place].payload(at.offset, len)
    }

    /// Put everything on the disk.
    pub(super) fn flush(&mut self) -> Result<()> {
        for file in self.files.iter_mut().rev() {
            if file.synced >= file.end {
                break;
            }
            if let Some(home) = &self.home {
                let name = file.name();
                file.sync(&*home.disk).map_err(storage(Path::new(&name), "sync"))?;
            }
        }
        Ok(())
    }

    /// Take the oldest file out of the log, to be used again.
    pub(super) fn retire_oldest(&mut self) -> Result<()> {
        let Some(file) = self.files.front() else { return Ok(()) };
        let (sequence, keep) = (file.sequence, file.len() == self.file_bytes);
        let mut spare = None;
        if let (Some(home), Some(path)) = (&self.home, &file.path) {
            let to = home.directory.join(spare_name(sequence));
            home.disk.rename(path, &to).map_err(storage(path, "rename"))?;
            if !keep {
                home.disk.remove(&to).map_err(storage(&to, "remove"))?;
            }
            if self.sync != Sync::Never {
                home.sync()?;
            }
            spare = Some(to);
        }
        if let Some(file) = self.files.pop_front() {
            self.taken -= file.len() as u64;
            if keep {
                self.spares.push((file.into_map(), spare));
            }
        }
        Ok(())
    }
}

pub(super) fn log_name(sequence: u64) -> String {
    format!("{sequence:020}.log")
}

fn spare_name(sequence: u64) -> String {
    format!("{sequence:020}.spare")
}
