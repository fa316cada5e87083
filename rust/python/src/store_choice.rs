//! What can be taken out of a store of this process, and taking what was chosen.

use std::sync::{Arc, Mutex};

use k15_core::Error;
use k15_shared::LocalStore;
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::error::CoreError;
use crate::store_place::Place;
use crate::store_sampling;
use crate::views::Pool;

/// The ids and the tokens of the groups that can be taken.
pub type Candidates<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

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
    let (ids, tokens): (Vec<i64>, Vec<i64>) = found
        .map_err(CoreError::from)?
        .into_iter()
        .map(|(id, tokens)| (id.cast_signed(), tokens.cast_signed()))
        .unzip();
    Ok((PyArray1::from_vec(py, ids), PyArray1::from_vec(py, tokens)))
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
