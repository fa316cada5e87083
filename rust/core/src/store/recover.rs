//! Reading a directory again: every record checked, a torn tail told from a damaged record.
//!
//! # Design
//!
//! Below a file's `committed` word there are whole records, whatever killed the process: the word
//! is published after the record. So what is damaged there was damaged afterwards, and the store is
//! refused, with the file, the offset and the trajectory, and nothing is touched. There is one
//! exception: the machine itself went down (the boot id in the last base record is not ours) and
//! the record lies above `synced`, so its pages may never have reached the disk. That is a torn
//! tail: it is cut at the last whole record and reported. Behind `committed` one record may have
//! been interrupted: it is kept if it is whole, reported if it is torn.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::ahead::{Checked, ahead};
use super::event::Event;
use super::file::{DATA, Damage, Location, LogFile};
use super::index::Index;
use super::log::{Log, Sync, log_name, storage};
use super::map::Map;
use super::record::{Header, Kind};
use crate::error::{Error, Result};

/// A tail that was not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file that it was in.
    pub file: String,
    /// Where the last whole record before it ends.
    pub offset: u64,
    /// Bytes that were cut, up to the end of what had been written.
    pub bytes: u64,
    /// What the first record of the tail was about, where its header says so.
    pub record: String,
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Files of the log.
    pub files: u64,
    /// Whole records that were read.
    pub records: u64,
    /// Bytes of whole records.
    pub bytes: u64,
    /// What was cut, if anything was.
    pub torn: Option<TornTail>,
}

/// Read the files of the log's directory into the index.
pub(super) fn recover(log: &mut Log, index: &mut Index) -> Result<RecoveryReport> {
    let Some(home) = &log.home else { return Ok(RecoveryReport::default()) };
    let (paths, spares) = list(&home.directory)?;
    let (report, cut) = take_up(log, index, &paths, Access::Write)?;
    if let Some((file, offset)) = cut {
        cut_at(log, file, offset)?;
    }
    for path in spares {
        // A spare of another length was left half allocated, or is of another file size.
        let length = fs::metadata(&path).map_err(storage(&path, "read the size"))?.len();
        if length == log.file_bytes as u64 {
            log.spares.push((map(&path, Access::Write)?, Some(path)));
        } else {
            remove(log, &path)?;
        }
    }
    if log.sync != Sync::Never
        && let Some(home) = &log.home
    {
        // Whoever had it open before may not have cared.
        home.sync()?;
    }
    Ok(report)
}

/// What files of the log are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// What was found, and the file (by its place) and offset at which the log is to be cut, if it is.
pub(super) type Found = (RecoveryReport, Option<(usize, usize)>);

/// Read these files into an empty log and index. Changes no file.
pub(super) fn take_up(
    log: &mut Log,
    index: &mut Index,
    paths: &[PathBuf],
    access: Access,
) -> Result<Found> {
    let mut report = RecoveryReport { files: paths.len() as u64, ..RecoveryReport::default() };
    for path in paths {
        let file = LogFile::open(map(path, access)?, path)?;
        let expected = log.files.back().map_or(file.sequence, |before| before.sequence + 1);
        if file.sequence != expected || !path.ends_with(log_name(expected)) {
            return Err(Error::Corruption(format!(
                "{}: file {} of the log, where {} was expected: a file is missing or was renamed",
                path.display(),
                file.sequence,
                log_name(expected)
            )));
        }
        log.add(file);
    }
    log.next_number = log.files.front().map_or(1, |file| file.first_number);
    let now = log.boot();
    let Log { files, next_number, .. } = log;
    let cut = index.load(|index| {
        ahead(files, |checked| read(files, checked, now, next_number, index, &mut report))
    })?;
    Ok((report, cut))
}

/// Apply every record, and check those that are not `checked`; where the log has to be cut, if it has to.
fn read(
    files: &VecDeque<LogFile>,
    checked: &Checked<'_>,
    now: [u8; 16],
    next_number: &mut u64,
    index: &mut Index,
    report: &mut RecoveryReport,
) -> Result<Option<(usize, usize)>> {
    let mut then = [0; 16];
    let last = files.len().saturating_sub(1);
    let mut before: Option<(&LogFile, usize)> = None;
    for (place, file) in files.iter().enumerate() {
        if file.first_number != *next_number {
            // The end of the file before may never have reached the disk, with the word that says
            // how far it went.
            let lost = |&(before, at): &(&LogFile, usize)| {
                at >= before.synced && file.first_number > *next_number && is_reboot(now, then)
            };
            if let Some((before, at)) = before.filter(lost) {
                report.torn = Some(TornTail {
                    file: before.name(),
                    offset: at as u64,
                    bytes: bytes_from(files, place),
                    record: "a record that is not there".into(),
                });
                return Ok(Some((place - 1, at)));
            }
            return Err(Error::Corruption(format!(
                "{}: begins with record {}, where record {} was expected",
                file.name(),
                file.first_number,
                *next_number
            )));
        }
        let mut at = DATA;
        let whole_until = checked.until(place);
        loop {
            let inside = at < file.end;
            if !inside && place != last {
                break;
            }
            let found = if at < whole_until { file.whole_record(at) } else { file.record(at) };
            let expected = |header: &Header| header.number == *next_number;
            match found {
                Ok((header, payload, size))
                    if expected(&header) && (!inside || at + size <= file.end) =>
                {
                    let event = apply(index, file, at, (&header, payload, size))?;
                    if let Event::Base(base) = event {
                        then = base.boot;
                    }
                    *next_number += 1;
                    report.records += 1;
                    report.bytes += size as u64;
                    at += size;
                }
                found => {
                    let known = match &found {
                        Ok((header, ..)) | Err(Damage::Payload(header)) if expected(header) => {
                            Some(*header)
                        }
                        _ => None,
                    };
                    if inside && (at < file.synced || !is_reboot(now, then)) {
                        return Err(damaged(file, at, *next_number, known, &found));
                    }
                    if !inside && known.is_none() {
                        break;
                    }
                    let torn = known.map_or(0, |h| super::record::size(h.payload));
                    let end = file.end.max((at + torn).min(file.len()));
                    report.torn = Some(TornTail {
                        file: file.name(),
                        offset: at as u64,
                        bytes: (end - at) as u64 + bytes_from(files, place + 1),
                        record: known.map_or_else(
                            || "a record whose header is damaged".into(),
                            |h| format!("{} {}", h.kind.subject(), h.subject),
                        ),
                    });
                    return Ok(Some((place, at)));
                }
            }
        }
        if at != file.end {
            // A whole record behind the word: the process died before it could acknowledge it.
            return Ok(Some((place, at)));
        }
        before = Some((file, at));
    }
    Ok(None)
}

/// Whether the system that wrote went down since, as far as is known.
fn is_reboot(now: [u8; 16], then: [u8; 16]) -> bool {
    then != now || now == [0; 16]
}

/// Bytes of records in the files from one on.
fn bytes_from(files: &VecDeque<LogFile>, place: usize) -> u64 {
    files.iter().skip(place).map(|file| (file.end - DATA) as u64).sum()
}

fn apply<'a>(
    index: &mut Index,
    file: &LogFile,
    at: usize,
    (header, payload, size): (&Header, &'a [u8], usize),
) -> Result<Event<'a>> {
    let said = |error: Error| {
        Error::Corruption(format!(
            "{}: offset {at}: record {} of {} {} has the right checksum but cannot be read: {error}",
            file.name(),
            header.number,
            header.kind.subject(),
            header.subject
        ))
    };
    let event = Event::decode(header.kind, header.subject, payload).map_err(said)?;
    let offset = u32::try_from(at + super::record::HEADER).unwrap_or(u32::MAX);
    let location = Location { file: file.sequence, offset };
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    index.apply(&event, location, length, size as u64).map_err(said)?;
    Ok(event)
}

fn damaged(
    file: &LogFile,
    at: usize,
    number: u64,
    known: Option<Header>,
    found: &std::result::Result<(Header, &[u8], usize), Damage>,
) -> Error {
    let what = match (known, found) {
        (Some(header), _) => {
            let kind: Kind = header.kind;
            let subject = kind.subject();
            format!(
                "the record of {subject} {} ({kind:?}) does not match its checksum",
                header.subject
            )
        }
        (None, Ok((header, ..))) => format!(
            "record {} of {} {} is not the one that belongs here",
            header.number,
            header.kind.subject(),
            header.subject
        ),
        (None, Err(_)) => "the record's header does not match its checksum".into(),
    };
    Error::Corruption(format!(
        "{}: offset {at}: record {number}: {what}. Nothing was changed",
        file.name()
    ))
}

/// Make `offset` of the file the end of the log: later files go first, newest first, so that a crash
/// in between finds the same damage again.
fn cut_at(log: &mut Log, place: usize, offset: usize) -> Result<()> {
    let is_synced = log.sync != Sync::Never;
    while log.files.len() > place + 1 {
        if let Some(path) = log.files.pop_back().and_then(|file| file.path) {
            remove(log, &path)?;
            if let Some(home) = log.home.as_ref().filter(|_| is_synced) {
                home.sync()?;
            }
        }
    }
    let home = log.home.as_ref().filter(|_| is_synced);
    if let Some(file) = log.files.back_mut() {
        let name = file.name();
        let cut = file.cut(offset, home.map(|home| &*home.disk));
        cut.map_err(storage(Path::new(&name), "sync"))?;
    }
    Ok(())
}

fn remove(log: &Log, path: &Path) -> Result<()> {
    let removed = log.home.as_ref().map_or(Ok(()), |home| home.disk.remove(path));
    removed.map_err(storage(path, "remove"))
}

/// The log's files in order, and the spares.
pub(super) fn list(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = fs::read_dir(directory).map_err(storage(directory, "list"))?;
    let (mut files, mut spares) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(storage(directory, "list"))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => files.push(path),
            Some("spare") => spares.push(path),
            _ => {}
        }
    }
    files.sort();
    spares.sort();
    Ok((files, spares))
}

/// Map a file: to write to it, or to look at it only.
pub(super) fn map(path: &Path, access: Access) -> Result<Map> {
    let file = File::options().read(true).write(access == Access::Write).open(path);
    let file = file.map_err(storage(path, "open"))?;
    if file.metadata().map_err(storage(path, "read the size"))?.len() == 0 {
        return Err(Error::Corruption(format!("{}: the file is empty", path.display())));
    }
    let mapped = match access {
        Access::Write => Map::file(&file),
        Access::Read => Map::private(&file),
    };
    mapped.map_err(storage(path, "map"))
}
