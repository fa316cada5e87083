//! Programs that are held in memory, and descriptors that a program is started with.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::descriptor::{own, write_all};
use super::exec::Strings;
use super::raw::{syscall, word};
use super::{Errno, Result};

const CLOSE_ON_EXEC: usize = libc::FD_CLOEXEC as usize;

/// A copy of `content` in memory that nobody can change any more, executable by descriptor.
pub fn sealed(content: &[u8]) -> Result<OwnedFd> {
    const SEALS: i32 =
        libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    let flags = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as usize;
    // SAFETY: the name ends in NUL and outlives the call.
    let file = unsafe {
        syscall(libc::SYS_memfd_create, [c"program".as_ptr() as usize, flags, 0, 0, 0, 0])
    }
    .map(own)?;
    write_all(file.as_fd(), content)?;
    let arguments = [word(file.as_raw_fd()), libc::F_ADD_SEALS as usize, word(SEALS), 0, 0, 0];
    // SAFETY: F_ADD_SEALS takes an int.
    unsafe { syscall(libc::SYS_fcntl, arguments) }?;
    Ok(file)
}

/// Replaces this process by the program in `file`; returns only if that failed.
#[must_use]
pub fn execute_file(
    file: BorrowedFd<'_>,
    arguments: &Strings<'_>,
    environment: &Strings<'_>,
) -> Errno {
    let words = [
        word(file.as_raw_fd()),
        c"".as_ptr() as usize,
        arguments.as_ptr() as usize,
        environment.as_ptr() as usize,
        word(libc::AT_EMPTY_PATH),
        0,
    ];
    // SAFETY: the lists end in NULL and their strings in NUL; they outlive the call by the types.
    match unsafe { syscall(libc::SYS_execveat, words) } {
        Err(errno) => errno,
        Ok(_) => Errno(libc::EIO),
    }
}

/// The first descriptor that a container's init is started with besides its standard streams.
pub const FIRST_INHERITED: i32 = 3;

/// The descriptor [`FIRST_INHERITED`] that this process was started with, closed on exec from now on.
///
/// It is to be asked for before anything is opened.
///
/// # Errors
///
/// `EBADF` if there is none, or if it was asked for already.
pub fn first_inherited() -> Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Errno(libc::EBADF));
    }
    let fd = word(FIRST_INHERITED);
    // SAFETY: F_SETFD takes an int.
    unsafe { syscall(libc::SYS_fcntl, [fd, libc::F_SETFD as usize, CLOSE_ON_EXEC, 0, 0, 0]) }?;
    Ok(own(fd))
}

/// Gives `from` the number [`FIRST_INHERITED`], kept over exec. For a child about to exec; `from` must have
/// another number.
pub fn place_inherited(from: BorrowedFd<'_>) -> Result<()> {
    let (from, to) = (word(from.as_raw_fd()), word(FIRST_INHERITED));
    // SAFETY: in a child about to exec no Rust object uses its descriptors any more.
    unsafe { syscall(libc::SYS_dup3, [from, to, 0, 0, 0, 0]) }?;
    Ok(())
}

/// A second name of `descriptor`, at the lowest free number from `least` on, closed on exec.
pub fn duplicate_from(descriptor: BorrowedFd<'_>, least: usize) -> Result<OwnedFd> {
    let arguments = [word(descriptor.as_raw_fd()), libc::F_DUPFD_CLOEXEC as usize, least, 0, 0, 0];
    // SAFETY: F_DUPFD_CLOEXEC takes an int.
    unsafe { syscall(libc::SYS_fcntl, arguments) }.map(own)
}
