//! Control groups: v1, v2 and hosts with both.
//!
//! # Design
//!
//! A slot has one [`Group`]: a directory of our own in each hierarchy that it uses, with its accounting
//! files open. Each controller is one file ([`v1`] and [`v2`] hold them) behind the small trait
//! [`Controller`], so that its tests need nothing but a temporary directory with such files.
//!
//! On v1 moving a process costs 60 to 150 µs a hierarchy, and milliseconds after a pause, so the spawner is
//! put into the slot's groups once and every run is born there. On v2 the spawner stays outside and
//! runs are born inside by `CLONE_INTO_CGROUP`.
//!
//! Only directories that were made here are removed, and only their limits are set. They lie below the cgroup
//! of this process, so that whoever limits us limits our runs; on v2 that group has to be made to hand its
//! controllers down, and this process to leave it for a leaf of it (see [`v2::home`]).

pub mod control_file;
pub mod host;
pub mod v1;
pub mod v2;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::{Limits, Result};
pub use host::{Host, Version};
pub(crate) use v2::leaf;

/// What the kernel counted for a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its processes, and on v1 of its spawner.
    pub cpu_time: Option<Duration>,
    /// The most memory at once, in bytes.
    pub peak_memory: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// One controller's files in one group.
pub trait Controller: Send {
    /// Holds what follows to `limits`. Cheap when they have not changed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a value.
    fn limit(&mut self, limits: &Limits) -> Result<()>;

    /// Holds nothing back until the next [`Controller::limit`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    /// Starts counting anew.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read or set.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Adds what was counted since [`Controller::begin`] to `usage`.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    fn count(&self, _usage: &mut Usage) -> Result<()> {
        Ok(())
    }

    /// [`Controller::count`], then [`Controller::begin`] for the next run, with as few calls as that takes.
    ///
    /// # Errors
    ///
    /// As theirs.
    fn finish(&mut self, usage: &mut Usage) -> Result<()> {
        self.count(usage)?;
        self.begin()
    }
}

/// How a run gets into a group.
pub enum Placement<'a> {
    /// The spawner lives in it.
    Resident,
    /// The run is born in it: its directory.
    Into(BorrowedFd<'a>),
    /// There is no group.
    None,
}

/// The group of one slot.
pub struct Group {
    controllers: Vec<Box<dyn Controller>>,
    home: Home,
}

/// The directories of a group, by version.
enum Home {
    V1(v1::Directories),
    V2(v2::Directory),
    Nowhere,
}

impl Group {
    /// Makes the group `name` below `parent`, the pool's directory name.
    ///
    /// # Errors
    ///
    /// When a directory cannot be made or has not the files it should.
    pub fn create(host: &Host, parent: &str, name: &str) -> Result<Self> {
        let (home, controllers) = match host.version() {
            Some(Version::V1) => {
                let directories = v1::Directories::create(host, parent, name)?;
                let controllers = v1::controllers(&directories)?;
                (Home::V1(directories), controllers)
            }
            Some(Version::V2) if host.v2_home().is_some() => {
                let directory = v2::Directory::create(host, parent, name)?;
                let controllers = v2::controllers(&directory)?;
                (Home::V2(directory), controllers)
            }
            _ => (Home::Nowhere, Vec::new()),
        };
        Ok(Self { controllers, home })
    }

    /// How a run gets into it.
    #[must_use]
    pub fn placement(&self) -> Placement<'_> {
        match &self.home {
            Home::V1(_) => Placement::Resident,
            Home::V2(directory) => Placement::Into(directory.descriptor()),
            Home::Nowhere => Placement::None,
        }
    }

    /// Puts the spawner where it belongs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the move.
    pub fn admit_spawner(&self, pid: u32) -> Result<()> {
        match &self.home {
            Home::V1(directories) => directories.admit(pid),
            Home::V2(_) | Home::Nowhere => Ok(()),
        }
    }

    /// Starts counting for the first run.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn begin(&mut self) -> Result<()> {
        self.controllers.iter_mut().try_for_each(|controller| controller.begin())
    }

    /// Holds the next run to `limits`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn limit(&mut self, limits: &Limits) -> Result<()> {
        self.controllers.iter_mut().try_for_each(|controller| controller.limit(limits))
    }

    /// Lets what was killed end: with a small share of a processor that takes seconds.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn release(&mut self) -> Result<()> {
        self.controllers.iter_mut().try_for_each(|controller| controller.release())
    }

    /// What was counted so far for the run that is under way.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for controller in &self.controllers {
            controller.count(&mut usage)?;
        }
        Ok(usage)
    }

    /// What was counted for a run that is over; what comes from here on is the next one's.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn finish(&mut self) -> Result<Usage> {
        let mut usage = Usage::default();
        for controller in &mut self.controllers {
            controller.finish(&mut usage)?;
        }
        Ok(usage)
    }

    /// Kills whatever is in it, the spawner of a v1 group included.
    pub fn kill(&self) {
        match &self.home {
            Home::V1(directories) => directories.kill(),
            Home::V2(directory) => directory.kill(),
            Home::Nowhere => {}
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        match &self.home {
            Home::V1(directories) => directories.remove(),
            Home::V2(directory) => directory.remove(),
            Home::Nowhere => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory with files like a controller's.
    pub(crate) struct Fake(PathBuf);

    impl Fake {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("k15-cgroup-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            let fake = Self(path);
            files.iter().for_each(|(name, content)| fake.write(name, content));
            fake
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn write(&self, name: &str, content: &str) {
            fs::write(self.0.join(name), content).unwrap();
        }

        /// The first line: a write to a real control file leaves nothing of what was there before.
        pub(crate) fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
