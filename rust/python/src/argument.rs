//! Arguments that need a message of our own when they are not what was expected.

use std::borrow::Cow;

use k15_core::Error;
use k15_core::values::Dtype;
use numpy::{Element, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Result;

/// A one-dimensional array of one type, held while it is read.
pub struct Column<'py, T: Element>(PyReadonlyArray1<'py, T>);

impl<T: Element + Copy> Column<'_, T> {
    /// The values: a view where they lie one after another, else a copy.
    pub fn values(&self) -> Cow<'_, [T]> {
        self.0.as_slice().map_or_else(|_| self.0.as_array().to_vec().into(), Cow::Borrowed)
    }
}

/// Takes `value` as a one-dimensional array of `T`, or None if it is another thing.
pub fn column_if<'py, T: Element>(value: &Bound<'py, PyAny>) -> Option<Column<'py, T>> {
    value.extract::<PyReadonlyArray1<'py, T>>().ok().map(Column)
}

/// Takes `value` as a one-dimensional array of `T`; `dtype` is its name in the message.
pub fn column<'py, T: Element>(
    field: &'static str,
    value: &Bound<'py, PyAny>,
    dtype: &str,
) -> Result<Column<'py, T>> {
    column_if(value).ok_or_else(|| refused(field, value, dtype).into())
}

/// Does something with the bytes of a one-dimensional array of `dtype`.
pub fn with_bytes<R>(
    field: &'static str,
    value: &Bound<'_, PyAny>,
    dtype: Dtype,
    work: impl FnOnce(&[u8]) -> R,
) -> Result<R> {
    macro_rules! of {
        ($type:ty) => {{
            let column = column::<$type>(field, value, dtype.name())?;
            Ok(work(bytemuck::cast_slice(&column.values())))
        }};
    }
    match dtype {
        Dtype::Uint8 => of!(u8),
        Dtype::Int8 => of!(i8),
        Dtype::Uint16 => of!(u16),
        Dtype::Int16 => of!(i16),
        Dtype::Uint32 => of!(u32),
        Dtype::Int32 => of!(i32),
        Dtype::Int64 => of!(i64),
        Dtype::Float32 => of!(f32),
        Dtype::Float64 => of!(f64),
    }
}

/// The type of a column by its name.
pub fn dtype(name: &str) -> Result<Dtype> {
    let known = || Dtype::ALL.map(Dtype::name).join(", ");
    let found = Dtype::from_name(name);
    found.ok_or_else(|| {
        Error::invalid("columns", format!("{name:?}"), format!("one of {}", known())).into()
    })
}

/// The error for a `value` that is not a one-dimensional array of `dtype`.
pub fn refused(field: &'static str, value: &Bound<'_, PyAny>, dtype: &str) -> Error {
    let given = match value.cast::<PyUntypedArray>() {
        Ok(array) => format!("an array of {} with {} axes", array.dtype(), array.ndim()),
        Err(_) => value.get_type().name().map_or_else(|_| String::new(), |name| name.to_string()),
    };
    Error::invalid(field, given, format!("a one-dimensional array of {dtype}"))
}

/// What a name stands for.
pub fn text<'a, T>(
    value: &'a str,
    parse: impl FnOnce(&'a str) -> k15_core::Result<T>,
) -> Result<T> {
    Ok(parse(value)?)
}

/// Takes a Python integer as an unsigned one.
pub fn unsigned<T: TryFrom<i128>>(field: &'static str, value: i128) -> Result<T> {
    let most = u128::MAX >> (128 - 8 * size_of::<T>());
    T::try_from(value)
        .map_err(|_| Error::invalid(field, value, format!("an integer from 0 to {most}")).into())
}

/// Takes any Python integer of at least 0 that fits `T`, whatever object brings it.
pub fn natural<T: TryFrom<i64>>(field: &'static str, value: &Bound<'_, PyAny>) -> Result<T> {
    let fits = value.extract::<i64>().ok().filter(|n| *n >= 0).and_then(|n| T::try_from(n).ok());
    fits.ok_or_else(|| {
        let given = value.repr().map_or_else(|_| "an object".into(), |text| text.to_string());
        let most = i64::MAX.cast_unsigned() >> 64usize.saturating_sub(8 * size_of::<T>() + 1);
        Error::invalid(field, given, format!("an integer from 0 to {most}")).into()
    })
}
