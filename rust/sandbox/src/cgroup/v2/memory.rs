//! The memory controller: memory without swap, peak, kills.

use std::path::Path;

use crate::cgroup::control_file::ControlFile;
use crate::cgroup::{Controller, Usage};
use crate::{Limits, Result};

pub(super) struct Memory {
    max: ControlFile,
    events: ControlFile,
    current: ControlFile,
    /// From Linux 5.19 on.
    peak: Option<ControlFile>,
    /// Whether a write starts the peak anew, as from Linux 6.12 on.
    peak_restarts: bool,
    set: Option<u64>,
    base: u64,
    high: u64,
    kills: u64,
}

impl Memory {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        if directory.join("memory.swap.max").exists() {
            ControlFile::open(directory, "memory.swap.max", true)?.write("0")?;
        }
        // memory.oom.group stays 0: it would kill init, and with it the spawner, which is not in the group
        // but shares init's memory. A single process that shares its memory so is never chosen.
        let peak = ControlFile::open(directory, "memory.peak", true)
            .or_else(|_| ControlFile::open(directory, "memory.peak", false))
            .ok();
        let peak_restarts = peak.as_ref().is_some_and(|peak| peak.try_write("0").is_ok());
        Ok(Self {
            max: ControlFile::open(directory, "memory.max", true)?,
            events: ControlFile::open(directory, "memory.events", false)?,
            current: ControlFile::open(directory, "memory.current", false)?,
            peak,
            peak_restarts,
            set: None,
            base: 0,
            high: 0,
            kills: 0,
        })
    }
}

impl Controller for Memory {
    fn limit(&mut self, limits: &Limits) -> Result<()> {
        if self.set != Some(limits.memory_bytes) {
            self.max.write(&limits.memory_bytes.to_string())?;
            self.set = Some(limits.memory_bytes);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.kills = self.events.value_of("oom_kill")?;
        self.base = self.current.number()?;
        if let Some(peak) = &self.peak {
            if self.peak_restarts {
                peak.write("0")?;
            } else {
                self.high = peak.number()?;
            }
        }
        Ok(())
    }

    fn count(&self, usage: &mut Usage) -> Result<()> {
        usage.oom_kills = self.events.value_of("oom_kill")?.saturating_sub(self.kills);
        if let Some(peak) = &self.peak {
            let peak = peak.number()?;
            // Where it cannot start anew, a peak below an earlier run's is not known.
            if self.peak_restarts || peak > self.high {
                usage.peak_memory = Some(peak.saturating_sub(self.base));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    #[test]
    fn limit_peak_and_kills() {
        let fake = Fake::new(&[
            ("memory.max", ""),
            ("memory.swap.max", ""),
            ("memory.events", "low 0\noom 1\noom_kill 1\n"),
            ("memory.current", "4096\n"),
            ("memory.peak", ""),
        ]);
        let mut memory = Memory::open(fake.path()).unwrap();
        memory.limit(&Limits { memory_bytes: 64 << 20, ..Limits::default() }).unwrap();
        memory.begin().unwrap();
        assert_eq!(fake.read("memory.max"), "67108864");
        assert_eq!(fake.read("memory.swap.max"), "0");
        fake.write("memory.events", "low 0\noom 2\noom_kill 3\n");
        fake.write("memory.peak", "12288\n");
        let mut usage = Usage::default();
        memory.count(&mut usage).unwrap();
        assert_eq!((usage.peak_memory, usage.oom_kills), (Some(8192), 2));
    }
}
