//! Becoming another program.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;

use super::Errno;
use super::raw::syscall;

/// A list of strings as exec wants it: pointers, then NULL. Made before the child is started.
pub struct Strings<'a> {
    pointers: Vec<*const libc::c_char>,
    owners: PhantomData<&'a CStr>,
}

impl<'a> Strings<'a> {
    /// The strings in order.
    #[must_use]
    pub fn new(strings: &[&'a CStr]) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { pointers, owners: PhantomData }
    }

    pub(super) fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// Replaces this process by `program`; returns only if that failed.
#[must_use]
pub fn execute(program: &CStr, arguments: &Strings<'_>, environment: &Strings<'_>) -> Errno {
    let words = [
        program.as_ptr() as usize,
        arguments.pointers.as_ptr() as usize,
        environment.pointers.as_ptr() as usize,
        0,
        0,
        0,
    ];
    // SAFETY: the lists end in NULL and their strings in NUL; they outlive the call by the types.
    match unsafe { syscall(libc::SYS_execve, words) } {
        Err(errno) => errno,
        Ok(_) => Errno(libc::EIO),
    }
}
