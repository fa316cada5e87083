//! What a slot and its spawner say to each other, over a pair of sockets that keep messages apart.
//!
//! | to the spawner | carries | answered by |
//! |---|---|---|
//! | [`CONFIGURE`] | the plan of the root, how it is placed | [`READY`] or [`FAILED`] |
//! | [`CONFIGURE_CONTAINER`] | the same with what a container runtime needs | [`READY`] or [`FAILED`] |
//! | [`STAGE`] | a piece of an input file, for the run that comes next | nothing |
//! | [`WORK`] | an entry of the work directory of the run that comes next | nothing |
//! | [`WORK_MORE`] | more of the content of the file that came last | nothing |
//! | [`RUN`] | the program, small files, limits; stdin, stdout, stderr as descriptors | [`PIECE`]s, [`ENTRY`]s with [`MORE`], [`DONE`] |
//! | [`WARM`] | what zygotes are made of, the first time: start one that serves later | nothing |
//! | [`SWITCH`] | nothing: let it serve from here on | [`READY`] with its processes, or [`FAILED`] |
//! | [`CHECK`] | nothing: are you well? | [`READY`] |
//!
//! One message each way is all that a usual run takes. The spawner is suspended while a run lives and
//! reads no message then; who wants the run to end kills its init, the spawner's only child, or the
//! spawner itself.

use std::ffi::CStr;

use crate::tree::Time;
use crate::wire::{Reader, Writer};

/// The longest message. It fits the default buffer of a socket.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// The most of a file's bytes that one message carries.
pub(crate) const MAX_PIECE: usize = 48 << 10;

pub(crate) const CONFIGURE: u8 = 1;
pub(crate) const STAGE: u8 = 2;
pub(crate) const RUN: u8 = 3;
pub(crate) const CHECK: u8 = 4;
pub(crate) const CONFIGURE_CONTAINER: u8 = 5;
pub(crate) const WARM: u8 = 6;
pub(crate) const SWITCH: u8 = 7;
pub(crate) const WORK: u8 = 8;
pub(crate) const WORK_MORE: u8 = 9;

pub(crate) const READY: u8 = 1;
pub(crate) const FAILED: u8 = 2;
pub(crate) const PIECE: u8 = 3;
pub(crate) const DONE: u8 = 4;
pub(crate) const ENTRY: u8 = 5;
pub(crate) const MORE: u8 = 6;

/// The size of a run's file system: with its user at the head of [`STAGE`] and [`RUN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl Disk {
    pub(crate) fn write(self, writer: &mut Writer) {
        writer.long(self.bytes);
        writer.long(self.files);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self { bytes: reader.long()?, files: reader.long()? })
    }
}

/// Where a run that did not get to its end was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It ran: the status is the program's.
    Ended = 0,
    /// Its init was killed while the program ran.
    Killed = 1,
    /// The program could not be started: the status is exec's error.
    Exec = 2,
    /// Making its file system or staging its files.
    Files = 3,
    /// Starting init.
    Clone = 4,
    /// Init: staying with its parent.
    Guard = 5,
    /// Init: mounts.
    Mount = 6,
    /// Starting the program's process.
    Fork = 7,
    /// The program's process: limits.
    Limits = 8,
    /// The program's process: descriptors.
    Descriptors = 9,
    /// The program's process: its user.
    User = 10,
    /// The program's process: its directory.
    Directory = 11,
    /// The container runtime, before its container's init: the status is the runtime's.
    Runtime = 12,
    /// A container's init: what holds it and the program is not as it should be.
    Confinement = 13,
}

impl Stage {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Stage; 14] = [
            Stage::Ended,
            Stage::Killed,
            Stage::Exec,
            Stage::Files,
            Stage::Clone,
            Stage::Guard,
            Stage::Mount,
            Stage::Fork,
            Stage::Limits,
            Stage::Descriptors,
            Stage::User,
            Stage::Directory,
            Stage::Runtime,
            Stage::Confinement,
        ];
        ALL.get(byte as usize).copied()
    }

    /// What was being done, for a message.
    pub(crate) const fn doing(self) -> &'static str {
        match self {
            Self::Ended | Self::Killed => "running",
            Self::Exec => "starting the program",
            Self::Files => "writing the run's files",
            Self::Clone => "making the run's namespaces",
            Self::Guard => "guarding the run's init",
            Self::Mount => "mounting the run's /tmp and /proc",
            Self::Fork => "making the program's process",
            Self::Limits => "setting the run's limits",
            Self::Descriptors => "setting up stdin, stdout and stderr",
            Self::User => "changing to the run's user",
            Self::Directory => "entering the work directory",
            Self::Runtime => "starting the container",
            Self::Confinement => "checking the container's walls",
        }
    }
}

/// What the spawner tells of a run that is over, at the head of [`DONE`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) stage: Stage,
    /// The wait status, or the error of the stage.
    pub(crate) status: i32,
    /// Nanoseconds from start to end.
    pub(crate) wall: u64,
    /// Nanoseconds of processor time of those of its processes that were waited for.
    pub(crate) used: u64,
    /// Nanoseconds of processor time that the spawner itself used for it.
    pub(crate) overhead: u64,
}

impl Done {
    pub(crate) fn write(self, writer: &mut Writer) {
        writer.byte(self.stage as u8);
        writer.word(self.status.cast_unsigned());
        writer.long(self.wall);
        writer.long(self.used);
        writer.long(self.overhead);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            stage: Stage::from_byte(reader.byte()?)?,
            status: reader.word()?.cast_signed(),
            wall: reader.long()?,
            used: reader.long()?,
            overhead: reader.long()?,
        })
    }
}

/// What became of a wanted file: after it in [`DONE`], in the order in which they were named.
pub(crate) const FETCHED: u8 = 0;
pub(crate) const ABSENT: u8 = 1;
pub(crate) const NOT_A_FILE: u8 = 2;
pub(crate) const TOO_LONG: u8 = 3;

/// What became of the work directory, if the run was asked for it: at the end of [`DONE`].
pub(crate) const KEPT: u8 = 0;
pub(crate) const TOO_LARGE: u8 = 1;
pub(crate) const TOO_DEEP: u8 = 2;
pub(crate) const UNREADABLE: u8 = 3;

/// What an entry of a work directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    Directory = 0,
    File = 1,
    Link = 2,
}

/// An entry of a work directory, in [`WORK`] and [`ENTRY`].
pub(crate) struct Entry<'m> {
    pub(crate) kind: EntryKind,
    /// Its permissions.
    pub(crate) mode: u32,
    pub(crate) modified: Time,
    /// Relative to the work directory.
    pub(crate) path: &'m CStr,
    /// What a link says, or the first bytes of a file.
    pub(crate) content: &'m [u8],
}

impl<'m> Entry<'m> {
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.byte(self.kind as u8);
        writer.word(self.mode);
        writer.long(self.modified.0.cast_unsigned());
        writer.word(self.modified.1);
        writer.bytes(self.path.to_bytes_with_nul());
        writer.bytes(self.content);
    }

    pub(crate) fn read(reader: &mut Reader<'m>) -> Option<Self> {
        let kind = match reader.byte()? {
            0 => EntryKind::Directory,
            1 => EntryKind::File,
            2 => EntryKind::Link,
            _ => return None,
        };
        let mode = reader.word()?;
        let modified = (reader.long()?.cast_signed(), reader.word()?);
        Some(Self { kind, mode, modified, path: reader.string()?, content: reader.bytes()? })
    }
}
