//! Which prompts may be drawn at an iteration: from easy to hard.

use crate::{Error, Result};

/// What tells an easy prompt from a hard one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The label that came with the prompt; greater is harder.
    Difficulty,
    /// The measured success rate; smaller is harder.
    PassRate,
}

/// How the admitted range grows: at iteration 0 the easiest `start` of it, then linearly to all of
/// it at iteration `iterations`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// The share of the range that iteration 0 admits, from 0 to 1.
    pub start: f64,
    /// The iteration from which the whole range is admitted; at least 1.
    pub iterations: u64,
}

/// The prompts that an iteration admits, by two bounds that can be used alone or together.
///
/// # Design
///
/// The lower bound is the report's curriculum (section 2.3.3): iterations 0 to `warmup_iterations`
/// − 1 admit all prompts, later ones only the hard. The upper bound is the pace: at first only the
/// easy ones, then ever harder ones. Ranges are of values, not of ranks: for labels from the least
/// to the greatest of the set, for success rates from 1 to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curriculum {
    /// What is compared.
    pub measure: Measure,
    /// How many iterations go by before `hard` applies.
    pub warmup_iterations: u64,
    /// The least difficulty, or the greatest success rate, that counts as hard.
    pub hard: Option<f64>,
    /// How fast the harder prompts come in; None admits them from the start.
    pub pace: Option<Pace>,
}

impl Curriculum {
    pub(super) fn validate(&self) -> Result<()> {
        let by_rate = self.measure == Measure::PassRate;
        let field = if by_rate { "max_pass_rate" } else { "min_difficulty" };
        if self.hard.is_none() && self.pace.is_none() {
            let expected = format!("{field}, pace_iterations or both with it");
            return Err(Error::invalid("curriculum", self.name(), expected));
        }
        match self.hard {
            Some(rate) if by_rate && !(0.0..=1.0).contains(&rate) => {
                return Err(Error::invalid(field, rate, "a number from 0 to 1"));
            }
            Some(label) if !label.is_finite() => {
                return Err(Error::invalid(field, label, "a finite number"));
            }
            None if self.warmup_iterations > 0 => {
                let expected = format!("0, or {field} with it");
                return Err(Error::invalid("warmup_iterations", self.warmup_iterations, expected));
            }
            _ => {}
        }
        match self.pace {
            Some(pace) if !(0.0..=1.0).contains(&pace.start) => {
                Err(Error::invalid("pace_start", pace.start, "a number from 0 to 1"))
            }
            Some(Pace { iterations: 0, .. }) => {
                Err(Error::invalid("pace_iterations", 0, "a count of at least 1"))
            }
            _ => Ok(()),
        }
    }

    fn name(&self) -> &'static str {
        match self.measure {
            Measure::Difficulty => "difficulty",
            Measure::PassRate => "pass_rate",
        }
    }

    /// The bounds at an iteration, on the scale of hardness: the label, or the success rate with
    /// its sign turned. `labels` are the least and the greatest label of the set.
    pub(super) fn bounds(&self, iteration: u64, labels: (f64, f64)) -> Bounds {
        let (easiest, hardest) = match self.measure {
            Measure::Difficulty => labels,
            Measure::PassRate => (-1.0, 0.0),
        };
        let from = match (self.hard, self.measure) {
            (Some(_), _) if iteration < self.warmup_iterations => f64::NEG_INFINITY,
            (Some(label), Measure::Difficulty) => label,
            (Some(rate), Measure::PassRate) => -rate,
            (None, _) => f64::NEG_INFINITY,
        };
        let to = match self.pace {
            Some(Pace { start, iterations }) if iteration < iterations => {
                // Divided last: with start = 0 and whole labels the bound is on a label exactly.
                let reached = start * iterations as f64 + (1.0 - start) * iteration as f64;
                easiest + (hardest - easiest) * reached / iterations as f64
            }
            _ => f64::INFINITY,
        };
        Bounds { from, to }
    }
}

/// The hardness that is admitted, both ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Bounds {
    pub(super) const ALL: Self = Self { from: f64::NEG_INFINITY, to: f64::INFINITY };

    /// How far outside a hardness lies; 0 inside.
    pub(super) fn distance(&self, hardness: f64) -> f64 {
        (self.from - hardness).max(hardness - self.to).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(curriculum: &Curriculum, iteration: u64, hardness: &[f64]) -> Vec<f64> {
        let bounds = curriculum.bounds(iteration, (1.0, 7.0));
        hardness.iter().copied().filter(|&h| bounds.distance(h) <= 0.0).collect()
    }

    #[test]
    fn warmup_admits_all_then_only_the_hard() {
        let labels = [1.0, 4.0, 5.0, 7.0];
        let curriculum = Curriculum {
            measure: Measure::Difficulty,
            warmup_iterations: 3,
            hard: Some(5.0),
            pace: None,
        };
        assert_eq!(admitted(&curriculum, 2, &labels), labels);
        assert_eq!(admitted(&curriculum, 3, &labels), [5.0, 7.0]);

        let by_rate = Curriculum { measure: Measure::PassRate, hard: Some(0.3), ..curriculum };
        let rates = [-1.0, -0.3000001, -0.3, -0.0];
        assert_eq!(admitted(&by_rate, 2, &rates), rates);
        assert_eq!(admitted(&by_rate, 3, &rates), [-0.3, -0.0]);
    }

    #[test]
    fn pace_goes_from_the_easy_share_to_all() {
        let labels = [1.0, 2.0, 4.0, 4.1, 5.5, 7.0];
        let pace = Some(Pace { start: 0.5, iterations: 10 });
        let curriculum =
            Curriculum { measure: Measure::Difficulty, warmup_iterations: 0, hard: None, pace };
        assert_eq!(admitted(&curriculum, 0, &labels), [1.0, 2.0, 4.0]);
        assert_eq!(admitted(&curriculum, 5, &labels), [1.0, 2.0, 4.0, 4.1, 5.5]);
        assert_eq!(admitted(&curriculum, 9, &labels), [1.0, 2.0, 4.0, 4.1, 5.5]);
        assert_eq!(admitted(&curriculum, 10, &labels), labels);

        let by_rate = Curriculum { measure: Measure::PassRate, ..curriculum };
        assert_eq!(admitted(&by_rate, 0, &[-0.9, -0.5, -0.49]), [-0.9, -0.5]);
        assert_eq!(admitted(&by_rate, 5, &[-0.9, -0.5, -0.24]), [-0.9, -0.5]);
    }
}
