//! From the core's errors to the exceptions of `k15core.errors`.

use k15_shared::Kind;
use pyo3::prelude::*;

use crate::store_server;

pyo3::import_exception!(k15core.errors, CapacityError);
pyo3::import_exception!(k15core.errors, ConflictError);
pyo3::import_exception!(k15core.errors, CorruptionError);
pyo3::import_exception!(k15core.errors, DisconnectedError);
pyo3::import_exception!(k15core.errors, Error);
pyo3::import_exception!(k15core.errors, InvalidInputError);
pyo3::import_exception!(k15core.errors, LeaseExpiredError);
pyo3::import_exception!(k15core.errors, StorageError);

/// A core error on its way into Python. `?` in a `#[pyfunction]` that returns [`Result`] converts.
pub struct CoreError(k15_shared::Error);

impl CoreError {
    /// Whether the store was full.
    pub fn is_capacity(&self) -> bool {
        self.0.is_capacity()
    }
}

/// The result of a binding.
pub type Result<T> = std::result::Result<T, CoreError>;

impl From<k15_core::Error> for CoreError {
    fn from(error: k15_core::Error) -> Self {
        Self(error.into())
    }
}

impl From<k15_shared::Error> for CoreError {
    fn from(error: k15_shared::Error) -> Self {
        Self(error)
    }
}

impl From<CoreError> for PyErr {
    fn from(CoreError(error): CoreError) -> Self {
        use k15_shared::Error as Shared;
        let message = error.to_string();
        match error.kind() {
            Kind::InvalidInput => InvalidInputError::new_err(message),
            Kind::Conflict => ConflictError::new_err(message),
            Kind::LeaseExpired => LeaseExpiredError::new_err(message),
            Kind::Capacity => CapacityError::new_err(message),
            Kind::Corruption => CorruptionError::new_err(message),
            Kind::Storage => match error.errno() {
                // As an OSError it carries the system's number, so that a caller can act on it.
                Some(number) => StorageError::new_err((number, message)),
                None => StorageError::new_err(message),
            },
            Kind::Other => match error {
                Shared::Interrupted => store_server::raised(),
                Shared::Disconnected(_) | Shared::Malformed(_) => {
                    DisconnectedError::new_err(message)
                }
                _ => Error::new_err(message),
            },
        }
    }
}
