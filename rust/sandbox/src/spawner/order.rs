//! What a RUN message asks for.

use std::ffi::CStr;

use crate::sys::exec::Strings;
use crate::wire::Reader;

/// A file to stage: whether it is executable, its path, its content.
type Staged<'m> = (bool, &'m CStr, &'m [u8]);

/// A run, as it lies in the message.
pub(super) struct Order<'m> {
    pub(super) user: u32,
    /// Resource, soft limit, hard limit.
    pub(super) limits: Vec<(u32, u64, u64)>,
    pub(super) directory: &'m CStr,
    pub(super) program: &'m CStr,
    /// The arguments, and the same for exec.
    pub(super) words: Vec<&'m CStr>,
    pub(super) arguments: Strings<'m>,
    pub(super) environment: Strings<'m>,
    pub(super) files: Vec<Staged<'m>>,
    /// Paths of files that are wanted afterwards, and how many bytes they may have together.
    pub(super) wanted: Vec<&'m CStr>,
    pub(super) most_bytes: u64,
    /// Whether all that is in the work directory is wanted too.
    pub(super) keeps_work: bool,
}

impl<'m> Order<'m> {
    /// Reads it; `None` if the message is cut.
    pub(super) fn read(reader: &mut Reader<'m>) -> Option<Self> {
        let user = reader.word()?;
        let count = reader.count()?;
        let limits = (0..count)
            .map(|_| Some((reader.word()?, reader.long()?, reader.long()?)))
            .collect::<Option<_>>()?;
        let (directory, program) = (reader.string()?, reader.string()?);
        let words = reader.strings()?;
        let arguments = Strings::new(&words);
        let environment = Strings::new(&reader.strings()?);
        let count = reader.count()?;
        let files = (0..count)
            .map(|_| Some((reader.byte()? != 0, reader.string()?, reader.bytes()?)))
            .collect::<Option<_>>()?;
        let most_bytes = reader.long()?;
        let wanted = reader.strings()?;
        let keeps_work = reader.byte()? != 0;
        Some(Self {
            user,
            limits,
            directory,
            program,
            words,
            arguments,
            environment,
            files,
            wanted,
            most_bytes,
            keeps_work,
        })
    }
}
