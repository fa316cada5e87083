//! What lies in a directory, by descriptor, with no link followed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::raw::{syscall, word};
use super::{Errno, Result};

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// When its content was changed: seconds and nanoseconds.
    pub modified: (i64, u32),
}

/// The names in `directory`, but `.` and `..`. It is read from where others have read to.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut buffer = vec![0u8; 16 << 10];
    loop {
        let arguments =
            [word(directory.as_raw_fd()), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
        // SAFETY: `buffer` is writable for its length.
        let length = unsafe { syscall(libc::SYS_getdents64, arguments) }?;
        if length == 0 {
            return Ok(names);
        }
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            // struct linux_dirent64: two u64, the entry's length, its kind, its name with a NUL.
            let short = || Errno(libc::EIO);
            let size = rest.get(16..18).and_then(|bytes| bytes.try_into().ok());
            let size = usize::from(u16::from_ne_bytes(size.ok_or_else(short)?));
            let name = rest.get(19..size).ok_or_else(short)?;
            let name = CStr::from_bytes_until_nul(name).map_err(|_| short())?;
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
            rest = rest.get(size..).unwrap_or_default();
        }
    }
}

/// The status of `name` in `directory`; of a link its own.
pub fn status(directory: BorrowedFd<'_>, name: &CStr) -> Result<Status> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let arguments = [
        word(directory.as_raw_fd()),
        name.as_ptr() as usize,
        status.as_mut_ptr() as usize,
        word(libc::AT_SYMLINK_NOFOLLOW),
        0,
        0,
    ];
    // SAFETY: `name` ends in NUL; `status` has room for the structure.
    unsafe { syscall(libc::SYS_newfstatat, arguments) }?;
    // SAFETY: it was zeroed, and every bit pattern is a valid `stat`.
    let status = unsafe { status.assume_init() };
    let nanoseconds = u32::try_from(status.st_mtime_nsec).unwrap_or(0);
    Ok(Status { mode: status.st_mode, modified: (status.st_mtime, nanoseconds) })
}

/// What the link `name` in `directory` says.
pub fn read_link(directory: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let mut says = vec![0u8; 4096];
    let arguments = [
        word(directory.as_raw_fd()),
        name.as_ptr() as usize,
        says.as_mut_ptr() as usize,
        says.len(),
        0,
        0,
    ];
    // SAFETY: `name` ends in NUL; `says` is writable for its length.
    let length = unsafe { syscall(libc::SYS_readlinkat, arguments) }?;
    says.truncate(length);
    Ok(says)
}

/// Makes the link `path` below `directory`.
pub fn make_link(directory: BorrowedFd<'_>, path: &CStr, says: &CStr) -> Result<()> {
    let arguments =
        [says.as_ptr() as usize, word(directory.as_raw_fd()), path.as_ptr() as usize, 0, 0, 0];
    // SAFETY: both strings end in NUL and outlive the call.
    unsafe { syscall(libc::SYS_symlinkat, arguments) }?;
    Ok(())
}

/// Sets the times of `path` below `directory`, links not followed.
pub fn set_times(directory: BorrowedFd<'_>, path: &CStr, time: (i64, u32)) -> Result<()> {
    let (seconds, nanoseconds) = time;
    let times = [seconds, i64::from(nanoseconds), seconds, i64::from(nanoseconds)];
    let arguments = [
        word(directory.as_raw_fd()),
        path.as_ptr() as usize,
        times.as_ptr() as usize,
        word(libc::AT_SYMLINK_NOFOLLOW),
        0,
        0,
    ];
    // SAFETY: the string ends in NUL, the times have the layout of two struct timespec; both outlive the
    // call.
    unsafe { syscall(libc::SYS_utimensat, arguments) }?;
    Ok(())
}
