//! The memory controller: memory and swap, peak, kills.

use std::path::Path;

use crate::cgroup::control_file::ControlFile;
use crate::cgroup::{Controller, Usage};
use crate::{Limits, Result};

/// What is left behind by runs (cached files, mostly) is given back above this share of the limit.
const RESIDUE_SHARE: u64 = 4;

/// A run whose peak stayed further below its limit has had nobody killed for it: a charge that fails is
/// smaller than this.
const NEAR_LIMIT: u64 = 4 << 20;

pub(super) struct Memory {
    limit: ControlFile,
    /// Absent where the kernel does not account swap.
    with_swap: Option<ControlFile>,
    peak: ControlFile,
    oom: ControlFile,
    force_empty: ControlFile,
    set: Option<u64>,
    base: u64,
    kills: u64,
}

impl Memory {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let with_swap = directory.join("memory.memsw.limit_in_bytes").exists();
        Ok(Self {
            limit: ControlFile::open(directory, "memory.limit_in_bytes", true)?,
            with_swap: with_swap
                .then(|| ControlFile::open(directory, "memory.memsw.limit_in_bytes", true))
                .transpose()?,
            peak: ControlFile::open(directory, "memory.max_usage_in_bytes", true)?,
            oom: ControlFile::open(directory, "memory.oom_control", false)?,
            force_empty: ControlFile::open_write_only(directory, "memory.force_empty")?,
            set: None,
            base: 0,
            kills: 0,
        })
    }

    /// Sets both limits. The one with swap may never be below the other.
    fn set(&mut self, bytes: u64) -> Result<()> {
        let text = bytes.to_string();
        let grows = self.set.is_none_or(|set| bytes > set);
        if let (true, Some(with_swap)) = (grows, &self.with_swap) {
            // Unlimited before the first time, which is more.
            if self.set.is_some() {
                with_swap.write(&text)?;
            }
        }
        if self.limit.try_write(&text).is_err() {
            // Residue of earlier runs is in the way.
            let _ = self.force_empty.try_write("0");
            self.limit.write(&text)?;
        }
        if let Some(with_swap) = &self.with_swap {
            with_swap.write(&text)?;
        }
        self.set = Some(bytes);
        Ok(())
    }
}

impl Controller for Memory {
    fn limit(&mut self, limits: &Limits) -> Result<()> {
        if self.set == Some(limits.memory_bytes) {
            return Ok(());
        }
        self.set(limits.memory_bytes)?;
        // What was little under the limit before may be much under this one.
        if self.base > limits.memory_bytes / RESIDUE_SHARE {
            let _ = self.force_empty.try_write("0");
            self.begin()?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.peak.write("0")?; // sets it to what is in use now
        self.base = self.peak.number()?;
        self.kills = self.oom.value_of("oom_kill")?;
        Ok(())
    }

    fn count(&self, usage: &mut Usage) -> Result<()> {
        usage.peak_memory = Some(self.peak.number()?.saturating_sub(self.base));
        usage.oom_kills = self.oom.value_of("oom_kill")?.saturating_sub(self.kills);
        Ok(())
    }

    fn finish(&mut self, usage: &mut Usage) -> Result<()> {
        let peak = self.peak.number()?;
        usage.peak_memory = Some(peak.saturating_sub(self.base));
        if self.set.is_none_or(|limit| peak + NEAR_LIMIT > limit) {
            let kills = self.oom.value_of("oom_kill")?;
            usage.oom_kills = kills.saturating_sub(self.kills);
            self.kills = kills;
        }
        self.peak.write("0")?; // sets it to what is in use now
        self.base = self.peak.number()?;
        if self.set.is_some_and(|set| self.base > set / RESIDUE_SHARE) {
            let _ = self.force_empty.try_write("0");
            self.begin()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    fn fake() -> Fake {
        Fake::new(&[
            ("memory.limit_in_bytes", ""),
            ("memory.memsw.limit_in_bytes", ""),
            ("memory.max_usage_in_bytes", ""),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory.force_empty", ""),
        ])
    }

    #[test]
    fn memory_and_swap_have_one_limit() {
        let fake = fake();
        let mut memory = Memory::open(fake.path()).unwrap();
        let limits = Limits { memory_bytes: 64 << 20, ..Limits::default() };
        memory.limit(&limits).unwrap();
        assert_eq!(fake.read("memory.limit_in_bytes"), "67108864");
        assert_eq!(fake.read("memory.memsw.limit_in_bytes"), "67108864");
    }

    #[test]
    fn residue_is_measured_by_the_limit_of_the_run() {
        let fake = fake();
        let mut memory = Memory::open(fake.path()).unwrap();
        memory.limit(&Limits { memory_bytes: 1 << 30, ..Limits::default() }).unwrap();
        memory.base = 90 << 20;
        memory.limit(&Limits { memory_bytes: 512 << 20, ..Limits::default() }).unwrap();
        assert_eq!((memory.base, fake.read("memory.force_empty").as_str()), (90 << 20, ""));
        memory.limit(&Limits { memory_bytes: 128 << 20, ..Limits::default() }).unwrap();
        assert_eq!((memory.base, fake.read("memory.force_empty").as_str()), (0, "0"));
    }

    #[test]
    fn kills_and_peak_count_from_the_beginning_of_the_run() {
        let fake = fake();
        let mut memory = Memory::open(fake.path()).unwrap();
        memory.begin().unwrap();
        fake.write("memory.max_usage_in_bytes", "8192\n");
        fake.write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
        let mut usage = Usage::default();
        memory.count(&mut usage).unwrap();
        assert_eq!((usage.peak_memory, usage.oom_kills), (Some(8192), 1));
    }
}
