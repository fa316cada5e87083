//! A stream of random numbers that is a pure function of its key.

use crate::noise::splitmix64;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 as a generator, started at a place that a key decides.
pub struct Stream(u64);

impl Stream {
    /// The stream of one seed.
    pub fn new(seed: u64) -> Self {
        Self(splitmix64(seed))
    }

    /// The stream of one entry under a seed, independent of the streams of all other entries.
    pub fn of_entry(seed: u64, entry: u64) -> Self {
        Self(splitmix64(splitmix64(seed) ^ entry))
    }

    /// A number in [0, 1) on a grid of 2^-53.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        let bits = splitmix64(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}
