//! Micro-batches for data parallelism: who gets which rows, and copying them into place.

use k15_core::Error;
use k15_core::micro_batch::{Wanted, plan};
use k15_core::runs::copy_runs as copy;
use numpy::{PyArray1, PyReadwriteArray1};
use pyo3::prelude::*;

use crate::argument::{column, natural};
use crate::error::{CoreError, Result};

/// The rows of each micro-batch of each rank.
#[pyfunction]
#[pyo3(signature = (
    cu_seqlens, group_ids, *, ranks, max_tokens, pad_to_multiple, pad_total_to_multiple,
    count_multiple
))]
#[expect(clippy::too_many_arguments, reason = "keywords of PackedBatch.micro_batches")]
pub fn plan_micro_batches<'py>(
    py: Python<'py>,
    cu_seqlens: &Bound<'py, PyAny>,
    group_ids: Option<&Bound<'py, PyAny>>,
    ranks: &Bound<'py, PyAny>,
    max_tokens: &Bound<'py, PyAny>,
    pad_to_multiple: &Bound<'py, PyAny>,
    pad_total_to_multiple: &Bound<'py, PyAny>,
    count_multiple: &Bound<'py, PyAny>,
) -> PyResult<Vec<Vec<Bound<'py, PyArray1<i64>>>>> {
    let wanted = Wanted {
        ranks: natural("ranks", ranks)?,
        max_tokens: natural("max_tokens", max_tokens)?,
        row_multiple: natural("pad_to_multiple", pad_to_multiple)?,
        batch_multiple: natural("pad_total_to_multiple", pad_total_to_multiple)?,
        count_multiple: natural("count_multiple", count_multiple)?,
    };
    let ends = column::<i32>("cu_seqlens", cu_seqlens, "int32")?;
    let lengths: Option<Vec<usize>> = ends
        .values()
        .windows(2)
        .map(|pair| usize::try_from(pair[1].checked_sub(pair[0])?).ok())
        .collect();
    let lengths = lengths.ok_or_else(|| {
        CoreError::from(Error::invalid("cu_seqlens", "an array that falls", "one that ascends"))
    })?;
    let groups = group_ids.map(|ids| column::<i64>("group_ids", ids, "int64")).transpose()?;
    let groups = groups.as_ref().map(|groups| groups.values());
    if let Some(groups) = groups.as_deref()
        && groups.len() != lengths.len()
    {
        let (given, rows) = (format!("{} entries", groups.len()), lengths.len());
        let error = Error::invalid("group_ids", given, format!("{rows}, one for each row"));
        return Err(CoreError::from(error).into());
    }
    let planned = py.detach(|| plan(&lengths, groups.as_deref(), &wanted));
    let rows = |micro: Vec<usize>| PyArray1::from_iter(py, micro.into_iter().map(|row| row as i64));
    let planned = planned.map_err(CoreError::from)?.into_iter();
    Ok(planned.map(|rank| rank.into_iter().map(rows).collect()).collect())
}

/// Copy runs of entries from one array of bytes to another.
#[pyfunction]
#[pyo3(signature = (source, target, sources, targets, lengths, width))]
pub fn copy_runs(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    mut target: PyReadwriteArray1<'_, u8>,
    sources: &Bound<'_, PyAny>,
    targets: &Bound<'_, PyAny>,
    lengths: &Bound<'_, PyAny>,
    width: &Bound<'_, PyAny>,
) -> Result<()> {
    let source = column::<u8>("source", source, "uint8")?;
    let sources = column::<i64>("sources", sources, "int64")?;
    let targets = column::<i64>("targets", targets, "int64")?;
    let lengths = column::<i64>("lengths", lengths, "int64")?;
    let width = natural("width", width)?;
    let (from, sources, targets) = (source.values(), sources.values(), targets.values());
    let lengths = lengths.values();
    let gaps = |_| Error::invalid("target", "an array with gaps", "a contiguous one");
    let into = target.as_slice_mut().map_err(gaps)?;
    Ok(py.detach(|| copy(&from, into, &sources, &targets, &lengths, width))?)
}
