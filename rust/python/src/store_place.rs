//! Where a store is, and how it is asked: in this process, or in the one that serves it.

use std::sync::Arc;
use std::time::Duration;

use k15_shared::{Calls, Client, LocalStore};
use pyo3::prelude::*;

use crate::error::Result;

/// How long a call that waits for room sleeps before it looks for signals.
const WAIT: Duration = Duration::from_millis(50);

/// Where the store is.
pub enum Place {
    /// In this process, behind a lock that is only taken without the GIL.
    Here(Arc<LocalStore>),
    /// In the process that serves it.
    Served(Client),
}

impl Place {
    /// Do something with the open store while other Python threads run.
    pub fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut dyn Calls) -> k15_shared::Result<T> + Send,
    ) -> Result<T> {
        Ok(py.detach(|| match self {
            Self::Here(store) => store.with(|store| work(store)),
            Self::Served(client) => client.with(|store| work(store)),
        })?)
    }

    /// The same for what may free space: whoever waits for room is woken.
    pub fn freeing<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut dyn Calls) -> k15_shared::Result<T> + Send,
    ) -> Result<T> {
        Ok(py.detach(|| match self {
            Self::Here(store) => store.freeing(|store| work(store)),
            Self::Served(client) => client.with(|store| work(store)),
        })?)
    }

    /// The same for what needs room: with `when_full="block"` it is tried again until there is.
    pub fn needing_room<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Fn(&mut dyn Calls) -> k15_shared::Result<T> + Send + Sync,
    ) -> PyResult<T> {
        loop {
            match self.with(py, &work) {
                Err(error) if error.is_capacity() && self.blocks() => {
                    py.check_signals()?;
                    // A server has waited itself before it said that there is no room.
                    if let Self::Here(store) = self {
                        py.detach(|| store.wait_for_room(WAIT));
                    }
                }
                done => return Ok(done?),
            }
        }
    }

    /// Flush and let go of it, or of the connection to it.
    pub fn close(&self) -> k15_shared::Result<()> {
        match self {
            Self::Here(store) => store.close(),
            Self::Served(client) => {
                client.close();
                Ok(())
            }
        }
    }

    fn blocks(&self) -> bool {
        match self {
            Self::Here(store) => store.blocks(),
            Self::Served(client) => client.blocks(),
        }
    }
}
