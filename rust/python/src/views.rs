//! NumPy arrays over memory that Rust owns. The only `unsafe` of the bindings.
//!
//! # Design
//!
//! The buffers of a batch live in an [`Arc`]. Each batch that goes to Python has an owner object
//! that holds one reference, and every array of the batch holds the owner. Buffers are reused only
//! when no owner is left, so an array stays valid, and keeps its contents, for as long as anybody
//! holds it, whatever becomes of the store. The same holds for memory that is shared with the
//! process that serves a store: the server writes only to what a request names, and a request names
//! no memory that has an owner.
#![expect(unsafe_code, reason = "numpy arrays over memory that Rust owns")]

use std::sync::{Arc, Mutex, PoisonError};

use k15_core::pack::Packed;
use k15_core::store::SharedMap;
use k15_core::values::{Dtype, Values};
use k15_shared::{ARRAYS, Place, SharedBatch};
use numpy::ndarray::ArrayViewMut1;
use numpy::{Element, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::CoreError;

/// Keeps the memory of one batch alive for the arrays over it.
#[pyclass(frozen, name = "_BatchMemory", module = "k15core._core")]
struct Owner {
    _buffers: Arc<Mutex<Packed>>,
}

/// The same for memory that a server has filled.
#[pyclass(frozen, name = "_SharedMemory", module = "k15core._core")]
struct SharedOwner {
    memory: Arc<SharedMap>,
}

/// Buffers that go round between the store and Python.
#[derive(Default)]
pub struct Pool {
    buffers: Vec<Arc<Mutex<Packed>>>,
}

/// Sets of buffers that are kept for reuse: one that is trained on, one that is being filled.
const KEPT: usize = 2;

impl Pool {
    /// Buffers that no array looks at.
    pub fn take(&mut self) -> Arc<Mutex<Packed>> {
        if let Some(free) = self.buffers.iter().find(|buffers| Arc::strong_count(buffers) == 1) {
            return Arc::clone(free);
        }
        let fresh = Arc::new(Mutex::new(Packed::default()));
        if self.buffers.len() >= KEPT {
            self.buffers.remove(0);
        }
        self.buffers.push(Arc::clone(&fresh));
        fresh
    }
}

/// The arrays of a batch by name, over its buffers. Nobody fills the buffers while arrays look at
/// them: [`Pool::take`] hands out only buffers without an owner.
pub fn arrays<'py>(py: Python<'py>, buffers: Arc<Mutex<Packed>>) -> PyResult<Bound<'py, PyDict>> {
    let owner = Bound::new(py, Owner { _buffers: Arc::clone(&buffers) })?.into_any();
    let mut batch = buffers.lock().unwrap_or_else(PoisonError::into_inner);
    let fields = PyDict::new(py);
    fields.set_item("input_ids", view(&owner, batch.input_ids_mut()))?;
    fields.set_item("position_ids", view(&owner, batch.position_ids_mut()))?;
    fields.set_item("cu_seqlens", view(&owner, batch.cu_seqlens_mut()))?;
    fields.set_item("max_seqlen", batch.max_seqlen())?;
    fields.set_item("loss_mask", view(&owner, batch.loss_mask_mut()))?;
    fields.set_item("rollout_log_probs", view(&owner, batch.rollout_log_probs_mut()))?;
    fields.set_item("versions", view(&owner, batch.versions_mut()))?;
    fields.set_item("rewards", view(&owner, batch.rewards_mut()))?;
    fields.set_item("group_ids", view(&owner, batch.group_ids_mut()))?;
    fields.set_item("trajectory_ids", view(&owner, batch.trajectory_ids_mut()))?;
    fields.set_item("prompt_ids", view(&owner, batch.prompt_ids_mut()))?;
    fields.set_item("prompt_lengths", view(&owner, batch.prompt_lengths_mut()))?;
    fields.set_item("finish_reasons", view(&owner, batch.finish_reasons_mut()))?;
    let columns = PyDict::new(py);
    for (name, values) in batch.columns_mut() {
        columns.set_item(name.as_str(), column_view(&owner, values))?;
    }
    fields.set_item("columns", columns)?;
    Ok(fields)
}

fn column_view<'py>(owner: &Bound<'py, PyAny>, values: &mut Values) -> Bound<'py, PyAny> {
    match values.dtype() {
        Dtype::Uint8 => view(owner, values.entries_mut::<u8>()).into_any(),
        Dtype::Int8 => view(owner, values.entries_mut::<i8>()).into_any(),
        Dtype::Uint16 => view(owner, values.entries_mut::<u16>()).into_any(),
        Dtype::Int16 => view(owner, values.entries_mut::<i16>()).into_any(),
        Dtype::Uint32 => view(owner, values.entries_mut::<u32>()).into_any(),
        Dtype::Int32 => view(owner, values.entries_mut::<i32>()).into_any(),
        Dtype::Int64 => view(owner, values.entries_mut::<i64>()).into_any(),
        Dtype::Float32 => view(owner, values.entries_mut::<f32>()).into_any(),
        Dtype::Float64 => view(owner, values.entries_mut::<f64>()).into_any(),
    }
}

fn view<'py, T: Element>(owner: &Bound<'py, PyAny>, memory: &mut [T]) -> Bound<'py, PyArray1<T>> {
    let memory = ArrayViewMut1::from(memory);
    // SAFETY: the memory is an allocation of the `Packed` that `owner` keeps alive (its `Arc`),
    // and `owner` becomes the array's base. It is neither moved nor freed nor written by Rust while
    // an owner exists: arrays grow only in `Packed::begin`, which is called only on buffers from
    // `Pool::take`, and those have no owner.
    unsafe { PyArray1::borrow_from_array(&memory, owner.clone()) }
}

/// The arrays of a batch by name, over the memory into which a server has written it.
pub fn shared_arrays(py: Python<'_>, batch: SharedBatch) -> PyResult<Bound<'_, PyDict>> {
    let owner = Bound::new(py, SharedOwner { memory: batch.memory })?;
    let fields = PyDict::new(py);
    for (place, (name, _)) in batch.places.into_iter().zip(ARRAYS) {
        fields.set_item(name, shared_array(&owner, place)?)?;
    }
    let columns = PyDict::new(py);
    for (name, place) in batch.columns {
        columns.set_item(name, shared_array(&owner, place)?)?;
    }
    fields.set_item("columns", columns)?;
    fields.set_item("max_seqlen", batch.max_seqlen)?;
    Ok(fields)
}

fn shared_array<'py>(owner: &Bound<'py, SharedOwner>, place: Place) -> PyResult<Bound<'py, PyAny>> {
    Ok(match place.dtype {
        Dtype::Uint8 => shared_view::<u8>(owner, place)?.into_any(),
        Dtype::Int8 => shared_view::<i8>(owner, place)?.into_any(),
        Dtype::Uint16 => shared_view::<u16>(owner, place)?.into_any(),
        Dtype::Int16 => shared_view::<i16>(owner, place)?.into_any(),
        Dtype::Uint32 => shared_view::<u32>(owner, place)?.into_any(),
        Dtype::Int32 => shared_view::<i32>(owner, place)?.into_any(),
        Dtype::Int64 => shared_view::<i64>(owner, place)?.into_any(),
        Dtype::Float32 => shared_view::<f32>(owner, place)?.into_any(),
        Dtype::Float64 => shared_view::<f64>(owner, place)?.into_any(),
    })
}

fn shared_view<'py, T: Element>(
    owner: &Bound<'py, SharedOwner>,
    place: Place,
) -> PyResult<Bound<'py, PyArray1<T>>> {
    let words = owner.get().memory.words();
    let needed = (place.length * size_of::<T>()).div_ceil(8);
    let cells = place.word.checked_add(needed).and_then(|end| words.get(place.word..end));
    let cells =
        cells.ok_or(CoreError::from(k15_shared::Error::Malformed("an array beyond its memory")))?;
    let first = cells.as_ptr().cast::<T>().cast_mut();
    // SAFETY: `first` points to `place.length` entries inside the map (`cells` was cut from it), at
    // a multiple of 8 bytes, so aligned for `T`, a number for which all bits are valid; atomics may
    // be written through a shared pointer. The map lives as long as `owner`, which becomes the
    // array's base. Rust makes no reference from this pointer, and the server does not write there
    // while `owner` lives (see above).
    unsafe {
        let memory = ArrayViewMut1::from_shape_ptr(place.length, first);
        Ok(PyArray1::borrow_from_array(&memory, owner.clone().into_any()))
    }
}
