//! The kernel's calls, and the crate's only `unsafe`.
//!
//! Every function here is safe to call: what the kernel needs of its arguments (valid pointers,
//! owned descriptors) is guaranteed by their types. The calls are made directly, not through the C
//! library, because a child that shares its parent's memory runs some of them: they allocate nothing,
//! take no lock and touch no thread-local `errno`.
#![expect(unsafe_code, reason = "the one place of the crate where the kernel is called")]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("k15-sandbox runs on Linux on x86_64: its system calls are made in assembly");

pub mod clone;
pub mod credentials;
pub mod descriptor;
pub mod directory;
pub mod exec;
pub mod mount;
pub mod process;
pub mod program;
mod raw;
pub mod seccomp;
pub mod socket;
pub mod zygote;

pub use raw::{Errno, set_setup_key};

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Errno>;
