//! Queries over the keys and values of one head of one row, some of them abreast.
//!
//! What is read once serves them all: a prefill's tokens, and the query heads that share a key head. Each
//! query's sums are in an order that its own length fixes, so its bits do not depend on who goes with it.
//! The loops are written so that the compiler makes vectors of them.

use std::array::from_fn;
use std::ops::Range;

use super::TILE;
use super::softmax::{exp, exponentials, maximum, multiply_add};
use crate::pages::fetch;

/// Tokens whose scores are computed before their values are mixed.
pub(super) const BLOCK: usize = 4 * TILE;

/// What a row holds of a head: keys in tiles, values, each `dim` numbers a token.
pub(super) struct Head<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) dim: usize,
}

/// A query, how many tokens it sees, and where its result goes.
pub(super) struct Query<'a> {
    pub(super) q: &'a [f32],
    pub(super) length: usize,
    pub(super) offset: usize,
}

impl Head<'_> {
    /// `N` queries, none longer than the last. So that sums do not wait for one another, `TILES` tiles are
    /// scored abreast, and `LANES` numbers of each result are summed. What is `cold` is fetched a block ahead.
    #[inline(always)]
    pub(super) fn attend<
        const FUSED: bool,
        const N: usize,
        const LANES: usize,
        const TILES: usize,
    >(
        &self,
        queries: [Query<'_>; N],
        out: &mut [f32],
        cold: bool,
    ) {
        let dim = self.dim;
        #[expect(clippy::cast_precision_loss, reason = "a head's size")]
        let scale = 1.0 / (dim as f32).sqrt();
        let offsets = from_fn(|n| queries[n].offset);
        let (mut highest, mut total) = ([f32::NEG_INFINITY; N], [0.0; N]);
        for query in &queries {
            out[query.offset..query.offset + dim].fill(0.0);
        }
        let (mut begin, longest) = (0, queries[N - 1].length);
        while begin < longest {
            let end = (begin + BLOCK).min(longest);
            let next = if cold { end * dim..(end + BLOCK).min(longest) * dim } else { 0..0 };
            let ahead = Ahead { keys: &self.keys[next.clone()], values: &self.values[next] };
            let counts: [usize; N] = from_fn(|n| queries[n].length.clamp(begin, end) - begin);
            let mut weights = [[f32::NEG_INFINITY; BLOCK]; N];
            let tiles = &self.keys[begin * dim..end.next_multiple_of(TILE) * dim];
            score::<FUSED, N, TILES>(
                from_fn(|n| &queries[n].q[..dim]),
                tiles,
                scale,
                &mut weights,
                ahead,
            );
            let mut kept = [0.0; N];
            for n in 0..N {
                // What is in the tiles behind the last token.
                weights[n][counts[n]..].fill(f32::NEG_INFINITY);
                let before = highest[n];
                highest[n] = maximum(before, &weights[n]);
                kept[n] = exp::<FUSED>(before - highest[n]);
                total[n] = total[n] * kept[n] + exponentials::<FUSED>(&mut weights[n], highest[n]);
            }
            // A value behind a query's last token is not for it, not even with weight 0: it may be a NaN.
            let least = counts.iter().fold(BLOCK, |least, &count| least.min(count));
            let (shared, own) = self.values[begin * dim..end * dim].split_at(least * dim);
            let common = from_fn(|n| &weights[n][..least]);
            mix::<FUSED, N, LANES>(kept, common, shared, out, offsets, dim);
            for n in 0..N {
                let own = &own[..(counts[n] - least) * dim];
                let weights = [&weights[n][least..counts[n]]];
                if !own.is_empty() {
                    mix::<FUSED, 1, LANES>([1.0], weights, own, out, [offsets[n]], dim);
                }
            }
            begin = end;
        }
        for (offset, total) in offsets.into_iter().zip(total) {
            out[offset..offset + dim].iter_mut().for_each(|x| *x /= total);
        }
    }
}

/// The scores of the tokens of some tiles, `TILES` of them abreast.
#[inline(always)]
fn score<const FUSED: bool, const N: usize, const TILES: usize>(
    q: [&[f32]; N],
    keys: &[f32],
    scale: f32,
    scores: &mut [[f32; BLOCK]; N],
    ahead: Ahead<'_>,
) {
    let tile = TILE * q[0].len();
    let whole = keys.len() / (TILES * tile) * TILES;
    for at in (0..whole).step_by(TILES) {
        ahead.fetch(at * tile..(at + TILES) * tile);
        let tiles = &keys[at * tile..(at + TILES) * tile];
        score_abreast::<FUSED, N, TILES>(q, tiles, scale, scores, at);
    }
    for at in whole..keys.len() / tile {
        ahead.fetch(at * tile..(at + 1) * tile);
        score_abreast::<FUSED, N, 1>(q, &keys[at * tile..], scale, scores, at);
    }
}

/// The scores of the tiles from the one with number `at` on.
#[inline(always)]
fn score_abreast<const FUSED: bool, const N: usize, const TILES: usize>(
    q: [&[f32]; N],
    tiles: &[f32],
    scale: f32,
    scores: &mut [[f32; BLOCK]; N],
    at: usize,
) {
    let dim = q[0].len();
    let q: [&[f32]; N] = from_fn(|n| &q[n][..dim]);
    let columns: [&[[f32; TILE]]; TILES] =
        from_fn(|i| &tiles[i * TILE * dim..(i + 1) * TILE * dim].as_chunks().0[..dim]);
    let mut sums = [[[0.0; TILE]; TILES]; N];
    for d in 0..dim {
        for n in 0..N {
            for i in 0..TILES {
                for lane in 0..TILE {
                    let sum = &mut sums[n][i][lane];
                    *sum = multiply_add::<FUSED>(columns[i][d][lane], q[n][d], *sum);
                }
            }
        }
    }
    for n in 0..N {
        for i in 0..TILES {
            for lane in 0..TILE {
                scores[n][(at + i) * TILE + lane] = sums[n][i][lane] * scale;
            }
        }
    }
}

/// What will be read after the block at work. It is fetched in pieces, as that is scored: the memory has
/// something to do all the time, and never so much that what is at work waits for it.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    keys: &'a [f32],
    values: &'a [f32],
}

impl Ahead<'_> {
    #[inline(always)]
    fn fetch(self, piece: Range<usize>) {
        fetch(self.keys.get(piece.clone()).unwrap_or_default());
        fetch(self.values.get(piece).unwrap_or_default());
    }
}

/// out = out * kept + the sum of weights[t] * values[t], for N results at their offsets.
#[inline(always)]
fn mix<const FUSED: bool, const N: usize, const LANES: usize>(
    kept: [f32; N],
    weights: [&[f32]; N],
    values: &[f32],
    out: &mut [f32],
    offsets: [usize; N],
    dim: usize,
) {
    let tokens = weights[0].len();
    let weights: [&[f32]; N] = from_fn(|n| &weights[n][..tokens]);
    let whole = dim / LANES * LANES;
    for from in (0..whole).step_by(LANES) {
        let mut sums = [[0.0; LANES]; N];
        for n in 0..N {
            let old = &out[offsets[n] + from..][..LANES];
            for lane in 0..LANES {
                sums[n][lane] = old[lane] * kept[n];
            }
        }
        for (t, value) in values.chunks_exact(dim).take(tokens).enumerate() {
            let value = &value[from..from + LANES];
            for n in 0..N {
                for lane in 0..LANES {
                    sums[n][lane] =
                        multiply_add::<FUSED>(value[lane], weights[n][t], sums[n][lane]);
                }
            }
        }
        for n in 0..N {
            out[offsets[n] + from..][..LANES].copy_from_slice(&sums[n]);
        }
    }
    for n in 0..N {
        let rest = &mut out[offsets[n] + whole..offsets[n] + dim];
        rest.iter_mut().for_each(|x| *x *= kept[n]);
        for (&weight, value) in weights[n].iter().zip(values.chunks_exact(dim)) {
            for (x, &v) in rest.iter_mut().zip(&value[whole..]) {
                *x = multiply_add::<FUSED>(v, weight, *x);
            }
        }
    }
}
