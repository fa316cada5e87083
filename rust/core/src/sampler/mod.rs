//! Which prompts to roll out next, and which entries of a buffer to train on.
//!
//! # Design
//!
//! [`PriorityIndex`] draws entries in proportion to their weights; it knows nothing of prompts.
//! [`PromptSampler`] composes it with a [`SuccessRates`] tracker, a [`Rule`] that turns a success
//! rate into a weight, and a [`Curriculum`] that says which prompts may be drawn at all. A new rule
//! is a variant of [`Rule`] with its weight; a new curriculum is a [`Measure`] or a bound.
//!
//! Nothing here has a random source: a draw is a pure function of the state and its arguments, the
//! seed among them.

mod beta;
mod curriculum;
mod descent;
mod index;
mod line;
mod prompts;
mod rates;
mod rule;
mod state;
mod stream;

pub use curriculum::{Curriculum, Measure, Pace};
pub use index::{MAX_ENTRIES, MAX_WEIGHT, PriorityIndex};
pub use prompts::PromptSampler;
pub use rates::SuccessRates;
pub use rule::Rule;
