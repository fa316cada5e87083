//! Checking a store that nobody has open, without changing it.

use std::path::{Path, PathBuf};

use super::Sync;
use super::index::Index;
use super::log::{Home, Log};
use super::record::Kind;
use super::recover::{self, Access, TornTail};
use super::scan::{self, Item, Loss, Volume};
use crate::error::{Error, Result};

/// One thing that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageReport {
    /// The file.
    pub file: String,
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes that cannot be read; 0 for what is missing, and for a file's header.
    pub bytes: u64,
    /// The number of the record, or of the first of several, where it is known.
    pub record: Option<u64>,
    /// How many records are damaged or missing, where it is known; 0 for a file's header.
    pub records: Option<u64>,
    /// The record's kind, where its header is whole.
    pub kind: Option<String>,
    /// What the record is about, and its id: a group, trajectory or mark.
    pub subject: Option<(&'static str, u64)>,
    /// What is wrong.
    pub what: String,
}

/// What opening the store would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Take it up as it is.
    Clean,
    /// Cut a torn tail.
    Cut(TornTail),
    /// Refuse it, with this message.
    Refused(String),
}

/// Whole records of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindCount {
    /// The kind's name.
    pub kind: String,
    /// How many.
    pub records: u64,
    /// Their bytes in the log.
    pub bytes: u64,
}

/// What checking a store found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Files of the log.
    pub files: u64,
    /// Whole records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whole records by kind, in the order of the format.
    pub kinds: Vec<KindCount>,
    /// Everything that is damaged, in the order of the log.
    pub damages: Vec<DamageReport>,
    /// What opening would do.
    pub opening: Opening,
}

/// Read and check every record of the store in a directory, past every damage. Changes nothing.
///
/// # Errors
///
/// [`Error::InvalidInput`] if there is no store, [`Error::Storage`] if it is open or cannot be read,
/// [`Error::Corruption`] if it is of another format.
pub fn verify(directory: &Path) -> Result<Verification> {
    let (_home, paths) = open_to_read(directory)?;
    verify_files(&paths)
}

pub(super) fn verify_files(paths: &[PathBuf]) -> Result<Verification> {
    let mut volumes = scan::volumes(paths)?;
    let mut kinds: Vec<KindCount> = Vec::new();
    kinds.resize(Kind::ALL.len(), KindCount::default());
    let mut losses: Vec<Loss> = Vec::new();
    scan::scan(&mut volumes, &mut |item| {
        match item {
            Item::Record(record) => {
                let count = &mut kinds[record.header.kind as usize - 1];
                count.records += 1;
                count.bytes += record.size as u64;
            }
            Item::Lost(loss) => losses.push(loss),
        }
        Ok(())
    })?;
    for (count, kind) in kinds.iter_mut().zip(Kind::ALL) {
        count.kind = kind.name();
    }
    let mut damages = damages(&volumes, losses);
    let opening = opening(paths);
    if let (Opening::Refused(message), true) = (&opening, damages.is_empty()) {
        // Records that are whole one by one, and make no sense together.
        damages.push(DamageReport {
            file: paths.first().map_or_else(String::new, |path| path.display().to_string()),
            offset: 0,
            bytes: 0,
            record: None,
            records: Some(0),
            kind: None,
            subject: None,
            what: message.clone(),
        });
    }
    Ok(Verification {
        files: paths.len() as u64,
        records: kinds.iter().map(|count| count.records).sum(),
        bytes: kinds.iter().map(|count| count.bytes).sum(),
        kinds,
        damages,
        opening,
    })
}

/// Lock a store's directory for reading; its log files.
pub(super) fn open_to_read(directory: &Path) -> Result<(Home, Vec<PathBuf>)> {
    check_directory(directory)?;
    let home = Home::open_to_read(directory)?;
    Ok((home, recover::list(directory)?.0))
}

/// Refuse what is not the directory of a store, before anything is made there.
pub(super) fn check_directory(directory: &Path) -> Result<()> {
    let is_store = directory.join("lock").is_file()
        || (directory.is_dir() && !recover::list(directory)?.0.is_empty());
    if is_store {
        return Ok(());
    }
    let expected = "the directory of a store (it has a file `lock` and files `*.log`)";
    Err(Error::invalid("directory", directory.display(), expected))
}

fn opening(paths: &[PathBuf]) -> Opening {
    let mut log = Log::new(None, 0, Sync::Never);
    let mut index = Index::new(usize::MAX);
    match recover::take_up(&mut log, &mut index, paths, Access::Read) {
        Ok((report, _)) => report.torn.map_or(Opening::Clean, Opening::Cut),
        Err(error) => Opening::Refused(error.to_string()),
    }
}

/// Faults of files and losses of records together, in the order of the log.
fn damages(volumes: &[Volume], losses: Vec<Loss>) -> Vec<DamageReport> {
    let mut found = Vec::new();
    let mut losses = losses.into_iter().peekable();
    for volume in volumes {
        let name = volume.file.name();
        for (offset, what) in &volume.faults {
            found.push(DamageReport {
                file: name.clone(),
                offset: *offset,
                bytes: 0,
                record: None,
                records: Some(0),
                kind: None,
                subject: None,
                what: what.clone(),
            });
        }
        while let Some(loss) = losses.next_if(|loss| loss.file == name) {
            let kind = loss.header.map(|header| header.kind);
            found.push(DamageReport {
                file: loss.file,
                offset: loss.offset,
                bytes: loss.bytes,
                record: loss.number,
                records: loss.count,
                kind: kind.map(Kind::name),
                subject: loss
                    .header
                    .map(|header| (header.kind.subject(), header.subject))
                    .filter(|subject| subject.0 != "record"),
                what: loss.what,
            });
        }
    }
    found
}
