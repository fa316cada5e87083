//! Sampling noise for a whole decode batch in one call.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::Result;

/// One uniform number in (0, 1) for each stream: a pure function of its three keys.
#[pyfunction]
#[pyo3(signature = (seed, trajectory_ids, positions))]
pub fn uniforms<'py>(
    py: Python<'py>,
    seed: u64,
    trajectory_ids: PyReadonlyArray1<'py, i64>,
    positions: PyReadonlyArray1<'py, i64>,
) -> Result<Bound<'py, PyArray1<f64>>> {
    let (ids, at) = (trajectory_ids.as_array(), positions.as_array());
    if ids.len() != at.len() {
        return Err(k15_core::Error::invalid(
            "positions",
            format!("{} entries", at.len()),
            format!("{}, one for each of trajectory_ids", ids.len()),
        )
        .into());
    }
    let draw = |(&id, &at): (&i64, &i64)| {
        k15_core::noise::uniform(seed, id.cast_unsigned(), at.cast_unsigned())
    };
    Ok(PyArray1::from_iter(py, ids.iter().zip(at.iter()).map(draw)))
}
