//! The pids controller: how many processes and threads there may be.

use std::path::Path;

use crate::cgroup::Controller;
use crate::cgroup::control_file::ControlFile;
use crate::{Limits, Result};

/// The run's init, which is not the program's.
const OWN_PROCESSES: u64 = 1;

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
    fn init_is_not_the_programs() {
        let fake = Fake::new(&[("pids.max", "")]);
        let mut pids = Pids::open(fake.path()).unwrap();
        pids.limit(&Limits { processes: 64, ..Limits::default() }).unwrap();
        assert_eq!(fake.read("pids.max"), "65");
    }
}
