//! Micro-batches for data parallelism: which rows go to which rank, and when.
//!
//! # Design
//!
//! Rows are divided among the ranks, and those of each rank among its micro-batches: ranks come out
//! equal to a token or so, as is fit where they wait for each other once a step. The largest
//! micro-batches come first on every rank, the next largest second, and so on: what ranks compute
//! between two collective calls, of those that make some in every micro-batch, is about equal too.
//! Where rows are few this may need more micro-batches than necessary, or leave some without a row.
//! Then rows are divided among all micro-batches of all ranks at once, which has the better bounds.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::partition::divide;

/// What micro-batches must be like.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Data-parallel ranks.
    pub ranks: usize,
    /// The most tokens of a micro-batch, padding included.
    pub max_tokens: usize,
    /// Each row is padded to a multiple of so many tokens.
    pub row_multiple: usize,
    /// Each micro-batch is padded to a multiple of so many tokens.
    pub batch_multiple: usize,
    /// A rank has a multiple of so many micro-batches.
    pub count_multiple: usize,
}

impl Wanted {
    fn check(&self) -> Result<()> {
        for (field, value) in [
            ("ranks", self.ranks),
            ("max_tokens", self.max_tokens),
            ("pad_to_multiple", self.row_multiple),
            ("pad_total_to_multiple", self.batch_multiple),
            ("count_multiple", self.count_multiple),
        ] {
            if value == 0 {
                return Err(Error::invalid(field, value, "at least 1"));
            }
        }
        if self.batch_multiple != 1 && !self.batch_multiple.is_multiple_of(self.row_multiple) {
            let expected = format!("a multiple of pad_to_multiple = {}", self.row_multiple);
            return Err(Error::invalid("pad_total_to_multiple", self.batch_multiple, expected));
        }
        Ok(())
    }

    /// Tokens of a micro-batch for its rows, the padding of the whole left out.
    fn room(&self) -> u64 {
        (self.max_tokens - self.max_tokens % self.batch_multiple) as u64
    }
}

/// Assign rows to micro-batches: for each rank, in the order in which they are computed, the rows of
/// each micro-batch, ascending. With `groups` rows of one group stay together. A function of the
/// arguments.
///
/// Every row is in one micro-batch. All ranks have the same number of them, as few as the division
/// finds without one that exceeds `max_tokens`; where there are more of them than rows, some have no
/// row. No rank has more tokens than another by more than the largest row (or group).
///
/// ```
/// use k15_core::micro_batch::{Wanted, plan};
/// let wanted =
///     Wanted { ranks: 2, max_tokens: 8, row_multiple: 2, batch_multiple: 1, count_multiple: 1 };
/// assert_eq!(plan(&[5, 2, 4, 1], None, &wanted)?, [[vec![0]], [vec![1, 2, 3]]]);
/// # Ok::<(), k15_core::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::InvalidInput`] if a row, or a group that is kept together, exceeds `max_tokens`.
pub fn plan(
    lengths: &[usize],
    groups: Option<&[i64]>,
    wanted: &Wanted,
) -> Result<Vec<Vec<Vec<usize>>>> {
    wanted.check()?;
    let units = units(lengths.len(), groups);
    let padded = |row: &usize| lengths[*row].next_multiple_of(wanted.row_multiple) as u64;
    let sizes: Vec<u64> = units.iter().map(|rows| rows.iter().map(padded).sum()).collect();
    for (rows, &size) in units.iter().zip(&sizes) {
        if size > wanted.room() {
            let what = match groups {
                Some(groups) => format!("group {}, which is kept together", groups[rows[0]]),
                None => format!("row {}", rows[0]),
            };
            let expected = format!("at least {size}, the padded tokens of {what}");
            return Err(Error::invalid("max_tokens", wanted.max_tokens, expected));
        }
    }
    let tokens: u64 = sizes.iter().sum();
    let least = tokens.div_ceil(wanted.room().max(1)).div_ceil(wanted.ranks as u64);
    let least = usize::try_from(least).unwrap_or(usize::MAX);
    let mut count = least.max(1).next_multiple_of(wanted.count_multiple);
    let by_rank = divide(&sizes, wanted.ranks);
    loop {
        // With a micro-batch for each unit everything fits, so this comes to an end.
        let ways = [ranks_first(&sizes, &by_rank, count), at_once(&sizes, wanted.ranks, count)];
        let found = ways.iter().find(|way| is_good(way, &sizes, wanted.room()));
        if let Some(found) = found {
            let rows = |bin: &Bin| {
                let rows = bin.1.iter().flat_map(|&unit| units[unit].iter().copied());
                let mut rows: Vec<usize> = rows.collect();
                rows.sort_unstable();
                rows
            };
            return Ok(found.iter().map(|rank| rank.iter().map(rows).collect()).collect());
        }
        count += wanted.count_multiple;
    }
}

/// A micro-batch: its tokens and units.
type Bin = (u64, Vec<usize>);

/// The units of each rank divided among its micro-batches, the largest first.
fn ranks_first(sizes: &[u64], by_rank: &[Vec<usize>], count: usize) -> Vec<Vec<Bin>> {
    let divided = |units: &Vec<usize>| {
        let mine: Vec<u64> = units.iter().map(|&unit| sizes[unit]).collect();
        let named = |bin: Vec<usize>| bin.into_iter().map(|place| units[place]).collect();
        let mut bins: Vec<Bin> =
            divide(&mine, count).into_iter().map(|bin| weighed(sizes, named(bin))).collect();
        bins.sort_by_key(|(size, _)| Reverse(*size));
        bins
    };
    by_rank.iter().map(divided).collect()
}

/// All units divided among all micro-batches, and these dealt out: of those of one time the largest
/// goes to the rank with the fewest tokens so far.
fn at_once(sizes: &[u64], ranks: usize, count: usize) -> Vec<Vec<Bin>> {
    let bins = divide(sizes, ranks * count).into_iter();
    let mut bins: Vec<Bin> = bins.map(|bin| weighed(sizes, bin)).collect();
    bins.sort_by_key(|(size, _)| Reverse(*size));
    let mut dealt: Vec<Vec<Bin>> = vec![Vec::new(); ranks];
    let mut tokens = vec![0; ranks];
    let mut bins = bins.into_iter();
    for _ in 0..count {
        let mut free: Vec<usize> = (0..ranks).collect();
        free.sort_by_key(|&rank| tokens[rank]);
        for (rank, bin) in free.into_iter().zip(bins.by_ref()) {
            tokens[rank] += bin.0;
            dealt[rank].push(bin);
        }
    }
    dealt
}

fn weighed(sizes: &[u64], units: Vec<usize>) -> Bin {
    (units.iter().map(|&unit| sizes[unit]).sum(), units)
}

/// Whether every micro-batch has room, none is needlessly empty, and those of one time differ by
/// no more than the largest unit. The last two always hold for what was divided at once.
fn is_good(ranks: &[Vec<Bin>], sizes: &[u64], room: u64) -> bool {
    let bins = || ranks.iter().flatten();
    let filled = bins().filter(|(size, _)| *size > 0).count();
    let largest = sizes.iter().max().copied().unwrap_or(0);
    let is_even = |time: usize| {
        let of_time = || ranks.iter().map(|rank| rank[time].0);
        of_time().max() <= of_time().min().map(|least| least + largest)
    };
    bins().all(|(size, _)| *size <= room)
        && filled >= bins().count().min(sizes.iter().filter(|&&size| size > 0).count())
        && (0..ranks[0].len()).all(is_even)
}

/// Rows that stay together, each ascending, in the order of their first rows.
fn units(rows: usize, groups: Option<&[i64]>) -> Vec<Vec<usize>> {
    let Some(groups) = groups else {
        return (0..rows).map(|row| vec![row]).collect();
    };
    let mut units: Vec<Vec<usize>> = Vec::new();
    let mut places = HashMap::new();
    for (row, group) in groups.iter().enumerate() {
        let place = *places.entry(group).or_insert(units.len());
        if place == units.len() {
            units.push(Vec::new());
        }
        units[place].push(row);
    }
    units
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens_of(rows: &[usize], lengths: &[usize], wanted: &Wanted) -> usize {
        let rows = rows.iter().map(|&row| lengths[row].next_multiple_of(wanted.row_multiple));
        rows.sum::<usize>().next_multiple_of(wanted.batch_multiple)
    }

    proptest! {
        #[test]
        fn plans_are_what_was_wanted(
            lengths in prop::collection::vec(1usize..300, 0..50),
            ranks in 1usize..7,
            room in 400usize..1500,
            multiples in prop::sample::select(vec![(1, 1), (2, 2), (8, 1), (4, 64), (16, 128)]),
            count_multiple in 1usize..4,
            grouped in any::<bool>(),
        ) {
            let (row_multiple, batch_multiple) = multiples;
            let wanted = Wanted {
                ranks, max_tokens: room, row_multiple, batch_multiple, count_multiple,
            };
            let groups: Vec<i64> = (0..lengths.len() as i64).map(|row| row / 3 % 7).collect();
            let together = grouped.then_some(groups.as_slice());
            let found = match plan(&lengths, together, &wanted) {
                Err(error) => {
                    let too_large = (0..7).any(|group| {
                        let rows: Vec<usize> =
                            (0..lengths.len()).filter(|&row| groups[row] == group).collect();
                        tokens_of(&rows, &lengths, &wanted) > room
                    });
                    prop_assert!(grouped && too_large, "{error}");
                    return Ok(());
                }
                Ok(found) => found,
            };
            prop_assert_eq!(&found, &plan(&lengths, together, &wanted).unwrap());
            let mut rows = found.concat().concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            let count = found[0].len();
            prop_assert_eq!(found.len(), ranks);
            prop_assert!(count >= 1 && count % count_multiple == 0);
            prop_assert!(found.iter().all(|rank| rank.len() == count));
            for micro in found.concat() {
                prop_assert!(tokens_of(&micro, &lengths, &wanted) <= room);
                prop_assert!(micro.is_sorted());
                if grouped {
                    for row in &micro {
                        let mut mates = (0..lengths.len()).filter(|&r| groups[r] == groups[*row]);
                        prop_assert!(mates.all(|mate| micro.contains(&mate)));
                    }
                }
            }
            // Rows' tokens, without the padding of a whole micro-batch.
            let bare = Wanted { batch_multiple: 1, ..wanted };
            let unit = |row: usize| if grouped {
                (0..lengths.len()).filter(|&r| groups[r] == groups[row]).collect()
            } else {
                vec![row]
            };
            let units = (0..lengths.len()).map(|row| tokens_of(&unit(row), &lengths, &bare));
            let largest = units.max().unwrap_or(0);
            let loads: Vec<usize> = found
                .iter()
                .map(|rank| rank.iter().map(|rows| tokens_of(rows, &lengths, &bare)).sum())
                .collect();
            let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
            prop_assert!(most - least <= largest, "{loads:?} {largest}");
            for time in 0..count {
                let sizes: Vec<usize> =
                    found.iter().map(|rank| tokens_of(&rank[time], &lengths, &bare)).collect();
                let (most, least) = (sizes.iter().max().unwrap(), sizes.iter().min().unwrap());
                prop_assert!(most - least <= largest);
            }
        }

        #[test]
        fn micro_batches_are_few(
            lengths in prop::collection::vec(1usize..100, 1..60), ranks in 1usize..5,
        ) {
            let wanted = Wanted {
                ranks, max_tokens: 120, row_multiple: 1, batch_multiple: 1, count_multiple: 1,
            };
            let count = plan(&lengths, None, &wanted).unwrap()[0].len();
            // The fullest is at most the mean and the largest row, less a share of that: where this
            // fits, no more of them are needed.
            let (total, largest): (usize, _) = (lengths.iter().sum(), lengths.iter().max());
            let suffices = |count: usize| {
                let bins = ranks * count;
                bins >= lengths.len()
                    || total + (bins - 1) * largest.unwrap() <= bins * wanted.max_tokens
            };
            let enough = (1..).find(|&count| suffices(count)).unwrap();
            prop_assert!(count <= enough);
            prop_assert!(count * ranks * wanted.max_tokens >= total);
        }
    }

    #[test]
    fn too_long_a_row_is_named() {
        let wanted = Wanted {
            ranks: 2,
            max_tokens: 30,
            row_multiple: 8,
            batch_multiple: 16,
            count_multiple: 1,
        };
        let said = plan(&[4, 17], None, &wanted).unwrap_err().to_string();
        assert_eq!(said, "max_tokens = 30: expected at least 24, the padded tokens of row 1");
    }
}
