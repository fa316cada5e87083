//! `POST /v1/batch`: one source, compiled once, with many inputs; results as they come.
//!
//! The first case runs alone: it compiles, and a program that is wrong mostly fails at once. Then as many
//! run at once as there are slots. Each takes its turn in the queue; once the first has started, the
//! others wait for as long as it takes, since their caller sees results come.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use k15_sandbox::{Error, Outcome, Submission, Verdict};
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::checker::Checker;
use super::data::Data;
use super::endpoint::Endpoint;
use super::judge::{Judge, Judgement};
use super::object::{Object, object};
use super::run::{RunAnswer, RunRequest, message};
use super::{Caller, answer, body};
use crate::app::{App, Fault};
use crate::queue::Refused;

/// Before a case that was told to come later does.
const PAUSE: Duration = Duration::from_millis(50);

/// A program, compiled once, and what is different from run to run.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BatchRequest {
    /// As `/v1/run` takes it; a case's arguments come after its own.
    #[serde(deserialize_with = "object")]
    submission: RunRequest,
    /// Its inputs; at least one.
    #[schemars(length(min = 1))]
    cases: Vec<Object<Case>>,
    /// How what it prints is compared with what is expected.
    #[serde(default, deserialize_with = "object")]
    checker: Checker,
    /// Whether no further case is started once one has failed.
    #[serde(default)]
    stop_at_first_failure: bool,
}

/// One input.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "BatchCase")]
#[serde(deny_unknown_fields)]
struct Case {
    /// In place of the submission's.
    stdin: Option<Data>,
    /// What comes after the submission's arguments.
    #[serde(default)]
    arguments: Vec<String>,
    /// What it must print; without it a verdict of `ok` passes.
    expected: Option<Data>,
}

/// A line of the answer: what became of a case.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "BatchLine")]
struct Line {
    /// Its place among the cases, from 0.
    case: usize,
    /// Null where the sandbox failed: nothing is known.
    passed: Option<bool>,
    #[serde(flatten)]
    result: RunAnswer,
    /// What the checker said, where it is a program that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    checker: Option<Judgement>,
}

/// The last line. Without it an answer is cut.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "BatchTotal")]
struct Total {
    /// True.
    done: bool,
    /// How many cases there were.
    cases: usize,
    /// How many of them were run.
    run: usize,
    /// How many passed.
    passed: usize,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    let about = "A line of JSON for each case, as it ends, and one for the whole.";
    vec![
        Endpoint::new(Method::POST, "/v1/batch", batch)
            .summary("Run a program on many inputs")
            .takes::<BatchRequest>()
            .runs()
            .answers(200, about, "application/x-ndjson", |generator| {
                let line = generator.subschema_for::<Line>();
                let total = generator.subschema_for::<Total>();
                json_schema!({"description": "One line.", "anyOf": [line, total]})
            }),
    ]
}

/// What all cases share.
struct Batch {
    app: Arc<App>,
    caller: Caller,
    submission: Submission,
    cases: Vec<Object<Case>>,
    checker: Checker,
    stops: bool,
}

/// Runs them.
async fn batch(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let batch = match body::read_json(&app, request).await {
        Ok(request) => Batch::new(app, caller, request),
        Err(response) => return response,
    };
    let batch = match batch {
        Ok(batch) => Arc::new(batch),
        Err(error) => return answer::invalid(&error.to_string()),
    };
    let first = match batch.run(0).await {
        Ok(line) => line,
        Err(fault) => return answer::of_fault(&batch.caller, &fault, answer::invalid),
    };
    let (lines, taken) = mpsc::channel(16);
    tokio::spawn(batch.go_on(first, lines));
    let stream = unfold(taken, async |mut taken: mpsc::Receiver<Bytes>| {
        let line = taken.recv().await?;
        Some((Ok::<_, Infallible>(line), taken))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

impl Batch {
    fn new(app: Arc<App>, caller: Caller, request: BatchRequest) -> Result<Self, Error> {
        if request.cases.is_empty() {
            return Err(Error::invalid("cases", "[]", "at least one"));
        }
        let submission = request.submission.into_submission(&app)?;
        let (cases, checker) = (request.cases, request.checker);
        if let Checker::Program(judge) = &checker {
            judge.check(&app)?;
        }
        Ok(Self { app, caller, submission, cases, checker, stops: request.stop_at_first_failure })
    }

    async fn run(&self, number: usize) -> Result<Line, Fault> {
        let case = &self.cases[number];
        let mut submission = self.submission.clone();
        if let Some(stdin) = &case.stdin {
            submission.stdin.clone_from(&stdin.0);
        }
        submission.arguments.extend_from_slice(&case.arguments);
        let outcome = self.app.run(&self.caller.client, submission).await?.into_outcome();
        let mut passed = self.passes(&outcome, case.expected.as_ref());
        let mut checker = None;
        if let (Checker::Program(judge), Verdict::Ok) = (&self.checker, outcome.verdict) {
            let judgement = self.judge(judge, case, &outcome.stdout).await;
            passed = judgement.passed;
            checker = Some(judgement);
        }
        let result = RunAnswer::new(&self.caller, outcome);
        Ok(Line { case: number, passed, result, checker })
    }

    /// Has the checker's program look at what was printed. Its run waits for its turn however long that takes.
    async fn judge(&self, judge: &Judge, case: &Case, printed: &[u8]) -> Judgement {
        let stdin = case.stdin.as_ref().map_or(&self.submission.stdin, |stdin| &stdin.0);
        let answer = case.expected.as_ref().map_or(&[][..], |expected| &expected.0);
        let submission = judge.submission(stdin.clone(), printed.to_vec(), answer.to_vec());
        loop {
            match self.app.run(&self.caller.client, submission.clone()).await {
                Ok(steps) => {
                    let outcome = steps.into_outcome();
                    let own_fault = message(&self.caller, &outcome);
                    return judge.judge(outcome, own_fault);
                }
                Err(Fault::Refused(Refused::Busy(_))) => tokio::time::sleep(PAUSE).await,
                Err(Fault::Sandbox(error @ Error::InvalidInput { .. })) => {
                    return Judgement::failed(error.to_string());
                }
                Err(_) => return Judgement::failed("the checker was not run".into()),
            }
        }
    }

    fn passes(&self, outcome: &Outcome, expected: Option<&Data>) -> Option<bool> {
        match outcome.verdict {
            Verdict::SandboxError => None,
            Verdict::Ok => {
                Some(expected.is_none_or(|wanted| self.checker.passes(&outcome.stdout, &wanted.0)))
            }
            _ => Some(false),
        }
    }

    /// A case after the first: it waits for its turn however long that takes.
    async fn run_in_turn(self: Arc<Self>, number: usize) -> Line {
        loop {
            match self.run(number).await {
                Ok(line) => return line,
                Err(Fault::Refused(Refused::Busy(_))) => tokio::time::sleep(PAUSE).await,
                Err(Fault::Sandbox(error @ Error::InvalidInput { .. })) => {
                    let result = RunAnswer::invalid(&error);
                    return Line { case: number, passed: None, result, checker: None };
                }
                Err(_) => {
                    let outcome = Outcome::sandbox_error("the case was not run");
                    let result = RunAnswer::new(&self.caller, outcome);
                    return Line { case: number, passed: None, result, checker: None };
                }
            }
        }
    }

    /// Sends the first line and those of the other cases, until all are done or nobody listens.
    async fn go_on(self: Arc<Self>, first: Line, lines: mpsc::Sender<Bytes>) {
        let (mut run, mut passed, mut next) = (0, 0, 1);
        let mut stopped = false;
        // Dropping it ends what runs.
        let mut running = JoinSet::new();
        let mut line = first;
        loop {
            run += 1;
            passed += usize::from(line.passed == Some(true));
            stopped |= self.stops && line.passed != Some(true);
            if lines.send(encode(&line)).await.is_err() {
                return;
            }
            while !stopped
                && next < self.cases.len()
                && running.len() < self.app.config.sandbox.slots
            {
                running.spawn(Arc::clone(&self).run_in_turn(next));
                next += 1;
            }
            if stopped {
                break;
            }
            line = tokio::select! {
                () = lines.closed() => return,
                joined = running.join_next() => match joined {
                    Some(Ok(line)) => line,
                    _ => break,
                },
            };
        }
        let _ =
            lines.send(encode(&Total { done: true, cases: self.cases.len(), run, passed })).await;
    }
}

fn encode(line: &impl Serialize) -> Bytes {
    // Maps with keys that are strings and numbers that are finite do not fail.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
