//! The run's standard streams, from our side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::Result;
use crate::error::Step;
use crate::sys::{Errno, descriptor};

/// What the run reads from its standard input.
pub(super) struct Feed<'a> {
    left: &'a [u8],
    /// The end that we write to, while there is something to write.
    end: Option<OwnedFd>,
}

impl<'a> Feed<'a> {
    /// The feed and the end that the run reads from, unless there is nothing to read. What fits into a
    /// pipe is in it already.
    pub(super) fn new(content: &'a [u8]) -> Result<(Self, Option<OwnedFd>)> {
        if content.is_empty() {
            return Ok((Self { left: content, end: None }, None));
        }
        let (theirs, ours) = descriptor::pipe().step(|| "make a pipe".into())?;
        descriptor::set_nonblocking(ours.as_fd()).step(|| "set up a pipe".into())?;
        let mut feed = Self { left: content, end: Some(ours) };
        feed.write_some();
        Ok((feed, Some(theirs)))
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.end.is_some()
    }

    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.end.as_ref().map(AsFd::as_fd)
    }

    /// Writes what the pipe takes. A run that closed its end wants no more: that is no error.
    pub(super) fn write_some(&mut self) {
        while let Some(end) = &self.end {
            match descriptor::write(end.as_fd(), self.left) {
                Ok(written) => self.left = self.left.get(written..).unwrap_or_default(),
                Err(Errno(libc::EAGAIN)) => return,
                Err(Errno(libc::EINTR)) => continue,
                Err(_) => self.left = &[],
            }
            if self.left.is_empty() {
                self.end = None;
            }
        }
    }
}

/// What the run writes to one stream.
pub(super) struct Capture {
    /// What is kept of it.
    pub(super) bytes: Vec<u8>,
    limit: usize,
    over: bool,
    end: Option<OwnedFd>,
}

impl Capture {
    /// The capture and the end that the run writes to.
    pub(super) fn new(limit: u64) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = descriptor::pipe().step(|| "make a pipe".into())?;
        descriptor::set_nonblocking(ours.as_fd()).step(|| "set up a pipe".into())?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok((Self { bytes: Vec::new(), limit, over: false, end: Some(ours) }, theirs))
    }

    /// Whether more was written than is kept.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The end to wait on, until the run has closed its own.
    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.end.as_ref().filter(|_| !self.over).map(AsFd::as_fd)
    }

    /// Reads what is in the pipe, as long as it is within the limit. `buffer` is scratch.
    pub(super) fn read_what_is_there(&mut self, buffer: &mut [u8]) -> Result<()> {
        while let Some(end) = self.end.as_ref().filter(|_| !self.over) {
            match descriptor::read(end.as_fd(), buffer) {
                Ok(0) => self.end = None,
                Ok(length) => {
                    let read = buffer.get(..length).unwrap_or_default();
                    let room = self.limit - self.bytes.len();
                    self.over = length > room;
                    self.bytes.extend_from_slice(read.get(..length.min(room)).unwrap_or_default());
                }
                Err(Errno(libc::EAGAIN)) => break,
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(errno).step(|| "read the run's output".into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pipe takes without anyone reading.
    const PIPE: usize = 64 << 10;

    #[test]
    fn output_within_the_limit_is_kept_whole() {
        let (mut capture, end) = Capture::new(5).unwrap();
        descriptor::write_all(end.as_fd(), b"12345").unwrap();
        drop(end);
        capture.read_what_is_there(&mut [0; 64]).unwrap();
        assert_eq!((capture.bytes.as_slice(), capture.is_over()), (&b"12345"[..], false));
    }

    #[test]
    fn output_over_the_limit_is_cut_there() {
        let (mut capture, end) = Capture::new(4).unwrap();
        descriptor::write_all(end.as_fd(), b"12345").unwrap();
        capture.read_what_is_there(&mut [0; 64]).unwrap();
        assert_eq!((capture.bytes.as_slice(), capture.is_over()), (&b"1234"[..], true));
        assert!(capture.waiting().is_none());
    }

    #[test]
    fn a_long_input_is_fed_in_pieces_and_then_closed() {
        let content = vec![7; 3 * PIPE + 1];
        let (mut feed, end) = Feed::new(&content).unwrap();
        let end = end.unwrap();
        let mut read = Vec::new();
        let mut buffer = vec![0; PIPE];
        loop {
            match descriptor::read(end.as_fd(), &mut buffer).unwrap() {
                0 => break,
                length => read.extend_from_slice(&buffer[..length]),
            }
            feed.write_some();
        }
        assert!(read == content && !feed.is_waiting());
    }
}
