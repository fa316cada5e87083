//! A log with a record of every kind.

use std::path::Path;

use k15_core::Result;
use k15_core::pack::Packed;
use k15_core::store::{
    Column, FinishReason, Options, Order, PromptData, Sample, Store, Strategy, Sync, WhenFull,
};
use k15_core::values::Dtype;

fn prompt() -> PromptData<'static> {
    let tags = vec!["tag"];
    PromptData { prompt_id: 1, tokens: &[1; 20], answer: "answer", tags, difficulty: Some(0.5) }
}

fn respond(store: &mut Store, n: u8, version: u32, reason: FinishReason) -> Result<()> {
    let tokens: Vec<i32> = (0..i32::from(n)).collect();
    let values = vec![0.5; tokens.len()];
    for lease in store.lease(100, 0.0, 1.0, Order::Oldest)? {
        let who = lease.trajectory_id;
        store.append(who, lease.epoch, 0, &tokens, &values, None, version)?;
        store.set_column(who, "values", 0, Dtype::Float32, bytemuck::cast_slice(&values))?;
        store.finish(who, lease.epoch, reason)?;
        if reason != FinishReason::Abort {
            store.set_reward(who, 1.0)?;
        }
    }
    Ok(())
}

/// Write it into an empty directory.
pub fn write(directory: &Path) -> Result<()> {
    let mut store = Store::open(&Options {
        directory: Some(directory.into()),
        capacity_bytes: 32 << 12,
        file_bytes: Some(4096),
        when_full: WhenFull::EvictOldest,
        sync: Sync::Never,
        columns: vec![Column { name: "values".into(), dtype: Dtype::Float32 }],
        ..Options::default()
    })?;
    store.mark(0)?;
    store.add_group(&prompt(), 2, 0)?;
    respond(&mut store, 30, 1, FinishReason::Abort)?;
    store.lease(2, 0.0, 9.0, Order::Oldest)?;
    for _ in 0..60 {
        // What was aborted is in the way, and is moved.
        store.add_group(&prompt(), 1, 0)?;
        respond(&mut store, 200, 1, FinishReason::Stop)?;
        let last = store.complete_groups().pop();
        store.drop_groups(&[last.unwrap_or_default()])?;
        store.mark(0)?;
    }
    while store.stats().bytes_live < (32 << 12) * 55 / 100 {
        store.add_group(&prompt(), 1, 0)?;
        respond(&mut store, 200, 1, FinishReason::Stop)?;
    }
    let mark = store.mark(0)?; // evicts
    let first = store.complete_groups()[0];
    store.drop_groups(&[first])?;
    let wanted = Sample {
        groups: Some(1),
        tokens: None,
        max_staleness: 1,
        version: 1,
        strategy: Strategy::Fifo,
        seed: 0,
        columns: None,
        max_segment_staleness: None,
        weights: None,
    };
    store.sample(&wanted, &mut Packed::default())?;
    store.add_group(&prompt(), 1, 0)?;
    respond(&mut store, 10, 1, FinishReason::Abort)?;
    store.rewind(mark)?;
    respond(&mut store, 10, 0, FinishReason::Stop)
}
