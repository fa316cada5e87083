//! A pair of connected sockets that keep messages apart and carry descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use super::raw::{syscall, word};
use super::{Errno, Result};

/// The most descriptors that one message carries.
pub const MAX_DESCRIPTORS: usize = 5;

/// Room for a control message with [`MAX_DESCRIPTORS`]: header of 16 bytes, then the ints.
#[repr(C, align(8))]
#[derive(Default)]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    descriptors: [RawFd; MAX_DESCRIPTORS],
}

const HEADER: usize = 16;

/// Two connected sockets, closed on exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    let kind = word(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC);
    let arguments = [libc::AF_UNIX as usize, kind, 0, ends.as_mut_ptr() as usize, 0, 0];
    // SAFETY: `ends` has room for the two descriptors that the kernel writes.
    unsafe { syscall(libc::SYS_socketpair, arguments) }?;
    // SAFETY: both are new descriptors, owned by none.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn header(parts: &mut [libc::iovec], control: &mut Control, room: usize) -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: parts.as_mut_ptr(),
        msg_iovlen: parts.len(),
        msg_control: ptr::from_mut(control).cast(),
        msg_controllen: room,
        msg_flags: 0,
    }
}

/// Sends one message of `parts` joined, with copies of `descriptors`.
///
/// # Errors
///
/// `EPIPE` or `ECONNRESET` if the other end is gone, `EMSGSIZE` if the message is too long.
pub fn send(
    socket: BorrowedFd<'_>,
    parts: [&[u8]; 3],
    descriptors: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut parts = parts
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    let count = descriptors.len().min(MAX_DESCRIPTORS);
    let length = HEADER + 4 * count;
    let mut control =
        Control { length, level: libc::SOL_SOCKET, kind: libc::SCM_RIGHTS, ..Control::default() };
    for (place, descriptor) in control.descriptors.iter_mut().zip(descriptors) {
        *place = descriptor.as_raw_fd();
    }
    let room = if count == 0 { 0 } else { length.next_multiple_of(8) };
    let message = header(&mut parts, &mut control, room);
    let arguments = [
        word(socket.as_raw_fd()),
        (&raw const message) as usize,
        libc::MSG_NOSIGNAL as usize,
        0,
        0,
        0,
    ];
    loop {
        // SAFETY: `message` points at the parts and at the control block, all alive and as long as said;
        // the kernel only reads them.
        match unsafe { syscall(libc::SYS_sendmsg, arguments) } {
            Err(Errno(libc::EINTR)) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Makes [`receive`] fail with `EAGAIN` when nothing came within `time`.
pub fn set_patience(socket: BorrowedFd<'_>, time: Duration) -> Result<()> {
    let value = [time.as_secs(), u64::from(time.subsec_micros())]; // struct timeval
    let arguments = [
        word(socket.as_raw_fd()),
        word(libc::SOL_SOCKET),
        word(libc::SO_RCVTIMEO),
        value.as_ptr() as usize,
        size_of_val(&value),
        0,
    ];
    // SAFETY: `value` has the layout of struct timeval and outlives the call.
    unsafe { syscall(libc::SYS_setsockopt, arguments) }?;
    Ok(())
}

/// Descriptors that came with a message.
pub type Received = [Option<OwnedFd>; MAX_DESCRIPTORS];

/// Receives one message into `buffer`: its length (0: the other end is gone) and its descriptors.
///
/// # Errors
///
/// `EMSGSIZE` if `buffer` is too small for the message, `EAGAIN` as [`set_patience`] says.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Received)> {
    let mut parts = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
    let mut control = Control::default();
    let mut message = header(&mut parts, &mut control, size_of::<Control>());
    let arguments = [
        word(socket.as_raw_fd()),
        (&raw mut message) as usize,
        libc::MSG_CMSG_CLOEXEC as usize,
        0,
        0,
        0,
    ];
    let length = loop {
        // SAFETY: `message` points at `buffer` and the control block, both writable and as long as said.
        match unsafe { syscall(libc::SYS_recvmsg, arguments) } {
            Err(Errno(libc::EINTR)) => {}
            other => break other?,
        }
    };
    let (flags, controlled) = (message.msg_flags, message.msg_controllen);
    // SAFETY: the kernel has written `control` through the pointer in `message`.
    let control = unsafe { (&raw const control).read_volatile() };
    let mut received = Received::default();
    if controlled >= HEADER && control.kind == libc::SCM_RIGHTS {
        let count = (control.length.saturating_sub(HEADER) / 4).min(MAX_DESCRIPTORS);
        for (place, &descriptor) in received.iter_mut().zip(&control.descriptors).take(count) {
            // SAFETY: the kernel has just installed it for this process, and nobody else owns it.
            *place = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    if flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Errno(libc::EMSGSIZE));
    }
    Ok((length, received))
}
