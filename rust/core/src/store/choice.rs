//! Choosing outside of the store: what can be taken, and taking what was chosen.
//!
//! Whoever has several stores chooses over all of them before anything is taken from one.

use std::collections::HashSet;

use super::Store;
use super::event::ids_payload;
use super::record::Kind;
use super::state::Group;
use crate::error::Result;
use crate::pack::Packed;

impl Store {
    /// Groups that [`Store::sample`] could take, each with its tokens, prompts included, and
    /// its prompt's id: in the order of their ids.
    pub fn candidates(
        &self,
        version: u32,
        max_staleness: u32,
        columns: Option<&[&str]>,
    ) -> Result<Vec<(u64, u64, i64)>> {
        let needed = self.numbers_of(columns.unwrap_or_default())?;
        let has_columns = |group: &Group| needed.iter().all(|c| self.has_column(group, *c));
        let floor = version.saturating_sub(max_staleness);
        let groups = self.index.shelves.fresh_by_id(floor);
        let groups = groups.filter_map(|id| Some((id, self.index.groups.get(&id)?)));
        let groups = groups.filter(|(_, group)| has_columns(group));
        let candidate =
            |(id, group): (u64, &Group)| (id, self.tokens_in(group) as u64, group.prompt_id);
        Ok(groups.map(candidate).collect())
    }

    /// Take these groups into `batch`, in this order, and record their use. Those that cannot be
    /// sampled, or not any more, are passed over.
    pub fn take(
        &mut self,
        group_ids: &[u64],
        columns: Option<&[&str]>,
        batch: &mut Packed,
    ) -> Result<()> {
        let needed = self.numbers_of(columns.unwrap_or_default())?;
        let all = || (0..).zip(self.columns()).map(|(number, _)| number).collect();
        let packed = columns.map_or_else(all, |_| needed.clone());
        let mut seen = HashSet::new();
        let can_be_taken = |id: &u64| {
            let group = self.index.groups.get(id).filter(|_| self.index.shelves.ready.contains(id));
            group.is_some_and(|group| needed.iter().all(|c| self.has_column(group, *c)))
        };
        let taken: Vec<u64> =
            group_ids.iter().copied().filter(|id| can_be_taken(id) && seen.insert(*id)).collect();
        self.pack(&taken, &packed, 0, batch)?;
        if !taken.is_empty() {
            self.write_control(Kind::Use, 0, &ids_payload(&taken))?;
        }
        self.acknowledge()
    }

    fn numbers_of(&self, columns: &[&str]) -> Result<Vec<u16>> {
        columns.iter().map(|name| self.column_of(name).map(|found| found.0)).collect()
    }
}
