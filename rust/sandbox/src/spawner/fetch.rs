//! Sends the files that an order wants of a run that is over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::files::RunFiles;
use super::order::Order;
use crate::Result;
use crate::error::Step;
use crate::protocol::{ABSENT, FETCHED, MAX_PIECE, NOT_A_FILE, PIECE, TOO_LONG};
use crate::sys::{Errno, descriptor, socket};
use crate::wire::Writer;

/// Adds what became of each wanted file to the answer, sending the content ahead of it.
pub(super) fn send_wanted(
    socket: BorrowedFd<'_>,
    files: Option<&RunFiles>,
    order: &Order<'_>,
    answer: &mut Writer,
) -> Result<()> {
    let mut left = order.most_bytes;
    let mut piece = vec![0; if order.wanted.is_empty() { 0 } else { MAX_PIECE }];
    for (index, name) in (0u32..).zip(&order.wanted) {
        let state = match files.map(|files| files.open(name)) {
            Some(Ok(file)) => send(socket, index, &file, &mut piece, &mut left)?,
            Some(Err(Errno(libc::ENOENT))) | None => ABSENT,
            Some(Err(_)) => NOT_A_FILE,
        };
        answer.byte(state);
    }
    Ok(())
}

/// Sends the content of one file, which may be as long as `left`: how that went.
fn send(
    socket: BorrowedFd<'_>,
    index: u32,
    file: &OwnedFd,
    piece: &mut [u8],
    left: &mut u64,
) -> Result<u8> {
    loop {
        let length = match descriptor::read(file.as_fd(), piece) {
            Ok(0) => return Ok(FETCHED),
            Ok(length) => length,
            Err(_) => return Ok(NOT_A_FILE),
        };
        let Some(rest) = left.checked_sub(length as u64) else { return Ok(TOO_LONG) };
        *left = rest;
        let mut head = Writer::new(PIECE);
        head.word(index);
        let content = piece.get(..length).unwrap_or_default();
        socket::send(socket, [head.as_slice(), content, &[]], &[]).step(|| "send a file".into())?;
    }
}
