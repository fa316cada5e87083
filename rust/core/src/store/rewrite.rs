//! Writing groups again at the end of the log, so that the oldest file can be freed.
//!
//! # Design
//!
//! Space is freed at the old end of the log, so one long-lived group would hold up everything behind
//! it. When enough of the log is garbage, the groups that the oldest file still holds are written
//! again: prompt and state, tokens, a last record. Only with the last record does the new place
//! count, so a crash in between changes nothing. Tokens of one version that came in small pieces
//! come out in large ones.

use std::collections::BTreeMap;

use super::Store;
use super::event::{self, APPEND_FIELDS};
use super::group_event::{GroupEvent, MovedState};
use super::record::{self, Kind};
use super::state::{Chunk, Discarded, Group};
use crate::error::Result;

/// Garbage that makes rewriting worth it, in files: a file and a half. And a share of what is
/// written, which bounds how many bytes are moved for a byte gained.
const WORTH_FILES: (u64, u64) = (3, 2);

/// Files that are left at any moment of moving.
pub(super) const FILES_KEPT: u64 = 1;

/// Less room than this at the end of a file is not filled with a piece of a run.
const SMALLEST_PIECE: usize = 256;

impl Store {
    /// Free the oldest file by moving what it still holds; false if less than one part in `share` of
    /// the log is garbage, or if it does not fit into what is left.
    ///
    /// Moving may take more files at first than it frees. Only what pays itself back is begun, and so
    /// that a file stays for whoever wants to free more: a store whose last file is taken by what was
    /// moved accepts nothing, not even a sample.
    pub(super) fn rewrite_oldest(&mut self, share: u64) -> Result<bool> {
        let Some(oldest) = self.log.files.front().filter(|_| self.log.files.len() > 1) else {
            return Ok(false);
        };
        let oldest = oldest.sequence;
        if !self.is_worth_rewriting(share) {
            return Ok(false);
        }
        let in_oldest = |group: &Group| group.bytes_in.iter().any(|(file, _)| *file == oldest);
        let groups = self.index.groups.iter().filter(|(_, group)| in_oldest(group));
        let groups: Vec<u64> = groups.map(|(id, _)| *id).collect();
        let largest = self.log.largest_payload(self.index.base.encode().len());
        for id in &groups {
            if self.moved_head(*id)?.len() > largest {
                return Ok(false);
            }
        }
        if self.files_to_rewrite() + FILES_KEPT > self.files_left() {
            return Ok(false);
        }
        for id in groups {
            self.rewrite(id)?;
        }
        self.recycle()?;
        Ok(true)
    }

    /// Whether one part in `share` of the log is garbage.
    pub(super) fn is_worth_rewriting(&self, share: u64) -> bool {
        let file_bytes = self.log.file_bytes as u64;
        let written: u64 = self.log.files.iter().map(|file| file.end as u64).sum();
        let garbage = written.saturating_sub(self.index.live.values().sum());
        garbage >= (file_bytes * WORTH_FILES.0 / WORTH_FILES.1).max(written / share)
    }

    /// How many files it takes to write groups again, those of the oldest file first, until the files
    /// that this frees make up for it. Few, if groups lie in few files each; as many as everything
    /// fills, if all groups have been growing since the oldest file.
    pub(super) fn files_to_rewrite(&self) -> u64 {
        let mut held_up: BTreeMap<u64, u64> = BTreeMap::new();
        for group in self.index.groups.values() {
            if let Some(oldest) = group.bytes_in.iter().map(|(file, _)| *file).min() {
                *held_up.entry(oldest).or_default() += group.bytes();
            }
        }
        let room = self.room_in_file();
        let (mut taken, mut freed, mut most) = (0, 0, 0);
        for file in &self.log.files {
            taken += held_up.get(&file.sequence).unwrap_or(&0);
            most = most.max(taken.saturating_sub(freed));
            freed += room;
            if freed >= taken {
                break;
            }
        }
        most.div_ceil(room)
    }

    /// What a file holds of data that is moved: not its base, nor the end that is too small.
    fn room_in_file(&self) -> u64 {
        let largest = self.log.largest_payload(self.index.base.encode().len());
        largest.saturating_sub(SMALLEST_PIECE).max(1) as u64
    }

    pub(super) fn rewrite(&mut self, group_id: u64) -> Result<()> {
        let head = self.moved_head(group_id)?;
        self.put(Kind::MovedGroup, group_id, &[&head])?;
        for id in self.group_of(group_id)?.members() {
            let trajectory = self.trajectory_of(id)?;
            let discarded = trajectory.discarded.clone();
            let (chunks, pieces) = (trajectory.chunks.clone(), trajectory.pieces.clone());
            for Discarded { under, chunks, pieces } in discarded {
                self.put_chunks(id, &chunks)?;
                self.put_pieces(id, &pieces)?;
                self.put(Kind::MovedAbort, id, &[&under.to_le_bytes()])?;
            }
            self.put_chunks(id, &chunks)?;
            self.put_pieces(id, &pieces)?;
        }
        self.put(Kind::MovedEnd, group_id, &[])
    }

    fn put_chunks(&mut self, id: u64, chunks: &[Chunk]) -> Result<()> {
        let mut offset = 0;
        for run in chunks.chunk_by(|a, b| a.version == b.version) {
            let mut columns = Columns::default();
            for chunk in run {
                let (tokens, log_probs, mask) = self.arrays(chunk)?;
                columns.tokens.extend_from_slice(tokens);
                columns.log_probs.extend_from_slice(log_probs);
                columns.mask.extend_from_slice(mask);
            }
            let version = run.first().map_or(0, |chunk| chunk.version);
            offset = self.put_run(id, offset, version, &columns)?;
        }
        Ok(())
    }

    /// The record of a group with its state.
    pub(super) fn moved_head(&self, group_id: u64) -> Result<Vec<u8>> {
        let group = self.group_of(group_id)?;
        let mut members = Vec::with_capacity(group.k as usize);
        for id in group.members() {
            let trajectory = self.trajectory_of(id)?;
            members.push(MovedState { finish: trajectory.finish, reward: trajectory.reward });
        }
        let event = GroupEvent {
            group_id,
            first_trajectory: group.first_trajectory,
            k: group.k,
            version: group.version,
            prompt: self.prompt_of(group_id)?,
            uses: group.uses.clone(),
            gone: group.gone,
            members,
        };
        Ok(event.encode(true))
    }

    /// Write tokens of one version in as few pieces as the files allow. Returns the offset behind.
    fn put_run(&mut self, id: u64, offset: u32, version: u32, run: &Columns) -> Result<u32> {
        let (mut offset, mut from) = (offset, 0);
        while from < run.tokens.len() {
            let most = self.room_for_piece(record::size(APPEND_FIELDS) + 8)? / 9;
            let to = run.tokens.len().min(from + most);
            let n = u32::try_from(to - from).unwrap_or(u32::MAX);
            let fields = event::append_fields(offset, n, version);
            let (tokens, log_probs) = (&run.tokens[from..to], &run.log_probs[from..to]);
            let (tokens, log_probs) =
                (bytemuck::cast_slice(tokens), bytemuck::cast_slice(log_probs));
            self.put(Kind::MovedAppend, id, &[&fields, tokens, log_probs, &run.mask[from..to]])?;
            (offset, from) = (offset + n, to);
        }
        Ok(offset)
    }

    /// Bytes that a piece may have in the open file, or in the next one, besides `fields`.
    pub(super) fn room_for_piece(&mut self, fields: usize) -> Result<usize> {
        if self.log.left() < SMALLEST_PIECE {
            self.open_reserved_file()?;
        }
        Ok(self.log.left() - fields)
    }

    pub(super) fn put(&mut self, kind: Kind, subject: u64, parts: &[&[u8]]) -> Result<()> {
        if !self.log.fits(parts.iter().map(|part| part.len()).sum()) {
            self.open_reserved_file()?;
        }
        self.commit(kind, subject, parts)
    }
}

/// Tokens of one version, gathered from the pieces in which they came.
#[derive(Default)]
struct Columns {
    tokens: Vec<i32>,
    log_probs: Vec<f32>,
    mask: Vec<u8>,
}
