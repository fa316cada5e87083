//! What the index knows of one group and of one trajectory.

use super::event::FinishReason;
use super::file::Location;
use super::group_event::{GroupEvent, MovedState};
use super::queue::Place;
use super::shelves::Shelf;
use crate::error::{Error, Result};

/// Tokens of one trajectory that were appended together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chunk {
    pub(super) at: Location,
    pub(super) n: u32,
    pub(super) version: u32,
}

/// Values of one column for a range of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) at: Location,
    pub(super) column: u16,
    pub(super) offset: u32,
    pub(super) n: u32,
    /// The newest policy version of its time.
    pub(super) under: u32,
    /// Bytes of its record in the log.
    pub(super) size: u64,
}

/// What an abort discarded.
#[derive(Clone, Debug, Default)]
pub(super) struct Discarded {
    /// The newest policy version of its time.
    pub(super) under: u32,
    pub(super) chunks: Vec<Chunk>,
    pub(super) pieces: Vec<Piece>,
}

/// A worker's claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) epoch: u64,
    pub(super) deadline: f64,
}

#[derive(Debug, Default)]
pub(super) struct Trajectory {
    pub(super) group_id: u64,
    pub(super) chunks: Vec<Chunk>,
    /// Values of columns, in the order in which they were written: later ones cover earlier ones.
    pub(super) pieces: Vec<Piece>,
    pub(super) length: u32,
    /// The reason, and the newest policy version of its time.
    pub(super) finish: Option<(FinishReason, u32)>,
    pub(super) reward: Option<(f32, u32)>,
    /// What aborts discarded, oldest first.
    pub(super) discarded: Vec<Discarded>,
    pub(super) holder: Option<Holder>,
    /// The epoch that finished it, so that a repeated finish is recognised.
    pub(super) finished_by: Option<u64>,
    /// Where the queue has it.
    pub(super) place: Place,
}

impl Trajectory {
    pub(super) fn oldest_version(&self) -> Option<u32> {
        self.chunks.first().map(|chunk| chunk.version)
    }

    /// Return to a length at which a piece ends; false if none does.
    pub(super) fn cut(&mut self, length: u32) -> bool {
        let mut left = self.length;
        let kept = self.chunks.iter().rposition(|chunk| {
            let is_here = left == length;
            left -= if is_here { 0 } else { chunk.n };
            is_here
        });
        if kept.is_none() && left != length {
            return false;
        }
        self.chunks.truncate(kept.map_or(0, |at| at + 1));
        self.length = length;
        self.clip_pieces();
        true
    }

    /// Let go of values of columns for tokens that are not there any more.
    fn clip_pieces(&mut self) {
        self.pieces.retain_mut(|piece| {
            piece.n = piece.n.min(self.length.saturating_sub(piece.offset));
            piece.n > 0
        });
    }

    /// Return to what is valid under `version`.
    pub(super) fn take_back(&mut self, version: u32) {
        while self.discarded.last().is_some_and(|discarded| discarded.under > version) {
            let Discarded { chunks, pieces, .. } = self.discarded.pop().unwrap_or_default();
            (self.chunks, self.pieces) = (chunks, pieces);
        }
        self.chunks.retain(|chunk| chunk.version <= version);
        self.length = self.chunks.iter().map(|chunk| chunk.n).sum();
        self.pieces.retain(|piece| piece.under <= version);
        self.clip_pieces();
        self.finish = self.finish.filter(|(_, under)| *under <= version);
        self.reward = self.reward.filter(|(_, under)| *under <= version && self.finish.is_some());
        (self.holder, self.finished_by) = (None, None);
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) first_trajectory: u64,
    pub(super) k: u32,
    pub(super) version: u32,
    pub(super) prompt_id: i64,
    pub(super) prompt_length: u32,
    /// The payload of the record that holds the prompt, and whether it is a moved one.
    pub(super) prompt: (Location, u32, bool),
    /// The mark under which it was used, for each use.
    pub(super) uses: Vec<u64>,
    /// The mark under which it was dropped or evicted.
    pub(super) gone: Option<u64>,
    /// Bytes of the log that it keeps, by file.
    pub(super) bytes_in: Vec<(u64, u64)>,
    pub(super) shelf: Shelf,
}

impl Group {
    pub(super) fn members(&self) -> impl Iterator<Item = u64> + use<> {
        self.first_trajectory..self.first_trajectory + u64::from(self.k)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_in.iter().map(|(_, bytes)| bytes).sum()
    }
}

pub(super) fn new_group(event: &GroupEvent<'_>, prompt: (Location, u32, bool), size: u64) -> Group {
    Group {
        first_trajectory: event.first_trajectory,
        k: event.k,
        version: event.version,
        prompt_id: event.prompt.prompt_id,
        prompt_length: u32::try_from(event.prompt.tokens.len()).unwrap_or(u32::MAX),
        prompt,
        uses: event.uses.clone(),
        gone: event.gone,
        bytes_in: vec![(prompt.0.file, size)],
        shelf: Shelf::None,
    }
}

pub(super) fn moved_member(event: &GroupEvent<'_>, state: MovedState) -> Trajectory {
    Trajectory {
        group_id: event.group_id,
        finish: state.finish,
        reward: state.reward,
        ..Trajectory::default()
    }
}

pub(super) fn charge(group: &mut Group, file: u64, size: u64) {
    match group.bytes_in.iter_mut().rev().find(|(held, _)| *held == file) {
        Some((_, bytes)) => *bytes += size,
        None => group.bytes_in.push((file, size)),
    }
}

/// The opposite: bytes of a file that the group needs no more.
pub(super) fn discharge(group: &mut Group, file: u64, size: u64) {
    for (_, bytes) in group.bytes_in.iter_mut().filter(|(held, _)| *held == file) {
        *bytes = bytes.saturating_sub(size);
    }
    group.bytes_in.retain(|(_, bytes)| *bytes > 0);
}

pub(super) fn discard(trajectory: &mut Trajectory, under: u32) {
    let (chunks, pieces) =
        (std::mem::take(&mut trajectory.chunks), std::mem::take(&mut trajectory.pieces));
    trajectory.discarded.push(Discarded { under, chunks, pieces });
    trajectory.length = 0;
}

/// Take up values of a column. Returns the earlier ones that nothing can bring back: they are
/// covered, and were written under the same version.
pub(super) fn cover(trajectory: &mut Trajectory, id: u64, piece: Piece) -> Result<Vec<Piece>> {
    let end = |piece: &Piece| u64::from(piece.offset) + u64::from(piece.n);
    if end(&piece) > u64::from(trajectory.length) {
        return Err(Error::Corruption(format!(
            "values of a column for trajectory {id} up to {}, where it has {} tokens",
            end(&piece),
            trajectory.length
        )));
    }
    let is_covered = |old: &mut Piece| {
        (old.column, old.under) == (piece.column, piece.under)
            && piece.offset <= old.offset
            && end(old) <= end(&piece)
    };
    let gone = trajectory.pieces.extract_if(.., is_covered).collect();
    trajectory.pieces.push(piece);
    Ok(gone)
}

pub(super) fn extend(
    trajectory: &mut Trajectory,
    id: u64,
    offset: u32,
    chunk: Chunk,
) -> Result<()> {
    if offset != trajectory.length {
        return Err(Error::Corruption(format!(
            "tokens of trajectory {id} at {offset}, where it has {}",
            trajectory.length
        )));
    }
    trajectory.chunks.push(chunk);
    trajectory.length += chunk.n;
    Ok(())
}
