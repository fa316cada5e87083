//! The run's own file system: made empty, filled with the input files, read when the run is over.
//!
//! It is a detached tmpfs: the spawner holds it by descriptor and never enters it. No process of a run
//! is alive when a file is written or read here, and no path is followed out of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use crate::protocol::Disk;
use crate::sys::{Errno, Result, descriptor, mount};

/// The file system of one run.
pub(super) struct RunFiles {
    pub(super) disk: Disk,
    pub(super) mount: OwnedFd,
}

/// The name of the work directory on it.
const WORK: &CStr = c"work";

impl RunFiles {
    /// An empty file system with a work directory of the run's user.
    pub(super) fn new(disk: Disk) -> Result<Self> {
        let text = |value: u64| CString::new(value.to_string()).map_err(|_| Errno(libc::EINVAL));
        let (size, inodes) = (text(disk.bytes)?, text(disk.files)?);
        let options = [(c"size", &*size), (c"nr_inodes", &*inodes), (c"mode", c"1777")];
        let attributes = mount::attribute::NO_SUID | mount::attribute::NO_DEV;
        let mount = mount::detached(c"tmpfs", &options, attributes)?;
        descriptor::make_directory(Some(mount.as_fd()), WORK, 0o700)?;
        descriptor::change_owner(mount.as_fd(), WORK, disk.user)?;
        Ok(Self { disk, mount })
    }

    /// Adds `content` to the end of the file `path` of the work directory, making it and the directories
    /// on its way.
    pub(super) fn append(&self, path: &CStr, executable: bool, content: &[u8]) -> Result<()> {
        let mut at = descriptor::open(
            Some(self.mount.as_fd()),
            WORK,
            libc::O_DIRECTORY | libc::O_PATH | libc::O_NOFOLLOW,
            0,
        )?;
        let mut parts = path.to_bytes().split(|&byte| byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let name = CString::new(part).map_err(|_| Errno(libc::EINVAL))?;
            if part.is_empty() || part == b"." || part == b".." {
                return Err(Errno(libc::EINVAL));
            }
            if parts.peek().is_some() {
                match descriptor::make_directory(Some(at.as_fd()), &name, 0o755) {
                    Ok(()) => descriptor::change_owner(at.as_fd(), &name, self.disk.user)?,
                    Err(Errno(libc::EEXIST)) => {}
                    Err(errno) => return Err(errno),
                }
                let flags = libc::O_DIRECTORY | libc::O_PATH | libc::O_NOFOLLOW;
                at = descriptor::open(Some(at.as_fd()), &name, flags, 0)?;
                continue;
            }
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
            let mode = if executable { 0o755 } else { 0o644 };
            let file = descriptor::open(Some(at.as_fd()), &name, flags, mode)?;
            descriptor::write_all(file.as_fd(), content)?;
            descriptor::change_owner(file.as_fd(), c"", self.disk.user)?;
        }
        Ok(())
    }

    /// Opens the file `path` of the work directory for reading: a regular file, reached without a link.
    pub(super) fn open(&self, path: &CStr) -> Result<OwnedFd> {
        let work = descriptor::open(
            Some(self.mount.as_fd()),
            WORK,
            libc::O_DIRECTORY | libc::O_PATH | libc::O_NOFOLLOW,
            0,
        )?;
        // Not blocking: opening a named pipe would else wait for a writer.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = descriptor::open_beneath(work.as_fd(), path, flags)?;
        if descriptor::is_regular(file.as_fd())? { Ok(file) } else { Err(Errno(libc::EISDIR)) }
    }
}
