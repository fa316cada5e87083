//! Claims on unfinished trajectories.

use std::collections::BTreeSet;

use super::Store;
use super::record::Kind;
use super::state::Holder;
use super::write::check_lease;
use crate::error::{Error, Result};

/// Which unfinished trajectories are leased first; ties go to the lower trajectory id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Created first.
    Oldest,
    /// With the oldest token; those without tokens come last.
    Stalest,
    /// With the longest response.
    Longest,
}

impl Order {
    /// The order of a name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "oldest" => Ok(Self::Oldest),
            "stalest" => Ok(Self::Stalest),
            "longest" => Ok(Self::Longest),
            _ => Err(Error::invalid("order", format!("{name:?}"), "oldest, stalest or longest")),
        }
    }
}

/// A worker's claim on an unfinished trajectory.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Whose.
    pub trajectory_id: u64,
    /// The fencing token, never given before.
    pub epoch: u64,
    /// From when on another worker may claim it.
    pub deadline: f64,
    /// Prompt and response so far.
    pub input_ids: Vec<i32>,
    /// Tokens of the prompt.
    pub prompt_length: usize,
    /// The policy version of each token, 0 on the prompt.
    pub versions: Vec<u32>,
}

impl Store {
    /// Claim up to `n` unfinished trajectories that nobody holds at `now`, for `duration` (both in
    /// the caller's seconds). Epochs grow over the whole life of the store, so an epoch of an
    /// earlier opener, or of before a rewind, never fits again.
    pub fn lease(&mut self, n: usize, now: f64, duration: f64, order: Order) -> Result<Vec<Lease>> {
        self.lease_among(None, n, now, duration, order)
    }

    /// [`Store::lease`] for none but some trajectories: those of them that are finished or held are passed
    /// over.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for an id that the store does not know.
    pub fn lease_among(
        &mut self,
        among: Option<&[u64]>,
        n: usize,
        now: f64,
        duration: f64,
        order: Order,
    ) -> Result<Vec<Lease>> {
        if !now.is_finite() {
            return Err(Error::invalid("now", now, "a finite number of seconds"));
        }
        if !(duration > 0.0 && duration.is_finite()) {
            return Err(Error::invalid("duration", duration, "a finite number of seconds above 0"));
        }
        self.index.set_clock(now);
        let free: Vec<u64> = match among {
            None => self.index.queue.free(order).take(n).collect(),
            Some(ids) => {
                let known = ids.iter().map(|id| Ok((*id, self.trajectory_of(*id)?.place)));
                let keys: BTreeSet<(u32, u64)> = known
                    .filter_map(|found| {
                        found.map(|(id, place)| Some((place.key(order)?, id))).transpose()
                    })
                    .collect::<Result<_>>()?;
                keys.into_iter().map(|(_, id)| id).take(n).collect()
            }
        };
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.index.base.next_epoch;
        let next = first + free.len() as u64;
        self.write_control(Kind::Claim, 0, &next.to_le_bytes())?;
        self.acknowledge()?;
        let deadline = now + duration;
        let mut leases = Vec::with_capacity(free.len());
        for (epoch, id) in (first..).zip(free) {
            self.index.hold(id, Some(Holder { epoch, deadline }));
            let (input_ids, versions, prompt_length) = self.tokens_of(id)?;
            leases.push(Lease {
                trajectory_id: id,
                epoch,
                deadline,
                input_ids,
                prompt_length,
                versions,
            });
        }
        Ok(leases)
    }

    /// Give a lease back before its deadline.
    pub fn release(&mut self, trajectory_id: u64, epoch: u64) -> Result<()> {
        check_lease(trajectory_id, self.leased(trajectory_id, epoch)?, epoch)?;
        self.index.hold(trajectory_id, None);
        Ok(())
    }

    /// Who holds what: trajectory id, epoch and deadline of each lease, the earliest first.
    /// One whose deadline has passed is held until another claim takes it.
    pub fn leases(&self) -> Vec<(u64, u64, f64)> {
        let held = |id| {
            let holder = self.index.trajectories.get(&id)?.holder?;
            Some((id, holder.epoch, holder.deadline))
        };
        self.index.queue.held().filter_map(held).collect()
    }

    /// Prompt and response so far, the versions of both, and the prompt's length.
    fn tokens_of(&self, id: u64) -> Result<(Vec<i32>, Vec<u32>, usize)> {
        let trajectory = self.trajectory_of(id)?;
        let mut tokens = self.prompt_of(trajectory.group_id)?.tokens.to_vec();
        let prompt_length = tokens.len();
        let mut versions = vec![0; prompt_length];
        for chunk in &trajectory.chunks {
            tokens.extend_from_slice(self.arrays(chunk)?.0);
            versions.resize(tokens.len(), chunk.version);
        }
        Ok((tokens, versions, prompt_length))
    }
}
