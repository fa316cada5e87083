//! What the queries of the store answer, as Python objects.

use k15_core::store::{FinishReason, Lease, RecoveryReport, Stats, TornTail, TrajectoryView};
use k15_core::values::{Dtype, Values};
use k15_shared::GroupView;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// Leases, as `k15core.types.Lease` each.
pub fn leases(py: Python<'_>, leases: Vec<Lease>) -> PyResult<Vec<Bound<'_, PyAny>>> {
    static LEASE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = LEASE.import(py, "k15core.types", "Lease")?;
    let build = |lease: Lease| {
        class.call1((
            lease.trajectory_id,
            lease.epoch,
            lease.deadline,
            PyArray1::from_vec(py, lease.input_ids),
            lease.prompt_length,
            PyArray1::from_vec(py, lease.versions),
        ))
    };
    leases.into_iter().map(build).collect()
}

/// A group, with its prompt as `k15core.types.Prompt`.
pub fn group(py: Python<'_>, view: GroupView) -> PyResult<Bound<'_, PyDict>> {
    static PROMPT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let tags = PyTuple::new(py, view.tags)?;
    let class = PROMPT.import(py, "k15core.types", "Prompt")?;
    let tokens = PyArray1::from_vec(py, view.tokens);
    let arguments = (view.prompt_id, tokens, view.answer, tags, view.difficulty);
    let group = PyDict::new(py);
    group.set_item("prompt", class.call1(arguments)?)?;
    group.set_item("trajectory_ids", view.members)?;
    group.set_item("created_version", view.created_version)?;
    Ok(group)
}

/// Everything about a trajectory.
pub fn trajectory(py: Python<'_>, id: u64, view: TrajectoryView) -> PyResult<Bound<'_, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("trajectory_id", id)?;
    fields.set_item("group_id", view.group_id)?;
    fields.set_item("prompt_id", view.prompt_id)?;
    fields.set_item("state", view.state.name())?;
    fields.set_item("epoch", view.holder.map(|(epoch, _)| epoch))?;
    fields.set_item("deadline", view.holder.map(|(_, deadline)| deadline))?;
    fields.set_item("finish_reason", view.finish_reason.map(FinishReason::name))?;
    fields.set_item("reward", view.reward)?;
    fields.set_item("prompt_tokens", PyArray1::from_vec(py, view.prompt_tokens))?;
    fields.set_item("tokens", PyArray1::from_vec(py, view.tokens))?;
    fields.set_item("log_probs", PyArray1::from_vec(py, view.log_probs))?;
    fields.set_item("loss_mask", PyArray1::from_vec(py, view.loss_mask))?;
    fields.set_item("versions", PyArray1::from_vec(py, view.versions))?;
    let columns = PyDict::new(py);
    for (name, values) in &view.columns {
        columns.set_item(name, array(py, values))?;
    }
    fields.set_item("columns", columns)?;
    Ok(fields)
}

/// The entries of a column, copied.
fn array<'py>(py: Python<'py>, values: &Values) -> Bound<'py, PyAny> {
    match values.dtype() {
        Dtype::Uint8 => PyArray1::from_slice(py, values.entries::<u8>()).into_any(),
        Dtype::Int8 => PyArray1::from_slice(py, values.entries::<i8>()).into_any(),
        Dtype::Uint16 => PyArray1::from_slice(py, values.entries::<u16>()).into_any(),
        Dtype::Int16 => PyArray1::from_slice(py, values.entries::<i16>()).into_any(),
        Dtype::Uint32 => PyArray1::from_slice(py, values.entries::<u32>()).into_any(),
        Dtype::Int32 => PyArray1::from_slice(py, values.entries::<i32>()).into_any(),
        Dtype::Int64 => PyArray1::from_slice(py, values.entries::<i64>()).into_any(),
        Dtype::Float32 => PyArray1::from_slice(py, values.entries::<f32>()).into_any(),
        Dtype::Float64 => PyArray1::from_slice(py, values.entries::<f64>()).into_any(),
    }
}

/// Counts of what is stored.
pub fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let names = ["unfinished", "finished", "scored", "gone"];
    for (name, count) in names.iter().zip(stats.trajectories) {
        fields.set_item(name, count)?;
    }
    fields.set_item("groups", stats.groups)?;
    fields.set_item("groups_ready", stats.groups_ready)?;
    fields.set_item("groups_gone", stats.groups_gone)?;
    fields.set_item("tokens", stats.tokens)?;
    fields.set_item("bytes_live", stats.bytes_live)?;
    fields.set_item("bytes_written", stats.bytes_written)?;
    fields.set_item("bytes_allocated", stats.bytes_allocated)?;
    fields.set_item("capacity_bytes", stats.capacity_bytes)?;
    fields.set_item("files", stats.files)?;
    fields.set_item("spare_files", stats.spare_files)?;
    Ok(fields)
}

/// What opening found.
pub fn report(py: Python<'_>, report: RecoveryReport) -> PyResult<Bound<'_, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("files", report.files)?;
    fields.set_item("records", report.records)?;
    fields.set_item("bytes", report.bytes)?;
    let torn = report.torn.map(|found| torn(py, found));
    fields.set_item("torn", torn.transpose()?)?;
    Ok(fields)
}

/// A tail that was cut, or would be.
pub fn torn(py: Python<'_>, torn: TornTail) -> PyResult<Bound<'_, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("file", torn.file)?;
    fields.set_item("offset", torn.offset)?;
    fields.set_item("bytes", torn.bytes)?;
    fields.set_item("record", torn.record)?;
    Ok(fields)
}
