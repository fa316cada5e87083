//! Whether what a program printed is what was expected.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::judge::Judge;

/// How the two are compared.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "kind")]
pub enum Checker {
    /// Equal but for blanks at the ends of lines and of the whole.
    Exact {},
    /// The same words, whatever is between them.
    Tokens {},
    /// The same words, numbers equal to a relative or absolute tolerance.
    Floats {
        /// The tolerance.
        #[serde(default = "tolerance")]
        tolerance: f64,
    },
    /// A program says so, in the sandbox.
    Program(Box<Judge>),
}

// Variants with no fields have none: those without a list of fields pass over any.
impl Default for Checker {
    fn default() -> Self {
        Self::Tokens {}
    }
}

fn tolerance() -> f64 {
    1e-6
}

impl Checker {
    /// Whether `printed` passes; a program must be asked.
    pub fn passes(&self, printed: &[u8], expected: &[u8]) -> bool {
        match *self {
            Self::Program(_) => false,
            Self::Exact {} => lines(printed).eq(lines(expected)),
            Self::Tokens {} => words(printed).eq(words(expected)),
            Self::Floats { tolerance } => {
                let (mut printed, mut expected) = (words(printed), words(expected));
                loop {
                    match (printed.next(), expected.next()) {
                        (None, None) => return true,
                        (Some(a), Some(b)) if a == b || is_close(a, b, tolerance) => {}
                        _ => return false,
                    }
                }
            }
        }
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.trim_ascii_end().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end)
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn is_close(a: &[u8], b: &[u8], tolerance: f64) -> bool {
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<f64>().ok();
    let (Some(a), Some(b)) = (number(a), number(b)) else { return false };
    // The first covers what has no difference: two infinities.
    let difference = (a - b).abs();
    a.total_cmp(&b).is_eq()
        || difference.is_finite() && difference <= tolerance * a.abs().max(b.abs()).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_equal() {
        let floats = Checker::Floats { tolerance: 1e-6 };
        let cases = [
            (Checker::Exact {}, "1 2 \n3\n\n", "1 2\n3", true),
            (Checker::Exact {}, "1  2\n3", "1 2\n3", false),
            (Checker::Exact {}, " 1", "1", false),
            (Checker::Tokens {}, "1\n\t2 3", "1 2\n3\n", true),
            (Checker::Tokens {}, "1 2.0", "1 2", false),
            (Checker::Tokens {}, "1", "1 2", false),
            (floats.clone(), "1 2.0000001", "1 2", true),
            (floats.clone(), "1000000.5", "1000000", true),
            (floats.clone(), "2.1", "2", false),
            (floats.clone(), "two", "2", false),
            (floats.clone(), "yes 1", "yes 1.0", true),
            (floats.clone(), "inf nan", "inf nan", true),
            (floats.clone(), "inf", "1", false),
            (floats.clone(), "1 2", "1", false),
        ];
        for (checker, printed, expected, passes) in cases {
            let found = checker.passes(printed.as_bytes(), expected.as_bytes());
            assert_eq!(found, passes, "{checker:?}: {printed:?} for {expected:?}");
        }
    }

    #[test]
    fn it_is_named_in_json() {
        let read = |text| serde_json::from_str::<Checker>(text);
        assert_eq!(read(r#"{"kind": "exact"}"#).unwrap(), Checker::Exact {});
        let floats = read(r#"{"kind": "floats", "tolerance": 0.5}"#).unwrap();
        assert_eq!(floats.clone(), Checker::Floats { tolerance: 0.5 });
        assert!(read(r#"{"kind": "other"}"#).is_err());
        assert!(read(r#"{"kind": "exact", "tolerance": 1}"#).is_err());
        assert!(read(r#"{"kind": "floats", "more": 1}"#).is_err());
        let program = r#"{"kind": "program", "source": "", "language": "c"}"#;
        assert!(matches!(read(program).unwrap(), Checker::Program(_)));
        for wrong in [program.replace("source", "code"), program.replace('}', ", \"more\": 1}")] {
            assert!(serde_json::from_str::<Checker>(&wrong).is_err(), "{wrong}");
        }
    }
}
