//! The cpuacct controller: processor time used.

use std::path::Path;
use std::time::Duration;

use crate::cgroup::control_file::ControlFile;
use crate::cgroup::{Controller, Usage};
use crate::{Limits, Result};

pub(super) struct Cpuacct {
    usage: ControlFile,
    start: u64,
}

impl Cpuacct {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self { usage: ControlFile::open(directory, "cpuacct.usage", false)?, start: 0 })
    }
}

impl Controller for Cpuacct {
    fn limit(&mut self, _limits: &Limits) -> Result<()> {
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.start = self.usage.number()?;
        Ok(())
    }

    fn finish(&mut self, usage: &mut Usage) -> Result<()> {
        let now = self.usage.number()?;
        usage.cpu_time = Some(Duration::from_nanos(now.saturating_sub(self.start)));
        self.start = now;
        Ok(())
    }

    fn count(&self, usage: &mut Usage) -> Result<()> {
        let used = self.usage.number()?.saturating_sub(self.start);
        usage.cpu_time = Some(Duration::from_nanos(used));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    #[test]
    fn time_counts_from_the_beginning_of_the_run() {
        let fake = Fake::new(&[("cpuacct.usage", "5000\n")]);
        let mut cpuacct = Cpuacct::open(fake.path()).unwrap();
        cpuacct.begin().unwrap();
        fake.write("cpuacct.usage", "7500\n");
        let mut usage = Usage::default();
        cpuacct.count(&mut usage).unwrap();
        assert_eq!(usage.cpu_time, Some(Duration::from_nanos(2500)));
    }
}
