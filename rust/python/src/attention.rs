//! Attention over the key-value cache, in place.

use k15_core::Error;
use k15_core::attention::{Shape, Token, attend};
use numpy::ndarray::{ArrayView3, Axis};
use numpy::{PyReadonlyArray1, PyReadonlyArray3, PyReadwriteArray2, PyReadwriteArray3};
use pyo3::prelude::*;

use crate::error::Result;

/// Put each token's key and value into the cache and attend, where asked, over its row up to it.
#[pyfunction]
#[pyo3(signature = (rows, positions, q, k, v, keys, values, out, threads = 1, asked = None))]
#[expect(clippy::too_many_arguments, reason = "the arrays of a decode step")]
pub fn attend_cached(
    py: Python<'_>,
    rows: PyReadonlyArray1<'_, i64>,
    positions: PyReadonlyArray1<'_, i64>,
    q: PyReadonlyArray3<'_, f32>,
    k: PyReadonlyArray3<'_, f32>,
    v: PyReadonlyArray3<'_, f32>,
    mut keys: PyReadwriteArray3<'_, f32>,
    mut values: PyReadwriteArray3<'_, f32>,
    mut out: PyReadwriteArray2<'_, f32>,
    threads: usize,
    asked: Option<PyReadonlyArray1<'_, bool>>,
) -> Result<()> {
    let asked = asked.as_ref().map(|asked| asked.as_array());
    let (rows, positions) = (rows.as_array(), positions.as_array());
    let (q, k, v) = (q.as_array(), k.as_array(), v.as_array());
    let (_, query_heads, head_dim) = q.dim();
    let (_, key_heads, _) = k.dim();
    let (_, capacity, _) = keys.as_array().dim();
    let shape = Shape { query_heads, key_heads, head_dim, capacity };
    let mut tokens = Vec::with_capacity(rows.len());
    for (i, &given) in rows.iter().enumerate() {
        let Ok(row) = usize::try_from(given) else {
            tokens.push(None);
            continue;
        };
        let position = positions.get(i).and_then(|&position| usize::try_from(position).ok());
        let position = position
            .ok_or_else(|| Error::invalid("positions", i, "a place of at least 0 for each row"))?;
        let (k, v) = (token("k", &k, i)?, token("v", &v, i)?);
        let asks = match &asked {
            None => true,
            Some(asked) => *asked
                .get(i)
                .ok_or_else(|| Error::invalid("asked", asked.len(), "one for each of rows"))?,
        };
        let q = if asks { token("q", &q, i)? } else { &[] };
        tokens.push(Some(Token { row, position, q, k, v }));
    }
    let gaps = |field| Error::invalid(field, "an array with gaps", "a contiguous one");
    let keys = keys.as_slice_mut().map_err(|_| gaps("keys"))?;
    let values = values.as_slice_mut().map_err(|_| gaps("values"))?;
    let out = out.as_slice_mut().map_err(|_| gaps("out"))?;
    py.detach(|| attend(shape, &tokens, keys, values, out, threads))?;
    Ok(())
}

/// The heads of token i, one after another.
fn token<'a>(field: &'static str, array: &ArrayView3<'a, f32>, i: usize) -> Result<&'a [f32]> {
    if i >= array.dim().0 {
        let given = format!("{} tokens", array.dim().0);
        return Err(Error::invalid(field, given, "one for each of rows").into());
    }
    let heads = (*array).index_axis_move(Axis(0), i);
    let gaps =
        || Error::invalid(field, "a token with gaps", "heads that follow one another").into();
    heads.to_slice().ok_or_else(gaps)
}
