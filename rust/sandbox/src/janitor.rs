//! The process that cleans up after a pool whose own process cannot.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::error::Step;

/// A janitor that waits for this process to end.
pub(crate) struct Janitor(Mutex<Option<Child>>);

impl Janitor {
    /// Starts it for the pool entered at `entry`. It outlives this process by the moment that cleaning takes.
    pub(crate) fn start(spawner: &Path, entry: &Path) -> Result<Self> {
        let child = Command::new(spawner)
            .arg("clean")
            .arg(std::process::id().to_string())
            .arg(entry)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/")
            .spawn()
            .step(|| format!("start {}", spawner.display()))?;
        Ok(Self(Mutex::new(Some(child))))
    }

    /// Ends it: there is nothing left to clean.
    pub(crate) fn dismiss(&self) {
        let child = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
