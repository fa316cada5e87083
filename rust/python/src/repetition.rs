//! The repetition detector.

use std::sync::{Mutex, MutexGuard, PoisonError};

use k15_core::repetition::{Detector, Kind, Loop, Near, Settings};
use pyo3::prelude::*;
use pyo3::sync::{MutexExt, PyOnceLock};

use crate::argument::column;
use crate::error::{CoreError, Result};

/// From this many tokens on a call lets other Python threads run. Below, waiting to get the
/// interpreter back could cost more than the work.
const LONG: usize = 4096;

// The defaults in the signature below must be literals, so that Python can show them.
const _: () = {
    let Settings { max_period, min_repeats, min_covered, .. } = Settings::DEFAULT;
    assert!(max_period == 16384 && min_repeats == 4 && min_covered == 256);
    let Near { ngram, window, max_window, novelty } = Near::DEFAULT;
    assert!(ngram == 8 && window == 1024 && max_window == 16384 && novelty == 0.125);
};

/// Watches streams of tokens and says when one has begun to loop.
#[pyclass(frozen, module = "k15core._core")]
pub struct RepetitionDetector {
    detector: Mutex<Detector>,
}

#[pymethods]
impl RepetitionDetector {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python constructor")]
    #[pyo3(signature = (
        streams = 1, *, max_period = 16384, min_repeats = 4, min_covered = 256, near = true,
        near_ngram = 8, near_window = 1024, near_max_window = 16384, near_novelty = 0.125,
    ))]
    fn new(
        streams: i64,
        max_period: i64,
        min_repeats: i64,
        min_covered: i64,
        near: bool,
        near_ngram: i64,
        near_window: i64,
        near_max_window: i64,
        near_novelty: f64,
    ) -> Result<Self> {
        let watch = Near {
            ngram: count("near_ngram", near_ngram)?,
            window: count("near_window", near_window)?,
            max_window: count("near_max_window", near_max_window)?,
            novelty: near_novelty,
        };
        let settings = Settings {
            max_period: count("max_period", max_period)?,
            min_repeats: count("min_repeats", min_repeats)?,
            min_covered: count("min_covered", min_covered)?,
            near: near.then_some(watch),
        };
        let detector = Detector::new(count("streams", streams)?, settings)?;
        Ok(Self { detector: Mutex::new(detector) })
    }

    /// Add one token to stream 0; the loop, if this token made one.
    fn push<'py>(&self, py: Python<'py>, token: i64) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = raised(self.attached(py).push(0, int32(token)?))?;
        found.map(|found| python_loop(py, found)).transpose()
    }

    /// Add token i to stream streams[i], in this order; the streams that loop now.
    fn push_many<'py>(
        &self,
        py: Python<'py>,
        streams: &Bound<'py, PyAny>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<(usize, Bound<'py, PyAny>)>> {
        // Another thread may write to the arrays while the interpreter is released: hence copies.
        let streams = column::<i64>("streams", streams, "int64")?.values().into_owned();
        let tokens = column::<i32>("tokens", tokens, "int32")?.values().into_owned();
        let found = if tokens.len() < LONG {
            self.attached(py).push_many(&streams, &tokens)
        } else {
            py.detach(|| self.detached().push_many(&streams, &tokens))
        };
        let found = raised(found)?;
        found.into_iter().map(|(stream, found)| Ok((stream, python_loop(py, found)?))).collect()
    }

    /// Add tokens to one stream; the loop, if they made one.
    fn extend<'py>(
        &self,
        py: Python<'py>,
        stream: i64,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let stream = slot(stream)?;
        let tokens = column::<i32>("tokens", tokens, "int32")?.values().into_owned();
        let found = if tokens.len() < LONG {
            self.attached(py).extend(stream, &tokens)
        } else {
            py.detach(|| self.detached().extend(stream, &tokens))
        };
        raised(found)?.map(|found| python_loop(py, found)).transpose()
    }

    /// Empty a slot for a new stream.
    fn reset(&self, py: Python<'_>, stream: i64) -> Result<()> {
        Ok(self.attached(py).reset(slot(stream)?)?)
    }
}

impl RepetitionDetector {
    fn attached(&self, py: Python<'_>) -> MutexGuard<'_, Detector> {
        self.detector.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn detached(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn raised<T>(result: k15_core::Result<T>) -> PyResult<T> {
    result.map_err(|error| CoreError::from(error).into())
}

fn count(field: &'static str, value: i64) -> k15_core::Result<usize> {
    usize::try_from(value).map_err(|_| k15_core::Error::invalid(field, value, "a positive count"))
}

fn slot(stream: i64) -> Result<usize> {
    let expected = "a slot, counted from 0";
    Ok(usize::try_from(stream).map_err(|_| k15_core::Error::invalid("stream", stream, expected))?)
}

fn int32(token: i64) -> Result<i32> {
    let expected = "a token id that fits 32 bits";
    Ok(i32::try_from(token).map_err(|_| k15_core::Error::invalid("token", token, expected))?)
}

/// A `k15core.types.Loop`.
fn python_loop(py: Python<'_>, found: Loop) -> PyResult<Bound<'_, PyAny>> {
    static LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let kind = match found.kind {
        Kind::Exact => "exact",
        Kind::Near => "near",
    };
    LOOP.import(py, "k15core.types", "Loop")?.call1((
        found.start,
        found.period,
        found.covered,
        kind,
    ))
}
