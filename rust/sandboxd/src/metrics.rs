//! What is counted, in Prometheus' text format.

use std::sync::atomic::{AtomicU64, Ordering};

use k15_sandbox::Steps;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::sessions::Counts;

/// A run's labels.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Run {
    language: String,
    verdict: &'static str,
}

/// A request's labels.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Request {
    path: &'static str,
    status: u16,
}

/// Why something was refused.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reject {
    reason: &'static str,
}

/// How many places there are of each kind.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Slots {
    state: &'static str,
}

type Gauges<L> = Family<L, Gauge<i64, std::sync::atomic::AtomicI64>>;

/// All metrics.
pub struct Metrics {
    registry: Registry,
    runs: Family<Run, Counter<u64, AtomicU64>>,
    requests: Family<Request, Counter<u64, AtomicU64>>,
    rejects: Family<Reject, Counter<u64, AtomicU64>>,
    slots: Gauges<Slots>,
    waiting: Gauge,
    sessions: Gauge,
    session_bytes: Gauge,
    sessions_ended: Family<Reject, Counter<u64, AtomicU64>>,
    wait: Histogram,
    run_time: Histogram,
}

impl Metrics {
    /// Metrics that all start at nothing.
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_5, 2.0, 18));
        let mut metrics = Self {
            registry: Registry::with_prefix("k15_sandboxd"),
            runs: Family::default(),
            requests: Family::default(),
            rejects: Family::default(),
            slots: Family::default(),
            waiting: Gauge::default(),
            sessions: Gauge::default(),
            session_bytes: Gauge::default(),
            sessions_ended: Family::default(),
            wait: seconds(),
            run_time: seconds(),
        };
        let registry = &mut metrics.registry;
        registry.register("runs", "Runs by language and verdict", metrics.runs.clone());
        registry.register("requests", "Answers by path and status", metrics.requests.clone());
        registry.register("rejects", "Requests that were not run", metrics.rejects.clone());
        registry.register("slots", "Slots: open, busy, and the most", metrics.slots.clone());
        registry.register("waiting", "Requests that wait for a slot", metrics.waiting.clone());
        registry.register("sessions", "Sessions that are open", metrics.sessions.clone());
        let bytes = metrics.session_bytes.clone();
        registry.register_with_unit("session", "What sessions set aside", Unit::Bytes, bytes);
        let ended = metrics.sessions_ended.clone();
        registry.register("sessions_ended", "Sessions that have ended, and why", ended);
        let (wait, run_time) = (metrics.wait.clone(), metrics.run_time.clone());
        registry.register_with_unit("wait", "Time before the start", Unit::Seconds, wait);
        registry.register_with_unit("run", "Wall time of a run", Unit::Seconds, run_time);
        metrics
    }

    /// Counts a run.
    pub fn ran(&self, language: String, steps: &Steps) {
        let verdict = steps.verdict().name();
        self.runs.get_or_create(&Run { language, verdict }).inc();
        self.run_time.observe(steps.wall_time().as_secs_f64());
    }

    /// Counts how long a request waited.
    pub fn waited(&self, seconds: f64) {
        self.wait.observe(seconds);
    }

    /// Counts a request that was not run.
    pub fn rejected(&self, reason: &'static str) {
        self.rejects.get_or_create(&Reject { reason }).inc();
    }

    /// Counts an answer.
    pub fn answered(&self, path: &'static str, status: u16) {
        self.requests.get_or_create(&Request { path, status }).inc();
    }

    /// Notes how many sessions there are and were.
    pub fn count_sessions(&self, counts: Counts) {
        self.sessions.set(i64::try_from(counts.open).unwrap_or(i64::MAX));
        self.session_bytes.set(i64::try_from(counts.bytes).unwrap_or(i64::MAX));
        for (reason, count) in [("closed", counts.closed), ("expired", counts.expired)] {
            let ended = self.sessions_ended.get_or_create(&Reject { reason });
            ended.inner().store(count, Ordering::Relaxed);
        }
    }

    /// The text, with what is true now.
    pub fn text(&self, most: usize, open: usize, busy: usize, waiting: usize) -> String {
        for (state, count) in [("most", most), ("open", open), ("busy", busy)] {
            self.slots
                .get_or_create(&Slots { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
