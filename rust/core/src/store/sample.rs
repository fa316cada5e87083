//! Taking groups for training.

use super::Store;
use super::event::ids_payload;
use super::priority::{Lookup, Weights};
use super::record::Kind;
use super::state::Group;
use crate::error::{Error, Result};
use crate::noise;
use crate::pack::{Packed, Row};

/// In which order groups are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In the order of their ids.
    #[default]
    Fifo,
    /// In an order drawn from the seed: each group equally likely at each place.
    Uniform,
    /// In an order drawn from the seed and the weights of the groups' prompts: each place goes to
    /// one of the groups left in proportion to its weight. Weight 0 is never taken.
    Priority,
}

impl Strategy {
    /// The strategy of a name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "fifo" => Ok(Self::Fifo),
            "uniform" => Ok(Self::Uniform),
            "priority" => Ok(Self::Priority),
            _ => {
                let expected = "fifo, uniform or priority";
                Err(Error::invalid("strategy", format!("{name:?}"), expected))
            }
        }
    }
}

/// What to take. At least one of `groups` and `tokens` must be given; both bound together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// At most so many groups.
    pub groups: Option<usize>,
    /// At most so many tokens, prompts included. The first group that does not fit ends the batch:
    /// passing it over would favour short responses.
    pub tokens: Option<usize>,
    /// Only groups whose oldest response token is at most so many versions behind `version`.
    pub max_staleness: u32,
    /// The trainer's version.
    pub version: u32,
    /// In which order.
    pub strategy: Strategy,
    /// Decides every draw of the strategy.
    pub seed: u64,
    /// Columns that a group must have for each of its response tokens, and that the batch gets. None:
    /// the batch gets all columns, with 0 where nothing was set.
    pub columns: Option<&'a [&'a str]>,
    /// The weights of [`Strategy::Priority`]; none with another.
    pub weights: Option<Weights<'a>>,
    /// Tokens that are more versions behind `version` than this come with a loss mask of 0.
    pub max_segment_staleness: Option<u32>,
}

impl Sample<'_> {
    /// The oldest version whose tokens keep their loss mask.
    fn oldest_trained(&self) -> u32 {
        self.max_segment_staleness.map_or(0, |age| self.version.saturating_sub(age))
    }
}

/// What a vector holds in ascending order. Only what is asked for is sorted, `step` at first and then twice
/// as much each time.
fn ascending<T: Copy + Ord>(mut rest: Vec<T>, mut step: usize) -> impl Iterator<Item = T> {
    let mut sorted = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if sorted.as_slice().is_empty() && !rest.is_empty() {
            // The least lie behind the others, where they are cut off.
            let kept = rest.len() - step.clamp(1, rest.len());
            if kept > 0 {
                rest.select_nth_unstable_by(kept, |a, b| b.cmp(a));
            }
            let mut least = rest.split_off(kept);
            least.sort_unstable();
            (sorted, step) = (least.into_iter(), step.saturating_mul(2));
        }
        sorted.next()
    })
}

/// The most tokens of a batch: `cu_seqlens` is int32.
const MAX_BATCH: usize = 0x7fff_ffff;

impl Store {
    /// Take whole groups into `batch` and record their use. Nothing to take gives 0 rows.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if the first group alone exceeds `tokens`, or a weight is missing, not
    /// finite or below 0.
    pub fn sample(&mut self, wanted: &Sample<'_>, batch: &mut Packed) -> Result<()> {
        if wanted.groups.is_none() && wanted.tokens.is_none() {
            return Err(Error::invalid("groups, tokens", "none", "at least one of the two"));
        }
        if wanted.weights.is_some() && wanted.strategy != Strategy::Priority {
            let expected = "none, or the strategy priority";
            return Err(Error::invalid("weights", "given", expected));
        }
        let columns = self.wanted_columns(wanted)?;
        let needed = if wanted.columns.is_some() { columns.as_slice() } else { &[] };
        let taken = self.choose(wanted, needed)?;
        self.pack(&taken, &columns, wanted.oldest_trained(), batch)?;
        if !taken.is_empty() {
            self.write_control(Kind::Use, 0, &ids_payload(&taken))?;
        }
        self.acknowledge()
    }

    fn wanted_columns(&self, wanted: &Sample<'_>) -> Result<Vec<u16>> {
        match wanted.columns {
            Some(names) => {
                names.iter().map(|name| self.column_of(name).map(|found| found.0)).collect()
            }
            None => Ok((0..).zip(self.columns()).map(|(number, _)| number).collect()),
        }
    }

    fn choose(&self, wanted: &Sample<'_>, needed: &[u16]) -> Result<Vec<u64>> {
        let has_columns = |id: &u64| {
            let group = self.index.groups.get(id);
            group.is_some_and(|group| needed.iter().all(|c| self.has_column(group, *c)))
        };
        // What is not taken is looked at as little as the strategy allows.
        let floor = wanted.version.saturating_sub(wanted.max_staleness);
        let order: &mut dyn Iterator<Item = u64> = match wanted.strategy {
            Strategy::Fifo => &mut self.index.shelves.fresh_by_id(floor),
            Strategy::Uniform => &mut self.drawn(wanted.seed, floor, wanted.groups.unwrap_or(64)),
            Strategy::Priority => {
                let keys = self.priorities(wanted, floor)?;
                &mut ascending(keys, wanted.groups.unwrap_or(64)).map(|(_, id)| id)
            }
        };
        let order = order.filter(has_columns).take(wanted.groups.unwrap_or(usize::MAX));
        let budget = wanted.tokens.unwrap_or(MAX_BATCH).min(MAX_BATCH);
        let (mut taken, mut tokens) = (Vec::new(), 0);
        for id in order {
            let size = self.index.groups.get(&id).map_or(0, |group| self.tokens_in(group));
            if tokens + size > budget {
                if taken.is_empty() {
                    return Err(Error::invalid(
                        "tokens",
                        budget,
                        format!("at least {size}, the tokens of group {id}, which is next"),
                    ));
                }
                break;
            }
            tokens += size;
            taken.push(id);
        }
        Ok(taken)
    }

    /// Groups that are fresh enough, in the order of the numbers that are drawn for them. A number is drawn
    /// for each, but only those below a bound are kept and sorted: at first about twice as many as are wanted.
    fn drawn(&self, seed: u64, floor: u32, wanted: usize) -> impl Iterator<Item = u64> {
        let shelves = &self.index.shelves;
        let share = (2.0 * wanted as f64 + 16.0) / shelves.ready.len().max(1) as f64;
        let (mut least, mut bound) = (0.0, share);
        let mut sorted = Vec::new().into_iter();
        std::iter::from_fn(move || {
            while sorted.as_slice().is_empty() && least < 1.0 {
                let all = shelves.fresh(floor).map(|id| (noise::uniform(seed, id, 0), id));
                let some = all.filter(|(number, _)| (least..bound).contains(number));
                // Numbers lie above 0, so that they sort as their bits do.
                let mut some: Vec<_> = some.map(|(number, id)| (number.to_bits(), id)).collect();
                some.sort_unstable();
                sorted = some.into_iter();
                (least, bound) = (bound, bound * 4.0);
            }
            sorted.next().map(|(_, id)| id)
        })
    }

    /// Groups that are fresh enough and have a weight, each after the number by which it goes.
    fn priorities(&self, wanted: &Sample<'_>, floor: u32) -> Result<Vec<(u64, u64)>> {
        let weights = wanted.weights.ok_or_else(|| {
            Error::invalid("weights", "none", "one for each prompt, with the strategy priority")
        })?;
        let weights = Lookup::new(weights)?;
        let mut keys = Vec::new();
        for id in self.index.shelves.fresh(floor) {
            if let Some(key) = weights.key(wanted.seed, id, self.group_of(id)?.prompt_id)? {
                keys.push((key, id));
            }
        }
        Ok(keys)
    }

    pub(super) fn has_column(&self, group: &Group, column: u16) -> bool {
        let mut members = group.members().filter_map(|id| self.index.trajectories.get(&id));
        members.all(|trajectory| trajectory.covered(column) == trajectory.length)
    }

    pub(super) fn tokens_in(&self, group: &Group) -> usize {
        let members = group.members().filter_map(|id| self.index.trajectories.get(&id));
        members.map(|t| group.prompt_length as usize + t.length as usize).sum()
    }

    pub(super) fn pack(
        &self,
        groups: &[u64],
        columns: &[u16],
        oldest_trained: u32,
        batch: &mut Packed,
    ) -> Result<()> {
        let (mut rows, mut tokens) = (0, 0);
        for id in groups {
            let group = self.group_of(*id)?;
            rows += group.k as usize;
            tokens += self.tokens_in(group);
        }
        let mut batch = batch.begin(rows, tokens)?;
        let declared = |number: &u16| self.columns().get(usize::from(*number));
        for column in columns.iter().filter_map(declared) {
            batch.add_column(&column.name, column.dtype);
        }
        for &group_id in groups {
            let prompt = self.prompt_of(group_id)?;
            for trajectory_id in self.group_of(group_id)?.members() {
                let trajectory = self.trajectory_of(trajectory_id)?;
                batch.begin_row(prompt.tokens);
                for chunk in &trajectory.chunks {
                    let (tokens, log_probs, mask) = self.arrays(chunk)?;
                    if chunk.version < oldest_trained {
                        batch.extend_row_masked(tokens, log_probs, chunk.version);
                    } else {
                        batch.extend_row(tokens, log_probs, mask, chunk.version);
                    }
                }
                for piece in &trajectory.pieces {
                    let place = columns.iter().position(|number| *number == piece.column);
                    if let (Some(place), Some(column)) = (place, declared(&piece.column)) {
                        let bytes = self.values(piece, column.dtype.width());
                        batch.set_column(place, piece.offset as usize, bytes);
                    }
                }
                batch.end_row(&Row {
                    reward: trajectory.reward.map_or(0.0, |(reward, _)| reward),
                    group_id: group_id.cast_signed(),
                    trajectory_id: trajectory_id.cast_signed(),
                    prompt_id: prompt.prompt_id,
                    finish_reason: trajectory.finish.map_or(0, |(reason, _)| reason as u8),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert_eq, proptest};

    use super::ascending;

    proptest! {
        #[test]
        fn ascending_is_sorted(
            numbers in prop::collection::vec(0u32..99, 0..200), step in 0usize..300,
        ) {
            let mut wanted = numbers.clone();
            wanted.sort_unstable();
            prop_assert_eq!(ascending(numbers, step).collect::<Vec<_>>(), wanted);
        }
    }
}
