//! A log file that another process writes to, read without mapping it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::event::Event;
use super::file::{DATA, FORMAT, Head, Location};
use super::log::{log_name, storage};
use super::record::{self, Header};
use crate::error::{Error, Result};

/// Bytes that are read at once: where records are small, many of them.
const WINDOW: usize = 4096;

/// How often a header is read again that does not match its checksums: its words are written at any
/// moment, and one may be read in two halves.
const TRIES: usize = 8;

/// A file of the log, and how far it was read.
pub(super) struct Followed {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) at: usize,
    file: File,
}

/// Why a file cannot be read on.
pub(super) enum Stop {
    /// It is not the file any more that it was.
    Changed,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Followed {
    /// Open a file of the log, if it is there.
    pub(super) fn open(directory: &Path, sequence: u64) -> Result<Option<(Self, Head)>, Stop> {
        let path = directory.join(log_name(sequence));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Stop::Failed(storage(&path, "open")(error))),
        };
        let bytes = file.metadata().map_err(storage(&path, "read the size"))?.len();
        let followed = Self { sequence, path, bytes, at: DATA, file };
        let head = followed.head()?;
        Ok(Some((followed, head)))
    }

    /// Whether its name still leads to it.
    pub(super) fn is_there(&self) -> bool {
        let id = |data: fs::Metadata| (data.dev(), data.ino());
        let there = fs::metadata(&self.path).map(id).ok();
        there.is_some() && there == self.file.metadata().map(id).ok()
    }

    /// The error for what is wrong with the record at a place.
    pub(super) fn fault(&self, at: usize, number: u64, what: &str) -> Error {
        let path = self.path.display();
        Error::Corruption(format!("{path}: offset {at}: record {number}: {what}"))
    }

    /// The file's header, if it is still the file that it was.
    pub(super) fn head(&self) -> Result<Head, Stop> {
        let mut bytes = [0; DATA];
        for _ in 0..TRIES {
            match self.file.read_exact_at(&mut bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(storage(&self.path, "read"))?,
            }
            match Head::decode(&bytes) {
                Some(head) if head.sequence != self.sequence => return Err(Stop::Changed),
                Some(head) if !(1..=FORMAT).contains(&head.format) => {
                    return Err(Stop::Failed(Error::Corruption(format!(
                        "{}: written in format {}; this version of k15core reads formats 1 to \
                         {FORMAT}",
                        self.path.display(),
                        head.format
                    ))));
                }
                Some(head) => return Ok(head),
                None => {}
            }
        }
        if !self.is_there() {
            return Err(Stop::Changed);
        }
        Err(Stop::Failed(Error::Corruption(format!(
            "{}: the file's header does not match its checksums",
            self.path.display()
        ))))
    }
}

/// One record, without the token data behind its fields.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) event: Event<'a>,
    pub(super) place: Location,
    pub(super) size: usize,
}

/// The records of a file up to where the log ended in it, a part of them in memory.
pub(super) struct Records<'a> {
    followed: &'a Followed,
    end: usize,
    /// Words, so that what lies at a multiple of 8 in the file does so here.
    words: Vec<u64>,
    start: usize,
    len: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(followed: &'a Followed, end: usize) -> Self {
        Self { followed, end, words: Vec::new(), start: 0, len: 0 }
    }

    /// The record at a place, which must have this number. Its checksum is compared where all of it
    /// is read.
    pub(super) fn record(&mut self, at: usize, number: u64) -> Result<Record<'_>> {
        let head = self.bytes(at, record::HEADER)?;
        let (header, sum) = (Header::decode(head), record::u32_at(head, 4));
        let fits = |h: &Header| h.number == number && at + record::size(h.payload) <= self.end;
        let Some(header) = header.filter(fits) else {
            return Err(self.followed.fault(at, number, "its header does not match its checksum"));
        };
        let (start, size) = (at + record::HEADER, record::size(header.payload));
        let place = Location {
            file: self.followed.sequence,
            offset: u32::try_from(start).unwrap_or(u32::MAX),
        };
        let followed = self.followed;
        let event = if let Some(fields) = Event::fields(header.kind) {
            let fields = self.bytes(start, fields.min(header.payload))?;
            Event::decode_fields(header.kind, header.subject, fields, header.payload)
        } else {
            let payload = size - record::HEADER;
            if sum != Some(crc32c::crc32c(self.bytes(start, payload)?)) {
                return Err(followed.fault(at, number, "its payload does not match its checksum"));
            }
            let payload = self.bytes(start, header.payload)?;
            Event::decode(header.kind, header.subject, payload)
        };
        let event = event.map_err(|error| followed.fault(at, number, &error.to_string()))?;
        Ok(Record { header, event, place, size })
    }

    /// `n` bytes from `at`, a multiple of 8.
    fn bytes(&mut self, at: usize, n: usize) -> Result<&[u8]> {
        if at < self.start || at + n > self.start + self.len {
            let len = n.max(WINDOW.min(self.end.saturating_sub(at)));
            self.words.resize(len.div_ceil(8), 0);
            (self.start, self.len) = (at, 0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
            let read = self.followed.file.read_exact_at(&mut bytes[..len], at as u64);
            read.map_err(storage(&self.followed.path, "read"))?;
            self.len = len;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        Ok(&bytes[at - self.start..at - self.start + n])
    }
}
