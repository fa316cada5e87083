//! Who holds which lease: a client's leases end with it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use k15_core::store::Lease;

use crate::local::LocalStore;

/// What one client has, over all its connections.
#[derive(Default)]
struct Session {
    connections: usize,
    /// Epochs by trajectory.
    leases: HashMap<u64, u64>,
}

/// The clients of one server.
pub struct Sessions(Mutex<(u64, HashMap<u64, Session>)>);

impl Sessions {
    /// No clients yet. Ids begin where no earlier server's do, so that a client that comes from one
    /// is seen to be new.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2);
        Self(Mutex::new((first.max(1), HashMap::new())))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Session>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection more of a session; of a new one if there is none of this id.
    pub fn join(&self, id: u64) -> u64 {
        let (next, all) = &mut *self.lock();
        let id = if all.contains_key(&id) { id } else { *next };
        *next = (*next).max(id.wrapping_add(1));
        all.entry(id).or_default().connections += 1;
        id
    }

    /// The session holds these.
    pub fn leased(&self, id: u64, leases: &[Lease]) {
        if let Some(session) = self.lock().1.get_mut(&id) {
            session.leases.extend(leases.iter().map(|lease| (lease.trajectory_id, lease.epoch)));
        }
    }

    /// The session's lease was given back, or ended with its trajectory.
    pub fn ended(&self, id: u64, trajectory_id: u64) {
        if let Some(session) = self.lock().1.get_mut(&id) {
            session.leases.remove(&trajectory_id);
        }
    }

    /// A connection less. With the last one the session's leases end: its process has closed the
    /// store or died, so nobody is left who could use them, and others need not wait for their
    /// deadlines. Epochs fence off whoever thinks otherwise.
    pub fn leave(&self, id: u64, store: &LocalStore) {
        let leases = {
            let all = &mut self.lock().1;
            let Some(session) = all.get_mut(&id) else { return };
            session.connections -= 1;
            if session.connections > 0 {
                return;
            }
            all.remove(&id).map(|session| session.leases).unwrap_or_default()
        };
        if leases.is_empty() {
            return;
        }
        let release = store.with(|store| {
            for (trajectory_id, epoch) in leases {
                // Refused if another one holds it by now, or nobody: then there is nothing to end.
                store.release(trajectory_id, epoch).ok();
            }
            Ok(())
        });
        // Refused if the store is closed: its leases are void.
        release.ok();
    }
}
