//! What can be asked of a store, wherever it is.

use k15_core::store::{
    Chunk, Column, ColumnChunk, FinishReason, Lease, Order, PromptData, RecoveryReport, Stats,
    Store, TrajectoryView,
};
use k15_core::values::Dtype;

use crate::error::Result;

/// A group: its prompt, its trajectories and the version under which it was created.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupView {
    /// The prompt's own id.
    pub prompt_id: i64,
    /// The prompt's tokens.
    pub tokens: Vec<i32>,
    /// What a right answer is.
    pub answer: String,
    /// What it is filed under.
    pub tags: Vec<String>,
    /// How hard it is.
    pub difficulty: Option<f64>,
    /// Its trajectories.
    pub members: Vec<u64>,
    /// The policy version of its creation.
    pub created_version: u32,
}

/// The calls of [`Store`], but for `sample`, whose arrays come into other memory each time. A store
/// of this process answers them, and so does a connection to one that is served.
pub trait Calls {
    /// [`Store::flush`]
    fn flush(&mut self) -> Result<()>;
    /// [`Store::add_group`]
    fn add_group(&mut self, prompt: &PromptData<'_>, k: u32, version: u32) -> Result<Vec<u64>>;
    /// [`Store::lease_among`]
    fn lease(
        &mut self,
        among: Option<&[u64]>,
        n: usize,
        now: f64,
        duration: f64,
        order: Order,
    ) -> Result<Vec<Lease>>;
    /// [`Store::release`]
    fn release(&mut self, trajectory_id: u64, epoch: u64) -> Result<()>;
    /// [`Store::append_many`]
    fn append_many(&mut self, chunks: &[Chunk<'_>], version: u32) -> Result<()>;
    /// [`Store::finish`]
    fn finish(&mut self, trajectory_id: u64, epoch: u64, reason: FinishReason) -> Result<()>;
    /// [`Store::set_reward`]
    fn set_reward(&mut self, trajectory_id: u64, reward: f32) -> Result<()>;
    /// [`Store::columns`]
    fn columns(&mut self) -> Result<Vec<Column>>;
    /// [`Store::dtype_of`]
    fn dtype_of(&mut self, name: &str) -> Result<Dtype>;
    /// [`Store::set_column_many`]
    fn set_column_many(
        &mut self,
        name: &str,
        dtype: Dtype,
        chunks: &[ColumnChunk<'_>],
    ) -> Result<()>;
    /// [`Store::mark`]
    fn mark(&mut self, version: u32) -> Result<u64>;
    /// [`Store::rewind`]
    fn rewind(&mut self, mark: u64) -> Result<()>;
    /// [`Store::drop_groups`]
    fn drop_groups(&mut self, group_ids: &[u64]) -> Result<()>;
    /// [`Store::unfinished`]
    fn unfinished(&mut self) -> Result<usize>;
    /// [`Store::pending_groups`]
    fn pending_groups(&mut self, before_version: u32) -> Result<Vec<u64>>;
    /// [`Store::groups_of_version`]
    fn groups_of_version(&mut self, version: u32) -> Result<Vec<u64>>;
    /// [`Store::complete_groups`]
    fn complete_groups(&mut self) -> Result<Vec<u64>>;
    /// [`Store::prompt_of`], [`Store::members`], [`Store::created_version`]
    fn group(&mut self, group_id: u64) -> Result<GroupView>;
    /// [`Store::trajectory`]
    fn trajectory(&mut self, trajectory_id: u64) -> Result<TrajectoryView>;
    /// [`Store::marks`]
    fn marks(&mut self) -> Result<Vec<(u64, u32)>>;
    /// [`Store::leases`]
    fn leases(&mut self) -> Result<Vec<(u64, u64, f64)>>;
    /// [`Store::stats`]
    fn stats(&mut self) -> Result<Stats>;
    /// [`Store::recovery_report`]
    fn recovery_report(&mut self) -> Result<RecoveryReport>;
}

impl Calls for Store {
    fn flush(&mut self) -> Result<()> {
        Ok(Self::flush(self)?)
    }

    fn add_group(&mut self, prompt: &PromptData<'_>, k: u32, version: u32) -> Result<Vec<u64>> {
        Ok(Self::add_group(self, prompt, k, version)?)
    }

    fn lease(
        &mut self,
        among: Option<&[u64]>,
        n: usize,
        now: f64,
        duration: f64,
        order: Order,
    ) -> Result<Vec<Lease>> {
        Ok(self.lease_among(among, n, now, duration, order)?)
    }

    fn release(&mut self, trajectory_id: u64, epoch: u64) -> Result<()> {
        Ok(Self::release(self, trajectory_id, epoch)?)
    }

    fn append_many(&mut self, chunks: &[Chunk<'_>], version: u32) -> Result<()> {
        Ok(Self::append_many(self, chunks, version)?)
    }

    fn finish(&mut self, trajectory_id: u64, epoch: u64, reason: FinishReason) -> Result<()> {
        Ok(Self::finish(self, trajectory_id, epoch, reason)?)
    }

    fn set_reward(&mut self, trajectory_id: u64, reward: f32) -> Result<()> {
        Ok(Self::set_reward(self, trajectory_id, reward)?)
    }

    fn columns(&mut self) -> Result<Vec<Column>> {
        Ok(Self::columns(self).to_vec())
    }

    fn dtype_of(&mut self, name: &str) -> Result<Dtype> {
        Ok(Self::dtype_of(self, name)?)
    }

    fn set_column_many(
        &mut self,
        name: &str,
        dtype: Dtype,
        chunks: &[ColumnChunk<'_>],
    ) -> Result<()> {
        Ok(Self::set_column_many(self, name, dtype, chunks)?)
    }

    fn mark(&mut self, version: u32) -> Result<u64> {
        Ok(Self::mark(self, version)?)
    }

    fn rewind(&mut self, mark: u64) -> Result<()> {
        Ok(Self::rewind(self, mark)?)
    }

    fn drop_groups(&mut self, group_ids: &[u64]) -> Result<()> {
        Ok(Self::drop_groups(self, group_ids)?)
    }

    fn unfinished(&mut self) -> Result<usize> {
        Ok(Self::unfinished(self))
    }

    fn pending_groups(&mut self, before_version: u32) -> Result<Vec<u64>> {
        Ok(Self::pending_groups(self, before_version))
    }

    fn groups_of_version(&mut self, version: u32) -> Result<Vec<u64>> {
        Ok(Self::groups_of_version(self, version))
    }

    fn complete_groups(&mut self) -> Result<Vec<u64>> {
        Ok(Self::complete_groups(self))
    }

    fn group(&mut self, group_id: u64) -> Result<GroupView> {
        let prompt = self.prompt_of(group_id)?;
        Ok(GroupView {
            prompt_id: prompt.prompt_id,
            tokens: prompt.tokens.to_vec(),
            answer: prompt.answer.to_owned(),
            tags: prompt.tags.iter().map(|&tag| tag.to_owned()).collect(),
            difficulty: prompt.difficulty,
            members: self.members(group_id)?,
            created_version: self.created_version(group_id)?,
        })
    }

    fn trajectory(&mut self, trajectory_id: u64) -> Result<TrajectoryView> {
        Ok(Self::trajectory(self, trajectory_id)?)
    }

    fn marks(&mut self) -> Result<Vec<(u64, u32)>> {
        Ok(Self::marks(self))
    }

    fn leases(&mut self) -> Result<Vec<(u64, u64, f64)>> {
        Ok(Self::leases(self))
    }

    fn stats(&mut self) -> Result<Stats> {
        Ok(Self::stats(self))
    }

    fn recovery_report(&mut self) -> Result<RecoveryReport> {
        Ok(Self::recovery_report(self).clone())
    }
}
