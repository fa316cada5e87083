//! Threads of the process that serves a store and of its clients, all at once: what comes out is what went in.
//! `make sanitize` runs it under ThreadSanitizer, which reports any two that meet unordered.
#![expect(clippy::unwrap_used, reason = "a test may end by panicking")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use k15_core::pack::Packed;
use k15_core::store::{Chunk, FinishReason, Options, Order, PromptData, Sample, Strategy};
use k15_shared::{Calls, Client, LocalStore, Place, Result, Server, SharedBatch};

const GROUPS: i64 = 40;
/// Long enough to go past the caches into the log, and out of it into a batch.
const LENGTH: usize = 700;
const PROMPT: [i32; 2] = [7, 8];

const WANTED: Sample<'_> = Sample {
    groups: Some(3),
    tokens: None,
    max_staleness: 0,
    version: 0,
    strategy: Strategy::Uniform,
    seed: 1,
    columns: None,
    weights: None,
    max_segment_staleness: None,
};

/// Brings a trajectory to its end; false if there is none left.
fn carry(store: &mut dyn Calls) -> Result<bool> {
    let leases = store.lease(None, 1, 0.0, 1e9, Order::Oldest)?;
    let Some(lease) = leases.first() else { return Ok(false) };
    let (trajectory_id, epoch) = (lease.trajectory_id, lease.epoch);
    for (offset, n) in [(0, 1), (1, LENGTH - 1)] {
        let tokens = vec![i32::try_from(trajectory_id).unwrap(); n];
        let log_probs = vec![-1.0; n];
        let (tokens, log_probs) = (tokens.as_slice(), log_probs.as_slice());
        let chunk = Chunk { trajectory_id, epoch, offset, tokens, log_probs, loss_mask: None };
        store.append_many(&[chunk], 0)?;
    }
    store.finish(trajectory_id, epoch, FinishReason::Stop)?;
    store.set_reward(trajectory_id, 0.5)?;
    Ok(true)
}

/// The trajectories of a batch, each checked.
fn rows(input_ids: &[i32], trajectory_ids: &[i64]) -> Vec<i64> {
    let length = PROMPT.len() + LENGTH;
    assert_eq!(input_ids.len(), trajectory_ids.len() * length);
    for (row, id) in input_ids.chunks(length).zip(trajectory_ids) {
        assert_eq!(row[..PROMPT.len()], PROMPT);
        assert!(row[PROMPT.len()..].iter().all(|token| i64::from(*token) == *id));
    }
    trajectory_ids.to_vec()
}

fn words(batch: &SharedBatch, place: Place) -> Vec<u64> {
    let n = (place.length * place.dtype.width()).div_ceil(8);
    let cells = &batch.memory.words()[place.word..place.word + n];
    cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect()
}

fn client(path: &std::path::Path) -> Vec<i64> {
    let client = Client::open(path, || false).unwrap();
    let mut seen = Vec::new();
    while client.with(|store| carry(store)).unwrap() {
        let batch = client.with(|store| store.sample(&WANTED)).unwrap();
        let [input, who] = [0, 8].map(|array| words(&batch, batch.places[array]));
        let input: &[i32] = bytemuck::cast_slice(&input);
        seen.extend(rows(&input[..batch.places[0].length], bytemuck::cast_slice(&who)));
    }
    seen
}

fn owner(store: &LocalStore) -> Vec<i64> {
    let (mut seen, mut batch) = (Vec::new(), Packed::default());
    while store.with(|store| carry(store)).unwrap() {
        seen.extend(sample(store, &mut batch));
    }
    seen
}

fn sample(store: &LocalStore, batch: &mut Packed) -> Vec<i64> {
    store.freeing(|store| Ok(store.sample(&WANTED, batch)?)).unwrap();
    rows(batch.input_ids(), batch.trajectory_ids())
}

#[test]
fn each_trajectory_comes_out_once_and_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sock");
    let options = Options { capacity_bytes: 16 << 20, ..Options::default() };
    let store = Arc::new(LocalStore::open(&options).unwrap());
    let mut server = Server::start(Arc::clone(&store), &path).unwrap();
    for prompt_id in 0..GROUPS {
        let prompt =
            PromptData { prompt_id, tokens: &PROMPT, answer: "", tags: vec![], difficulty: None };
        store.with(|store| Calls::add_group(store, &prompt, 2, 0)).unwrap();
    }
    let mut seen: Vec<i64> = thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| owner(&store)), scope.spawn(|| owner(&store))];
        threads.extend((0..3).map(|_| scope.spawn(|| client(&path))));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut batch = Packed::default();
    loop {
        let more = sample(&store, &mut batch);
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    server.close();
    seen.sort_unstable();
    assert_eq!(seen, (0..2 * GROUPS).collect::<Vec<_>>());
}
