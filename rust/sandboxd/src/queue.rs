//! Who runs next, and who need not wait.
//!
//! # Design
//!
//! As many threads as there are slots take tickets, one client's after the other's, so that nobody's
//! thousand stand before another's one. A caller is told at once when it cannot expect to start in time:
//! it then asks again elsewhere or later, and its own patience is not used up here. The expectation is the
//! usual length of a run (an exponential mean, or how long those under way have taken if that is longer)
//! times the tickets that would go first, over the threads.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k15_sandbox::Cancel;
use tokio::sync::oneshot;

/// How much the last run counts in the mean.
const NEWEST: f64 = 0.1;

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
    /// The client at the front is served next, and then goes to the back.
    lines: VecDeque<Line>,
    waiting: usize,
    running: BTreeMap<u64, Instant>,
    /// Seconds that a run takes.
    mean: f64,
    next: u64,
    is_closed: bool,
}

struct Line {
    client: String,
    tickets: VecDeque<Ticket>,
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

    /// Has `work` done for `client`. A caller that drops this takes its place back, or ends the run by
    /// `cancel`.
    pub async fn run<T: Send + 'static>(
        &self,
        client: &str,
        cancel: Arc<Cancel>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Done<T>, Refused> {
        let arrived = Instant::now();
        let (started, mut starts) = oneshot::channel();
        let (answer, answers) = oneshot::channel();
        let work = Box::new(move || {
            let _ = answer.send(work());
        });
        let id = self.shared.admit(client, started, work)?;
        let mut place = Place { shared: &self.shared, id, cancel: Some(cancel) };
        // Whatever happens at the last moment: who was started has started.
        if tokio::time::timeout(self.shared.start_within, &mut starts).await.is_err() {
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
        (state.waiting, state.running.len())
    }

    /// Whether nobody is let in: it is full, or closed.
    pub fn is_full(&self) -> bool {
        let state = self.shared.lock();
        state.is_closed || state.waiting >= self.shared.most_waiting
    }

    /// Refuses all that wait or come later, and waits for the runs under way.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.waiting = 0;
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

    fn admit(
        &self,
        client: &str,
        started: oneshot::Sender<()>,
        work: Box<dyn FnOnce() + Send>,
    ) -> Result<u64, Refused> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refused::Stopping);
        }
        let expected = state.expected_wait(client, self.threads);
        if expected > self.start_within || state.waiting >= self.most_waiting {
            let over = expected.saturating_sub(self.start_within);
            return Err(Refused::Busy(over.max(Duration::from_secs(1))));
        }
        let id = state.next;
        state.next += 1;
        state.waiting += 1;
        let ticket = Ticket { id, started, work };
        match state.lines.iter_mut().find(|line| line.client == client) {
            Some(line) => line.tickets.push_back(ticket),
            None => {
                let (client, tickets) = (client.to_owned(), VecDeque::from([ticket]));
                state.lines.push_back(Line { client, tickets });
            }
        }
        drop(state);
        self.ready.notify_one();
        Ok(id)
    }

    /// A thread's life.
    fn serve(&self) {
        while let Some(ticket) = self.next() {
            let start = Instant::now();
            if ticket.started.send(()).is_ok() {
                // It was counted among the running when it was taken.
                let _ = catch_unwind(AssertUnwindSafe(ticket.work));
                self.lock().learn(start.elapsed());
            }
            self.lock().running.remove(&ticket.id);
        }
    }

    fn next(&self) -> Option<Ticket> {
        let mut state = self.lock();
        loop {
            if let Some(ticket) = state.take() {
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
    fn take(&mut self) -> Option<Ticket> {
        let mut line = self.lines.pop_front()?;
        let ticket = line.tickets.pop_front();
        if !line.tickets.is_empty() {
            self.lines.push_back(line);
        }
        self.waiting -= usize::from(ticket.is_some());
        ticket
    }

    fn remove(&mut self, id: u64) -> bool {
        for line in &mut self.lines {
            if let Some(place) = line.tickets.iter().position(|ticket| ticket.id == id) {
                line.tickets.remove(place);
                self.waiting -= 1;
                self.lines.retain(|line| !line.tickets.is_empty());
                return true;
            }
        }
        false
    }

    fn learn(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.mean = if self.mean == 0.0 { took } else { self.mean + NEWEST * (took - self.mean) };
    }

    fn expected_wait(&self, client: &str, threads: usize) -> Duration {
        if self.waiting + self.running.len() < threads {
            return Duration::ZERO;
        }
        let length = |line: &Line| line.tickets.len();
        let own = self.lines.iter().find(|line| line.client == client).map_or(0, length);
        let of_others = self.lines.iter().filter(|line| line.client != client).map(length);
        let ahead = own + of_others.map(|n| n.min(own + 1)).sum::<usize>();
        let elapsed: f64 = self.running.values().map(|start| start.elapsed().as_secs_f64()).sum();
        let usual = self.mean.max(elapsed / self.running.len().max(1) as f64);
        Duration::from_secs_f64(usual * (ahead + 1) as f64 / threads as f64)
    }
}

/// A caller's place in the queue or in a slot: given up when it is dropped.
struct Place<'a> {
    shared: &'a Shared,
    id: u64,
    /// None once the run has ended.
    cancel: Option<Arc<Cancel>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take()
            && !self.shared.lock().remove(self.id)
        {
            cancel.cancel();
        }
    }
}
