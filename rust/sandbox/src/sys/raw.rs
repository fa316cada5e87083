//! One system call, made without the C library.

use std::arch::asm;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Result;

/// An error number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(formatter)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// The sixth argument of the calls that only a spawner may make; see [`crate::seccomp`].
static SETUP_KEY: AtomicUsize = AtomicUsize::new(0);

/// Sets the key that the calls for setting up a run carry from now on.
pub fn set_setup_key(key: u64) {
    SETUP_KEY.store(usize::from_ne_bytes(key.to_ne_bytes()), Ordering::Relaxed);
}

/// The key as a register's value.
pub(super) fn setup_key() -> usize {
    SETUP_KEY.load(Ordering::Relaxed)
}

/// Calls the kernel with six arguments; those that `number` does not have are ignored by it.
///
/// # Safety
///
/// The arguments must be what the call named by `number` expects: a pointer must be valid for the
/// access and the time that the kernel needs, and the call must not break what Rust relies on
/// (unmapping memory in use, closing a descriptor owned by someone else).
#[inline]
pub(super) unsafe fn syscall(number: libc::c_long, arguments: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the registers are those of the x86_64 convention, rcx and r11 are declared lost, and
    // memory is taken as read and written. What the call does is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    check(result)
}

/// Turns the kernel's answer into a result.
pub(super) fn check(result: isize) -> Result<usize> {
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno(i32::try_from(-result).unwrap_or(libc::EINVAL))),
    }
}

/// A descriptor as a register's value.
pub(super) fn word(value: i32) -> usize {
    value as isize as usize
}

/// A register's value as a descriptor, a process number or another int of the kernel's.
pub(super) fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(-1)
}
