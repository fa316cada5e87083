//! The one error type of the crate.

/// What went wrong, in words a user can act on.
///
/// # Design
///
/// One enum for the whole crate: finer ones compose badly, and a caller acts on the variant, not on
/// the module that it came from.
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
    /// An append, a finish or a reward does not continue what is stored.
    #[error("{0}")]
    Conflict(String),
    /// The lease epoch shown is not the trajectory's: another worker holds it, or nobody does.
    #[error("{0}")]
    LeaseExpired(String),
    /// The store is full and nothing more can be freed.
    #[error("{0}")]
    Capacity(String),
    /// Stored bytes do not match their checksum, or are of a format that this version cannot read.
    #[error("{0}")]
    Corruption(String),
    /// The operating system refused an operation on a file.
    #[error("{path}: {action}: {source}")]
    Storage {
        /// The file or directory.
        path: String,
        /// What was being done to it.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::InvalidInput`], from anything that prints.
    ///
    /// ```
    /// let error = k15_core::Error::invalid("n", -1, "a count of at least 0");
    /// assert_eq!(error.to_string(), "n = -1: expected a count of at least 0");
    /// ```
    pub fn invalid(
        field: &'static str,
        value: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::InvalidInput { field, value: value.to_string(), expected: expected.into() }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
