//! A group that was being written again, in a log with holes.
//!
//! # Design
//!
//! The earlier place of the group stands until the new one is complete. Where that is gone already, as
//! much of the new one as can be trusted stands: members of which records may be missing keep
//! the tokens before the hole, and are unfinished.

use std::collections::BTreeSet;

use super::column::ColumnEvent;
use super::event::{APPEND_FIELDS, Event};
use super::file::Location;
use super::group_event::GroupEvent;
use super::mend::Mender;
use super::record;
use super::scan::Loss;
use crate::error::Result;

/// Records that cannot be read and whose kind is not known: how many, and whether one of them may
/// hold tokens or take tokens back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) records: u64,
    pub(super) tokens: bool,
    pub(super) restart: bool,
}

impl Doubt {
    pub(super) fn of(loss: &Loss) -> Self {
        let records = loss.count.unwrap_or(u64::from(u32::MAX));
        let known = records == 1 && loss.bytes > 0;
        let least = record::size(APPEND_FIELDS + 9) as u64;
        Self {
            records,
            tokens: !known || loss.bytes >= least,
            restart: !known || loss.bytes == record::HEADER as u64,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.tokens |= other.tokens;
        self.restart |= other.restart;
    }
}

/// A group that is being written again, with what is lost of that.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) group_id: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) is_damaged: bool,
    /// Records of unknown kind were lost since the last member was seen.
    pub(super) doubt: Doubt,
    pub(super) seen: u64,
    pub(super) uncertain: BTreeSet<u64>,
}

impl Move {
    /// A group whose head was read.
    pub(super) fn new(event: &GroupEvent<'_>) -> Self {
        Self {
            group_id: event.group_id,
            first: event.first_trajectory,
            last: (event.first_trajectory + u64::from(event.k)).saturating_sub(1),
            is_damaged: false,
            doubt: Doubt::default(),
            seen: event.first_trajectory,
            uncertain: BTreeSet::new(),
        }
    }
}

impl Mender {
    /// A record about a member of the group that is written again.
    pub(super) fn seen(&mut self, id: u64) {
        if let Some(moving) = &mut self.moving {
            if moving.doubt.records > 0 {
                moving.uncertain.extend(moving.seen..=id.min(moving.last));
            }
            moving.doubt = Doubt::default();
            moving.seen = id;
        }
    }

    pub(super) fn moved_append(&mut self, id: u64, offset: u32, n: u32) -> bool {
        let doubt = self.moving.as_ref().map_or_else(Doubt::default, |moving| moving.doubt);
        self.seen(id);
        let Some(moving) = &mut self.moving else { return true };
        let group_id = moving.group_id;
        let length = self.index.moving_member(id).map(|(_, member)| member.length);
        if length.is_none_or(|length| length == offset && doubt.records < 2) {
            return true;
        }
        moving.uncertain.insert(id);
        if !self.index.groups.contains_key(&group_id) {
            self.lost(id).tokens += u64::from(n);
        }
        false
    }

    /// Whether values of a column stand: their tokens must be there.
    pub(super) fn moved_column(&mut self, event: &ColumnEvent) -> bool {
        let id = event.trajectory_id;
        self.seen(id);
        let Some(moving) = &self.moving else { return true };
        let group_id = moving.group_id;
        let length = self.index.moving_member(id).map(|(_, member)| member.length);
        let stands = length.is_none_or(|length| self.has_tokens(event, length));
        if !stands && !self.index.groups.contains_key(&group_id) {
            self.lost(id).column_bytes += event.bytes();
        }
        stands
    }

    /// A group that was written again came to its end, or something else began.
    pub(super) fn close_move(&mut self) -> Result<()> {
        let Some(mut moving) = self.moving.take().filter(|moving| moving.is_damaged) else {
            return Ok(());
        };
        if self.index.groups.contains_key(&moving.group_id) {
            // The earlier place still has all of it.
            self.index.abandon_move();
            return Ok(());
        }
        if moving.doubt.records > 0 {
            moving.uncertain.extend(moving.seen..=moving.last);
        }
        for id in &moving.uncertain {
            let Some((_, member)) = self.index.moving_member(*id) else { continue };
            let had = (member.finish.take().is_some(), member.reward.take().is_some());
            let lost = self.trajectories.entry(*id).or_default();
            (lost.finish, lost.reward) = (lost.finish | had.0, lost.reward | had.1);
        }
        let end = Event::MovedEnd { group_id: moving.group_id };
        self.index.apply(&end, Location { file: 0, offset: 0 }, 0, 0)?;
        self.holes.extend(moving.uncertain);
        Ok(())
    }
}
