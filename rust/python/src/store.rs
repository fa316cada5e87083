//! The class `k15core._core.Store`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use k15_core::Error;
use k15_core::store::{self as core, FinishReason, Order, Strategy};
use k15_shared::{Client, LocalStore};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::{self, Column, column, natural, text};
use crate::error::{CoreError, Result};
use crate::store_answers;
use crate::store_arguments::{Prompt, split, split_values};
use crate::store_choice::{self, Candidates};
use crate::store_place::Place;
use crate::store_sampling::{self, PromptWeights};
use crate::store_server::StoreServer;
use crate::store_settings::Settings;
use crate::views::Pool;

/// A store, of this process or served by another.
#[pyclass(frozen, subclass, module = "k15core._core")]
pub struct Store {
    place: Place,
    pool: Mutex<Pool>,
}

impl Store {
    /// The store at the other end of a connection.
    pub fn served(client: Client) -> Self {
        Self { place: Place::Served(client), pool: Mutex::default() }
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (
        directory=None, *, capacity_bytes=None, when_full="refuse", sync="batch", max_uses=None,
        file_bytes=None, columns=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python class")]
    fn new(
        py: Python<'_>,
        directory: Option<PathBuf>,
        capacity_bytes: Option<&Bound<'_, PyAny>>,
        when_full: &str,
        sync: &str,
        max_uses: Option<&Bound<'_, PyAny>>,
        file_bytes: Option<&Bound<'_, PyAny>>,
        columns: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let options =
            Settings { directory, capacity_bytes, when_full, sync, max_uses, file_bytes, columns };
        let options = options.read()?;
        let store = py.detach(|| LocalStore::open(&options)).map_err(CoreError::from)?;
        Ok(Self { place: Place::Here(Arc::new(store)), pool: Mutex::default() })
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, py: Python<'_>, _exc_info: &Bound<'_, PyAny>) -> Result<()> {
        self.close(py)
    }

    fn close(&self, py: Python<'_>) -> Result<()> {
        Ok(py.detach(|| self.place.close())?)
    }

    fn flush(&self, py: Python<'_>) -> Result<()> {
        self.place.with(py, |store| store.flush())
    }

    /// Serve the store to other processes.
    fn serve(&self, py: Python<'_>, path: PathBuf) -> PyResult<StoreServer> {
        let Place::Here(store) = &self.place else {
            let expected = "a store that this process has open itself";
            return Err(CoreError::from(Error::invalid("store", "a SharedStore", expected)).into());
        };
        StoreServer::start(py, Arc::clone(store), path)
    }

    #[pyo3(signature = (prompt, k, *, version=None))]
    fn add_group(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        version: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<u64>> {
        let k = natural("k", k)?;
        let version = version.map_or(Ok(0), |version| natural("version", version))?;
        let prompt = Prompt::read(prompt)?;
        self.place.needing_room(py, |store| store.add_group(&prompt.data(), k, version))
    }

    #[pyo3(signature = (n, *, now, duration, order="oldest", trajectory_ids=None))]
    fn lease<'py>(
        &self,
        py: Python<'py>,
        n: &Bound<'py, PyAny>,
        now: f64,
        duration: f64,
        order: &str,
        trajectory_ids: Option<Vec<Bound<'py, PyAny>>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let n = natural("n", n)?;
        let order = text(order, Order::from_name)?;
        let ids = |ids: Vec<Bound<'py, PyAny>>| {
            ids.iter().map(|id| natural("trajectory_ids", id)).collect::<Result<Vec<u64>>>()
        };
        let among = trajectory_ids.map(ids).transpose()?;
        let among = among.as_deref();
        let leases = self.place.with(py, |store| store.lease(among, n, now, duration, order))?;
        store_answers::leases(py, leases)
    }

    fn release(
        &self,
        py: Python<'_>,
        trajectory_id: &Bound<'_, PyAny>,
        epoch: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let id = natural("trajectory_id", trajectory_id)?;
        let epoch = natural("epoch", epoch)?;
        self.place.with(py, |store| store.release(id, epoch))
    }

    #[pyo3(signature = (trajectory_id, epoch, offset, tokens, log_probs, version, *, loss_mask=None))]
    #[expect(clippy::too_many_arguments, reason = "the contract's arguments, each needed")]
    fn append(
        &self,
        py: Python<'_>,
        trajectory_id: &Bound<'_, PyAny>,
        epoch: &Bound<'_, PyAny>,
        offset: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
        log_probs: &Bound<'_, PyAny>,
        version: &Bound<'_, PyAny>,
        loss_mask: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let tokens = column("tokens", tokens, "int32")?;
        let log_probs = column("log_probs", log_probs, "float32")?;
        let mask = loss_mask.map(|mask| column("loss_mask", mask, "uint8")).transpose()?;
        let mask = mask.as_ref().map(Column::values);
        let chunk = core::Chunk {
            trajectory_id: natural("trajectory_id", trajectory_id)?,
            epoch: natural("epoch", epoch)?,
            offset: natural("offset", offset)?,
            tokens: &tokens.values(),
            log_probs: &log_probs.values(),
            loss_mask: mask.as_deref(),
        };
        let version = natural("version", version)?;
        self.place.needing_room(py, |store| store.append_many(&[chunk], version))
    }

    /// One call for a batch of chunks: `cu_seqlens` says which tokens belong to which.
    #[expect(clippy::too_many_arguments, reason = "one array for each argument of append")]
    fn append_many(
        &self,
        py: Python<'_>,
        trajectory_ids: &Bound<'_, PyAny>,
        epochs: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        cu_seqlens: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
        log_probs: &Bound<'_, PyAny>,
        version: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let ids = column::<i64>("trajectory_ids", trajectory_ids, "int64")?;
        let epochs = column::<i64>("epochs", epochs, "int64")?;
        let offsets = column::<i64>("offsets", offsets, "int64")?;
        let cu_seqlens = column::<i32>("cu_seqlens", cu_seqlens, "int32")?;
        let tokens = column::<i32>("tokens", tokens, "int32")?;
        let log_probs = column::<f32>("log_probs", log_probs, "float32")?;
        let version = natural("version", version)?;
        let (tokens, log_probs) = (tokens.values(), log_probs.values());
        let chunks = split(
            &ids.values(),
            &epochs.values(),
            &offsets.values(),
            &cu_seqlens.values(),
            &tokens,
            &log_probs,
        )?;
        self.place.needing_room(py, |store| store.append_many(&chunks, version))
    }

    fn finish(
        &self,
        py: Python<'_>,
        trajectory_id: &Bound<'_, PyAny>,
        epoch: &Bound<'_, PyAny>,
        reason: &str,
    ) -> Result<()> {
        let id = natural("trajectory_id", trajectory_id)?;
        let epoch = natural("epoch", epoch)?;
        let reason = FinishReason::from_name(reason).ok_or_else(|| {
            Error::invalid("reason", format!("{reason:?}"), "stop, length, repetition or abort")
        })?;
        self.place.with(py, |store| store.finish(id, epoch, reason))
    }

    fn set_reward(
        &self,
        py: Python<'_>,
        trajectory_id: &Bound<'_, PyAny>,
        reward: f32,
    ) -> Result<()> {
        let id = natural("trajectory_id", trajectory_id)?;
        self.place.with(py, |store| store.set_reward(id, reward))
    }

    #[pyo3(signature = (trajectory_id, name, values, *, offset=None))]
    fn set_column(
        &self,
        py: Python<'_>,
        trajectory_id: &Bound<'_, PyAny>,
        name: &str,
        values: &Bound<'_, PyAny>,
        offset: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let id = natural("trajectory_id", trajectory_id)?;
        let offset = offset.map_or(Ok(0), |offset| natural("offset", offset))?;
        let dtype = self.place.with(py, |store| store.dtype_of(name))?;
        argument::with_bytes("values", values, dtype, |bytes| {
            let chunk = core::ColumnChunk { trajectory_id: id, offset, bytes };
            self.place.needing_room(py, |store| store.set_column_many(name, dtype, &[chunk]))
        })?
    }

    /// One call for a batch of chunks: `cu_seqlens` says which values belong to which.
    fn set_column_many(
        &self,
        py: Python<'_>,
        trajectory_ids: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        cu_seqlens: &Bound<'_, PyAny>,
        name: &str,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let ids = column::<i64>("trajectory_ids", trajectory_ids, "int64")?;
        let offsets = column::<i64>("offsets", offsets, "int64")?;
        let cu_seqlens = column::<i32>("cu_seqlens", cu_seqlens, "int32")?;
        let dtype = self.place.with(py, |store| store.dtype_of(name))?;
        argument::with_bytes("values", values, dtype, |bytes| {
            let (ids, offsets, ends) = (ids.values(), offsets.values(), cu_seqlens.values());
            let chunks = split_values(&ids, &offsets, &ends, bytes, dtype.width())?;
            self.place.needing_room(py, |store| store.set_column_many(name, dtype, &chunks))
        })?
    }

    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = self.place.with(py, |store| store.columns())?;
        let fields = PyDict::new(py);
        for column in columns {
            fields.set_item(column.name, column.dtype.name())?;
        }
        Ok(fields)
    }

    #[pyo3(signature = (
        *, groups=None, tokens=None, max_staleness, version, strategy="fifo", seed=0, columns=None,
        weights=None, max_segment_staleness=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python method")]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        groups: Option<&Bound<'py, PyAny>>,
        tokens: Option<&Bound<'py, PyAny>>,
        max_staleness: &Bound<'py, PyAny>,
        version: &Bound<'py, PyAny>,
        strategy: &str,
        seed: u64,
        columns: Option<Vec<String>>,
        weights: Option<&Bound<'py, PyAny>>,
        max_segment_staleness: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let age = |age| natural("max_segment_staleness", age);
        let columns: Option<Vec<&str>> =
            columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let weights = weights.map(PromptWeights::read).transpose()?;
        let wanted = core::Sample {
            groups: groups.map(|groups| natural("groups", groups)).transpose()?,
            tokens: tokens.map(|tokens| natural("tokens", tokens)).transpose()?,
            max_staleness: natural("max_staleness", max_staleness)?,
            version: natural("version", version)?,
            strategy: text(strategy, Strategy::from_name)?,
            seed,
            columns: columns.as_deref(),
            weights: weights.as_ref().map(PromptWeights::view),
            max_segment_staleness: max_segment_staleness.map(age).transpose()?,
        };
        store_sampling::sample(py, &self.place, &self.pool, &wanted)
    }

    #[pyo3(signature = (*, max_staleness, version, columns=None))]
    fn candidates<'py>(
        &self,
        py: Python<'py>,
        max_staleness: &Bound<'py, PyAny>,
        version: &Bound<'py, PyAny>,
        columns: Option<Vec<String>>,
    ) -> PyResult<Candidates<'py>> {
        let columns = columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let columns: Option<Vec<&str>> = columns;
        let versions = (natural("version", version)?, natural("max_staleness", max_staleness)?);
        store_choice::candidates(py, &self.place, versions, columns.as_deref())
    }

    #[pyo3(signature = (group_ids, *, columns=None))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn take<'py>(
        &self,
        py: Python<'py>,
        group_ids: Vec<Bound<'py, PyAny>>,
        columns: Option<Vec<String>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ids: Result<Vec<u64>> = group_ids.iter().map(|id| natural("group_id", id)).collect();
        let columns = columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let columns: Option<Vec<&str>> = columns;
        store_choice::take(py, &self.place, &self.pool, &ids?, columns.as_deref())
    }

    fn mark(&self, py: Python<'_>, version: &Bound<'_, PyAny>) -> Result<u64> {
        let version = natural("version", version)?;
        self.place.freeing(py, |store| store.mark(version))
    }

    fn marks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let marks = PyDict::new(py);
        for (id, version) in self.place.with(py, |store| store.marks())? {
            marks.set_item(id, version)?;
        }
        Ok(marks)
    }

    fn rewind(&self, py: Python<'_>, mark: &Bound<'_, PyAny>) -> Result<()> {
        let mark = natural("mark", mark)?;
        self.place.freeing(py, |store| store.rewind(mark))
    }

    #[expect(clippy::needless_pass_by_value, reason = "an argument from Python")]
    fn drop_groups(&self, py: Python<'_>, group_ids: Vec<Bound<'_, PyAny>>) -> Result<()> {
        let ids: Result<Vec<u64>> = group_ids.iter().map(|id| natural("group_id", id)).collect();
        let ids = ids?;
        self.place.freeing(py, |store| store.drop_groups(&ids))
    }

    fn unfinished(&self, py: Python<'_>) -> Result<usize> {
        self.place.with(py, |store| store.unfinished())
    }

    fn pending_groups(
        &self,
        py: Python<'_>,
        before_version: &Bound<'_, PyAny>,
    ) -> Result<Vec<u64>> {
        let version = natural("before_version", before_version)?;
        self.place.with(py, |store| store.pending_groups(version))
    }

    fn groups_of_version(&self, py: Python<'_>, version: &Bound<'_, PyAny>) -> Result<Vec<u64>> {
        let version = natural("version", version)?;
        self.place.with(py, |store| store.groups_of_version(version))
    }

    fn complete_groups(&self, py: Python<'_>) -> Result<Vec<u64>> {
        self.place.with(py, |store| store.complete_groups())
    }

    fn group<'py>(
        &self,
        py: Python<'py>,
        group_id: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let id = natural("group_id", group_id)?;
        store_answers::group(py, self.place.with(py, |store| store.group(id))?)
    }

    fn trajectory<'py>(
        &self,
        py: Python<'py>,
        trajectory_id: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let id = natural("trajectory_id", trajectory_id)?;
        let view = self.place.with(py, |store| store.trajectory(id))?;
        store_answers::trajectory(py, id, view)
    }

    fn leases(&self, py: Python<'_>) -> Result<Vec<(u64, u64, f64)>> {
        self.place.with(py, |store| store.leases())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        store_answers::stats(py, &self.place.with(py, |store| store.stats())?)
    }

    fn recovery_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = self.place.with(py, |store| store.recovery_report())?;
        store_answers::report(py, report)
    }
}
