//! What the log amounts to: groups, trajectories, marks. Where the tokens lie, not the tokens.
//!
//! # Design
//!
//! Every change is a record, and every record goes through [`Index::apply`], when it is written and
//! when it is read again: a store that was opened is by construction the store that was left. Only
//! leases live in memory alone, since opening a store voids them.
//!
//! What a rewind must undo is dated. Uses and removals carry the newest mark of their time;
//! finishes, scores and aborts the newest policy version. Records about a group that the index does
//! not know are passed over: its first records went with the file that held them, because it was
//! already dead, or because it was written again further on.

use std::collections::{BTreeMap, BTreeSet};

use super::base::{Base, Mark};
use super::event::Event;
use super::file::Location;
use super::ids::IdMap;
use super::queue::{Place, Queue};
use super::shelves::{Shelf, Shelves};
use super::space::WhenFull;
use super::state::{
    Chunk, Group, Holder, Trajectory, charge, cover, discard, discharge, extend, moved_member,
    new_group,
};
use crate::error::Result;

/// How many of the newest marks can be returned to. Two: a run that dies after taking a mark and
/// before its checkpoint names it restarts from the mark before.
pub const MARKS_KEPT: usize = 2;

#[derive(Debug)]
pub(super) struct Index {
    pub(super) max_uses: usize,
    pub(super) groups: BTreeMap<u64, Group>,
    pub(super) trajectories: IdMap<Trajectory>,
    /// Trajectories that want tokens, and groups that can be sampled or evicted.
    pub(super) queue: Queue,
    pub(super) shelves: Shelves,
    when_full: WhenFull,
    /// Groups that are used up or gone, and trajectories that were aborted: what may be forgotten.
    pub(super) spent: BTreeSet<u64>,
    pub(super) aborted: BTreeSet<u64>,
    /// Bytes that are still needed, by file.
    pub(super) live: BTreeMap<u64, u64>,
    pub(super) base: Base,
    moving: Option<Moving>,
    /// While a log is read nobody looks for anything: what is looked in is filled when all is there.
    is_loading: bool,
}

/// A group that is being written again, until its last record is there.
#[derive(Debug)]
struct Moving {
    group_id: u64,
    group: Group,
    members: Vec<Trajectory>,
}

impl Index {
    pub(super) fn new(max_uses: usize) -> Self {
        Self {
            max_uses,
            groups: BTreeMap::new(),
            trajectories: IdMap::default(),
            queue: Queue::default(),
            shelves: Shelves::default(),
            when_full: WhenFull::Refuse,
            spent: BTreeSet::new(),
            aborted: BTreeSet::new(),
            live: BTreeMap::new(),
            base: Base { next_mark: 1, next_epoch: 1, ..Base::default() },
            moving: None,
            is_loading: false,
        }
    }

    /// Apply what a log holds with `read`; the queue and the shelves are filled afterwards, once, by what
    /// has become of each.
    pub(super) fn load<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.is_loading = true;
        let found = read(self);
        self.is_loading = false;
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.classify(id);
        }
        found
    }

    /// The one way in which the index changes. `size` is what the record takes in the log.
    pub(super) fn apply(
        &mut self,
        event: &Event<'_>,
        at: Location,
        payload: u32,
        size: u64,
    ) -> Result<()> {
        // A group may be written over several files, each with its base.
        if !matches!(
            event,
            Event::MovedAppend { .. }
                | Event::MovedAbort { .. }
                | Event::MovedColumn(_)
                | Event::MovedEnd { .. }
                | Event::Base(_)
        ) {
            self.moving = None;
        }
        match event {
            Event::Base(base) => self.base.clone_from(base),
            Event::Group(event) => {
                let group = new_group(event, (at, payload, false), size);
                let members = (0..event.k).map(|_| Trajectory::default()).collect();
                self.base.next_group = event.group_id + 1;
                self.base.next_trajectory = event.first_trajectory + u64::from(event.k);
                self.base.version = self.base.version.max(event.version);
                self.insert(event.group_id, group, members);
            }
            &Event::Append { trajectory_id, offset, n, version } => {
                self.base.version = self.base.version.max(version);
                if let Some(trajectory) = self.trajectories.get_mut(&trajectory_id) {
                    extend(trajectory, trajectory_id, offset, Chunk { at, n, version })?;
                    let group_id = trajectory.group_id;
                    let is_held = matches!(trajectory.place, Place::Held { .. });
                    self.charge(group_id, at.file, size);
                    if !is_held {
                        self.place(trajectory_id);
                        self.shelve(group_id);
                    }
                }
            }
            &Event::Claim { next_epoch } => self.base.next_epoch = next_epoch,
            &Event::Finish { trajectory_id, reason } => {
                let under = self.base.version;
                self.change(trajectory_id, at.file, size, |t| t.finish = Some((reason, under)));
            }
            &Event::Abort { trajectory_id } => {
                let under = self.base.version;
                self.change(trajectory_id, at.file, size, |t| {
                    discard(t, under);
                    t.holder = None;
                });
                self.aborted.insert(trajectory_id);
                self.forget_aborted(trajectory_id);
            }
            &Event::Reward { trajectory_id, reward } => {
                let under = self.base.version;
                self.change(trajectory_id, at.file, size, |t| t.reward = Some((reward, under)));
            }
            Event::Use(ids) => self.mark_groups(ids, at.file, |group, mark| group.uses.push(mark)),
            Event::Gone(ids) => {
                self.mark_groups(ids, at.file, |group, mark| group.gone = Some(mark));
            }
            &Event::Mark { id, version } => {
                self.base.version = version;
                self.base.next_mark = id + 1;
                let Base { next_group, next_trajectory, .. } = self.base;
                self.base.marks.push(Mark { id, version, next_group, next_trajectory });
                let surplus = self.base.marks.len().saturating_sub(MARKS_KEPT);
                self.base.marks.drain(..surplus);
                self.forget_the_past();
            }
            &Event::Rewind { mark, next } => self.rewind(mark, next)?,
            Event::MovedGroup(event) => {
                let group = new_group(event, (at, payload, true), size);
                let members = event.members.iter().map(|state| moved_member(event, *state));
                let members = members.collect();
                self.moving = Some(Moving { group_id: event.group_id, group, members });
            }
            &Event::MovedAppend { trajectory_id, offset, n, version } => {
                if let Some((group, member)) = self.moving_member(trajectory_id) {
                    extend(member, trajectory_id, offset, Chunk { at, n, version })?;
                    charge(group, at.file, size);
                }
            }
            &Event::MovedAbort { trajectory_id, under } => {
                if let Some((group, member)) = self.moving_member(trajectory_id) {
                    discard(member, under);
                    charge(group, at.file, size);
                }
            }
            Event::Column(event) => {
                event.check(&self.base.columns)?;
                let piece = event.piece(at, size, self.base.version);
                if let Some(trajectory) = self.trajectories.get_mut(&event.trajectory_id) {
                    let covered = cover(trajectory, event.trajectory_id, piece)?;
                    let group_id = trajectory.group_id;
                    self.charge(group_id, at.file, size);
                    for old in covered {
                        self.discharge(group_id, old.at.file, old.size);
                    }
                }
            }
            Event::MovedColumn(event) => {
                event.check(&self.base.columns)?;
                let piece = event.piece(at, size, event.under);
                if let Some((group, member)) = self.moving_member(event.trajectory_id) {
                    cover(member, event.trajectory_id, piece)?;
                    charge(group, at.file, size);
                }
            }
            &Event::MovedEnd { group_id } => {
                if let Some(moving) = self.moving.take_if(|moving| moving.group_id == group_id) {
                    self.finish_move(moving, at.file, size);
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, group_id: u64, group: Group, members: Vec<Trajectory>) {
        for (file, bytes) in &group.bytes_in {
            *self.live.entry(*file).or_default() += bytes;
        }
        for (id, mut member) in group.members().zip(members) {
            member.group_id = group_id;
            if !member.discarded.is_empty() {
                self.aborted.insert(id);
            }
            self.trajectories.insert(id, member);
        }
        self.groups.insert(group_id, group);
        self.classify(group_id);
    }

    /// Remove every trace of a group; its bytes in the log are garbage from now on.
    pub(super) fn forget(&mut self, group_id: u64) {
        if let Some(group) = self.groups.remove(&group_id) {
            self.shelves.put(group_id, group.shelf, Shelf::None);
            self.spent.remove(&group_id);
            for id in group.members() {
                if let Some(trajectory) = self.trajectories.remove(&id) {
                    self.queue.forget(id, &trajectory);
                }
                self.aborted.remove(&id);
            }
            for (file, bytes) in group.bytes_in {
                if let Some(live) = self.live.get_mut(&file) {
                    *live = live.saturating_sub(bytes);
                }
            }
        }
    }

    /// A member of the group that is being written again.
    pub(super) fn moving_member(&mut self, id: u64) -> Option<(&mut Group, &mut Trajectory)> {
        let moving = self.moving.as_mut()?;
        let place = usize::try_from(id.checked_sub(moving.group.first_trajectory)?).ok()?;
        Some((&mut moving.group, moving.members.get_mut(place)?))
    }

    /// Let the group's earlier place stand.
    pub(super) fn abandon_move(&mut self) {
        self.moving = None;
    }

    fn finish_move(&mut self, moving: Moving, file: u64, size: u64) {
        let Moving { group_id, mut group, mut members } = moving;
        charge(&mut group, file, size);
        for (id, member) in group.members().zip(&mut members) {
            if let Some(old) = self.trajectories.get(&id) {
                (member.holder, member.finished_by) = (old.holder, old.finished_by);
            }
        }
        self.forget(group_id);
        self.insert(group_id, group, members);
        self.forget_if_past(group_id);
    }

    fn charge(&mut self, group_id: u64, file: u64, size: u64) {
        if let Some(group) = self.groups.get_mut(&group_id) {
            charge(group, file, size);
            *self.live.entry(file).or_default() += size;
        }
    }

    fn discharge(&mut self, group_id: u64, file: u64, size: u64) {
        if let Some(group) = self.groups.get_mut(&group_id) {
            discharge(group, file, size);
            if let Some(live) = self.live.get_mut(&file) {
                *live = live.saturating_sub(size);
            }
        }
    }

    fn change(&mut self, id: u64, file: u64, size: u64, change: impl FnOnce(&mut Trajectory)) {
        if let Some(trajectory) = self.trajectories.get_mut(&id) {
            change(trajectory);
            let group_id = trajectory.group_id;
            self.charge(group_id, file, size);
            self.classify(group_id);
        }
    }

    fn mark_groups(&mut self, ids: &[u64], file: u64, change: impl Fn(&mut Group, u64)) {
        let mark = self.base.marks.last().map_or(0, |mark| mark.id);
        for id in ids {
            if let Some(group) = self.groups.get_mut(id) {
                change(group, mark);
                self.charge(*id, file, 8);
                self.classify(*id);
                self.forget_if_past(*id);
            }
        }
    }

    /// Bytes of the log that groups keep which can still be trained on.
    pub(super) fn alive_bytes(&self) -> u64 {
        self.groups.values().filter(|group| self.is_alive(group)).map(Group::bytes).sum()
    }

    /// Bytes of the log that are kept only because a mark may bring them back.
    pub(super) fn dead_bytes(&self) -> u64 {
        self.spent.iter().filter_map(|id| self.groups.get(id)).map(Group::bytes).sum()
    }

    /// Whether a group can still become part of a training batch.
    pub(super) fn is_alive(&self, group: &Group) -> bool {
        group.gone.is_none() && group.uses.len() < self.max_uses
    }

    /// The oldest version among a group's tokens; of a group without any, the one it was created
    /// under.
    pub(super) fn oldest_version(&self, group: &Group) -> u32 {
        let members = group.members().filter_map(|id| self.trajectories.get(&id));
        members.filter_map(Trajectory::oldest_version).min().unwrap_or(group.version)
    }

    pub(super) fn is_complete(&self, group: &Group) -> bool {
        group.members().all(|id| {
            self.trajectories.get(&id).is_some_and(|t| t.finish.is_some() && t.reward.is_some())
        })
    }

    /// Put a group and its members into the sets in which they are looked for.
    pub(super) fn classify(&mut self, group_id: u64) {
        let Some(group) = self.groups.get(&group_id) else { return };
        let alive = self.is_alive(group);
        if !self.is_loading {
            for id in group.members() {
                if let Some(trajectory) = self.trajectories.get_mut(&id) {
                    let wanted = alive && trajectory.finish.is_none();
                    self.queue.place(id, trajectory, wanted);
                }
            }
        }
        if alive {
            self.spent.remove(&group_id);
        } else {
            self.spent.insert(group_id);
        }
        self.shelve(group_id);
    }

    /// Put a trajectory where it belongs, after its tokens or its holder have changed.
    pub(super) fn place(&mut self, id: u64) {
        if self.is_loading {
            return;
        }
        if let Some(trajectory) = self.trajectories.get_mut(&id)
            && let Some(group) = self.groups.get(&trajectory.group_id)
        {
            let alive = group.gone.is_none() && group.uses.len() < self.max_uses;
            let wanted = alive && trajectory.finish.is_none();
            self.queue.place(id, trajectory, wanted);
        }
    }

    /// Give a trajectory a holder, or none.
    pub(super) fn hold(&mut self, id: u64, holder: Option<Holder>) {
        if let Some(trajectory) = self.trajectories.get_mut(&id) {
            trajectory.holder = holder;
            let group_id = trajectory.group_id;
            self.place(id);
            self.shelve(group_id);
        }
    }

    /// Set the clock by which leases have expired.
    pub(super) fn set_clock(&mut self, now: f64) {
        for id in self.queue.advance(now) {
            self.place(id);
        }
    }

    /// From now on what a full store evicts is kept in its order.
    pub(super) fn evict_by(&mut self, policy: WhenFull) {
        self.when_full = policy;
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.shelve(id);
        }
    }

    fn shelve(&mut self, group_id: u64) {
        if self.is_loading {
            return;
        }
        let Some(group) = self.groups.get(&group_id) else { return };
        let evicts = matches!(self.when_full, WhenFull::EvictOldest | WhenFull::EvictStalest);
        let shelf = if !self.is_alive(group) {
            Shelf::None
        } else if self.is_complete(group) {
            Shelf::Ready { oldest: self.oldest_version(group) }
        } else if !evicts || self.is_held(group) {
            Shelf::None
        } else {
            let stalest = self.when_full == WhenFull::EvictStalest;
            Shelf::Idle { age: if stalest { self.oldest_version(group) } else { 0 } }
        };
        if let Some(group) = self.groups.get_mut(&group_id) {
            self.shelves.put(group_id, group.shelf, shelf);
            group.shelf = shelf;
        }
    }

    fn is_held(&self, group: &Group) -> bool {
        group.members().any(|id| self.trajectories.get(&id).is_some_and(|t| t.holder.is_some()))
    }
}
