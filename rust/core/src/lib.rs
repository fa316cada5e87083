//! The systems core of k15core: no Python, no async runtime, no clock and no random source.
//!
//! Time and seeds are arguments of the functions that need them, so that every result is a function
//! of its inputs.

pub mod attention;
mod crew;
pub mod error;
pub mod handover;
pub mod micro_batch;
pub mod noise;
pub mod pack;
mod pages;
pub mod partition;
pub mod repetition;
pub mod runs;
pub mod sampler;
pub mod store;
pub mod values;

pub use error::{Error, Result};
