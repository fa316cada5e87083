//! The daemon's parts together.

use std::sync::Arc;

use k15_sandbox::{Cancel, Command, Sandbox, Steps, Submission};

use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::queue::{Call, Queue, Refused};
use crate::sessions::Sessions;

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] k15_sandbox::Error),
    /// The operating system.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried.
        step: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// What handlers work with.
pub struct App {
    /// The settings.
    pub config: Config,
    /// What callers must know.
    pub token: Option<String>,
    /// Where programs run.
    pub sandbox: Arc<Sandbox>,
    /// Who runs next.
    pub queue: Queue,
    /// What lives over several steps.
    pub sessions: Arc<Sessions>,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why a submission has no outcome.
#[derive(Debug)]
pub enum Fault {
    /// It was not run.
    Refused(Refused),
    /// It makes no sense, or the sandbox cannot run it.
    Sandbox(k15_sandbox::Error),
}

impl App {
    /// Opens the sandbox.
    ///
    /// # Errors
    ///
    /// [`Error`] says what is wrong with the settings or the host.
    pub fn open(mut config: Config) -> Result<Self, Error> {
        config.http.connections = config.http.connections.min(connections(config.sandbox.slots));
        let token = config.token()?;
        let sandbox = Arc::new(Sandbox::open(&config.options()?)?);
        // Each that waits holds a connection; some must be left to tell the others that it is too many.
        let most = config.queue.most_waiting.min(config.http.connections.div_ceil(4) * 3);
        let start_within = config.start_within();
        let queue = Queue::new(config.sandbox.slots, most, start_within)
            .map_err(|source| Error::System { step: "start threads".into(), source })?;
        let sessions = &config.sessions;
        let sessions = Arc::new(Sessions::new(sessions.most, sessions.bytes));
        Ok(Self { config, token, sandbox, queue, sessions, metrics: Metrics::new() })
    }

    /// [`App::run_call`] for a client that can wait as long as is usual.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    pub async fn run(&self, client: &str, submission: Submission) -> Result<Steps, Fault> {
        self.run_call(self.queue.usual_call(client), submission).await
    }

    /// Runs a submission for a client, when its turn comes. Dropping this ends the run.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    pub async fn run_call(
        &self,
        call: Call<'_>,
        mut submission: Submission,
    ) -> Result<Steps, Fault> {
        let cancel = or_new(submission.cancel.take())?;
        submission.cancel = Some(Arc::clone(&cancel));
        let language = submission.language.clone();
        let sandbox = Arc::clone(&self.sandbox);
        self.queued(call, cancel, language, move || sandbox.run_steps(&submission)).await
    }

    /// Runs a command for `client`, when its turn comes. Dropping this ends the run.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    pub async fn run_command(&self, client: &str, mut command: Command) -> Result<Steps, Fault> {
        let cancel = or_new(command.cancel.take())?;
        command.cancel = Some(Arc::clone(&cancel));
        let sandbox = Arc::clone(&self.sandbox);
        let work = move || {
            let run = Some(sandbox.run_command(&command)?);
            Ok(Steps { compile: None, run })
        };
        self.queued(self.queue.usual_call(client), cancel, "command".into(), work).await
    }

    async fn queued(
        &self,
        call: Call<'_>,
        cancel: Arc<Cancel>,
        language: String,
        work: impl FnOnce() -> k15_sandbox::Result<Steps> + Send + 'static,
    ) -> Result<Steps, Fault> {
        let done = self.queue.run_call(call, cancel, work).await.map_err(|refused| {
            self.metrics.rejected(match refused {
                Refused::Busy(_) => "busy",
                Refused::Stopping => "stopping",
                Refused::Broken => "broken",
            });
            Fault::Refused(refused)
        })?;
        self.metrics.waited(done.waited.as_secs_f64());
        let steps = done.result.map_err(Fault::Sandbox)?;
        self.metrics.ran(language, &steps);
        Ok(steps)
    }
}

/// How many connections there are descriptors for, after as many have been asked for as can be had.
fn connections(slots: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// What the daemon itself needs, what each slot, and what a connection with its request.
    const OWN: usize = 64;
    const OF_A_SLOT: usize = 16;
    const OF_A_CONNECTION: usize = 2;
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Not to have more is no reason to stop.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let most = getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok());
    most.map_or(usize::MAX, |most| {
        (most.saturating_sub(OWN + OF_A_SLOT * slots) / OF_A_CONNECTION).max(1)
    })
}

/// What ends a run: what its caller has, or a new one.
fn or_new(given: Option<Arc<Cancel>>) -> Result<Arc<Cancel>, Fault> {
    given.map_or_else(|| Cancel::new().map(Arc::new).map_err(Fault::Sandbox), Ok)
}
