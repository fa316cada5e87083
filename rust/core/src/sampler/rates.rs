//! How often each prompt succeeds, with older evidence counting less.

use crate::{Error, Result};

/// What is known of one prompt: sums decayed to the newest version at which it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Evidence {
    pub(super) reward: f64,
    pub(super) count: f64,
    pub(super) version: u32,
}

/// The success rate of n prompts: s_i = (Σ γ^age·r + p0·n0) / (Σ γ^age + n0).
///
/// # Design
///
/// The age of a reward r is `version()`, the newest version that any reward came from, less its own
/// version. So the evidence for a prompt that is not drawn fades too, and its rate goes back to the
/// prior p0, which lets it be tried again. A prompt keeps its two sums as of the newest version of
/// its own rewards; the decay since then is applied when they are read. Rewards may come in any
/// order of versions: the sums depend on what came, not on when (up to the rounding of f64).
///
/// With γ = 1 nothing fades, and only a prompt's own rewards change its rate.
///
/// ```
/// use k15_core::sampler::SuccessRates;
/// let mut rates = SuccessRates::new(2, 0.5, 0.5, 1.0)?;
/// rates.record(0, 1.0, 7);
/// assert_eq!(rates.rate(0), (1.0 + 0.5) / (1.0 + 1.0));
/// rates.record(1, 0.0, 8); // prompt 0's reward is now one version old
/// assert_eq!(rates.rate(0), (0.5 + 0.5) / (0.5 + 1.0));
/// # Ok::<(), k15_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SuccessRates {
    gamma: f64,
    prior_rate: f64,
    prior_count: f64,
    pub(super) version: u32,
    pub(super) evidence: Vec<Evidence>,
}

impl SuccessRates {
    /// `n` prompts without evidence. `prior_rate` is p0, `prior_count` n0.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] unless 0 ≤ γ ≤ 1, 0 ≤ p0 ≤ 1 and 0 < n0 ≤ 1e9.
    pub fn new(n: usize, gamma: f64, prior_rate: f64, prior_count: f64) -> Result<Self> {
        for (field, value) in [("gamma", gamma), ("prior_rate", prior_rate)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(field, value, "a number from 0 to 1"));
            }
        }
        if !(prior_count > 0.0 && prior_count <= 1e9) {
            let expected = "a number above 0 and at most 1e9";
            return Err(Error::invalid("prior_count", prior_count, expected));
        }
        let evidence = vec![Evidence::default(); n];
        Ok(Self { gamma, prior_rate, prior_count, version: 0, evidence })
    }

    /// The newest version that a reward came from; ages count from it.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// γ, the weight of a reward for each version of its age.
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// Takes in one reward between 0 and 1, measured under `version`, newest or not.
    pub fn record(&mut self, prompt: usize, reward: f64, version: u32) {
        let newest = version.max(self.evidence[prompt].version);
        let old = self.faded(prompt, newest);
        let weight = self.decay(newest - version);
        self.evidence[prompt] = Evidence {
            reward: old.reward + weight * reward,
            count: old.count + weight,
            version: newest,
        };
        self.version = self.version.max(version);
    }

    /// s_i of one prompt at the newest version.
    pub fn rate(&self, prompt: usize) -> f64 {
        let (successes, failures) = self.beta(prompt);
        successes / (successes + failures)
    }

    /// The parameters of the Beta distribution that stands for what is known of a prompt, the prior
    /// included; [`Self::rate`] is its mean.
    pub fn beta(&self, prompt: usize) -> (f64, f64) {
        let Evidence { reward, count, .. } = self.faded(prompt, self.version);
        let failed = (count - reward).max(0.0);
        (
            reward + self.prior_rate * self.prior_count,
            failed + (1.0 - self.prior_rate) * self.prior_count,
        )
    }

    /// The sums of a prompt, decayed to `version`, which is not older than theirs.
    fn faded(&self, prompt: usize, version: u32) -> Evidence {
        let Evidence { reward, count, version: newest } = self.evidence[prompt];
        let weight = self.decay(version - newest);
        Evidence { reward: weight * reward, count: weight * count, version }
    }

    fn decay(&self, age: u32) -> f64 {
        if age == 0 { 1.0 } else { self.gamma.powf(f64::from(age)) }
    }
}
