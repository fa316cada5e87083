//! Checksums of tensors, and copies with one.

use k15_core::Error;
use k15_core::handover;
use numpy::PyReadwriteArray1;
use pyo3::prelude::*;

use crate::argument::column;
use crate::error::Result;

/// The CRC-32C of an array of bytes.
#[pyfunction]
#[pyo3(signature = (source))]
pub fn checksum(py: Python<'_>, source: &Bound<'_, PyAny>) -> Result<u32> {
    let source = column::<u8>("source", source, "uint8")?;
    let bytes = source.values();
    Ok(py.detach(|| handover::checksum(&bytes)))
}

/// Copy an array of bytes to another, and take the CRC-32C of what was read.
#[pyfunction]
#[pyo3(signature = (source, target))]
pub fn copy_with_checksum(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    mut target: PyReadwriteArray1<'_, u8>,
) -> Result<u32> {
    let source = column::<u8>("source", source, "uint8")?;
    let bytes = source.values();
    let gaps = |_| Error::invalid("target", "an array with gaps", "a contiguous one");
    let into = target.as_slice_mut().map_err(gaps)?;
    Ok(py.detach(|| handover::copy_with_checksum(&bytes, into))?)
}
