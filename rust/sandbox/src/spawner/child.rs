//! What runs in the memory of the suspended spawner: the run's init, and the program until its exec.
//!
//! No allocation, no lock, no panic, signals blocked; every call is a raw system call. What they find
//! out they write into their argument, which the spawner reads when it goes on.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::time::Duration;

use super::order::Order;
use super::overlay::Overlay;
use crate::protocol::Stage;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::descriptor::{self, Poll};
use crate::sys::exec;

use crate::sys::{Errno, credentials, mount, process};

/// How far a run came, and with which status or error: what three processes tell each other in the
/// memory that they share. Atomics, so that a value is in memory when a process becomes another program.
pub(super) struct Report {
    stage: AtomicU8,
    status: AtomicI32,
}

impl Report {
    pub(super) fn new(stage: Stage) -> Self {
        Self { stage: AtomicU8::new(stage as u8), status: AtomicI32::new(0) }
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::SeqCst);
    }

    pub(super) fn end(&self, status: i32) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The stage and the status.
    pub(super) fn read(&self) -> (Stage, i32) {
        let stage = Stage::from_byte(self.stage.load(Ordering::SeqCst));
        (stage.unwrap_or(Stage::Clone), self.status.load(Ordering::SeqCst))
    }
}

/// What init needs.
pub(super) struct Init<'a> {
    /// The spawner, by pidfd: readable when it is dead.
    pub(super) spawner: BorrowedFd<'a>,
    /// The run's file system, detached.
    pub(super) files: BorrowedFd<'a>,
    /// Whether it starts in a cgroup that is not its parent's, and makes a namespace with that as the root.
    pub(super) is_in_new_cgroup: bool,
    /// The run's root, where it can write to it.
    pub(super) overlay: Option<&'a Overlay>,
    /// For the program's process until its exec.
    pub(super) stack: &'a mut Stack,
    pub(super) program: Program<'a>,
}

/// What the program's process needs.
pub(super) struct Program<'a> {
    pub(super) order: &'a Order<'a>,
    /// Stdin, stdout, stderr.
    pub(super) standard: [i32; 3],
    pub(super) report: &'a Report,
}

/// Pid 1 of the run's namespace: sets up what is fresh in every run, starts the program, reaps
/// whatever is orphaned, and ends with the program. The kernel then kills all that is left.
pub(super) fn init(call: &mut Init<'_>) -> ! {
    if let Err(errno) = set_up(call) {
        call.program.report.end(errno.0);
        process::exit(1);
    }
    call.program.report.enter(Stage::Fork);
    let child =
        match suspended_until_done(Placement::default(), call.stack, program, &mut call.program) {
            Ok(child) => child,
            Err(errno) => {
                call.program.report.end(errno.0);
                process::exit(1);
            }
        };
    loop {
        match process::wait(-1) {
            Ok(ended) if ended.pid == child => {
                if call.program.report.read().0 == Stage::Killed {
                    call.program.report.end(ended.status);
                    call.program.report.enter(Stage::Ended);
                }
                process::exit(0);
            }
            Ok(_) => {}
            Err(_) => process::exit(1),
        }
    }
}

fn set_up(call: &mut Init<'_>) -> Result<(), Errno> {
    call.program.report.enter(Stage::Guard);
    process::die_with_parent()?;
    // It may have died before the line above.
    let mut spawner = [Poll::readable(Some(call.spawner))];
    if descriptor::poll(&mut spawner, Some(Duration::ZERO))? > 0 {
        return Err(Errno(libc::ESRCH));
    }
    call.program.report.enter(Stage::Mount);
    if call.is_in_new_cgroup {
        process::unshare(libc::CLONE_NEWCGROUP)?;
    }
    if let Some(overlay) = call.overlay {
        return overlay.enter(call.files);
    }
    mount::attach(call.files, c"/tmp")?;
    mount::mount_processes(c"/proc")
}

/// The program's process, until it is the program.
pub(super) fn program(call: &mut Program<'_>) -> ! {
    let errno = match become_program(call) {
        Ok(never) => match never {},
        Err(errno) => errno,
    };
    call.report.end(errno.0);
    process::exit(127);
}

/// Nothing: a program that was started does not come back.
enum Never {}

fn become_program(call: &mut Program<'_>) -> Result<Never, Errno> {
    let order = call.order;
    call.report.enter(Stage::Limits);
    for &(resource, soft, hard) in &order.limits {
        credentials::limit_resource(resource, soft, hard)?;
    }
    call.report.enter(Stage::Descriptors);
    process::start_group()?;
    for (from, to) in call.standard.into_iter().zip(0..) {
        // A container's are in place.
        if from != to {
            descriptor::place_standard(from, to)?;
        }
    }
    descriptor::close_on_exec_from(3)?;
    call.report.enter(Stage::User);
    credentials::set_user(order.user)?;
    // A change of user takes them away, except in a user namespace, where it changes to itself.
    credentials::drop_capabilities()?;
    call.report.enter(Stage::Directory);
    descriptor::change_directory(order.directory)?;
    process::block_signals(false)?;
    // From a successful exec on, nothing is written here: this is what init finds.
    call.report.enter(Stage::Killed);
    let errno = exec::execute(order.program, &order.arguments, &order.environment);
    call.report.enter(Stage::Exec);
    Err(errno)
}
