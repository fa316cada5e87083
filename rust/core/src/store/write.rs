//! The writing face: groups, tokens, finishes, scores.

use std::collections::HashMap;

use super::Store;
use super::event::{self, FinishReason};
use super::group_event::{GroupEvent, PromptData};
use super::record::Kind;
use super::state::Trajectory;
use crate::error::{Error, Result};

/// Tokens for one trajectory, as [`Store::append_many`] takes them.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Whose tokens.
    pub trajectory_id: u64,
    /// The lease epoch of who brings them.
    pub epoch: u64,
    /// Their place in the response.
    pub offset: u32,
    /// The tokens.
    pub tokens: &'a [i32],
    /// Their log-probs under the policy that sampled them.
    pub log_probs: &'a [f32],
    /// 1 for a token that is trained on; all ones where none is given.
    pub loss_mask: Option<&'a [u8]>,
}

impl Store {
    /// Open k unfinished trajectories for a prompt under a policy version. Returns their ids.
    pub fn add_group(&mut self, prompt: &PromptData<'_>, k: u32, version: u32) -> Result<Vec<u64>> {
        if !(1..=MAX_MEMBERS).contains(&k) {
            return Err(Error::invalid("k", k, format!("between 1 and {MAX_MEMBERS}")));
        }
        if prompt.tokens.is_empty() {
            return Err(Error::invalid("prompt.input_ids", "empty", "at least one token"));
        }
        check_tokens("prompt.input_ids", prompt.tokens)?;
        if prompt.difficulty.is_some_and(f64::is_nan) {
            return Err(Error::invalid("prompt.difficulty", "NaN", "a number or none"));
        }
        let (group_id, first_trajectory) =
            (self.index.base.next_group, self.index.base.next_trajectory);
        let event = GroupEvent {
            group_id,
            first_trajectory,
            k,
            version,
            prompt: prompt.clone(),
            uses: Vec::new(),
            gone: None,
            members: Vec::new(),
        };
        self.write_data(Kind::Group, group_id, &[&event.encode(false)])?;
        self.acknowledge()?;
        Ok((first_trajectory..first_trajectory + u64::from(k)).collect())
    }

    /// Add tokens to a trajectory at a place of its response, under a lease.
    ///
    /// Accepted if `offset` is the response's length; does nothing if the same bytes are there
    /// already.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if `offset` is another place or other bytes are there,
    /// [`Error::LeaseExpired`] if `epoch` is not the lease that holds the trajectory,
    /// [`Error::Capacity`] if the store is full.
    #[expect(clippy::too_many_arguments, reason = "the contract's arguments, each needed")]
    pub fn append(
        &mut self,
        trajectory_id: u64,
        epoch: u64,
        offset: u32,
        tokens: &[i32],
        log_probs: &[f32],
        loss_mask: Option<&[u8]>,
        version: u32,
    ) -> Result<()> {
        let chunk = Chunk { trajectory_id, epoch, offset, tokens, log_probs, loss_mask };
        self.append_many(&[chunk], version)
    }

    /// [`Store::append`] for tokens of several trajectories, acknowledged together.
    ///
    /// All chunks are checked before the first is written. If the store is full in between, those
    /// before are there, and the same call does nothing for them when it is made again.
    pub fn append_many(&mut self, chunks: &[Chunk<'_>], version: u32) -> Result<()> {
        // The lengths that trajectories will have; of no use to a single chunk.
        let mut lengths = HashMap::new();
        let mut fresh = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            check_chunk(chunk)?;
            let (id, n) = (chunk.trajectory_id, chunk.tokens.len());
            let trajectory = self.leased(id, chunk.epoch)?;
            let length = lengths.get(&id).copied().unwrap_or(trajectory.length);
            let is_new = self.check_append(chunk, trajectory, version, length)?;
            if is_new && chunks.len() > 1 {
                lengths.insert(id, length + u32::try_from(n).unwrap_or(u32::MAX));
            }
            fresh.push(is_new && n > 0);
        }
        for (chunk, _) in chunks.iter().zip(fresh).filter(|(_, fresh)| *fresh) {
            let n = u32::try_from(chunk.tokens.len()).unwrap_or(u32::MAX);
            let fields = event::append_fields(chunk.offset, n, version);
            let (tokens, log_probs) =
                (bytemuck::cast_slice(chunk.tokens), bytemuck::cast_slice(chunk.log_probs));
            let ones = if chunk.loss_mask.is_none() { vec![1; n as usize] } else { Vec::new() };
            let mask = chunk.loss_mask.unwrap_or(&ones);
            let parts: [&[u8]; 4] = [&fields, tokens, log_probs, mask];
            self.write_data(Kind::Append, chunk.trajectory_id, &parts)?;
        }
        self.acknowledge()
    }

    /// End a trajectory. With [`FinishReason::Abort`] its tokens are discarded and it is unfinished
    /// again, free for the next lease; a group is never completed by an aborted response. What
    /// must not be tried again is for [`Store::drop_groups`].
    pub fn finish(&mut self, trajectory_id: u64, epoch: u64, reason: FinishReason) -> Result<()> {
        let trajectory = self.leased(trajectory_id, epoch)?;
        if let Some((there, _)) = trajectory.finish {
            let (is_ours, name) = (trajectory.finished_by == Some(epoch), there.name());
            return match is_ours {
                true if there == reason => Ok(()),
                true => Err(Error::Conflict(format!(
                    "trajectory {trajectory_id} is finished already, with reason {name}"
                ))),
                false => Err(Error::LeaseExpired(format!(
                    "trajectory {trajectory_id}: epoch {epoch} was shown, but it is finished \
                     already, with reason {name}"
                ))),
            };
        }
        check_lease(trajectory_id, trajectory, epoch)?;
        if reason == FinishReason::Abort {
            self.write_control(Kind::Abort, trajectory_id, &[])?;
        } else {
            let code = u64::from(reason as u8).to_le_bytes();
            self.write_control(Kind::Finish, trajectory_id, &code)?;
            self.index.hold(trajectory_id, None);
            if let Some(trajectory) = self.index.trajectories.get_mut(&trajectory_id) {
                trajectory.finished_by = Some(epoch);
            }
        }
        self.acknowledge()
    }

    /// Record the score of a finished trajectory. The same score again does nothing.
    pub fn set_reward(&mut self, trajectory_id: u64, reward: f32) -> Result<()> {
        if !reward.is_finite() {
            return Err(Error::invalid("reward", reward, "a finite number"));
        }
        let trajectory = self.trajectory_of(trajectory_id)?;
        if trajectory.finish.is_none() {
            return Err(Error::Conflict(format!(
                "trajectory {trajectory_id} is not finished: it has no score yet"
            )));
        }
        match trajectory.reward {
            Some((there, _)) if there == reward => return Ok(()),
            Some((there, _)) => {
                return Err(Error::Conflict(format!(
                    "trajectory {trajectory_id} has the reward {there} already, not {reward}"
                )));
            }
            None => self.write_control(Kind::Reward, trajectory_id, &reward.to_le_bytes())?,
        }
        self.acknowledge()
    }

    pub(super) fn trajectory_of(&self, id: u64) -> Result<&Trajectory> {
        self.index.trajectories.get(&id).ok_or_else(|| {
            let next = self.index.base.next_trajectory;
            let why = if id < next {
                "one whose group is not used up, dropped or evicted".into()
            } else {
                format!("an id below {next}, the next that will be given")
            };
            Error::invalid("trajectory_id", id, why)
        })
    }

    /// The trajectory that a lease was for. One that is gone was finished by another holder: to the
    /// late one that is a lease that is over, not an id that it should not have shown.
    pub(super) fn leased(&self, id: u64, epoch: u64) -> Result<&Trajectory> {
        if id < self.index.base.next_trajectory && !self.index.trajectories.contains_key(&id) {
            return Err(Error::LeaseExpired(format!(
                "trajectory {id}: epoch {epoch} was shown, but its group is used up, dropped or \
                 evicted"
            )));
        }
        self.trajectory_of(id)
    }

    /// Whether the chunk is new (true) or there already (false); an error if it is neither.
    fn check_append(
        &self,
        chunk: &Chunk<'_>,
        trajectory: &Trajectory,
        version: u32,
        length: u32,
    ) -> Result<bool> {
        let id = chunk.trajectory_id;
        if trajectory.finish.is_none() || trajectory.finished_by != Some(chunk.epoch) {
            check_lease(id, trajectory, chunk.epoch)?;
        }
        let conflict = |what: String| Err(Error::Conflict(format!("trajectory {id}: {what}")));
        let (offset, n) = (chunk.offset, chunk.tokens.len());
        if offset > length {
            return conflict(format!("offset {offset} leaves a gap after its {length} tokens"));
        }
        if offset < length || n == 0 {
            if offset as usize + n <= length as usize
                && self.is_there(chunk, trajectory, version)?
            {
                return Ok(false);
            }
            return conflict(format!(
                "offset {offset} is not its length {length}, and the tokens there are not these"
            ));
        }
        if trajectory.finish.is_some() {
            return conflict("it is finished and takes no more tokens".into());
        }
        if u32::try_from(length as usize + n).is_err() || length as usize + n > MAX_RESPONSE {
            return conflict(format!("a response holds at most {MAX_RESPONSE} tokens"));
        }
        let created = self.index.groups.get(&trajectory.group_id).map_or(0, |group| group.version);
        let last = trajectory.chunks.last().map_or(created, |chunk| chunk.version);
        if version < last {
            return Err(Error::invalid(
                "version",
                version,
                format!("at least {last}, the version of what trajectory {id} already is"),
            ));
        }
        Ok(true)
    }

    /// Whether the bytes of a chunk, and its version, are what is stored at its place.
    fn is_there(&self, chunk: &Chunk<'_>, trajectory: &Trajectory, version: u32) -> Result<bool> {
        let (mut at, mut start) = (chunk.offset as usize, 0);
        let end = at + chunk.tokens.len();
        for stored in &trajectory.chunks {
            let stop = start + stored.n as usize;
            if at < stop && at < end {
                let (tokens, log_probs, mask) = self.arrays(stored)?;
                let (here, there) = (at - chunk.offset as usize, at - start);
                let n = stop.min(end) - at;
                let bits =
                    |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
                let same_mask = match chunk.loss_mask {
                    Some(given) => given[here..here + n] == mask[there..there + n],
                    None => mask[there..there + n].iter().all(|&one| one == 1),
                };
                if stored.version != version
                    || chunk.tokens[here..here + n] != tokens[there..there + n]
                    || bits(&chunk.log_probs[here..here + n]) != bits(&log_probs[there..there + n])
                    || !same_mask
                {
                    return Ok(false);
                }
                at += n;
            }
            start = stop;
        }
        Ok(at >= end)
    }
}

/// The most responses of a group. Each takes memory as soon as the group is there, so a number that
/// was meant for something else must not be believed.
pub(super) const MAX_MEMBERS: u32 = 1 << 16;

/// The most tokens of a response: positions are int32.
const MAX_RESPONSE: usize = 1 << 30;

pub(super) fn check_lease(id: u64, trajectory: &Trajectory, epoch: u64) -> Result<()> {
    match trajectory.holder {
        Some(holder) if holder.epoch == epoch => Ok(()),
        Some(holder) => Err(Error::LeaseExpired(format!(
            "trajectory {id}: epoch {epoch} was shown, but the lease is now {}: another worker \
             holds it",
            holder.epoch
        ))),
        None => Err(Error::LeaseExpired(format!(
            "trajectory {id}: epoch {epoch} was shown, but nobody holds it: the lease was \
             released, or ended with a finish, a rewind or a restart of the store"
        ))),
    }
}

fn check_chunk(chunk: &Chunk<'_>) -> Result<()> {
    let n = chunk.tokens.len();
    if chunk.log_probs.len() != n {
        return Err(Error::invalid(
            "log_probs",
            format!("{} entries", chunk.log_probs.len()),
            format!("{n}, one for each of tokens"),
        ));
    }
    if let Some(mask) = chunk.loss_mask {
        if mask.len() != n {
            return Err(Error::invalid(
                "loss_mask",
                format!("{} entries", mask.len()),
                format!("{n}, one for each of tokens"),
            ));
        }
        if let Some(at) = first(mask, |&entry| entry > 1) {
            return Err(Error::invalid("loss_mask", format!("{} at {at}", mask[at]), "0 or 1"));
        }
    }
    if let Some(at) = first(chunk.log_probs, |p| !p.is_finite()) {
        let value = format!("{} at {at}", chunk.log_probs[at]);
        return Err(Error::invalid("log_probs", value, "finite numbers"));
    }
    check_tokens("tokens", chunk.tokens)
}

fn check_tokens(field: &'static str, tokens: &[i32]) -> Result<()> {
    match first(tokens, |&token| token < 0) {
        Some(at) => {
            Err(Error::invalid(field, format!("{} at {at}", tokens[at]), "token ids of at least 0"))
        }
        None => Ok(()),
    }
}

/// The place of the first value that is `wrong`. Looks at all of a block before it decides: a loop that may
/// end at each value cannot be made of vectors, and costs as much as copying the values.
fn first<T>(values: &[T], wrong: impl Fn(&T) -> bool) -> Option<usize> {
    const BLOCK: usize = 256;
    let any = |block: &[T]| block.iter().fold(false, |any, value| any | wrong(value));
    let block = values.chunks(BLOCK).position(any)?;
    let start = block * BLOCK;
    values[start..].iter().position(wrong).map(|at| start + at)
}
