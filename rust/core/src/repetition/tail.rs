//! Exact periods of a tail, all at once.
//!
//! # Design
//!
//! A tail of length l has period p if it equals itself shifted by p. Read backwards from the end, that
//! is: the reversed text and the reversed text without its first p tokens agree over l - p tokens.
//! How far they agree, for every p in turn, is the Z function (Gusfield 1997, section 1.3), which
//! costs time linear in the largest p plus the longest agreement: no text is a bad case, be it one
//! repeated token, a Fibonacci word or a table of nearly equal rows.

/// Tokens compared at a time; a multiple of any vector width in use.
const LANES: usize = 16;

/// A period of a tail and how long the tail is that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub period: usize,
    pub length: usize,
}

/// The smallest period up to `reach` with a tail at least as long as `least_tail` asks for it.
///
/// `agreements` is scratch, of any content. `least_tail(p)` must be at least 2 p.
pub(super) fn smallest_period(
    tokens: &[i32],
    reach: usize,
    least_tail: impl Fn(usize) -> usize,
    agreements: &mut Vec<usize>,
) -> Option<Tail> {
    let reach = reach.min(tokens.len() / 2);
    if agreements.len() <= reach {
        agreements.resize(reach + 1, 0);
    }
    // The agreement that ends farthest back: found for period `left`, it ends `right` tokens back.
    let (mut left, mut right) = (0, 0);
    let mut period = 1;
    while period <= reach {
        let agreement = if period >= right {
            let next = next_match(tokens, period, reach);
            agreements[period..next.min(reach + 1)].fill(0);
            period = next;
            if period > reach {
                return None;
            }
            agree(tokens, period, 1)
        } else {
            let known = agreements[period - left].min(right - period);
            if period + known < right { known } else { agree(tokens, period, known) }
        };
        if period + agreement > right {
            (left, right) = (period, period + agreement);
        }
        if period + agreement >= least_tail(period) {
            return Some(Tail { period, length: period + agreement });
        }
        agreements[period] = agreement;
        period += 1;
    }
    None
}

/// The first period from `period` on whose token that many places back equals the last one;
/// anything above `reach` if there is none up to there.
fn next_match(tokens: &[i32], period: usize, reach: usize) -> usize {
    let last = tokens[tokens.len() - 1];
    let mut searched = &tokens[tokens.len() - 1 - reach..tokens.len() - period];
    while let Some((rest, chunk)) = searched.split_last_chunk::<LANES>() {
        if chunk.iter().fold(false, |any, &token| any | (token == last)) {
            break;
        }
        searched = rest;
    }
    searched.iter().rposition(|&token| token == last).map_or(reach + 1, |at| reach - at)
}

/// Over how many tokens, counted from the end, the tokens and the tokens without their last `period`
/// agree, given that they do over `known`.
fn agree(tokens: &[i32], period: usize, known: usize) -> usize {
    let mut ours = &tokens[period..tokens.len() - known];
    let mut theirs = &tokens[..tokens.len() - known - period];
    while let (Some((a, chunk)), Some((b, other))) =
        (ours.split_last_chunk::<LANES>(), theirs.split_last_chunk::<LANES>())
    {
        if chunk != other {
            break;
        }
        (ours, theirs) = (a, b);
    }
    let compared = tokens.len() - period - ours.len();
    compared + ours.iter().rev().zip(theirs.iter().rev()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(tokens: &[i32], reach: usize, least: impl Fn(usize) -> usize) -> Option<Tail> {
        let n = tokens.len();
        (1..=reach.min(n / 2)).find_map(|period| {
            let agreement =
                (0..n - period).take_while(|&k| tokens[n - 1 - k] == tokens[n - 1 - k - period]);
            let length = period + agreement.count();
            (length >= least(period)).then_some(Tail { period, length })
        })
    }

    proptest! {
        #[test]
        fn equals_comparing_each_period_by_hand(
            prefix in prop::collection::vec(0..3, 0..60),
            unit in prop::collection::vec(0..3, 1..40),
            copies in 1usize..8,
            change in prop::option::of((0usize..300, 0..3)),
            reach in 1usize..60,
            (repeats, covered) in (2usize..5, 2usize..90),
        ) {
            let mut tokens = prefix;
            for _ in 0..copies {
                tokens.extend(&unit);
            }
            if let Some((at, token)) = change {
                let at = at % tokens.len();
                tokens[at] = token;
            }
            let least = |period: usize| (repeats * period).max(covered);
            let mut scratch = vec![7; 3];
            let found = smallest_period(&tokens, reach, least, &mut scratch);
            prop_assert_eq!(found, naive(&tokens, reach, least));
        }
    }

    #[test]
    fn fewer_than_two_tokens_have_no_period() {
        for tokens in [&[][..], &[5]] {
            assert_eq!(smallest_period(tokens, 10, |_| 2, &mut Vec::new()), None);
        }
    }
}
