//! Sampling noise as a pure function of (seed, trajectory, position).
//!
//! # Design
//!
//! A counter-based generator keeps no state: a stream that is stopped, stored and resumed, or that
//! shares its batch with other streams, draws the same numbers as one that ran alone. SplitMix64's
//! finaliser (Steele, Lea and Flood, OOPSLA 2014) is applied once for each of the three keys.

/// SplitMix64: advance by the golden-ratio increment, then mix.
#[inline]
pub fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A uniform number in the open interval (0, 1), on a grid of 2^-52 with an offset of half a step.
///
/// One bit more would not fit beside the offset: the largest value would round to 1.
///
/// ```
/// use k15_core::noise::uniform;
/// let u = uniform(0, 7, 3);
/// assert!(0.0 < u && u < 1.0);
/// assert_eq!(u, uniform(0, 7, 3));
/// assert_ne!(u, uniform(0, 7, 4));
/// ```
#[inline]
pub fn uniform(seed: u64, trajectory_id: u64, position: u64) -> f64 {
    let mixed = splitmix64(splitmix64(splitmix64(seed) ^ trajectory_id) ^ position);
    ((mixed >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_is_flat_and_uncorrelated_along_each_key() {
        let keyed: [fn(u64) -> f64; 3] =
            [|i| uniform(i, 1, 2), |i| uniform(1, i, 2), |i| uniform(1, 2, i)];
        for draw in keyed {
            let n = 100_000u64;
            let draws: Vec<f64> = (0..n).map(draw).collect();
            let mut bins = [0u32; 100];
            for u in &draws {
                #[expect(clippy::cast_possible_truncation, reason = "u < 1, so the bin is < 100")]
                let bin = (u * 100.0) as usize;
                bins[bin] += 1;
            }
            let expected = n as f64 / 100.0;
            let chi2: f64 =
                bins.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
            assert!(chi2 < 160.0, "chi2 {chi2} with 99 degrees of freedom");
            let lag: f64 =
                draws.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / n as f64;
            assert!(lag.abs() < 0.002, "lag-1 covariance {lag}");
        }
    }
}
