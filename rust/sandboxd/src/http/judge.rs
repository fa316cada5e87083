//! The checker that is a program: it says whether what another program printed is right.
//!
//! It is called as those of testlib are, with the names of three files: what the program could read, what it
//! printed, and what was expected. It ends with 0 to accept and with 1 or 2 to reject; with anything else,
//! or if a limit ends it, it has failed itself, and nothing is known about the program. A file `score`
//! that it leaves holds a number from 0 to 1.

use std::collections::BTreeMap;

use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Error, Outcome, Submission, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::object::object;
use super::run;
use crate::app::App;

/// The names of its files, in the order of its arguments.
const FILES: [&str; 3] = ["input", "output", "answer"];
/// Where it may leave a score.
const SCORE: &str = "score";
/// Bytes of what it says that are passed on.
const SAID: usize = 1024;

/// A program that judges.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Judge {
    /// The program's text. It is compiled once for all cases.
    source: String,
    /// One of `GET /v1/languages`.
    #[schemars(example = &"cpp")]
    language: String,
    /// Limits of each of its runs that differ from the daemon's own.
    #[serde(default, deserialize_with = "object")]
    limits: LimitChanges,
    /// Limits of compiling that differ from the daemon's own.
    #[serde(default, deserialize_with = "object")]
    compile_limits: LimitChanges,
    /// The code that it accepts with.
    #[serde(default)]
    accepts: i32,
    /// The codes that it rejects with.
    #[serde(default = "rejects")]
    rejects: Vec<i32>,
}

fn rejects() -> Vec<i32> {
    vec![1, 2]
}

/// What it said of one output.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Judgement {
    /// Whether it accepts; `None` if it failed.
    #[serde(skip)]
    pub passed: Option<bool>,
    /// How its run ended.
    #[schemars(with = "Verdict")]
    verdict: &'static str,
    /// Its exit code, if it exited.
    exit_code: Option<i32>,
    /// What it left as `score`.
    score: Option<f64>,
    /// The start of what it wrote, or what is wrong with it.
    message: String,
}

impl Judge {
    /// Refuses limits and codes that make no sense.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] names the field.
    pub fn check(&self, app: &App) -> Result<(), Error> {
        for changes in [&self.limits, &self.compile_limits] {
            run::within(changes, &app.config.sandbox.most)?;
        }
        let language = format!("{:?}", self.language);
        match app.sandbox.missing(&self.language) {
            Some("") => {}
            Some(missing) => return Err(Error::invalid("checker.language", language, missing)),
            None => {
                return Err(Error::invalid("checker.language", language, "one of /v1/languages"));
            }
        }
        if self.rejects.contains(&self.accepts) {
            let rejects = format!("{:?}", self.rejects);
            return Err(Error::invalid("checker.rejects", rejects, "other codes than accepts"));
        }
        Ok(())
    }

    /// What it is run with for one output.
    pub fn submission(&self, input: Vec<u8>, output: Vec<u8>, answer: Vec<u8>) -> Submission {
        let files = FILES.map(str::to_owned).into_iter().zip([input, output, answer]);
        Submission {
            source: self.source.clone(),
            language: self.language.clone(),
            arguments: FILES.map(str::to_owned).to_vec(),
            run_files: files.collect(),
            fetch: vec![SCORE.to_owned()],
            limits: self.limits.clone(),
            compile_limits: self.compile_limits.clone(),
            ..Submission::default()
        }
    }

    /// What its end says.
    pub fn judge(&self, mut outcome: Outcome, own_fault: String) -> Judgement {
        let score = read_score(&outcome.files);
        let passed = match (outcome.verdict, outcome.exit_code) {
            (Verdict::Ok | Verdict::NonzeroExit, Some(code)) if code == self.accepts => Some(true),
            (Verdict::NonzeroExit | Verdict::Ok, Some(code)) if self.rejects.contains(&code) => {
                Some(false)
            }
            _ => None,
        };
        outcome.stderr.extend_from_slice(&outcome.stdout);
        outcome.stderr.truncate(SAID);
        let said = String::from_utf8_lossy(&outcome.stderr).trim_end().to_owned();
        let message = match outcome.verdict {
            Verdict::SandboxError => own_fault,
            _ if outcome.message.is_empty() => said,
            _ => format!("{}: {said}", outcome.message),
        };
        let mut judgement = Judgement {
            passed,
            verdict: outcome.verdict.name(),
            exit_code: outcome.exit_code,
            score: None,
            message,
        };
        match score {
            Ok(score) => judgement.score = score.filter(|_| passed.is_some()),
            Err(wrong) => (judgement.passed, judgement.message) = (None, wrong),
        }
        judgement
    }
}

impl Judgement {
    /// One that never came about.
    pub fn failed(message: String) -> Self {
        Self { passed: None, verdict: "sandbox_error", exit_code: None, score: None, message }
    }
}

fn read_score(files: &BTreeMap<String, Vec<u8>>) -> Result<Option<f64>, String> {
    let Some(content) = files.get(SCORE) else { return Ok(None) };
    let text = String::from_utf8_lossy(content.get(..SAID.min(content.len())).unwrap_or_default());
    match text.trim().parse::<f64>() {
        Ok(score) if (0.0..=1.0).contains(&score) => Ok(Some(score)),
        _ => Err(format!("score = {:.40?}: expected a number from 0 to 1", text.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Judge {
        serde_json::from_str(text).unwrap()
    }

    fn ended(verdict: Verdict, exit_code: Option<i32>, score: Option<&[u8]>) -> Outcome {
        let files = score.map(|score| (SCORE.to_owned(), score.to_vec())).into_iter().collect();
        let stdout = vec![b'x'; 5000];
        Outcome { verdict, exit_code, files, stdout, ..Outcome::sandbox_error("") }
    }

    #[test]
    fn only_its_codes_judge() {
        let testlib = judge(r#"{"source": "", "language": "c"}"#);
        let icpc = judge(r#"{"source": "", "language": "c", "accepts": 42, "rejects": [43]}"#);
        let (ok, other) = (Verdict::Ok, Verdict::NonzeroExit);
        for (judge, verdict, code, passed) in [
            (&testlib, ok, Some(0), Some(true)),
            (&testlib, other, Some(1), Some(false)),
            (&testlib, other, Some(2), Some(false)),
            (&testlib, other, Some(3), None),
            (&testlib, Verdict::CompileError, Some(1), None),
            (&testlib, Verdict::WallLimit, None, None),
            (&testlib, Verdict::OutputLimit, Some(0), None),
            (&testlib, Verdict::SandboxError, None, None),
            (&icpc, ok, Some(0), None),
            (&icpc, other, Some(1), None),
            (&icpc, other, Some(42), Some(true)),
            (&icpc, other, Some(43), Some(false)),
        ] {
            let found = judge.judge(ended(verdict, code, None), "ours".into());
            assert_eq!(found.passed, passed, "{verdict:?} {code:?}");
            assert!(found.message.len() <= SAID);
        }
    }

    #[test]
    fn a_score_is_a_number_from_0_to_1() {
        let testlib = judge(r#"{"source": "", "language": "c"}"#);
        for (written, passed, score) in [
            (&b" 0.25\n"[..], Some(true), Some(0.25)),
            (b"1", Some(true), Some(1.0)),
            (b"1.01", None, None),
            (b"nan", None, None),
            (b"\xff\x00", None, None),
            (b"", None, None),
        ] {
            let found = testlib.judge(ended(Verdict::Ok, Some(0), Some(written)), String::new());
            assert_eq!((found.passed, found.score), (passed, score), "{written:?}");
        }
    }
}
