//! Files and pipes by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::raw::{int, syscall, word};
use super::{Errno, Result};

/// Takes ownership of a descriptor that the kernel has just handed out.
pub(super) fn own(descriptor: usize) -> OwnedFd {
    // SAFETY: the callers pass what a call has just returned as a new descriptor: open, owned by none.
    unsafe { OwnedFd::from_raw_fd(int(descriptor)) }
}

/// Opens `path` below `directory` (or from the working directory), closed on exec.
pub fn open(
    directory: Option<BorrowedFd<'_>>,
    path: &CStr,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd> {
    let at = directory.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    let flags = flags | libc::O_CLOEXEC;
    let arguments = [word(at), path.as_ptr() as usize, word(flags), mode as usize, 0, 0];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_openat, arguments) }.map(own)
}

/// Opens `path` below `directory` with nothing on the way followed: no link of either kind, no mount,
/// nothing above `directory`.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<OwnedFd> {
    const RESOLVE: u64 = libc::RESOLVE_BENEATH
        | libc::RESOLVE_NO_SYMLINKS
        | libc::RESOLVE_NO_MAGICLINKS
        | libc::RESOLVE_NO_XDEV;
    let how = [(flags | libc::O_CLOEXEC) as u64, 0, RESOLVE];
    let arguments = [
        word(directory.as_raw_fd()),
        path.as_ptr() as usize,
        how.as_ptr() as usize,
        size_of_val(&how),
        0,
        0,
    ];
    // SAFETY: `path` ends in NUL; `how` has the layout of struct open_how (three u64); both outlive
    // the call.
    unsafe { syscall(libc::SYS_openat2, arguments) }.map(own)
}

/// Makes a directory.
pub fn make_directory(directory: Option<BorrowedFd<'_>>, path: &CStr, mode: u32) -> Result<()> {
    let at = directory.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe {
        syscall(libc::SYS_mkdirat, [word(at), path.as_ptr() as usize, mode as usize, 0, 0, 0])
    }?;
    Ok(())
}

/// Makes a character device.
pub fn make_device(path: &CStr, major: u32, minor: u32, mode: u32) -> Result<()> {
    let kind = (libc::S_IFCHR | mode) as usize;
    let device = usize::try_from(libc::makedev(major, minor)).unwrap_or(0);
    let arguments = [word(libc::AT_FDCWD), path.as_ptr() as usize, kind, device, 0, 0];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_mknodat, arguments) }?;
    Ok(())
}

/// Gives `path` below `directory` to user and group `owner`, links not followed.
pub fn change_owner(directory: BorrowedFd<'_>, path: &CStr, owner: u32) -> Result<()> {
    let arguments = [
        word(directory.as_raw_fd()),
        path.as_ptr() as usize,
        owner as usize,
        owner as usize,
        word(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH),
        0,
    ];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_fchownat, arguments) }?;
    Ok(())
}

/// Sets the mode of `path` below `directory`.
pub fn change_mode(directory: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<()> {
    let arguments = [word(directory.as_raw_fd()), path.as_ptr() as usize, mode as usize, 0, 0, 0];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_fchmodat, arguments) }?;
    Ok(())
}

/// Reads into `buffer`; 0 at the end.
pub fn read(descriptor: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let arguments =
        [word(descriptor.as_raw_fd()), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: `buffer` is writable for its length.
    unsafe { syscall(libc::SYS_read, arguments) }
}

/// Reads into `buffer` from the start of the file, wherever others have read to.
pub fn read_from_start(descriptor: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let arguments =
        [word(descriptor.as_raw_fd()), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: `buffer` is writable for its length.
    unsafe { syscall(libc::SYS_pread64, arguments) }
}

/// Writes from `buffer`, perhaps less than all of it.
pub fn write(descriptor: BorrowedFd<'_>, buffer: &[u8]) -> Result<usize> {
    let arguments = [word(descriptor.as_raw_fd()), buffer.as_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: `buffer` is readable for its length.
    unsafe { syscall(libc::SYS_write, arguments) }
}

/// Writes all of `buffer`.
pub fn write_all(descriptor: BorrowedFd<'_>, mut buffer: &[u8]) -> Result<()> {
    while !buffer.is_empty() {
        match write(descriptor, buffer) {
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(written) => buffer = buffer.get(written..).unwrap_or_default(),
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A pipe, both ends closed on exec: (read, write).
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: `ends` has room for the two descriptors that the kernel writes.
    unsafe {
        syscall(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, word(libc::O_CLOEXEC), 0, 0, 0, 0])
    }?;
    // SAFETY: both are new descriptors, owned by none.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Makes reads and writes of this end return at once.
pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> Result<()> {
    let fd = word(descriptor.as_raw_fd());
    // SAFETY: F_SETFL takes an int.
    unsafe {
        syscall(libc::SYS_fcntl, [fd, libc::F_SETFL as usize, libc::O_NONBLOCK as usize, 0, 0, 0])
    }?;
    Ok(())
}

/// Makes `to` (0, 1 or 2) another name of `from`, kept over exec. For a child about to exec.
pub fn place_standard(from: i32, to: i32) -> Result<()> {
    debug_assert!((0..3).contains(&to));
    // SAFETY: descriptors 0 to 2 of a process that is about to exec belong to no Rust object: the spawner
    // never wraps them in an owner.
    unsafe { syscall(libc::SYS_dup3, [word(from), word(to), 0, 0, 0, 0]) }?;
    Ok(())
}

/// Marks every descriptor from `first` on as closed on exec.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC as usize;
    // SAFETY: only flags of descriptors change; none is closed in this process.
    unsafe { syscall(libc::SYS_close_range, [first as usize, u32::MAX as usize, flag, 0, 0, 0]) }?;
    Ok(())
}

/// Changes the working directory to `directory`.
pub fn change_directory(path: &CStr) -> Result<()> {
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_chdir, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }?;
    Ok(())
}

/// One descriptor to wait for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    descriptor: i32,
    events: i16,
    ready: i16,
}

impl Poll {
    /// Waits for data (or the end of it) on `descriptor`; `None` is a place that is never ready.
    #[must_use]
    pub fn readable(descriptor: Option<BorrowedFd<'_>>) -> Self {
        let descriptor = descriptor.map_or(-1, |fd| fd.as_raw_fd());
        Self { descriptor, events: libc::POLLIN, ready: 0 }
    }

    /// Waits until `descriptor` takes data.
    #[must_use]
    pub fn writable(descriptor: Option<BorrowedFd<'_>>) -> Self {
        Self { events: libc::POLLOUT, ..Self::readable(descriptor) }
    }

    /// Whether the last wait found it ready, at its end or in error.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready != 0
    }

    /// Whether the last wait found its other side gone.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        self.ready & (libc::POLLHUP | libc::POLLERR) != 0
    }
}

/// Waits until one is ready or `timeout` has passed (`None`: for ever); says how many are ready.
pub fn poll(entries: &mut [Poll], timeout: Option<std::time::Duration>) -> Result<usize> {
    let limit = timeout.map(|time| {
        [time.as_secs(), u64::from(time.subsec_nanos())] // struct timespec
    });
    let arguments = [
        entries.as_mut_ptr() as usize,
        entries.len(),
        limit.as_ref().map_or(0, |limit| limit.as_ptr() as usize),
        0,
        0,
        0,
    ];
    // SAFETY: `entries` has the layout of struct pollfd and is writable; `limit` outlives the call (the
    // kernel may write the time left into it, which is not read).
    match unsafe { syscall(libc::SYS_ppoll, arguments) } {
        Err(Errno(libc::EINTR)) => {
            entries.iter_mut().for_each(|entry| entry.ready = 0);
            Ok(0)
        }
        other => other,
    }
}

/// Removes the name `path`, which is no directory's, from `directory`.
pub fn remove_file(directory: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let arguments = [word(directory.as_raw_fd()), path.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_unlinkat, arguments) }?;
    Ok(())
}

/// Sets the times of what `descriptor` stands for to the beginning of time.
pub fn reset_times(descriptor: BorrowedFd<'_>) -> Result<()> {
    let times = [0u64; 4]; // two struct timespec
    let arguments = [
        word(descriptor.as_raw_fd()),
        c"".as_ptr() as usize,
        times.as_ptr() as usize,
        word(libc::AT_EMPTY_PATH),
        0,
        0,
    ];
    // SAFETY: the string ends in NUL, the times have their layout; both outlive the call.
    unsafe { syscall(libc::SYS_utimensat, arguments) }?;
    Ok(())
}

/// Whether the file system behind `descriptor` has all its blocks free, and all its inodes but one.
pub fn is_empty_file_system(descriptor: BorrowedFd<'_>) -> Result<bool> {
    let mut status = std::mem::MaybeUninit::<libc::statfs64>::zeroed();
    let arguments = [word(descriptor.as_raw_fd()), status.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: `status` has room for the structure.
    unsafe { syscall(libc::SYS_fstatfs, arguments) }?;
    // SAFETY: it was zeroed, and every bit pattern is a valid `statfs64`.
    let status = unsafe { status.assume_init() };
    Ok(status.f_bfree == status.f_blocks && status.f_ffree + 1 == status.f_files)
}

/// Takes the lock of the open file `descriptor` for itself alone, waiting for it; it ends with the file's
/// last descriptor.
pub fn lock(descriptor: BorrowedFd<'_>) -> Result<()> {
    let arguments = [word(descriptor.as_raw_fd()), word(libc::LOCK_EX), 0, 0, 0, 0];
    loop {
        // SAFETY: plain integers.
        match unsafe { syscall(libc::SYS_flock, arguments) } {
            Err(Errno(libc::EINTR)) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Whether it is a regular file.
pub fn is_regular(descriptor: BorrowedFd<'_>) -> Result<bool> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let arguments = [word(descriptor.as_raw_fd()), status.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: `status` has room for the structure.
    unsafe { syscall(libc::SYS_fstat, arguments) }?;
    // SAFETY: it was zeroed, and every bit pattern is a valid `stat`.
    let status = unsafe { status.assume_init() };
    Ok(status.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// A file in memory that has no name, closed on exec, with `content`.
pub fn file_in_memory(content: &[u8]) -> Result<OwnedFd> {
    let arguments = [c"k15".as_ptr() as usize, libc::MFD_CLOEXEC as usize, 0, 0, 0, 0];
    // SAFETY: the name ends in NUL and outlives the call.
    let file = unsafe { syscall(libc::SYS_memfd_create, arguments) }.map(own)?;
    write_all(file.as_fd(), content)?;
    Ok(file)
}

/// A counter to wait for, closed on exec: readable once it was written to.
pub fn event() -> Result<OwnedFd> {
    let flags = word(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_eventfd2, [0, flags, 0, 0, 0, 0]) }.map(own)
}

/// A second name of `descriptor`, at the lowest free number from 3 on.
pub fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    let arguments = [word(descriptor.as_raw_fd()), libc::F_DUPFD_CLOEXEC as usize, 3, 0, 0, 0];
    // SAFETY: F_DUPFD_CLOEXEC takes an int.
    unsafe { syscall(libc::SYS_fcntl, arguments) }.map(own)
}

/// Whether the file at `path` has the extended attribute `name` with the value `value`, of at most 16 bytes.
#[must_use]
pub fn has_attribute(path: &CStr, name: &CStr, value: &[u8]) -> bool {
    let mut found = [0_u8; 16];
    let buffer = found.as_mut_ptr() as usize;
    let arguments = [path.as_ptr() as usize, name.as_ptr() as usize, buffer, found.len(), 0, 0];
    // SAFETY: both names end in NUL; the kernel writes at most as many bytes as `found` has. All outlive the
    // call.
    let length = unsafe { syscall(libc::SYS_getxattr, arguments) };
    length.is_ok_and(|length| found.get(..length) == Some(value))
}

/// Whether this process may write to what is at `path`.
#[must_use]
pub fn may_write(path: &CStr) -> bool {
    let arguments = [word(libc::AT_FDCWD), path.as_ptr() as usize, libc::W_OK as usize, 0, 0, 0];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_faccessat, arguments) }.is_ok()
}
