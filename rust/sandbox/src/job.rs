//! One run: what is started, and what became of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Cancel, Limits, Tree};

/// The directory in which a run starts and its files lie.
pub const WORK_DIRECTORY: &str = "/tmp";

/// A file that is there when the run starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputFile {
    /// Its bytes.
    pub content: Vec<u8>,
    /// Whether it can be executed.
    pub executable: bool,
}

/// A program to run. Nothing is searched and nothing is expanded: `program` is a path inside the
/// sandbox, absolute or relative to the work directory.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The program's path.
    pub program: String,
    /// Its arguments, the first being the name that it sees itself by.
    pub arguments: Vec<String>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<String>,
    /// What it can read from its standard input.
    pub stdin: Vec<u8>,
    /// Files in the work directory, by relative path.
    pub files: BTreeMap<String, InputFile>,
    /// What lies in the work directory besides, from an earlier run. `files` must not be in it.
    pub work: Option<Arc<Tree>>,
    /// Whether what lies in the work directory when it has ended is wanted as a whole.
    pub keeps_work: bool,
    /// Files of the work directory that are wanted when it has ended, by relative path.
    pub fetch: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// With this the caller can end it before its time.
    pub cancel: Option<Arc<Cancel>>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename_all = "snake_case"))]
pub enum Verdict {
    /// It exited with 0, within its limits.
    Ok,
    /// It exited with another code.
    NonzeroExit,
    /// A signal that was not ours ended it.
    Signalled,
    /// Its processor time was used up.
    CpuLimit,
    /// It took too long.
    WallLimit,
    /// It wanted more memory than it may have, and the kernel killed a process of it.
    MemoryLimit,
    /// It wrote more than is kept.
    OutputLimit,
    /// Its source does not compile.
    CompileError,
    /// The sandbox itself failed. This says nothing about the program.
    SandboxError,
}

impl Verdict {
    /// The name in every interface.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NonzeroExit => "nonzero_exit",
            Self::Signalled => "signalled",
            Self::CpuLimit => "cpu_limit",
            Self::WallLimit => "wall_limit",
            Self::MemoryLimit => "memory_limit",
            Self::OutputLimit => "output_limit",
            Self::CompileError => "compile_error",
            Self::SandboxError => "sandbox_error",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// The exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// What it wrote, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// Whether either is cut.
    pub truncated: bool,
    /// Processor time of all its processes. What setting it up cost (some 0.1 ms) may be in it.
    pub cpu_time: Duration,
    /// Time from start to end.
    pub wall_time: Duration,
    /// The most memory it had at once, in bytes; 0 if the host cannot tell.
    pub peak_memory: u64,
    /// The files that were wanted and are there.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The files that were wanted and are not handed out, with the reason.
    pub refused: BTreeMap<String, String>,
    /// What lay in the work directory at the end, if that was wanted and could be kept.
    pub work: Option<Tree>,
    /// What failed, for [`Verdict::SandboxError`], or why the work directory is not kept; else empty.
    pub message: String,
}

impl Outcome {
    /// An outcome of the sandbox's own failure.
    #[must_use]
    pub fn sandbox_error(message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::SandboxError,
            exit_code: None,
            signal: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
            cpu_time: Duration::ZERO,
            wall_time: Duration::ZERO,
            peak_memory: 0,
            files: BTreeMap::new(),
            refused: BTreeMap::new(),
            work: None,
            message: message.into(),
        }
    }
}
