//! The records that describe a group: its prompt, and its state when it is written again.

use super::event::{FinishReason, length};
use super::record::Reader;
use super::write::MAX_MEMBERS;
use crate::error::{Error, Result};

/// The state of one member of a group that is written again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MovedState {
    pub(super) finish: Option<(FinishReason, u32)>,
    pub(super) reward: Option<(f32, u32)>,
}

/// A prompt and the ids of its responses.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GroupEvent<'a> {
    pub(super) group_id: u64,
    pub(super) first_trajectory: u64,
    pub(super) k: u32,
    pub(super) version: u32,
    pub(super) prompt: PromptData<'a>,
    /// Marks under which it was used.
    pub(super) uses: Vec<u64>,
    /// The mark under which it was dropped or evicted.
    pub(super) gone: Option<u64>,
    pub(super) members: Vec<MovedState>,
}

/// A prompt with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptData<'a> {
    /// The prompt's own id, which its prompt set gave it.
    pub prompt_id: i64,
    /// Its tokens.
    pub tokens: &'a [i32],
    /// The right answer.
    pub answer: &'a str,
    /// Labels.
    pub tags: Vec<&'a str>,
    /// Grows with hardness; none where nobody labelled.
    pub difficulty: Option<f64>,
}

impl<'a> GroupEvent<'a> {
    /// The payload of a group; of a moved group with its state behind.
    pub(super) fn encode(&self, moved: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 4 * self.prompt.tokens.len());
        out.extend(self.first_trajectory.to_le_bytes());
        out.extend(self.prompt.prompt_id.to_le_bytes());
        out.extend(self.k.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.extend(u64::from(self.prompt.difficulty.is_some()).to_le_bytes());
        out.extend(self.prompt.difficulty.unwrap_or(0.0).to_le_bytes());
        out.extend(length(self.prompt.tags.len()));
        out.extend(length(self.prompt.tokens.len()));
        out.extend_from_slice(bytemuck::cast_slice(self.prompt.tokens));
        for text in std::iter::once(&self.prompt.answer).chain(&self.prompt.tags) {
            out.extend(length(text.len()));
            out.extend(text.as_bytes());
        }
        if moved {
            out.extend(length(self.uses.len()));
            out.extend(self.uses.iter().flat_map(|mark| mark.to_le_bytes()));
            out.push(u8::from(self.gone.is_some()));
            out.extend(self.gone.unwrap_or(0).to_le_bytes());
            for member in &self.members {
                let (reason, under) = member.finish.map_or((255, 0), |(r, v)| (r as u8, v));
                out.push(reason);
                out.extend(under.to_le_bytes());
                out.push(u8::from(member.reward.is_some()));
                let (reward, under) = member.reward.unwrap_or((0.0, 0));
                out.extend(reward.to_le_bytes());
                out.extend(under.to_le_bytes());
            }
        }
        out
    }

    pub(super) fn decode(group_id: u64, moved: bool, reader: &mut Reader<'a>) -> Result<Self> {
        let first_trajectory = reader.count()?;
        let prompt_id = reader.u64()?.cast_signed();
        let (k, version) = (reader.u32()?, reader.u32()?);
        if !(1..=MAX_MEMBERS).contains(&k) {
            return Err(Error::Corruption(format!("its group has {k} responses")));
        }
        let labelled = reader.u64()? != 0;
        let difficulty = f64::from_bits(reader.u64()?);
        let tags = reader.u32()?;
        let tokens = reader.u32()? as usize;
        let tokens = reader.i32s(tokens)?;
        let answer = reader.text()?;
        let tags = (0..tags).map(|_| reader.text()).collect::<Result<_>>()?;
        let difficulty = labelled.then_some(difficulty);
        let prompt = PromptData { prompt_id, tokens, answer, tags, difficulty };
        let (mut uses, mut gone, mut members) = (Vec::new(), None, Vec::new());
        if moved {
            for _ in 0..reader.u32()? {
                uses.push(reader.count()?);
            }
            let is_gone = reader.u8()? != 0;
            let under = reader.count()?;
            gone = is_gone.then_some(under);
            for _ in 0..k {
                let (reason, under) = (reader.u8()?, reader.u32()?);
                let finish = FinishReason::from_code(reason).map(|reason| (reason, under));
                let (scored, reward, under) = (reader.u8()? != 0, reader.f32()?, reader.u32()?);
                members.push(MovedState { finish, reward: scored.then_some((reward, under)) });
            }
        }
        Ok(Self { group_id, first_trajectory, k, version, prompt, uses, gone, members })
    }
}
