//! Ending a run before its time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::Result;
use crate::error::Step;
use crate::sys::descriptor::{self, Poll, poll};

/// A caller's means to end the run that it is given to, from any thread. Once used it stays so: a run
/// that starts later ends at once.
#[derive(Debug)]
pub struct Cancel(OwnedFd);

impl Cancel {
    /// A new one, for one submission.
    ///
    /// # Errors
    ///
    /// [`crate::Error::System`] if there are too many descriptors.
    pub fn new() -> Result<Self> {
        descriptor::event().map(Self).step(|| "make an event".into())
    }

    /// Ends the run. Its outcome is a `sandbox_error`, if it has not come to its own end.
    pub fn cancel(&self) {
        // A counter that is full, which cannot be reached, would say the same.
        let _ = descriptor::write(self.0.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let mut wait = [Poll::readable(Some(self.0.as_fd()))];
        poll(&mut wait, Some(std::time::Duration::ZERO)).is_ok_and(|ready| ready > 0)
    }

    /// What becomes readable when it is used.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_used() {
        let cancel = Cancel::new().unwrap();
        assert!(!cancel.is_cancelled());
        cancel.cancel();
        cancel.cancel();
        assert!(cancel.is_cancelled() && cancel.is_cancelled());
    }
}
