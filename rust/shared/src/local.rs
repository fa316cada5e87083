//! The store of this process, for its threads and for those who are served.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k15_core::store::{Options, Store, WhenFull};

use crate::error::{Error, Result};

/// A store behind a lock, and who waits for room in it.
pub struct LocalStore {
    store: Mutex<Option<Store>>,
    room: Condvar,
    blocks: bool,
}

impl LocalStore {
    /// Open a store.
    pub fn open(options: &Options) -> Result<Self> {
        let blocks = options.when_full == WhenFull::Block;
        let store = Mutex::new(Some(Store::open(options)?));
        Ok(Self { store, room: Condvar::new(), blocks })
    }

    /// Whether calls that find the store full are to wait.
    pub fn blocks(&self) -> bool {
        self.blocks
    }

    /// Do something with the open store, alone.
    pub fn with<T>(&self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        work(self.lock().as_mut().ok_or_else(closed)?)
    }

    /// The same for what may free space: whoever waits for room is woken.
    pub fn freeing<T>(&self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        let done = self.with(work);
        self.room.notify_all();
        done
    }

    /// Wait until there may be room, but no longer than `most`.
    pub fn wait_for_room(&self, most: Duration) {
        drop(self.room.wait_timeout(self.lock(), most));
    }

    /// Flush and let go of the store. What is asked later is refused.
    pub fn close(&self) -> Result<()> {
        let mut store = self.lock();
        let flushed = store.as_mut().map_or(Ok(()), Store::flush);
        *store = None;
        Ok(flushed?)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Store>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a store says that was closed.
pub(crate) fn closed() -> Error {
    Error::invalid("store", "closed", "an open store")
}
