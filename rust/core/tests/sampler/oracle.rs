//! What the samplers promise, computed the slow and plain way.

use k15_core::noise::splitmix64;

/// The entry in which `target` falls on the line of cumulative weights, by walking along it.
pub fn scan(weights: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    for (entry, weight) in weights.iter().enumerate() {
        sum += weight;
        if target < sum {
            return entry;
        }
    }
    panic!("target {target} lies past the total {sum}");
}

/// The draws' own random numbers: SplitMix64 as published, in [0, 1).
pub fn uniforms(seed: u64) -> impl Iterator<Item = f64> {
    let start = splitmix64(seed);
    (0u64..).map(move |i| {
        let bits = splitmix64(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    })
}

pub fn entry(at: usize) -> i64 {
    i64::try_from(at).unwrap()
}
