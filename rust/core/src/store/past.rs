//! What is behind a mark: to be forgotten, or to be returned to.

use super::base::Mark;
use super::index::Index;
use super::state::Group;
use crate::error::{Error, Result};

impl Index {
    /// Let go of what no mark can bring back.
    pub(super) fn forget_the_past(&mut self) {
        for id in self.spent.iter().copied().collect::<Vec<_>>() {
            self.forget_if_past(id);
        }
        for id in self.aborted.iter().copied().collect::<Vec<_>>() {
            self.forget_aborted(id);
        }
    }

    /// The same for one group. Only a new mark can change what is past of the others.
    pub(super) fn forget_if_past(&mut self, group_id: u64) {
        let oldest = self.base.marks.first().map(|mark| mark.id);
        let is_past = |mark: u64| oldest.is_none_or(|oldest| mark < oldest);
        let dead = |group: &Group| match group.gone {
            Some(mark) => is_past(mark),
            None => group.uses.iter().filter(|mark| is_past(**mark)).count() >= self.max_uses,
        };
        if self.groups.get(&group_id).is_some_and(dead) {
            self.forget(group_id);
        }
    }

    /// The same for what was aborted of one trajectory.
    pub(super) fn forget_aborted(&mut self, id: u64) {
        let oldest = self.base.marks.first().map(|mark| mark.version);
        let is_past = |under: u32| oldest.is_none_or(|oldest| under <= oldest);
        let keeps = self.trajectories.get_mut(&id).is_some_and(|trajectory| {
            trajectory.discarded.retain(|discarded| !is_past(discarded.under));
            !trajectory.discarded.is_empty()
        });
        if !keeps {
            self.aborted.remove(&id);
        }
    }

    /// Undo what came after a mark.
    pub(super) fn rewind(&mut self, mark: u64, next: Option<(u64, u64)>) -> Result<()> {
        let found = self.base.marks.iter().find(|m| m.id == mark).copied();
        let mark = found.ok_or_else(|| {
            Error::Corruption(format!("the log returns to mark {mark}, which is not kept"))
        })?;
        self.base.marks.retain(|m| m.id <= mark.id);
        self.base.next_mark = mark.id + 1;
        self.base.version = mark.version;
        let cut = self.groups.iter().filter(|(_, group)| group.version > mark.version);
        for id in cut.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget(id);
        }
        for group in self.groups.values_mut() {
            group.uses.retain(|used| *used < mark.id);
            group.gone = group.gone.filter(|gone| *gone < mark.id);
        }
        for trajectory in self.trajectories.values_mut() {
            trajectory.take_back(mark.version);
        }
        let next = next.unwrap_or_else(|| self.next_after(&mark));
        (self.base.next_group, self.base.next_trajectory) = next;
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.classify(id);
        }
        Ok(())
    }

    /// The ids that come next after a return to a mark. Asked while all groups are known: when the
    /// log is read again, some may have gone with their file.
    pub(super) fn next_after(&self, mark: &Mark) -> (u64, u64) {
        let kept = self.groups.iter().rev().find(|(_, group)| group.version <= mark.version);
        let after = kept
            .map_or((0, 0), |(id, group)| (id + 1, group.first_trajectory + u64::from(group.k)));
        (mark.next_group.max(after.0), mark.next_trajectory.max(after.1))
    }
}
