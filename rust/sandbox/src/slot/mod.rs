//! A slot: one place in which one run at a time lives, seen from our side.
//!
//! # Design
//!
//! The slot starts the spawner and keeps what must not be in the run's reach: the read ends of its
//! output, the accounting files, the clock. A run costs one message each way. For its first moments
//! only the answer is waited for, so that a short run wakes this side once; afterwards output is read as
//! it comes, and time, output and processor use are held to their limits by killing the run's init.

mod capture;
mod request;
mod runtime;
mod verdict;
mod work;
mod zygote;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::{Group, Placement};
use crate::error::Step;
use crate::protocol::{
    CONFIGURE, CONFIGURE_CONTAINER, DONE, ENTRY, FAILED, MAX_MESSAGE, MORE, PIECE, READY,
};
use crate::rootfs::Plan;
use crate::sys::Errno;
use crate::sys::descriptor::{Poll, poll};
use crate::sys::{process, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Job, Limits, Outcome, Result};
use capture::{Capture, Feed};
pub(crate) use request::{Request, check_path};
pub(crate) use runtime::Runtime;
use verdict::Killed;
use work::Work;

/// How long only the answer is waited for. A run that fills a pipe sooner waits this long, once.
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// How long a killed run may take to be gone before the spawner is killed too.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a spawner may take to set itself up.
const SETUP_TIME: Duration = Duration::from_secs(30);

/// One slot. It is used by one thread at a time.
pub struct Slot {
    /// The spawner's guard, which is our child.
    guard: Child,
    /// Whose child a run's init is: the spawner, or the zygote.
    parent: u32,
    /// The spawner's.
    pidfd: OwnedFd,
    /// That of the zygote that serves, if one does.
    zygote: Option<OwnedFd>,
    socket: OwnedFd,
    group: Group,
    /// What starts its runs, if the spawner does not do so itself.
    runtime: Option<Runtime>,
    buffer: Vec<u8>,
    broken: bool,
}

impl Slot {
    /// Starts a spawner and waits until it is ready.
    ///
    /// The spawner is killed when the thread that called this ends.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it cannot be started, [`Error::SlotBroken`] with its own words if it cannot
    /// set itself up.
    pub(crate) fn open(
        spawner: &Path,
        plan: &Plan,
        group: Group,
        runtime: Option<Runtime>,
    ) -> Result<Self> {
        let mut slot = Self::start(spawner, group, runtime)?;
        slot.group.admit_spawner(slot.parent)?;
        slot.configure(plan, false)?;
        slot.group.begin()?;
        Ok(slot)
    }

    /// A slot whose spawner waits for its configuration, outside of the slot's group.
    fn start(spawner: &Path, group: Group, runtime: Option<Runtime>) -> Result<Self> {
        let (ours, theirs) = socket::pair().step(|| "make the slot's sockets".into())?;
        let guard = Command::new(spawner)
            .arg("serve")
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()
            .step(|| format!("start {}", spawner.display()))?;
        let pidfd = process::open_pidfd(guard.id().cast_signed())
            .step(|| "open the spawner's pidfd".into())?;
        let buffer = vec![0; MAX_MESSAGE];
        let mut slot = Self {
            guard,
            parent: 0,
            pidfd,
            zygote: None,
            socket: ours,
            group,
            runtime,
            buffer,
            broken: false,
        };
        [slot.parent, _] = slot.expect_ready(SETUP_TIME)?;
        slot.pidfd = process::open_pidfd(slot.parent.cast_signed())
            .step(|| "open the spawner's pidfd".into())?;
        socket::set_patience(slot.socket.as_fd(), FIRST_LOOK)
            .step(|| "set up the slot's socket".into())?;
        Ok(slot)
    }

    fn configure(&mut self, plan: &Plan, has_zygotes: bool) -> Result<()> {
        let kind = if self.runtime.is_some() { CONFIGURE_CONTAINER } else { CONFIGURE };
        let mut writer = Writer::new(kind);
        plan.write(&mut writer);
        match &self.runtime {
            Some(runtime) => runtime.write(&mut writer),
            None => writer.byte(u8::from(has_zygotes)),
        }
        let descriptors: Vec<BorrowedFd<'_>> = match self.group.placement() {
            Placement::Into(directory) => vec![directory],
            Placement::Resident | Placement::None => Vec::new(),
        };
        socket::send(self.socket.as_fd(), [writer.as_slice(), &[], &[]], &descriptors)
            .map_err(gone)?;
        self.expect_ready(SETUP_TIME).map(|_| ())
    }

    /// Waits for READY: the spawner's process number when it is its first word, a zygote's two when that
    /// was switched to.
    fn expect_ready(&mut self, patience: Duration) -> Result<[u32; 2]> {
        let mut wait = [Poll::readable(Some(self.socket.as_fd()))];
        if poll(&mut wait, Some(patience)).map_err(gone)? == 0 {
            return Err(Error::SlotBroken(format!("no answer from the spawner in {patience:?}")));
        }
        let (length, _) = socket::receive(self.socket.as_fd(), &mut self.buffer).map_err(gone)?;
        let mut reader = Reader::new(self.buffer.get(..length).unwrap_or_default());
        match reader.byte() {
            Some(READY) => Ok([reader.word().unwrap_or(0), reader.word().unwrap_or(0)]),
            Some(FAILED) => Err(failure(&mut reader)),
            None => Err(Error::SlotBroken("the spawner ended while it was set up".into())),
            Some(other) => Err(Error::SlotBroken(format!("unexpected answer {other}"))),
        }
    }

    /// Whether a run can be given to it. Cheap.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let zygote = self.zygote.as_ref().map(AsFd::as_fd);
        let mut wait = [Poll::readable(Some(self.pidfd.as_fd())), Poll::readable(zygote)];
        !self.broken && poll(&mut wait, Some(Duration::ZERO)) == Ok(0)
    }

    /// Runs `job` as `user`, which no other live run may be.
    ///
    /// # Errors
    ///
    /// [`Error::SlotBroken`] if the spawner failed: the run may not have taken place, and the slot must
    /// be replaced.
    pub(crate) fn run(&mut self, request: &Request<'_>, user: u32) -> Result<Outcome> {
        let result = self.try_run(request, user);
        if result.is_err() {
            self.broken = true;
        }
        result
    }

    fn try_run(&mut self, request: &Request<'_>, user: u32) -> Result<Outcome> {
        let job = request.job();
        self.limit(&job.limits)?;
        let (mut feed, stdin) = Feed::new(&job.stdin)?;
        let (mut stdout, out) = Capture::new(job.limits.output_bytes)?;
        let (mut stderr, err) = Capture::new(job.limits.output_bytes)?;
        let start = Instant::now();
        let mut standard = vec![out.as_fd(), err.as_fd()];
        standard.extend(stdin.as_ref().map(AsFd::as_fd));
        request.send(self.socket.as_fd(), user, &standard)?;
        drop((stdin, out, err));

        // The first message of a short run, or nothing yet.
        let first = if feed.is_waiting() { None } else { self.receive_soon()? };
        let killed = match first {
            Some(_) => None,
            None => self.watch(job, start, &mut feed, &mut stdout, &mut stderr)?,
        };
        let mut answer = self.receive_answer(job, first)?;
        // Every writer is gone: what is in the pipes is all there is.
        stdout.read_what_is_there(&mut self.buffer)?;
        stderr.read_what_is_there(&mut self.buffer)?;
        let usage = self.group.finish()?;
        answer.output(stdout, stderr);
        Ok(verdict::judge(job, answer, usage, killed))
    }

    fn limit(&mut self, limits: &Limits) -> Result<()> {
        match self.runtime {
            None => self.group.limit(limits),
            Some(_) => {
                let processes = limits.processes + Runtime::PROCESSES;
                self.group.limit(&Limits { processes, ..limits.clone() })
            }
        }
    }

    /// Waits for the answer, feeding and reading the run, and kills it when it is over a limit.
    fn watch(
        &mut self,
        job: &Job,
        start: Instant,
        feed: &mut Feed<'_>,
        stdout: &mut Capture,
        stderr: &mut Capture,
    ) -> Result<Option<Killed>> {
        let limits = &job.limits;
        let mut killed: Option<(Killed, Instant)> = None;
        let mut cpu_check = start;
        loop {
            let now = Instant::now();
            let mut until = start + limits.wall_time;
            if let Some((_, at)) = killed {
                if now > at + PATIENCE {
                    return Err(Error::SlotBroken("a killed run does not end".into()));
                }
                // The run may not have existed yet when it was first killed.
                self.kill_run();
                self.group.release()?;
                until = now + Duration::from_millis(10);
            } else if now >= until {
                killed = Some((Killed::WallTime, now));
                continue;
            } else {
                if now >= cpu_check
                    && let Some(used) = self.group.usage()?.cpu_time
                {
                    let Some(left) = limits.cpu_time.checked_sub(used) else {
                        killed = Some((Killed::ProcessorTime, now));
                        continue;
                    };
                    cpu_check = now + (left / processors()).max(Duration::from_millis(1));
                }
                until = until.min(cpu_check.max(now));
            }
            let mut entries = [
                Poll::readable(Some(self.socket.as_fd())),
                Poll::readable(stdout.waiting()),
                Poll::readable(stderr.waiting()),
                Poll::writable(feed.waiting()),
                Poll::readable(job.cancel.as_ref().map(|c| c.event()).filter(|_| killed.is_none())),
            ];
            poll(&mut entries, Some(until.saturating_duration_since(now))).map_err(gone)?;
            let [answered, out, err, input, cancelled] = entries;
            if answered.is_ready() {
                return Ok(killed.map(|(reason, _)| reason));
            }
            if cancelled.is_ready() {
                killed = Some((Killed::Cancelled, Instant::now()));
            }
            if input.is_ready() {
                feed.write_some();
            }
            for (ready, capture) in [(out, &mut *stdout), (err, &mut *stderr)] {
                if ready.is_ready() {
                    capture.read_what_is_there(&mut self.buffer)?;
                }
                if capture.is_over() && killed.is_none() {
                    killed = Some((Killed::Output, Instant::now()));
                }
            }
        }
    }

    /// Kills the init of the live run, if there is one; all its processes go with it.
    fn kill_run(&mut self) {
        // The spawner, or the zygote, has no child but init, or the runtime, whose only child is init. It cannot have it
        // reaped while it is suspended.
        let only_child = |parent: u32| {
            let listed = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            Ok::<Option<u32>, std::io::Error>(
                listed.split_whitespace().next().and_then(|pid| pid.parse().ok()),
            )
        };
        match only_child(self.parent) {
            Ok(Some(child)) => {
                let below = match self.runtime {
                    Some(_) => only_child(child).ok().flatten(),
                    None => None,
                };
                // A runtime without a child has not come to its init yet, and must not.
                let (parent, init) = below.map_or((self.parent, child), |init| (child, init));
                let still_ours = || only_child(parent).is_ok_and(|pid| pid == Some(init));
                let _ = process::kill_checked(init.cast_signed(), still_ours);
            }
            Ok(None) => {}
            // A kernel that does not list children: end the spawner, and the run with it.
            Err(_) => {
                let _ = process::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }

    /// Receives a message into the buffer if one comes within [`FIRST_LOOK`]: its length.
    fn receive_soon(&mut self) -> Result<Option<usize>> {
        match socket::receive(self.socket.as_fd(), &mut self.buffer) {
            Ok((length, _)) => Ok(Some(length)),
            Err(Errno(libc::EAGAIN)) => Ok(None),
            Err(errno) => Err(gone(errno)),
        }
    }

    /// Receives pieces of files and entries of the work directory until the answer itself. `first` is the length of a message that is in the
    /// buffer already.
    fn receive_answer(&mut self, job: &Job, first: Option<usize>) -> Result<verdict::Answer> {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); job.fetch.len()];
        let mut work = Work::default();
        let mut next = first;
        loop {
            let length = match next.take() {
                Some(length) => length,
                None => {
                    let mut wait = [Poll::readable(Some(self.socket.as_fd()))];
                    if poll(&mut wait, Some(PATIENCE)).map_err(gone)? == 0 {
                        let message = "the spawner stopped in the middle of an answer";
                        return Err(Error::SlotBroken(message.into()));
                    }
                    socket::receive(self.socket.as_fd(), &mut self.buffer).map_err(gone)?.0
                }
            };
            let message = self.buffer.get(..length).unwrap_or_default();
            let mut reader = Reader::new(message);
            let cut = || Error::SlotBroken("an answer of the spawner is cut".into());
            match reader.byte() {
                Some(PIECE) => {
                    let index = reader.count().ok_or_else(cut)?;
                    let piece = message.get(5..).ok_or_else(cut)?;
                    pieces.get_mut(index).ok_or_else(cut)?.extend_from_slice(piece);
                }
                Some(ENTRY) => work.add(&mut reader).ok_or_else(cut)?,
                Some(MORE) => work.add_more(reader.rest()).ok_or_else(cut)?,
                Some(DONE) => {
                    let mut answer =
                        verdict::Answer::read(&mut reader, &job.fetch, pieces).ok_or_else(cut)?;
                    if job.keeps_work {
                        answer.work(work.end(&mut reader));
                    }
                    return Ok(answer);
                }
                None => return Err(Error::SlotBroken("the spawner died".into())),
                Some(FAILED) => return Err(failure(&mut reader)),
                Some(_) => return Err(cut()),
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The guard ends when the spawner has, and the spawner's run with it.
        let _ = process::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.guard.wait();
    }
}

/// What a FAILED message says.
fn failure(reader: &mut Reader<'_>) -> Error {
    let said = reader.string().map(|text| text.to_string_lossy().into_owned());
    Error::SlotBroken(said.unwrap_or_else(|| "it failed without a word".into()))
}

/// The other end of the socket is gone, or the kernel says so in its own way.
fn gone(errno: crate::sys::Errno) -> Error {
    Error::SlotBroken(format!("the spawner cannot be reached: {errno}"))
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}
