//! The Unix socket: messages of whole frames, with at most one memory file each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result, system};
use crate::frame::SIZE;

fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        let path = path.display().to_string();
        Error::invalid("path", &path, "a path of at most 107 bytes, without a zero byte")
    })
}

fn socket(path: &Path) -> Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
        .map_err(system(path, "make a socket"))
}

/// A socket of mode 0600 that listens at a path where there is nothing yet.
pub fn listen(path: &Path) -> Result<OwnedFd> {
    let (address, socket) = (address(path)?, socket(path)?);
    // Before it is bound: the file is made with this mode, and is never open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(system(path, "set the mode"))?;
    rustix::net::bind(&socket, &address).map_err(system(path, "bind a socket"))?;
    rustix::net::listen(&socket, 128).map_err(system(path, "listen"))?;
    Ok(socket)
}

/// A connection to whoever listens at a path.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let (address, socket) = (address(path)?, socket(path)?);
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(error @ (Errno::NOENT | Errno::CONNREFUSED)) => Err(Error::Disconnected(format!(
            "{}: no store is served here ({error}): its server has not started, or ended",
            path.display()
        ))),
        Err(error) => Err(system(path, "connect")(error)),
    }
}

/// The user at the other end of a connection.
pub fn peer_user(socket: &OwnedFd) -> io::Result<u32> {
    Ok(socket_peercred(socket)?.uid.as_raw())
}

/// The user of this process.
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// How long [`receive`] waits before it says that nothing came.
pub fn set_patience(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(socket, Timeout::Recv, Some(patience))?)
}

/// Send one message.
pub fn send(socket: &OwnedFd, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file]);
    if let Some(files) = &files {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    loop {
        let bytes = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(|_| ())?),
        }
    }
}

/// One message and the files that came with it. No bytes: the other end is closed. What is longer
/// than a frame comes as one byte more than a frame.
pub fn receive(
    socket: &impl AsFd,
    bytes: &mut [u8; SIZE + 1],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut into, &mut control, flags)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }
    Ok((received.bytes, files))
}
