//! A store that nobody has open, to be looked at.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::Path;

use super::column::Column;
use super::index::Index;
use super::log::{Log, storage};
use super::recover::{self, Access};
use super::verify::{KindCount, open_to_read, verify_files};
use super::{SMALLEST_FILE, Store, Sync, WhenFull};
use crate::error::{Error, Result};

/// A store as opening it would find it. Nothing is changed by it: all that [`Store`] answers can be
/// asked, nothing can be written. No opener gets the store while this lives; others may look too.
pub struct Snapshot {
    store: Store,
    kinds: Vec<KindCount>,
    spares: (u64, u64),
}

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileView {
    /// Its name.
    pub name: String,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Where the log ends in it.
    pub committed: u64,
    /// How far the disk is known to have it.
    pub synced: u64,
    /// The number of its first record.
    pub first_record: u64,
    /// Bytes of it that are still needed.
    pub live: u64,
}

/// What a store holds, beyond [`super::Stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Files of the log, oldest first.
    pub files: Vec<FileView>,
    /// How many files wait to be used again, and their bytes.
    pub spares: (u64, u64),
    /// Records by kind.
    pub kinds: Vec<KindCount>,
    /// Marks that can be returned to: id and policy version.
    pub marks: Vec<(u64, u32)>,
    /// The declared columns, each with the number of stored response tokens that have a value in it.
    pub columns: Vec<(Column, u64)>,
    /// The newest policy version that the store has seen.
    pub version: u32,
    /// How many groups that can still be trained on are so many versions old, counted from their oldest
    /// response token to the newest version.
    pub staleness: BTreeMap<u32, u64>,
    /// The ids that come next: group, trajectory, lease epoch.
    pub next: [u64; 3],
}

/// Tokens of one trajectory that were appended together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Their place in the response.
    pub offset: u64,
    /// How many.
    pub n: u32,
    /// The policy version that sampled them.
    pub version: u32,
    /// The file that they are in, and where.
    pub place: (String, u64),
}

impl Snapshot {
    /// Look at the store in a directory. `max_uses` decides which groups count as used up.
    ///
    /// # Errors
    ///
    /// Those of [`Store::open`], and [`Error::InvalidInput`] if there is no store.
    pub fn open(directory: &Path, max_uses: usize) -> Result<Self> {
        if max_uses == 0 {
            return Err(Error::invalid("max_uses", 0, "at least 1"));
        }
        let (home, paths) = open_to_read(directory)?;
        let mut log =
            Log::new(Some(home), usize::try_from(SMALLEST_FILE).unwrap_or(0), Sync::Never);
        let mut index = Index::new(max_uses);
        let (report, cut) = recover::take_up(&mut log, &mut index, &paths, Access::Read)?;
        if let Some((place, offset)) = cut {
            // In this process only: the maps are private.
            log.files.truncate(place + 1);
            if let Some(file) = log.files.back_mut() {
                file.set_end(offset);
            }
        }
        let mut spares = (0, 0);
        for path in recover::list(directory)?.1 {
            spares.0 += 1;
            spares.1 += fs::metadata(&path).map_err(storage(&path, "read the size"))?.len();
        }
        let kinds = verify_files(&paths)?.kinds;
        let store = Store {
            log,
            index,
            when_full: WhenFull::Refuse,
            capacity_bytes: 0,
            report,
            failed: false,
        };
        Ok(Self { store, kinds, spares })
    }

    /// Files, records, marks and staleness.
    pub fn inspect(&self) -> Inspection {
        let Store { log, index, .. } = &self.store;
        let files = log.files.iter().map(|file| FileView {
            name: file.name(),
            bytes: file.len() as u64,
            committed: file.end as u64,
            synced: file.synced as u64,
            first_record: file.first_number,
            live: index.live.get(&file.sequence).copied().unwrap_or(0),
        });
        let base = &index.base;
        let mut staleness = BTreeMap::new();
        for group in index.groups.values().filter(|group| index.is_alive(group)) {
            let age = base.version.saturating_sub(index.oldest_version(group));
            *staleness.entry(age).or_default() += 1;
        }
        Inspection {
            files: files.collect(),
            spares: self.spares,
            kinds: self.kinds.clone(),
            marks: self.store.marks(),
            columns: (0..)
                .zip(&base.columns)
                .map(|(number, column)| {
                    let covered = index.trajectories.values().map(|t| t.covered(number));
                    (column.clone(), covered.map(u64::from).sum())
                })
                .collect(),
            version: base.version,
            staleness,
            next: [base.next_group, base.next_trajectory, base.next_epoch],
        }
    }

    /// The ids of all trajectories, in their order.
    pub fn trajectory_ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.store.index.trajectories.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The pieces in which a trajectory's response was appended.
    pub fn segments(&self, trajectory_id: u64) -> Result<Vec<Segment>> {
        let mut offset = 0;
        let chunks = &self.store.trajectory_of(trajectory_id)?.chunks;
        let segments = chunks.iter().map(|chunk| {
            let file = self.store.log.files.iter().find(|file| file.sequence == chunk.at.file);
            let name = file.map_or_else(String::new, super::file::LogFile::name);
            let place = (name, u64::from(chunk.at.offset));
            let segment = Segment { offset, n: chunk.n, version: chunk.version, place };
            offset += u64::from(chunk.n);
            segment
        });
        Ok(segments.collect())
    }
}

impl Deref for Snapshot {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}
