//! Serving the store of this process on a Unix socket: a thread a connection.
//!
//! # Design
//!
//! A lock file beside the socket decides who serves a path. Whoever has it may remove what a server
//! that died has left there; without it two servers that start at once could each remove the
//! other's fresh socket.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, shutdown};

use crate::error::{Error, Result, system};
use crate::local::LocalStore;
use crate::peer;
use crate::session::Sessions;
use crate::socket;

/// A served store. It is served until this is closed or dropped.
pub struct Server {
    path: PathBuf,
    lock: Option<File>,
    listener: Arc<OwnedFd>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serve a store at a path, on a socket that only this user can connect to.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if another server has the path, or something there is no socket,
    /// [`Error::System`] if the system refuses.
    pub fn start(store: Arc<LocalStore>, path: &Path) -> Result<Self> {
        let lock = take(path)?;
        remove_stale(path)?;
        let listener = Arc::new(socket::listen(path)?);
        let stopping = Arc::new(AtomicBool::new(false));
        let accepting = {
            let (listener, stopping) = (Arc::clone(&listener), Arc::clone(&stopping));
            let accept = move || accept(&listener, &store, &stopping);
            let thread = thread::Builder::new().name("k15-store".into());
            Some(thread.spawn(accept).map_err(system(path, "start a thread"))?)
        };
        Ok(Self { path: path.to_owned(), lock: Some(lock), listener, stopping, accepting })
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Take no more requests, let those under way end, close every connection and remove the
    /// socket. The store stays open.
    pub fn close(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.stopping.store(true, Ordering::Release);
        shutdown(&*self.listener, Shutdown::Both).ok();
        accepting.join().ok();
        fs::remove_file(&self.path).ok();
        self.lock = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// The lock on a path.
fn take(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::options().create(true).append(true).open(&name);
    let lock = lock.map_err(system(Path::new(&name), "open"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(Error::Refused(format!(
            "{}: another server serves a store here: close it first, or take another path",
            path.display()
        ))),
        Err(error) => Err(system(Path::new(&name), "lock")(error)),
    }
}

/// Remove the socket of a server that died. The lock says that none lives.
fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            fs::remove_file(path).map_err(system(path, "remove a stale socket"))
        }
        Ok(_) => Err(Error::Refused(format!(
            "{}: there is something that is not a socket: it is left alone, take another path",
            path.display()
        ))),
        Err(_) => Ok(()),
    }
}

fn accept(listener: &OwnedFd, store: &Arc<LocalStore>, stopping: &AtomicBool) {
    let sessions = Arc::new(Sessions::new());
    let mut connections: Vec<(Arc<OwnedFd>, JoinHandle<()>)> = Vec::new();
    while !stopping.load(Ordering::Acquire) {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let (own, store, sessions) =
                    (Arc::clone(&socket), Arc::clone(store), Arc::clone(&sessions));
                let serve = move || {
                    peer::serve(&own, &store, &sessions);
                    shutdown(&*own, Shutdown::Both).ok();
                };
                let thread = thread::Builder::new().name("k15-store-client".into());
                connections.retain(|(_, thread)| !thread.is_finished());
                if let Ok(thread) = thread.spawn(serve) {
                    connections.push((socket, thread));
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            // No more descriptors or memory: connections that end give some back.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
    for (socket, thread) in connections {
        // Reading only: the answer to what is under way can still be sent.
        shutdown(&*socket, Shutdown::Read).ok();
        thread.join().ok();
    }
}
