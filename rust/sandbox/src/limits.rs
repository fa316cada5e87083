//! What a run may use.

use std::time::Duration;

use crate::{Error, Result};

const MIB: u64 = 1 << 20;

/// The limits of one run. Every field is enforced or the run is refused; see [`crate::capability`].
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Processor time of all processes of the run together.
    pub cpu_time: Duration,
    /// Time from the start to the end, held from outside.
    pub wall_time: Duration,
    /// Memory of all processes together, with their files in /tmp, swap included.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u64,
    /// Size of the file system that holds /tmp and the work directory. It lies in memory.
    pub disk_bytes: u64,
    /// Files and directories on it.
    pub disk_files: u64,
    /// What is kept of stdout, and of stderr; more is a verdict of `output_limit`.
    pub output_bytes: u64,
    /// Descriptors a process may have open.
    pub open_files: u64,
    /// The main thread's stack.
    pub stack_bytes: u64,
    /// Processors that the run may keep busy at once; `None`: all.
    pub cpus: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_time: Duration::from_secs(10),
            wall_time: Duration::from_secs(15),
            memory_bytes: 512 * MIB,
            processes: 64,
            disk_bytes: 64 * MIB,
            disk_files: 4096,
            output_bytes: MIB,
            open_files: 256,
            stack_bytes: 64 * MIB,
            cpus: None,
        }
    }
}

impl Limits {
    /// The least memory that a run can be given: what its files may not take.
    pub const MEMORY_BESIDE_FILES: u64 = 8 * MIB;

    /// Refuses limits that cannot be held or make no sense.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] names the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        let day = Duration::from_secs(86_400);
        for (field, value) in [("cpu_seconds", self.cpu_time), ("wall_seconds", self.wall_time)] {
            if value < Duration::from_millis(1) || value > day {
                return Err(Error::invalid(field, value.as_secs_f64(), "between 0.001 and 86400"));
            }
        }
        let counts = [
            ("memory_bytes", self.memory_bytes, 2 * Self::MEMORY_BESIDE_FILES, 1 << 46),
            ("processes", self.processes, 1, 1 << 20),
            ("disk_bytes", self.disk_bytes, 4096, 1 << 46),
            ("disk_files", self.disk_files, 8, 1 << 30),
            ("output_bytes", self.output_bytes, 0, 1 << 32),
            ("open_files", self.open_files, 8, 1 << 20),
            ("stack_bytes", self.stack_bytes, 1 << 16, 1 << 40),
        ];
        for (field, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                return Err(Error::invalid(field, value, format!("between {least} and {most}")));
            }
        }
        let most = self.memory_bytes - Self::MEMORY_BESIDE_FILES;
        if self.disk_bytes > most {
            let expected = format!(
                "at most {most}: files lie in memory, so memory_bytes must be {} more",
                Self::MEMORY_BESIDE_FILES
            );
            return Err(Error::invalid("disk_bytes", self.disk_bytes, expected));
        }
        match self.cpus {
            Some(cpus) if !(0.01..=4096.0).contains(&cpus) => {
                Err(Error::invalid("cpus", cpus, "between 0.01 and 4096, or none"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        Limits::default().check().unwrap();
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let cases = [
            (Limits { processes: 0, ..Limits::default() }, "processes = 0"),
            (Limits { wall_time: Duration::ZERO, ..Limits::default() }, "wall_seconds = 0"),
            (Limits { memory_bytes: 1, ..Limits::default() }, "memory_bytes = 1"),
            (Limits { disk_bytes: 512 * MIB, ..Limits::default() }, "disk_bytes = 536870912"),
            (Limits { cpus: Some(f64::NAN), ..Limits::default() }, "cpus = NaN"),
        ];
        for (limits, start) in cases {
            let message = limits.check().unwrap_err().to_string();
            assert!(message.starts_with(start), "{message}");
        }
    }
}
