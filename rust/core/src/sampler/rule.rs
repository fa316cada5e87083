//! From a success rate to a weight.

use super::SuccessRates;
use super::beta;
use super::stream::Stream;
use crate::{Error, Result};

/// What makes a prompt worth drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All alike: the weight is 1.
    Uniform,
    /// The ones that fail: (1 − s)^α + ε (report, section 2.3.3).
    Priority,
    /// The ones whose rewards vary most: s·(1 − s) + ε.
    Learnability,
    /// [`Rule::Priority`] on a rate drawn from the Beta distribution of what is known, anew for each
    /// sample: prompts of which little is known are tried more often.
    Thompson,
}

impl Rule {
    const NAMES: [(&'static str, Self); 4] = [
        ("uniform", Self::Uniform),
        ("priority", Self::Priority),
        ("learnability", Self::Learnability),
        ("thompson", Self::Thompson),
    ];

    /// The rule of a name: uniform, priority, learnability or thompson.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = Self::NAMES.map(|(name, _)| name);
        Self::NAMES
            .iter()
            .find_map(|&(other, rule)| (other == name).then_some(rule))
            .ok_or_else(|| Error::invalid("rule", name, format!("one of {}", known.join(", "))))
    }
}

/// A rule with its settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighting {
    rule: Rule,
    alpha: f64,
    epsilon: f64,
}

impl Weighting {
    pub(super) fn new(rule: Rule, alpha: f64, epsilon: f64) -> Result<Self> {
        if !(0.0..=1e3).contains(&alpha) {
            return Err(Error::invalid("alpha", alpha, "a number from 0 to 1000"));
        }
        if !(epsilon > 0.0 && epsilon <= 1e6) {
            let expected = "a number above 0 and at most 1e6, so that no prompt is shut out";
            return Err(Error::invalid("epsilon", epsilon, expected));
        }
        Ok(Self { rule, alpha, epsilon })
    }

    /// Whether a weight depends on the seed of the sample, too.
    pub(super) fn is_drawn(&self) -> bool {
        self.rule == Rule::Thompson
    }

    /// The weight of one prompt; always above 0.
    pub(super) fn weight(&self, rates: &SuccessRates, prompt: usize, seed: u64) -> f64 {
        let priority = |rate: f64| (1.0 - rate).powf(self.alpha) + self.epsilon;
        match self.rule {
            Rule::Uniform => 1.0,
            Rule::Priority => priority(rates.rate(prompt)),
            Rule::Learnability => {
                let rate = rates.rate(prompt);
                rate * (1.0 - rate) + self.epsilon
            }
            Rule::Thompson => {
                let (successes, failures) = rates.beta(prompt);
                let mut noise = Stream::of_entry(seed, prompt as u64);
                priority(beta::draw(successes, failures, &mut noise))
            }
        }
    }
}
