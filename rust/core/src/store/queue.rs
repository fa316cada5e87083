//! Unfinished trajectories in the orders in which they are leased.
//!
//! # Design
//!
//! A lease must not look at what it does not take: of a million trajectories, most are held, or come later.
//! So those that are free lie in a set for each order, and those that are held in the order of their
//! deadlines. Time is the caller's and may go either way: the clock of the last lease divides the
//! deadlines, and what lies between it and that of the next one changes sides.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included};

use super::lease::Order;
use super::state::Trajectory;

/// Where a trajectory stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Place {
    /// Not here: it is finished, or its group is used up or gone.
    #[default]
    Out,
    /// Free, without tokens.
    Fresh { deadline: Option<Deadline> },
    /// Free, with tokens: their oldest version, and how many there are.
    Begun { deadline: Option<Deadline>, oldest: u32, length: u32 },
    /// Somebody holds it.
    Held { deadline: Deadline },
}

impl Place {
    /// What an order goes by before the id; none of what is not free.
    pub(super) fn key(self, order: Order) -> Option<u32> {
        match (order, self) {
            (_, Self::Out | Self::Held { .. }) => None,
            (Order::Oldest, _) => Some(0),
            (_, Self::Fresh { .. }) => Some(u32::MAX),
            (Order::Stalest, Self::Begun { oldest, .. }) => Some(oldest),
            (Order::Longest, Self::Begun { length, .. }) => Some(u32::MAX - length),
        }
    }
}

/// A number of seconds that sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline(i64);

impl Deadline {
    fn new(seconds: f64) -> Self {
        // 0 and -0 are one time. The bits of negative numbers grow towards minus infinity.
        let bits = (seconds + 0.0).to_bits().cast_signed();
        Self(bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed())
    }
}

#[derive(Debug)]
pub(super) struct Queue {
    clock: Deadline,
    fresh: BTreeSet<u64>,
    begun: BTreeSet<u64>,
    /// Those of `begun`, by the oldest version and by the length, the longest first.
    stalest: BTreeSet<(u32, u64)>,
    longest: BTreeSet<(u32, u64)>,
    /// All that have a holder, on either side of the clock.
    deadlines: BTreeSet<(Deadline, u64)>,
    held: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            clock: Deadline::new(f64::NEG_INFINITY),
            fresh: BTreeSet::new(),
            begun: BTreeSet::new(),
            stalest: BTreeSet::new(),
            longest: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            held: 0,
        }
    }
}

impl Queue {
    /// How many trajectories are unfinished, free or held.
    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.begun.len() + self.held
    }

    /// Put a trajectory where it belongs; `wanted` unless it is finished or its group cannot be trained on.
    pub(super) fn place(&mut self, id: u64, trajectory: &mut Trajectory, wanted: bool) {
        let deadline = trajectory.holder.map(|holder| Deadline::new(holder.deadline));
        let place = match (deadline, trajectory.oldest_version()) {
            _ if !wanted => Place::Out,
            (Some(deadline), _) if deadline > self.clock => Place::Held { deadline },
            (deadline, None) => Place::Fresh { deadline },
            (deadline, Some(oldest)) => {
                Place::Begun { deadline, oldest, length: trajectory.length }
            }
        };
        if trajectory.place != place {
            self.remove(id, trajectory.place);
            self.insert(id, place);
            trajectory.place = place;
        }
    }

    /// Take a trajectory out.
    pub(super) fn forget(&mut self, id: u64, trajectory: &Trajectory) {
        self.remove(id, trajectory.place);
    }

    /// Set the clock. Those that change sides are to be placed again.
    pub(super) fn advance(&mut self, now: f64) -> Vec<u64> {
        let (from, now) = (self.clock, Deadline::new(now));
        self.clock = now;
        if from == now {
            return Vec::new();
        }
        let between = (Excluded((from.min(now), u64::MAX)), Included((from.max(now), u64::MAX)));
        self.deadlines.range(between).map(|(_, id)| *id).collect()
    }

    /// Those that are free at the clock's time, first things first; ties go to the lower id.
    pub(super) fn free(&self, order: Order) -> Box<dyn Iterator<Item = u64> + '_> {
        let fresh = self.fresh.iter().copied();
        match order {
            Order::Oldest => {
                let mut begun = self.begun.iter().copied().peekable();
                let mut fresh = fresh.peekable();
                Box::new(std::iter::from_fn(move || match (begun.peek(), fresh.peek()) {
                    (Some(a), Some(b)) if b < a => fresh.next(),
                    (Some(_), _) => begun.next(),
                    (None, _) => fresh.next(),
                }))
            }
            Order::Stalest => Box::new(self.stalest.iter().map(|(_, id)| *id).chain(fresh)),
            Order::Longest => Box::new(self.longest.iter().map(|(_, id)| *id).chain(fresh)),
        }
    }

    /// Those that have tokens and are free.
    pub(super) fn begun(&self) -> impl Iterator<Item = u64> {
        self.begun.iter().copied()
    }

    /// Those that have a holder, whether its deadline has passed or not: the earliest first.
    pub(super) fn held(&self) -> impl Iterator<Item = u64> {
        self.deadlines.iter().map(|(_, id)| *id)
    }

    fn insert(&mut self, id: u64, place: Place) {
        let deadline = match place {
            Place::Out => None,
            Place::Fresh { deadline } => {
                self.fresh.insert(id);
                deadline
            }
            Place::Begun { deadline, oldest, length } => {
                self.begun.insert(id);
                self.stalest.insert((oldest, id));
                self.longest.insert((u32::MAX - length, id));
                deadline
            }
            Place::Held { deadline } => {
                self.held += 1;
                Some(deadline)
            }
        };
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
    }

    fn remove(&mut self, id: u64, place: Place) {
        let deadline = match place {
            Place::Out => None,
            Place::Fresh { deadline } => {
                self.fresh.remove(&id);
                deadline
            }
            Place::Begun { deadline, oldest, length } => {
                self.begun.remove(&id);
                self.stalest.remove(&(oldest, id));
                self.longest.remove(&(u32::MAX - length, id));
                deadline
            }
            Place::Held { deadline } => {
                self.held -= 1;
                Some(deadline)
            }
        };
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;
    use crate::store::file::Location;
    use crate::store::state::{Chunk, Holder};

    /// What a lease gave when it looked at all trajectories.
    fn naive(all: &BTreeMap<u64, (Trajectory, bool)>, order: Order, now: f64) -> Vec<u64> {
        let is_free = |t: &Trajectory| t.holder.is_none_or(|holder| holder.deadline <= now);
        let key = |t: &Trajectory| match order {
            Order::Oldest => 0,
            Order::Stalest => t.oldest_version().unwrap_or(u32::MAX),
            Order::Longest => u32::MAX - t.length,
        };
        let free = all.iter().filter(|(_, (t, wanted))| *wanted && is_free(t));
        let mut free: Vec<(u32, u64)> = free.map(|(id, (t, _))| (key(t), *id)).collect();
        free.sort_unstable();
        free.into_iter().map(|(_, id)| id).collect()
    }

    proptest! {
        #[test]
        fn it_gives_what_looking_at_all_would(
            changes in prop::collection::vec((0u64..12, 0u8..6, 0u32..4, -3i8..4), 1..120),
            forgets in any::<bool>(),
        ) {
            let (mut queue, mut all) = (Queue::default(), BTreeMap::new());
            let mut clock = f64::NEG_INFINITY;
            for (id, what, amount, time) in changes {
                let (trajectory, wanted) =
                    all.entry(id).or_insert_with(|| (Trajectory::default(), true));
                let time = f64::from(time) * 0.5;
                match what {
                    0 => trajectory.holder = Some(Holder { epoch: 1, deadline: time }),
                    1 => trajectory.holder = None,
                    2 => {
                        let at = Location { file: 1, offset: 0 };
                        trajectory.chunks.push(Chunk { at, n: amount + 1, version: amount });
                        trajectory.length += amount + 1;
                    }
                    3 => *wanted = !*wanted,
                    4 if forgets => {
                        queue.forget(id, trajectory);
                        all.remove(&id);
                        continue;
                    }
                    _ => {
                        clock = time;
                        for id in queue.advance(time) {
                            if let Some((trajectory, wanted)) = all.get_mut(&id) {
                                queue.place(id, trajectory, *wanted);
                            }
                        }
                    }
                }
                if let Some((trajectory, wanted)) = all.get_mut(&id) {
                    queue.place(id, trajectory, *wanted);
                }
                for order in [Order::Oldest, Order::Stalest, Order::Longest] {
                    let found: Vec<u64> = queue.free(order).collect();
                    prop_assert_eq!(found, naive(&all, order, clock), "{:?} at {}", order, clock);
                }
                prop_assert_eq!(queue.len(), all.values().filter(|(_, wanted)| *wanted).count());
            }
        }
    }

    #[test]
    fn deadlines_sort_as_their_seconds() {
        let seconds = [f64::NEG_INFINITY, -1e15, -1.5, -0.0, 0.0, 1e-300, 2.0, 1e18, f64::INFINITY];
        assert!(seconds.windows(2).all(|pair| {
            (Deadline::new(pair[0]) < Deadline::new(pair[1])) == (pair[0] < pair[1])
        }));
    }
}
