//! Who runs next, and who need not wait.
//!
//! # Design
//!
//! As many threads as there are slots take tickets, one client's after the other's, so that nobody's
//! thousand stand before another's one. A caller is told at once when it cannot expect to start in time:
//! it then asks again elsewhere or later, and its own patience is not used up here. What it can expect is
//! in `expect.rs`. Whoever was told so and comes again is as old as when it first came, and stands
//! before those who came meanwhile: `away.rs`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k15_sandbox::Cancel;
use tokio::sync::oneshot;

use crate::away::{Away, MEMORY};
use crate::expect::{Usual, count};
use crate::lines::{Lines, Order};

/// The part of the time that a request can wait which it may be expected to wait: nobody knows how long runs
/// take, and who has waited in vain has lost its time.
const SURE: f64 = 0.875;

/// Why a request was not run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refused {
    /// It could not start in time. Another try makes sense after so long.
    Busy(Duration),
    /// The daemon is stopping.
    Stopping,
    /// The thread that ran it broke: a fault of the daemon's own.
    Broken,
}

/// What came of a request.
#[derive(Debug)]
pub struct Done<T> {
    /// What its work returned.
    pub result: T,
    /// How long it waited.
    pub waited: Duration,
}

/// See the module.
pub struct Queue {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    threads: usize,
    most_waiting: usize,
    start_within: Duration,
}

#[derive(Default)]
struct State {
    lines: Lines<Ticket>,
    running: BTreeMap<u64, Instant>,
    usual: Usual,
    away: Away,
    next: u64,
    is_closed: bool,
}

/// Who asks, and how long it can wait.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Whose turn it takes.
    pub client: &'a str,
    /// By then it must start.
    pub within: Duration,
    /// What is the same when the same call comes again, if it can be told.
    pub known_by: Option<u64>,
}

struct Ticket {
    id: u64,
    started: oneshot::Sender<()>,
    work: Box<dyn FnOnce() + Send>,
}

impl Queue {
    /// A queue with `threads` threads.
    ///
    /// # Errors
    ///
    /// If they cannot be started.
    pub fn new(
        threads: usize,
        most_waiting: usize,
        start_within: Duration,
    ) -> std::io::Result<Self> {
        let (state, ready) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, ready, threads, most_waiting, start_within });
        let start = |number: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("k15-run-{number}")).spawn(move || shared.serve())
        };
        let threads = (0..threads).map(start).collect::<Result<_, _>>()?;
        Ok(Self { shared, threads: Mutex::new(threads) })
    }

    /// A call that can wait as long as is usual.
    pub fn usual_call<'a>(&self, client: &'a str) -> Call<'a> {
        Call { client, within: self.shared.start_within, known_by: None }
    }

    /// [`Queue::run_call`] for a client that can wait as long as is usual.
    #[cfg(test)]
    pub async fn run<T: Send + 'static>(
        &self,
        client: &str,
        cancel: Arc<Cancel>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Done<T>, Refused> {
        self.run_call(self.usual_call(client), cancel, work).await
    }

    /// Has `work` done. A caller that drops this takes its place back, or ends the run by `cancel`.
    pub async fn run_call<T: Send + 'static>(
        &self,
        call: Call<'_>,
        cancel: Arc<Cancel>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Done<T>, Refused> {
        let arrived = Instant::now();
        let (started, mut starts) = oneshot::channel();
        let (answer, answers) = oneshot::channel();
        let work = Box::new(move || {
            let _ = answer.send(work());
        });
        let (client, order) = self.shared.admit(&call, started, work)?;
        let mut place = Place { shared: &self.shared, client, order, cancel: Some(cancel) };
        // Whatever happens at the last moment: who was started has started.
        if tokio::time::timeout(call.within, &mut starts).await.is_err() {
            starts.close();
            if starts.try_recv().is_err() {
                return Err(Refused::Busy(Duration::from_secs(1)));
            }
        }
        let waited = arrived.elapsed();
        let result = answers.await;
        place.cancel = None;
        match result {
            Ok(result) => Ok(Done { result, waited }),
            Err(_) if self.shared.lock().is_closed => Err(Refused::Stopping),
            Err(_) => Err(Refused::Broken),
        }
    }

    /// How many wait, and how many run.
    pub fn load(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.lines.len(), state.running.len())
    }

    /// Whether nobody is let in: it is full, or closed.
    pub fn is_full(&self) -> bool {
        let state = self.shared.lock();
        state.is_closed || state.lines.len() >= self.shared.most_waiting
    }

    /// Refuses all that wait or come later, and waits for the runs under way.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        let dropped = std::mem::take(&mut state.lines);
        drop(state);
        drop(dropped);
        self.shared.ready.notify_all();
    }

    /// Waits for the threads to end, after [`Queue::close`].
    pub fn join(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call in: its client, and its place in that one's line.
    fn admit(
        &self,
        call: &Call<'_>,
        started: oneshot::Sender<()>,
        work: Box<dyn FnOnce() + Send>,
    ) -> Result<(Arc<str>, Order), Refused> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refused::Stopping);
        }
        let now = Instant::now();
        let came = call.known_by.and_then(|known_by| state.away.take_back(known_by, now));
        let first = came.unwrap_or(now);
        let id = state.next;
        let order = (first + call.within, id);
        let expected = state.expected_wait(call.client, order, self.threads, now);
        let most = if came.is_some() {
            call.within
        } else {
            let kept = state.kept_room(self.threads, now).min(call.within / 2);
            call.within.mul_f64(SURE).saturating_sub(kept)
        };
        if expected > most || state.lines.len() >= self.most_waiting {
            if let Some(known_by) = call.known_by {
                state.away.remember(known_by, first, now);
            }
            let over = expected.saturating_sub(most);
            return Err(Refused::Busy(over.max(Duration::from_secs(1))));
        }
        state.next += 1;
        let client = Arc::from(call.client);
        state.lines.push(&client, order, Ticket { id, started, work });
        drop(state);
        self.ready.notify_one();
        Ok((client, order))
    }

    /// A thread's life.
    fn serve(&self) {
        while let Some(ticket) = self.next() {
            let start = Instant::now();
            if ticket.started.send(()).is_ok() {
                // It was counted among the running when it was taken.
                let _ = catch_unwind(AssertUnwindSafe(ticket.work));
                self.lock().usual.learn(start.elapsed().as_secs_f64());
            }
            self.lock().running.remove(&ticket.id);
        }
    }

    fn next(&self) -> Option<Ticket> {
        let mut state = self.lock();
        loop {
            if let Some(ticket) = state.lines.pop() {
                state.running.insert(ticket.id, Instant::now());
                return Some(ticket);
            }
            if state.is_closed {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn expected_wait(&self, client: &str, order: Order, threads: usize, now: Instant) -> Duration {
        if self.lines.len() + self.running.len() < threads {
            return Duration::ZERO;
        }
        let elapsed = self.running.values().map(|start| (now - *start).as_secs_f64());
        let idle = threads.saturating_sub(self.running.len());
        // A thread that is about to take a ticket has what is usual before it.
        let idle = std::iter::repeat_n(self.usual.seconds(), idle);
        let ahead = self.lines.ahead(client, order);
        Duration::try_from_secs_f64(self.usual.until_start(ahead, elapsed.chain(idle)))
            .unwrap_or(Duration::MAX)
    }

    /// What those who may come again would take: newcomers leave it to them, for as long as they may come.
    fn kept_room(&mut self, threads: usize, now: Instant) -> Duration {
        let seconds = self.usual.seconds() * count(self.away.count(now)) / count(threads);
        Duration::try_from_secs_f64(seconds).unwrap_or(MEMORY).min(MEMORY)
    }
}

/// A caller's place in the queue or in a slot: given up when it is dropped.
struct Place<'a> {
    shared: &'a Shared,
    client: Arc<str>,
    order: Order,
    /// None once the run has ended.
    cancel: Option<Arc<Cancel>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take()
            && !self.shared.lock().lines.remove(&self.client, self.order)
        {
            cancel.cancel();
        }
    }
}
