//! What the records say: from bytes to fields and back.

use super::base::Base;
use super::column::{COLUMN_FIELDS, ColumnEvent};
use super::group_event::GroupEvent;
use super::record::{self, Kind, Reader};
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

/// One record's content. Token data stay where they are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event<'a> {
    Base(Base),
    Group(GroupEvent<'a>),
    Append {
        trajectory_id: u64,
        offset: u32,
        n: u32,
        version: u32,
    },
    Claim {
        next_epoch: u64,
    },
    Finish {
        trajectory_id: u64,
        reason: FinishReason,
    },
    Abort {
        trajectory_id: u64,
    },
    Reward {
        trajectory_id: u64,
        reward: f32,
    },
    Use(Vec<u64>),
    Gone(Vec<u64>),
    Mark {
        id: u64,
        version: u32,
    },
    /// The ids that come next after it; format 1 did not say them.
    Rewind {
        mark: u64,
        next: Option<(u64, u64)>,
    },
    MovedGroup(GroupEvent<'a>),
    MovedAppend {
        trajectory_id: u64,
        offset: u32,
        n: u32,
        version: u32,
    },
    MovedEnd {
        group_id: u64,
    },
    MovedAbort {
        trajectory_id: u64,
        under: u32,
    },
    Column(ColumnEvent),
    MovedColumn(ColumnEvent),
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

impl<'a> Event<'a> {
    /// Bytes that say what a record of this kind is about, if token data follow them.
    pub(super) fn fields(kind: Kind) -> Option<usize> {
        match kind {
            Kind::Append | Kind::MovedAppend => Some(APPEND_FIELDS),
            Kind::Column | Kind::MovedColumn => Some(COLUMN_FIELDS),
            _ => None,
        }
    }

    /// [`Event::decode`] for a kind with [`Event::fields`], from these alone. `payload` is the
    /// length of the whole.
    pub(super) fn decode_fields(
        kind: Kind,
        subject: u64,
        fields: &'a [u8],
        payload: usize,
    ) -> Result<Self> {
        let mut reader = Reader::new(fields);
        let (event, length) = match kind {
            Kind::Column | Kind::MovedColumn => {
                let event = ColumnEvent::decode_fields(subject, &mut reader)?;
                let length = COLUMN_FIELDS as u64 + event.bytes();
                let moved = kind == Kind::MovedColumn;
                (if moved { Self::MovedColumn(event) } else { Self::Column(event) }, length)
            }
            _ => {
                let (offset, n, version) = (reader.u32()?, reader.u32()?, reader.u32()?);
                let (trajectory_id, length) = (subject, append_payload(n as usize) as u64);
                let event = if kind == Kind::Append {
                    Self::Append { trajectory_id, offset, n, version }
                } else {
                    Self::MovedAppend { trajectory_id, offset, n, version }
                };
                (event, length)
            }
        };
        if length == payload as u64 { Ok(event) } else { Err(record::short()) }
    }

    /// The content of a record whose checksum was right.
    pub(super) fn decode(kind: Kind, subject: u64, payload: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let event = match kind {
            Kind::Base => Self::Base(Base::decode(&mut reader)?),
            Kind::Group => Self::Group(GroupEvent::decode(subject, false, &mut reader)?),
            Kind::MovedGroup => Self::MovedGroup(GroupEvent::decode(subject, true, &mut reader)?),
            Kind::Append | Kind::MovedAppend | Kind::Column | Kind::MovedColumn => {
                let fields = reader.bytes(Self::fields(kind).unwrap_or(0))?;
                return Self::decode_fields(kind, subject, fields, payload.len());
            }
            Kind::Claim => Self::Claim { next_epoch: reader.count()? },
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
            Kind::Rewind if payload.is_empty() => Self::Rewind { mark: subject, next: None },
            Kind::Rewind => {
                Self::Rewind { mark: subject, next: Some((reader.count()?, reader.count()?)) }
            }
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

pub(super) fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::base::Mark;
    use super::super::column::Column;
    use super::super::group_event::{MovedState, PromptData};
    use super::*;
    use crate::values::Dtype;

    #[test]
    fn groups_and_bases_survive() {
        let mark = Mark { id: 3, version: 9, next_group: 1, next_trajectory: 8 };
        let columns = vec![Column { name: "values".into(), dtype: Dtype::Float64 }];
        let marks = vec![mark];
        let base = Base { boot: [7; 16], next_epoch: 5, marks, columns, ..Base::default() };
        let bytes = base.encode();
        assert_eq!(Event::decode(Kind::Base, 0, &bytes).unwrap(), Event::Base(base.clone()));
        let format_1 = &bytes[..bytes.len() - 4 - 1 - 4 - 6];
        let without = Base { columns: vec![], ..base };
        assert_eq!(Event::decode(Kind::Base, 0, format_1).unwrap(), Event::Base(without));
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
