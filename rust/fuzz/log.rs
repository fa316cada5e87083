//! Damaged logs, as libFuzzer makes them up: none may be too much for a reader of the store.
//!
//! The bytes say what is done to a whole log (`rust/core/tests/log_fuzz/mutate.rs`), whose records are then
//! sealed with checksums that fit: coverage leads to what is behind them.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../core/tests/log_fuzz/mutate.rs"]
mod mutate;
#[path = "../core/tests/log_fuzz/whole.rs"]
mod whole;

struct Home {
    /// Removed when the process ends by itself; in memory where there is a directory for that.
    directory: PathBuf,
    whole: mutate::Files,
}

static HOME: LazyLock<Home> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let directory = parent.join(format!("k15-fuzz-{}", std::process::id()));
    let first = directory.join("whole");
    std::fs::create_dir_all(&first).unwrap();
    whole::write(&first).unwrap();
    Home { whole: mutate::read(&first), directory }
});

fuzz_target!(|input: &[u8]| {
    let damaged = mutate::mutate(&HOME.whole, input);
    mutate::read_in_every_way(&damaged, &HOME.directory.join("damaged"));
});
