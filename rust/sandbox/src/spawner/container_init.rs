//! Pid 1 of a container: this crate's own small program, started by the container runtime.
//!
//! It is another user than the program, so that the program can neither signal nor trace nor limit
//! it, and has the two capabilities that it needs to give the program a user and nothing else.

use std::os::fd::AsFd;
use std::time::Duration;

use super::STACK;
use super::child::{self, Program, Report};
use super::order::Order;
use super::ran::nanoseconds;
use crate::error::Step;
use crate::protocol::{MAX_MESSAGE, Stage};
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::credentials::{self, capability};
use crate::sys::descriptor::Poll;
use crate::sys::{self, Errno, descriptor, process, program, socket};
use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// Init says that the program has been started.
pub(super) const STARTED: u8 = 1;
/// Init says how it ended: the stage, the status, processor time of the program's and of its own.
pub(super) const ENDED: u8 = 2;

/// What init may do beside what every process may.
pub(crate) const CAPABILITIES: [(&str, u32); 2] =
    [("CAP_SETUID", capability::SETUID), ("CAP_SETPCAP", capability::SETPCAP)];

/// Runs the program that the spawner asks for over the first inherited descriptor, and tells how it went.
///
/// # Errors
///
/// When the spawner cannot be talked to.
pub fn be_init() -> Result<()> {
    let socket = program::first_inherited().step(|| "find the spawner".into())?;
    let mut buffer = vec![0; MAX_MESSAGE + 8];
    let (length, _) =
        socket::receive(socket.as_fd(), &mut buffer).step(|| "receive the order".into())?;
    let mut reader = Reader::new(buffer.get(..length).unwrap_or_default());
    let (key, order) = (reader.long(), Order::read(&mut reader));
    let (Some(key), Some(order)) = (key, order) else {
        return Err(Error::SlotBroken("an order to a container is cut".into()));
    };
    sys::set_setup_key(key);
    let report = Report::new(Stage::Guard);
    // What the runtime or this program's start may have set is not the program's.
    process::reset_signals();
    let mut used = Duration::ZERO;
    let mut tell = |message: &Writer| {
        // A spawner that is gone ends this process; nobody else is interested.
        let _ = socket::send(socket.as_fd(), [message.as_slice(), &[], &[]], &[]);
    };
    if let Err(errno) =
        run(&order, &report, &mut used, &mut tell, Poll::readable(Some(socket.as_fd())))
    {
        report.end(errno.0);
    }
    let (stage, status) = report.read();
    let mut message = Writer::new(ENDED);
    message.byte(stage as u8);
    message.word(status.cast_unsigned());
    message.long(nanoseconds(used));
    message.long(nanoseconds(process::processor_time()));
    tell(&message);
    Ok(())
}

fn run(
    order: &Order<'_>,
    report: &Report,
    used: &mut Duration,
    tell: &mut impl FnMut(&Writer),
    spawner: Poll,
) -> Result<(), Errno> {
    process::die_with_parent()?;
    // The spawner may have died before the line above; then its end of the socket is closed.
    let mut spawner = [spawner];
    if descriptor::poll(&mut spawner, Some(Duration::ZERO))? > 0 {
        return Err(Errno(libc::ESRCH));
    }
    report.enter(Stage::Confinement);
    check_confinement()?;
    process::block_signals(true)?;
    report.enter(Stage::Fork);
    let mut stack = Stack::new(STACK);
    let mut program = Program { order, standard: [0, 1, 2], report };
    let child =
        suspended_until_done(Placement::default(), &mut stack, child::program, &mut program)?;
    tell(&Writer::new(STARTED));
    loop {
        let ended = process::wait(-1)?;
        *used += ended.cpu_time;
        if ended.pid == child {
            if report.read().0 == Stage::Killed {
                report.end(ended.status);
                report.enter(Stage::Ended);
            }
            return Ok(());
        }
    }
}

/// Refuses to start anything behind walls that a runtime has left out, and drops from the bounding set what
/// this process still needs and the program must not have.
fn check_confinement() -> Result<(), Errno> {
    let allowed = CAPABILITIES.iter().fold(0, |bits, (_, number)| bits | 1 << number);
    let confined = credentials::is_confined()?
        && std::process::id() == 1
        && credentials::effective_capabilities()? & !allowed == 0;
    if !confined {
        return Err(Errno(libc::EPERM));
    }
    CAPABILITIES.iter().try_for_each(|&(_, number)| credentials::drop_from_bounding_set(number))
}
