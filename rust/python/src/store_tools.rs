//! Looking at, checking and repairing a store that nobody has open.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use k15_core::Error;
use k15_core::store::{self as core, DamageReport, KindCount, Opening, Snapshot, Verification};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::natural;
use crate::error::Result;
use crate::store_answers;

/// Check every record of the store in a directory; changes nothing.
#[pyfunction]
pub fn verify_store(py: Python<'_>, directory: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(|| core::verify(&directory)).map_err(crate::error::CoreError::from)?;
    verification(py, found)
}

/// Make the store in a directory one that opens.
#[pyfunction]
pub fn repair_store(py: Python<'_>, directory: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let done = py.detach(|| core::repair(&directory)).map_err(crate::error::CoreError::from)?;
    let fields = PyDict::new(py);
    fields.set_item("before", verification(py, done.before)?)?;
    fields.set_item("set_aside", done.set_aside)?;
    fields.set_item("written", done.written)?;
    fields.set_item("groups_lost", done.groups_lost)?;
    let mut trajectories = Vec::with_capacity(done.trajectories.len());
    for lost in done.trajectories {
        let one = PyDict::new(py);
        one.set_item("trajectory_id", lost.trajectory_id)?;
        one.set_item("group_id", lost.group_id)?;
        one.set_item("tokens_kept", lost.tokens_kept)?;
        one.set_item("tokens_lost", lost.tokens_lost)?;
        one.set_item("finish_lost", lost.finish_lost)?;
        one.set_item("reward_lost", lost.reward_lost)?;
        one.set_item("column_bytes_lost", lost.column_bytes_lost)?;
        trajectories.push(one);
    }
    fields.set_item("trajectories", trajectories)?;
    let others = PyDict::new(py);
    for (kind, count) in done.others_lost {
        others.set_item(kind, count)?;
    }
    fields.set_item("others_lost", others)?;
    fields.set_item("unknown_lost", done.unknown_lost)?;
    for (name, count) in ["groups", "trajectories", "tokens"].iter().zip(done.kept) {
        fields.set_item(format!("{name}_kept"), count)?;
    }
    Ok(fields)
}

fn verification(py: Python<'_>, found: Verification) -> PyResult<Bound<'_, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("files", found.files)?;
    fields.set_item("records", found.records)?;
    fields.set_item("bytes", found.bytes)?;
    fields.set_item("kinds", kinds(py, &found.kinds)?)?;
    let damages = found.damages.into_iter().map(|damage| damage_fields(py, damage));
    fields.set_item("damages", damages.collect::<PyResult<Vec<_>>>()?)?;
    let (name, torn, message) = match found.opening {
        Opening::Clean => ("clean", None, None),
        Opening::Cut(torn) => ("cut", Some(store_answers::torn(py, torn)?), None),
        Opening::Refused(message) => ("refused", None, Some(message)),
    };
    fields.set_item("opening", name)?;
    fields.set_item("torn", torn)?;
    fields.set_item("refusal", message)?;
    Ok(fields)
}

fn damage_fields(py: Python<'_>, damage: DamageReport) -> PyResult<Bound<'_, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("file", damage.file)?;
    fields.set_item("offset", damage.offset)?;
    fields.set_item("bytes", damage.bytes)?;
    fields.set_item("record", damage.record)?;
    fields.set_item("records", damage.records)?;
    fields.set_item("kind", damage.kind)?;
    let (subject, id) = damage.subject.unzip();
    fields.set_item("subject", subject)?;
    fields.set_item("subject_id", id)?;
    fields.set_item("what", damage.what)?;
    Ok(fields)
}

fn kinds<'py>(py: Python<'py>, counts: &[KindCount]) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    for count in counts.iter().filter(|count| count.records > 0) {
        let one = PyDict::new(py);
        one.set_item("records", count.records)?;
        one.set_item("bytes", count.bytes)?;
        fields.set_item(&count.kind, one)?;
    }
    Ok(fields)
}

/// A store that nobody has open, to be looked at.
#[pyclass(frozen, module = "k15core._core")]
pub struct StoreReader(Mutex<Option<Snapshot>>);

impl StoreReader {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&Snapshot) -> k15_core::Result<T> + Send,
    ) -> Result<T> {
        py.detach(|| {
            let snapshot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let closed = || Error::invalid("store", "closed", "an open reader");
            Ok(look(snapshot.as_ref().ok_or_else(closed)?)?)
        })
    }
}

#[pymethods]
impl StoreReader {
    #[new]
    #[pyo3(signature = (directory, *, max_uses=None))]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        max_uses: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let max_uses = max_uses.map_or(Ok(1), |uses| natural("max_uses", uses))?;
        let snapshot = py.detach(|| Snapshot::open(&directory, max_uses))?;
        Ok(Self(Mutex::new(Some(snapshot))))
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, py: Python<'_>, _exc_info: &Bound<'_, PyAny>) {
        self.close(py);
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None);
    }

    fn trajectory_ids(&self, py: Python<'_>) -> Result<Vec<u64>> {
        self.with(py, |snapshot| Ok(snapshot.trajectory_ids()))
    }

    fn trajectory<'py>(
        &self,
        py: Python<'py>,
        trajectory_id: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let id = natural("trajectory_id", trajectory_id)?;
        let view = self.with(py, |snapshot| snapshot.trajectory(id))?;
        store_answers::trajectory(py, id, view)
    }

    fn segments<'py>(
        &self,
        py: Python<'py>,
        trajectory_id: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let id = natural("trajectory_id", trajectory_id)?;
        let segments = self.with(py, |snapshot| snapshot.segments(id))?;
        let one = |segment: core::Segment| {
            let fields = PyDict::new(py);
            fields.set_item("offset", segment.offset)?;
            fields.set_item("n", segment.n)?;
            fields.set_item("version", segment.version)?;
            fields.set_item("file", segment.place.0)?;
            fields.set_item("file_offset", segment.place.1)?;
            Ok(fields)
        };
        segments.into_iter().map(one).collect()
    }

    fn inspect<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (found, stats, report) = self.with(py, |snapshot| {
            Ok((snapshot.inspect(), snapshot.stats(), snapshot.recovery_report().clone()))
        })?;
        let fields = PyDict::new(py);
        let mut files = Vec::with_capacity(found.files.len());
        for file in found.files {
            let one = PyDict::new(py);
            one.set_item("name", file.name)?;
            one.set_item("bytes", file.bytes)?;
            one.set_item("committed", file.committed)?;
            one.set_item("synced", file.synced)?;
            one.set_item("first_record", file.first_record)?;
            one.set_item("bytes_live", file.live)?;
            files.push(one);
        }
        fields.set_item("files", files)?;
        fields.set_item("spare_files", found.spares.0)?;
        fields.set_item("spare_bytes", found.spares.1)?;
        fields.set_item("records", report.records)?;
        fields.set_item("kinds", kinds(py, &found.kinds)?)?;
        let torn = report.torn.map(|torn| store_answers::torn(py, torn)).transpose()?;
        fields.set_item("torn", torn)?;
        let names = ["unfinished", "finished", "scored", "gone"];
        let states = PyDict::new(py);
        for (name, count) in names.iter().zip(stats.trajectories) {
            states.set_item(name, count)?;
        }
        fields.set_item("trajectories", states)?;
        let groups = PyDict::new(py);
        groups.set_item("all", stats.groups)?;
        groups.set_item("ready", stats.groups_ready)?;
        groups.set_item("gone", stats.groups_gone)?;
        fields.set_item("groups", groups)?;
        fields.set_item("tokens", stats.tokens)?;
        fields.set_item("bytes_live", stats.bytes_live)?;
        fields.set_item("bytes_written", stats.bytes_written)?;
        let marks = PyDict::new(py);
        for (id, version) in found.marks {
            marks.set_item(id, version)?;
        }
        fields.set_item("marks", marks)?;
        let columns = PyDict::new(py);
        for (column, covered) in found.columns {
            let one = PyDict::new(py);
            one.set_item("dtype", column.dtype.name())?;
            one.set_item("tokens", covered)?;
            columns.set_item(column.name, one)?;
        }
        fields.set_item("columns", columns)?;
        fields.set_item("version", found.version)?;
        let staleness = PyDict::new(py);
        for (age, count) in found.staleness {
            staleness.set_item(age, count)?;
        }
        fields.set_item("staleness", staleness)?;
        for (name, next) in ["group_id", "trajectory_id", "epoch"].iter().zip(found.next) {
            fields.set_item(format!("next_{name}"), next)?;
        }
        Ok(fields)
    }
}
