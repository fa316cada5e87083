//! The crun runner: every run is an OCI container, started by crun.
//!
//! # Design
//!
//! crun does what the kernel's calls do for the direct runner: namespaces, mounts, privileges, the
//! filter. All around it is the direct runner's: the slot, the spawner, the cgroup that is pooled and in
//! which crun is started (so crun is told to leave cgroups alone), the run's file system of fixed size,
//! the clock, the verdicts. Of the namespaces, net, uts and cgroup are the slot's and inherited; pid,
//! mount and ipc are crun's, fresh for every run.
//!
//! What makes it fast: no cgroup is made or moved into, no session keyring, a filter that is compiled
//! already (the annotation `run.oci.seccomp_bpf_data`), one configuration for all runs, few mounts to
//! copy, and a runtime that need not copy itself.
//!
//! `crun-plain` is for programs and images that expect more of a container: every namespace is fresh, and
//! /dev is made by crun, with /dev/pts. /proc shows processes alone there too, and there is no /sys:
//! a host's are no program's business. Limits are held by the slot's cgroup, so crun makes none: it would
//! be one inside that.

mod config;
mod find;

use std::path::PathBuf;
use std::sync::Arc;

use config::Extent;

use super::{Runner, RunnerSlot, Users};
use crate::cgroup::{Group, Host, Placement};
use crate::error::Step;
use crate::rootfs::Plan;
use crate::slot::{Request, Runtime, Slot};
use crate::{Job, Outcome, Result, spawner, sys};

/// See the module.
pub struct Crun {
    spawner: PathBuf,
    plan: Plan,
    host: Host,
    pool_name: String,
    users: Arc<Users>,
    /// crun's binary.
    crun: PathBuf,
    extent: Extent,
}

impl Crun {
    /// # Errors
    ///
    /// [`crate::Error::Missing`] where there is no crun, or one that is too old.
    pub(crate) fn new(
        spawner: PathBuf,
        plan: Plan,
        host: Host,
        pool_name: String,
        users: Arc<Users>,
    ) -> Result<Self> {
        let (crun, extent) = (find::find()?, Extent::Least);
        Ok(Self { spawner, plan, host, pool_name, users, crun, extent })
    }

    /// The same with a full container for every run: the runner `crun-plain`.
    pub(crate) fn plain(self) -> Self {
        Self { extent: Extent::Full, ..self }
    }

    fn runtime(&self, group: &Group) -> Result<Runtime> {
        let in_cgroup = matches!(group.placement(), Placement::Into(_));
        let key = sys::process::random_words().step(|| "draw the setup key".into())?[0];
        let words = [
            "crun",
            "--root",
            spawner::STATE,
            "--cgroup-manager=disabled",
            "run",
            "--no-new-keyring",
            "--preserve-fds=1",
            "--bundle",
            spawner::BUNDLE,
        ];
        Ok(Runtime {
            world: Plan::for_runtime(),
            path: self.crun.clone(),
            arguments: words.map(str::to_owned).to_vec(),
            config: config::config(key, self.plan.is_writable, in_cgroup, self.extent),
            key,
        })
    }
}

impl Runner for Crun {
    fn name(&self) -> &'static str {
        match self.extent {
            Extent::Least => "crun",
            Extent::Full => "crun-plain",
        }
    }

    fn check(&self, job: &Job) -> Result<()> {
        Request::new(job).map(|_| ())
    }

    fn open(&self, number: u64) -> Result<Box<dyn RunnerSlot>> {
        let group = Group::create(&self.host, &self.pool_name, &format!("slot-{number}"))?;
        let runtime = self.runtime(&group)?;
        let slot = Slot::open(&self.spawner, &self.plan, group, Some(runtime))?;
        Ok(Box::new(CrunSlot { slot, users: Arc::clone(&self.users) }))
    }
}

struct CrunSlot {
    slot: Slot,
    users: Arc<Users>,
}

impl RunnerSlot for CrunSlot {
    fn is_well(&self) -> bool {
        self.slot.is_well()
    }

    fn run(&mut self, job: &Job) -> Result<Outcome> {
        let request = Request::new(job)?;
        self.slot.run(&request, self.users.take())
    }
}
