//! Groups in the orders in which they are sampled and evicted.
//!
//! # Design
//!
//! A sample must not look at what is too stale for it, nor an eviction at every group. A group that is ready
//! has all its members finished, so its oldest version stands; one that is not is evicted only while nobody
//! holds a member, and only a holder appends. So the keys under which groups lie here change seldom.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::ids::IdMap;
use super::space::WhenFull;

/// Where a group lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shelf {
    /// Nowhere.
    #[default]
    None,
    /// It can be sampled; the oldest version of its tokens.
    Ready { oldest: u32 },
    /// It cannot be sampled yet, and nobody holds a member; what evictions go by before the id.
    Idle { age: u32 },
}

#[derive(Debug, Default)]
pub(super) struct Shelves {
    /// Ids of groups that can be sampled.
    pub(super) ready: BTreeSet<u64>,
    by_version: BTreeSet<(u32, u64)>,
    /// The same as pairs of id and version in one piece, and where each is: what draws from all of them walks
    /// through memory, where a tree's leaves lie anywhere.
    all: Vec<(u64, u32)>,
    places: IdMap<usize>,
    /// Kept where something is evicted at all.
    idle: BTreeSet<(u32, u64)>,
}

impl Shelves {
    /// Move a group.
    pub(super) fn put(&mut self, id: u64, from: Shelf, to: Shelf) {
        if from == to {
            return;
        }
        match from {
            Shelf::None => false,
            Shelf::Ready { oldest } => {
                if let Some(place) = self.places.remove(&id) {
                    self.all.swap_remove(place);
                    self.places.extend(self.all.get(place).map(|(moved, _)| (*moved, place)));
                }
                self.ready.remove(&id) && self.by_version.remove(&(oldest, id))
            }
            Shelf::Idle { age } => self.idle.remove(&(age, id)),
        };
        match to {
            Shelf::None => false,
            Shelf::Ready { oldest } => {
                self.places.insert(id, self.all.len());
                self.all.push((id, oldest));
                self.ready.insert(id) && self.by_version.insert((oldest, id))
            }
            Shelf::Idle { age } => self.idle.insert((age, id)),
        };
    }

    /// Groups that can be sampled and of which no token is older than `floor`, in no order.
    pub(super) fn fresh(&self, floor: u32) -> impl Iterator<Item = u64> {
        self.all.iter().filter(move |(_, oldest)| *oldest >= floor).map(|(id, _)| *id)
    }

    /// The same in the order of their ids. Takes time for those that are asked for and for each version.
    pub(super) fn fresh_by_id(&self, floor: u32) -> impl Iterator<Item = u64> {
        let next = |version, from| {
            let mut rest = self.by_version.range((version, from)..=(version, u64::MAX));
            rest.next().map(|&(version, id)| Reverse((id, version)))
        };
        let mut heads = BinaryHeap::new();
        let mut version = floor;
        while let Some(&(found, _)) = self.by_version.range((version, 0)..).next() {
            heads.extend(next(found, 0));
            let Some(above) = found.checked_add(1) else { break };
            version = above;
        }
        std::iter::from_fn(move || {
            let Reverse((id, version)) = heads.pop()?;
            heads.extend(next(version, id + 1));
            Some(id)
        })
    }

    /// The group that a policy evicts next. Work that is complete and was not wanted yet goes before work
    /// that has begun.
    pub(super) fn victim(&self, policy: WhenFull) -> Option<u64> {
        let ready = match policy {
            WhenFull::Refuse | WhenFull::Block => return None,
            WhenFull::EvictOldest => self.ready.first().copied(),
            WhenFull::EvictStalest => self.by_version.first().map(|(_, id)| *id),
        };
        ready.or_else(|| self.idle.first().map(|(_, id)| *id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn they_give_what_looking_at_all_would(
            moves in prop::collection::vec((0u64..20, any::<Option<bool>>(), 0u32..5), 0..60),
            floor in 0u32..7,
        ) {
            let (mut shelves, mut all) = (Shelves::default(), BTreeMap::new());
            for (id, kind, key) in moves {
                let to = match kind {
                    None => Shelf::None,
                    Some(true) => Shelf::Ready { oldest: if key == 4 { u32::MAX } else { key } },
                    Some(false) => Shelf::Idle { age: key },
                };
                let from = all.insert(id, to).unwrap_or_default();
                shelves.put(id, from, to);
            }
            let fresh = |shelf: &Shelf| matches!(shelf, Shelf::Ready { oldest } if *oldest >= floor);
            let wanted: Vec<u64> =
                all.iter().filter(|(_, shelf)| fresh(shelf)).map(|(id, _)| *id).collect();
            prop_assert_eq!(shelves.fresh_by_id(floor).collect::<Vec<_>>(), wanted.clone());
            let mut found: Vec<u64> = shelves.fresh(floor).collect();
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
            for policy in [WhenFull::Refuse, WhenFull::EvictOldest, WhenFull::EvictStalest] {
                let stalest = policy == WhenFull::EvictStalest;
                let key = |shelf: &Shelf| match *shelf {
                    Shelf::None => None,
                    Shelf::Ready { oldest } => Some((false, if stalest { oldest } else { 0 })),
                    Shelf::Idle { age } => Some((true, age)),
                };
                let first = all.iter().filter_map(|(id, shelf)| Some((key(shelf)?, *id))).min();
                let wanted = first.map(|(_, id)| id).filter(|_| policy != WhenFull::Refuse);
                prop_assert_eq!(shelves.victim(policy), wanted);
            }
        }
    }
}
