//! One record of the log: a header of 32 bytes, a payload, zeros up to a multiple of 8.
//!
//! # Design
//!
//! The header has a checksum of its own, so that its length can be trusted before the payload is
//! read, and a damaged payload can still be named. The record number grows by one from record to
//! record over the whole log: what an older use of a recycled file left behind is never mistaken
//! for a record. Little-endian throughout; `docs/store-format.md` has the tables.

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("the log is little-endian and is read in place: big-endian machines are not served");

/// Bytes of a record's header.
pub(super) const HEADER: usize = 32;

/// What a record says. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Counters and marks: the first record of each file and of each opening.
    Base = 1,
    /// A prompt and its k open trajectories.
    Group = 2,
    /// Tokens of one trajectory.
    Append = 3,
    /// Lease epochs up to here have been given out.
    Claim = 4,
    /// A trajectory has ended.
    Finish = 5,
    /// A trajectory's tokens are discarded: it starts again.
    Abort = 6,
    /// A trajectory's score.
    Reward = 7,
    /// Groups went into a training batch.
    Use = 8,
    /// Groups were removed to make room.
    Evict = 9,
    /// Groups were removed by the caller.
    Drop = 10,
    /// A point that a checkpoint names.
    Mark = 11,
    /// Return to a mark.
    Rewind = 12,
    /// A group is written again, so that older files can be freed: its prompt and state.
    MovedGroup = 13,
    /// Tokens of a group that is written again.
    MovedAppend = 14,
    /// The group that is written again is complete.
    MovedEnd = 15,
    /// The tokens so far of a trajectory that is written again were discarded by an abort.
    MovedAbort = 16,
    /// Values of a column that a user declared, for tokens of one trajectory.
    Column = 17,
    /// The same of a group that is written again.
    MovedColumn = 18,
}

impl Kind {
    /// In the order of the format.
    pub(super) const ALL: [Self; 18] = [
        Self::Base,
        Self::Group,
        Self::Append,
        Self::Claim,
        Self::Finish,
        Self::Abort,
        Self::Reward,
        Self::Use,
        Self::Evict,
        Self::Drop,
        Self::Mark,
        Self::Rewind,
        Self::MovedGroup,
        Self::MovedAppend,
        Self::MovedEnd,
        Self::MovedAbort,
        Self::Column,
        Self::MovedColumn,
    ];

    /// The name of the kind.
    pub(super) fn name(self) -> String {
        format!("{self:?}")
    }

    /// What the record's subject is called in an error.
    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Group | Self::MovedGroup | Self::MovedEnd => "group",
            Self::Append
            | Self::Finish
            | Self::Abort
            | Self::Reward
            | Self::MovedAppend
            | Self::MovedAbort
            | Self::Column
            | Self::MovedColumn => "trajectory",
            Self::Mark | Self::Rewind => "mark",
            Self::Base | Self::Claim | Self::Use | Self::Evict | Self::Drop => "record",
        }
    }
}

/// The fields of a record's header. `subject` is the group, trajectory or mark that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) payload: usize,
    pub(super) number: u64,
    pub(super) subject: u64,
}

/// Bytes that a record with a payload of `payload` bytes takes in the log.
pub(super) fn size(payload: usize) -> usize {
    HEADER + payload.next_multiple_of(8)
}

impl Header {
    /// The header's bytes. The payload's checksum is written when the payload is there.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let length = u32::try_from(self.payload).unwrap_or(u32::MAX);
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12] = self.kind as u8;
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.subject.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[0..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if it is one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        if crc32c::crc32c(&bytes[8..]) != u32_at(bytes, 0)? {
            return None;
        }
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u8 == bytes[12])?;
        let (number, subject) = (u64_at(bytes, 16)?, u64_at(bytes, 24)?);
        let payload = u32_at(bytes, 8)? as usize;
        (number < COUNTS && subject < COUNTS).then_some(Self { kind, payload, number, subject })
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Ids, marks and epochs stay below this however long a store lives. A larger one in a record whose
/// checksum is right was written by something else, and what is added to it could overflow.
pub(super) const COUNTS: u64 = 1 << 62;

/// Reads the fields of a payload one after another.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        u32_at(self.bytes(4)?, 0).ok_or_else(short)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        u64_at(self.bytes(8)?, 0).ok_or_else(short)
    }

    /// A number that counts up, or the id that one gave: there is always a next one.
    pub(super) fn count(&mut self) -> Result<u64> {
        self.u64().and_then(|count| if count < COUNTS { Ok(count) } else { Err(short()) })
    }

    pub(super) fn f32(&mut self) -> Result<f32> {
        self.u32().map(f32::from_bits)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str> {
        let n = self.u32()? as usize;
        std::str::from_utf8(self.bytes(n)?).map_err(|_| short())
    }

    pub(super) fn i32s(&mut self, n: usize) -> Result<&'a [i32]> {
        bytemuck::try_cast_slice(self.bytes(n * 4)?).map_err(|_| short())
    }

    pub(super) fn f32s(&mut self, n: usize) -> Result<&'a [f32]> {
        bytemuck::try_cast_slice(self.bytes(n * 4)?).map_err(|_| short())
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.is_at_end() { Ok(()) } else { Err(short()) }
    }
}

pub(super) fn short() -> Error {
    Error::Corruption("its payload does not have the fields of its kind".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_every_flipped_bit_of_it_is_seen() {
        let header = Header { kind: Kind::Append, payload: 1234, number: 77, subject: COUNTS - 1 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for bit in (0..32).chain(64..256) {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn sizes_are_multiples_of_eight() {
        assert_eq!(size(0), 32);
        assert_eq!(size(1), 40);
        assert_eq!(size(8), 40);
    }

    #[test]
    fn a_payload_with_missing_or_extra_bytes_is_refused() {
        let mut reader = Reader::new(&[1, 0, 0, 0, 9]);
        assert_eq!(reader.u32().unwrap(), 1);
        assert!(reader.end().is_err());
        assert!(reader.u64().is_err());
        assert_eq!(reader.u8().unwrap(), 9);
        reader.end().unwrap();
    }
}
