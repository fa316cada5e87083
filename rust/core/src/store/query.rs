//! Questions to the store. None of them changes anything.

use super::Store;
use super::event::{APPEND_FIELDS, Event, FinishReason, append_payload};
use super::group_event::PromptData;
use super::index::Index;
use super::record::{Kind, Reader};
use super::state::{Chunk, Group, Trajectory};
use crate::error::{Error, Result};
use crate::values::Values;

/// Where a trajectory is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Wants tokens; it may be leased.
    Unfinished,
    /// Ended, without a score yet.
    Finished,
    /// Ended and scored.
    Scored,
    /// Its group was used as often as it may be, dropped or evicted.
    Gone,
}

impl State {
    /// The state's name.
    pub fn name(self) -> &'static str {
        ["unfinished", "finished", "scored", "gone"][self as usize]
    }
}

/// Everything that is stored about one trajectory.
#[derive(Clone, Debug, PartialEq)]
pub struct TrajectoryView {
    /// Its group.
    pub group_id: u64,
    /// The prompt's own id.
    pub prompt_id: i64,
    /// Where it is in its life.
    pub state: State,
    /// The epoch that holds it, and until when.
    pub holder: Option<(u64, f64)>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Its score.
    pub reward: Option<f32>,
    /// The prompt's tokens.
    pub prompt_tokens: Vec<i32>,
    /// The response's tokens, with their log-probs, loss mask and policy versions.
    pub tokens: Vec<i32>,
    /// Log-probs of the response's tokens under the policies that sampled them.
    pub log_probs: Vec<f32>,
    /// 1 for a token that is trained on.
    pub loss_mask: Vec<u8>,
    /// The policy version of each token of the response.
    pub versions: Vec<u32>,
    /// The values of each declared column, one a token of the response; 0 where there is none.
    pub columns: Vec<(String, Values)>,
}

/// Counts of what is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Trajectories by [`State`]: unfinished, finished, scored, gone.
    pub trajectories: [u64; 4],
    /// Groups that the index knows, those that can be sampled, those that are used up or gone.
    pub groups: u64,
    /// Of these, groups that can be sampled.
    pub groups_ready: u64,
    /// Of these, groups that are used up, dropped or evicted, kept for a mark.
    pub groups_gone: u64,
    /// Response tokens that are stored.
    pub tokens: u64,
    /// Bytes of the log that are still needed.
    pub bytes_live: u64,
    /// Bytes of the log that are written.
    pub bytes_written: u64,
    /// Bytes that the log's files take, spares included.
    pub bytes_allocated: u64,
    /// The bound on the latter.
    pub capacity_bytes: u64,
    /// Files of the log.
    pub files: u64,
    /// Files waiting to be used again.
    pub spare_files: u64,
}

impl Store {
    /// How many trajectories want tokens, leased or not.
    pub fn unfinished(&self) -> usize {
        self.index.queue.len()
    }

    /// Groups created under a version before `before_version` that training can still use or wait
    /// for: not used up, dropped or evicted. In the order of their ids.
    pub fn pending_groups(&self, before_version: u32) -> Vec<u64> {
        self.groups_where(|g| g.version < before_version && self.index.is_alive(g))
    }

    /// Groups created under a version, in the order of their ids. Groups that are used up or gone
    /// are among them until a mark lets go of them.
    pub fn groups_of_version(&self, version: u32) -> Vec<u64> {
        self.groups_where(|group| group.version == version)
    }

    /// Groups that can be sampled: all members finished and scored, in the order of their ids.
    pub fn complete_groups(&self) -> Vec<u64> {
        self.index.shelves.ready.iter().copied().collect()
    }

    /// The trajectory ids of a group.
    pub fn members(&self, group_id: u64) -> Result<Vec<u64>> {
        self.group_of(group_id).map(|group| group.members().collect())
    }

    /// The policy version under which a group was created.
    pub fn created_version(&self, group_id: u64) -> Result<u32> {
        self.group_of(group_id).map(|group| group.version)
    }

    /// The prompt of a group.
    pub fn prompt_of(&self, group_id: u64) -> Result<PromptData<'_>> {
        let (at, len, moved) = self.group_of(group_id)?.prompt;
        let kind = if moved { Kind::MovedGroup } else { Kind::Group };
        match Event::decode(kind, group_id, self.log.payload(at, len as usize))? {
            Event::Group(event) | Event::MovedGroup(event) => Ok(event.prompt),
            _ => Err(Error::Corruption(format!("the record of group {group_id} is another's"))),
        }
    }

    /// Everything about one trajectory, copied.
    pub fn trajectory(&self, trajectory_id: u64) -> Result<TrajectoryView> {
        let trajectory = self.trajectory_of(trajectory_id)?;
        let group_id = trajectory.group_id;
        let prompt = self.prompt_of(group_id)?;
        let mut view = TrajectoryView {
            group_id,
            prompt_id: prompt.prompt_id,
            state: self.state_of(trajectory_id)?,
            holder: trajectory.holder.map(|holder| (holder.epoch, holder.deadline)),
            finish_reason: trajectory.finish.map(|(reason, _)| reason),
            reward: trajectory.reward.map(|(reward, _)| reward),
            prompt_tokens: prompt.tokens.to_vec(),
            tokens: Vec::new(),
            log_probs: Vec::new(),
            loss_mask: Vec::new(),
            versions: Vec::new(),
            columns: Vec::new(),
        };
        for (number, column) in (0..).zip(self.columns()) {
            let values = self.values_of(trajectory, number, column.dtype);
            view.columns.push((column.name.clone(), values));
        }
        for chunk in &trajectory.chunks {
            let (tokens, log_probs, mask) = self.arrays(chunk)?;
            view.tokens.extend_from_slice(tokens);
            view.log_probs.extend_from_slice(log_probs);
            view.loss_mask.extend_from_slice(mask);
            view.versions.resize(view.tokens.len(), chunk.version);
        }
        Ok(view)
    }

    /// Counts of what is stored.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            groups: self.index.groups.len() as u64,
            groups_ready: self.index.shelves.ready.len() as u64,
            bytes_live: self.index.live.values().sum(),
            bytes_written: self.log.files.iter().map(|file| file.end as u64).sum(),
            bytes_allocated: self.log.allocated(),
            capacity_bytes: self.capacity_bytes,
            files: self.log.files.len() as u64,
            spare_files: self.log.spares.len() as u64,
            ..Stats::default()
        };
        (stats.trajectories, stats.tokens) = count_states(&self.index);
        let gone = self.index.groups.values().filter(|group| !self.index.is_alive(group));
        stats.groups_gone = gone.count() as u64;
        stats
    }

    fn state_of(&self, trajectory_id: u64) -> Result<State> {
        let trajectory = self.trajectory_of(trajectory_id)?;
        Ok(state(&self.index, self.group_of(trajectory.group_id)?, trajectory))
    }

    pub(super) fn group_of(&self, group_id: u64) -> Result<&Group> {
        self.index.groups.get(&group_id).ok_or_else(|| {
            let next = self.index.base.next_group;
            let expected = format!("a group below {next} that is not used up, dropped or evicted");
            Error::invalid("group_id", group_id, expected)
        })
    }

    /// The tokens, log-probs and loss mask of one chunk, in place.
    pub(super) fn arrays(&self, chunk: &Chunk) -> Result<(&[i32], &[f32], &[u8])> {
        let n = chunk.n as usize;
        let mut reader = Reader::new(self.log.payload(chunk.at, append_payload(n)));
        reader.bytes(APPEND_FIELDS)?;
        Ok((reader.i32s(n)?, reader.f32s(n)?, reader.bytes(n)?))
    }

    fn groups_where(&self, wanted: impl Fn(&Group) -> bool) -> Vec<u64> {
        let groups = self.index.groups.iter();
        groups.filter(|(_, group)| wanted(group)).map(|(id, _)| *id).collect()
    }
}

/// Trajectories by [`State`], and their response tokens.
pub(super) fn count_states(index: &Index) -> ([u64; 4], u64) {
    let (mut states, mut tokens) = ([0; 4], 0);
    for group in index.groups.values() {
        for trajectory in group.members().filter_map(|id| index.trajectories.get(&id)) {
            tokens += u64::from(trajectory.length);
            states[state(index, group, trajectory) as usize] += 1;
        }
    }
    (states, tokens)
}

fn state(index: &Index, group: &Group, trajectory: &Trajectory) -> State {
    if !index.is_alive(group) {
        State::Gone
    } else if trajectory.finish.is_none() {
        State::Unfinished
    } else if trajectory.reward.is_none() {
        State::Finished
    } else {
        State::Scored
    }
}
