//! How an ordinary user's spawner comes to the privileges that it needs: in a user namespace of its own.
//!
//! # Design
//!
//! One user is mapped, the caller's own, so the spawner, its runs and the caller are one user to the
//! kernel. What keeps them apart where users of their own do otherwise: a run sees no process but its
//! own (pid namespace), the spawner's memory, in which init lives, is closed to its own user, init has
//! capabilities that runs lack, and every run's file system is new. A slot has its own user namespace,
//! so that processes are counted apart from the caller's and from other slots'.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;
use crate::error::Step;
use crate::sys::{credentials, process};

/// The user and the group that runs see themselves as: nobody's, as the group of others.
pub(crate) const USER: u32 = 65534;
/// Processes of ours that the kernel counts with a run's: the guard, the spawner and init.
pub(crate) const OWN_PROCESSES: u64 = 3;

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Whether this process lives in such a namespace.
pub(super) fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// Moves this process, which must have its memory to itself, into a new user namespace.
pub(super) fn enter() -> Result<()> {
    let (user, group) = credentials::user_and_group();
    process::unshare(libc::CLONE_NEWUSER).step(|| {
        "make a user namespace, which a container's filter on calls may forbid (Docker: \
         --security-opt seccomp=unconfined, or run it as root with CAP_SYS_ADMIN)"
            .into()
    })?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{USER} {user} 1")),
        ("gid_map", format!("{USER} {group} 1")),
    ];
    for (name, text) in maps {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).step(|| format!("write {path}"))?;
    }
    ENTERED.store(true, Ordering::Relaxed);
    Ok(())
}
