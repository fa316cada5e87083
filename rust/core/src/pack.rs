//! A batch of trajectories, one after another in flat arrays that are reused.

use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::values::{Dtype, Values};

/// Tokens of a batch from which on it is written past the caches: 4 MiB, about what a processor has of a
/// last-level cache that it shares.
const LEAST_STREAMED: usize = (4 << 20) / 17;

/// The arrays of a batch: B rows, T tokens. Memory grows to the largest batch and is kept.
///
/// Every per-token array has T entries; entry t belongs to token t given the tokens before it, and
/// prompt entries are 0.
///
/// ```
/// use k15_core::pack::{Packed, Row};
/// let mut batch = Packed::default();
/// let mut filling = batch.begin(1, 5)?;
/// filling.begin_row(&[1, 2]);
/// filling.extend_row(&[7, 8, 9], &[-1.0, -2.0, -3.0], &[1, 1, 0], 4);
/// filling.end_row(&Row { reward: 0.5, group_id: 3, trajectory_id: 6, prompt_id: 9, finish_reason: 0 });
/// drop(filling);
/// assert_eq!(batch.cu_seqlens(), [0, 5]);
/// assert_eq!(batch.position_ids(), [0, 1, 2, 3, 4]);
/// assert_eq!(batch.versions(), [0, 0, 4, 4, 4]);
/// # Ok::<(), k15_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Packed {
    rows: usize,
    tokens: usize,
    max_seqlen: usize,
    row_start: usize,
    room: usize,
    input_ids: Pages<i32>,
    position_ids: Pages<i32>,
    loss_mask: Pages<u8>,
    rollout_log_probs: Pages<f32>,
    versions: Pages<u32>,
    cu_seqlens: Vec<i32>,
    rewards: Vec<f32>,
    group_ids: Vec<i64>,
    trajectory_ids: Vec<i64>,
    prompt_ids: Vec<i64>,
    prompt_lengths: Vec<i32>,
    finish_reasons: Vec<u8>,
    columns: Vec<(String, Values)>,
    /// Memory of columns of the batch before.
    kept: Vec<Values>,
}

/// What a batch holds once a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The score.
    pub reward: f32,
    /// The group.
    pub group_id: i64,
    /// The trajectory.
    pub trajectory_id: i64,
    /// The prompt's own id.
    pub prompt_id: i64,
    /// The code of why it ended.
    pub finish_reason: u8,
}

macro_rules! arrays {
    ($($(#[$doc:meta])* $name:ident, $name_mut:ident: $type:ty, $length:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(&self) -> &[$type] {
                &self.$name[..self.$length]
            }

            /// The same, to be written.
            pub fn $name_mut(&mut self) -> &mut [$type] {
                &mut self.$name[..self.$length]
            }
        )*
    };
}

impl Packed {
    /// Forget what is there and make room for `rows` rows of `tokens` tokens together.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if there is not so much memory.
    pub fn begin(&mut self, rows: usize, tokens: usize) -> Result<Filling<'_>> {
        [
            self.input_ids.make_room(tokens),
            self.position_ids.make_room(tokens),
            self.loss_mask.make_room(tokens),
            self.rollout_log_probs.make_room(tokens),
            self.versions.make_room(tokens),
        ]
        .into_iter()
        .collect::<std::io::Result<()>>()
        .map_err(|source| Error::Storage {
            path: "memory".into(),
            action: "make room for the batch",
            source,
        })?;
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        self.rewards.clear();
        self.group_ids.clear();
        self.trajectory_ids.clear();
        self.prompt_ids.clear();
        self.prompt_lengths.clear();
        self.finish_reasons.clear();
        self.cu_seqlens.reserve(rows);
        self.kept = self.columns.drain(..).map(|(_, values)| values).collect();
        (self.rows, self.tokens, self.max_seqlen, self.row_start) = (0, 0, 0, 0);
        self.room = tokens;
        if tokens >= LEAST_STREAMED {
            self.input_ids.stream();
            self.position_ids.stream();
            self.loss_mask.stream();
            self.rollout_log_probs.stream();
            self.versions.stream();
        }
        Ok(Filling(self))
    }

    /// The columns that were added, each with one entry a token (T).
    pub fn columns_mut(&mut self) -> &mut [(String, Values)] {
        for (_, values) in &mut self.columns {
            values.resize(self.tokens);
        }
        &mut self.columns
    }

    /// The columns that were added: name, type and little-endian values (T).
    pub fn columns(&self) -> impl Iterator<Item = (&str, Dtype, &[u8])> {
        self.columns.iter().map(|(name, values)| {
            let dtype = values.dtype();
            (name.as_str(), dtype, &values.bytes()[..self.tokens * dtype.width()])
        })
    }

    /// Tokens of the longest row.
    pub fn max_seqlen(&self) -> usize {
        self.max_seqlen
    }

    /// Where each row begins, and where the last one ends (B + 1).
    pub fn cu_seqlens(&self) -> &[i32] {
        &self.cu_seqlens
    }

    /// The same, to be written.
    pub fn cu_seqlens_mut(&mut self) -> &mut [i32] {
        &mut self.cu_seqlens
    }

    arrays! {
        /// Prompt and response tokens (T).
        input_ids, input_ids_mut: i32, tokens;
        /// Places within the row (T).
        position_ids, position_ids_mut: i32, tokens;
        /// 1 for tokens that are trained on (T).
        loss_mask, loss_mask_mut: u8, tokens;
        /// Log-probs under the policy that sampled (T).
        rollout_log_probs, rollout_log_probs_mut: f32, tokens;
        /// Policy versions (T).
        versions, versions_mut: u32, tokens;
        /// Scores (B).
        rewards, rewards_mut: f32, rows;
        /// Groups (B).
        group_ids, group_ids_mut: i64, rows;
        /// Trajectories (B).
        trajectory_ids, trajectory_ids_mut: i64, rows;
        /// Prompts' own ids (B).
        prompt_ids, prompt_ids_mut: i64, rows;
        /// Tokens of each prompt (B).
        prompt_lengths, prompt_lengths_mut: i32, rows;
        /// Codes of why each ended (B).
        finish_reasons, finish_reasons_mut: u8, rows;
    }
}

/// A batch that is being filled; the arrays are complete when it is dropped.
#[derive(Debug)]
pub struct Filling<'a>(&'a mut Packed);

impl Filling<'_> {
    /// Add an array of one entry a token, 0 where no row sets it. Called before the first row.
    pub fn add_column(&mut self, name: &str, dtype: Dtype) {
        let Self(batch) = self;
        let kept = batch.kept.iter().position(|values| values.dtype() == dtype);
        let mut values =
            kept.map_or_else(|| Values::zeros(dtype, 0), |place| batch.kept.swap_remove(place));
        values.resize(batch.room);
        values.bytes_mut().fill(0);
        batch.columns.push((name.to_owned(), values));
    }

    /// Set entries of a column for tokens of the row's response from `offset` on: little-endian
    /// values of the column's type.
    pub fn set_column(&mut self, column: usize, offset: usize, bytes: &[u8]) {
        let Self(batch) = self;
        let prompt = batch.prompt_lengths.last().map_or(0, |n| usize::try_from(*n).unwrap_or(0));
        let values = &mut batch.columns[column].1;
        let from = (batch.row_start + prompt + offset) * values.dtype().width();
        values.bytes_mut()[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// Begin a row with its prompt.
    pub fn begin_row(&mut self, prompt: &[i32]) {
        let Self(batch) = self;
        let (from, n) = (batch.tokens, prompt.len());
        batch.input_ids.put(from, prompt);
        batch.loss_mask.put_same(from, n, 0);
        batch.rollout_log_probs.put_same(from, n, 0.0);
        batch.versions.put_same(from, n, 0);
        batch.row_start = from;
        batch.tokens = from + n;
        batch.prompt_lengths.push(int32(n));
    }

    /// Add response tokens of one policy version to the row.
    pub fn extend_row(&mut self, tokens: &[i32], log_probs: &[f32], mask: &[u8], version: u32) {
        let from = self.extend(tokens, log_probs, version);
        self.0.loss_mask.put(from, mask);
    }

    /// The same for tokens none of which is trained on.
    pub fn extend_row_masked(&mut self, tokens: &[i32], log_probs: &[f32], version: u32) {
        let from = self.extend(tokens, log_probs, version);
        self.0.loss_mask.put_same(from, tokens.len(), 0);
    }

    /// All but the mask; where it goes.
    fn extend(&mut self, tokens: &[i32], log_probs: &[f32], version: u32) -> usize {
        let Self(batch) = self;
        let (from, n) = (batch.tokens, tokens.len());
        batch.input_ids.put(from, tokens);
        batch.rollout_log_probs.put(from, log_probs);
        batch.versions.put_same(from, n, version);
        batch.tokens = from + n;
        from
    }

    /// End the row.
    pub fn end_row(&mut self, row: &Row) {
        let Self(batch) = self;
        let length = batch.tokens - batch.row_start;
        batch.position_ids.put_places(batch.row_start, length);
        batch.max_seqlen = batch.max_seqlen.max(length);
        batch.rows += 1;
        batch.cu_seqlens.push(int32(batch.tokens));
        batch.rewards.push(row.reward);
        batch.group_ids.push(row.group_id);
        batch.trajectory_ids.push(row.trajectory_id);
        batch.prompt_ids.push(row.prompt_id);
        batch.finish_reasons.push(row.finish_reason);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let Self(batch) = self;
        batch.input_ids.settle();
        batch.position_ids.settle();
        batch.loss_mask.settle();
        batch.rollout_log_probs.settle();
        batch.versions.settle();
    }
}

fn int32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_has_what_rows_of_any_length_were_filled_with() {
        let mut batch = Packed::default();
        for rows in [3, 400] {
            let lengths = (0..rows).map(|i| 1 + i * i * 37 % 3000);
            let prompts: Vec<Vec<i32>> = lengths.clone().map(|n| (0..n % 90).collect()).collect();
            let responses: Vec<Vec<i32>> = lengths.map(|n| (n..2 * n).collect()).collect();
            let tokens = prompts.iter().chain(&responses).map(Vec::len).sum();
            assert_eq!(tokens > LEAST_STREAMED, rows == 400);
            let mut filling = batch.begin(prompts.len(), tokens).unwrap();
            for (prompt, response) in prompts.iter().zip(&responses) {
                filling.begin_row(prompt);
                for (version, part) in (1..).zip(response.chunks(1500)) {
                    let log_probs: Vec<f32> = part.iter().map(|&x| -(x as f32)).collect();
                    filling.extend_row(part, &log_probs, &vec![1; part.len()], version);
                }
                filling.end_row(&Row {
                    reward: 1.0,
                    group_id: 0,
                    trajectory_id: 0,
                    prompt_id: 0,
                    finish_reason: 0,
                });
            }
            drop(filling);
            for ((prompt, response), ends) in
                prompts.iter().zip(&responses).zip(batch.cu_seqlens().windows(2))
            {
                let row = ends[0] as usize..ends[1] as usize;
                let n = prompt.len();
                assert_eq!(batch.input_ids()[row.clone()], [prompt.as_slice(), response].concat());
                let places: Vec<i32> = (0..).take(row.len()).collect();
                assert_eq!(batch.position_ids()[row.clone()], places);
                let versions = (1..).flat_map(|version| std::iter::repeat_n(version, 1500));
                let answer: Vec<(i32, u32)> = response.iter().copied().zip(versions).collect();
                for (i, at) in row.enumerate() {
                    let of_response = i.checked_sub(n).map(|i| answer[i]);
                    let wanted = of_response.map_or((0.0, 0, 0), |(x, v)| (-(x as f32), 1, v));
                    let (log_prob, mask) = (batch.rollout_log_probs()[at], batch.loss_mask()[at]);
                    assert_eq!((log_prob, mask, batch.versions()[at]), wanted);
                }
            }
        }
    }
}
