//! Puts a kept work directory into a run's file system, and takes it from there again.
//!
//! No process of a run is alive when either is done. What is put there is made anew by name in a file
//! system that was empty, so no path meets a link that somebody else has made: links have nothing below
//! them. What is taken is reached directory by directory, by descriptor, links not followed, within bounds
//! on bytes, depth and the length of paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::files::RunFiles;
use crate::Result;
use crate::error::Step;
use crate::protocol::{
    ENTRY, Entry, EntryKind, KEPT, MAX_PIECE, MORE, TOO_DEEP, TOO_LARGE, UNREADABLE,
};
use crate::sys::{self, Errno, descriptor, directory, socket};
use crate::tree::{MAX_DEPTH, MAX_PATH, Time, in_pages, link_size};
use crate::wire::Writer;

/// A work directory that is being put into the next run's file system.
#[derive(Default)]
pub(super) struct Staging {
    /// The file whose content is coming.
    open: Option<OwnedFd>,
    /// What the last entry, and directories with what is in them, get when they are whole.
    last: Option<(CString, u32, Time)>,
    directories: Vec<(CString, u32, Time)>,
}

impl Staging {
    /// Makes an entry, for `user`. What it lies in is there already.
    pub(super) fn add(
        &mut self,
        files: &mut RunFiles,
        user: u32,
        entry: &Entry<'_>,
    ) -> sys::Result<()> {
        self.settle(files, user)?;
        files.is_filled();
        let (base, path) = (files.base(), entry.path);
        let attributes = (path.to_owned(), entry.mode, entry.modified);
        match entry.kind {
            EntryKind::Directory => {
                descriptor::make_directory(Some(base), path, 0o700)?;
                self.directories.push(attributes);
                return Ok(());
            }
            EntryKind::Link => {
                let says = CString::new(entry.content).map_err(|_| Errno(libc::EINVAL))?;
                directory::make_link(base, path, &says)?;
            }
            EntryKind::File => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let file = descriptor::open(Some(base), path, flags, 0o600)?;
                descriptor::write_all(file.as_fd(), entry.content)?;
                self.open = Some(file);
            }
        }
        self.last = Some(attributes);
        Ok(())
    }

    /// Adds to the file that was made last.
    pub(super) fn add_more(&self, content: &[u8]) -> sys::Result<()> {
        let file = self.open.as_ref().ok_or(Errno(libc::EINVAL))?;
        descriptor::write_all(file.as_fd(), content)
    }

    /// Ends it. Directories come last, from the innermost on: filling one changes its times.
    pub(super) fn finish(&mut self, files: &RunFiles, user: u32) -> sys::Result<()> {
        self.settle(files, user)?;
        while let Some((path, mode, modified)) = self.directories.pop() {
            descriptor::change_mode(files.base(), &path, mode)?;
            directory::set_times(files.base(), &path, modified)?;
            descriptor::change_owner(files.base(), &path, user)?;
        }
        Ok(())
    }

    fn settle(&mut self, files: &RunFiles, user: u32) -> sys::Result<()> {
        let Some((path, mode, modified)) = self.last.take() else { return Ok(()) };
        if self.open.take().is_some() {
            // Of a link the permissions mean nothing, and to set them would follow it.
            descriptor::change_mode(files.base(), &path, mode)?;
        }
        directory::set_times(files.base(), &path, modified)?;
        descriptor::change_owner(files.base(), &path, user)
    }
}

/// Why a work directory is not kept.
enum Stop {
    /// What the slot is told.
    Refused(u8),
    /// The slot is gone.
    Broken(crate::Error),
}

impl From<Errno> for Stop {
    fn from(_: Errno) -> Self {
        Self::Refused(UNREADABLE)
    }
}

/// Sends what lies in the work directory, of `most_bytes` at most: how that went.
pub(super) fn send_all(
    socket: BorrowedFd<'_>,
    files: Option<&RunFiles>,
    most_bytes: u64,
) -> Result<u8> {
    let Some(files) = files else { return Ok(UNREADABLE) };
    let mut taker = Taker { socket, left: most_bytes, piece: vec![0; MAX_PIECE] };
    let taken = descriptor::open(Some(files.base()), c".", libc::O_DIRECTORY, 0)
        .map_err(Stop::from)
        .and_then(|directory| taker.take_directory(&directory, b"", 0));
    match taken {
        Ok(()) => Ok(KEPT),
        Err(Stop::Refused(why)) => Ok(why),
        Err(Stop::Broken(error)) => Err(error),
    }
}

struct Taker<'a> {
    socket: BorrowedFd<'a>,
    left: u64,
    piece: Vec<u8>,
}

impl Taker<'_> {
    /// Sends what is in `here`, whose path is `prefix`, with a slash after it if it has one.
    fn take_directory(&mut self, here: &OwnedFd, prefix: &[u8], depth: usize) -> Result<(), Stop> {
        for name in directory::names(here.as_fd())? {
            let path = [prefix, name.to_bytes()].concat();
            if path.len() > MAX_PATH || depth >= MAX_DEPTH {
                return Err(Stop::Refused(TOO_DEEP));
            }
            let status = directory::status(here.as_fd(), &name)?;
            let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
            let path = CString::new(path).map_err(|_| Stop::Refused(UNREADABLE))?;
            let entry = |kind, content| Entry {
                kind,
                mode: status.mode & 0o777,
                modified: status.modified,
                path: &path,
                content,
            };
            match status.mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    self.send(&entry(EntryKind::Directory, b""))?;
                    let flags = flags | libc::O_DIRECTORY;
                    let below = descriptor::open(Some(here.as_fd()), &name, flags, 0)?;
                    let prefix = [path.to_bytes(), b"/"].concat();
                    self.take_directory(&below, &prefix, depth + 1)?;
                }
                libc::S_IFLNK => {
                    let says = directory::read_link(here.as_fd(), &name)?;
                    self.count(link_size(&says))?;
                    self.send(&entry(EntryKind::Link, &says))?;
                }
                libc::S_IFREG => {
                    let file = descriptor::open(Some(here.as_fd()), &name, flags, 0)?;
                    self.send(&entry(EntryKind::File, b""))?;
                    self.take_file(&file)?;
                }
                // Pipes and sockets are nothing without the processes that had them open.
                _ => {}
            }
        }
        Ok(())
    }

    fn take_file(&mut self, file: &OwnedFd) -> Result<(), Stop> {
        let mut piece = std::mem::take(&mut self.piece);
        loop {
            let length = descriptor::read(file.as_fd(), &mut piece)?;
            if length == 0 {
                break;
            }
            self.count(in_pages(length as u64))?;
            let head = Writer::new(MORE);
            let content = piece.get(..length).unwrap_or_default();
            self.send_parts(&head, content)?;
        }
        self.piece = piece;
        Ok(())
    }

    /// Takes off what the next run's disk will have to hold.
    fn count(&mut self, size: u64) -> Result<(), Stop> {
        let left = self.left.checked_sub(size);
        self.left = left.ok_or(Stop::Refused(TOO_LARGE))?;
        Ok(())
    }

    fn send(&self, entry: &Entry<'_>) -> Result<(), Stop> {
        let mut head = Writer::new(ENTRY);
        entry.write(&mut head);
        self.send_parts(&head, &[])
    }

    fn send_parts(&self, head: &Writer, content: &[u8]) -> Result<(), Stop> {
        socket::send(self.socket, [head.as_slice(), content, &[]], &[])
            .step(|| "send the work directory".into())
            .map_err(Stop::Broken)
    }
}
