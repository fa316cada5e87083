//! A store for several processes: the classes `StoreServer` and `SharedStore`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k15_shared::{Client, LocalStore, Server};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::error::{CoreError, Result};
use crate::store::Store;

/// A store of this process that others use.
#[pyclass(frozen, module = "k15core._core")]
pub struct StoreServer {
    server: Mutex<Server>,
    path: PathBuf,
}

impl StoreServer {
    /// Serve a store at a path, by threads that never hold the GIL.
    pub fn start(py: Python<'_>, store: Arc<LocalStore>, path: PathBuf) -> PyResult<Self> {
        let server = py.detach(|| Server::start(store, &path)).map_err(CoreError::from)?;
        Ok(Self { server: Mutex::new(server), path })
    }
}

#[pymethods]
impl StoreServer {
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, py: Python<'_>, _exc_info: &Bound<'_, PyAny>) {
        self.close(py);
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.server.lock().unwrap_or_else(PoisonError::into_inner).close());
    }
}

/// A store that another process serves.
#[pyclass(frozen, extends = Store, module = "k15core._core")]
pub struct SharedStore {
    path: PathBuf,
}

#[pymethods]
impl SharedStore {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> Result<PyClassInitializer<Self>> {
        let client = py.detach(|| Client::open(&path, interrupted))?;
        let store = PyClassInitializer::from(Store::served(client));
        Ok(store.add_subclass(Self { path }))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

thread_local! {
    /// What a signal handler raised while this thread waited for a server.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Let Python handle signals; whether it wants the wait to end.
fn interrupted() -> bool {
    match Python::attach(|py| py.check_signals()) {
        Ok(()) => false,
        Err(raised) => {
            RAISED.set(Some(raised));
            true
        }
    }
}

/// What ended the last wait of this thread.
pub fn raised() -> PyErr {
    RAISED.take().unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))
}
