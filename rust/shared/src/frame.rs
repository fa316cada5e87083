//! What crosses the socket: frames of one size, which say where in shared memory the rest lies.

use crate::error::{Error, Result};

/// The version of the protocol. Another one is told so and refused.
pub const VERSION: u32 = 5;
/// Bytes of a frame.
pub const SIZE: usize = 64;
/// Blocks of shared memory that a connection may have at a time.
pub const SLOTS: usize = 4;
/// The most words of one request or answer, 4 GiB.
pub const MOST_WORDS: u64 = 1 << 29;

const MAGIC: &[u8] = b"k15s";

/// One message. A request names a call and the block that has its arguments; the answer, with the
/// same number, comes in the same block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// What is asked ([`Op`]) or how it went ([`Status`]).
    pub code: u32,
    /// The number of the call.
    pub call: u64,
    /// Which block.
    pub slot: u64,
    /// Words of the block that belong to the message.
    pub words: u64,
    /// Of the first two frames: the session, and what the server is like.
    pub extra: [u64; 2],
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// The first frame of a connection: `extra[0]` is the session to join, 0 for a new one.
    Hello = 1,
    /// The answer that did not fit, into a larger block.
    Fetch = 2,
    Flush,
    AddGroup,
    Lease,
    Release,
    Append,
    Finish,
    SetReward,
    Sample,
    Mark,
    Rewind,
    DropGroups,
    Unfinished,
    PendingGroups,
    GroupsOfVersion,
    CompleteGroups,
    Group,
    Trajectory,
    Stats,
    RecoveryReport,
    Columns,
    DtypeOf,
    SetColumn,
    Leases,
    Marks,
}

impl Op {
    const ALL: [Self; 26] = [
        Self::Hello,
        Self::Fetch,
        Self::Flush,
        Self::AddGroup,
        Self::Lease,
        Self::Release,
        Self::Append,
        Self::Finish,
        Self::SetReward,
        Self::Sample,
        Self::Mark,
        Self::Rewind,
        Self::DropGroups,
        Self::Unfinished,
        Self::PendingGroups,
        Self::GroupsOfVersion,
        Self::CompleteGroups,
        Self::Group,
        Self::Trajectory,
        Self::Stats,
        Self::RecoveryReport,
        Self::Columns,
        Self::DtypeOf,
        Self::SetColumn,
        Self::Leases,
        Self::Marks,
    ];

    /// The operation of a code.
    pub fn from_code(code: u32) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|op| *op as u32 == code);
        found.ok_or(Error::Malformed("an operation that this version does not know"))
    }
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The answer is there. Of the first frame: `extra` is the session, and whether calls that find
    /// the store full wait.
    Done = 0,
    /// The store refused: kind, errno and text are there.
    Failed = 1,
    /// The answer takes `words`, more than the block has: give a larger one and fetch it.
    TooSmall = 2,
    /// The server speaks another version of the protocol, that of the frame.
    OtherVersion = 3,
    /// The server is another user's, `extra[0]`.
    OtherUser = 4,
    /// The request is not of this protocol; the server closes the connection.
    Malformed = 5,
}

impl Status {
    /// The status of a code.
    pub fn from_code(code: u32) -> Result<Self> {
        use Status::{Done, Failed, Malformed, OtherUser, OtherVersion, TooSmall};
        let all = [Done, Failed, TooSmall, OtherVersion, OtherUser, Malformed];
        let found = all.into_iter().find(|status| *status as u32 == code);
        found.ok_or(Error::Malformed("a status that this version does not know"))
    }
}

/// What is wrong with a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is of another version.
    Version(u32),
    /// It is no frame.
    Malformed(&'static str),
}

impl Frame {
    /// The frame as it is sent.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        let words = [self.call, self.slot, self.words, self.extra[0], self.extra[1]];
        for (place, word) in bytes[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A frame from what was received. The first 8 bytes are the same in every version.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, Fault> {
        let four = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        let version = match (bytes.get(..4), four(4)) {
            (Some(MAGIC), Some(version)) => u32::from_le_bytes(version),
            _ => return Err(Fault::Malformed("not a frame of a k15core store")),
        };
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let (Ok(bytes), Some(code)) = (<&[u8; SIZE]>::try_from(bytes), four(8)) else {
            return Err(Fault::Malformed("a frame of another size"));
        };
        let word = |index: usize| {
            let at = 16 + 8 * index;
            let eight = bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok());
            eight.map_or(0, u64::from_le_bytes)
        };
        if bytes[12..16] != [0; 4] || word(5) != 0 {
            return Err(Fault::Malformed("a frame whose reserved bytes are not 0"));
        }
        let frame = Self {
            code: u32::from_le_bytes(code),
            call: word(0),
            slot: word(1),
            words: word(2),
            extra: [word(3), word(4)],
        };
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let frame = Frame { code: 9, call: 1 << 40, slot: 3, words: 77, extra: [5, u64::MAX] };
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        for op in Op::ALL {
            assert_eq!(Op::from_code(op as u32).unwrap(), op);
        }
        assert!(Op::from_code(0).is_err());
    }

    #[test]
    fn other_versions_are_told_from_nonsense() {
        let mut bytes = Frame::default().encode();
        bytes[4] = 9;
        assert_eq!(Frame::decode(&bytes), Err(Fault::Version(9)));
        assert_eq!(Frame::decode(&bytes[..20]), Err(Fault::Version(9)));
        bytes[0] = 0;
        assert!(matches!(Frame::decode(&bytes), Err(Fault::Malformed(_))));
        assert!(matches!(Frame::decode(&[]), Err(Fault::Malformed(_))));
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_are_refused_or_read(bytes in proptest::collection::vec(0u8.., 0..100)) {
            let mut framed = Frame::default().encode().to_vec();
            let n = bytes.len().min(SIZE - 8);
            framed[8..8 + n].copy_from_slice(&bytes[..n]);
            if let Ok(frame) = Frame::decode(&framed) {
                assert_eq!(frame.encode().as_slice(), framed);
            }
            Frame::decode(&bytes).ok();
        }
    }
}
