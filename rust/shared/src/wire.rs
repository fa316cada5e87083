//! What the store takes and gives, as words.

use k15_core::store::{
    Column, FinishReason, Lease, Order, RecoveryReport, State, Stats, Strategy, TornTail,
    TrajectoryView,
};
use k15_core::values::{Dtype, Values};

use crate::calls::GroupView;
use crate::error::{Error, Kind, Result};
use crate::words::{Reader, Sink};

/// A value with a place in a short list, from that place.
fn one_of<T: Copy>(all: &[T], code: u64) -> Result<T> {
    let found = usize::try_from(code).ok().and_then(|place| all.get(place));
    found.copied().ok_or(Error::Malformed("a code that this version does not know"))
}

const ORDERS: [Order; 3] = [Order::Oldest, Order::Stalest, Order::Longest];
const STRATEGIES: [Strategy; 3] = [Strategy::Fifo, Strategy::Uniform, Strategy::Priority];
const STATES: [State; 4] = [State::Unfinished, State::Finished, State::Scored, State::Gone];
const REASONS: [FinishReason; 4] =
    [FinishReason::Stop, FinishReason::Length, FinishReason::Repetition, FinishReason::Abort];

pub fn order_code(order: Order) -> u64 {
    order as u64
}

pub fn order(code: u64) -> Result<Order> {
    one_of(&ORDERS, code)
}

pub fn strategy_code(strategy: Strategy) -> u64 {
    strategy as u64
}

pub fn strategy(code: u64) -> Result<Strategy> {
    one_of(&STRATEGIES, code)
}

pub fn reason_code(reason: FinishReason) -> u64 {
    reason as u64
}

pub fn reason(code: u64) -> Result<FinishReason> {
    one_of(&REASONS, code)
}

pub fn put_texts(sink: &mut dyn Sink, texts: &[impl AsRef<str>]) {
    sink.word(texts.len() as u64);
    for text in texts {
        sink.text(text.as_ref());
    }
}

pub fn texts<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a str>> {
    let n = reader.small::<usize>()?;
    // Each takes a word at least: a count that cannot be is found before memory is asked for.
    (0..n).map(|_| reader.text()).collect()
}

pub fn put_error(sink: &mut dyn Sink, error: &Error) {
    sink.word(error.kind() as u64);
    sink.option(error.errno().map(|number| u64::from(number.unsigned_abs())));
    sink.text(&error.to_string());
}

pub fn error(reader: &mut Reader<'_>) -> Result<Error> {
    let kind = Kind::from_code(reader.word()?);
    let errno = reader.option()?.and_then(|number| i32::try_from(number).ok());
    Ok(Error::Remote { kind, errno, message: reader.text()?.to_owned() })
}

pub fn put_leases(sink: &mut dyn Sink, leases: &[Lease]) {
    sink.word(leases.len() as u64);
    for lease in leases {
        sink.word(lease.trajectory_id);
        sink.word(lease.epoch);
        sink.word(lease.deadline.to_bits());
        sink.word(lease.prompt_length as u64);
        sink.array(&lease.input_ids);
        sink.array(&lease.versions);
    }
}

pub fn leases(reader: &mut Reader<'_>) -> Result<Vec<Lease>> {
    let n = reader.small::<usize>()?;
    let lease = |_| {
        Ok(Lease {
            trajectory_id: reader.word()?,
            epoch: reader.word()?,
            deadline: f64::from_bits(reader.word()?),
            prompt_length: reader.small()?,
            input_ids: reader.array()?.to_vec(),
            versions: reader.array()?.to_vec(),
        })
    };
    (0..n).map(lease).collect()
}

/// Marks, two words each.
pub fn marks(reader: &mut Reader<'_>) -> Result<Vec<(u64, u32)>> {
    let mark = |&[id, version]: &[u64; 2]| {
        let version = u32::try_from(version);
        Ok((id, version.map_err(|_| Error::Malformed("a version that is none"))?))
    };
    let (marks, rest) = reader.array::<u64>()?.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::Malformed("counts of another number"));
    }
    marks.iter().map(mark).collect()
}

/// Who holds what, three words a lease.
pub fn flat_leases(held: &[(u64, u64, f64)]) -> Vec<u64> {
    held.iter().flat_map(|&(id, epoch, deadline)| [id, epoch, deadline.to_bits()]).collect()
}

pub fn held_leases(reader: &mut Reader<'_>) -> Result<Vec<(u64, u64, f64)>> {
    let (held, rest) = reader.array::<u64>()?.as_chunks::<3>();
    if !rest.is_empty() {
        return Err(Error::Malformed("counts of another number"));
    }
    Ok(held.iter().map(|&[id, epoch, deadline]| (id, epoch, f64::from_bits(deadline))).collect())
}

pub fn put_group(sink: &mut dyn Sink, group: &GroupView) {
    sink.word(group.prompt_id.cast_unsigned());
    sink.array(&group.tokens);
    sink.text(&group.answer);
    put_texts(sink, &group.tags);
    sink.option(group.difficulty.map(f64::to_bits));
    sink.array(&group.members);
    sink.word(group.created_version.into());
}

pub fn group(reader: &mut Reader<'_>) -> Result<GroupView> {
    Ok(GroupView {
        prompt_id: reader.word()?.cast_signed(),
        tokens: reader.array()?.to_vec(),
        answer: reader.text()?.to_owned(),
        tags: texts(reader)?.into_iter().map(str::to_owned).collect(),
        difficulty: reader.option()?.map(f64::from_bits),
        members: reader.array()?.to_vec(),
        created_version: reader.small()?,
    })
}

pub fn put_trajectory(sink: &mut dyn Sink, view: &TrajectoryView) {
    sink.word(view.group_id);
    sink.word(view.prompt_id.cast_unsigned());
    sink.word(view.state as u64);
    sink.option(view.holder.map(|(epoch, _)| epoch));
    sink.option(view.holder.map(|(_, deadline)| deadline.to_bits()));
    sink.option(view.finish_reason.map(reason_code));
    sink.option(view.reward.map(|reward| reward.to_bits().into()));
    sink.array(&view.prompt_tokens);
    sink.array(&view.tokens);
    sink.array(&view.log_probs);
    sink.array(&view.loss_mask);
    sink.array(&view.versions);
    sink.word(view.columns.len() as u64);
    for (name, values) in &view.columns {
        sink.text(name);
        sink.word(values.dtype() as u64);
        sink.array(values.bytes());
    }
}

pub fn dtype(code: u64) -> Result<Dtype> {
    let found = u8::try_from(code).ok().and_then(Dtype::from_code);
    found.ok_or(Error::Malformed("a type that this version does not know"))
}

fn values(reader: &mut Reader<'_>) -> Result<Values> {
    let dtype = dtype(reader.word()?)?;
    let bytes = reader.array::<u8>()?;
    let mut values = Values::zeros(dtype, bytes.len() / dtype.width());
    if values.bytes().len() != bytes.len() {
        return Err(Error::Malformed("values that are cut off"));
    }
    values.bytes_mut().copy_from_slice(bytes);
    Ok(values)
}

pub fn put_columns(sink: &mut dyn Sink, columns: &[Column]) {
    sink.word(columns.len() as u64);
    for column in columns {
        sink.text(&column.name);
        sink.word(column.dtype as u64);
    }
}

pub fn columns(reader: &mut Reader<'_>) -> Result<Vec<Column>> {
    let n = reader.small::<usize>()?;
    let column = |_| Ok(Column { name: reader.text()?.to_owned(), dtype: dtype(reader.word()?)? });
    (0..n).map(column).collect()
}

pub fn trajectory(reader: &mut Reader<'_>) -> Result<TrajectoryView> {
    let (group_id, prompt_id) = (reader.word()?, reader.word()?.cast_signed());
    let state = one_of(&STATES, reader.word()?)?;
    let (epoch, deadline) = (reader.option()?, reader.option()?.map(f64::from_bits));
    let finish_reason = reader.option()?.map(reason).transpose()?;
    let reward = reader.option()?.and_then(|bits| u32::try_from(bits).ok()).map(f32::from_bits);
    let mut view = TrajectoryView {
        group_id,
        prompt_id,
        state,
        holder: epoch.zip(deadline),
        finish_reason,
        reward,
        prompt_tokens: reader.array()?.to_vec(),
        tokens: reader.array()?.to_vec(),
        log_probs: reader.array()?.to_vec(),
        loss_mask: reader.array()?.to_vec(),
        versions: reader.array()?.to_vec(),
        columns: Vec::new(),
    };
    for _ in 0..reader.word()? {
        view.columns.push((reader.text()?.to_owned(), values(reader)?));
    }
    Ok(view)
}

pub fn put_stats(sink: &mut dyn Sink, stats: &Stats) {
    let &Stats { trajectories, groups, groups_ready, groups_gone, tokens, .. } = stats;
    sink.array(&trajectories);
    sink.array(&[groups, groups_ready, groups_gone, tokens]);
    sink.array(&[stats.bytes_live, stats.bytes_written, stats.bytes_allocated]);
    sink.array(&[stats.capacity_bytes, stats.files, stats.spare_files]);
}

pub fn stats(reader: &mut Reader<'_>) -> Result<Stats> {
    fn exactly<const N: usize>(reader: &mut Reader<'_>) -> Result<[u64; N]> {
        reader.array()?.try_into().map_err(|_| Error::Malformed("counts of another number"))
    }
    let trajectories = exactly(reader)?;
    let [groups, groups_ready, groups_gone, tokens] = exactly(reader)?;
    let [bytes_live, bytes_written, bytes_allocated] = exactly(reader)?;
    let [capacity_bytes, files, spare_files] = exactly(reader)?;
    Ok(Stats {
        trajectories,
        groups,
        groups_ready,
        groups_gone,
        tokens,
        bytes_live,
        bytes_written,
        bytes_allocated,
        capacity_bytes,
        files,
        spare_files,
    })
}

pub fn put_report(sink: &mut dyn Sink, report: &RecoveryReport) {
    sink.array(&[report.files, report.records, report.bytes]);
    sink.word(u64::from(report.torn.is_some()));
    if let Some(torn) = &report.torn {
        sink.text(&torn.file);
        sink.array(&[torn.offset, torn.bytes]);
        sink.text(&torn.record);
    }
}

pub fn report(reader: &mut Reader<'_>) -> Result<RecoveryReport> {
    let &[files, records, bytes] = reader.array::<u64>()? else {
        return Err(Error::Malformed("counts of another number"));
    };
    let torn = if reader.word()? == 0 {
        None
    } else {
        let file = reader.text()?.to_owned();
        let &[offset, bytes] = reader.array::<u64>()? else {
            return Err(Error::Malformed("counts of another number"));
        };
        Some(TornTail { file, offset, bytes, record: reader.text()?.to_owned() })
    };
    Ok(RecoveryReport { files, records, bytes, torn })
}
