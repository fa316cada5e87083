//! The pids controller: how many processes and threads there may be.

use std::path::Path;

use super::OWN_PROCESSES;
use crate::cgroup::Controller;
use crate::cgroup::control_file::ControlFile;
use crate::{Limits, Result};

pub(super) struct Pids {
    max: ControlFile,
    set: Option<u64>,
}

impl Pids {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self { max: ControlFile::open(directory, "pids.max", true)?, set: None })
    }
}

impl Controller for Pids {
    fn limit(&mut self, limits: &Limits) -> Result<()> {
        let wanted = limits.processes + OWN_PROCESSES;
        if self.set != Some(wanted) {
            self.max.write(&wanted.to_string())?;
            self.set = Some(wanted);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    #[test]
    fn the_spawner_and_init_are_not_the_programs() {
        let fake = Fake::new(&[("pids.max", "")]);
        let mut pids = Pids::open(fake.path()).unwrap();
        pids.limit(&Limits { processes: 64, ..Limits::default() }).unwrap();
        assert_eq!(fake.read("pids.max"), "66");
    }
}
