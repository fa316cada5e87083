//! Power fails at any instant: what was acknowledged as durable is there, and nothing else is.
//!
//! The records that a store wrote are the truth. After each failure what is read back must be a run
//! of exactly these, up to at least the last one that was acknowledged as durable, and the index must
//! be the one that the store had there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use proptest::strategy::Strategy as Generator;

use super::base::Base;
use super::file::DATA;
use super::log::Home;
use super::queue::Place;
use super::record::Header;
use super::sim_disk::{Image, SimDisk, restore};
use super::*;
use crate::pack::Packed;
use crate::values::Dtype;

const FILE: u64 = 4096;

/// What a store wrote.
#[derive(Clone, Default)]
struct Truth {
    records: BTreeMap<u64, (Header, Vec<u8>)>,
    /// The index behind a record, where a call ended there.
    indexes: BTreeMap<u64, String>,
    /// The last record that was acknowledged as durable.
    durable: u64,
}

impl Truth {
    /// Take up what a call has written. Some of it may be in no file any more.
    fn hear(&mut self, store: &Store, from: u64) {
        let written = store.log.written.range(from..);
        self.records.extend(written.map(|(number, record)| (*number, record.clone())));
        self.indexes.insert(store.log.next_number - 1, state(store));
    }

    /// What of it does not agree with what was read back.
    fn disagreement(&self, store: &Store) -> Option<String> {
        let found = records(store);
        // Opening wrote a base, the last record.
        let opened = store.log.next_number - 1;
        let last = opened - 1;
        if last < self.durable {
            return Some(format!("{last} is the last record, {} was durable", self.durable));
        }
        for (number, record) in found.range(..opened) {
            let written = self.records.get(number);
            if written != Some(record) {
                return Some(format!("record {number}: {record:?}, written was {written:?}"));
            }
        }
        let (is, was) = (state(store), self.indexes.get(&last));
        was.filter(|was| **was != is).map(|was| format!("{is}\nwas {was}"))
    }

    /// What was read back is the truth from now on.
    fn restart(&mut self, store: &Store) {
        self.records = records(store);
        self.indexes.clear();
        self.hear(store, 0);
    }
}

fn records(store: &Store) -> BTreeMap<u64, (Header, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for file in &store.log.files {
        let mut at = DATA;
        while at < file.end {
            let Ok((header, payload, size)) = file.record(at) else { panic!("a damaged record") };
            found.insert(header.number, (header, payload.to_vec()));
            at += size;
        }
    }
    found
}

/// All that the records amount to, without what only memory has.
fn state(store: &Store) -> String {
    let index = &store.index;
    let trajectories: BTreeMap<_, _> = index
        .trajectories
        .iter()
        .map(|(id, t)| {
            (id, format!("{:?}", (&t.chunks, &t.pieces, t.finish, t.reward, &t.discarded)))
        })
        .collect();
    let base = Base { boot: [0; 16], ..index.base.clone() };
    let groups: Vec<_> = index
        .groups
        .iter()
        .map(|(id, g)| (id, g.first_trajectory, g.k, g.prompt, &g.uses, g.gone, &g.bytes_in))
        .collect();
    let wanted = index.trajectories.iter().filter(|(_, t)| t.place != Place::Out);
    let unfinished: BTreeSet<u64> = wanted.map(|(id, _)| *id).collect();
    assert_eq!(unfinished.len(), index.queue.len());
    let sets = (unfinished, &index.shelves.ready, &index.spent, &index.aborted);
    format!("{:?}", (groups, trajectories, sets, base))
}

/// What a call is made of.
type Numbers = (u8, u32, u32);

/// Calls of one life, and a seed for what its disk loses.
type Life = (Vec<Numbers>, u64);

/// One call, made out of numbers.
fn call(store: &mut Store, (kind, a, b): Numbers, now: f64) -> Result<bool> {
    let pick = |ids: &BTreeSet<u64>| ids.iter().copied().nth(a as usize % ids.len().max(1));
    let tokens: Vec<i32> = (0..i32::try_from(b % 200).unwrap()).collect();
    let log_probs: Vec<f32> = tokens.iter().map(|token| -(*token as f32)).collect();
    match kind {
        0 | 1 => {
            let prompt = PromptData {
                prompt_id: i64::from(a),
                tokens: &vec![1; b as usize % 30 + 1],
                answer: "",
                tags: vec![],
                difficulty: None,
            };
            let version = store.index.base.version + u32::from(a % 5 == 0);
            store.add_group(&prompt, a % 3 + 1, version)?;
        }
        2..=5 => {
            let order = [Order::Oldest, Order::Stalest, Order::Longest][a as usize % 3];
            for lease in store.lease(1, now, 1.0, order)? {
                let view = store.trajectory(lease.trajectory_id)?;
                let offset = u32::try_from(view.tokens.len()).unwrap();
                let version =
                    store.index.base.version.max(view.versions.last().copied().unwrap_or(0));
                let id = lease.trajectory_id;
                store.append(id, lease.epoch, offset, &tokens, &log_probs, None, version)?;
                if kind > 3 {
                    let reason = if b % 7 == 0 { FinishReason::Abort } else { FinishReason::Stop };
                    store.finish(id, lease.epoch, reason)?;
                    if reason == FinishReason::Stop {
                        store.set_reward(id, 1.0)?;
                    }
                }
            }
        }
        6 => {
            let ids: BTreeSet<u64> = store.index.trajectories.keys().copied().collect();
            if let Some(id) = pick(&ids) {
                let values = vec![b; store.trajectory(id)?.tokens.len()];
                store.set_column(id, "c", 0, Dtype::Uint32, bytemuck::cast_slice(&values))?;
            }
        }
        7 => {
            let wanted = Sample {
                groups: Some(a as usize % 3),
                max_staleness: 99,
                version: store.index.base.version,
                strategy: Strategy::Fifo,
                ..Sample::default()
            };
            store.sample(&wanted, &mut Packed::default())?;
        }
        8 => {
            let groups = store.index.groups.keys().copied().collect();
            if let Some(id) = pick(&groups) {
                store.drop_groups(&[id])?;
            }
        }
        9 => _ = store.mark(store.index.base.version)?,
        10 => {
            if let Some(mark) = store.index.base.marks.first() {
                store.rewind(mark.id)?;
            }
        }
        _ => store.flush()?,
    }
    Ok(kind >= 9 && (kind != 10 || !store.index.base.marks.is_empty()))
}

fn options(sync: Sync, when_full: WhenFull) -> Options {
    Options {
        capacity_bytes: 10 * FILE,
        file_bytes: Some(FILE),
        when_full,
        sync,
        columns: vec![Column { name: "c".into(), dtype: Dtype::Uint32 }],
        ..Options::default()
    }
}

fn open(directory: &Path, disk: &Arc<SimDisk>, options: &Options) -> Result<Store> {
    let home = Home::open(directory)?.on(Arc::<SimDisk>::clone(disk));
    Store::open_in(Some(home), options)
}

/// What every failure of power left must agree with one of the truths.
fn check(truths: &[&Truth], images: &[Image], options: &Options, root: &Path) {
    for image in images {
        let directory = restore(image, &root.join("failed"));
        let disk = Arc::new(SimDisk::new(&directory, 97, 0));
        let store = open(&directory, &disk, options).unwrap();
        for id in store.index.trajectories.keys() {
            store.trajectory(*id).unwrap();
        }
        let found: Vec<_> = truths.iter().filter_map(|truth| truth.disagreement(&store)).collect();
        assert!(found.len() < truths.len(), "{found:?}");
        drop(store);
        fs::remove_dir_all(&directory).unwrap();
    }
}

/// One life of a store: what its disk had when power failed at last.
fn live(
    directory: &Path,
    life: u8,
    truth: &mut Truth,
    options: &Options,
    calls: &[Numbers],
    seed: u64,
) -> Image {
    let root = directory.parent().unwrap();
    let disk = Arc::new(SimDisk::new(directory, life + 1, seed));
    let mut store = open(directory, &disk, options).unwrap();
    let before = truth.clone();
    assert_eq!(if life > 0 { before.disagreement(&store) } else { None }, None);
    truth.restart(&store);
    // While it opens, what was there before may still be there, and what will be cut.
    check(&[truth, &before], &disk.failures(), options, root);
    if options.sync == Sync::Always {
        truth.durable = store.log.next_number - 1;
    }
    for (at, &numbers) in calls.iter().enumerate() {
        let from = store.log.next_number;
        let is_durable = match call(&mut store, numbers, f64::from(life) * 1e6 + at as f64 * 9.0) {
            Ok(is_flushed) => is_flushed || options.sync == Sync::Always,
            Err(Error::Capacity(_)) => false,
            Err(error) => panic!("{error}"),
        };
        truth.hear(&store, from);
        check(&[truth], &disk.failures(), options, root);
        if is_durable {
            truth.durable = store.log.next_number - 1;
        }
    }
    disk.fail()
}

/// One bit of what is durable, and nothing else, is wrong: that is named.
fn flip(directory: &Path, store: Store, options: &Options, place: u64) {
    let files = store.log.files.iter().filter(|file| file.synced > DATA);
    let files: Vec<_> = files.map(|file| (file.path.clone().unwrap(), file.synced)).collect();
    drop(store);
    let Some((path, synced)) = files.get(usize::try_from(place).unwrap() % files.len().max(1))
    else {
        return;
    };
    let mut bytes = fs::read(path).unwrap();
    let at = DATA + usize::try_from(place >> 8).unwrap() % (synced - DATA);
    bytes[at] ^= 1 << (place % 8);
    fs::write(path, &bytes).unwrap();
    let disk = Arc::new(SimDisk::new(directory, 99, 0));
    match open(directory, &disk, options) {
        Err(Error::Corruption(message)) => {
            assert!(message.starts_with(&format!("{}: offset ", path.display())), "{message}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("byte {at} of {} is wrong and was not seen", path.display()),
    }
}

/// A directory in memory where there is one: what is synced here is synced by the simulation.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn numbers() -> impl Generator<Value = Numbers> {
    (0u8..12, any::<u32>(), any::<u32>())
}

fn lives() -> impl Generator<Value = Vec<Life>> {
    let life = (prop::collection::vec(numbers(), 0..40), any::<u64>());
    prop::collection::vec(life, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 320, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_durable_survives(
        lives in lives(),
        always in any::<bool>(),
        evicts in any::<bool>(),
        place in any::<u64>(),
    ) {
        let sync = if always { Sync::Always } else { Sync::Batch };
        let when_full = if evicts { WhenFull::EvictOldest } else { WhenFull::Refuse };
        let options = options(sync, when_full);
        let root = scratch();
        let mut truth = Truth::default();
        let mut directory = root.path().join("0");
        fs::create_dir(&directory).unwrap();
        for (life, (calls, seed)) in (0u8..).zip(&lives) {
            let image = live(&directory, life, &mut truth, &options, calls, *seed);
            directory = restore(&image, &root.path().join((life + 1).to_string()));
        }
        let disk = Arc::new(SimDisk::new(&directory, 98, 0));
        let mut store = open(&directory, &disk, &options).unwrap();
        assert_eq!(truth.disagreement(&store), None);
        store.flush().unwrap();
        flip(&directory, store, &options, place);
    }
}
