//! What the methods of the store take from Python: attributes of a prompt, chunks of flat arrays.

use k15_core::Error;
use k15_core::store::{Chunk, ColumnChunk};
use pyo3::prelude::*;

use crate::error::{CoreError, Result};

/// An attribute of a prompt, of the type that it should have.
pub fn field<'py, T>(
    prompt: &Bound<'py, PyAny>,
    name: &'static str,
    attribute: &str,
    expected: &str,
) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let value = prompt.getattr(attribute)?;
    value.extract().map_err(|_| {
        let given = value.repr().map_or_else(|_| "an object".into(), |text| text.to_string());
        CoreError::from(Error::invalid(name, given, expected)).into()
    })
}

/// The chunks of flat arrays: chunk i has the tokens from cu_seqlens[i] to cu_seqlens[i + 1].
pub fn split<'a>(
    ids: &[i64],
    epochs: &[i64],
    offsets: &[i64],
    cu_seqlens: &[i32],
    tokens: &'a [i32],
    log_probs: &'a [f32],
) -> Result<Vec<Chunk<'a>>> {
    let n = ids.len();
    one_each("epochs", epochs.len(), n, n)?;
    one_each("offsets", offsets.len(), n, n)?;
    one_each("cu_seqlens", cu_seqlens.len(), n + 1, n)?;
    if log_probs.len() != tokens.len() {
        let expected = format!("{}, one for each of tokens", tokens.len());
        let given = format!("{} entries", log_probs.len());
        return Err(Error::invalid("log_probs", given, expected).into());
    }
    let ends = ends(cu_seqlens, n, tokens.len(), "tokens")?;
    let mut chunks = Vec::with_capacity(n);
    for i in 0..n {
        chunks.push(Chunk {
            trajectory_id: natural("trajectory_ids", ids[i])?,
            epoch: natural("epochs", epochs[i])?,
            offset: small("offsets", offsets[i])?,
            tokens: &tokens[ends[i]..ends[i + 1]],
            log_probs: &log_probs[ends[i]..ends[i + 1]],
            loss_mask: None,
        });
    }
    Ok(chunks)
}

/// Values of a column in flat arrays: chunk i has the entries from cu_seqlens[i] to
/// cu_seqlens[i + 1] of `bytes`, `width` bytes each.
pub fn split_values<'a>(
    ids: &[i64],
    offsets: &[i64],
    cu_seqlens: &[i32],
    bytes: &'a [u8],
    width: usize,
) -> Result<Vec<ColumnChunk<'a>>> {
    let n = ids.len();
    one_each("offsets", offsets.len(), n, n)?;
    one_each("cu_seqlens", cu_seqlens.len(), n + 1, n)?;
    let ends = ends(cu_seqlens, n, bytes.len() / width, "values")?;
    let mut chunks = Vec::with_capacity(n);
    for i in 0..n {
        chunks.push(ColumnChunk {
            trajectory_id: natural("trajectory_ids", ids[i])?,
            offset: small("offsets", offsets[i])?,
            bytes: &bytes[ends[i] * width..ends[i + 1] * width],
        });
    }
    Ok(chunks)
}

fn one_each(field: &'static str, length: usize, wanted: usize, n: usize) -> Result<()> {
    if length == wanted {
        return Ok(());
    }
    let expected = format!("{wanted}, as trajectory_ids has {n}");
    Err(Error::invalid(field, format!("{length} entries"), expected).into())
}

fn ends(cu_seqlens: &[i32], n: usize, total: usize, what: &str) -> Result<Vec<usize>> {
    let ends: Option<Vec<usize>> =
        cu_seqlens.iter().map(|&end| usize::try_from(end).ok()).collect();
    let ends = ends.filter(|ends| {
        ends[0] == 0 && ends[n] == total && ends.windows(2).all(|pair| pair[0] <= pair[1])
    });
    ends.ok_or_else(|| {
        let expected = format!("growing from 0 to {total}, the length of {what}");
        Error::invalid("cu_seqlens", format!("{cu_seqlens:?}"), expected).into()
    })
}

fn small(field: &'static str, value: i64) -> Result<u32> {
    let expected = "between 0 and 2**32";
    u32::try_from(value).map_err(|_| Error::invalid(field, value, expected).into())
}

fn natural(field: &'static str, value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::invalid(field, value, "at least 0").into())
}
