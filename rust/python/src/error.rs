//! From the core's errors to the exceptions of `k15core.errors`.

use pyo3::prelude::*;

pyo3::import_exception!(k15core.errors, Error);
pyo3::import_exception!(k15core.errors, InvalidInputError);

/// A core error on its way into Python. `?` in a `#[pyfunction]` that returns [`Result`] converts.
pub struct CoreError(k15_core::Error);

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
            _ => Error::new_err(message),
        }
    }
}
