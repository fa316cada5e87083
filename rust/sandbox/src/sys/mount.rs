//! Mounts, by descriptor where the kernel allows it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::Result;
use super::descriptor::own;
use super::raw::{setup_key, syscall, word};

/// `MOUNT_ATTR_*` of <linux/mount.h>.
pub mod attribute {
    /// No writes.
    pub const READ_ONLY: u64 = 0x1;
    /// Set-user-id bits count for nothing.
    pub const NO_SUID: u64 = 0x2;
    /// Device nodes are dead.
    pub const NO_DEV: u64 = 0x4;
    /// No exec.
    pub const NO_EXEC: u64 = 0x8;
}

const FSOPEN_CLOEXEC: usize = 1;
const FSMOUNT_CLOEXEC: usize = 1;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;
const MOVE_MOUNT_F_EMPTY_PATH: usize = 4;
const OPEN_TREE_CLONE: i32 = 1;
const AT_RECURSIVE: i32 = 0x8000;

/// A new file system that is mounted nowhere yet: a directory that only the descriptor's owner sees.
pub fn detached(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Result<OwnedFd> {
    let key = setup_key();
    // SAFETY: `kind` ends in NUL and outlives the call.
    let context = unsafe {
        syscall(libc::SYS_fsopen, [kind.as_ptr() as usize, FSOPEN_CLOEXEC, 0, 0, 0, key])
    }
    .map(own)?;
    let fd = word(context.as_raw_fd());
    for (name, value) in options {
        let (name, value) = (name.as_ptr() as usize, value.as_ptr() as usize);
        // SAFETY: both strings end in NUL and outlive the call.
        unsafe { syscall(libc::SYS_fsconfig, [fd, FSCONFIG_SET_STRING, name, value, 0, key]) }?;
    }
    // SAFETY: the command takes no strings; attributes are plain bits.
    unsafe {
        syscall(libc::SYS_fsconfig, [fd, FSCONFIG_CMD_CREATE, 0, 0, 0, key])?;
        let attributes = usize::try_from(attributes).unwrap_or(0);
        syscall(libc::SYS_fsmount, [fd, FSMOUNT_CLOEXEC, attributes, 0, 0, key]).map(own)
    }
}

/// Puts a detached mount onto `target`.
pub fn attach(mount: BorrowedFd<'_>, target: &CStr) -> Result<()> {
    let arguments = [
        word(mount.as_raw_fd()),
        c"".as_ptr() as usize,
        word(libc::AT_FDCWD),
        target.as_ptr() as usize,
        MOVE_MOUNT_F_EMPTY_PATH,
        setup_key(),
    ];
    // SAFETY: both strings end in NUL and outlive the call.
    unsafe { syscall(libc::SYS_move_mount, arguments) }?;
    Ok(())
}

/// A detached second view of what is at `source`, without the mounts below it.
pub fn view(source: &CStr) -> Result<OwnedFd> {
    let flags = word(OPEN_TREE_CLONE | libc::O_CLOEXEC);
    let arguments = [word(libc::AT_FDCWD), source.as_ptr() as usize, flags, 0, 0, setup_key()];
    // SAFETY: `source` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_open_tree, arguments) }.map(own)
}

/// A detached second view of what is at `source`, with the mounts below it.
pub fn view_of_all(source: &CStr) -> Result<OwnedFd> {
    let flags = word(OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC);
    let arguments = [word(libc::AT_FDCWD), source.as_ptr() as usize, flags, 0, 0, setup_key()];
    // SAFETY: `source` ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_open_tree, arguments) }.map(own)
}

/// A detached second view of the root of a mount, given by a descriptor of it.
pub fn second_view(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = word(OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH);
    let fd = word(mount.as_raw_fd());
    let arguments = [fd, c"".as_ptr() as usize, flags, 0, 0, setup_key()];
    // SAFETY: the string ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_open_tree, arguments) }.map(own)
}

/// Sets attributes of a mount, given by a descriptor of it.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: u64) -> Result<()> {
    change(mount, attributes, 0)
}

/// Sets attributes of a mount, given by a descriptor of it, and of those below it.
pub fn set_attributes_of_all(mount: BorrowedFd<'_>, attributes: u64) -> Result<()> {
    change(mount, attributes, AT_RECURSIVE)
}

fn change(mount: BorrowedFd<'_>, attributes: u64, flags: i32) -> Result<()> {
    let change = [attributes, 0, 0, 0]; // struct mount_attr: set, clear, propagation, user namespace
    let arguments = [
        word(mount.as_raw_fd()),
        c"".as_ptr() as usize,
        word(libc::AT_EMPTY_PATH | flags),
        change.as_ptr() as usize,
        size_of_val(&change),
        setup_key(),
    ];
    // SAFETY: the layout is struct mount_attr's; all outlive the call.
    unsafe { syscall(libc::SYS_mount_setattr, arguments) }?;
    Ok(())
}

/// Makes every mount of this namespace private: none of ours shows on the host, none of the host's here.
pub fn make_all_private() -> Result<()> {
    let change = [0, 0, libc::MS_PRIVATE, 0];
    let arguments = [
        word(libc::AT_FDCWD),
        c"/".as_ptr() as usize,
        word(AT_RECURSIVE),
        change.as_ptr() as usize,
        size_of_val(&change),
        setup_key(),
    ];
    // SAFETY: the layout is struct mount_attr's; all outlive the call.
    unsafe { syscall(libc::SYS_mount_setattr, arguments) }?;
    Ok(())
}

/// Mounts the processes of this pid namespace at `target`: read-only, and of other users nothing.
pub fn mount_processes(target: &CStr) -> Result<()> {
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let arguments = [
        c"proc".as_ptr() as usize,
        target.as_ptr() as usize,
        c"proc".as_ptr() as usize,
        usize::try_from(flags).unwrap_or(0),
        c"subset=pid,hidepid=2".as_ptr() as usize,
        setup_key(),
    ];
    // SAFETY: all strings end in NUL and outlive the call.
    unsafe { syscall(libc::SYS_mount, arguments) }?;
    Ok(())
}

/// Takes away the mount that lies on `target`; it ends when nobody uses it any more.
pub fn detach(target: &CStr) -> Result<()> {
    let flags = word(libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW);
    // SAFETY: the string ends in NUL and outlives the call.
    unsafe { syscall(libc::SYS_umount2, [target.as_ptr() as usize, flags, 0, 0, 0, setup_key()]) }?;
    Ok(())
}

/// Makes the working directory, which must be a mount, the root, and drops the old root.
pub fn pivot_into_working_directory() -> Result<()> {
    let here = c".".as_ptr() as usize;
    // SAFETY: the strings end in NUL and outlive the calls.
    unsafe {
        syscall(libc::SYS_pivot_root, [here, here, 0, 0, 0, setup_key()])?;
        syscall(libc::SYS_umount2, [here, libc::MNT_DETACH as usize, 0, 0, 0, setup_key()])?;
    }
    super::descriptor::change_directory(c"/")
}
