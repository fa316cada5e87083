//! The one error type of the crate.

use std::io;
use std::path::Path;

/// What went wrong, in words a user can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store of this process refused.
    #[error(transparent)]
    Store(#[from] k15_core::Error),
    /// The store refused in the server's process, in its words.
    #[error("{message}")]
    Remote {
        /// The variant of [`k15_core::Error`].
        kind: Kind,
        /// What it said.
        message: String,
        /// The operating system's number, where it was that which refused.
        errno: Option<i32>,
    },
    /// There is no server, or it ended while a call was under way: whether that was carried out is
    /// not known.
    #[error("{0}")]
    Disconnected(String),
    /// The two sides do not fit: another user, another version, a path in use.
    #[error("{0}")]
    Refused(String),
    /// What came over the connection is not this protocol.
    #[error("{0}")]
    Malformed(&'static str),
    /// The caller asked to stop waiting for an answer.
    #[error("interrupted while waiting for the store's server")]
    Interrupted,
    /// The operating system refused.
    #[error("{path}: {action}: {source}")]
    System {
        /// The socket.
        path: String,
        /// What was being done.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Which refusal of the store, as it crosses the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An argument.
    InvalidInput = 1,
    /// It does not continue what is stored.
    Conflict = 2,
    /// Not the holder's epoch.
    LeaseExpired = 3,
    /// Full.
    Capacity = 4,
    /// Damaged.
    Corruption = 5,
    /// The operating system.
    Storage = 6,
    /// Anything else.
    Other = 7,
}

impl Kind {
    /// The kind of a code; what this version does not know is another thing.
    pub(crate) fn from_code(code: u64) -> Self {
        use Kind::{Capacity, Conflict, Corruption, InvalidInput, LeaseExpired, Storage};
        let known = [InvalidInput, Conflict, LeaseExpired, Capacity, Corruption, Storage];
        known.into_iter().find(|kind| *kind as u64 == code).unwrap_or(Self::Other)
    }

    fn of(error: &k15_core::Error) -> Self {
        match error {
            k15_core::Error::InvalidInput { .. } => Self::InvalidInput,
            k15_core::Error::Conflict(_) => Self::Conflict,
            k15_core::Error::LeaseExpired(_) => Self::LeaseExpired,
            k15_core::Error::Capacity(_) => Self::Capacity,
            k15_core::Error::Corruption(_) => Self::Corruption,
            k15_core::Error::Storage { .. } => Self::Storage,
            _ => Self::Other,
        }
    }
}

impl Error {
    /// Whether the store was full, here or at the server.
    pub fn is_capacity(&self) -> bool {
        self.kind() == Kind::Capacity
    }

    /// Which refusal of the store it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Store(error) => Kind::of(error),
            Self::Remote { kind, .. } => *kind,
            Self::System { .. } | Self::Refused(_) => Kind::Storage,
            _ => Kind::Other,
        }
    }

    /// The operating system's number, where it was that which refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Store(k15_core::Error::Storage { source, .. }) | Self::System { source, .. } => {
                source.raw_os_error()
            }
            Self::Remote { errno, .. } => *errno,
            _ => None,
        }
    }

    pub(crate) fn invalid(field: &'static str, value: &str, expected: &str) -> Self {
        Self::Store(k15_core::Error::invalid(field, value, expected))
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the socket and what was being done to it.
pub(crate) fn system<E: Into<io::Error>>(
    path: &Path,
    action: &'static str,
) -> impl FnOnce(E) -> Error {
    let path = path.display().to_string();
    move |source| Error::System { path, action, source: source.into() }
}
