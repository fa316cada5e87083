//! What can be taken out of a store of this process, and taking what was chosen.

use std::sync::{Arc, Mutex};

use k15_core::{Error, store};
use k15_shared::LocalStore;
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::argument::column;
use crate::error::CoreError;
use crate::store_place::Place;
use crate::store_sampling::{self, PromptWeights};
use crate::views::Pool;

/// The ids, the tokens and the prompts of the groups that can be taken.
pub type Candidates<'py> =
    (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

fn here(place: &Place) -> PyResult<&Arc<LocalStore>> {
    match place {
        Place::Here(store) => Ok(store),
        Place::Served(_) => {
            let expected = "a store that this process has open itself";
            Err(CoreError::from(Error::invalid("store", "a SharedStore", expected)).into())
        }
    }
}

/// Groups that a sample could take now.
pub fn candidates<'py>(
    py: Python<'py>,
    place: &Place,
    (version, max_staleness): (u32, u32),
    columns: Option<&[&str]>,
) -> PyResult<Candidates<'py>> {
    let store = here(place)?;
    let found =
        py.detach(|| store.with(|store| Ok(store.candidates(version, max_staleness, columns)?)));
    let found = found.map_err(CoreError::from)?;
    Ok((
        PyArray1::from_iter(py, found.iter().map(|(id, ..)| id.cast_signed())),
        PyArray1::from_iter(py, found.iter().map(|(_, tokens, _)| tokens.cast_signed())),
        PyArray1::from_iter(py, found.iter().map(|(.., prompt_id)| *prompt_id)),
    ))
}

/// The numbers by which groups go in the order of the strategy priority, float64 [n].
#[pyfunction]
#[pyo3(signature = (seed, group_ids, prompt_ids, weights))]
pub fn priorities<'py>(
    py: Python<'py>,
    seed: u64,
    group_ids: &Bound<'py, PyAny>,
    prompt_ids: &Bound<'py, PyAny>,
    weights: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let groups = column::<i64>("group_ids", group_ids, "int64")?.values().into_owned();
    let groups: Vec<u64> = groups.into_iter().map(i64::cast_unsigned).collect();
    let prompts = column::<i64>("prompt_ids", prompt_ids, "int64")?.values().into_owned();
    let weights = PromptWeights::read(weights)?;
    let keys = py.detach(|| store::priorities(seed, &groups, &prompts, weights.view()));
    Ok(PyArray1::from_vec(py, keys.map_err(CoreError::from)?))
}

/// Take groups by their ids.
pub fn take<'py>(
    py: Python<'py>,
    place: &Place,
    pool: &Mutex<Pool>,
    group_ids: &[u64],
    columns: Option<&[&str]>,
) -> PyResult<Bound<'py, PyAny>> {
    let store = here(place)?;
    store_sampling::packed(py, pool, |batch| {
        store.freeing(|store| Ok(store.take(group_ids, columns, batch)?))
    })
}
