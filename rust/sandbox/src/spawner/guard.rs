//! The guard: the process that a slot starts, which starts the spawner and waits for its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{serve_runs, user_namespace};
use crate::error::Step;
use crate::protocol::FAILED;
use crate::sys::clone::{Placement, Stack, suspended_until_done};
use crate::sys::descriptor::Poll;
use crate::sys::{descriptor, process, socket};
use crate::wire::Writer;
use crate::{Error, Result, capability};

const SPAWNER_STACK: usize = 512 << 10;

/// Serves the slot at the other end of `socket` until that is closed. `parent` is the slot's process.
///
/// # Errors
///
/// What could not be set up; the process should then end.
pub fn serve(socket: BorrowedFd<'_>, parent: i32) -> Result<()> {
    process::die_with_parent().step(|| "tie the spawner to its parent".into())?;
    if process::parent() != parent {
        return Err(Error::SlotBroken("the parent died before its spawner was ready".into()));
    }
    descriptor::close_on_exec_from(0).step(|| "mark descriptors".into())?;
    if !capability::is_privileged()
        && let Err(error) = user_namespace::enter()
    {
        let mut writer = Writer::new(FAILED);
        writer.string(&error.to_string().replace('\0', ""));
        let _ = socket::send(socket, [writer.as_slice(), &[], &[]], &[]);
        return Err(error);
    }
    process::reset_signals();
    process::block_signals(true).step(|| "block signals".into())?;
    // No terminal: neither for this process nor for what it starts.
    process::start_session().step(|| "start a session".into())?;
    process::adopt_orphans().step(|| "adopt what a spawner leaves".into())?;
    let mut service = Service {
        socket,
        guard: process::open_pidfd(std::process::id().cast_signed())
            .step(|| "open the guard's pidfd".into())?,
        result: Ok(()),
    };
    let mut stack = Stack::new(SPAWNER_STACK);
    let spawner = suspended_until_done(Placement::default(), &mut stack, be_spawner, &mut service)
        .step(|| "start the spawner".into())?;
    let _ = process::wait(spawner);
    while process::wait(-1).is_ok() {} // what the spawner has left
    service.result
}

/// What the guard hands to the spawner, and what it gets back.
struct Service<'a> {
    socket: BorrowedFd<'a>,
    guard: OwnedFd,
    result: Result<()>,
}

/// The spawner's life, in the memory of the suspended guard, which is its own for as long as it lives.
fn be_spawner(service: &mut Service<'_>) -> ! {
    service.result = serve_runs(service.socket, service.guard.as_fd());
    process::exit(i32::from(service.result.is_err()));
}

/// Ties this process's life to the guard's.
pub(super) fn stay_with(guard: BorrowedFd<'_>) -> Result<()> {
    process::die_with_parent().step(|| "tie the spawner to its guard".into())?;
    let mut guard = [Poll::readable(Some(guard))];
    if descriptor::poll(&mut guard, Some(Duration::ZERO)) != Ok(0) {
        return Err(Error::SlotBroken("the guard died before its spawner was ready".into()));
    }
    Ok(())
}
