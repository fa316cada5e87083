//! Arguments from Python, with errors that name the field.

use k15_core::Error;
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Result;

/// A one-dimensional contiguous numpy array of exactly this dtype.
pub fn array<'py, T: Element>(
    field: &'static str,
    dtype: &str,
    value: &Bound<'py, PyAny>,
) -> Result<PyReadonlyArray1<'py, T>> {
    if let Ok(array) = value.cast::<PyArray1<T>>()
        && array.is_contiguous()
        && let Ok(array) = array.try_readonly()
    {
        return Ok(array);
    }
    let attribute = |name| value.getattr(name).and_then(|a| a.str()).map(|a| a.to_string());
    let given = match (attribute("dtype"), attribute("shape")) {
        (Ok(dtype), Ok(shape)) => format!("{} of {dtype}, shape {shape}", type_name(value)),
        _ => type_name(value),
    };
    let expected = format!("a contiguous numpy array of {dtype} with one dimension");
    Err(Error::invalid(field, given, expected).into())
}

/// The elements of an array that [`array`] accepted.
pub fn slice<'a, T: Element>(
    field: &'static str,
    array: &'a PyReadonlyArray1<'_, T>,
) -> Result<&'a [T]> {
    array.as_slice().map_err(|_| Error::invalid(field, "strided", "a contiguous array").into())
}

/// A whole number of at least 0 that fits `T`; ids, counts, versions.
pub fn natural<T: TryFrom<i64>>(field: &'static str, value: &Bound<'_, PyAny>) -> Result<T> {
    let whole = value.call_method0("__index__").and_then(|index| index.extract::<i64>());
    let fits = whole.as_ref().ok().copied().filter(|n| *n >= 0).and_then(|n| T::try_from(n).ok());
    fits.ok_or_else(|| {
        let bytes = size_of::<T>();
        let given = value.repr().map_or_else(|_| type_name(value), |text| text.to_string());
        let expected =
            format!("a whole number between 0 and 2**{}", 8 * bytes - usize::from(bytes > 4));
        Error::invalid(field, given, expected).into()
    })
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string())
}
