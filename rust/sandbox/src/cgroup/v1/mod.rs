//! cgroup v1: one directory a controller.

mod cpu;
mod cpuacct;
mod memory;
mod pids;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Controller;
use super::host::{CONTROLLERS, Host};
use crate::Result;
use crate::error::Step;
use crate::registry::kill_all;

/// How many processes of a group are not the program's: the spawner and the run's init.
pub(crate) const OWN_PROCESSES: u64 = 2;

/// A slot's directory in each hierarchy, and the pool's above it.
pub(super) struct Directories {
    /// Controller, directory. Controllers that share a hierarchy share a directory.
    by_controller: Vec<(&'static str, PathBuf)>,
}

impl Directories {
    pub(super) fn create(host: &Host, parent: &str, name: &str) -> Result<Self> {
        let mut by_controller = Vec::new();
        for controller in CONTROLLERS {
            let Some(own) = host.v1_directory(controller) else { continue };
            if !host.can_use(controller) {
                continue;
            }
            let directory = own.join(parent).join(name);
            fs::create_dir_all(&directory).step(|| format!("make {}", directory.display()))?;
            by_controller.push((controller, directory));
        }
        Ok(Self { by_controller })
    }

    fn each(&self) -> impl Iterator<Item = &Path> {
        self.by_controller.iter().enumerate().filter_map(|(index, (_, directory))| {
            let earlier = self.by_controller.get(..index)?;
            (!earlier.iter().any(|(_, other)| other == directory)).then_some(directory.as_path())
        })
    }

    pub(super) fn admit(&self, pid: u32) -> Result<()> {
        for directory in self.each() {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.to_string())
                .step(|| format!("move {pid} to {}", file.display()))?;
        }
        Ok(())
    }

    /// Kills what is in the group, until nothing is: a process may be born while others are killed.
    pub(super) fn kill(&self) {
        for directory in self.each() {
            for _ in 0..100 {
                if !kill_all(directory) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    pub(super) fn remove(&self) {
        for directory in self.each() {
            let _ = fs::remove_dir(directory);
        }
    }
}

pub(super) fn controllers(directories: &Directories) -> Result<Vec<Box<dyn Controller>>> {
    let mut controllers: Vec<Box<dyn Controller>> = Vec::new();
    for (name, directory) in &directories.by_controller {
        controllers.push(match *name {
            "memory" => Box::new(memory::Memory::open(directory)?),
            "pids" => Box::new(pids::Pids::open(directory)?),
            "cpu" => Box::new(cpu::Cpu::open(directory)?),
            _ => Box::new(cpuacct::Cpuacct::open(directory)?),
        });
    }
    Ok(controllers)
}
