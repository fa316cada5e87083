//! Which prompts to roll out next.

use std::collections::HashMap;

use super::curriculum::{Bounds, Curriculum, Measure};
use super::rule::{Rule, Weighting};
use super::stream::Stream;
use super::{MAX_ENTRIES, PriorityIndex, SuccessRates, state};
use crate::{Error, Result};

/// What the weights in the index were computed for.
#[derive(Clone, Copy, PartialEq)]
struct Basis {
    version: u32,
    bounds: Bounds,
    seed: u64,
}

/// Draws prompts by a rule over their success rates, among those that a curriculum admits.
///
/// # Design
///
/// The state is what [`SuccessRates`] keeps; weights are computed from it and held in a
/// [`PriorityIndex`] until they change. With γ = 1 an update changes the weights of its own prompts,
/// O(log n) each. All n are recomputed, once, when the admitted range moves, when γ < 1 and a reward
/// of a newer version has come (all other evidence is older then), and at each draw of
/// [`Rule::Thompson`]; the draws themselves are O(log n) always.
///
/// Where a curriculum admits fewer prompts than are asked for without replacement, those are all
/// drawn, and the rest comes from the prompts nearest to the admitted range: a prompt is drawn only
/// if fewer than the missing number lie nearer, by the rule among those. A run whose policy has
/// learned nearly everything thus goes on; [`Self::admissible`] says how many there were.
///
/// ```
/// use k15_core::sampler::{PromptSampler, Rule, SuccessRates};
/// let rates = SuccessRates::new(3, 0.9, 0.5, 1.0)?;
/// let mut sampler = PromptSampler::new(vec![10, 11, 12], rates, Rule::Priority, 1.0, 0.01)?;
/// sampler.update(&[10, 11], &[1.0, 0.0], 1)?;
/// let drawn = sampler.sample(2, 7, 0, false)?;
/// let mut again = PromptSampler::new(
///     vec![10, 11, 12], SuccessRates::new(3, 0.9, 0.5, 1.0)?, Rule::Priority, 1.0, 0.01)?;
/// again.restore(&sampler.state())?;
/// assert_eq!(again.sample(2, 7, 0, false)?, drawn);
/// # Ok::<(), k15_core::Error>(())
/// ```
pub struct PromptSampler {
    ids: Vec<i64>,
    places: HashMap<i64, usize>,
    rates: SuccessRates,
    weighting: Weighting,
    curriculum: Option<Curriculum>,
    labels: Vec<f32>,
    range: (f64, f64),
    index: PriorityIndex,
    basis: Option<Basis>,
}

impl PromptSampler {
    /// A sampler over the given prompts, one for each of `rates`. `alpha` and `epsilon` are the
    /// rule's; ε is above 0, so that every prompt keeps a chance.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if there is no prompt, an id comes twice or a setting is out of range.
    pub fn new(
        prompt_ids: Vec<i64>,
        rates: SuccessRates,
        rule: Rule,
        alpha: f64,
        epsilon: f64,
    ) -> Result<Self> {
        let n = prompt_ids.len();
        if n == 0 || n != rates.evidence.len() {
            let expected = "at least one id, and as many as rates";
            return Err(Error::invalid("prompt_ids", format!("{n} ids"), expected));
        }
        let mut places = HashMap::with_capacity(n);
        for (place, &id) in prompt_ids.iter().enumerate() {
            if places.insert(id, place).is_some() {
                let value = format!("{id} at position {place}");
                return Err(Error::invalid("prompt_ids", value, "each id once"));
            }
        }
        Ok(Self {
            ids: prompt_ids,
            places,
            rates,
            weighting: Weighting::new(rule, alpha, epsilon)?,
            curriculum: None,
            labels: Vec::new(),
            range: (0.0, 0.0),
            index: PriorityIndex::new(n)?,
            basis: None,
        })
    }

    /// The same sampler with the prompts' difficulties, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if a label is missing or not finite.
    pub fn with_difficulty(mut self, labels: Vec<f32>) -> Result<Self> {
        if labels.len() != self.ids.len() {
            let value = format!("{} labels", labels.len());
            let expected = format!("{}, one for each of prompt_ids", self.ids.len());
            return Err(Error::invalid("difficulty", value, expected));
        }
        if let Some(place) = labels.iter().position(|label| !label.is_finite()) {
            let value = format!("{} at position {place}", labels[place]);
            return Err(Error::invalid("difficulty", value, "a finite number"));
        }
        let all = || labels.iter().map(|&label| f64::from(label));
        self.range = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        self.labels = labels;
        self.basis = None;
        Ok(self)
    }

    /// The same sampler with a curriculum; one by [`Measure::Difficulty`] needs
    /// [`Self::with_difficulty`] first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if a bound is missing or out of range, or there are no labels.
    pub fn with_curriculum(mut self, curriculum: Curriculum) -> Result<Self> {
        curriculum.validate()?;
        if curriculum.measure == Measure::Difficulty && self.labels.is_empty() {
            let expected = "a label for each prompt with curriculum = difficulty";
            return Err(Error::invalid("difficulty", "None", expected));
        }
        self.curriculum = Some(curriculum);
        self.basis = None;
        Ok(self)
    }

    /// The prompts' ids, in the order in which they were given.
    pub fn prompt_ids(&self) -> &[i64] {
        &self.ids
    }

    /// The success rates of the prompts, in the order of their ids.
    pub fn success_rates(&self) -> impl ExactSizeIterator<Item = f64> {
        (0..self.ids.len()).map(|place| self.rates.rate(place))
    }

    /// How many prompts the curriculum admits at an iteration.
    pub fn admissible(&self, iteration: u64) -> usize {
        let bounds = self.bounds(iteration);
        (0..self.ids.len()).filter(|&place| self.distance(&bounds, place) <= 0.0).count()
    }

    /// Takes in the mean reward, from 0 to 1, of a group of responses to each prompt, measured under
    /// a version. A prompt that comes twice has two groups.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if an id is unknown, a reward is out of range or the lengths differ.
    /// The sampler is then as it was.
    pub fn update(&mut self, prompt_ids: &[i64], mean_rewards: &[f32], version: u32) -> Result<()> {
        if prompt_ids.len() != mean_rewards.len() {
            let value = format!("{} entries", mean_rewards.len());
            let expected = format!("{}, one for each of prompt_ids", prompt_ids.len());
            return Err(Error::invalid("mean_rewards", value, expected));
        }
        if let Some(at) = mean_rewards.iter().position(|reward| !(0.0..=1.0).contains(reward)) {
            let value = format!("{} at position {at}", mean_rewards[at]);
            return Err(Error::invalid("mean_rewards", value, "a number from 0 to 1"));
        }
        let place = |(at, id): (usize, &i64)| {
            self.places.get(id).copied().ok_or_else(|| {
                let value = format!("{id} at position {at}");
                Error::invalid("prompt_ids", value, "ids that the sampler was made with")
            })
        };
        let touched = prompt_ids.iter().enumerate().map(place).collect::<Result<Vec<_>>>()?;
        for (&place, &reward) in touched.iter().zip(mean_rewards) {
            self.rates.record(place, f64::from(reward), version);
        }
        // Where nothing else has changed, the other prompts' weights still hold.
        if let Some(basis) = self.basis
            && basis.version == self.basis_version()
        {
            let weights: Vec<f64> =
                touched.iter().map(|&place| self.weight(&basis, place)).collect();
            self.index.write(&touched, weights.into_iter());
            self.index.repair(touched);
        }
        Ok(())
    }

    /// Draws `n` prompt ids, without replacement unless `replace`: a pure function of what was
    /// recorded and of these arguments. Iterations are numbered from 0.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if more prompts are asked for without replacement than there are.
    pub fn sample(
        &mut self,
        n: usize,
        seed: u64,
        iteration: u64,
        replace: bool,
    ) -> Result<Vec<i64>> {
        let most = if replace { MAX_ENTRIES } else { self.ids.len() };
        if n > most {
            let limit = if replace { "" } else { ", the number of prompts, or replace" };
            return Err(Error::invalid("n", n, format!("at most {most}{limit}")));
        }
        let basis = Basis {
            version: self.basis_version(),
            bounds: self.bounds(iteration),
            seed: if self.weighting.is_drawn() { seed } else { 0 },
        };
        if self.basis != Some(basis) {
            self.fill(&basis, |distance| distance <= 0.0);
            self.basis = Some(basis);
        }
        let mut noise = Stream::new(seed);
        if replace {
            if self.index.total() <= 0.0 {
                self.widen(&basis, 1);
            }
            let drawn = self.index.draw(n, &mut noise);
            return Ok(drawn.into_iter().map(|place| self.ids[place]).collect());
        }
        let (mut drawn, weights) = self.index.take(n, &mut noise);
        if drawn.len() < n {
            self.widen(&basis, n - drawn.len());
            drawn.extend(self.index.take(n - drawn.len(), &mut noise).0);
        } else {
            self.index.write(&drawn, weights.into_iter());
            self.index.repair(drawn.clone());
        }
        Ok(drawn.into_iter().map(|place| self.ids[place]).collect())
    }

    /// The weights by which [`Self::sample`] draws prompts, in the order of their ids: 0 for those
    /// that the curriculum does not admit. The seed matters to [`Rule::Thompson`] only.
    pub fn weights(&self, seed: u64, iteration: u64) -> Vec<f64> {
        let basis = Basis { version: self.basis_version(), bounds: self.bounds(iteration), seed };
        (0..self.ids.len()).map(|place| self.weight(&basis, place)).collect()
    }

    /// Everything that a checkpoint needs to go on as if nothing had happened, given the same
    /// prompts and settings.
    pub fn state(&self) -> Vec<u8> {
        state::encode(&self.ids, &self.rates)
    }

    /// Goes back to what [`Self::state`] gave.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if the bytes are damaged, of another format, of other prompts or of
    /// another γ. The sampler is then as it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        state::decode(bytes, &self.ids, &mut self.rates)?;
        self.basis = None;
        Ok(())
    }

    /// The version that the weights depend on: without decay they depend on none.
    fn basis_version(&self) -> u32 {
        if self.rates.gamma() < 1.0 { self.rates.version() } else { 0 }
    }

    fn bounds(&self, iteration: u64) -> Bounds {
        self.curriculum.map_or(Bounds::ALL, |curriculum| curriculum.bounds(iteration, self.range))
    }

    /// How far outside the admitted range a prompt lies; 0 inside.
    fn distance(&self, bounds: &Bounds, place: usize) -> f64 {
        match self.curriculum.map(|curriculum| curriculum.measure) {
            None => 0.0,
            Some(Measure::Difficulty) => bounds.distance(f64::from(self.labels[place])),
            Some(Measure::PassRate) => bounds.distance(-self.rates.rate(place)),
        }
    }

    fn weight(&self, basis: &Basis, place: usize) -> f64 {
        if self.distance(&basis.bounds, place) > 0.0 {
            return 0.0;
        }
        self.weighting.weight(&self.rates, place, basis.seed)
    }

    /// Computes all weights; a prompt that lies too far outside the range gets 0.
    fn fill(&mut self, basis: &Basis, admits: impl Fn(f64) -> bool) {
        let weights: Vec<f64> = (0..self.ids.len())
            .map(|place| match admits(self.distance(&basis.bounds, place)) {
                true => self.weighting.weight(&self.rates, place, basis.seed),
                false => 0.0,
            })
            .collect();
        self.index.fill(weights.into_iter());
    }

    /// Puts the prompts nearest to the range, and outside, in place of those inside: as few as make
    /// up `missing`, with all that lie as far as the last of them.
    fn widen(&mut self, basis: &Basis, missing: usize) {
        let mut outside: Vec<f64> = (0..self.ids.len())
            .map(|place| self.distance(&basis.bounds, place))
            .filter(|&distance| distance > 0.0)
            .collect();
        let last = missing.min(outside.len()) - 1;
        let (_, &mut reach, _) = outside.select_nth_unstable_by(last, f64::total_cmp);
        self.fill(basis, |distance| distance > 0.0 && distance <= reach);
        self.basis = None;
    }
}
