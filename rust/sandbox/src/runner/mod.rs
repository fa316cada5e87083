//! The ways of running a program, behind one interface.
//!
//! A [`Runner`] opens slots; a [`RunnerSlot`] runs one job at a time. The pool ([`crate::Pool`]) knows
//! nothing else of them, so a new way is one file here.

mod crun;
mod direct;
mod warm;

pub use crun::Crun;
pub use direct::Direct;
pub(crate) use direct::Users;
pub use warm::{Warm, Warmth};

use crate::{Job, Outcome, Result};

/// A way of running programs.
pub trait Runner: Send + Sync {
    /// Its name in every interface.
    fn name(&self) -> &'static str;

    /// Refuses a job that no slot of this runner could take, before it waits for one.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidInput`] or [`crate::Error::Unenforceable`].
    fn check(&self, job: &Job) -> Result<()>;

    /// Opens a slot. `number` is unlike that of any other slot of the pool, ever.
    ///
    /// # Errors
    ///
    /// When this host does not let it.
    fn open(&self, number: u64) -> Result<Box<dyn RunnerSlot>>;
}

/// A place in which one run at a time lives.
pub trait RunnerSlot: Send {
    /// Whether a run can be given to it. Cheap: it is asked before every run.
    fn is_well(&self) -> bool;

    /// Runs `job`, which [`Runner::check`] has passed.
    ///
    /// # Errors
    ///
    /// [`crate::Error::SlotBroken`] if the slot failed before a verdict: the pool replaces it and runs the
    /// job again elsewhere.
    fn run(&mut self, job: &Job) -> Result<Outcome>;
}
