//! A slot whose runs are copies of a zygote.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::{Slot, gone};
use crate::cgroup::{Group, Placement};
use crate::error::Step;
use crate::protocol::{SWITCH, WARM};
use crate::rootfs::Plan;
use crate::runner::Warmth;
use crate::sys::{process, socket};
use crate::wire::Writer;
use crate::{Error, Result};

/// How long a zygote may take to be ready, which the spawner knows too and tells of first.
const ZYGOTE_TIME: Duration = Duration::from_secs(90);

impl Slot {
    /// Starts a spawner and a zygote, and waits until both are ready. The spawner stays outside of the
    /// slot's group: what it starts while a run lives, the next zygote, is not the run's.
    ///
    /// # Errors
    ///
    /// As [`Slot::open`]; [`Error::InvalidInput`] for modules that cannot be imported or start threads.
    pub(crate) fn open_warm(
        spawner: &Path,
        plan: &Plan,
        group: Group,
        warmth: &Warmth,
    ) -> Result<Self> {
        let mut slot = Self::start(spawner, group, None)?;
        slot.configure(plan, true)?;
        let mut writer = Writer::new(WARM);
        warmth.write(&mut writer);
        slot.tell(&writer)?;
        slot.switch_zygote(warmth)?;
        slot.group.begin()?;
        Ok(slot)
    }

    fn tell(&self, writer: &Writer) -> Result<()> {
        socket::send(self.socket.as_fd(), [writer.as_slice(), &[], &[]], &[]).map_err(gone)
    }

    /// Has the spawner start the next zygote, and does not wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::SlotBroken`] if the spawner is gone.
    pub(crate) fn prepare_zygote(&self) -> Result<()> {
        self.tell(&Writer::new(WARM))
    }

    /// Puts the next zygote into service, waiting for it if need be. The one before it ends.
    ///
    /// # Errors
    ///
    /// As [`Slot::open_warm`]; the slot must then be replaced.
    pub(crate) fn switch_zygote(&mut self, warmth: &Warmth) -> Result<()> {
        let switched = self.try_switch_zygote(warmth);
        self.broken |= switched.is_err();
        switched
    }

    fn try_switch_zygote(&mut self, warmth: &Warmth) -> Result<()> {
        self.tell(&Writer::new(SWITCH))?;
        let [first, second] =
            self.expect_ready(ZYGOTE_TIME).map_err(|error| warmth.explain(error))?;
        // What was started besides the one thread that is copied would be missing in every run.
        let threads = fs::read_dir(format!("/proc/{first}/task"))
            .step(|| "look at the zygote's threads".into())?
            .count();
        if threads != 1 {
            let expected = format!("modules that start no thread: there are {threads}");
            return Err(Error::invalid("warm_modules", warmth.modules().join(", "), expected));
        }
        let pidfd =
            process::open_pidfd(second.cast_signed()).step(|| "open the zygote's pidfd".into())?;
        if let Placement::Resident = self.group.placement() {
            self.group.admit_spawner(second)?;
        }
        self.parent = second;
        self.zygote = Some(pidfd);
        Ok(())
    }
}
