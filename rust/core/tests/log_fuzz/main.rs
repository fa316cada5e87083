//! Some damaged logs; `make fuzz` makes as many as there is time for.

#![expect(clippy::unwrap_used, reason = "a test may end by panicking")]

mod mutate;
mod whole;

use k15_core::noise::splitmix64;

const LOGS: u64 = 120;

#[test]
fn no_damage_is_too_much_for_a_reader() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (home.path().join("whole"), home.path().join("damaged"));
    std::fs::create_dir(&first).unwrap();
    whole::write(&first).unwrap();
    let whole = mutate::read(&first);
    let mut refused = 0;
    for seed in 0..LOGS {
        let input = input(seed);
        refused += u64::from(mutate::read_in_every_way(&mutate::mutate(&whole, &input), &second));
    }
    assert!(0 < refused && refused < LOGS, "{refused} of {LOGS} were refused");
}

/// 64 bytes that look random.
fn input(seed: u64) -> Vec<u8> {
    (0..8).flat_map(|word| splitmix64(seed << 3 | word).to_le_bytes()).collect()
}
