//! Dividing things of different sizes among bins so that the bins are about equal.
//!
//! # Design
//!
//! The differencing method of Karmarkar and Karp (1982) for many bins: a partial division is a tuple
//! of bins, at first one for each thing; the two divisions that differ most within themselves are
//! put together, the fullest bin of one with the emptiest of the other, until one is left. The
//! spread of what comes out is at most the larger of the two spreads that went in, so in the end it
//! is at most the largest size; and a bin is left empty only if there are fewer things than bins.
//!
//! It costs O(n · bins · log bins). Where that is too much, the largest goes first into the emptiest
//! bin, O(n · log n), with the same two guarantees: with so many bins it matters little.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Things times bins up to which differencing is used: some tens of milliseconds.
const MOST_DIFFERENCED: usize = 1 << 22;

/// Divide things among `bins` bins: the things of each bin, ascending. A function of the arguments.
///
/// The fullest bin exceeds the emptiest by at most the largest size. No bin is empty unless there
/// are fewer things than bins.
///
/// ```
/// use k15_core::partition::divide;
/// assert_eq!(divide(&[5, 3, 2, 4], 2), [[0, 2], [1, 3]]);
/// ```
pub fn divide(sizes: &[u64], bins: usize) -> Vec<Vec<usize>> {
    let mut divided = if sizes.len().saturating_mul(bins) <= MOST_DIFFERENCED {
        difference(sizes, bins)
    } else {
        largest_first(sizes, bins)
    };
    divided.iter_mut().for_each(|bin| bin.sort_unstable());
    divided.sort_unstable();
    divided
}

/// A bin: how full it is, and what is in it.
type Bin = (u64, Vec<usize>);

/// A division of some of the things, the fullest bin first; empty bins are left out.
struct Division {
    spread: u64,
    bins: Vec<Bin>,
}

fn difference(sizes: &[u64], bins: usize) -> Vec<Vec<usize>> {
    if bins <= 1 {
        return vec![(0..sizes.len()).collect(); bins];
    }
    let one = |(thing, &size)| Division { spread: size, bins: vec![(size, vec![thing])] };
    let mut divisions: Vec<Division> = sizes.iter().enumerate().map(one).collect();
    let keys = divisions.iter().enumerate().map(|(i, division)| (division.spread, Reverse(i)));
    let mut order: BinaryHeap<(u64, Reverse<usize>)> = keys.collect();
    while let (Some((_, Reverse(a))), Some((_, Reverse(b)))) = (order.pop(), order.pop()) {
        let other = std::mem::take(&mut divisions[b].bins);
        let into = &mut divisions[a];
        join(&mut into.bins, other, bins);
        let emptiest = if into.bins.len() < bins { 0 } else { into.bins[bins - 1].0 };
        into.spread = into.bins[0].0 - emptiest;
        order.push((into.spread, Reverse(a)));
    }
    let mut last = divisions.into_iter().map(|division| division.bins).find(|all| !all.is_empty());
    let mut divided: Vec<Vec<usize>> =
        last.take().into_iter().flatten().map(|(_, things)| things).collect();
    divided.resize_with(bins, Vec::new);
    divided
}

/// Put `other`'s fullest bins into the emptiest of `into`, of which there may be `most`.
fn join(into: &mut Vec<Bin>, other: Vec<Bin>, most: usize) {
    let room = most - into.len();
    for (place, (size, mut things)) in other.into_iter().enumerate() {
        if place < room {
            into.push((size, things));
        } else {
            // Empty bins come last, so the fullest of the others went there.
            let bin = &mut into[most - 1 - place];
            bin.0 += size;
            if bin.1.len() < things.len() {
                std::mem::swap(&mut bin.1, &mut things);
            }
            bin.1.append(&mut things);
        }
    }
    into.sort_by_key(|bin| Reverse(bin.0));
}

fn largest_first(sizes: &[u64], bins: usize) -> Vec<Vec<usize>> {
    let mut things: Vec<usize> = (0..sizes.len()).collect();
    things.sort_by_key(|&thing| Reverse(sizes[thing]));
    let mut emptiest: BinaryHeap<Reverse<(u64, usize)>> =
        (0..bins).map(|bin| Reverse((0, bin))).collect();
    let mut divided = vec![Vec::new(); bins];
    for thing in things {
        if let Some(mut top) = emptiest.peek_mut() {
            top.0.0 += sizes[thing];
            divided[top.0.1].push(thing);
        }
    }
    divided
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(sizes: &[u64], divided: &[Vec<usize>]) -> Vec<u64> {
        divided.iter().map(|bin| bin.iter().map(|&thing| sizes[thing]).sum()).collect()
    }

    fn holds_its_promises(sizes: &[u64], bins: usize, divided: &[Vec<usize>]) {
        assert_eq!(divided.len(), bins);
        let mut all = divided.concat();
        all.sort_unstable();
        assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
        let loads = loads(sizes, divided);
        let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
        assert!(spread <= *sizes.iter().max().unwrap_or(&0), "{sizes:?} {divided:?}");
        let filled = divided.iter().filter(|bin| !bin.is_empty()).count();
        assert_eq!(filled, bins.min(sizes.len()));
    }

    /// The least that the fullest bin can hold, by trying everything.
    fn best(sizes: &[u64], bins: usize) -> u64 {
        let mut least = u64::MAX;
        for code in 0..bins.pow(u32::try_from(sizes.len()).unwrap()) {
            let (mut loads, mut code) = (vec![0; bins], code);
            for size in sizes {
                loads[code % bins] += size;
                code /= bins;
            }
            least = least.min(*loads.iter().max().unwrap());
        }
        least
    }

    proptest! {
        #[test]
        fn both_ways_hold_their_promises(
            sizes in prop::collection::vec(1u64..5000, 0..60), bins in 1usize..20,
        ) {
            for divided in [difference(&sizes, bins), largest_first(&sizes, bins)] {
                holds_its_promises(&sizes, bins, &divided);
            }
        }

        #[test]
        fn small_divisions_are_near_the_best(
            sizes in prop::collection::vec(1u64..100, 1..8), bins in 2usize..4,
        ) {
            let divided = divide(&sizes, bins);
            let fullest = *loads(&sizes, &divided).iter().max().unwrap();
            // The method's bound for the fullest bin: 4/3 - 1/(3 · bins) of the best.
            prop_assert!(3 * bins as u64 * fullest <= (4 * bins as u64 - 1) * best(&sizes, bins));
        }
    }

    #[test]
    fn many_things_are_divided_quickly_and_as_promised() {
        let sizes: Vec<u64> = (0..40_000).map(|i| 1 + crate::noise::splitmix64(i) % 4096).collect();
        let divided = divide(&sizes, 5000);
        holds_its_promises(&sizes, 5000, &divided);
        assert_eq!(divided, divide(&sizes, 5000));
    }
}
