//! One stream: the tokens that are kept of it, and what was found.

use super::novelty::{Grams, beginning};
use super::plan::Plan;
use super::settings::Settings;
use super::tail::{Tail, smallest_period};
use super::{Kind, Loop};

/// What the checks of all streams write on. Its content means nothing between checks.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    agreements: Vec<usize>,
    grams: Grams,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Stream {
    /// The latest tokens, at least `plan.keep` of them where the stream has so many.
    tokens: Vec<i32>,
    /// How many came before those.
    dropped: usize,
    looping: bool,
}

impl Stream {
    /// Adds a token. A stream that was found to loop takes no more.
    #[inline]
    pub fn push(
        &mut self,
        token: i32,
        settings: &Settings,
        plan: &Plan,
        scratch: &mut Scratch,
    ) -> Option<Loop> {
        if self.looping {
            return None;
        }
        self.tokens.push(token);
        let count = self.dropped + self.tokens.len();
        if count & plan.mask != 0 {
            return None;
        }
        let found = self.check(count, settings, plan, scratch);
        self.looping = found.is_some();
        self.forget(plan.keep);
        found
    }

    pub fn reset(&mut self) {
        self.tokens.clear();
        self.dropped = 0;
        self.looping = false;
    }

    fn check(
        &self,
        count: usize,
        settings: &Settings,
        plan: &Plan,
        scratch: &mut Scratch,
    ) -> Option<Loop> {
        let mut exact = |reach| {
            let least = |period| settings.least_tail(period);
            let Tail { period, length } =
                smallest_period(&self.tokens, reach, plan.anchor, least, &mut scratch.agreements)?;
            Some(Loop { start: count - length, period, covered: length, kind: Kind::Exact })
        };
        if let Some(found) = exact(plan.reach(count)) {
            return Some(found);
        }
        let near = settings.near.as_ref()?;
        let grams = scratch.grams.stale(&self.tokens, near.ngram, plan.windows(count))?;
        // An exact loop whose turn had not come yet says more.
        if let Some(found) = exact(settings.max_period) {
            return Some(found);
        }
        let start = self.dropped + beginning(&self.tokens, near.ngram, grams, near.novelty);
        Some(Loop { start, period: 0, covered: count - start, kind: Kind::Near })
    }

    /// Drops what no check will look at again, a quarter of `keep` at a time.
    fn forget(&mut self, keep: usize) {
        if self.tokens.len() > keep + keep / 4 {
            let surplus = self.tokens.len() - keep;
            self.tokens.drain(..surplus);
            self.dropped += surplus;
        }
    }
}
