//! Reading past damage: every record that is whole, and every place where one is not.
//!
//! # Design
//!
//! Opening stops at the first fault; this goes on. A record whose header is whole tells its length,
//! so its damaged payload is stepped over. Behind a damaged header the next header is looked for at
//! every multiple of 8: it must match its checksum, and its number says how many records lie
//! between. Records that an older use of a file left behind have lower numbers and are never taken
//! up. What a file's own header does not say, its name, its neighbours and its records do.

use std::path::{Path, PathBuf};

use super::event::Event;
use super::file::{DATA, Damage, Examined, LogFile, NUMBERS};
use super::log::log_name;
use super::map::Map;
use super::record::{self, Header};
use super::recover::{self, Access};
use crate::error::{Error, Result};

/// A file of the log that may be damaged. Numbered without a gap here, whatever its header says.
pub(super) struct Volume {
    pub(super) file: LogFile,
    /// Offset and description.
    pub(super) faults: Vec<(u64, String)>,
    first_number: Option<u64>,
    has_end: bool,
    /// Whether the log went further than the file does now.
    is_short: bool,
}

/// A place of the log where there should be records.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    pub(super) file: String,
    pub(super) offset: u64,
    /// Bytes that are of no use; 0 where the place is missing.
    pub(super) bytes: u64,
    /// The number that the first of them has, where that is known.
    pub(super) number: Option<u64>,
    /// How many records they are, where that is known.
    pub(super) count: Option<u64>,
    /// The header of the only record, if that is whole.
    pub(super) header: Option<Header>,
    pub(super) what: String,
}

/// A whole record.
pub(super) struct Whole<'a> {
    pub(super) file: u64,
    pub(super) offset: usize,
    pub(super) header: Header,
    pub(super) event: Event<'a>,
    pub(super) size: usize,
}

pub(super) enum Item<'a> {
    Record(Whole<'a>),
    Lost(Loss),
}

/// The files of the log in a directory, as far as they can be read. Refuses another format.
pub(super) fn volumes(paths: &[PathBuf]) -> Result<Vec<Volume>> {
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let named = |path: &PathBuf| number(path).filter(|&number| number < NUMBERS);
    let newest = paths.iter().filter_map(named).max().unwrap_or(0);
    let first = newest.saturating_sub(paths.len() as u64 - 1).max(1);
    let mut volumes: Vec<Volume> = Vec::new();
    let mut before: Option<u64> = None;
    for (sequence, path) in (first..).zip(paths) {
        let mut volume = volume(path)?;
        let number = named(path).unwrap_or(volume.file.sequence);
        let expected = before.map_or(number, |before| before + 1);
        let told = if volume.first_number.is_some() { volume.file.sequence } else { number };
        if told != expected || !path.ends_with(log_name(expected)) {
            volume.faults.push((
                16,
                format!(
                    "file {told} of the log, where {} was expected: a file is missing or was \
                     renamed",
                    log_name(expected)
                ),
            ));
        }
        before = Some(number);
        volume.file.sequence = sequence;
        volumes.push(volume);
    }
    Ok(volumes)
}

fn volume(path: &Path) -> Result<Volume> {
    let empty = || Map::anonymous(1).map_err(super::log::storage(path, "map"));
    let (map, is_empty) = match recover::map(path, Access::Read) {
        Err(Error::Corruption(_)) => (empty()?, true),
        map => (map?, false),
    };
    let Examined { file, faults, has_fields, has_end, committed, is_foreign } =
        LogFile::examine(map, path);
    if is_foreign {
        let what = faults.into_iter().next().map_or_else(String::new, |fault| fault.1);
        return Err(Error::Corruption(format!("{}: {what}", path.display())));
    }
    let faults = if is_empty { vec![(0, "the file is empty".into())] } else { faults };
    Ok(Volume {
        first_number: has_fields.then_some(file.first_number),
        is_short: committed > file.len(),
        has_end,
        faults,
        file,
    })
}

/// Show every record and every loss, in the order of the log.
pub(super) fn scan(
    volumes: &mut [Volume],
    visit: &mut dyn FnMut(Item<'_>) -> Result<()>,
) -> Result<()> {
    let mut expected: Option<u64> = None;
    let mut pending: Option<Loss> = None;
    let last = volumes.len().saturating_sub(1);
    for (place, volume) in volumes.iter_mut().enumerate() {
        if let Some(first) = volume.first_number {
            if let Some(next) = expected.filter(|&next| first < next) {
                let what = format!("begins with record {first}, where record {next} was expected");
                volume.faults.push((32, what));
                continue;
            }
            if let Some(mut loss) = pending.take() {
                loss.count = loss.number.map(|number| first - number).filter(|&count| count > 0);
                if loss.count.is_some() || loss.bytes > 0 {
                    visit(Item::Lost(loss))?;
                }
            } else if let Some(next) = expected.filter(|&next| first > next) {
                let what = format!("begins with record {first}, where record {next} was expected");
                volume.faults.push((32, what.clone()));
                let (number, count) = (Some(next), Some(first - next));
                let file = volume.file.name();
                visit(Item::Lost(Loss { file, number, count, what, ..Loss::default() }))?;
            }
            expected = Some(first);
        }
        let from = pending.take();
        if let Some(loss) = from {
            visit(Item::Lost(loss))?;
        }
        pending = read(volume, &mut expected, place == last, visit)?;
    }
    pending.map_or(Ok(()), |loss| visit(Item::Lost(loss)))
}

/// Show what is in one file; what is missing at its end.
fn read(
    volume: &Volume,
    expected: &mut Option<u64>,
    is_last: bool,
    visit: &mut dyn FnMut(Item<'_>) -> Result<()>,
) -> Result<Option<Loss>> {
    let (file, mut at) = (&volume.file, DATA);
    let lost = |at: usize, end: usize, number: Option<u64>, what: &str| Loss {
        file: file.name(),
        offset: at as u64,
        bytes: end.saturating_sub(at) as u64,
        number,
        what: what.into(),
        ..Loss::default()
    };
    while at < file.end {
        let found = file.record(at);
        let header = match &found {
            Ok((header, ..)) | Err(Damage::Payload(header)) => Some(*header),
            Err(Damage::Header) => None,
        };
        let fits = |h: &Header| at + record::size(h.payload) <= file.end;
        let belongs = |h: &Header| expected.is_none_or(|number| h.number == number) && fits(h);
        if let Some(header) = header.filter(belongs) {
            let size = record::size(header.payload);
            let (number, payload) = (Some(header.number), found.as_ref().ok());
            let event = payload
                .map(|(header, payload, _)| Event::decode(header.kind, header.subject, payload));
            visit(match event {
                Some(Ok(event)) => {
                    Item::Record(Whole { file: file.sequence, offset: at, header, event, size })
                }
                failed => {
                    let what = match failed {
                        Some(Err(error)) => {
                            format!("it has the right checksum but cannot be read: {error}")
                        }
                        _ => "its payload does not match its checksum".into(),
                    };
                    let loss = lost(at, at + size, number, &what);
                    Item::Lost(Loss { count: Some(1), header: Some(header), ..loss })
                }
            })?;
            *expected = Some(header.number + 1);
            at += size;
            continue;
        }
        // Without a number to look for, what an older use left in the file could be taken up.
        match expected.and_then(|number| next_header(file, at, number)) {
            Some((next, header)) => {
                let what = "a record's header does not match its checksum";
                let loss = lost(at, next, *expected, what);
                let count = expected.map(|number| header.number - number);
                visit(Item::Lost(Loss { count, ..loss }))?;
                (at, *expected) = (next, Some(header.number));
            }
            None if volume.has_end => {
                let what = "a record's header does not match its checksum, and none follows it in \
                            this file";
                let loss = lost(at, file.end, *expected, what);
                // Where there is no room for two, there was one.
                let count = (file.end - at < 2 * record::HEADER).then_some(1);
                return Ok(Some(Loss { count, ..loss }));
            }
            None => break,
        }
    }
    if volume.is_short {
        return Ok(Some(lost(at, at, *expected, "the file ends here, the log did not")));
    }
    if volume.has_end && is_last {
        // A whole record behind the word: the process died before it could acknowledge it.
        while let Ok((header, payload, size)) = file.record(at) {
            if expected.is_some_and(|number| header.number != number) {
                break;
            }
            let event = Event::decode(header.kind, header.subject, payload)?;
            visit(Item::Record(Whole { file: file.sequence, offset: at, header, event, size }))?;
            *expected = Some(header.number + 1);
            at += size;
        }
    }
    Ok(None)
}

/// The next whole header behind a place where there is none, and where it is.
fn next_header(file: &LogFile, at: usize, number: u64) -> Option<(usize, Header)> {
    (at + 8..file.end).step_by(8).find_map(|place| {
        let header = file.header(place)?;
        let most = ((place - at) / record::HEADER) as u64;
        let between = header.number.checked_sub(number)?;
        let fits = place + record::size(header.payload) <= file.end;
        ((1..=most).contains(&between) && fits).then_some((place, header))
    })
}
