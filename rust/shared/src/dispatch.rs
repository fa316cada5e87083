//! One request to the store, and what it answers.

use std::time::Duration;

use k15_core::pack::Packed;
use k15_core::store::{
    Chunk, Column, ColumnChunk, Lease, PromptData, RecoveryReport, Sample, Stats, Store,
    TrajectoryView, Weights,
};

use crate::batch;
use crate::calls::{Calls, GroupView};
use crate::error::{Error, Result};
use crate::frame::Op;
use crate::local::LocalStore;
use crate::session::Sessions;
use crate::wire;
use crate::words::{Reader, Sink};

/// How long a request waits for room before its client hears that there is none, and asks again.
const WAIT: Duration = Duration::from_millis(50);

/// What goes back to a client.
pub enum Answer {
    Nothing,
    Number(u64),
    Ids(Vec<u64>),
    Leases(Vec<Lease>),
    Group(GroupView),
    Trajectory(TrajectoryView),
    Stats(Stats),
    Report(RecoveryReport),
    Columns(Vec<Column>),
    /// What was packed into the connection's buffers.
    Batch,
    Failed(Error),
}

impl Answer {
    pub fn write(&self, packed: &Packed, sink: &mut dyn Sink) {
        match self {
            Self::Nothing => {}
            Self::Number(number) => sink.word(*number),
            Self::Ids(ids) => sink.array(ids),
            Self::Leases(leases) => wire::put_leases(sink, leases),
            Self::Group(group) => wire::put_group(sink, group),
            Self::Trajectory(view) => wire::put_trajectory(sink, view),
            Self::Stats(stats) => wire::put_stats(sink, stats),
            Self::Report(report) => wire::put_report(sink, report),
            Self::Columns(columns) => wire::put_columns(sink, columns),
            Self::Batch => batch::put(sink, packed),
            Self::Failed(error) => wire::put_error(sink, error),
        }
    }
}

/// Who asks.
pub struct Client<'a> {
    pub store: &'a LocalStore,
    pub sessions: &'a Sessions,
    pub session: u64,
}

/// Carry out a request. What the store refuses is an answer; an error is a request that is none.
pub fn run(op: Op, from: Reader<'_>, client: &Client<'_>, packed: &mut Packed) -> Result<Answer> {
    match ask(op, from, client, packed) {
        Err(error @ Error::Malformed(_)) => Err(error),
        Err(error) => Ok(Answer::Failed(error)),
        answer => answer,
    }
}

fn ask(op: Op, mut from: Reader<'_>, client: &Client<'_>, packed: &mut Packed) -> Result<Answer> {
    let from = &mut from;
    let Client { store, sessions, session } = *client;
    Ok(match op {
        Op::Hello | Op::Fetch => return Err(Error::Malformed("not an operation of the store")),
        Op::Flush => store.with(Calls::flush).map(|()| Answer::Nothing)?,
        Op::AddGroup => add_group(from, store)?,
        Op::Append => append(from, store)?,
        Op::Sample => sample(from, store, packed)?,
        Op::Lease => {
            let (n, now, duration) = (from.small()?, float(from)?, float(from)?);
            let order = wire::order(from.word()?)?;
            let among = if from.word()? == 0 { None } else { Some(from.array::<u64>()?) };
            let leases = store.with(|store| Calls::lease(store, among, n, now, duration, order))?;
            sessions.leased(session, &leases);
            Answer::Leases(leases)
        }
        Op::Release => {
            let (id, epoch) = (from.word()?, from.word()?);
            store.with(|store| Calls::release(store, id, epoch))?;
            sessions.ended(session, id);
            Answer::Nothing
        }
        Op::Finish => {
            let (id, epoch) = (from.word()?, from.word()?);
            let reason = wire::reason(from.word()?)?;
            store.with(|store| Calls::finish(store, id, epoch, reason))?;
            sessions.ended(session, id);
            Answer::Nothing
        }
        Op::SetReward => {
            let (id, reward) = (from.word()?, f32::from_bits(from.small()?));
            store.with(|store| Calls::set_reward(store, id, reward))?;
            Answer::Nothing
        }
        Op::Mark => {
            let version = from.small()?;
            Answer::Number(store.freeing(|store| Calls::mark(store, version))?)
        }
        Op::Rewind => {
            let mark = from.word()?;
            store.freeing(|store| Calls::rewind(store, mark))?;
            Answer::Nothing
        }
        Op::DropGroups => {
            let ids = from.array::<u64>()?;
            store.freeing(|store| Calls::drop_groups(store, ids))?;
            Answer::Nothing
        }
        Op::Unfinished => Answer::Number(store.with(Calls::unfinished)? as u64),
        Op::PendingGroups => {
            let version = from.small()?;
            Answer::Ids(store.with(|store| Calls::pending_groups(store, version))?)
        }
        Op::GroupsOfVersion => {
            let version = from.small()?;
            Answer::Ids(store.with(|store| Calls::groups_of_version(store, version))?)
        }
        Op::CompleteGroups => Answer::Ids(store.with(Calls::complete_groups)?),
        Op::Group => {
            let id = from.word()?;
            Answer::Group(store.with(|store| Calls::group(store, id))?)
        }
        Op::Trajectory => {
            let id = from.word()?;
            Answer::Trajectory(store.with(|store| Calls::trajectory(store, id))?)
        }
        Op::Stats => Answer::Stats(store.with(Calls::stats)?),
        Op::RecoveryReport => Answer::Report(store.with(Calls::recovery_report)?),
        Op::Columns => Answer::Columns(store.with(Calls::columns)?),
        Op::DtypeOf => {
            let name = from.text()?;
            Answer::Number(store.with(|store| Calls::dtype_of(store, name))? as u64)
        }
        Op::SetColumn => set_column(from, store)?,
        Op::Marks => {
            let marks = store.with(Calls::marks)?;
            Answer::Ids(marks.into_iter().flat_map(|(id, version)| [id, version.into()]).collect())
        }
        Op::Leases => Answer::Ids(wire::flat_leases(&store.with(Calls::leases)?)),
    })
}

fn float(from: &mut Reader<'_>) -> Result<f64> {
    from.word().map(f64::from_bits)
}

fn add_group(from: &mut Reader<'_>, store: &LocalStore) -> Result<Answer> {
    let (k, version) = (from.small()?, from.small()?);
    let prompt = PromptData {
        prompt_id: from.word()?.cast_signed(),
        tokens: from.array()?,
        answer: from.text()?,
        tags: wire::texts(from)?,
        difficulty: from.option()?.map(f64::from_bits),
    };
    needing_room(store, |store| Calls::add_group(store, &prompt, k, version)).map(Answer::Ids)
}

fn append(from: &mut Reader<'_>, store: &LocalStore) -> Result<Answer> {
    let (version, n) = (from.small()?, from.small::<usize>()?);
    let chunk = |_| {
        Ok(Chunk {
            trajectory_id: from.word()?,
            epoch: from.word()?,
            offset: from.small()?,
            tokens: from.array()?,
            log_probs: from.array()?,
            loss_mask: if from.word()? == 0 { None } else { Some(from.array()?) },
        })
    };
    let chunks: Vec<Chunk<'_>> = (0..n).map(chunk).collect::<Result<_>>()?;
    needing_room(store, |store| Calls::append_many(store, &chunks, version))?;
    Ok(Answer::Nothing)
}

fn set_column(from: &mut Reader<'_>, store: &LocalStore) -> Result<Answer> {
    let (name, dtype) = (from.text()?, wire::dtype(from.word()?)?);
    let n = from.small::<usize>()?;
    let chunk = |_| {
        let (trajectory_id, offset) = (from.word()?, from.small()?);
        Ok(ColumnChunk { trajectory_id, offset, bytes: from.array()? })
    };
    let chunks: Vec<ColumnChunk<'_>> = (0..n).map(chunk).collect::<Result<_>>()?;
    needing_room(store, |store| Calls::set_column_many(store, name, dtype, &chunks))?;
    Ok(Answer::Nothing)
}

fn sample(from: &mut Reader<'_>, store: &LocalStore, packed: &mut Packed) -> Result<Answer> {
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (groups, tokens) = (from.option()?.map(count), from.option()?.map(count));
    let (max_staleness, version) = (from.small()?, from.small()?);
    let (strategy, seed) = (wire::strategy(from.word()?)?, from.word()?);
    let (is_chosen, columns) = (from.word()? != 0, wire::texts(from)?);
    let columns = is_chosen.then_some(columns.as_slice());
    let weights = match from.word()? {
        0 => None,
        _ => Some(Weights { prompt_ids: from.array()?, weights: from.array()? }),
    };
    let max_segment_staleness = from.option()?.map(|age| u32::try_from(age).unwrap_or(u32::MAX));
    let wanted = Sample {
        groups,
        tokens,
        max_staleness,
        version,
        strategy,
        seed,
        columns,
        weights,
        max_segment_staleness,
    };
    store.freeing(|store| Ok(store.sample(&wanted, packed)?))?;
    Ok(Answer::Batch)
}

/// With `when_full="block"`, a second try after a while. The client goes on asking, so that it can
/// stop whenever it likes.
fn needing_room<T>(store: &LocalStore, work: impl Fn(&mut Store) -> Result<T>) -> Result<T> {
    match store.with(&work) {
        Err(error) if store.blocks() && error.is_capacity() => {
            store.wait_for_room(WAIT);
            store.with(&work)
        }
        done => done,
    }
}
