//! Near-repeats: windows in which too few n-grams are different.
//!
//! # Design
//!
//! One walk back from the end counts the different n-grams of every window that is due. Their number
//! only grows along the walk, so it ends as soon as it has seen more than the largest window may
//! hold: on sane text after a small part of the window. Nothing is kept between walks, so a stream
//! costs no memory beyond its tokens. N-grams are told apart by a 64 bit hash.

use super::plan::Window;
use crate::noise::splitmix64;

/// The base of the rolling hash: an odd number without structure.
const BASE: u64 = 0x9fb2_1c65_1e98_df25;

/// The low bits of an entry of the table hold the walk that wrote it, so that nothing needs clearing.
const WALK: u64 = 0xffff;

/// A set of n-grams that is empty at the beginning of each walk.
#[derive(Debug, Default)]
pub(super) struct Grams {
    table: Vec<u64>,
    walk: u64,
}

impl Grams {
    /// Empties the set and makes room for `most` n-grams.
    fn begin(&mut self, most: usize) {
        let size = (2 * most).next_power_of_two();
        if self.table.len() < size {
            self.table.resize(size, 0);
        }
        self.walk += 1;
        if self.walk > WALK {
            self.table.fill(0);
            self.walk = 1;
        }
    }

    /// Whether the set did not have the n-gram yet. `mask` + 1 is the part of the table in use.
    fn insert(&mut self, hash: u64, mask: usize) -> bool {
        let entry = hash & !WALK | self.walk;
        let mut slot = (hash >> 20) as usize & mask;
        loop {
            if self.table[slot] == entry {
                return false;
            }
            if self.table[slot] & WALK != self.walk {
                self.table[slot] = entry;
                return true;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The smallest of `windows` (ascending) that holds too few different n-grams.
    pub fn stale(&mut self, tokens: &[i32], ngram: usize, windows: &[Window]) -> Option<usize> {
        let able = windows.partition_point(|window| window.grams + ngram - 1 <= tokens.len());
        let windows = &windows[..able];
        let largest = windows.last()?;
        // The walk ends with at most this many entries, or with all n-grams of the window.
        self.begin(largest.least_distinct);
        let mask = (2 * largest.least_distinct).next_power_of_two() - 1;
        let mut hashes = Backwards::new(tokens, ngram);
        let (mut counted, mut distinct) = (0, 0);
        for window in windows {
            for hash in hashes.by_ref().take(window.grams - counted) {
                distinct += usize::from(self.insert(hash, mask));
                if distinct >= largest.least_distinct {
                    return None;
                }
            }
            counted = window.grams;
            if distinct < window.least_distinct {
                return Some(window.grams);
            }
        }
        None
    }
}

/// The hashes of the n-grams of `tokens`, the last one first.
struct Backwards<'a> {
    tokens: &'a [i32],
    ngram: usize,
    rolling: u64,
    /// `BASE` to the power of `ngram` - 1.
    power: u64,
    /// Where the next n-gram begins, plus 1; 0 when there is none.
    next: usize,
}

impl<'a> Backwards<'a> {
    /// `tokens` must hold at least one n-gram.
    fn new(tokens: &'a [i32], ngram: usize) -> Self {
        let next = tokens.len() + 1 - ngram;
        let mut hashes = Self { tokens, ngram, rolling: 0, power: 1, next };
        for _ in 1..ngram {
            hashes.power = hashes.power.wrapping_mul(BASE);
        }
        // All but the first token of the last n-gram; the iterator takes in the first.
        for &token in tokens[next..].iter().rev() {
            hashes.rolling = hashes.rolling.wrapping_mul(BASE).wrapping_add(value(token));
        }
        hashes
    }
}

impl Iterator for Backwards<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let start = self.next.checked_sub(1)?;
        self.next = start;
        self.rolling = self.rolling.wrapping_mul(BASE).wrapping_add(value(self.tokens[start]));
        let hash = splitmix64(self.rolling);
        let gone = value(self.tokens[start + self.ngram - 1]);
        self.rolling = self.rolling.wrapping_sub(gone.wrapping_mul(self.power));
        Some(hash)
    }
}

fn value(token: i32) -> u64 {
    u64::from(token.cast_unsigned()) + 1
}

/// Where the loop begins that made a window of `grams` n-grams stale.
///
/// The n-grams that stand in the window at least half as often as its average n-gram count as the
/// loop's. The beginning is where, walking back from the end, the loop's n-grams outnumber the others
/// by most. The walk ends when the others have caught up by a window's length, or at the first token
/// that is still kept. It happens once in a stream.
pub(super) fn beginning(tokens: &[i32], ngram: usize, grams: usize, novelty: f64) -> usize {
    let mut window: Vec<u64> = Backwards::new(tokens, ngram).take(grams).collect();
    window.sort_unstable();
    let often = |run: &&[u64]| 2.0 * novelty * run.len() as f64 >= 1.0;
    let looping: Vec<u64> =
        window.chunk_by(|a, b| a == b).filter(often).map(|run| run[0]).collect();
    let (mut ours, mut others, mut most, mut beginning) = (0, 0, 0, tokens.len());
    for (back, hash) in Backwards::new(tokens, ngram).enumerate() {
        let of_the_loop = looping.binary_search(&hash).is_ok();
        *(if of_the_loop { &mut ours } else { &mut others }) += 1;
        if ours >= most + others {
            most = ours - others;
            beginning = tokens.len() - ngram - back;
        } else if ours + grams < most + others {
            break;
        }
    }
    beginning
}
