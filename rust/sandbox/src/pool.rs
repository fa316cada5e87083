//! A pool of slots: made in advance, reused, looked after, replaced when they break.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::Step;
use crate::runner::{Runner, RunnerSlot};
use crate::{Error, Job, Outcome, Result};

/// How often a job is tried when slots break under it.
const ATTEMPTS: usize = 3;
/// How long a slot above the least number stays without work.
const IDLE: Duration = Duration::from_secs(30);

/// Slots of one runner. It grows up to `most` as runs overlap and shrinks to `least` when they stop.
///
/// # Design
///
/// A run takes a slot, uses it on the caller's own thread and gives it back: no run changes threads. Slots
/// are opened and closed by one thread of the pool, the keeper, because the kernel kills a spawner
/// when the thread that started it ends.
pub struct Pool {
    shared: Arc<Shared>,
    keeper: Mutex<Option<Keeper>>,
    owner: u32,
}

struct Shared {
    runner: Box<dyn Runner>,
    least: usize,
    most: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    /// The one used last is at the end and is used next: its memory is in the caches.
    idle: Vec<Entry>,
    /// Slots that are open, idle or not, and those being opened.
    open: usize,
    closed: bool,
}

struct Entry {
    slot: Box<dyn RunnerSlot>,
    since: Instant,
}

struct Keeper {
    thread: JoinHandle<()>,
    requests: Sender<Sender<Result<Entry>>>,
}

impl Pool {
    /// Opens a pool with `least` slots at once, and at most `most` later.
    ///
    /// # Errors
    ///
    /// What opening a slot says, or [`Error::InvalidInput`] for counts that make no sense.
    pub fn open(runner: Box<dyn Runner>, least: usize, most: usize) -> Result<Self> {
        if !(1..=4096).contains(&most) {
            return Err(Error::invalid("slots", most, "between 1 and 4096"));
        }
        let (state, freed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { runner, least: least.min(most), most, state, freed });
        let (requests, inbox) = mpsc::channel();
        let kept = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("k15-keeper".into())
            .spawn(move || keep(&kept, &inbox))
            .step(|| "start the pool's thread".into())?;
        let keeper = Mutex::new(Some(Keeper { thread, requests }));
        let pool = Self { shared, keeper, owner: std::process::id() };
        for _ in 0..pool.shared.least {
            pool.shared.lock().open += 1;
            let entry = pool.open_slot()?;
            pool.shared.lock().idle.push(entry);
        }
        Ok(pool)
    }

    /// The runner's name.
    #[must_use]
    pub fn runner(&self) -> &'static str {
        self.shared.runner.name()
    }

    /// The most slots that it opens.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shared.most
    }

    /// How many slots are open now.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.shared.lock().open
    }

    /// Runs `job` in a slot of its own, waiting for one if all are busy.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a job that makes no sense, [`Error::Closed`] after [`Pool::close`] or in
    /// a process that was forked from the pool's. A slot that breaks is replaced and the job run again; if
    /// that keeps happening the verdict is `sandbox_error`.
    pub fn run(&self, job: &Job) -> Result<Outcome> {
        self.shared.runner.check(job)?;
        let mut said = String::new();
        for _ in 0..ATTEMPTS {
            let mut entry = match self.take() {
                Err(Error::SlotBroken(message)) => {
                    said = message;
                    continue;
                }
                other => other?,
            };
            match entry.slot.run(job) {
                Err(Error::SlotBroken(message)) => {
                    said = message;
                    drop(entry);
                    self.lost_one();
                }
                result => {
                    self.give_back(entry);
                    return result;
                }
            }
        }
        Ok(Outcome::sandbox_error(format!("{ATTEMPTS} slots broke in a row; the last: {said}")))
    }

    /// Runs all `jobs`, keeping as many slots busy as there are; results are in the order of jobs.
    ///
    /// # Errors
    ///
    /// The first error of [`Pool::run`] in the order of jobs; the others have run all the same.
    pub fn run_many(&self, jobs: &[Job]) -> Result<Vec<Outcome>> {
        crate::parallel::map(jobs, self.shared.most, |job| self.run(job)).into_iter().collect()
    }

    fn take(&self) -> Result<Entry> {
        self.check_process()?;
        let mut state = self.shared.lock();
        loop {
            if state.closed {
                return Err(Error::Closed(""));
            }
            if let Some(entry) = state.idle.pop() {
                if entry.slot.is_well() {
                    return Ok(entry);
                }
                state.open -= 1;
                drop(state);
                drop(entry); // takes a while: it waits for the spawner's end
                state = self.shared.lock();
            } else if state.open < self.shared.most {
                state.open += 1;
                drop(state);
                return self.open_slot();
            } else {
                state = self.shared.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Has the keeper open a slot, which the caller has counted already.
    fn open_slot(&self) -> Result<Entry> {
        let (answer, result) = mpsc::channel();
        let asked = match &*self.keeper.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(keeper) => keeper.requests.send(answer).is_ok(),
            None => false,
        };
        let opened = if asked {
            result.recv().unwrap_or(Err(Error::Closed("")))
        } else {
            Err(Error::Closed(""))
        };
        if opened.is_err() {
            self.lost_one();
        }
        opened
    }

    fn lost_one(&self) {
        self.shared.lock().open -= 1;
        self.shared.freed.notify_one();
    }

    fn give_back(&self, mut entry: Entry) {
        entry.since = Instant::now();
        let mut state = self.shared.lock();
        if state.closed {
            state.open -= 1;
            drop(state);
            drop(entry);
            self.shared.freed.notify_all();
            return;
        }
        state.idle.push(entry);
        drop(state);
        self.shared.freed.notify_one();
    }

    /// Ends every slot. Runs that are under way are waited for; later ones are refused. `false` if there
    /// was nothing to end: in a process that was forked from the pool's.
    pub fn close(&self) -> bool {
        if self.check_process().is_err() {
            return false;
        }
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.freed.notify_all();
        loop {
            let idle = std::mem::take(&mut state.idle);
            state.open -= idle.len();
            if state.open == 0 && idle.is_empty() {
                break;
            }
            drop(state);
            drop(idle);
            state = self.shared.lock();
            if state.open > 0 && state.idle.is_empty() {
                state = self.shared.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(state);
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Keeper { thread, requests }) = keeper {
            drop(requests);
            let _ = thread.join();
        }
        true
    }

    /// A forked child has neither the keeper nor the spawners: what it holds is its parent's.
    fn check_process(&self) -> Result<()> {
        if std::process::id() == self.owner {
            Ok(())
        } else {
            Err(Error::Closed(" in this process: it belongs to the one that opened it"))
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// The state. A panic elsewhere leaves it whole: it is only counted and pushed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes slots that had nothing to do for long, above the least number.
    fn take_surplus(&self) -> Vec<Entry> {
        let mut state = self.lock();
        let mut surplus = Vec::new();
        while state.open > self.least
            && state.idle.first().is_some_and(|entry| entry.since.elapsed() > IDLE)
        {
            surplus.push(state.idle.remove(0));
            state.open -= 1;
        }
        surplus
    }
}

/// A step that failed because a process of the slot was killed meanwhile says nothing of this host.
fn broken_if_killed(error: Error) -> Error {
    match error {
        Error::System { step, source } if source.raw_os_error() == Some(libc::ESRCH) => {
            Error::SlotBroken(format!("cannot {step}: a process of it was killed"))
        }
        other => other,
    }
}

/// The keeper's life: opens slots when asked, closes those that have nothing to do.
fn keep(shared: &Shared, inbox: &Receiver<Sender<Result<Entry>>>) {
    let mut number = 0;
    loop {
        match inbox.recv_timeout(IDLE / 4) {
            Ok(answer) => {
                number += 1;
                let opened = shared.runner.open(number).map_err(broken_if_killed);
                let entry = opened.map(|slot| Entry { slot, since: Instant::now() });
                // Nobody waits for it any more if that fails: the slot is closed again.
                let _ = answer.send(entry);
            }
            Err(RecvTimeoutError::Timeout) => drop(shared.take_surplus()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
