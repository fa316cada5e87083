//! Finds streams of tokens that have begun to repeat themselves, while they are being generated.
//!
//! A tail has period p if each of its tokens equals the one p places before it, the first p
//! excepted. A stream loops *exactly* when its tail has a period p of at most
//! [`Settings::max_period`] and is at least `min_repeats` · p and at least `min_covered` tokens long.
//! It is never reported earlier, and at the latest when that tail is 1.5 times that long (1.25 times,
//! as it is built). It loops *nearly* when hardly any n-gram of a window is new: see [`Near`].
//!
//! # Design
//!
//! Because a report may be late by a share of the tail's own length, long periods need to be looked
//! for less often than short ones: a period p every Θ(p) tokens, at a cost of O(p). That is O(1) a
//! token for each doubling of p, so O(log P) in all, in the worst case and not only on average,
//! because all periods of a tail come out of one linear pass. The near-repeat watch walks the same
//! kept tokens on the same kind of schedule. Nothing is kept but the tokens, four bytes each, and
//! of them the latest O(P).
//!
//! Several streams share one [`Detector`] so that a decode step costs one call.
//!
//! # Examples
//!
//! ```
//! use k15_core::repetition::{Detector, Kind, Settings};
//!
//! let mut detector = Detector::new(1, Settings::default())?;
//! let sane: Vec<i32> = (0..1000).collect();
//! assert_eq!(detector.extend(0, &sane)?, None);
//!
//! let stuck: Vec<i32> = [7, 8, 9].repeat(200);
//! let found = detector.extend(0, &stuck)?.expect("600 tokens of period 3");
//! assert_eq!((found.start, found.period, found.kind), (1000, 3, Kind::Exact));
//! assert!((256..=384).contains(&found.covered));
//! # Ok::<(), k15_core::Error>(())
//! ```
//!
//! A response that goes on in a later iteration is replayed first, so that a loop which began before
//! the break is seen:
//!
//! ```
//! # use k15_core::repetition::{Detector, Settings};
//! let settings = Settings { min_covered: 12, ..Settings::default() };
//! let mut detector = Detector::new(2, settings)?;
//! assert_eq!(detector.extend(1, &[4, 1, 2, 3, 1, 2, 3, 1, 2])?, None);
//! let (streams, tokens) = ([1, 0, 1, 1, 0, 1, 1, 1, 1], [3, 5, 1, 2, 6, 3, 1, 2, 3]);
//! let found = detector.push_many(&streams, &tokens)?;
//! assert_eq!(found.len(), 1);
//! let (stream, found) = found[0];
//! assert_eq!((stream, found.start, found.period), (1, 1, 3));
//! # Ok::<(), k15_core::Error>(())
//! ```

mod novelty;
mod plan;
mod settings;
mod stream;
mod tail;

pub use settings::{MAX_PERIOD, Near, Settings};

use crate::{Error, Result};
use plan::Plan;
use stream::{Scratch, Stream};

/// The most streams of one detector.
pub const MAX_STREAMS: usize = 1 << 20;

/// How a tail repeats itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With a period.
    Exact,
    /// Without one, but with few n-grams that are new.
    Near,
}

/// A repetition in the tail of a stream, in tokens since the stream's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// Where it begins: the earliest position from which the tail has this period, or an estimate
    /// for a near-repeat.
    pub start: usize,
    /// Its period; 0 for a near-repeat.
    pub period: usize,
    /// How many tokens it covers: all from `start` on.
    pub covered: usize,
    /// Exact or near.
    pub kind: Kind,
}

/// Watches streams of tokens, each by itself.
///
/// A stream reports once. After its loop was reported, further tokens of it are ignored, at next to
/// no cost, until [`reset`](Self::reset) begins a new stream in its slot.
#[derive(Debug)]
pub struct Detector {
    settings: Settings,
    plan: Plan,
    streams: Vec<Stream>,
    scratch: Scratch,
}

impl Detector {
    /// A detector with empty streams in the slots 0 to `streams` - 1.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if `streams` is 0 or above [`MAX_STREAMS`], or a setting is out of
    /// range.
    pub fn new(streams: usize, settings: Settings) -> Result<Self> {
        if streams == 0 || streams > MAX_STREAMS {
            return Err(Error::invalid("streams", streams, format!("1 to {MAX_STREAMS}")));
        }
        settings.validate()?;
        let plan = Plan::new(&settings);
        let streams = vec![Stream::default(); streams];
        Ok(Self { settings, plan, streams, scratch: Scratch::default() })
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Adds one token to a stream; the loop, if this token made one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if there is no such stream.
    #[inline]
    pub fn push(&mut self, stream: usize, token: i32) -> Result<Option<Loop>> {
        let count = self.streams.len();
        let slot = self.streams.get_mut(stream).ok_or_else(|| no_such(stream, count))?;
        Ok(slot.push(token, &self.settings, &self.plan, &mut self.scratch))
    }

    /// Adds token i to stream `streams[i]`, in this order; the streams that loop now.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if the lengths differ or a stream does not exist. Nothing was added
    /// then.
    pub fn push_many(&mut self, streams: &[i64], tokens: &[i32]) -> Result<Vec<(usize, Loop)>> {
        if streams.len() != tokens.len() {
            let expected = format!("{}, one for each of streams", streams.len());
            return Err(Error::invalid("tokens", format!("{} entries", tokens.len()), expected));
        }
        let count = self.streams.len();
        let exists = |&&stream: &&i64| usize::try_from(stream).is_ok_and(|slot| slot < count);
        if let Some(stream) = streams.iter().find(|stream| !exists(stream)) {
            return Err(no_such(stream, count));
        }
        let mut found = Vec::new();
        for (&stream, &token) in streams.iter().zip(tokens) {
            let slot = usize::try_from(stream).map_err(|_| no_such(stream, count))?;
            let stream = &mut self.streams[slot];
            if let Some(looping) = stream.push(token, &self.settings, &self.plan, &mut self.scratch)
            {
                found.push((slot, looping));
            }
        }
        Ok(found)
    }

    /// Adds tokens to one stream: what was generated before a break, or a whole response.
    ///
    /// Tokens after the one that made the loop are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if there is no such stream.
    pub fn extend(&mut self, stream: usize, tokens: &[i32]) -> Result<Option<Loop>> {
        let count = self.streams.len();
        let slot = self.streams.get_mut(stream).ok_or_else(|| no_such(stream, count))?;
        Ok(tokens
            .iter()
            .find_map(|&token| slot.push(token, &self.settings, &self.plan, &mut self.scratch)))
    }

    /// Empties a slot for a new stream.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] if there is no such stream.
    pub fn reset(&mut self, stream: usize) -> Result<()> {
        let count = self.streams.len();
        self.streams.get_mut(stream).ok_or_else(|| no_such(stream, count))?.reset();
        Ok(())
    }
}

fn no_such(stream: impl std::fmt::Display, count: usize) -> Error {
    Error::invalid("stream", stream, format!("a slot from 0 to {}", count - 1))
}
