//! What counts as a repetition: the settings, their defaults and their limits.

use crate::{Error, Result};

/// The longest period that the detector can be asked to look for, in tokens.
pub const MAX_PERIOD: usize = 16384;

/// When the tail of a stream counts as a loop.
///
/// # Design
///
/// The defaults are meant for tokens of a language model: four copies in a row that fill at least
/// 256 tokens. Sane text holds short runs (rules of hyphens, rows of zeros, `1 + 1 + 1 + …`), and
/// stopping a loop of a few tokens a hundred tokens earlier saves nothing, so `min_covered` is
/// generous; four verbatim copies of anything longer are no accident. Streams of a toy vocabulary,
/// whose responses are short, want a smaller `min_covered`.
///
/// ```
/// use k15_core::repetition::Settings;
/// let settings = Settings::default();
/// assert_eq!(settings.least_tail(10), 256);
/// assert_eq!(settings.least_tail(1000), 4000);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Exact loops of periods 1 to this many tokens are looked for; at most [`MAX_PERIOD`].
    pub max_period: usize,
    /// How often the period must stand in a row, the first time included; 2 to 64.
    pub min_repeats: usize,
    /// How many tokens the copies must cover together; 2 to 65536.
    pub min_covered: usize,
    /// The watch for near-repeats; `None` switches it off.
    pub near: Option<Near>,
}

/// When a tail without an exact period counts as a loop all the same: too few n-grams are new.
///
/// # Design
///
/// The novelty of a window is the number of different n-grams among its last `w` n-grams, divided
/// by `w`. It is measured for windows of `window`, 2 `window`, 4 `window`, … up to `max_window`, so
/// that loops of a few tokens are seen early and loops of a page are seen at all. A novelty of 0.1
/// means that what stands in the window stands there ten times over. A text of one period p has
/// p/w, and a token that changes once a period adds about `ngram` / p.
///
/// The defaults are meant for tokens. On bytes or characters n-grams recur much more often in sane
/// text: make `ngram` longer there. A handful of symbols has so few n-grams that every text over them
/// is a near-repeat: switch the watch off.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    /// Tokens in an n-gram; 1 to 64.
    pub ngram: usize,
    /// The smallest window, in n-grams; at least 16.
    pub window: usize,
    /// The largest window, in n-grams; `window` to 65536.
    pub max_window: usize,
    /// Novelty below this share is a loop; above 0, below 1.
    pub novelty: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Default for Near {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Near {
    /// What [`Default`] gives.
    pub const DEFAULT: Self = Self { ngram: 8, window: 1024, max_window: 16384, novelty: 0.125 };
}

impl Settings {
    /// What [`Default`] gives.
    pub const DEFAULT: Self = Self {
        max_period: MAX_PERIOD,
        min_repeats: 4,
        min_covered: 256,
        near: Some(Near::DEFAULT),
    };

    /// The length in tokens from which a tail of period `period` is a loop:
    /// max(`min_repeats` · `period`, `min_covered`). It is reported at the latest at 1.5 times that.
    pub fn least_tail(&self, period: usize) -> usize {
        (self.min_repeats * period).max(self.min_covered)
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] names the first field that is.
    pub fn validate(&self) -> Result<()> {
        within("max_period", self.max_period, 1, MAX_PERIOD)?;
        within("min_repeats", self.min_repeats, 2, 64)?;
        within("min_covered", self.min_covered, 2, 65536)?;
        let Some(near) = &self.near else { return Ok(()) };
        within("near_ngram", near.ngram, 1, 64)?;
        within("near_window", near.window, 16, 65536)?;
        within("near_max_window", near.max_window, near.window, 65536)?;
        if near.novelty > 0.0 && near.novelty < 1.0 {
            return Ok(());
        }
        Err(Error::invalid("near_novelty", near.novelty, "a share above 0 and below 1"))
    }
}

fn within(field: &'static str, value: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(field, value, format!("{least} to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_held_to_its_range() {
        let near = Near::default();
        let cases = [
            (
                Settings { max_period: 0, ..Settings::default() },
                "max_period = 0: expected 1 to 16384",
            ),
            (Settings { max_period: 16385, ..Settings::default() }, "max_period = 16385"),
            (
                Settings { min_repeats: 1, ..Settings::default() },
                "min_repeats = 1: expected 2 to 64",
            ),
            (Settings { min_covered: 1, ..Settings::default() }, "min_covered = 1: expected 2"),
            (with(Near { ngram: 0, ..near.clone() }), "near_ngram = 0: expected 1 to 64"),
            (with(Near { window: 15, ..near.clone() }), "near_window = 15: expected 16"),
            (with(Near { max_window: 99, ..near.clone() }), "near_max_window = 99: expected 1024"),
            (with(Near { novelty: 0.0, ..near.clone() }), "near_novelty = 0: expected a share"),
            (with(Near { novelty: f64::NAN, ..near }), "near_novelty = NaN"),
        ];
        for (settings, message) in cases {
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        Settings::default().validate().unwrap();
        Settings { near: None, ..Settings::default() }.validate().unwrap();
    }

    fn with(near: Near) -> Settings {
        Settings { near: Some(near), ..Settings::default() }
    }
}
