//! The records of a log, checked on other processors ahead of who reads them.
//!
//! # Design
//!
//! Records are applied one after the other, but checking one asks for nothing of those before it, and takes
//! most of the time that opening a log does. So files are taken in order, by whoever is free: the
//! reader checks the file that it has come to by itself while it reads it, if nobody has begun it; where
//! somebody has and is not done, it checks a later one meanwhile. What is found does not depend on who
//! was faster: how far records are whole is a property of the file.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::file::{DATA, LogFile};

/// More do not help: what one thread alone can do, to apply the records, takes a fourth of the time.
const MOST_THREADS: usize = 6;

/// Up to where the records of each file are whole, as far as that is known.
pub(super) struct Checked<'a> {
    files: &'a VecDeque<LogFile>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The first file that nobody has begun.
    next: usize,
    until: Vec<Option<usize>>,
}

/// Read files with `read`, while other threads check what it will come to.
pub(super) fn ahead<'a, T>(
    files: &'a VecDeque<LogFile>,
    read: impl FnOnce(&Checked<'a>) -> T,
) -> T {
    let until = vec![None; files.len()];
    let state = Mutex::new(State { next: 0, until });
    let checked = Checked { files, state, changed: Condvar::new() };
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let helpers = processors.min(MOST_THREADS).min(files.len()).saturating_sub(1);
    thread::scope(|scope| {
        for _ in 0..helpers {
            // Without it the reader does the work itself.
            let _ = thread::Builder::new().spawn_scoped(scope, || checked.help());
        }
        let found = read(&checked);
        checked.lock().next = files.len();
        found
    })
}

impl Checked<'_> {
    /// Up to where the file with this place is known to be whole. Where nobody has begun it that is nothing:
    /// the caller checks what it reads.
    pub(super) fn until(&self, place: usize) -> usize {
        let mut state = self.lock();
        if state.next == place {
            state.next += 1;
            return 0;
        }
        loop {
            match state.until.get(place) {
                Some(None) => {}
                found => return found.copied().flatten().unwrap_or(0),
            }
            state = if let Some(claim) = self.claim(&mut state) {
                drop(state);
                self.check(claim);
                self.lock()
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn help(&self) {
        loop {
            let Some(claim) = self.claim(&mut self.lock()) else { return };
            self.check(claim);
        }
    }

    fn claim(&self, state: &mut State) -> Option<usize> {
        let place = (state.next < self.files.len()).then_some(state.next)?;
        state.next += 1;
        Some(place)
    }

    fn check(&self, place: usize) {
        // Said even if this thread panics, or the reader would wait for it.
        let mut done = Done { checked: self, place, until: 0 };
        if let Some(file) = self.files.get(place) {
            done.until = whole_until(file);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Done<'a, 'b> {
    checked: &'a Checked<'b>,
    place: usize,
    until: usize,
}

impl Drop for Done<'_, '_> {
    fn drop(&mut self) {
        if let Some(until) = self.checked.lock().until.get_mut(self.place) {
            *until = Some(self.until);
        }
        self.checked.changed.notify_all();
    }
}

/// Where the first record begins that is not whole, or the file ends.
fn whole_until(file: &LogFile) -> usize {
    let mut at = DATA;
    while at < file.end {
        match file.record(at) {
            Ok((_, _, size)) => at += size,
            Err(_) => break,
        }
    }
    at
}
