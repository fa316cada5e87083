//! Exact periods of a tail, all at once.
//!
//! # Design
//!
//! A tail of length l has period p if it equals itself shifted by p. Read backwards from the end, that
//! is: the reversed text and the reversed text without its first p tokens agree over l - p tokens.
//! How far they agree, for every p in turn, is the Z function (Gusfield 1997, section 1.3), which
//! costs time linear in the largest p plus the longest agreement: no text is a bad case, be it one
//! repeated token, a Fibonacci word or a table of nearly equal rows.
//!
//! Agreements that are too short to be of use count as none. So the places where one begins are found
//! by comparing many places at a time with the last few tokens, without a branch for each.

/// Tokens compared at a time; a multiple of any vector width in use.
const LANES: usize = 16;

/// A period of a tail and how long the tail is that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub period: usize,
    pub length: usize,
}

/// The least agreement worth noting, where the settings allow it: long enough that even text over two
/// symbols rarely agrees so far by chance.
pub(super) const ANCHOR: usize = 8;

/// The smallest period up to `reach` with a tail at least as long as `least_tail` asks for it.
///
/// `least_tail(p)` must be at least 2 p and at least p + `anchor`, for an `anchor` of 1 to
/// [`ANCHOR`]. `agreements` is scratch, of any content.
pub(super) fn smallest_period(
    tokens: &[i32],
    reach: usize,
    anchor: usize,
    least_tail: impl Fn(usize) -> usize,
    agreements: &mut Vec<usize>,
) -> Option<Tail> {
    // For a longer period there are too few tokens to be a tail that is long enough.
    let reach = reach.min(tokens.len() / 2).min(tokens.len().saturating_sub(anchor));
    if agreements.len() <= reach {
        agreements.resize(reach + 1, 0);
    }
    // The agreement that ends farthest back: found for period `left`, it ends `right` tokens back.
    let (mut left, mut right) = (0, 0);
    let mut period = 1;
    while period <= reach {
        let agreement = if period + anchor > right {
            let next = next_anchor(tokens, period, reach, anchor);
            agreements[period..next.min(reach + 1)].fill(0);
            period = next;
            if period > reach {
                return None;
            }
            agree(tokens, period, anchor)
        } else {
            // The text around here equals the text at the end, for which the answer is known.
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

/// The first period from `period` on with an agreement of at least `anchor`; `reach` + 1 if there is
/// none up to `reach`.
fn next_anchor(tokens: &[i32], period: usize, reach: usize, anchor: usize) -> usize {
    let (rest, last) = tokens.split_at(tokens.len() - anchor);
    // A period p is a place `rest.len() - p` where the last tokens may stand, too.
    let (mut end, first) = (rest.len() - period + 1, rest.len() - reach);
    while end - first >= LANES {
        let places = end - LANES;
        // Bits in which the tokens at each place differ from the last ones. On most texts the first
        // token tells already that there is no place here.
        let mut differences = [0; LANES];
        for (offset, token) in last.iter().enumerate() {
            let chunk = &tokens[places + offset..places + offset + LANES];
            for (difference, other) in differences.iter_mut().zip(chunk) {
                *difference |= token ^ other;
            }
            if offset % 4 == 0 && !differences.iter().fold(false, |any, &bits| any | (bits == 0)) {
                break;
            }
        }
        if let Some(lane) = differences.iter().rposition(|&bits| bits == 0) {
            return rest.len() - places - lane;
        }
        end = places;
    }
    let place = (first..end).rev().find(|&place| tokens[place..place + anchor] == *last);
    place.map_or(reach + 1, |place| rest.len() - place)
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
            copies in 1usize..12,
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
            let shortest = (1..=reach).map(|period| least(period) - period).min();
            for anchor in 1..=shortest.map_or(1, |shortest| shortest.min(ANCHOR)) {
                let mut scratch = vec![7; 3];
                let found = smallest_period(&tokens, reach, anchor, least, &mut scratch);
                prop_assert_eq!(found, naive(&tokens, reach, least), "anchor {}", anchor);
            }
        }
    }

    #[test]
    fn fewer_than_two_tokens_have_no_period() {
        for tokens in [&[][..], &[5]] {
            assert_eq!(smallest_period(tokens, 10, 1, |_| 2, &mut Vec::new()), None);
        }
    }
}
