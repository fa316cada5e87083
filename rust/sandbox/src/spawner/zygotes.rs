//! A slot's zygotes: the one that serves and its successor.

use std::os::fd::BorrowedFd;

use super::zygote::{Recipe, Zygote};
use crate::sys::clone::Stack;
use crate::{Error, Result};

/// The zygotes of a slot, and what they are made of.
#[derive(Default)]
pub(super) struct Zygotes {
    recipe: Option<Recipe>,
    serving: Option<Zygote>,
    next: Option<Zygote>,
}

impl Zygotes {
    /// Has those that are started from now on be made by `recipe`.
    pub(super) fn make_by(&mut self, recipe: Recipe) {
        self.recipe = Some(recipe);
    }

    /// The one that runs are copied from, if there is one.
    pub(super) fn serving(&self) -> Option<&Zygote> {
        self.serving.as_ref()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.serving.iter().len() + self.next.iter().len()
    }

    /// Starts the one that will serve next, unless there is one or nobody said what it is made of.
    pub(super) fn start_next(
        &mut self,
        stack: &mut Stack,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        if let (None, Some(recipe)) = (&self.next, &self.recipe) {
            self.next = Some(Zygote::start(recipe, stack, cgroup)?);
        }
        Ok(())
    }

    /// Has the next one serve, and ends the one that did: the numbers of its two processes.
    pub(super) fn switch(&mut self) -> Result<[u32; 2]> {
        let absent = || Error::SlotBroken("nobody said what a zygote is made of".into());
        let next = self.next.take().ok_or_else(absent)?;
        let pids = next.expect_ready()?;
        self.serving = Some(next);
        Ok(pids)
    }
}
