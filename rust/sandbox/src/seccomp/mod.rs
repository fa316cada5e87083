//! The filter on system calls: an allow-list as data, compiled to a balanced tree.
//!
//! # Design
//!
//! The list is [`RULES`]: a call that is not named in it fails, and so does any that future kernels
//! bring. It is compiled into a binary search over ranges of call numbers, because a linear list of
//! 250 comparisons costs more to run and to load. Another architecture's calls (the 32 bit entry) and
//! the x32 numbers kill the process: their numbers mean other calls.
//!
//! Loading a filter costs 25 to 60 µs, so a slot's spawner loads it once and every run inherits it.
//! But the spawner must still do what no program may: make namespaces and mounts. These calls
//! are let through when their sixth argument, which none of them has, is a secret of 64 bits that
//! the spawner draws when it starts ([`When::SetupKey`]). A program cannot read it (registers are
//! cleared by exec, the filter and the spawner's memory are closed to it), and if it guessed it, it
//! would still lack every capability that these calls need.

mod compile;
mod rules;

pub use compile::compile;
pub use rules::{RULES, Rule, When};
