//! The calls of the store over a connection.

use k15_core::store::{
    Chunk, Column, ColumnChunk, FinishReason, Lease, Order, PromptData, RecoveryReport, Sample,
    Stats, TrajectoryView,
};
use k15_core::values::Dtype;

use crate::batch::{self, SharedBatch};
use crate::calls::{Calls, GroupView};
use crate::connection::Connection;
use crate::error::Result;
use crate::frame::Op;
use crate::wire;
use crate::words::Sink;

impl Connection {
    /// Take groups, as [`k15_core::store::Store::sample`] does: the batch stays in shared memory.
    pub fn sample(&mut self, wanted: &Sample<'_>) -> Result<SharedBatch> {
        let count = |n: Option<usize>| n.map(|n| n as u64);
        let (memory, words) = self.call_in_place(Op::Sample, &|sink| {
            sink.option(count(wanted.groups));
            sink.option(count(wanted.tokens));
            sink.word(wanted.max_staleness.into());
            sink.word(wanted.version.into());
            sink.word(wire::strategy_code(wanted.strategy));
            sink.word(wanted.seed);
            sink.word(u64::from(wanted.columns.is_some()));
            wire::put_texts(sink, wanted.columns.unwrap_or_default());
            sink.word(u64::from(wanted.weights.is_some()));
            if let Some(weights) = wanted.weights {
                sink.array(weights.prompt_ids);
                sink.array(weights.weights);
            }
            sink.option(wanted.max_segment_staleness.map(u64::from));
        })?;
        batch::find(memory, words)
    }

    fn done(&mut self, op: Op, arguments: &[u64]) -> Result<()> {
        self.call(op, &|sink| put(sink, arguments)).map(|_| ())
    }

    fn number(&mut self, op: Op, arguments: &[u64]) -> Result<u64> {
        self.call(op, &|sink| put(sink, arguments))?.word()
    }

    fn ids(&mut self, op: Op, arguments: &[u64]) -> Result<Vec<u64>> {
        Ok(self.call(op, &|sink| put(sink, arguments))?.array()?.to_vec())
    }
}

fn put(sink: &mut dyn Sink, words: &[u64]) {
    for word in words {
        sink.word(*word);
    }
}

impl Calls for Connection {
    fn flush(&mut self) -> Result<()> {
        self.done(Op::Flush, &[])
    }

    fn add_group(&mut self, prompt: &PromptData<'_>, k: u32, version: u32) -> Result<Vec<u64>> {
        let mut answer = self.call(Op::AddGroup, &|sink| {
            put(sink, &[k.into(), version.into(), prompt.prompt_id.cast_unsigned()]);
            sink.array(prompt.tokens);
            sink.text(prompt.answer);
            wire::put_texts(sink, &prompt.tags);
            sink.option(prompt.difficulty.map(f64::to_bits));
        })?;
        Ok(answer.array()?.to_vec())
    }

    fn lease(
        &mut self,
        among: Option<&[u64]>,
        n: usize,
        now: f64,
        duration: f64,
        order: Order,
    ) -> Result<Vec<Lease>> {
        let arguments = [n as u64, now.to_bits(), duration.to_bits(), wire::order_code(order)];
        wire::leases(&mut self.call(Op::Lease, &|sink| {
            put(sink, &arguments);
            sink.word(u64::from(among.is_some()));
            if let Some(ids) = among {
                sink.array(ids);
            }
        })?)
    }

    fn release(&mut self, trajectory_id: u64, epoch: u64) -> Result<()> {
        self.done(Op::Release, &[trajectory_id, epoch])
    }

    fn append_many(&mut self, chunks: &[Chunk<'_>], version: u32) -> Result<()> {
        self.call(Op::Append, &|sink| {
            put(sink, &[version.into(), chunks.len() as u64]);
            for chunk in chunks {
                put(sink, &[chunk.trajectory_id, chunk.epoch, chunk.offset.into()]);
                sink.array(chunk.tokens);
                sink.array(chunk.log_probs);
                sink.word(u64::from(chunk.loss_mask.is_some()));
                if let Some(mask) = chunk.loss_mask {
                    sink.array(mask);
                }
            }
        })?;
        Ok(())
    }

    fn finish(&mut self, trajectory_id: u64, epoch: u64, reason: FinishReason) -> Result<()> {
        self.done(Op::Finish, &[trajectory_id, epoch, wire::reason_code(reason)])
    }

    fn set_reward(&mut self, trajectory_id: u64, reward: f32) -> Result<()> {
        self.done(Op::SetReward, &[trajectory_id, reward.to_bits().into()])
    }

    fn columns(&mut self) -> Result<Vec<Column>> {
        wire::columns(&mut self.call(Op::Columns, &|_| {})?)
    }

    fn dtype_of(&mut self, name: &str) -> Result<Dtype> {
        wire::dtype(self.call(Op::DtypeOf, &|sink| sink.text(name))?.word()?)
    }

    fn set_column_many(
        &mut self,
        name: &str,
        dtype: Dtype,
        chunks: &[ColumnChunk<'_>],
    ) -> Result<()> {
        self.call(Op::SetColumn, &|sink| {
            sink.text(name);
            put(sink, &[dtype as u64, chunks.len() as u64]);
            for chunk in chunks {
                put(sink, &[chunk.trajectory_id, chunk.offset.into()]);
                sink.array(chunk.bytes);
            }
        })?;
        Ok(())
    }

    fn mark(&mut self, version: u32) -> Result<u64> {
        self.number(Op::Mark, &[version.into()])
    }

    fn rewind(&mut self, mark: u64) -> Result<()> {
        self.done(Op::Rewind, &[mark])
    }

    fn drop_groups(&mut self, group_ids: &[u64]) -> Result<()> {
        self.call(Op::DropGroups, &|sink| sink.array(group_ids)).map(|_| ())
    }

    fn unfinished(&mut self) -> Result<usize> {
        self.call(Op::Unfinished, &|_| {})?.small()
    }

    fn pending_groups(&mut self, before_version: u32) -> Result<Vec<u64>> {
        self.ids(Op::PendingGroups, &[before_version.into()])
    }

    fn groups_of_version(&mut self, version: u32) -> Result<Vec<u64>> {
        self.ids(Op::GroupsOfVersion, &[version.into()])
    }

    fn complete_groups(&mut self) -> Result<Vec<u64>> {
        self.ids(Op::CompleteGroups, &[])
    }

    fn group(&mut self, group_id: u64) -> Result<GroupView> {
        wire::group(&mut self.call(Op::Group, &|sink| sink.word(group_id))?)
    }

    fn trajectory(&mut self, trajectory_id: u64) -> Result<TrajectoryView> {
        wire::trajectory(&mut self.call(Op::Trajectory, &|sink| sink.word(trajectory_id))?)
    }

    fn marks(&mut self) -> Result<Vec<(u64, u32)>> {
        wire::marks(&mut self.call(Op::Marks, &|_| {})?)
    }

    fn leases(&mut self) -> Result<Vec<(u64, u64, f64)>> {
        wire::held_leases(&mut self.call(Op::Leases, &|_| {})?)
    }

    fn stats(&mut self) -> Result<Stats> {
        wire::stats(&mut self.call(Op::Stats, &|_| {})?)
    }

    fn recovery_report(&mut self) -> Result<RecoveryReport> {
        wire::report(&mut self.call(Op::RecoveryReport, &|_| {})?)
    }
}
