//! The group into which this process moves so that its slots' groups can have limits: see
//! [`home`](super::home).
//!
//! It lies beside the pools' groups, holds whoever has the sandboxes, and limits nothing. When the last
//! sandbox is closed, or by whoever cleans up after a process that was killed, all that lives in it moves
//! back to where it came from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::home::{self, Home};
use super::{CONTROLLERS, enable};
use crate::error::Step;
use crate::{Error, Result};

const START: &str = "k15core-";
const END: &str = "-leaf";

/// The name of the leaf for the pool `pool`: that of its process, with the pool's number left out.
pub(crate) fn name_for(pool: &str) -> Option<String> {
    let (process, _number) = pool.strip_prefix(START)?.rsplit_once('-')?;
    Some(format!("{START}{process}{END}"))
}

/// Whether a group is named as a leaf of ours.
pub(super) fn is_leaf(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(START) && name.ends_with(END))
}

/// Moves this process, and what it has started, from `home` into the leaf `leaf` of it, and hands the controllers down.
///
/// # Errors
///
/// When the kernel refuses, or others have come to live there; then all is as before.
pub(crate) fn enter(home: &Home, leaf: &Path) -> Result<()> {
    let directory = &home.directory;
    let moved = fs::create_dir_all(leaf)
        .step(|| format!("make {}", leaf.display()))
        .and_then(|()| move_all(directory, leaf))
        .and_then(|()| enable(directory));
    if moved.is_err() {
        give_up(leaf, 1);
    }
    moved
}

/// Until nobody is left: a process may be born while others are moved.
fn move_all(from: &Path, to: &Path) -> Result<()> {
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        let all =
            home::processes(from).step(|| format!("read the processes of {}", from.display()))?;
        if all.is_empty() {
            return Ok(());
        }
        if !home::strangers(&all).is_empty() {
            break;
        }
        for pid in all {
            move_one(pid, to)?;
        }
    }
    Err(Error::system(
        format!("empty {} of processes", from.display()),
        std::io::Error::from_raw_os_error(libc::EBUSY),
    ))
}

fn move_one(pid: i32, to: &Path) -> Result<()> {
    match fs::write(to.join("cgroup.procs"), pid.to_string()) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        moved => moved.step(|| format!("move process {pid} to {}", to.display())),
    }
}

/// Moves all that lives in a leaf back to the group that it is in and removes it, trying `times` times. Says whether it is gone:
/// it stays where other groups still need what is handed down.
pub(crate) fn give_up(leaf: &Path, times: usize) -> bool {
    let Some(home) = leaf.parent() else { return false };
    for time in 0..times {
        if time > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !leaf.exists() {
            return true;
        }
        if groups_below(home) != [leaf] {
            continue;
        }
        // A group that hands controllers down takes no processes.
        for name in CONTROLLERS {
            let _ = fs::write(home.join("cgroup.subtree_control"), format!("-{name}"));
        }
        for pid in home::processes(leaf).unwrap_or_default() {
            let _ = move_one(pid, home);
        }
        if fs::remove_dir(leaf).is_ok() {
            return true;
        }
    }
    false
}

fn groups_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_a_process_share_a_leaf() {
        assert_eq!(name_for("k15core-12-345-0").as_deref(), Some("k15core-12-345-leaf"));
        assert_eq!(name_for("k15core-12-345-1"), name_for("k15core-12-345-0"));
        assert_eq!(name_for("else-1-2-3"), None);
        assert!(is_leaf(Path::new("/a/k15core-12-345-leaf")));
        assert!(!is_leaf(Path::new("/a/k15core-12-345-0")));
        assert!(!is_leaf(Path::new("/a/leaf")));
    }
}
