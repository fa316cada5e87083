//! An index from a log with holes: what is whole, less what cannot stand without what is lost.
//!
//! # Design
//!
//! Nothing is guessed. An append was accepted at its offset, so the response had that length then:
//! that proves that no tokens before it are missing. Tokens behind a hole are given up until such a
//! proof, an abort, or a complete copy of the group. A response whose last tokens may be
//! missing is not finished: the tokens before the hole are a prefix that can be resumed, but a
//! response cut short must not be trained on as if it were whole. What an unreadable record may
//! have been is bounded by its size: no tokens fit into less than 64 bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::column::{COLUMN_FIELDS, ColumnEvent};
use super::event::{APPEND_FIELDS, Event};
use super::file::Location;
use super::index::Index;
use super::mend_move::{Doubt, Move};
use super::record::{self, Header, Kind};
use super::scan::{Loss, Whole};
use crate::error::Result;

/// What was lost of one trajectory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostOf {
    /// Response tokens that are gone; those in records whose header is lost as well are not in it.
    pub tokens: u64,
    /// Its end is gone, or cannot be trusted: it is unfinished again.
    pub finish: bool,
    /// Its score is gone.
    pub reward: bool,
    /// Bytes of values of columns that are gone. What they had replaced is back.
    pub column_bytes: u64,
}

/// The index and what is missing in it.
#[derive(Debug)]
pub(super) struct Mender {
    pub(super) index: Index,
    pub(super) trajectories: BTreeMap<u64, LostOf>,
    /// Groups whose prompt is lost.
    pub(super) groups: BTreeSet<u64>,
    /// Lost records of other kinds, by kind, and of unknown kind under the empty name.
    pub(super) others: BTreeMap<String, u64>,
    pub(super) holes: BTreeSet<u64>,
    doubts: HashMap<u64, Doubt>,
    pub(super) moving: Option<Move>,
    pub(super) last_number: u64,
    /// The first trajectory that was created in the log: earlier ones may be unknown by right.
    first_new: Option<u64>,
    /// Trajectories whose group was known at some time.
    known: HashSet<u64>,
}

impl Mender {
    pub(super) fn new() -> Self {
        Self {
            // How often a group may be used is not in the log: none counts as used up.
            index: Index::new(usize::MAX),
            trajectories: BTreeMap::new(),
            groups: BTreeSet::new(),
            others: BTreeMap::new(),
            holes: BTreeSet::new(),
            doubts: HashMap::new(),
            moving: None,
            last_number: 0,
            first_new: None,
            known: HashSet::new(),
        }
    }

    /// Take up a whole record.
    pub(super) fn record(&mut self, record: &Whole<'_>) -> Result<()> {
        let (header, event) = (&record.header, &record.event);
        self.last_number = self.last_number.max(header.number);
        if !matches!(
            event,
            Event::MovedAppend { .. }
                | Event::MovedAbort { .. }
                | Event::MovedColumn(_)
                | Event::MovedEnd { .. }
                | Event::Base(_)
        ) {
            self.close_move()?;
        }
        match event {
            Event::Base(base) => _ = self.first_new.get_or_insert(base.next_trajectory),
            Event::Group(event) => _ = self.first_new.get_or_insert(event.first_trajectory),
            _ => {}
        }
        let stands = match *event {
            Event::Append { trajectory_id, offset, n, .. } => self.takes(trajectory_id, offset, n),
            Event::Finish { trajectory_id, .. } => self.ends(trajectory_id),
            Event::Reward { trajectory_id, .. } => self.is_scored(trajectory_id),
            Event::Abort { trajectory_id: id } => {
                self.reopen(id);
                self.is_whole(id);
                true
            }
            Event::Group(ref event) => {
                // Ids only grow, unless a rewind cut the groups that had them before.
                let cut = self.index.groups.range(event.group_id..);
                for id in cut.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.index.forget(id);
                }
                for id in event.first_trajectory..event.first_trajectory + u64::from(event.k) {
                    self.is_whole(id);
                    self.known.insert(id);
                }
                true
            }
            Event::Rewind { mark, .. } => self.returns(mark),
            Event::MovedGroup(ref event) => {
                self.moving = Some(Move::new(event));
                true
            }
            Event::MovedAppend { trajectory_id, offset, n, .. } => {
                self.moved_append(trajectory_id, offset, n)
            }
            Event::Column(ref event) => self.takes_values(event),
            Event::MovedColumn(ref event) => self.moved_column(event),
            Event::MovedAbort { trajectory_id, .. } => {
                self.seen(trajectory_id);
                true
            }
            Event::MovedEnd { group_id } => {
                if self.moving.as_ref().is_none_or(|moving| moving.group_id != group_id) {
                    // Its head may also have gone by right, with an older file.
                    let may_be_lost = self.others.contains_key("");
                    if may_be_lost && !self.index.groups.contains_key(&group_id) {
                        self.groups.insert(group_id);
                    }
                    return Ok(());
                }
                if self.moving.as_ref().is_some_and(|moving| moving.is_damaged) {
                    return self.close_move();
                }
                let members = self.moving.take().map_or(0..0, |m| m.first..m.last + 1);
                self.apply(event, record.file, record.offset, header)?;
                for id in members {
                    self.is_whole(id);
                    self.known.insert(id);
                }
                return Ok(());
            }
            _ => true,
        };
        if stands { self.apply(event, record.file, record.offset, header) } else { Ok(()) }
    }

    /// Take up that records are lost.
    pub(super) fn lose(&mut self, loss: &Loss, file: u64) -> Result<()> {
        let last = loss.number.unwrap_or(0) + loss.count.unwrap_or(1);
        self.last_number = self.last_number.max(last);
        let Some(header) = loss.header else {
            let doubt = Doubt::of(loss);
            *self.others.entry(String::new()).or_default() += loss.count.unwrap_or(1);
            self.doubt_all(doubt);
            if let Some(moving) = &mut self.moving {
                moving.is_damaged = true;
                moving.doubt.add(doubt);
            }
            return Ok(());
        };
        let (kind, id) = (header.kind, header.subject);
        if (header.payload == 0 || kind == Kind::Rewind)
            && let Ok(event) = Event::decode(kind, id, &[])
        {
            // All of it is in the header, or can be worked out.
            let offset = usize::try_from(loss.offset).unwrap_or(0);
            let size = record::size(header.payload);
            return self.record(&Whole { file, offset, header, event, size });
        }
        let tokens = (header.payload.saturating_sub(APPEND_FIELDS) / 9) as u64;
        match kind {
            Kind::Append => {
                self.holes.insert(id);
                self.lost(id).tokens += tokens;
            }
            Kind::Column => self.lost(id).column_bytes += values_in(&header),
            Kind::Finish => self.lost(id).finish = true,
            Kind::Reward => self.lost(id).reward = true,
            Kind::Group => {
                self.groups.insert(id);
                self.index.base.next_group = self.index.base.next_group.max(id + 1);
            }
            Kind::MovedGroup => {
                self.close_move()?;
                if !self.index.groups.contains_key(&id) {
                    self.groups.insert(id);
                }
            }
            Kind::MovedColumn => {
                let groups = &self.index.groups;
                let is_needed = self.moving.as_mut().is_some_and(|moving| {
                    moving.is_damaged = true;
                    !groups.contains_key(&moving.group_id)
                });
                if is_needed {
                    self.lost(id).column_bytes += values_in(&header);
                }
            }
            Kind::MovedAppend | Kind::MovedAbort => {
                let is_needed = self
                    .moving
                    .as_ref()
                    .is_some_and(|moving| !self.index.groups.contains_key(&moving.group_id));
                if let Some(moving) = &mut self.moving {
                    moving.is_damaged = true;
                    moving.uncertain.insert(id);
                    if is_needed && kind == Kind::MovedAppend {
                        self.lost(id).tokens += tokens;
                    }
                }
            }
            _ => *self.others.entry(kind.name()).or_default() += 1,
        }
        Ok(())
    }

    /// Nothing follows: settle what is left. Returns the index.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.close_move()?;
        let (index, first_new) = (&self.index, self.first_new.unwrap_or(0));
        self.groups.retain(|id| !index.groups.contains_key(id));
        self.trajectories.retain(|id, lost| {
            let is_orphan = *id >= first_new && !self.known.contains(id);
            *lost != LostOf::default() && (index.trajectories.contains_key(id) || is_orphan)
        });
        // Ids go on behind everything that is there, even if the records that say so are lost.
        let base = &mut self.index.base;
        for (id, group) in &self.index.groups {
            base.next_group = base.next_group.max(id + 1);
            base.next_trajectory =
                base.next_trajectory.max(group.first_trajectory + u64::from(group.k));
            let newest = group.uses.iter().chain(&group.gone).max();
            base.next_mark = base.next_mark.max(newest.map_or(0, |mark| mark + 1));
        }
        Ok(())
    }

    pub(super) fn lost(&mut self, id: u64) -> &mut LostOf {
        self.index.base.next_trajectory = self.index.base.next_trajectory.max(id + 1);
        self.trajectories.entry(id).or_default()
    }

    /// From here on nothing of a trajectory is missing.
    fn is_whole(&mut self, id: u64) {
        self.holes.remove(&id);
        self.doubts.remove(&id);
        self.trajectories.remove(&id);
    }

    fn doubt_all(&mut self, doubt: Doubt) {
        for id in self.index.trajectories.keys() {
            self.doubts.entry(*id).or_default().add(doubt);
        }
    }

    /// Whether tokens at `offset` continue what is there of a trajectory.
    fn takes(&mut self, id: u64, offset: u32, n: u32) -> bool {
        let doubt = self.doubts.get(&id).copied().unwrap_or_default();
        let Some(trajectory) = self.index.trajectories.get_mut(&id) else {
            self.lost(id).tokens += u64::from(n);
            return false;
        };
        // To discard tokens and to bring as many others takes three records: an abort or a rewind,
        // a claim, an append.
        let continues = offset == trajectory.length && doubt.records < 3;
        // One lost record that took tokens back, and none that brought others.
        let is_cut = offset < trajectory.length && doubt.records == 1 && doubt.restart;
        if !(continues || is_cut && trajectory.cut(offset)) {
            self.holes.insert(id);
            self.lost(id).tokens += u64::from(n);
            return false;
        }
        self.reopen(id);
        // That the tokens are whole says nothing about columns.
        let column_bytes = self.trajectories.get(&id).map_or(0, |lost| lost.column_bytes);
        self.is_whole(id);
        if column_bytes > 0 {
            self.lost(id).column_bytes = column_bytes;
        }
        true
    }

    /// Whether values of a column have tokens to stand on, and a name.
    fn takes_values(&mut self, event: &ColumnEvent) -> bool {
        let id = event.trajectory_id;
        let length = self.index.trajectories.get(&id).map(|trajectory| trajectory.length);
        let stands = length.is_some_and(|length| self.has_tokens(event, length));
        if !stands {
            self.lost(id).column_bytes += event.bytes();
        }
        stands
    }

    pub(super) fn has_tokens(&self, event: &ColumnEvent, length: u32) -> bool {
        let end = u64::from(event.offset) + u64::from(event.n);
        end <= u64::from(length) && event.check(&self.index.base.columns).is_ok()
    }

    /// Whether a response that ends has all its tokens.
    fn ends(&mut self, id: u64) -> bool {
        let doubt = self.doubts.get(&id).copied().unwrap_or_default();
        let is_whole = !self.holes.contains(&id) && !doubt.tokens && doubt.records <= 1;
        if !is_whole {
            self.lost(id).finish = true;
        }
        is_whole
    }

    /// Whether a score has a finished response to stand on.
    fn is_scored(&mut self, id: u64) -> bool {
        let is_finished = self.index.trajectories.get(&id).is_none_or(|t| t.finish.is_some());
        if !is_finished {
            (self.lost(id).finish, self.lost(id).reward) = (true, true);
        }
        is_finished
    }

    /// Whether the mark that is returned to is known.
    fn returns(&mut self, mark: u64) -> bool {
        let is_known = self.index.base.marks.iter().any(|kept| kept.id == mark);
        if !is_known {
            *self.others.entry(Kind::Rewind.name()).or_default() += 1;
            self.doubt_all(Doubt { records: 1, tokens: false, restart: true });
        }
        is_known
    }

    /// A trajectory that goes on is not finished: what says so was undone by a rewind that is lost.
    fn reopen(&mut self, id: u64) {
        if let Some(trajectory) = self.index.trajectories.get_mut(&id)
            && trajectory.finish.is_some()
        {
            (trajectory.finish, trajectory.reward) = (None, None);
            let group_id = trajectory.group_id;
            self.index.classify(group_id);
        }
    }

    fn apply(
        &mut self,
        event: &Event<'_>,
        file: u64,
        offset: usize,
        header: &Header,
    ) -> Result<()> {
        let at = offset + record::HEADER;
        let location = Location { file, offset: u32::try_from(at).unwrap_or(u32::MAX) };
        let payload = u32::try_from(header.payload).unwrap_or(u32::MAX);
        self.index.apply(event, location, payload, record::size(header.payload) as u64)
    }
}

fn values_in(header: &Header) -> u64 {
    header.payload.saturating_sub(COLUMN_FIELDS) as u64
}
