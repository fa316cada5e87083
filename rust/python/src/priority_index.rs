//! `PriorityIndex`: weighted draws from millions of entries.

use std::sync::{Mutex, MutexGuard, PoisonError};

use k15_core::sampler;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::argument::{column, column_if, refused, unsigned};
use crate::error::Result;

/// Entries 0 … n − 1 with a weight each, drawn in proportion to it.
#[pyclass(frozen, module = "k15core._core")]
pub struct PriorityIndex(Mutex<sampler::PriorityIndex>);

impl PriorityIndex {
    /// Called without the GIL, so that waiting for another thread does not stop it.
    fn lock(&self) -> MutexGuard<'_, sampler::PriorityIndex> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PriorityIndex {
    #[new]
    fn new(n: i128) -> Result<Self> {
        Ok(Self(Mutex::new(sampler::PriorityIndex::new(unsigned("n", n)?)?)))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().len())
    }

    #[getter]
    fn total(&self, py: Python<'_>) -> f64 {
        py.detach(|| self.lock().total())
    }

    fn update(
        &self,
        py: Python<'_>,
        indices: &Bound<'_, PyAny>,
        weights: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let indices = column::<i64>("indices", indices, "int64")?;
        let indices = indices.values();
        if let Some(weights) = column_if::<f32>(weights) {
            let weights = weights.values();
            py.detach(|| self.lock().update(&indices, &weights))?;
        } else if let Some(weights) = column_if::<f64>(weights) {
            let weights = weights.values();
            py.detach(|| self.lock().update(&indices, &weights))?;
        } else {
            return Err(refused("weights", weights, "float32 or float64").into());
        }
        Ok(())
    }

    #[pyo3(signature = (n, *, seed, replace = true))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        n: i128,
        seed: i128,
        replace: bool,
    ) -> Result<Bound<'py, PyArray1<i64>>> {
        let (n, seed) = (unsigned("n", n)?, unsigned("seed", seed)?);
        let drawn = py.detach(|| {
            let mut index = self.lock();
            if replace { index.sample(n, seed) } else { index.sample_distinct(n, seed) }
        })?;
        Ok(drawn.into_pyarray(py))
    }

    #[pyo3(signature = (indices = None))]
    fn weights<'py>(
        &self,
        py: Python<'py>,
        indices: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyArray1<f64>>> {
        let weights = match indices {
            None => py.detach(|| self.lock().all_weights()),
            Some(indices) => {
                let indices = column::<i64>("indices", indices, "int64")?;
                let indices = indices.values();
                py.detach(|| self.lock().weights(&indices))?
            }
        };
        Ok(weights.into_pyarray(py))
    }
}
