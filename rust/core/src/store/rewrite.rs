//! Writing groups again at the end of the log, so that the oldest file can be freed.
//!
//! # Design
//!
//! Space is freed at the old end of the log, so one long-lived group would hold up everything behind
//! it. When enough of the log is garbage, the groups that the oldest file still holds are written
//! again: prompt and state, tokens, a last record. Only with the last record does the new place
//! count, so a crash in between changes nothing. Tokens of one version that came in small pieces
//! come out in large ones.

use super::Store;
use super::event::{self, APPEND_FIELDS, GroupEvent, MovedState};
use super::index::{Chunk, Group};
use super::record::Kind;
use crate::error::Result;

/// Garbage that makes rewriting worth it: a file and a half, and an eighth of what is written, so
/// that a byte is moved at most about eight times for a byte gained.
const WORTH_FILES: (u64, u64) = (3, 2);
const WORTH_SHARE: u64 = 8;

impl Store {
    /// Free the oldest file by moving what it still holds; false if that would not be worth it or
    /// does not fit into what is left.
    pub(super) fn rewrite_oldest(&mut self, spared: u64) -> Result<bool> {
        let Some(oldest) = self.log.files.front().filter(|_| self.log.files.len() > 1) else {
            return Ok(false);
        };
        let (oldest, file_bytes) = (oldest.sequence, self.log.file_bytes as u64);
        let written: u64 = self.log.files.iter().map(|file| file.end as u64).sum();
        let garbage = written.saturating_sub(self.index.live.values().sum());
        let worth = (file_bytes * WORTH_FILES.0 / WORTH_FILES.1).max(written / WORTH_SHARE);
        if garbage < worth {
            return Ok(false);
        }
        let in_oldest = |group: &Group| group.bytes_in.iter().any(|(file, _)| *file == oldest);
        let groups = self.index.groups.iter().filter(|(_, group)| in_oldest(group));
        let groups: Vec<u64> = groups.map(|(id, _)| *id).collect();
        let bytes: u64 =
            groups.iter().filter_map(|id| self.index.groups.get(id)).map(Group::bytes).sum();
        // Half of each file may stay empty behind a large record; the last file is for control.
        let room = self.files_left().saturating_sub(u64::from(spared == 0)) * file_bytes / 2;
        let largest = self.log.largest_payload(self.index.base.encode().len());
        for id in &groups {
            if bytes > room || self.has_discarded(*id) || self.moved_head(*id)?.0.len() > largest {
                return Ok(false);
            }
        }
        for id in groups {
            self.rewrite(id)?;
        }
        self.recycle()?;
        Ok(true)
    }

    /// What aborts discarded can only come back from where it is.
    fn has_discarded(&self, group_id: u64) -> bool {
        self.index.groups.get(&group_id).is_some_and(|group| {
            group
                .members()
                .any(|id| self.index.trajectories.get(&id).is_some_and(|t| !t.discarded.is_empty()))
        })
    }

    fn rewrite(&mut self, group_id: u64) -> Result<()> {
        let (head, first, members) = self.moved_head(group_id)?;
        self.put(Kind::MovedGroup, group_id, &[&head])?;
        let largest = self.log.largest_payload(self.index.base.encode().len());
        let most = (largest - APPEND_FIELDS) / 9;
        for (trajectory_id, chunks) in (first..).zip(members) {
            let (mut run, mut version, mut offset) = (Run::default(), 0, 0);
            for chunk in &chunks {
                let n = chunk.n as usize;
                // Files may have been larger when the piece was written.
                for from in (0..n).step_by(most) {
                    let part = from..n.min(from + most);
                    if chunk.version != version || run.tokens.len() + part.len() > most {
                        offset = self.put_run(trajectory_id, offset, version, &mut run)?;
                        version = chunk.version;
                    }
                    let (tokens, log_probs, mask) = self.columns(chunk)?;
                    run.tokens.extend_from_slice(&tokens[part.clone()]);
                    run.log_probs.extend_from_slice(&log_probs[part.clone()]);
                    run.mask.extend_from_slice(&mask[part]);
                }
            }
            self.put_run(trajectory_id, offset, version, &mut run)?;
        }
        self.put(Kind::MovedEnd, group_id, &[])
    }

    /// The record of a group with its state, its first trajectory and where its tokens lie.
    fn moved_head(&self, group_id: u64) -> Result<(Vec<u8>, u64, Vec<Vec<Chunk>>)> {
        let group = self.group_of(group_id)?;
        let (mut states, mut chunks) = (Vec::new(), Vec::new());
        for id in group.members() {
            let trajectory = self.trajectory_of(id)?;
            states.push(MovedState { finish: trajectory.finish, reward: trajectory.reward });
            chunks.push(trajectory.chunks.clone());
        }
        let event = GroupEvent {
            group_id,
            first_trajectory: group.first_trajectory,
            k: group.k,
            version: group.version,
            prompt: self.prompt_of(group_id)?,
            uses: group.uses.clone(),
            gone: group.gone,
            members: states,
        };
        Ok((event.encode(true), group.first_trajectory, chunks))
    }

    /// Write what a run has gathered, and empty it. Returns the offset behind it.
    fn put_run(&mut self, id: u64, offset: u32, version: u32, run: &mut Run) -> Result<u32> {
        let n = u32::try_from(run.tokens.len()).unwrap_or(u32::MAX);
        if n > 0 {
            let fields = event::append_fields(offset, n, version);
            let (tokens, log_probs) =
                (bytemuck::cast_slice(&run.tokens), bytemuck::cast_slice(&run.log_probs));
            self.put(Kind::MovedAppend, id, &[&fields, tokens, log_probs, &run.mask])?;
        }
        *run = Run::default();
        Ok(offset + n)
    }

    fn put(&mut self, kind: Kind, subject: u64, parts: &[&[u8]]) -> Result<()> {
        if !self.log.fits(parts.iter().map(|part| part.len()).sum()) {
            self.open_reserved_file()?;
        }
        self.commit(kind, subject, parts)
    }
}

/// Tokens of one version, gathered from the pieces in which they came.
#[derive(Default)]
struct Run {
    tokens: Vec<i32>,
    log_probs: Vec<f32>,
    mask: Vec<u8>,
}
