//! What the queries of the store answer, as Python dictionaries.

use k15_core::store::{FinishReason, RecoveryReport, Stats, TornTail, TrajectoryView};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

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
    Ok(fields)
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
