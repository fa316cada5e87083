//! The class `k15core._core.StoreWatcher`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use k15_core::store::Watcher;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::natural;
use crate::error::Result;

/// Follows the log of a store that another process may have open.
#[pyclass(frozen, module = "k15core._core")]
pub struct StoreWatcher(Mutex<Watcher>);

#[pymethods]
impl StoreWatcher {
    #[new]
    #[pyo3(signature = (directory, *, max_uses=None))]
    fn new(directory: PathBuf, max_uses: Option<&Bound<'_, PyAny>>) -> Result<Self> {
        let max_uses = max_uses.map_or(Ok(1), |uses| natural("max_uses", uses))?;
        Ok(Self(Mutex::new(Watcher::new(&directory, max_uses)?)))
    }

    fn read(&self, py: Python<'_>) -> Result<()> {
        Ok(py.detach(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).read())?)
    }

    fn look<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = py
            .detach(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).look())
            .map_err(crate::error::CoreError::from)?;
        let fields = PyDict::new(py);
        let states = PyDict::new(py);
        for (name, count) in
            ["unfinished", "finished", "scored", "gone"].iter().zip(found.trajectories)
        {
            states.set_item(name, count)?;
        }
        fields.set_item("trajectories", states)?;
        fields.set_item("begun", found.begun)?;
        let groups = PyDict::new(py);
        for (name, count) in ["all", "ready", "gone"].iter().zip(found.groups) {
            groups.set_item(name, count)?;
        }
        fields.set_item("groups", groups)?;
        fields.set_item("tokens", found.tokens)?;
        let staleness = PyDict::new(py);
        for (age, count) in found.staleness {
            staleness.set_item(age, count)?;
        }
        fields.set_item("staleness", staleness)?;
        fields.set_item("version", found.version)?;
        fields.set_item("most_versions", found.most_versions)?;
        let marks = PyDict::new(py);
        for (id, version) in found.marks {
            marks.set_item(id, version)?;
        }
        fields.set_item("marks", marks)?;
        fields.set_item("bytes_live", found.bytes_live)?;
        fields.set_item("bytes_kept", found.bytes_kept)?;
        fields.set_item("bytes_written", found.bytes_written)?;
        fields.set_item("bytes_allocated", found.bytes_allocated)?;
        fields.set_item("files", found.files)?;
        fields.set_item("spare_files", found.spare_files)?;
        let flow = PyDict::new(py);
        flow.set_item("tokens_in", found.flow.tokens_in)?;
        flow.set_item("tokens_out", found.flow.tokens_out)?;
        flow.set_item("groups_in", found.flow.groups_in)?;
        flow.set_item("groups_out", found.flow.groups_out)?;
        flow.set_item("leases", found.flow.leases)?;
        fields.set_item("flow", flow)?;
        fields.set_item("restarts", found.restarts)?;
        Ok(fields)
    }
}
