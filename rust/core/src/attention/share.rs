//! One call's tokens among some threads.

use std::sync::{Mutex, PoisonError};

use super::kernel::Tokens;
use super::{Shape, Token};
use crate::crew;

/// Numbers of keys that a piece of work goes over at least: about a hundredth of a millisecond.
const LEAST: usize = 1 << 15;

/// Pieces a thread: when one has none left, what another is still at is short.
const PIECES: usize = 4;

/// Compute the results of tokens that are in the cache, on at most so many threads.
pub(super) fn attend(
    shape: Shape,
    tokens: &[Option<Token<'_>>],
    (keys, values): (&[f32], &[f32]),
    out: &mut [f32],
    threads: usize,
) {
    let arch = pulp::Arch::new();
    let work = |(tokens, out)| arch.dispatch(Tokens { shape, tokens, keys, values, out });
    let pieces = if threads > 1 { total(shape, tokens) / LEAST } else { 0 };
    let threads = threads.min(pieces / 2); // whom to wake for less costs more than it saves
    if threads < 2 {
        return work((tokens, out));
    }
    let heap = Mutex::new(cut(shape, tokens, out, pieces.min(threads * PIECES)));
    let take = || heap.lock().unwrap_or_else(PoisonError::into_inner).pop();
    crew::together(threads - 1, &|| {
        while let Some(piece) = take() {
            work(piece);
        }
    });
}

type Piece<'a> = (&'a [Option<Token<'a>>], &'a mut [f32]);

/// Pieces of about the same work, and where their results go.
fn cut<'a>(
    shape: Shape,
    mut tokens: &'a [Option<Token<'a>>],
    mut out: &'a mut [f32],
    pieces: usize,
) -> Vec<Piece<'a>> {
    let mut left = total(shape, tokens);
    let mut cut = Vec::with_capacity(pieces);
    for more in (1..=pieces).rev() {
        let (mut count, mut sum) = (0, 0);
        while count < tokens.len() && (more == 1 || sum < left / more) {
            sum += cost(shape, tokens[count].as_ref());
            count += 1;
        }
        left -= sum;
        let (piece, results);
        (piece, tokens) = tokens.split_at(count);
        (results, out) = out.split_at_mut(count * shape.width());
        cut.push((piece, results));
    }
    cut
}

fn total(shape: Shape, tokens: &[Option<Token<'_>>]) -> usize {
    tokens.iter().map(|token| cost(shape, token.as_ref())).sum()
}

/// Numbers of keys that a token's queries go over.
fn cost(shape: Shape, token: Option<&Token<'_>>) -> usize {
    token.map_or(0, |token| (token.position + 1) * shape.width())
}
