//! What the methods of the store take from Python: prompts, chunks of flat arrays.

use k15_core::Error;
use k15_core::store::{Chunk, ColumnChunk, PromptData};
use pyo3::prelude::*;

use crate::argument::column;
use crate::error::{CoreError, Result};

/// A prompt, copied out of its Python object.
pub struct Prompt {
    prompt_id: i64,
    tokens: Vec<i32>,
    answer: String,
    tags: Vec<String>,
    difficulty: Option<f64>,
}

impl Prompt {
    /// The attributes of a `k15core.types.Prompt`, or of whatever has them.
    pub fn read(prompt: &Bound<'_, PyAny>) -> PyResult<Self> {
        let input_ids = column("prompt.input_ids", &prompt.getattr("input_ids")?, "int32")?;
        Ok(Self {
            tokens: input_ids.values().into_owned(),
            prompt_id: field(prompt, "prompt.prompt_id", "prompt_id", "an int64")?,
            answer: field(prompt, "prompt.answer", "answer", "a str")?,
            tags: field(prompt, "prompt.tags", "tags", "a tuple of str")?,
            difficulty: field(prompt, "prompt.difficulty", "difficulty", "a float or None")?,
        })
    }

    /// The same as the store takes it.
    pub fn data(&self) -> PromptData<'_> {
        PromptData {
            prompt_id: self.prompt_id,
            tokens: &self.tokens,
            answer: &self.answer,
            tags: self.tags.iter().map(String::as_str).collect(),
            difficulty: self.difficulty,
        }
    }
}

/// An attribute of a prompt, of the type that it should have.
fn field<'py, T>(
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
