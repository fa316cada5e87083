//! Points to return to, and what is removed on purpose.

use super::event::ids_payload;
use super::record::Kind;
use super::{Store, Sync};
use crate::error::{Error, Result};

impl Store {
    /// Name the present point, and the policy version that a run restarted here goes on with.
    ///
    /// The two newest marks can be returned to. What was used up, dropped or evicted stays in the
    /// log until no kept mark lies before it: a new mark frees what died before its predecessor.
    /// With a policy that evicts, a mark first removes groups until what is alive takes half of the
    /// capacity.
    pub fn mark(&mut self, version: u32) -> Result<u64> {
        self.evict_ahead()?;
        let id = self.index.base.next_mark;
        self.write_control(Kind::Mark, id, &version.to_le_bytes())?;
        self.flush()?;
        self.recycle()?;
        Ok(id)
    }

    /// The marks that can be returned to, the oldest first: id and policy version.
    pub fn marks(&self) -> Vec<(u64, u32)> {
        self.index.base.marks.iter().map(|mark| (mark.id, mark.version)).collect()
    }

    /// Return to a mark as to what training has consumed: uses, drops and evictions after it are
    /// undone. Acknowledged work that is valid under the mark's version stays: groups, tokens,
    /// finishes and scores of that version or an older one. What belongs to later versions, whose
    /// weights no longer exist, is cut, and ids go on from what is left. All leases are void.
    pub fn rewind(&mut self, mark: u64) -> Result<()> {
        let marks = &self.index.base.marks;
        let Some(found) = marks.iter().find(|kept| kept.id == mark) else {
            let kept: Vec<String> = marks.iter().map(|kept| kept.id.to_string()).collect();
            let kept = if kept.is_empty() { "none".into() } else { kept.join(", ") };
            return Err(Error::invalid("mark", mark, format!("one of those kept: {kept}")));
        };
        let (group, trajectory) = self.index.next_after(found);
        self.write_control(Kind::Rewind, mark, &ids_payload(&[group, trajectory]))?;
        if self.log.sync != Sync::Never {
            self.flush()?;
        }
        Ok(())
    }

    /// Remove groups for good: a prompt that cannot be answered, a group that nobody wants.
    pub fn drop_groups(&mut self, group_ids: &[u64]) -> Result<()> {
        for id in group_ids {
            self.group_of(*id)?;
        }
        let alive = |id: &&u64| self.index.groups.get(id).is_some_and(|g| g.gone.is_none());
        let alive: Vec<u64> = group_ids.iter().filter(alive).copied().collect();
        if !alive.is_empty() {
            self.write_control(Kind::Drop, 0, &ids_payload(&alive))?;
        }
        self.acknowledge()
    }
}
