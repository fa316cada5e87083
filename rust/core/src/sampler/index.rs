//! Draws in proportion to weights, in O(log n), for millions of entries.

use super::descent;
use super::line::{FANOUT, Line};
use super::stream::Stream;
use crate::{Error, Result};

/// The most entries that an index can have.
pub const MAX_ENTRIES: usize = 1 << 31;

/// The greatest weight of an entry: the sum of [`MAX_ENTRIES`] of them is still finite.
pub const MAX_WEIGHT: f64 = 1e290;

/// Entries 0, 1, … with a weight each, drawn with probability weight / total.
///
/// # Design
///
/// A tree of sums, eight children wide, one cache line a node. Leaves hold the weights as they were
/// given, in f64; every sum is recomputed from its children, in one order, whenever one of them
/// changes. So nothing drifts: the tree is a pure function of the present weights, whatever the
/// history of updates was. The tree's order is the entries' order, thus a draw is the entry in which
/// `u · total` falls on the line of cumulative weights. Probabilities are exact to the rounding of
/// f64 sums (a few 2^-53 of the total); an entry of weight 0 is never drawn.
///
/// Updates and draws work level by level, on many entries abreast: their cache misses overlap. Many
/// draws write down first where the shares of the upper levels begin, once for all of them.
///
/// ```
/// use k15_core::sampler::PriorityIndex;
/// let mut index = PriorityIndex::new(1000)?;
/// index.update(&[3, 700], &[1.0f32, 3.0])?;
/// assert_eq!(index.total(), 4.0);
/// let drawn = index.sample(4, 0)?;
/// assert!(drawn.iter().all(|entry| [3, 700].contains(entry)));
/// let mut both = index.sample_distinct(2, 0)?;
/// both.sort_unstable();
/// assert_eq!(both, [3, 700]);
/// # Ok::<(), k15_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PriorityIndex {
    len: usize,
    /// The weights, then the sums of their lines, and so on up to a level of one line.
    levels: Vec<Vec<Line>>,
}

impl PriorityIndex {
    /// An index of `len` entries of weight 0.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if `len` is 0 or above [`MAX_ENTRIES`].
    pub fn new(len: usize) -> Result<Self> {
        if !(1..=MAX_ENTRIES).contains(&len) {
            return Err(Error::invalid("n", len, format!("a count from 1 to {MAX_ENTRIES}")));
        }
        let mut lines = len.div_ceil(FANOUT);
        let mut levels = vec![vec![Line::default(); lines]];
        while lines > 1 {
            lines = lines.div_ceil(FANOUT);
            levels.push(vec![Line::default(); lines]);
        }
        Ok(Self { len, levels })
    }

    /// How many entries there are, those of weight 0 included.
    #[expect(clippy::len_without_is_empty, reason = "an index has at least one entry")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The sum of all weights.
    pub fn total(&self) -> f64 {
        self.levels.last().map_or(0.0, |top| top[0].sum())
    }

    /// The weights of the given entries.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if an entry is not in the index.
    pub fn weights(&self, entries: &[i64]) -> Result<Vec<f64>> {
        Ok(self.positions(entries)?.into_iter().map(|at| self.weight(at)).collect())
    }

    /// The weights of all entries, in order: everything that a checkpoint of the index needs.
    pub fn all_weights(&self) -> Vec<f64> {
        (0..self.len).map(|at| self.weight(at)).collect()
    }

    /// Gives entry `entries[i]` the weight `weights[i]`; of an entry that comes twice the last
    /// counts. O(log n) an entry.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if an entry is not in the index, a weight is not a number from 0 to
    /// [`MAX_WEIGHT`], or the lengths differ. The index is then as it was.
    pub fn update<W: Copy + Into<f64>>(&mut self, entries: &[i64], weights: &[W]) -> Result<()> {
        if entries.len() != weights.len() {
            return Err(Error::invalid(
                "weights",
                format!("{} entries", weights.len()),
                format!("{}, one for each of indices", entries.len()),
            ));
        }
        let refused = |&weight: &W| !(0.0..=MAX_WEIGHT).contains(&weight.into());
        if let Some(at) = weights.iter().position(refused) {
            let value = format!("{} at position {at}", weights[at].into());
            return Err(Error::invalid("weights", value, format!("0 to {MAX_WEIGHT:e}")));
        }
        let touched = self.positions(entries)?;
        self.write(&touched, weights.iter().map(|&weight| weight.into()));
        self.repair(touched);
        Ok(())
    }

    /// Sets all weights at once, in O(n). They must be in range, one for each entry.
    pub(super) fn fill(&mut self, weights: impl Iterator<Item = f64>) {
        let slots = self.levels[0].iter_mut().flat_map(|line| &mut line.0);
        slots.zip(weights).for_each(|(slot, weight)| *slot = weight);
        for level in 1..self.levels.len() {
            self.sum_all(level);
        }
    }

    /// Draws `count` entries, each independently of the others.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if all weights are 0 and `count` is not, or `count` is above
    /// [`MAX_ENTRIES`].
    pub fn sample(&self, count: usize, seed: u64) -> Result<Vec<i64>> {
        if count > MAX_ENTRIES {
            return Err(Error::invalid("n", count, format!("at most {MAX_ENTRIES}")));
        }
        if count > 0 && self.total() <= 0.0 {
            return Err(Error::invalid("n", count, "0, for every weight is 0"));
        }
        let drawn = self.draw(count, &mut Stream::new(seed));
        Ok(drawn.into_iter().map(|entry| entry as i64).collect())
    }

    /// [`Self::sample`] where some weight is above 0.
    pub(super) fn draw(&self, count: usize, noise: &mut Stream) -> Vec<usize> {
        descent::draw(&self.levels, count, noise)
    }

    /// Draws `count` different entries one after another, each in proportion to the weights that
    /// are left. The index is the same afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if fewer than `count` entries have a weight above 0.
    pub fn sample_distinct(&mut self, count: usize, seed: u64) -> Result<Vec<i64>> {
        let mut noise = Stream::new(seed);
        let (drawn, weights) = self.take(count, &mut noise);
        self.write(&drawn, weights.into_iter());
        self.repair(drawn.clone());
        if drawn.len() < count {
            let most = format!("at most {}, the entries of weight above 0", drawn.len());
            return Err(Error::invalid("n", count, most));
        }
        Ok(drawn.into_iter().map(|entry| entry as i64).collect())
    }

    /// Draws up to `count` different entries and leaves their weights 0; also what they weighed.
    pub(super) fn take(&mut self, count: usize, noise: &mut Stream) -> (Vec<usize>, Vec<f64>) {
        let (mut drawn, mut weights) = (Vec::new(), Vec::new());
        while drawn.len() < count && self.total() > 0.0 {
            let Some(at) = self.find(noise.uniform() * self.total()) else { break };
            weights.push(self.weight(at));
            drawn.push(at);
            self.write(&[at], std::iter::once(0.0));
            self.repair(vec![at]);
        }
        (drawn, weights)
    }

    /// The entry in whose share of the cumulative weights `target` lies; None if all weights are 0.
    pub fn find(&self, target: f64) -> Option<usize> {
        (self.total() > 0.0).then(|| descent::find(&self.levels, target))
    }

    fn weight(&self, at: usize) -> f64 {
        self.levels[0][at / FANOUT].0[at % FANOUT]
    }

    fn positions(&self, entries: &[i64]) -> Result<Vec<usize>> {
        let inside = |&entry: &i64| usize::try_from(entry).ok().filter(|&at| at < self.len);
        entries.iter().map(inside).collect::<Option<_>>().ok_or_else(|| {
            let at = entries.iter().position(|entry| inside(entry).is_none()).unwrap_or(0);
            let value = format!("{} at position {at}", entries[at]);
            Error::invalid("indices", value, format!("0 to {}", self.len - 1))
        })
    }

    pub(super) fn write(&mut self, touched: &[usize], weights: impl Iterator<Item = f64>) {
        for (&at, weight) in touched.iter().zip(weights) {
            self.levels[0][at / FANOUT].0[at % FANOUT] = weight;
        }
    }

    /// Recomputes the sums above the touched entries, a level at a time.
    pub(super) fn repair(&mut self, mut touched: Vec<usize>) {
        for level in 1..self.levels.len() {
            let (below, above) = self.levels.split_at_mut(level);
            let (below, above) = (&below[level - 1], &mut above[0]);
            if below.len() <= touched.len() {
                self.sum_all(level);
                continue;
            }
            for at in &mut touched {
                *at /= FANOUT;
                above[*at / FANOUT].0[*at % FANOUT] = below[*at].sum();
            }
        }
    }

    fn sum_all(&mut self, level: usize) {
        let (below, above) = self.levels.split_at_mut(level);
        let sums = above[0].iter_mut().flat_map(|line| &mut line.0);
        sums.zip(&below[level - 1]).for_each(|(sum, line)| *sum = line.sum());
    }
}
