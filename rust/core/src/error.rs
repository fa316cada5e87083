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
