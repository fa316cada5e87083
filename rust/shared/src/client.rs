//! A store that another process has open: connections, one for each thread that asks at a time.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::{Common, Connection};
use crate::error::{Error, Result};
use crate::local::closed;

/// The client. Its leases end when it is closed or dropped, or its process ends.
pub struct Client {
    common: Arc<Common>,
    /// Connections that wait for a call; none once it is closed.
    idle: Mutex<Option<Vec<Connection>>>,
    waits: AtomicBool,
    process: u32,
}

impl Client {
    /// Connect to the server at a path. `interrupted` is asked ten times a second, while an answer
    /// is waited for, whether to stop waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if nobody serves there, [`Error::Refused`] if it is another user or
    /// speaks another version.
    pub fn open(path: &Path, interrupted: fn() -> bool) -> Result<Self> {
        let path: PathBuf = path.to_owned();
        let common = Arc::new(Common { path, session: AtomicU64::new(0), interrupted });
        let first = Connection::open(Arc::clone(&common))?;
        let waits = AtomicBool::new(first.waits());
        let idle = Mutex::new(Some(vec![first]));
        Ok(Self { common, idle, waits, process: process::id() })
    }

    /// Where the server is.
    pub fn path(&self) -> &Path {
        &self.common.path
    }

    /// Whether calls that find the store full are to be made again until they do not.
    pub fn blocks(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Do something over a connection that no other thread uses meanwhile.
    pub fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        if self.process != process::id() {
            return Err(Error::invalid(
                "store",
                &format!("connected by process {}, of which this is a copy", self.process),
                "one that this process has connected itself",
            ));
        }
        let idle = self.lock().as_mut().ok_or_else(closed)?.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::open(Arc::clone(&self.common))?,
        };
        let done = work(&mut connection);
        self.waits.store(connection.waits(), Ordering::Relaxed);
        if !connection.is_broken()
            && let Some(idle) = self.lock().as_mut()
        {
            idle.push(connection);
        }
        done
    }

    /// Close the connections. Calls under way end first; later ones are refused.
    pub fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
