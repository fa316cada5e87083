//! The cpu controller: how many processors a run may keep busy.

use std::path::Path;

use crate::cgroup::Controller;
use crate::cgroup::control_file::ControlFile;
use crate::{Limits, Result};

/// Short, so that a run over its share is held back in small steps.
const PERIOD_MICROSECONDS: u64 = 20_000;

pub(super) struct Cpu {
    quota: ControlFile,
    period: ControlFile,
    set: Option<f64>,
}

impl Cpu {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            quota: ControlFile::open(directory, "cpu.cfs_quota_us", true)?,
            period: ControlFile::open(directory, "cpu.cfs_period_us", true)?,
            set: None,
        })
    }
}

impl Controller for Cpu {
    fn limit(&mut self, limits: &Limits) -> Result<()> {
        if self.set == limits.cpus {
            return Ok(());
        }
        match limits.cpus {
            None => self.quota.write("-1")?,
            Some(cpus) => {
                // The kernel takes no quota below a millisecond: the period grows instead.
                let period = if cpus < 0.1 { 5 * PERIOD_MICROSECONDS } else { PERIOD_MICROSECONDS };
                self.period.write(&period.to_string())?;
                self.quota.write(&format!("{:.0}", cpus * period as f64))?;
            }
        }
        self.set = limits.cpus;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        if self.set.take().is_some() {
            self.quota.write("-1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    #[test]
    fn a_share_is_a_quota_of_a_period() {
        let limit = |cpus| {
            let fake = Fake::new(&[("cpu.cfs_quota_us", ""), ("cpu.cfs_period_us", "")]);
            let mut cpu = Cpu::open(fake.path()).unwrap();
            cpu.set = Some(7.0);
            cpu.limit(&Limits { cpus, ..Limits::default() }).unwrap();
            (fake.read("cpu.cfs_quota_us"), fake.read("cpu.cfs_period_us"))
        };
        assert_eq!(limit(Some(1.5)), ("30000".into(), "20000".into()));
        assert_eq!(limit(Some(0.01)), ("1000".into(), "100000".into()));
        assert_eq!(limit(None).0, "-1");
    }

    #[test]
    fn what_was_killed_is_not_held_back() {
        let fake = Fake::new(&[("cpu.cfs_quota_us", ""), ("cpu.cfs_period_us", "")]);
        let mut cpu = Cpu::open(fake.path()).unwrap();
        let limits = Limits { cpus: Some(0.5), ..Limits::default() };
        cpu.limit(&limits).unwrap();
        fake.write("cpu.cfs_quota_us", "");
        cpu.release().unwrap();
        assert_eq!(fake.read("cpu.cfs_quota_us"), "-1");
        fake.write("cpu.cfs_quota_us", "");
        cpu.limit(&limits).unwrap();
        assert_eq!(fake.read("cpu.cfs_quota_us"), "10000");
    }
}
