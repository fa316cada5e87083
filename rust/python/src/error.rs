//! From the core's errors to the exceptions of `k15core.errors`.

use pyo3::prelude::*;

pyo3::import_exception!(k15core.errors, CapacityError);
pyo3::import_exception!(k15core.errors, ConflictError);
pyo3::import_exception!(k15core.errors, CorruptionError);
pyo3::import_exception!(k15core.errors, Error);
pyo3::import_exception!(k15core.errors, InvalidInputError);
pyo3::import_exception!(k15core.errors, LeaseExpiredError);
pyo3::import_exception!(k15core.errors, StorageError);

/// A core error on its way into Python. `?` in a `#[pyfunction]` that returns [`Result`] converts.
pub struct CoreError(k15_core::Error);

impl CoreError {
    /// Whether the store was full.
    pub fn is_capacity(&self) -> bool {
        matches!(self.0, k15_core::Error::Capacity(_))
    }
}

/// The result of a binding.
pub type Result<T> = std::result::Result<T, CoreError>;

impl From<k15_core::Error> for CoreError {
    fn from(error: k15_core::Error) -> Self {
        Self(error)
    }
}

impl From<CoreError> for PyErr {
    fn from(error: CoreError) -> Self {
        let message = error.0.to_string();
        match error.0 {
            k15_core::Error::InvalidInput { .. } => InvalidInputError::new_err(message),
            k15_core::Error::Conflict(_) => ConflictError::new_err(message),
            k15_core::Error::LeaseExpired(_) => LeaseExpiredError::new_err(message),
            k15_core::Error::Capacity(_) => CapacityError::new_err(message),
            k15_core::Error::Corruption(_) => CorruptionError::new_err(message),
            k15_core::Error::Storage { source, .. } => match source.raw_os_error() {
                // As an OSError it carries the system's number, so that a caller can act on it.
                Some(number) => StorageError::new_err((number, message)),
                None => StorageError::new_err(message),
            },
            _ => Error::new_err(message),
        }
    }
}
