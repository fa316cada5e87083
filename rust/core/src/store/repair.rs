//! Making a store that opens out of one that is refused.
//!
//! # Design
//!
//! What is whole becomes an index ([`super::mend`]), and everything that the index holds is written
//! again into new files behind the old ones, as a store itself does with groups that are in its way.
//! Then the new files are read back, and only if they are clean the old ones get out of the
//! way, under new names. The first new record has no number that continues the old ones, so until the
//! last old file is gone no opening takes the two together, and a repair that dies can be repeated.

use std::fs;
use std::path::{Path, PathBuf};

use super::log::{Home, Log, storage};
use super::mend::{LostOf, Mender};
use super::recover;
use super::scan::{self, Item, Volume};
use super::verify::{Opening, Verification, check_directory, verify_files};
use super::{LARGEST_FILE, RecoveryReport, SMALLEST_FILE, Store, Sync, WhenFull};
use crate::error::{Error, Result};

/// Epochs that a repair skips: lost claims may have given out any of them.
const EPOCHS_SKIPPED: u64 = 1 << 32;

/// What one trajectory lost in a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrajectoryLoss {
    /// Which.
    pub trajectory_id: u64,
    /// Its group, if that is still there.
    pub group_id: Option<u64>,
    /// Response tokens that are still there.
    pub tokens_kept: u64,
    /// Response tokens that were lost, as far as headers say: those of a record whose header is lost
    /// too are not counted.
    pub tokens_lost: u64,
    /// Whether it was finished, or may have been, and is unfinished again.
    pub finish_lost: bool,
    /// Whether it lost its score.
    pub reward_lost: bool,
    /// Bytes of values of columns that were lost. What they had replaced is back.
    pub column_bytes_lost: u64,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// What was found before.
    pub before: Verification,
    /// Where the damaged files are now; empty if nothing was done, because the store opens.
    pub set_aside: Vec<String>,
    /// The files that were written.
    pub written: Vec<String>,
    /// Groups whose prompt was lost, and with it everything about them.
    pub groups_lost: Vec<u64>,
    /// What other trajectories lost.
    pub trajectories: Vec<TrajectoryLoss>,
    /// Other records that were lost, by kind.
    pub others_lost: Vec<(String, u64)>,
    /// Records that were lost and whose kind is not known.
    pub unknown_lost: u64,
    /// Groups, trajectories and response tokens that the store holds now.
    pub kept: [u64; 3],
}

/// Make the store in a directory one that opens, without its damaged records and what cannot stand
/// without them. The damaged files stay beside it as `*.log.damaged`. A store that opens as
/// it is, if only by cutting a torn tail, is left alone.
///
/// # Errors
///
/// [`Error::InvalidInput`] if there is no store, [`Error::Storage`] if it is open or the disk is full,
/// [`Error::Corruption`] if it is of another format or nothing of it can be read. The old files are in
/// place then.
pub fn repair(directory: &Path) -> Result<Repair> {
    check_directory(directory)?;
    let home = Home::open(directory)?;
    let paths = recover::list(directory)?.0;
    let before = verify_files(&paths)?;
    let mut done = Repair {
        before,
        set_aside: Vec::new(),
        written: Vec::new(),
        groups_lost: Vec::new(),
        trajectories: Vec::new(),
        others_lost: Vec::new(),
        unknown_lost: 0,
        kept: [0; 3],
    };
    if !matches!(done.before.opening, Opening::Refused(_)) {
        return Ok(done);
    }
    let mut volumes = scan::volumes(&paths)?;
    let mender = mend(&mut volumes)?;
    report(&mender, &mut done);
    let written = match write(home.under_lock(), volumes, mender) {
        Ok(written) => written,
        Err(error) => {
            // What was written in part is of no use; the disk is better off without it.
            for path in recover::list(directory)?.0.iter().filter(|path| !paths.contains(path)) {
                fs::remove_file(path).map_err(storage(path, "remove"))?;
            }
            return Err(error);
        }
    };
    for path in &paths {
        let aside = aside(path);
        fs::rename(path, &aside).map_err(storage(path, "rename"))?;
        done.set_aside.push(aside.display().to_string());
    }
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(storage(directory, "sync the directory"))?;
    done.written = written.iter().map(|path| path.display().to_string()).collect();
    Ok(done)
}

fn mend(volumes: &mut [Volume]) -> Result<Mender> {
    let mut mender = Mender::new();
    let sequences: Vec<(String, u64)> =
        volumes.iter().map(|volume| (volume.file.name(), volume.file.sequence)).collect();
    scan::scan(volumes, &mut |item| match item {
        Item::Record(record) => mender.record(&record),
        Item::Lost(loss) => {
            let file = sequences.iter().find(|(name, _)| *name == loss.file);
            mender.lose(&loss, file.map_or(0, |(_, sequence)| *sequence))
        }
    })?;
    mender.finish()?;
    mender.index.base.next_epoch += EPOCHS_SKIPPED;
    Ok(mender)
}

fn report(mender: &Mender, done: &mut Repair) {
    let index = &mender.index;
    done.groups_lost = mender.groups.iter().copied().collect();
    for (&trajectory_id, lost) in &mender.trajectories {
        let kept = index.trajectories.get(&trajectory_id);
        let &LostOf { tokens, finish, reward, column_bytes } = lost;
        done.trajectories.push(TrajectoryLoss {
            trajectory_id,
            group_id: kept.map(|trajectory| trajectory.group_id),
            tokens_kept: kept.map_or(0, |trajectory| u64::from(trajectory.length)),
            tokens_lost: tokens,
            finish_lost: finish,
            reward_lost: reward,
            column_bytes_lost: column_bytes,
        });
    }
    for (kind, count) in &mender.others {
        if kind.is_empty() {
            done.unknown_lost = *count;
        } else {
            done.others_lost.push((kind.clone(), *count));
        }
    }
    let tokens = index.trajectories.values().map(|trajectory| u64::from(trajectory.length));
    done.kept = [index.groups.len() as u64, index.trajectories.len() as u64, tokens.sum()];
}

/// Write everything that the index holds into new files behind the old ones.
fn write(home: Home, volumes: Vec<Volume>, mender: Mender) -> Result<Vec<PathBuf>> {
    let old = volumes.len();
    let sizes = volumes.iter().map(|volume| volume.file.len() as u64 / 4096 * 4096);
    let file_bytes = sizes.max().unwrap_or(0).clamp(SMALLEST_FILE, LARGEST_FILE);
    let mut log = Log::new(Some(home), usize::try_from(file_bytes).unwrap_or(0), Sync::Batch);
    // One more than would continue the old log.
    log.next_number = mender.last_number + 2;
    for mut volume in volumes {
        volume.file.synced = volume.file.end;
        log.add(volume.file);
    }
    let mut store = Store {
        log,
        index: mender.index,
        when_full: WhenFull::Refuse,
        capacity_bytes: u64::MAX,
        report: RecoveryReport::default(),
        failed: false,
    };
    store.index.base.boot = store.log.boot();
    store.fit_files()?;
    store.open_next_file()?;
    for id in store.index.groups.keys().copied().collect::<Vec<_>>() {
        store.rewrite(id)?;
    }
    store.flush()?;
    let written = store.log.files.iter().skip(old).filter_map(|file| file.path.clone());
    let written: Vec<PathBuf> = written.collect();
    match verify_files(&written)? {
        Verification { opening: Opening::Clean, damages, .. } if damages.is_empty() => Ok(written),
        _ => Err(Error::Corruption(
            "what the repair wrote does not read back; the old files are in place".into(),
        )),
    }
}

impl Store {
    /// Make new files large enough for the largest head of a group that is written again.
    fn fit_files(&mut self) -> Result<()> {
        let base = self.index.base.encode().len();
        for id in self.index.groups.keys().copied().collect::<Vec<_>>() {
            let head = self.moved_head(id)?.len();
            while self.log.largest_payload(base) < head {
                self.log.file_bytes *= 2;
            }
        }
        Ok(())
    }
}

/// A name for a damaged file that is not taken.
fn aside(path: &Path) -> PathBuf {
    let name = |n: u32| {
        let suffix = if n == 0 { ".damaged".into() } else { format!(".{n}.damaged") };
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    (0..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(u32::MAX))
}
