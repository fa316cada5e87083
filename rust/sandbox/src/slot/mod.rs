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
mod verdict;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::{Group, Placement};
use crate::error::Step;
use crate::protocol::{CONFIGURE, DONE, FAILED, INIT_PIDFD, MAX_MESSAGE, PIECE, READY};
use crate::rootfs::Plan;
use crate::sys::descriptor::{self, Poll, poll};
use crate::sys::{process, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Job, Outcome, Result};
use capture::{Capture, Feed};
pub(crate) use request::{Request, core_limit};
use verdict::Killed;

/// How long only the answer is waited for. A run that fills a pipe sooner waits this long, once.
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// How long a killed run may take to be gone before the spawner is killed too.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a spawner may take to set itself up.
const SETUP_TIME: Duration = Duration::from_secs(30);

/// One slot. It is used by one thread at a time.
pub struct Slot {
    child: Child,
    pidfd: OwnedFd,
    socket: OwnedFd,
    group: Group,
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
    pub(crate) fn open(spawner: &Path, plan: &Plan, group: Group) -> Result<Self> {
        let (ours, theirs) = socket::pair().step(|| "make the slot's sockets".into())?;
        let child = Command::new(spawner)
            .arg("serve")
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()
            .step(|| format!("start {}", spawner.display()))?;
        let pidfd = process::open_pidfd(child.id().cast_signed())
            .step(|| "open the spawner's pidfd".into())?;
        let mut slot =
            Self { child, pidfd, socket: ours, group, buffer: vec![0; MAX_MESSAGE], broken: false };
        slot.group.admit_spawner(slot.child.id())?;
        slot.configure(plan)?;
        Ok(slot)
    }

    fn configure(&mut self, plan: &Plan) -> Result<()> {
        let mut writer = Writer::new(CONFIGURE);
        let (resident, cgroup) = match self.group.placement() {
            Placement::Resident => (true, None),
            Placement::Into(directory) => (false, Some(directory)),
            Placement::None => (false, None),
        };
        writer.byte(u8::from(resident));
        plan.write(&mut writer);
        let descriptors: Vec<BorrowedFd<'_>> = cgroup.into_iter().collect();
        socket::send(self.socket.as_fd(), [writer.as_slice(), &[], &[]], &descriptors)
            .map_err(gone)?;
        self.expect_ready(SETUP_TIME)
    }

    fn expect_ready(&mut self, patience: Duration) -> Result<()> {
        let mut wait = [Poll::readable(Some(self.socket.as_fd()))];
        if poll(&mut wait, Some(patience)).map_err(gone)? == 0 {
            return Err(Error::SlotBroken(format!("no answer from the spawner in {patience:?}")));
        }
        let (length, _) = socket::receive(self.socket.as_fd(), &mut self.buffer).map_err(gone)?;
        let mut reader = Reader::new(self.buffer.get(..length).unwrap_or_default());
        match reader.byte() {
            Some(READY) => Ok(()),
            Some(FAILED) => {
                let said = reader.string().map(|text| text.to_string_lossy().into_owned());
                Err(Error::SlotBroken(said.unwrap_or_else(|| "it failed without a word".into())))
            }
            None => Err(Error::SlotBroken("the spawner ended while it was set up".into())),
            Some(other) => Err(Error::SlotBroken(format!("unexpected answer {other}"))),
        }
    }

    /// Whether a run can be given to it. Cheap.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let mut wait = [Poll::readable(Some(self.pidfd.as_fd()))];
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
        self.group.begin(&job.limits)?;
        let (mut feed, stdin) = Feed::new(&job.stdin)?;
        let (mut stdout, out) = Capture::new(job.limits.output_bytes)?;
        let (mut stderr, err) = Capture::new(job.limits.output_bytes)?;
        let start = Instant::now();
        request.send(self.socket.as_fd(), user, [stdin.as_fd(), out.as_fd(), err.as_fd()])?;
        drop((stdin, out, err));

        let killed = self.watch(job, start, &mut feed, &mut stdout, &mut stderr)?;
        let mut answer = self.receive_answer(job)?;
        // Every writer is gone: what is in the pipes is all there is.
        stdout.read_what_is_there(&mut self.buffer)?;
        stderr.read_what_is_there(&mut self.buffer)?;
        let usage = self.group.usage()?;
        self.group.settle()?;
        answer.output(stdout, stderr);
        Ok(verdict::judge(job, answer, usage, killed))
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
        let first = [Poll::readable(Some(self.socket.as_fd()))];
        if !feed.is_waiting() && poll(&mut first.clone(), Some(FIRST_LOOK)).map_err(gone)? > 0 {
            return Ok(None);
        }
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
                first[0],
                Poll::readable(stdout.waiting()),
                Poll::readable(stderr.waiting()),
                Poll::writable(feed.waiting()),
            ];
            poll(&mut entries, Some(until.saturating_duration_since(now))).map_err(gone)?;
            let [answered, out, err, input] = entries;
            if answered.is_ready() {
                return Ok(killed.map(|(reason, _)| reason));
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
        match process::take_descriptor(self.pidfd.as_fd(), INIT_PIDFD) {
            // Between runs this is no pidfd, and the signal goes nowhere.
            Ok(init) => drop(process::send_signal(init.as_fd(), libc::SIGKILL)),
            // Not allowed to look into the spawner, or it is dead: end the slot, and the run with it.
            Err(_) => drop(process::send_signal(self.pidfd.as_fd(), libc::SIGKILL)),
        }
    }

    /// Receives pieces of files until the answer itself.
    fn receive_answer(&mut self, job: &Job) -> Result<verdict::Answer> {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); job.fetch.len()];
        loop {
            let mut wait = [Poll::readable(Some(self.socket.as_fd()))];
            if poll(&mut wait, Some(PATIENCE)).map_err(gone)? == 0 {
                return Err(Error::SlotBroken(
                    "the spawner stopped in the middle of an answer".into(),
                ));
            }
            let (length, _) =
                socket::receive(self.socket.as_fd(), &mut self.buffer).map_err(gone)?;
            let message = self.buffer.get(..length).unwrap_or_default();
            let mut reader = Reader::new(message);
            let cut = || Error::SlotBroken("an answer of the spawner is cut".into());
            match reader.byte() {
                Some(PIECE) => {
                    let index = reader.count().ok_or_else(cut)?;
                    let piece = message.get(5..).ok_or_else(cut)?;
                    pieces.get_mut(index).ok_or_else(cut)?.extend_from_slice(piece);
                }
                Some(DONE) => {
                    return verdict::Answer::read(&mut reader, &job.fetch, pieces).ok_or_else(cut);
                }
                None => return Err(Error::SlotBroken("the spawner died".into())),
                Some(_) => return Err(cut()),
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = process::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.child.wait();
        let _ = descriptor::set_nonblocking(self.socket.as_fd());
    }
}

/// The other end of the socket is gone, or the kernel says so in its own way.
fn gone(errno: crate::sys::Errno) -> Error {
    Error::SlotBroken(format!("the spawner cannot be reached: {errno}"))
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}
