//! Looks for sockets that a run has left in the slot's network namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::sys::{descriptor, socket};

/// How often the kernel's count is read before a socket counts as left.
const LOOKS: u32 = 200;

/// Whether there are others than `own`, by the file that counts them. Those that were on their way in a
/// circle of sockets live, with their names and files, until the kernel collects them.
pub(super) fn are_left(file: &OwnedFd, own: usize) -> bool {
    let expected = format!("sockets: used {own}\n");
    !(0..LOOKS).any(|look| {
        if look > 0 {
            // The kernel looks for circles when a socket is closed, in a thread of its own.
            drop(socket::pair());
            let _ = descriptor::poll(&mut [], Some(Duration::from_micros(100)));
        }
        let mut text = [0; 32];
        descriptor::read_from_start(file.as_fd(), &mut text).is_ok()
            && text.starts_with(expected.as_bytes())
    })
}
