//! The cpu controller, and the time that every group counts without one.

use std::path::Path;
use std::time::Duration;

use crate::cgroup::control_file::ControlFile;
use crate::cgroup::{Controller, Usage};
use crate::{Limits, Result};

/// Short, so that a run over its share is held back in small steps.
const PERIOD_MICROSECONDS: u64 = 20_000;

pub(super) struct Cpu {
    /// Absent without the controller.
    max: Option<ControlFile>,
    stat: ControlFile,
    set: Option<f64>,
    start: u64,
}

impl Cpu {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let max = directory.join("cpu.max").exists();
        Ok(Self {
            max: max.then(|| ControlFile::open(directory, "cpu.max", true)).transpose()?,
            stat: ControlFile::open(directory, "cpu.stat", false)?,
            set: None,
            start: 0,
        })
    }
}

impl Controller for Cpu {
    fn limit(&mut self, limits: &Limits) -> Result<()> {
        let Some(max) = self.max.as_ref().filter(|_| self.set != limits.cpus) else {
            return Ok(());
        };
        match limits.cpus {
            None => max.write("max")?,
            Some(cpus) => {
                // The kernel takes no quota below a millisecond: the period grows instead.
                let period = if cpus < 0.1 { 5 * PERIOD_MICROSECONDS } else { PERIOD_MICROSECONDS };
                max.write(&format!("{:.0} {period}", cpus * period as f64))?;
            }
        }
        self.set = limits.cpus;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        match &self.max {
            Some(max) if self.set.take().is_some() => max.write("max"),
            _ => Ok(()),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.start = self.stat.value_of("usage_usec")?;
        Ok(())
    }

    fn count(&self, usage: &mut Usage) -> Result<()> {
        let used = self.stat.value_of("usage_usec")?.saturating_sub(self.start);
        usage.cpu_time = Some(Duration::from_micros(used));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    #[test]
    fn a_share_is_a_quota_of_a_period_and_time_counts_from_the_beginning() {
        let fake = Fake::new(&[("cpu.max", ""), ("cpu.stat", "usage_usec 100\nuser_usec 60\n")]);
        let mut cpu = Cpu::open(fake.path()).unwrap();
        cpu.limit(&Limits { cpus: Some(0.5), ..Limits::default() }).unwrap();
        assert_eq!(fake.read("cpu.max"), "10000 20000");
        cpu.begin().unwrap();
        fake.write("cpu.stat", "usage_usec 350\nuser_usec 60\n");
        let mut usage = Usage::default();
        cpu.count(&mut usage).unwrap();
        assert_eq!(usage.cpu_time, Some(Duration::from_micros(250)));
    }
}
