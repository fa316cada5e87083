//! The samplers against naive oracles that keep lists and walk along them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may end by panicking")]

mod index;
mod oracle;
mod prompts;
