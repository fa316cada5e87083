//! The trajectory store: the segment store (unfinished) and the replay buffer (finished) in one.
//!
//! # Design
//!
//! The log is the store. Every change is one checksummed record in a run of mapped files (or
//! anonymous memory), and an index in memory says what the records amount to. Finishing a
//! trajectory moves no tokens; sampling copies them once, from the map into the batch.
//!
//! ```
//! use k15_core::pack::Packed;
//! use k15_core::store::{FinishReason, Options, Order, PromptData, Sample, Store, Strategy};
//!
//! let mut store = Store::open(&Options::default())?;
//! let prompt =
//!     PromptData { prompt_id: 7, tokens: &[1, 2], answer: "4", tags: vec![], difficulty: None };
//! let ids = store.add_group(&prompt, 1, 0)?;
//! let lease = store.lease(8, 0.0, 60.0, Order::Oldest)?.remove(0);
//! store.append(ids[0], lease.epoch, 0, &[5, 6, 7], &[-0.1, -0.2, -0.3], None, 0)?;
//! store.finish(ids[0], lease.epoch, FinishReason::Stop)?;
//! store.set_reward(ids[0], 1.0)?;
//!
//! let mut batch = Packed::default();
//! let wanted = Sample {
//!     groups: Some(4),
//!     max_staleness: 1,
//!     strategy: Strategy::Fifo,
//!     ..Sample::default()
//! };
//! store.sample(&wanted, &mut batch)?;
//! assert_eq!(batch.input_ids(), [1, 2, 5, 6, 7]);
//! assert_eq!(batch.loss_mask(), [0, 0, 1, 1, 1]);
//! # Ok::<(), k15_core::Error>(())
//! ```

use std::path::PathBuf;

use crate::error::{Error, Result};

mod ahead;
mod base;
mod choice;
mod column;
mod disk;
mod event;
mod file;
mod group_event;
mod ids;
mod index;
mod lease;
mod log;
mod map;
mod marks;
mod mend;
mod mend_move;
mod past;
#[cfg(test)]
mod power_tests;
mod priority;
mod query;
mod queue;
mod record;
mod recover;
mod repair;
mod rewrite;
mod sample;
mod scan;
mod shelves;
#[cfg(test)]
mod sim_disk;
mod snapshot;
mod space;
mod state;
mod verify;
mod watch;
mod watch_file;
mod write;

pub use column::{Column, ColumnChunk};
pub use event::FinishReason;
pub use group_event::PromptData;
pub use index::MARKS_KEPT;
pub use lease::{Lease, Order};
pub use log::Sync;
pub use map::SharedMap;
pub use priority::{Weights, priorities};
pub use query::{State, Stats, TrajectoryView};
pub use recover::{RecoveryReport, TornTail};
pub use repair::{Repair, TrajectoryLoss, repair};
pub use sample::{Sample, Strategy};
pub use snapshot::{FileView, Inspection, Segment, Snapshot};
pub use space::WhenFull;
pub use verify::{DamageReport, KindCount, Opening, Verification, verify};
pub use watch::{Flow, Watched, Watcher};
pub use write::Chunk;

use event::Event;
use index::Index;
use log::{Home, Log};
use record::Kind;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the log lives; none keeps it in memory.
    pub directory: Option<PathBuf>,
    /// The most that the log's files may take.
    pub capacity_bytes: u64,
    /// The size of one file of the log; a part of the capacity unless given.
    pub file_bytes: Option<u64>,
    /// What happens to an append or a new group that finds the store full.
    pub when_full: WhenFull,
    /// When appends reach the disk.
    pub sync: Sync,
    /// How often a group is sampled before it is used up.
    pub max_uses: usize,
    /// Per-token columns besides the built-in ones. Those of earlier openings stay; one that is
    /// there already must be of the same type.
    pub columns: Vec<Column>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: None,
            capacity_bytes: 4 << 30,
            file_bytes: None,
            when_full: WhenFull::Refuse,
            sync: Sync::Batch,
            max_uses: 1,
            columns: Vec::new(),
        }
    }
}

/// The store. One opener at a time; see the module's documentation.
pub struct Store {
    log: Log,
    index: Index,
    when_full: WhenFull,
    capacity_bytes: u64,
    report: RecoveryReport,
    /// A disk that failed to sync may have dropped what it was given: nothing more is accepted.
    failed: bool,
}

const SMALLEST_FILE: u64 = 4096;
const LARGEST_FILE: u64 = 1 << 30;

impl Options {
    fn file_bytes(&self) -> Result<usize> {
        let default = (self.capacity_bytes / 32).clamp(64 << 10, 64 << 20);
        let bytes = self.file_bytes.unwrap_or(default) / 4096 * 4096;
        if !(SMALLEST_FILE..=LARGEST_FILE).contains(&bytes) {
            return Err(Error::invalid(
                "file_bytes",
                self.file_bytes.unwrap_or(default),
                format!("between {SMALLEST_FILE} and {LARGEST_FILE}"),
            ));
        }
        if self.capacity_bytes < 8 * bytes {
            return Err(Error::invalid(
                "capacity_bytes",
                self.capacity_bytes,
                format!("at least 8 log files of {bytes} bytes: {}", 8 * bytes),
            ));
        }
        usize::try_from(bytes).map_err(|_| Error::invalid("file_bytes", bytes, "less"))
    }
}

impl Store {
    /// Open a store, or make it. Every record is read and checked; leases of an earlier opener are
    /// void.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if another opener holds the directory or the system refuses,
    /// [`Error::Corruption`] if a record is damaged or of another format: nothing is changed then.
    pub fn open(options: &Options) -> Result<Self> {
        options.file_bytes()?;
        if options.max_uses == 0 {
            return Err(Error::invalid("max_uses", 0, "at least 1"));
        }
        column::merge(&[], &options.columns)?;
        let home = options.directory.as_deref().map(Home::open).transpose()?;
        Self::open_in(home, options)
    }

    fn open_in(home: Option<Home>, options: &Options) -> Result<Self> {
        let file_bytes = options.file_bytes()?;
        let mut log = Log::new(home, file_bytes, options.sync);
        let mut index = Index::new(options.max_uses);
        let report = recover::recover(&mut log, &mut index)?;
        let mut store = Self {
            log,
            index,
            when_full: options.when_full,
            capacity_bytes: options.capacity_bytes,
            report,
            failed: false,
        };
        store.index.evict_by(options.when_full);
        store.index.base.boot = store.log.boot();
        store.index.base.columns = column::merge(&store.index.base.columns, &options.columns)?;
        let base = store.index.base.encode();
        // A file of an earlier format stays one.
        if store.log.fits(base.len()) && store.log.is_current() {
            store.commit(Kind::Base, 0, &[&base])?;
        } else {
            store.open_next_file()?;
        }
        store.acknowledge()?;
        Ok(store)
    }

    /// What opening found.
    pub fn recovery_report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Put everything that was acknowledged on the disk, unless `sync` is never.
    pub fn flush(&mut self) -> Result<()> {
        if self.log.sync == Sync::Never {
            return Ok(());
        }
        let flushed = self.log.flush();
        self.failed |= flushed.is_err();
        flushed
    }

    /// Write one record, which must fit the open file, and let the index follow it.
    fn commit(&mut self, kind: Kind, subject: u64, parts: &[&[u8]]) -> Result<()> {
        let at = self.log.push(kind, subject, parts);
        let len = parts.iter().map(|part| part.len()).sum();
        let event = Event::decode(kind, subject, self.log.payload(at, len))?;
        let payload = u32::try_from(len).unwrap_or(u32::MAX);
        self.index.apply(&event, at, payload, record::size(len) as u64)
    }

    /// Go on to the next file of the log.
    fn open_next_file(&mut self) -> Result<()> {
        self.log.roll()?;
        let base = self.index.base.encode();
        self.commit(Kind::Base, 0, &[&base])
    }

    /// Called before a public method says that it is done.
    fn acknowledge(&mut self) -> Result<()> {
        if self.log.sync == Sync::Always { self.flush() } else { Ok(()) }
    }

    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::Conflict(
                "the store failed to sync and accepts nothing more: close it and open it again"
                    .into(),
            ));
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Nobody is left to tell; `flush` says whether it worked.
        self.flush().ok();
    }
}
