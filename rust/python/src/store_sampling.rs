//! Groups out of a store, as a batch of arrays.

use std::sync::{Mutex, PoisonError};

use k15_core::Error;
use k15_core::pack::Packed;
use k15_core::store::{Sample, Weights};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMapping, PyTuple, PyType};

use crate::argument::{column, column_if, refused};
use crate::error::CoreError;
use crate::store_place::Place;
use crate::views::{self, Pool};

/// Weights of prompts, copied out of Python.
pub struct PromptWeights {
    prompt_ids: Vec<i64>,
    weights: Vec<f64>,
}

impl PromptWeights {
    /// A mapping from prompt ids to weights, or a tuple of two arrays.
    pub fn read(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(pair) = given.cast::<PyTuple>()
            && pair.len() == 2
        {
            let (ids, weights) = (pair.get_item(0)?, pair.get_item(1)?);
            let prompt_ids = column::<i64>("weights[0]", &ids, "int64")?.values().into_owned();
            let weights = if let Some(weights) = column_if::<f64>(&weights) {
                weights.values().into_owned()
            } else if let Some(weights) = column_if::<f32>(&weights) {
                weights.values().iter().copied().map(f64::from).collect()
            } else {
                let error = refused("weights[1]", &weights, "float32 or float64");
                return Err(CoreError::from(error).into());
            };
            return Ok(Self { prompt_ids, weights });
        }
        let Ok(mapping) = given.cast::<PyMapping>() else {
            let value = given.get_type().name()?.to_string();
            let expected = "a mapping of prompt ids to weights, or a tuple of two arrays";
            return Err(CoreError::from(Error::invalid("weights", value, expected)).into());
        };
        let mut found = Self { prompt_ids: Vec::new(), weights: Vec::new() };
        for entry in mapping.items()?.iter() {
            let (prompt_id, weight) = entry.extract().map_err(|_| {
                let expected = "integers as prompt ids, with a number each";
                CoreError::from(Error::invalid("weights", format!("{entry}"), expected))
            })?;
            found.prompt_ids.push(prompt_id);
            found.weights.push(weight);
        }
        Ok(found)
    }

    /// The same as the store takes them.
    pub fn view(&self) -> Weights<'_> {
        Weights { prompt_ids: &self.prompt_ids, weights: &self.weights }
    }
}

/// Take groups: a `PackedBatch` over the memory into which they were packed.
pub fn sample<'py>(
    py: Python<'py>,
    place: &Place,
    pool: &Mutex<Pool>,
    wanted: &Sample<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    match place {
        Place::Here(store) => {
            packed(py, pool, |batch| store.freeing(|store| Ok(store.sample(wanted, batch)?)))
        }
        Place::Served(client) => {
            let batch = py.detach(|| client.with(|store| store.sample(wanted)));
            build(py, &views::shared_arrays(py, batch.map_err(CoreError::from)?)?)
        }
    }
}

/// A `PackedBatch` over memory of the pool, into which `pack` packs.
pub fn packed<'py>(
    py: Python<'py>,
    pool: &Mutex<Pool>,
    pack: impl FnOnce(&mut Packed) -> k15_shared::Result<()> + Send,
) -> PyResult<Bound<'py, PyAny>> {
    let buffers = pool.lock().unwrap_or_else(PoisonError::into_inner).take();
    let held = &buffers;
    py.detach(|| pack(&mut held.lock().unwrap_or_else(PoisonError::into_inner)))
        .map_err(CoreError::from)?;
    build(py, &views::arrays(py, buffers)?)
}

fn build<'py>(py: Python<'py>, fields: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    static BATCH: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = BATCH.import(py, "k15core.types", "PackedBatch")?;
    class.call((), Some(fields))
}
