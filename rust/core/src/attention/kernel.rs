//! The order of work: all new tokens are written, then each head's queries go over what their row holds.
//!
//! All of it is inlined into one function, which pulp compiles for the processor at hand: what is not
//! inlined would be compiled for the oldest one.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

use super::abreast::{BLOCK, Head, Query};
use super::{Shape, TILE, Token};
use crate::pages::fetch;

/// The queries of some tokens, whose keys and values have been [put] into the cache.
pub(super) struct Tokens<'a> {
    pub(super) shape: Shape,
    pub(super) tokens: &'a [Option<Token<'a>>],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
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
    fn run<const FUSED: bool>(mut self) {
        let (mut later, mut offset) = (self.tokens, 0);
        while let Some(first) = later.first() {
            let run;
            (run, later) = later.split_at(same_row(later));
            if let Some(first) = first {
                self.attend::<FUSED>(run, first, later.first().copied().flatten(), offset);
            }
            offset += run.len() * self.shape.width();
        }
    }

    /// The queries of tokens that follow one another in a row. `next` is the token behind them, results go to
    /// `offset` and on.
    #[inline(always)]
    fn attend<const FUSED: bool>(
        &mut self,
        run: &[Option<Token<'_>>],
        first: &Token<'_>,
        next: Option<Token<'_>>,
        offset: usize,
    ) {
        let Shape { key_heads, head_dim: dim, .. } = self.shape;
        let (span, width) = (self.shape.span(), self.shape.width());
        let group = width / key_heads / dim;
        for head in 0..key_heads {
            // What is read next. The rest of this head is fetched while the blocks before are at work.
            let (start, tokens) = match next {
                _ if head + 1 < key_heads => {
                    (self.shape.place(first.row, head + 1), first.position + run.len())
                }
                Some(next) => (self.shape.place(next.row, 0), next.position + 1),
                None => (0, 0),
            };
            let ahead = start..start + tokens.min(BLOCK) * dim;
            fetch(&self.keys[ahead.clone()]);
            fetch(&self.values[ahead]);

            let start = self.shape.place(first.row, head);
            let keys = &self.keys[start..start + span];
            let head_of_row = Head { keys, values: &self.values[start..start + span], dim };
            let query = |i: usize| {
                let (token, part) = (i / group, (head * group + i % group) * dim);
                let q = run[token].map_or(&[][..], |token| &token.q[part..part + dim]);
                let offset = offset + token * width + part;
                Query { q, length: first.position + token + 1, offset }
            };
            let (queries, mut at) = (run.len() * group, 0);
            while at < queries {
                let (out, cold) = (&mut *self.out, at == 0);
                match queries - at {
                    1 => {
                        head_of_row.attend::<FUSED, 1, 32, 4>(from_fn(|i| query(at + i)), out, cold)
                    }
                    2 => {
                        head_of_row.attend::<FUSED, 2, 32, 2>(from_fn(|i| query(at + i)), out, cold)
                    }
                    3 => {
                        head_of_row.attend::<FUSED, 3, 16, 1>(from_fn(|i| query(at + i)), out, cold)
                    }
                    _ => {
                        head_of_row.attend::<FUSED, 4, 16, 1>(from_fn(|i| query(at + i)), out, cold)
                    }
                }
                at += 4;
            }
        }
    }
}

/// How many tokens at the beginning follow one another in one row; one of nobody is alone.
#[inline(always)]
fn same_row(tokens: &[Option<Token<'_>>]) -> usize {
    let follows = |pair: &&[Option<Token<'_>>]| match pair {
        [Some(a), Some(b)] => a.row == b.row && a.position + 1 == b.position,
        _ => false,
    };
    1 + tokens.windows(2).take_while(follows).count()
}

/// Writes the tokens' keys and values into the cache.
pub(super) fn put(
    shape: Shape,
    tokens: &[Option<Token<'_>>],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let (dim, span) = (shape.head_dim, shape.span());
    for token in tokens.iter().flatten() {
        let heads = token.k.chunks_exact(dim).zip(token.v.chunks_exact(dim));
        for (head, (key, value)) in heads.enumerate() {
            let start = shape.place(token.row, head);
            put_key(&mut keys[start..start + span], token.position, key);
            let place = start + token.position * dim;
            values[place..place + dim].copy_from_slice(value);
        }
    }
}

/// Writes a key into its column of its tile.
fn put_key(keys: &mut [f32], position: usize, key: &[f32]) {
    let tile = &mut keys[position / TILE * TILE * key.len()..];
    for (column, &x) in tile.chunks_exact_mut(TILE).zip(key) {
        column[position % TILE] = x;
    }
}
