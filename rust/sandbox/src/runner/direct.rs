//! The direct runner: namespaces by clone, then exec. It is limited by the kernel alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Runner, RunnerSlot};
use crate::cgroup::{Group, Host};
use crate::rootfs::Plan;
use crate::slot::{Request, Slot};
use crate::spawner::user_namespace;
use crate::{Job, Outcome, Result};

/// Users that are given to runs in turn, so that two runs of a pool never share one, nor do two that
/// follow each other.
#[derive(Debug)]
pub(crate) struct Users {
    first: u32,
    count: u32,
    next: AtomicU32,
}

impl Users {
    /// How many users a pool has.
    const COUNT: u32 = 1 << 14;
    /// A range of user numbers that systemd's register of ranges leaves unused.
    const START: u32 = 0x7000_0000;
    const RANGES: u32 = 1 << 13;

    /// The users of the pool of process `pid`.
    pub(crate) fn of_process(pid: u32) -> Self {
        let first = Self::START + (pid % Self::RANGES) * Self::COUNT;
        Self { first, count: Self::COUNT, next: AtomicU32::new(0) }
    }

    /// The one user that an ordinary user's runs can be: each slot has a user namespace of its own.
    pub(crate) fn of_ordinary_user() -> Self {
        Self { first: user_namespace::USER, count: 1, next: AtomicU32::new(0) }
    }

    pub(crate) fn take(&self) -> u32 {
        self.first + self.next.fetch_add(1, Ordering::Relaxed) % self.count
    }
}

/// See the module.
pub struct Direct {
    pub(crate) spawner: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) host: Host,
    /// The name of the pool's directory in each hierarchy.
    pub(crate) pool_name: String,
    pub(crate) users: Arc<Users>,
}

impl Direct {
    pub(crate) fn new(
        spawner: PathBuf,
        plan: Plan,
        host: Host,
        pool_name: String,
        users: Arc<Users>,
    ) -> Self {
        Self { spawner, plan, host, pool_name, users }
    }
}

impl Runner for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn check(&self, job: &Job) -> Result<()> {
        Request::new(job).map(|_| ())
    }

    fn open(&self, number: u64) -> Result<Box<dyn RunnerSlot>> {
        let group = Group::create(&self.host, &self.pool_name, &format!("slot-{number}"))?;
        let slot = Slot::open(&self.spawner, &self.plan, group, None)?;
        Ok(Box::new(DirectSlot { slot, users: Arc::clone(&self.users) }))
    }
}

struct DirectSlot {
    slot: Slot,
    users: Arc<Users>,
}

impl RunnerSlot for DirectSlot {
    fn is_well(&self) -> bool {
        self.slot.is_well()
    }

    fn run(&mut self, job: &Job) -> Result<Outcome> {
        let request = Request::new(job)?;
        self.slot.run(&request, self.users.take())
    }
}
