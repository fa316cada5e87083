//! When to look for what: the schedule of the checks, worked out once from the settings.

use super::settings::Settings;
use super::tail::ANCHOR;

/// A tail of least length T is looked for every T / `LATENESS` tokens or more often, so that it is
/// found before it is T · (1 + 1 / `LATENESS`) long.
const LATENESS: usize = 4;

/// A window of the near-repeat watch is measured every `window` / `NEAR_CHECKS` tokens or more often.
const NEAR_CHECKS: usize = 4;

/// What to do at which count of tokens.
///
/// # Design
///
/// Everything is due at multiples of a power of two, so what is due at a count of tokens follows
/// from its trailing zeros, and when something is due, everything smaller is too: one pass over the
/// tail serves all of it.
#[derive(Debug)]
pub(super) struct Plan {
    /// For each number of trailing zeros, the largest period to look for.
    reach: Vec<usize>,
    /// The windows of the near-repeat watch, ascending.
    windows: Vec<Window>,
    /// For each number of trailing zeros, how many of `windows` to measure.
    due: Vec<usize>,
    /// Nothing is due unless the count of tokens has these bits clear.
    pub mask: usize,
    /// How many tokens every loop has beyond its first copy, up to as many as are of use.
    pub anchor: usize,
    /// How many of the latest tokens must be kept.
    pub keep: usize,
}

/// One window of the near-repeat watch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Its length in n-grams.
    pub grams: usize,
    /// With fewer different n-grams than this it is a loop.
    pub least_distinct: usize,
}

impl Plan {
    pub fn new(settings: &Settings) -> Self {
        let interval = |period| power_of_two(settings.least_tail(period) / LATENESS + 1);
        let longest = settings.least_tail(settings.max_period);
        let mut windows = Vec::new();
        let mut keep = longest + longest / LATENESS;
        if let Some(near) = &settings.near {
            let lengths = std::iter::successors(Some(near.window), |grams| Some(2 * grams));
            windows = lengths
                .take_while(|&grams| grams <= near.max_window)
                .map(|grams| Window { grams, least_distinct: share(near.novelty, grams) })
                .collect();
            // Twice the window: the loop may have begun before it.
            keep = keep.max(2 * near.max_window + near.ngram);
        }
        let every = |window: &Window| power_of_two(window.grams / NEAR_CHECKS);
        let levels = 0..usize::BITS;
        let reach = levels
            .clone()
            .map(|zeros| largest(settings.max_period, |period| interval(period) <= 1 << zeros))
            .collect();
        let due = levels
            .map(|zeros| windows.iter().take_while(|window| every(window) <= 1 << zeros).count())
            .collect();
        let smallest = windows.first().map_or(interval(1), |window| every(window).min(interval(1)));
        let beyond = (1..=settings.max_period).map(|period| settings.least_tail(period) - period);
        let anchor = beyond.fold(ANCHOR, usize::min);
        Self { reach, windows, due, mask: smallest - 1, anchor, keep }
    }

    /// The largest period to look for after `count` tokens; 0 for none.
    pub fn reach(&self, count: usize) -> usize {
        self.reach[count.trailing_zeros() as usize]
    }

    /// The windows to measure after `count` tokens.
    pub fn windows(&self, count: usize) -> &[Window] {
        &self.windows[..self.due[count.trailing_zeros() as usize]]
    }
}

/// The largest power of two that is at most `limit`, and 1 for 0.
fn power_of_two(limit: usize) -> usize {
    1 << limit.max(1).ilog2()
}

/// The largest period up to `most` that `holds`, where it holds for all smaller ones too; 0 for none.
fn largest(most: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut held, mut failed) = (0, most + 1);
    while failed - held > 1 {
        let middle = held.midpoint(failed);
        if holds(middle) {
            held = middle;
        } else {
            failed = middle;
        }
    }
    held
}

/// The least count that is not below `novelty` of `grams`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive share below 1 of a window of at most 65536"
)]
fn share(novelty: f64, grams: usize) -> usize {
    (novelty * grams as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repetition::Near;

    #[test]
    fn every_period_is_looked_for_often_enough() {
        for (min_repeats, min_covered) in [(2, 2), (2, 3), (3, 7), (4, 256), (5, 1000), (64, 2)] {
            let settings =
                Settings { max_period: 300, min_repeats, min_covered, ..Settings::default() };
            let plan = Plan::new(&settings);
            for period in 1..=300 {
                let least = settings.least_tail(period);
                let mut last = 0;
                for count in 1..5000 {
                    if plan.reach(count) >= period {
                        assert_eq!(count & plan.mask, 0);
                        last = count;
                    }
                    // A tail that reached its least length just after `last` has this length now.
                    assert!(least + count - last <= 1 + least + least / LATENESS);
                }
            }
            assert_eq!(plan.reach(1 << 40), 300);
        }
    }

    #[test]
    fn windows_double_up_to_the_largest() {
        let near = Near { ngram: 4, window: 100, max_window: 450, novelty: 0.1 };
        let plan = Plan::new(&Settings { near: Some(near), ..Settings::default() });
        let windows: Vec<_> = plan.windows(1 << 20).iter().map(|window| window.grams).collect();
        assert_eq!(windows, [100, 200, 400]);
        assert_eq!(plan.windows(16).len(), 1);
        assert_eq!(plan.windows(8).len(), 0);
        assert_eq!(plan.mask, 15);
    }

    #[test]
    fn a_share_is_strict() {
        assert_eq!((share(0.25, 100), share(0.25, 101), share(0.1, 16)), (25, 26, 2));
    }
}
