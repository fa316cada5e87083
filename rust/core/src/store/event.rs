//! What the records say: from bytes to fields and back.

use super::record::{Kind, Reader};
use crate::error::Result;

/// Why a trajectory ended, by the codes of the format and of `PackedBatch.finish_reasons`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FinishReason {
    /// The policy ended its response.
    Stop = 0,
    /// The response is as long as a response may be.
    Length = 1,
    /// The response had begun to loop.
    Repetition = 2,
    /// The response was given up: its tokens are discarded and the trajectory starts again.
    Abort = 3,
}

impl FinishReason {
    /// The reason of a code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Stop, Self::Length, Self::Repetition, Self::Abort].get(usize::from(code)).copied()
    }

    /// The reason's name.
    pub fn name(self) -> &'static str {
        ["stop", "length", "repetition", "abort"][self as usize]
    }

    /// The reason of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        (0..4).filter_map(Self::from_code).find(|reason| reason.name() == name)
    }
}

/// A point that a checkpoint names. Counters say which ids came next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) id: u64,
    pub(super) version: u32,
    pub(super) next_group: u64,
    pub(super) next_trajectory: u64,
}

/// What must be known before the first record of a file can be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// The running system that wrote what follows: memory survives a killed process, not a reboot.
    pub(super) boot: [u8; 16],
    pub(super) next_group: u64,
    pub(super) next_trajectory: u64,
    pub(super) next_epoch: u64,
    pub(super) next_mark: u64,
    pub(super) version: u32,
    pub(super) marks: Vec<Mark>,
}

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

/// One record's content. Token data stay where they are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event<'a> {
    Base(Base),
    Group(GroupEvent<'a>),
    Append { trajectory_id: u64, offset: u32, n: u32, version: u32 },
    Claim { next_epoch: u64 },
    Finish { trajectory_id: u64, reason: FinishReason },
    Abort { trajectory_id: u64 },
    Reward { trajectory_id: u64, reward: f32 },
    Use(Vec<u64>),
    Gone(Vec<u64>),
    Mark { id: u64, version: u32 },
    Rewind { mark: u64 },
    MovedGroup(GroupEvent<'a>),
    MovedAppend { trajectory_id: u64, offset: u32, n: u32, version: u32 },
    MovedEnd { group_id: u64 },
    MovedAbort { trajectory_id: u64, under: u32 },
}

/// Bytes in front of the tokens in the payload of an append.
pub(super) const APPEND_FIELDS: usize = 16;

/// Bytes of the payload of an append of `n` tokens: int32 tokens, float32 log-probs, uint8 mask.
pub(super) fn append_payload(n: usize) -> usize {
    APPEND_FIELDS + 9 * n
}

pub(super) fn append_fields(offset: u32, n: u32, version: u32) -> [u8; APPEND_FIELDS] {
    let mut out = [0; APPEND_FIELDS];
    out[0..4].copy_from_slice(&offset.to_le_bytes());
    out[4..8].copy_from_slice(&n.to_le_bytes());
    out[8..12].copy_from_slice(&version.to_le_bytes());
    out
}

pub(super) fn ids_payload(ids: &[u64]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

impl Base {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.boot.to_vec();
        for word in [self.next_group, self.next_trajectory, self.next_epoch, self.next_mark] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.version.to_le_bytes());
        out.extend(length(self.marks.len()));
        for mark in &self.marks {
            out.extend(mark.id.to_le_bytes());
            out.extend(mark.next_group.to_le_bytes());
            out.extend(mark.next_trajectory.to_le_bytes());
            out.extend(mark.version.to_le_bytes());
        }
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut base =
            Self { boot: reader.bytes(16)?.try_into().unwrap_or_default(), ..Self::default() };
        base.next_group = reader.u64()?;
        base.next_trajectory = reader.u64()?;
        base.next_epoch = reader.u64()?;
        base.next_mark = reader.u64()?;
        base.version = reader.u32()?;
        for _ in 0..reader.u32()? {
            let (id, next_group, next_trajectory) = (reader.u64()?, reader.u64()?, reader.u64()?);
            base.marks.push(Mark { id, version: reader.u32()?, next_group, next_trajectory });
        }
        Ok(base)
    }
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

    fn decode(group_id: u64, moved: bool, reader: &mut Reader<'a>) -> Result<Self> {
        let first_trajectory = reader.u64()?;
        let prompt_id = reader.u64()?.cast_signed();
        let (k, version) = (reader.u32()?, reader.u32()?);
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
                uses.push(reader.u64()?);
            }
            let is_gone = reader.u8()? != 0;
            let under = reader.u64()?;
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

impl<'a> Event<'a> {
    /// The content of a record whose checksum was right.
    pub(super) fn decode(kind: Kind, subject: u64, payload: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let event = match kind {
            Kind::Base => Self::Base(Base::decode(&mut reader)?),
            Kind::Group => Self::Group(GroupEvent::decode(subject, false, &mut reader)?),
            Kind::MovedGroup => Self::MovedGroup(GroupEvent::decode(subject, true, &mut reader)?),
            Kind::Append | Kind::MovedAppend => {
                let (offset, n, version) = (reader.u32()?, reader.u32()?, reader.u32()?);
                reader.u32()?;
                reader.bytes(9 * n as usize)?;
                let trajectory_id = subject;
                if kind == Kind::Append {
                    Self::Append { trajectory_id, offset, n, version }
                } else {
                    Self::MovedAppend { trajectory_id, offset, n, version }
                }
            }
            Kind::Claim => Self::Claim { next_epoch: reader.u64()? },
            Kind::Finish => {
                let code = reader.u64()?;
                let reason = u8::try_from(code).ok().and_then(FinishReason::from_code);
                Self::Finish {
                    trajectory_id: subject,
                    reason: reason.ok_or_else(|| {
                        crate::Error::Corruption(format!("its finish reason is {code}"))
                    })?,
                }
            }
            Kind::Abort => Self::Abort { trajectory_id: subject },
            Kind::Reward => Self::Reward { trajectory_id: subject, reward: reader.f32()? },
            Kind::Use => Self::Use(ids(&mut reader, payload.len())?),
            Kind::Evict | Kind::Drop => Self::Gone(ids(&mut reader, payload.len())?),
            Kind::Mark => Self::Mark { id: subject, version: reader.u32()? },
            Kind::Rewind => Self::Rewind { mark: subject },
            Kind::MovedEnd => Self::MovedEnd { group_id: subject },
            Kind::MovedAbort => Self::MovedAbort { trajectory_id: subject, under: reader.u32()? },
        };
        reader.end()?;
        Ok(event)
    }
}

fn ids(reader: &mut Reader<'_>, bytes: usize) -> Result<Vec<u64>> {
    (0..bytes / 8).map(|_| reader.u64()).collect()
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_bases_survive() {
        let mark = Mark { id: 3, version: 9, next_group: 1, next_trajectory: 8 };
        let base = Base { boot: [7; 16], next_epoch: 5, marks: vec![mark], ..Base::default() };
        assert_eq!(Event::decode(Kind::Base, 0, &base.encode()).unwrap(), Event::Base(base));
        let prompt = PromptData {
            prompt_id: -4,
            tokens: &[1, 2, 3],
            answer: "π",
            tags: vec!["a", ""],
            difficulty: Some(0.5),
        };
        let member = MovedState { finish: Some((FinishReason::Length, 2)), reward: None };
        let group = GroupEvent {
            group_id: 11,
            first_trajectory: 44,
            k: 1,
            version: 2,
            prompt,
            uses: vec![1],
            gone: Some(6),
            members: vec![member],
        };
        let bytes = group.encode(true);
        let moved = Event::decode(Kind::MovedGroup, 11, &bytes).unwrap();
        assert_eq!(moved, Event::MovedGroup(group.clone()));
        let plain = GroupEvent { uses: vec![], gone: None, members: vec![], ..group };
        let bytes = plain.encode(false);
        assert_eq!(Event::decode(Kind::Group, 11, &bytes).unwrap(), Event::Group(plain));
        assert!(Event::decode(Kind::Group, 11, &bytes[..bytes.len() - 1]).is_err());
    }
}
