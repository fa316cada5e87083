//! The run's own file system: made empty, filled with the input files, read when the run is over.
//!
//! It is a detached tmpfs: the spawner holds it by descriptor and never enters it. No process of a run
//! is alive when a file is written or read here, and no path is followed out of it.
//!
//! # Design
//!
//! A new tmpfs costs some 25 µs, a second mount of one that is there 5. So one that is empty again after
//! a run is used for the next: the files that were staged are taken away, and if the file system
//! then counts every block and every inode but the root's as free, nothing of the run is left in it. The
//! root belongs to no run's user, so its attributes cannot be changed by one.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::overlay::{RUN_TMP, UPPER, WORK};
use super::user_namespace;
use crate::protocol::Disk;
use crate::sys::{Errno, Result, descriptor, mount};

/// The most staged files that are taken away one by one; with more, the file system is dropped.
const MOST_UNLINKED: usize = 8;

/// A file system for runs of one size.
pub(super) struct RunFiles {
    disk: Disk,
    mount: OwnedFd,
    /// The run's /tmp, where that is not the whole.
    tmp: Option<OwnedFd>,
    /// What was staged for the next run; `None` once it is too much to take away by name.
    staged: Option<Vec<CString>>,
}

impl RunFiles {
    /// A file system that holds an empty /tmp, and beside it what an overlay needs if `is_overlaid`.
    pub(super) fn new(disk: Disk, is_overlaid: bool) -> Result<Self> {
        let text = |value: u64| CString::new(value.to_string()).map_err(|_| Errno(libc::EINVAL));
        let (size, inodes) = (text(disk.bytes)?, text(disk.files)?);
        let options = [(c"size", &*size), (c"nr_inodes", &*inodes), (c"mode", c"1777")];
        let attributes = mount::attribute::NO_SUID | mount::attribute::NO_DEV;
        let mount = mount::detached(c"tmpfs", &options, attributes)?;
        // Where the run's user is ours, its root is the run's, and what it did to that would stay.
        let staged = (!user_namespace::is_entered()).then(Vec::new);
        if !is_overlaid {
            return Ok(Self { disk, mount, tmp: None, staged });
        }
        for (path, mode) in [(UPPER, 0o777), (WORK, 0o700), (RUN_TMP, 0o1777)] {
            descriptor::make_directory(Some(mount.as_fd()), path, 0o700)?;
            descriptor::change_mode(mount.as_fd(), path, mode)?;
        }
        let tmp = Some(descriptor::open(Some(mount.as_fd()), RUN_TMP, libc::O_DIRECTORY, 0)?);
        Ok(Self { disk, mount, tmp, staged: None })
    }

    /// The directory that the run sees as /tmp.
    pub(super) fn base(&self) -> BorrowedFd<'_> {
        self.tmp.as_ref().unwrap_or(&self.mount).as_fd()
    }

    /// Notes that more was put into it than is taken away by name.
    pub(super) fn is_filled(&mut self) {
        self.staged = None;
    }

    /// Whether it is of this size.
    pub(super) fn is_for(&self, disk: Disk) -> bool {
        self.disk == disk
    }

    /// A mount of it for one run. Where the kernel does not let one be made of a detached mount (before
    /// Linux 6.15), it is the only one: then the file system serves one run.
    pub(super) fn mount_for_run(&mut self) -> Result<OwnedFd> {
        if let Ok(view) = mount::second_view(self.mount.as_fd()) {
            return Ok(view);
        }
        self.staged = None;
        descriptor::duplicate(self.mount.as_fd())
    }

    /// Adds `content` to the end of the file `path`, making it and the directories on its way. They
    /// belong to `user`.
    pub(super) fn append(
        &mut self,
        path: &CStr,
        user: u32,
        executable: bool,
        content: &[u8],
    ) -> Result<()> {
        let mut at: Option<OwnedFd> = None;
        let mut parts = path.to_bytes().split(|&byte| byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let name = CString::new(part).map_err(|_| Errno(libc::EINVAL))?;
            if part.is_empty() || part == b"." || part == b".." {
                return Err(Errno(libc::EINVAL));
            }
            let directory = at.as_ref().or(self.tmp.as_ref()).unwrap_or(&self.mount).as_fd();
            if parts.peek().is_some() {
                self.staged = None;
                match descriptor::make_directory(Some(directory), &name, 0o755) {
                    Ok(()) => descriptor::change_owner(directory, &name, user)?,
                    Err(Errno(libc::EEXIST)) => {}
                    Err(errno) => return Err(errno),
                }
                let flags = libc::O_DIRECTORY | libc::O_PATH | libc::O_NOFOLLOW;
                at = Some(descriptor::open(Some(directory), &name, flags, 0)?);
                continue;
            }
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
            let mode = if executable { 0o755 } else { 0o644 };
            let file = descriptor::open(Some(directory), &name, flags, mode)?;
            descriptor::write_all(file.as_fd(), content)?;
            descriptor::change_owner(file.as_fd(), c"", user)?;
            self.staged = self.staged.take().filter(|staged| staged.len() < MOST_UNLINKED);
            if let Some(staged) = &mut self.staged {
                staged.push(name);
            }
        }
        Ok(())
    }

    /// Opens the file `path` for reading: a regular file, reached without a link.
    pub(super) fn open(&self, path: &CStr) -> Result<OwnedFd> {
        // Not blocking: opening a named pipe would else wait for a writer.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = descriptor::open_beneath(self.base(), path, flags)?;
        if descriptor::is_regular(file.as_fd())? { Ok(file) } else { Err(Errno(libc::EISDIR)) }
    }

    /// Itself, if it is as good as new; called when the run is gone and its mount closed.
    pub(super) fn renew(mut self) -> Option<Self> {
        for name in self.staged.take()? {
            // The run may have removed it, or put a directory in its place, which the count will tell.
            let _ = descriptor::remove_file(self.mount.as_fd(), &name);
        }
        if !descriptor::is_empty_file_system(self.mount.as_fd()).ok()? {
            return None;
        }
        descriptor::reset_times(self.mount.as_fd()).ok()?;
        self.staged = Some(Vec::new());
        Some(self)
    }
}
