//! The loops, written so that the compiler makes vectors of them.
//!
//! All of it is inlined into one function, which pulp compiles for the processor at hand: what is not
//! inlined would be compiled for the oldest one.

use pulp::{Simd, WithSimd};

use super::{Shape, TILE, Token};

/// Tokens whose scores are computed before their values are mixed.
const BLOCK: usize = 4 * TILE;
/// Numbers of a head that are summed in registers.
const LANES: usize = 32;

/// One call's work.
pub(super) struct Tokens<'a> {
    pub(super) shape: Shape,
    pub(super) tokens: &'a [Option<Token<'a>>],
    pub(super) keys: &'a mut [f32],
    pub(super) values: &'a mut [f32],
    pub(super) out: &'a mut [f32],
}

impl WithSimd for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Without vectors there is no fused instruction either, and its emulation is slow.
        if S::IS_SCALAR { self.run::<false>() } else { self.run::<true>() }
    }
}

impl Tokens<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Shape { key_heads, head_dim: dim, .. } = self.shape;
        let span = self.shape.span();
        let width = self.shape.width();
        let group = width / key_heads;
        for (token, out) in self.tokens.iter().zip(self.out.chunks_exact_mut(width)) {
            let Some(token) = token else { continue };
            let length = token.position + 1;
            for head in 0..key_heads {
                let start = (token.row * key_heads + head) * span;
                let keys = &mut self.keys[start..start + length.next_multiple_of(TILE) * dim];
                let values = &mut self.values[start..start + length * dim];
                put_key(keys, token.position, &token.k[head * dim..(head + 1) * dim]);
                values[(length - 1) * dim..]
                    .copy_from_slice(&token.v[head * dim..(head + 1) * dim]);
                let part = head * group..(head + 1) * group;
                let queries = token.q[part.clone()].chunks_exact(dim);
                for (q, out) in queries.zip(out[part].chunks_exact_mut(dim)) {
                    attend::<FUSED>(q, keys, values, out);
                }
            }
        }
    }
}

/// Writes a key into its column of its tile.
#[inline(always)]
fn put_key(keys: &mut [f32], position: usize, key: &[f32]) {
    let tile = &mut keys[position / TILE * TILE * key.len()..];
    for (column, &x) in tile.chunks_exact_mut(TILE).zip(key) {
        column[position % TILE] = x;
    }
}

/// One query over all the tokens of `values`; the last tile of `keys` may be longer.
#[inline(always)]
fn attend<const FUSED: bool>(q: &[f32], keys: &[f32], values: &[f32], out: &mut [f32]) {
    let dim = q.len();
    #[expect(clippy::cast_precision_loss, reason = "a head's size")]
    let scale = 1.0 / (dim as f32).sqrt();
    let (mut highest, mut total) = (f32::NEG_INFINITY, 0.0);
    out.fill(0.0);
    for (keys, values) in keys.chunks(BLOCK * dim).zip(values.chunks(BLOCK * dim)) {
        let mut weights = [f32::NEG_INFINITY; BLOCK];
        score::<FUSED>(q, keys, scale, &mut weights);
        // What is in the last tile behind the last token.
        weights[values.len() / dim..].fill(f32::NEG_INFINITY);
        let before = highest;
        highest = maximum(before, &weights);
        let kept = exp::<FUSED>(before - highest);
        total = total * kept + exponentials::<FUSED>(&mut weights, highest);
        mix::<FUSED>(kept, &weights, values, out);
    }
    out.iter_mut().for_each(|x| *x /= total);
}

/// The scores of the tokens of some tiles.
#[inline(always)]
fn score<const FUSED: bool>(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32; BLOCK]) {
    for (tile, scores) in keys.chunks_exact(TILE * q.len()).zip(scores.chunks_exact_mut(TILE)) {
        let mut sums = [0.0; TILE];
        for (column, &x) in tile.chunks_exact(TILE).zip(q) {
            for lane in 0..TILE {
                sums[lane] = multiply_add::<FUSED>(column[lane], x, sums[lane]);
            }
        }
        for lane in 0..TILE {
            scores[lane] = sums[lane] * scale;
        }
    }
}

#[inline(always)]
fn maximum(least: f32, values: &[f32; BLOCK]) -> f32 {
    let mut lanes = [least; TILE];
    for chunk in values.chunks_exact(TILE) {
        for lane in 0..TILE {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.into_iter().fold(least, f32::max)
}

/// Replaces scores by exp(score - highest); their sum.
#[inline(always)]
fn exponentials<const FUSED: bool>(scores: &mut [f32; BLOCK], highest: f32) -> f32 {
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

/// out = out * kept + the sum of weights[t] * values[t].
#[inline(always)]
fn mix<const FUSED: bool>(kept: f32, weights: &[f32; BLOCK], values: &[f32], out: &mut [f32]) {
    let dim = out.len();
    let whole = dim / LANES * LANES;
    let (lanes, rest) = out.split_at_mut(whole);
    for (i, out) in lanes.chunks_exact_mut(LANES).enumerate() {
        let mut sums = [0.0; LANES];
        for lane in 0..LANES {
            sums[lane] = out[lane] * kept;
        }
        for (&weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
            let value = &value[i * LANES..(i + 1) * LANES];
            for lane in 0..LANES {
                sums[lane] = multiply_add::<FUSED>(value[lane], weight, sums[lane]);
            }
        }
        out.copy_from_slice(&sums);
    }
    rest.iter_mut().for_each(|x| *x *= kept);
    for (&weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
        for (x, &v) in rest.iter_mut().zip(&value[whole..]) {
            *x = multiply_add::<FUSED>(v, weight, *x);
        }
    }
}

/// e^x for x <= 0, within 2 units in the last place; 0 below -87, where results stop being normal numbers.
///
/// Cody and Waite's reduction to |r| <= ln 2 / 2, then the Taylor polynomial of degree 7.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
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

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
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
