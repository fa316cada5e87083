//! The tail of every period, followed by hand.

use k15_core::repetition::Settings;

/// For every period, how long the tail is that has it: O(P) a token.
pub struct Oracle {
    pub tokens: Vec<i32>,
    tails: Vec<usize>,
}

impl Oracle {
    pub fn new(max_period: usize) -> Self {
        Self { tokens: Vec::new(), tails: (0..=max_period).collect() }
    }

    pub fn push(&mut self, token: i32) {
        let at = self.tokens.len();
        self.tokens.push(token);
        for period in 1..self.tails.len().min(at + 1) {
            let same = self.tokens[at - period] == token;
            self.tails[period] = if same { self.tails[period] + 1 } else { period };
        }
    }

    pub fn tail(&self, period: usize) -> usize {
        self.tails[period].min(self.tokens.len())
    }

    /// The smallest period whose tail is long enough to be a loop.
    pub fn looping(&self, settings: &Settings) -> Option<usize> {
        (1..self.tails.len()).find(|&p| self.tail(p) >= settings.least_tail(p))
    }

    /// A period whose loop should have been reported by now.
    pub fn overdue(&self, settings: &Settings) -> Option<usize> {
        (1..self.tails.len()).find(|&p| 2 * (self.tail(p) + 1) > 3 * settings.least_tail(p))
    }
}
