//! The one error type of the crate.

use std::fmt;

/// What went wrong, in words a user can act on.
///
/// A run that ends badly is no error: it has a [`crate::Verdict`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside what the function accepts.
    #[error("{field} = {value}: expected {expected}")]
    InvalidInput {
        /// The argument's name, as the caller wrote it.
        field: &'static str,
        /// The value that was given.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// This host cannot hold a run to something that was asked for.
    #[error("this host cannot enforce {what}: {why}. {remedy}")]
    Unenforceable {
        /// The limit or the isolation, by the name under which it can be allowed to be missing.
        what: &'static str,
        /// What is missing.
        why: String,
        /// How to get it, or how to do without.
        remedy: String,
    },
    /// A program that a runner needs is not on this host.
    #[error("{what}, is missing. {remedy}")]
    Missing {
        /// What it is.
        what: &'static str,
        /// How to get it, or how to do without.
        remedy: &'static str,
    },
    /// The kernel refused a step of setting up.
    #[error("cannot {step}: {source}")]
    System {
        /// The step, as a verb and its object.
        step: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A slot broke: its spawner is gone or talks nonsense. The pool replaces it.
    #[error("the slot broke: {0}")]
    SlotBroken(String),
    /// The pool is closed, or belongs to another process.
    #[error("the sandbox is closed{0}")]
    Closed(&'static str),
}

impl Error {
    /// An [`Error::InvalidInput`], from anything that prints.
    pub fn invalid(
        field: &'static str,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::InvalidInput { field, value: value.to_string(), expected: expected.into() }
    }

    /// An [`Error::System`].
    pub fn system(step: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System { step: step.into(), source: source.into() }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the step that a failed call belonged to.
pub(crate) trait Step<T> {
    /// The same result, its error an [`Error::System`] with what `step` says.
    fn step(self, step: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Step<T> for std::result::Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::system(step(), source))
    }
}
