//! From what is known of a run to its verdict.

use std::collections::BTreeMap;
use std::time::Duration;

use super::capture::Capture;
use crate::cgroup::Usage;
use crate::protocol::{ABSENT, Done, FETCHED, NOT_A_FILE, Stage, TOO_LONG};
use crate::sys::Errno;
use crate::sys::process::Ending;
use crate::wire::Reader;
use crate::{Job, Outcome, Tree, Verdict};

/// Why the slot ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Killed {
    WallTime,
    ProcessorTime,
    Output,
    Cancelled,
}

/// The spawner's answer, with the files and the output.
pub(super) struct Answer {
    done: Done,
    files: BTreeMap<String, Vec<u8>>,
    refused: BTreeMap<String, String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    work: Option<Result<Tree, &'static str>>,
}

impl Answer {
    /// Reads a DONE message; `pieces` are the contents that came ahead of it.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        wanted: &[String],
        pieces: Vec<Vec<u8>>,
    ) -> Option<Self> {
        let done = Done::read(reader)?;
        let (mut files, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for (name, content) in wanted.iter().zip(pieces) {
            // A run that never came to be has nothing to fetch.
            let reason = match reader.byte().unwrap_or(ABSENT) {
                FETCHED => {
                    files.insert(name.clone(), content);
                    continue;
                }
                ABSENT => "there is no such file",
                NOT_A_FILE => "it is no regular file, or a link is on the way to it",
                TOO_LONG => "the files are longer than disk_bytes together",
                _ => return None,
            };
            refused.insert(name.clone(), reason.to_owned());
        }
        let (stdout, stderr) = (Vec::new(), Vec::new());
        Some(Self { done, files, refused, stdout, stderr, truncated: false, work: None })
    }

    pub(super) fn work(&mut self, work: Result<Tree, &'static str>) {
        self.work = Some(work);
    }

    pub(super) fn output(&mut self, stdout: Capture, stderr: Capture) {
        self.truncated = stdout.is_over() || stderr.is_over();
        self.stdout = stdout.bytes;
        self.stderr = stderr.bytes;
    }
}

/// The outcome of a run.
pub(super) fn judge(job: &Job, answer: Answer, usage: Usage, killed: Option<Killed>) -> Outcome {
    let done = answer.done;
    let overhead = Duration::from_nanos(done.overhead);
    // On v1 the spawner is in the group, and what it used is not the program's.
    let cpu_time = usage
        .cpu_time
        .map_or(Duration::from_nanos(done.used), |time| time.saturating_sub(overhead));
    let ending = (done.stage == Stage::Ended).then(|| Ending::from_status(done.status));
    let (exit_code, signal) = match ending {
        Some(Ending::Exited(code)) => (Some(code), None),
        Some(Ending::Signalled(signal)) => (None, Some(signal)),
        None if killed.is_some() => (None, Some(libc::SIGKILL)),
        None => (None, None),
    };
    let mut message = String::new();
    let fell_to_a_signal = matches!(signal, Some(libc::SIGKILL | libc::SIGXCPU));
    // The program may fall before its init does, which then still tells of the kill that was ours.
    let ended_by_us =
        killed.filter(|_| matches!(ending, None | Some(Ending::Signalled(libc::SIGKILL))));
    let verdict = if usage.oom_kills > 0 {
        Verdict::MemoryLimit
    } else if let Some(reason) = ended_by_us {
        match reason {
            Killed::WallTime => Verdict::WallLimit,
            Killed::ProcessorTime => Verdict::CpuLimit,
            Killed::Output => Verdict::OutputLimit,
            Killed::Cancelled => {
                message = "its caller has ended it".to_owned();
                Verdict::SandboxError
            }
        }
    } else if let Some(ending) = ending {
        match ending {
            _ if answer.truncated => Verdict::OutputLimit,
            Ending::Signalled(_) if fell_to_a_signal && cpu_time >= job.limits.cpu_time => {
                Verdict::CpuLimit
            }
            Ending::Signalled(_) => Verdict::Signalled,
            Ending::Exited(0) => Verdict::Ok,
            Ending::Exited(_) => Verdict::NonzeroExit,
        }
    } else {
        message = if done.stage == Stage::Killed {
            "the run's init was killed from outside".to_owned()
        } else if done.stage == Stage::Runtime {
            // What the runtime has to say is where the program's words would be.
            let said = String::from_utf8_lossy(&answer.stderr);
            format!("{} failed: {}", done.stage.doing(), said.trim())
        } else {
            let what = if done.stage == Stage::Exec { job.program.as_str() } else { "the run" };
            format!("{} failed for {what}: {}", done.stage.doing(), Errno(done.status))
        };
        Verdict::SandboxError
    };
    let work = match answer.work.filter(|_| verdict != Verdict::SandboxError) {
        Some(Err(why)) => {
            message = format!("the work directory is as it was before: {why}");
            None
        }
        other => other.and_then(Result::ok),
    };
    Outcome {
        verdict,
        exit_code,
        signal,
        stdout: answer.stdout,
        stderr: answer.stderr,
        truncated: answer.truncated,
        cpu_time,
        wall_time: Duration::from_nanos(done.wall),
        peak_memory: usage.peak_memory.unwrap_or(0),
        files: answer.files,
        refused: answer.refused,
        work,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(stage: Stage, status: i32, usage: Usage, killed: Option<Killed>) -> Verdict {
        let done = Done { stage, status, wall: 1, used: 0, overhead: 0 };
        let answer = Answer {
            done,
            files: BTreeMap::new(),
            refused: BTreeMap::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
            work: None,
        };
        judge(&Job::default(), answer, usage, killed).verdict
    }

    #[test]
    fn each_ending_has_its_verdict() {
        let free = Usage::default();
        let long = Usage { cpu_time: Some(Duration::from_secs(10)), ..free };
        let oom = Usage { oom_kills: 1, ..free };
        let cases = [
            (Stage::Ended, 0, free, None, Verdict::Ok),
            (Stage::Ended, 3 << 8, free, None, Verdict::NonzeroExit),
            (Stage::Ended, libc::SIGABRT, free, None, Verdict::Signalled),
            (Stage::Ended, libc::SIGKILL, free, None, Verdict::Signalled),
            (Stage::Ended, libc::SIGKILL, long, None, Verdict::CpuLimit),
            (Stage::Ended, libc::SIGXCPU, long, None, Verdict::CpuLimit),
            (Stage::Ended, libc::SIGKILL, oom, None, Verdict::MemoryLimit),
            (Stage::Killed, 0, free, Some(Killed::WallTime), Verdict::WallLimit),
            (Stage::Killed, 0, free, Some(Killed::ProcessorTime), Verdict::CpuLimit),
            (Stage::Killed, 0, free, Some(Killed::Output), Verdict::OutputLimit),
            (Stage::Killed, 0, free, Some(Killed::Cancelled), Verdict::SandboxError),
            (Stage::Ended, 0, free, Some(Killed::WallTime), Verdict::Ok),
            (Stage::Ended, 0, free, Some(Killed::Cancelled), Verdict::Ok),
            (Stage::Killed, 0, free, None, Verdict::SandboxError),
            (Stage::Exec, libc::ENOENT, free, None, Verdict::SandboxError),
        ];
        for (stage, status, usage, killed, expected) in cases {
            assert_eq!(verdict(stage, status, usage, killed), expected, "{stage:?} {status}");
        }
    }
}
