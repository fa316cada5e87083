//! Who was turned away and may come again.
//!
//! A client of SandboxFusion that is told 504 asks again after a second and after two more, and then gives
//! the program up as wrong. So whoever comes again within that time is let in before those who
//! came later, and some room is kept for it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// For how long one is expected to come again.
pub const MEMORY: Duration = Duration::from_secs(3);
/// Most that are remembered.
const MOST: usize = 1 << 16;

/// Those who were turned away lately.
#[derive(Default)]
pub struct Away {
    /// By what they are known by: when each came first, under its number.
    first: HashMap<u64, VecDeque<(u64, Instant)>>,
    /// When each was turned away last, in that order, with what it is known by and its number.
    order: VecDeque<(Instant, u64, u64)>,
    len: usize,
    next: u64,
}

impl Away {
    /// Remembers one who came first at `first` and is turned away `now`.
    pub fn remember(&mut self, known_by: u64, first: Instant, now: Instant) {
        self.forget(now);
        self.first.entry(known_by).or_default().push_back((self.next, first));
        self.order.push_back((now, known_by, self.next));
        self.next += 1;
        self.len += 1;
    }

    /// When one who comes came first, if it was turned away lately. It is no longer away.
    pub fn take_back(&mut self, known_by: u64, now: Instant) -> Option<Instant> {
        self.forget(now);
        let same = self.first.get_mut(&known_by)?;
        let (_, first) = same.pop_front()?;
        if same.is_empty() {
            self.first.remove(&known_by);
        }
        self.len -= 1;
        Some(first)
    }

    /// How many may still come again.
    pub fn count(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.len
    }

    fn forget(&mut self, now: Instant) {
        while let Some(&(at, known_by, number)) = self.order.front() {
            if now < at + MEMORY && self.order.len() < MOST {
                return;
            }
            self.order.pop_front();
            let Some(same) = self.first.get_mut(&known_by) else { continue };
            let before = same.len();
            same.retain(|(other, _)| *other != number);
            self.len -= before - same.len();
            if same.is_empty() {
                self.first.remove(&known_by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_remembered_once_and_for_a_while() {
        let (mut away, start) = (Away::default(), Instant::now());
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        away.remember(7, at(0), at(0));
        away.remember(7, at(1), at(1));
        away.remember(8, at(2), at(2));
        assert_eq!(away.count(at(2)), 3);
        assert_eq!(away.take_back(7, at(10)), Some(at(0)));
        // Turned away again, it is as old as before.
        away.remember(7, at(0), at(10));
        assert_eq!(away.take_back(7, at(20)), Some(at(1)));
        assert_eq!(away.take_back(7, at(30)), Some(at(0)));
        assert_eq!(away.take_back(7, at(30)), None);
        assert_eq!((away.count(at(31)), away.count(at(33))), (1, 0));
        assert_eq!(away.take_back(8, at(33)), None);
        assert_eq!(away.count(at(40)), 0);
        assert!(away.first.is_empty() && away.order.is_empty());
    }
}
