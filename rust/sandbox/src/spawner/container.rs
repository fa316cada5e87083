//! Runs in containers: a runtime (crun) is started for each, in a world made for it once.
//!
//! # Design
//!
//! The spawner moves into a small root of its own: the host's programs and libraries for the runtime,
//! the host's /proc, a bundle with the run's root and its configuration, and a place for the runtime's
//! state. All of it lies in the spawner's mount namespace, so nothing is on the host's disk, and whatever
//! ends the spawner ends the bundle, the state and every mount with it. The root, the configuration
//! and the filter are the same for every run; what differs (the program, its limits, its user) goes to
//! the container's init over a socket that the runtime hands through.
//!
//! The runtime is executed from a sealed copy in memory: it would else make one itself at each start, so
//! that a container cannot write to the program that made it (CVE-2019-5736).
//!
//! The runtime ends when the spawner does, and the container's init when the runtime does; a container
//! whose runtime died first is the spawner's child, as orphans are. So a run is over when the spawner has
//! no child left.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::container_init::{ENDED, STARTED};
use super::container_world::{BUNDLE, RUN_FILES, STATE, make_world};
use super::overlay::Overlay;
use super::ran::Ran;
use crate::Result;
use crate::protocol::Stage;
use crate::rootfs::Plan;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::descriptor::Poll;
use crate::sys::exec::Strings;
use crate::sys::{Errno, descriptor, mount, process, program, socket};
use crate::wire::Reader;

/// What makes a spawner one of containers.
pub(super) struct Container {
    /// The runtime, executable.
    runtime: OwnedFd,
    /// Its command line without the container's name at the end.
    arguments: Vec<CString>,
    /// Opens the filter for init.
    key: u64,
    /// The run's root, where it can write to it.
    overlay: Option<Overlay>,
    /// How many runs there were: containers are named by number.
    runs: u64,
}

impl Container {
    /// Reads what the slot says and moves this process, which `is_outside` of its runs' cgroup, into the
    /// runtime's world; `None` if the message is cut. The second is the file that counts the sockets of the slot's network namespace.
    pub(super) fn set_up(
        reader: &mut Reader<'_>,
        is_outside: bool,
    ) -> Option<Result<(Self, OwnedFd)>> {
        let (root, world) = (Plan::read(reader)?, Plan::read(reader)?);
        let runtime = reader.string()?.to_str().ok()?;
        let arguments: Vec<CString> = reader.strings()?.into_iter().map(CString::from).collect();
        let (config, key) = (reader.string()?, reader.long()?);
        let made = make_world(&root, &world, Path::new(runtime), config.to_bytes(), is_outside);
        Some(made.and_then(|(runtime, sockets)| {
            let overlay = root.is_writable.then(|| Overlay::new(&root, BUNDLE)).transpose()?;
            Ok((Self { runtime, arguments, key, overlay, runs: 0 }, sockets))
        }))
    }

    /// Whether runs can write to their root.
    pub(super) fn is_overlaid(&self) -> bool {
        self.overlay.is_some()
    }

    /// Runs what `order` (the body of a RUN message) says and waits for its end. `files` is the run's file
    /// system, `spawner` this process.
    pub(super) fn launch(
        &mut self,
        order: &[u8],
        files: &OwnedFd,
        standard: [i32; 3],
        (spawner, cgroup): (BorrowedFd<'_>, Option<BorrowedFd<'_>>),
        stack: &mut Stack,
    ) -> Ran {
        self.runs += 1;
        let Ok(name) = CString::new(format!("run-{}", self.runs)) else {
            return Ran::failed(Stage::Files, Errno(libc::EINVAL));
        };
        let attached = match &self.overlay {
            Some(overlay) => overlay.mount(files.as_fd()),
            None => mount::attach(files.as_fd(), RUN_FILES),
        };
        if let Err(errno) = attached {
            let _ = self.overlay.as_ref().map(Overlay::unmount);
            return Ran::failed(Stage::Files, errno);
        }
        let ran = self
            .start(order, &name, standard, spawner, cgroup, stack)
            .unwrap_or_else(|errno| Ran::failed(Stage::Runtime, errno));
        let detached = match &self.overlay {
            Some(overlay) => overlay.unmount(),
            None => mount::detach(RUN_FILES),
        };
        match detached {
            Ok(()) => ran,
            Err(errno) => Ran::failed(Stage::Files, errno),
        }
    }

    fn start(
        &self,
        order: &[u8],
        name: &CString,
        standard: [i32; 3],
        spawner: BorrowedFd<'_>,
        cgroup: Option<BorrowedFd<'_>>,
        stack: &mut Stack,
    ) -> Result<Ran, Errno> {
        let (ours, low) = socket::pair()?;
        // Above the numbers that the runtime is started with. The only one, so that its end is seen.
        let theirs = program::duplicate_from(low.as_fd(), 16)?;
        drop(low);
        socket::send(ours.as_fd(), [&self.key.to_le_bytes(), order, &[]], &[])?;
        let mut words: Vec<_> = self.arguments.iter().map(CString::as_c_str).collect();
        words.push(name);
        let (arguments, environment) = (Strings::new(&words), Strings::new(&[]));
        let runtime = self.runtime.as_fd();
        let mut call =
            Start { spawner, runtime, arguments, environment, standard, socket: theirs.as_fd() };
        let placement = Placement { namespaces: 0, cgroup };
        let runtime = suspended_until_done(placement, stack, start_runtime, &mut call)?;
        drop(theirs);
        let mut ran = Ran::failed(Stage::Runtime, Errno(0));
        let mut by_signal = false;
        while let Some(pid) = process::wait_without_reaping()? {
            let used = process::processor_time_of(pid);
            let ended = process::wait(pid)?;
            if pid == runtime {
                ran.overhead = used;
                ran.status = ended.status;
                by_signal = ended.status & 0x7f != 0;
            }
        }
        // Every process that could write to it is gone.
        read_report(ours.as_fd(), &mut ran)?;
        if by_signal {
            let _ = fs::remove_dir_all(Path::new(STATE).join(name.to_string_lossy().as_ref()));
        }
        Ok(ran)
    }
}

/// What init told, put into `ran`.
fn read_report(socket: BorrowedFd<'_>, ran: &mut Ran) -> Result<(), Errno> {
    let mut buffer = [0; 64];
    loop {
        let length = match socket::receive(socket, &mut buffer) {
            Ok((0, _)) | Err(Errno(libc::ECONNRESET)) => return Ok(()),
            received => received?.0,
        };
        let mut reader = Reader::new(buffer.get(..length).unwrap_or_default());
        match reader.byte() {
            Some(STARTED) => ran.stage = Stage::Killed,
            Some(ENDED) => read_end(&mut reader, ran).ok_or(Errno(libc::EPROTO))?,
            _ => return Err(Errno(libc::EPROTO)),
        }
    }
}

fn read_end(reader: &mut Reader<'_>, ran: &mut Ran) -> Option<()> {
    ran.stage = Stage::from_byte(reader.byte()?)?;
    ran.status = reader.word()?.cast_signed();
    ran.used = Duration::from_nanos(reader.long()?);
    ran.overhead += Duration::from_nanos(reader.long()?);
    Some(())
}

/// What the runtime's process needs until it is the runtime.
struct Start<'a> {
    spawner: BorrowedFd<'a>,
    runtime: BorrowedFd<'a>,
    arguments: Strings<'a>,
    environment: Strings<'a>,
    standard: [i32; 3],
    /// For init: the order comes over it, the report goes back.
    socket: BorrowedFd<'a>,
}

/// The runtime's process. It shares the spawner's memory until its exec; see `child.rs`.
fn start_runtime(call: &mut Start<'_>) -> ! {
    if prepare(call).is_ok() {
        let _ = program::execute_file(call.runtime, &call.arguments, &call.environment);
    }
    process::exit(127);
}

fn prepare(call: &Start<'_>) -> Result<(), Errno> {
    process::die_with_parent()?;
    let mut spawner = [Poll::readable(Some(call.spawner))];
    if descriptor::poll(&mut spawner, Some(Duration::ZERO))? > 0 {
        return Err(Errno(libc::ESRCH));
    }
    for (from, to) in call.standard.into_iter().zip(0..) {
        descriptor::place_standard(from, to)?;
    }
    program::place_inherited(call.socket)?;
    descriptor::close_on_exec_from(4)?;
    process::block_signals(false)
}
