//! cgroup v2: one directory for all controllers.

mod cpu;
pub mod home;
pub(crate) mod leaf;
mod memory;
mod pids;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Controller;
use super::host::Host;
use crate::error::Step;
use crate::{Error, Result};

/// The controllers that are handed down. Processor time is counted without one.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// A slot's directory, open for starting runs in it.
pub(super) struct Directory {
    path: PathBuf,
    open: File,
}

impl Directory {
    pub(super) fn create(host: &Host, parent: &str, name: &str) -> Result<Self> {
        let home = host.v2_home().ok_or_else(|| {
            Error::system("find a cgroup for the slots", std::io::Error::from_raw_os_error(2))
        })?;
        let pool = home.directory.join(parent);
        fs::create_dir_all(&pool).step(|| format!("make {}", pool.display()))?;
        enable(&home.directory)?;
        enable(&pool)?;
        let path = pool.join(name);
        fs::create_dir_all(&path).step(|| format!("make {}", path.display()))?;
        let open = File::open(&path).step(|| format!("open {}", path.display()))?;
        Ok(Self { path, open })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }

    pub(super) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Removes the directory once what was killed in it has left.
    pub(super) fn remove(&self) {
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => return,
            }
        }
    }
}

/// Hands the controllers that are there down to the groups below `directory`.
fn enable(directory: &Path) -> Result<()> {
    let file = directory.join("cgroup.subtree_control");
    home::missing(directory).into_iter().try_for_each(|name| {
        fs::write(&file, format!("+{name}")).step(|| format!("enable {name} in {}", file.display()))
    })
}

pub(super) fn controllers(directory: &Directory) -> Result<Vec<Box<dyn Controller>>> {
    let path = &directory.path;
    let mut controllers: Vec<Box<dyn Controller>> = vec![Box::new(cpu::Cpu::open(path)?)];
    if path.join("memory.max").exists() {
        controllers.push(Box::new(memory::Memory::open(path)?));
    }
    if path.join("pids.max").exists() {
        controllers.push(Box::new(pids::Pids::open(path)?));
    }
    Ok(controllers)
}
