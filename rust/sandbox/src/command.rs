//! A command instead of a source.

use std::sync::Arc;

use crate::language::LimitChanges;
use crate::submission::add;
use crate::{Cancel, Job, Outcome, Result, Sandbox, Tree};

/// A program of the root, or of the work directory, with its words.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program's path in the sandbox, and its arguments.
    pub words: Vec<String>,
    /// `NAME=value`, over what every run has.
    pub environment: Vec<String>,
    /// What it can read from its standard input.
    pub stdin: Vec<u8>,
    /// Files that are wanted when it has ended, by relative path.
    pub fetch: Vec<String>,
    /// What it may use, over the sandbox's own.
    pub limits: LimitChanges,
    /// As [`crate::Submission::work`].
    pub work: Option<Arc<Tree>>,
    /// With this the caller can end it before its time.
    pub cancel: Option<Arc<Cancel>>,
}

impl Sandbox {
    /// Runs a command in the environment that every run has, with its own.
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::run`].
    pub fn run_command(&self, command: &Command) -> Result<Outcome> {
        let limits = command.limits.apply(&self.default_limits)?;
        self.check_share(&limits)?;
        self.pool.run(&Job {
            program: command.words.first().cloned().unwrap_or_default(),
            arguments: command.words.clone(),
            environment: add(&self.environment, &command.environment),
            stdin: command.stdin.clone(),
            fetch: command.fetch.clone(),
            work: command.work.clone(),
            keeps_work: command.work.is_some(),
            limits,
            cancel: command.cancel.clone(),
            ..Job::default()
        })
    }
}
