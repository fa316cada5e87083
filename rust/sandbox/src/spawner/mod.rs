//! The spawner: a small process, started by exec, that is a slot's other half.
//!
//! # Design
//!
//! It has one thread, is linked statically and holds all that can be pooled. For a run it makes a
//! tmpfs, stages the input files on it, and starts init ([`child`]) in fresh namespaces with
//! `CLONE_VM | CLONE_VFORK`: no page table is copied, and the spawner is suspended until the run is over.
//! So it never has to be scheduled while a run lives: a run that burns its slot's processor quota or
//! memory finds nobody to starve. Time, output and processor use are watched by the slot, from
//! another process and, on cgroup v1, from outside the cgroup that the two live in.

mod child;
mod files;
mod setup;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::Step;
use crate::protocol::{
    ABSENT, CHECK, CONFIGURE, DONE, Disk, Done, FAILED, FETCHED, MAX_MESSAGE, MAX_PIECE,
    NOT_A_FILE, PIECE, READY, RUN, STAGE, Stage, TOO_LONG,
};
use crate::rootfs::Plan;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::exec::Strings;
use crate::sys::socket::Received;
use crate::sys::{Errno, descriptor, process, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Result};
use child::{Init, Program, Report};
use files::RunFiles;

/// Namespaces that every run has to itself.
const FRESH: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

const STACK: usize = 64 << 10;

/// The state of a spawner.
struct Spawner<'a> {
    socket: BorrowedFd<'a>,
    /// Itself, by which init sees whether it is alive.
    own_pidfd: OwnedFd,
    /// The host's /proc, kept only where init must set its OOM score.
    processes: Option<OwnedFd>,
    /// The cgroup (v2) that runs start in.
    cgroup: Option<OwnedFd>,
    /// Keeps the number [`crate::protocol::INIT_PIDFD`] taken between runs.
    place_of_pidfd: Option<OwnedFd>,
    files: Option<RunFiles>,
    /// What went wrong when staging, told when the run is asked for.
    staging_error: Option<Errno>,
    stacks: [Stack; 2],
}

/// Serves the slot at the other end of `socket` until that is closed.
///
/// # Errors
///
/// What could not be set up, or a message that is no message; the process should then end.
pub fn serve(socket: BorrowedFd<'_>, parent: i32) -> Result<()> {
    process::die_with_parent().step(|| "tie the spawner to its parent".into())?;
    if process::parent() != parent {
        return Err(Error::SlotBroken("the parent died before its spawner was ready".into()));
    }
    descriptor::close_on_exec_from(0).step(|| "mark descriptors".into())?;
    process::reset_signals();
    process::block_signals(true).step(|| "block signals".into())?;
    let place_of_pidfd = descriptor::duplicate(socket).step(|| "keep a place".into())?;
    let own_pidfd = process::open_pidfd(std::process::id().cast_signed())
        .step(|| "open the spawner's own pidfd".into())?;
    let mut spawner = Spawner {
        socket,
        own_pidfd,
        processes: None,
        cgroup: None,
        place_of_pidfd: Some(place_of_pidfd),
        files: None,
        staging_error: None,
        stacks: [Stack::new(STACK), Stack::new(STACK)],
    };
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, descriptors) =
            socket::receive(socket, &mut buffer).step(|| "receive from the slot".into())?;
        if length == 0 {
            return Ok(());
        }
        let message = buffer.get(..length).unwrap_or_default();
        spawner
            .answer(message, descriptors)?
            .ok_or_else(|| Error::SlotBroken("a message to the spawner is cut".into()))?;
    }
}

impl Spawner<'_> {
    /// Does what a message asks; `None` if it makes no sense.
    fn answer(&mut self, message: &[u8], descriptors: Received) -> Result<Option<()>> {
        let mut reader = Reader::new(message);
        match reader.byte() {
            Some(CONFIGURE) => {
                let Some(resident) = reader.byte() else { return Ok(None) };
                let Some(plan) = Plan::read(&mut reader) else { return Ok(None) };
                let [cgroup, ..] = descriptors;
                self.cgroup = cgroup;
                match self.configure(&plan, resident != 0) {
                    Ok(()) => self.send(&Writer::new(READY))?,
                    Err(error) => {
                        let mut writer = Writer::new(FAILED);
                        writer.string(&error.to_string().replace('\0', ""));
                        self.send(&writer)?;
                    }
                }
            }
            Some(STAGE) => {
                if self.stage(&mut reader).is_none() {
                    return Ok(None);
                }
            }
            Some(RUN) => return self.run(&mut reader, &descriptors),
            Some(CHECK) => self.send(&Writer::new(READY))?,
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    fn send(&self, writer: &Writer) -> Result<()> {
        socket::send(self.socket, [writer.as_slice(), &[], &[]], &[])
            .step(|| "answer the slot".into())
    }

    fn configure(&mut self, plan: &Plan, resident: bool) -> Result<()> {
        if resident {
            let processes = File::open("/proc").step(|| "open /proc".into())?;
            self.processes = Some(processes.into());
        }
        setup::become_slot(plan)?;
        // It lives in its runs' memory cgroup: what it needs must not be reclaimed under it.
        let _ = process::lock_memory();
        Ok(())
    }

    fn files_for(&mut self, disk: Disk) -> Result<&mut RunFiles, Errno> {
        if self.files.as_ref().is_none_or(|files| files.disk != disk) {
            self.files = Some(RunFiles::new(disk)?);
        }
        self.files.as_mut().ok_or(Errno(libc::ENOENT))
    }

    fn stage(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let disk = Disk::read(reader)?;
        let executable = reader.byte()? != 0;
        let (path, content) = (reader.string()?, reader.bytes()?);
        if self.staging_error.is_none() {
            let staged =
                self.files_for(disk).and_then(|files| files.append(path, executable, content));
            self.staging_error = staged.err();
        }
        Some(())
    }

    fn run(&mut self, reader: &mut Reader<'_>, standard: &Received) -> Result<Option<()>> {
        let start = process::monotonic();
        let busy = process::processor_time();
        let Some(disk) = Disk::read(reader) else { return Ok(None) };
        let Some(((stage, status), fetch)) = self.launch(disk, reader, standard) else {
            return Ok(None);
        };
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let done = Done {
            stage,
            status,
            wall: nanos(process::monotonic().saturating_sub(start)),
            overhead: nanos(process::processor_time().saturating_sub(busy)),
        };
        let mut writer = Writer::new(DONE);
        done.write(&mut writer);
        if let Some((names, most)) = fetch {
            self.fetch(&names, most, &mut writer)?;
        }
        self.files = None;
        self.send(&writer)?;
        Ok(Some(()))
    }

    /// Reads the rest of a RUN message, runs the program, and says how that went and what to fetch.
    #[expect(clippy::type_complexity, reason = "read once, by run")]
    fn launch<'m>(
        &mut self,
        disk: Disk,
        reader: &mut Reader<'m>,
        standard: &Received,
    ) -> Option<((Stage, i32), Option<(Vec<&'m std::ffi::CStr>, u64)>)> {
        let [Some(stdin), Some(stdout), Some(stderr), None] = standard else { return None };
        let limits = (0..reader.count()?)
            .map(|_| Some((reader.word()?, reader.long()?, reader.long()?)))
            .collect::<Option<Vec<_>>>()?;
        let (directory, path) = (reader.string()?, reader.string()?);
        let arguments = Strings::new(&reader.strings()?);
        let environment = Strings::new(&reader.strings()?);
        let mut staging_error = self.staging_error.take();
        if let Err(errno) = self.files_for(disk) {
            staging_error.get_or_insert(errno);
        }
        for _ in 0..reader.count()? {
            let executable = reader.byte()? != 0;
            let (path, content) = (reader.string()?, reader.bytes()?);
            if let (None, Some(files)) = (staging_error, &self.files) {
                staging_error = files.append(path, executable, content).err();
            }
        }
        let most = reader.long()?;
        let wanted = reader.strings()?;
        let (Some(files), None) = (&self.files, staging_error) else {
            return Some(((Stage::Files, staging_error.map_or(0, |errno| errno.0)), None));
        };
        let report = Report::new(Stage::Clone);
        let [stack, program_stack] = &mut self.stacks;
        let mut init = Init {
            spawner: self.own_pidfd.as_fd(),
            processes: self.processes.as_ref().map(AsFd::as_fd),
            files: files.mount.as_fd(),
            stack: program_stack,
            program: Program {
                path,
                arguments,
                environment,
                directory,
                user: disk.user,
                limits: &limits,
                standard: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
                report: &report,
            },
        };
        let placement = Placement {
            namespaces: FRESH,
            cgroup: self.cgroup.as_ref().map(AsFd::as_fd),
            pidfd: true,
        };
        drop(self.place_of_pidfd.take());
        let started = suspended_until_done(placement, stack, child::init, &mut init);
        let waited = started.and_then(|child| process::wait(child.pid));
        let ended = waited.map_or_else(|errno| (Stage::Clone, errno.0), |_| report.read());
        self.place_of_pidfd = descriptor::duplicate(self.socket).ok();
        Some((ended, (!wanted.is_empty()).then_some((wanted, most))))
    }

    /// Adds what became of each wanted file to the answer, sending the content ahead of it.
    fn fetch(&self, names: &[&std::ffi::CStr], most: u64, answer: &mut Writer) -> Result<()> {
        let mut left = most;
        let mut piece = vec![0; MAX_PIECE];
        for (index, name) in (0u32..).zip(names) {
            let state = match self.files.as_ref().map(|files| files.open(name)) {
                Some(Ok(file)) => self.send_file(index, &file, &mut piece, &mut left)?,
                Some(Err(Errno(libc::ENOENT))) | None => ABSENT,
                Some(Err(_)) => NOT_A_FILE,
            };
            answer.byte(state);
        }
        Ok(())
    }

    fn send_file(
        &self,
        index: u32,
        file: &OwnedFd,
        piece: &mut [u8],
        left: &mut u64,
    ) -> Result<u8> {
        loop {
            let length = match descriptor::read(file.as_fd(), piece) {
                Ok(0) => return Ok(FETCHED),
                Ok(length) => length,
                Err(_) => return Ok(NOT_A_FILE),
            };
            let Some(rest) = left.checked_sub(length as u64) else { return Ok(TOO_LONG) };
            *left = rest;
            let mut head = Writer::new(PIECE);
            head.word(index);
            let content = piece.get(..length).unwrap_or_default();
            socket::send(self.socket, [head.as_slice(), content, &[]], &[])
                .step(|| "send a file".into())?;
        }
    }
}
