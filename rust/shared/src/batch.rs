//! A packed batch in shared memory: written once by the server, looked at in place by the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k15_core::pack::Packed;
use k15_core::store::SharedMap;
use k15_core::values::Dtype;

use crate::error::{Error, Result};
use crate::words::{Reader, Sink, copy};

/// Where an array lies, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first word.
    pub word: usize,
    /// Entries.
    pub length: usize,
    /// Their type.
    pub dtype: Dtype,
}

/// A batch that the server has written and nobody writes again while this lives.
pub struct SharedBatch {
    /// The memory.
    pub memory: Arc<SharedMap>,
    /// Tokens of the longest row.
    pub max_seqlen: usize,
    /// The arrays of [`Packed`], in the order of [`ARRAYS`].
    pub places: Vec<Place>,
    /// The columns by name.
    pub columns: Vec<(String, Place)>,
}

/// The arrays of a batch by name, in the order in which they lie.
pub const ARRAYS: [(&str, Dtype); 12] = [
    ("input_ids", Dtype::Int32),
    ("position_ids", Dtype::Int32),
    ("cu_seqlens", Dtype::Int32),
    ("loss_mask", Dtype::Uint8),
    ("rollout_log_probs", Dtype::Float32),
    ("versions", Dtype::Uint32),
    ("rewards", Dtype::Float32),
    ("group_ids", Dtype::Int64),
    ("trajectory_ids", Dtype::Int64),
    ("prompt_ids", Dtype::Int64),
    ("prompt_lengths", Dtype::Int32),
    ("finish_reasons", Dtype::Uint8),
];

/// Writes a batch.
pub fn put(sink: &mut dyn Sink, batch: &Packed) {
    sink.word(batch.max_seqlen() as u64);
    sink.array(batch.input_ids());
    sink.array(batch.position_ids());
    sink.array(batch.cu_seqlens());
    sink.array(batch.loss_mask());
    sink.array(batch.rollout_log_probs());
    sink.array(batch.versions());
    sink.array(batch.rewards());
    sink.array(batch.group_ids());
    sink.array(batch.trajectory_ids());
    sink.array(batch.prompt_ids());
    sink.array(batch.prompt_lengths());
    sink.array(batch.finish_reasons());
    sink.word(batch.columns().count() as u64);
    for (name, dtype, bytes) in batch.columns() {
        sink.text(name);
        sink.word(dtype as u64);
        sink.word((bytes.len() / dtype.width()) as u64);
        sink.bytes(bytes);
    }
}

/// Finds the arrays of a batch in the first `words` words of a block.
pub fn find(memory: Arc<SharedMap>, words: usize) -> Result<SharedBatch> {
    let mut finder = Finder { words: memory.words().get(..words).ok_or(CUT)?, at: 0 };
    let max_seqlen = finder.count()?;
    let places = ARRAYS.iter().map(|(_, dtype)| finder.place(*dtype)).collect::<Result<_>>()?;
    let n = finder.count()?;
    let columns = (0..n).map(|_| finder.column()).collect::<Result<_>>()?;
    Ok(SharedBatch { memory, max_seqlen, places, columns })
}

const CUT: Error = Error::Malformed("a batch is cut off");

struct Finder<'a> {
    words: &'a [AtomicU64],
    at: usize,
}

impl Finder<'_> {
    fn count(&mut self) -> Result<usize> {
        let word = self.words.get(self.at).ok_or(CUT)?.load(Ordering::Relaxed);
        self.at += 1;
        usize::try_from(word).map_err(|_| CUT)
    }

    /// Passes over an array.
    fn place(&mut self, dtype: Dtype) -> Result<Place> {
        let length = self.count()?;
        let word = self.at;
        let words = length.checked_mul(dtype.width()).ok_or(CUT)?.div_ceil(8);
        self.at = word.checked_add(words).filter(|&end| end <= self.words.len()).ok_or(CUT)?;
        Ok(Place { word, length, dtype })
    }

    fn column(&mut self) -> Result<(String, Place)> {
        let from = self.at;
        self.place(Dtype::Uint8)?;
        let mut name = Vec::new();
        copy(&self.words[from..self.at], &mut name);
        let code = u8::try_from(self.count()?).ok();
        let dtype = code.and_then(Dtype::from_code).ok_or(CUT)?;
        Ok((Reader(&name).text()?.to_owned(), self.place(dtype)?))
    }
}
