//! Groups out of a store, as a batch of arrays.

use std::sync::{Mutex, PoisonError};

use k15_core::store::Sample;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::CoreError;
use crate::store_place::Place;
use crate::views::{self, Pool};

/// Take groups: a `PackedBatch` over the memory into which they were packed.
pub fn sample<'py>(
    py: Python<'py>,
    place: &Place,
    pool: &Mutex<Pool>,
    wanted: &Sample<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    static BATCH: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = BATCH.import(py, "k15core.types", "PackedBatch")?;
    let fields = match place {
        Place::Here(store) => {
            let buffers = pool.lock().unwrap_or_else(PoisonError::into_inner).take();
            let held = &buffers;
            py.detach(|| {
                let mut batch = held.lock().unwrap_or_else(PoisonError::into_inner);
                store.freeing(|store| Ok(store.sample(wanted, &mut batch)?))
            })
            .map_err(CoreError::from)?;
            views::arrays(py, buffers)?
        }
        Place::Served(client) => {
            let batch = py.detach(|| client.with(|store| store.sample(wanted)));
            views::shared_arrays(py, batch.map_err(CoreError::from)?)?
        }
    };
    class.call((), Some(&fields))
}
