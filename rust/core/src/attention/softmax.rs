//! The parts of a softmax over one block of scores.

use super::TILE;
use super::abreast::BLOCK;

/// The largest of the scores, and of `least`.
#[inline(always)]
pub(super) fn maximum(least: f32, scores: &[f32; BLOCK]) -> f32 {
    let mut lanes = [least; TILE];
    for chunk in scores.chunks_exact(TILE) {
        for lane in 0..TILE {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    let mut width = TILE / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane + width], lanes[lane]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Of two numbers; the second where the first is none.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Replaces scores by exp(score - highest); their sum.
#[inline(always)]
pub(super) fn exponentials<const FUSED: bool>(scores: &mut [f32; BLOCK], highest: f32) -> f32 {
    let mut sums = [0.0; TILE];
    for chunk in scores.chunks_exact_mut(TILE) {
        for lane in 0..TILE {
            chunk[lane] = exp::<FUSED>(chunk[lane] - highest);
            sums[lane] += chunk[lane];
        }
    }
    let mut width = TILE / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// e^x for x <= 0, within 2 units in the last place; 0 below -87, where results stop being normal numbers.
///
/// Cody and Waite's reduction to |r| <= ln 2 / 2, then the Taylor polynomial of degree 7.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4]; // the first has few digits: n * it is exact
    let bounded = if x < LEAST { LEAST } else { x };
    let shifted = multiply_add::<FUSED>(bounded, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN_2[1], multiply_add::<FUSED>(n, -LN_2[0], bounded));
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    // The low bits of `shifted` are n: moved to the exponent's place they multiply by 2^n.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < LEAST { 0.0 } else { p * power }
}

/// a * b + c, rounded once where that is one instruction.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = 0.0f32;
        while x > -86.9 {
            let wanted = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(got) - wanted).abs() / wanted;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {got}, not {wanted}");
            }
            x -= 0.000_37;
        }
        assert_eq!((exp::<true>(0.0), exp::<true>(f32::NEG_INFINITY)), (1.0, 0.0));
    }
}
