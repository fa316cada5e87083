//! A batch of trajectories, one after another in flat arrays that are reused.

use crate::values::{Dtype, Values};

/// The arrays of a batch: B rows, T tokens. Memory grows to the largest batch and is kept.
///
/// Every per-token array has T entries; entry t belongs to token t given the tokens before it, and
/// prompt entries are 0.
///
/// ```
/// use k15_core::pack::{Packed, Row};
/// let mut batch = Packed::default();
/// batch.begin(1, 5);
/// batch.begin_row(&[1, 2]);
/// batch.extend_row(&[7, 8, 9], &[-1.0, -2.0, -3.0], &[1, 1, 0], 4);
/// batch.end_row(&Row { reward: 0.5, group_id: 3, trajectory_id: 6, prompt_id: 9, finish_reason: 0 });
/// assert_eq!(batch.cu_seqlens(), [0, 5]);
/// assert_eq!(batch.position_ids(), [0, 1, 2, 3, 4]);
/// assert_eq!(batch.versions(), [0, 0, 4, 4, 4]);
/// ```
#[derive(Debug, Default)]
pub struct Packed {
    rows: usize,
    tokens: usize,
    max_seqlen: usize,
    row_start: usize,
    room: usize,
    input_ids: Vec<i32>,
    position_ids: Vec<i32>,
    loss_mask: Vec<u8>,
    rollout_log_probs: Vec<f32>,
    versions: Vec<u32>,
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
    pub fn begin(&mut self, rows: usize, tokens: usize) {
        grow(&mut self.input_ids, tokens);
        grow(&mut self.position_ids, tokens);
        grow(&mut self.loss_mask, tokens);
        grow(&mut self.rollout_log_probs, tokens);
        grow(&mut self.versions, tokens);
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
    }

    /// Add an array of one entry a token, 0 where no row sets it. Called between `begin` and the
    /// first row.
    pub fn add_column(&mut self, name: &str, dtype: Dtype) {
        let kept = self.kept.iter().position(|values| values.dtype() == dtype);
        let mut values =
            kept.map_or_else(|| Values::zeros(dtype, 0), |place| self.kept.swap_remove(place));
        values.resize(self.room);
        values.bytes_mut().fill(0);
        self.columns.push((name.to_owned(), values));
    }

    /// Set entries of a column for tokens of the row's response from `offset` on: little-endian
    /// values of the column's type.
    pub fn set_column(&mut self, column: usize, offset: usize, bytes: &[u8]) {
        let prompt = self.prompt_lengths.last().map_or(0, |n| usize::try_from(*n).unwrap_or(0));
        let values = &mut self.columns[column].1;
        let from = (self.row_start + prompt + offset) * values.dtype().width();
        values.bytes_mut()[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// The columns that were added, each with one entry a token (T).
    pub fn columns_mut(&mut self) -> &mut [(String, Values)] {
        for (_, values) in &mut self.columns {
            values.resize(self.tokens);
        }
        &mut self.columns
    }

    /// Begin a row with its prompt.
    pub fn begin_row(&mut self, prompt: &[i32]) {
        let (from, to) = (self.tokens, self.tokens + prompt.len());
        self.input_ids[from..to].copy_from_slice(prompt);
        self.loss_mask[from..to].fill(0);
        self.rollout_log_probs[from..to].fill(0.0);
        self.versions[from..to].fill(0);
        self.row_start = from;
        self.tokens = to;
        self.prompt_lengths.push(int32(prompt.len()));
    }

    /// Add response tokens of one policy version to the row.
    pub fn extend_row(&mut self, tokens: &[i32], log_probs: &[f32], mask: &[u8], version: u32) {
        let (from, to) = (self.tokens, self.tokens + tokens.len());
        self.input_ids[from..to].copy_from_slice(tokens);
        self.rollout_log_probs[from..to].copy_from_slice(log_probs);
        self.loss_mask[from..to].copy_from_slice(mask);
        self.versions[from..to].fill(version);
        self.tokens = to;
    }

    /// End the row.
    pub fn end_row(&mut self, row: &Row) {
        for (position, place) in (0..).zip(&mut self.position_ids[self.row_start..self.tokens]) {
            *place = position;
        }
        self.max_seqlen = self.max_seqlen.max(self.tokens - self.row_start);
        self.rows += 1;
        self.cu_seqlens.push(int32(self.tokens));
        self.rewards.push(row.reward);
        self.group_ids.push(row.group_id);
        self.trajectory_ids.push(row.trajectory_id);
        self.prompt_ids.push(row.prompt_id);
        self.finish_reasons.push(row.finish_reason);
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

fn grow<T: Clone + Default>(array: &mut Vec<T>, length: usize) {
    if array.len() < length {
        array.resize(length, T::default());
    }
}

fn int32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
