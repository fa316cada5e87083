//! What became of a run, as the processes below the spawner tell it.

use std::time::Duration;

use crate::protocol::Stage;
use crate::sys::Errno;
use crate::wire::Reader;

/// How far a run came and what it used.
#[derive(Clone, Copy)]
pub(super) struct Ran {
    pub(super) stage: Stage,
    /// The wait status, or the error of the stage.
    pub(super) status: i32,
    /// Processor time of those of its processes that were waited for.
    pub(super) used: Duration,
    /// Processor time of what was started for it beside the program.
    pub(super) overhead: Duration,
}

impl Ran {
    /// A run that came to `stage` and no further.
    pub(super) fn failed(stage: Stage, errno: Errno) -> Self {
        Self { stage, status: errno.0, used: Duration::ZERO, overhead: Duration::ZERO }
    }

    /// Reads what a zygote has written.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            stage: Stage::from_byte(reader.byte()?)?,
            status: reader.word()?.cast_signed(),
            used: Duration::from_nanos(reader.long()?),
            overhead: Duration::from_nanos(reader.long()?),
        })
    }
}

/// A time as messages hold it.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
