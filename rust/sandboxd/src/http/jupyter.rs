//! `POST /run_jupyter`: SandboxFusion's contract for cells that share one kernel.
//!
//! The kernel and what drives it (`jupyter_driver.py`) are one run in one sandbox, which has no network:
//! the two speak over Unix sockets. The driver's interpreter is that of the language `jupyter`, if a table
//! of the daemon's owner has one, and else of `python`; it must be able to import `ipykernel`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Outcome, Submission, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::endpoint::Endpoint;
use super::fusion::{self, Command, RunStatus};
use super::fusion_request::{Faults, Reader, no_memory_limit};
use super::{Caller, answer, body, run};
use crate::app::App;

const DRIVER: &str = include_str!("jupyter_driver.py");
/// The language that a table may have for it.
const OWN: &str = "jupyter";
/// What to do where the kernel is missing.
const REMEDY: &str = "ipykernel is missing for the interpreter in the sandbox: install the packages \
                      ipykernel and jupyter_client there, or give the daemon a language `jupyter` whose \
                      interpreter has them";
/// Seconds that a kernel may take to start. They are not the cells'.
const START: f64 = 60.0;

/// SandboxFusion's request. As its server does, this takes numbers that are written as text, and passes
/// over fields that it does not know.
#[derive(Debug, JsonSchema, PartialEq)]
#[schemars(rename = "RunJupyterRequest")]
struct RunJupyter {
    /// What is run, one after the other.
    cells: Vec<String>,
    /// Seconds that each cell may take; 0: as many as all.
    #[schemars(default)]
    cell_timeout: f64,
    /// Seconds that all cells may take.
    #[schemars(default = "total_timeout")]
    total_timeout: f64,
    /// -1: the daemon's own.
    #[schemars(rename = "memory_limit_MB", default = "no_memory_limit")]
    memory_limit_mb: i64,
    /// The one kernel there is.
    #[schemars(default)]
    kernel: Kernel,
    /// Files in base64, by path; null is passed over.
    #[schemars(default, with = "BTreeMap<String, Option<String>>")]
    files: BTreeMap<String, Vec<u8>>,
    /// Files that are wanted back.
    #[schemars(default)]
    fetch_files: Vec<String>,
}

/// A kernel's name.
#[derive(Debug, Default, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Kernel {
    /// IPython's.
    #[default]
    Python3,
}

fn total_timeout() -> f64 {
    45.0
}

/// SandboxFusion's answer.
#[derive(Default, JsonSchema, Serialize)]
#[schemars(rename = "RunJupyterResponse")]
struct RunJupyterAnswer {
    /// `Success` also where a cell has raised: its `error` tells.
    status: RunStatus,
    /// What the sandbox has to say of its own fault.
    message: String,
    /// What became of the process that drives the kernel.
    driver: Option<Command>,
    /// What each cell gave; where they were out of time or have ended the kernel, those that were begun.
    cells: Vec<Cell>,
    /// The daemon's `pod_name`.
    executor_pod_name: Option<String>,
    /// Those of the wanted files that are there, in base64.
    files: BTreeMap<String, String>,
}

/// What the driver tells.
#[derive(Deserialize)]
struct Report {
    status: String,
    cells: Vec<Cell>,
}

/// What a cell gave.
// It is read and written again: a cell may have forged it.
#[derive(Deserialize, JsonSchema, Serialize)]
#[schemars(rename = "CellRunResult")]
struct Cell {
    /// The first 1048576 characters.
    stdout: String,
    /// The first 1048576 characters.
    stderr: String,
    /// What it showed, each by media type.
    display: Vec<Map<String, Value>>,
    /// What it raised: `ename`, `evalue` and `traceback`.
    error: Vec<Map<String, Value>>,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/run_jupyter", run_jupyter)
            .summary("Run cells in one kernel, by SandboxFusion's contract")
            .takes::<RunJupyter>()
            .runs()
            .gives::<RunJupyterAnswer>(200, "What became of them, whatever the status.")
            .refuses(400, "The body is cut.")
            .gives::<Faults>(422, "The request makes no sense; what is wrong is listed."),
    ]
}

/// Runs them.
async fn run_jupyter(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let asked = match body::read(&app, request).await {
        Ok(bytes) => RunJupyter::parse(&bytes),
        Err(response) => return response,
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(faults) => return faults.into_response(),
    };
    let mut reply = RunJupyterAnswer {
        executor_pod_name: app.config.pod_name.clone(),
        ..RunJupyterAnswer::default()
    };
    let language = if app.sandbox.missing(OWN).is_some() { OWN } else { "python" };
    if let Some(missing) = fusion::missing(&app, language) {
        (reply.status, reply.message) = (RunStatus::SandboxError, missing);
        return Json(reply).into_response();
    }
    let mut submission = asked.into_submission(language);
    let most = &app.config.sandbox.most;
    if let Err(error) = run::within(&submission.limits, most) {
        return Faults::of_value(&error.to_string()).into_response();
    }
    // Beside the cells' time there is the kernel's, if the daemon's owner gives so much.
    let wall = submission.limits.wall_seconds.map(|cells| cells + START);
    submission.limits.wall_seconds = match (wall, most.wall_seconds) {
        (Some(wall), Some(most)) => Some(wall.min(most)),
        (wall, _) => wall,
    };
    match app.run(&caller.client, submission).await {
        Ok(steps) => {
            reply.fill(&caller, steps.into_outcome());
            Json(reply).into_response()
        }
        Err(fault) => {
            answer::of_fault(&caller, &fault, |message| Faults::of_value(message).into_response())
        }
    }
}

impl RunJupyter {
    fn parse(body: &[u8]) -> Result<Self, Faults> {
        let mut reader = Reader::new(body)?;
        let request = Self {
            cells: reader.required_texts("cells"),
            cell_timeout: reader.seconds("cell_timeout", 0.0),
            total_timeout: reader.seconds("total_timeout", total_timeout()),
            memory_limit_mb: reader.integer("memory_limit_MB", no_memory_limit()),
            kernel: Kernel::Python3,
            files: reader.files(),
            fetch_files: reader.texts("fetch_files"),
        };
        reader.only("kernel", "python3");
        reader.end(request)
    }

    fn into_submission(self, language: &str) -> Submission {
        let total = self.total_timeout.max(0.001);
        let stdin = json!({
            "cells": self.cells,
            "cell_timeout": self.cell_timeout.max(0.0),
            "total_timeout": total,
            "start_timeout": START,
        });
        let limits = LimitChanges {
            wall_seconds: Some(total),
            ..fusion::limits(total + START, self.memory_limit_mb)
        };
        Submission {
            source: DRIVER.to_owned(),
            language: language.to_owned(),
            stdin: stdin.to_string().into_bytes(),
            files: self.files,
            fetch: self.fetch_files,
            limits,
            ..Submission::default()
        }
    }
}

impl RunJupyterAnswer {
    fn fill(&mut self, caller: &Caller, mut outcome: Outcome) {
        let report = serde_json::from_slice::<Report>(&outcome.stdout);
        let files = std::mem::take(&mut outcome.files);
        if outcome.verdict == Verdict::SandboxError {
            (self.status, self.message) = (RunStatus::SandboxError, run::message(caller, &outcome));
        }
        // What the driver printed is its report.
        outcome.stdout.clear();
        let has_ended = outcome.verdict == Verdict::Ok;
        let mut driver = fusion::command(caller, outcome);
        match report {
            _ if self.status == RunStatus::SandboxError => {}
            Ok(report) if has_ended && report.status == "missing" => {
                (self.status, self.message) = (RunStatus::SandboxError, REMEDY.to_owned());
            }
            Ok(report) if has_ended => {
                let files = files.iter().map(|(path, c)| (path.clone(), STANDARD.encode(c)));
                (self.cells, self.files) = (report.cells, files.collect());
                match report.status.as_str() {
                    "Finished" => {}
                    status => {
                        self.status = RunStatus::Failed;
                        if status == "TimeLimitExceeded" {
                            driver.run_out_of_time();
                        }
                    }
                }
            }
            _ => self.status = RunStatus::Failed,
        }
        self.driver = Some(driver);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_its_servers() {
        let request = RunJupyter::parse(br#"{"cells": ["a"], "more": 1}"#).unwrap();
        let expected = RunJupyter {
            cells: vec!["a".into()],
            cell_timeout: 0.0,
            total_timeout: 45.0,
            memory_limit_mb: -1,
            kernel: Kernel::Python3,
            files: BTreeMap::new(),
            fetch_files: Vec::new(),
        };
        assert_eq!(request, expected);
        for body in [&br#"{}"#[..], br#"{"cells": [1]}"#, br#"{"cells": [], "kernel": "r"}"#] {
            assert!(RunJupyter::parse(body).is_err());
        }
    }

    fn reply(verdict: Verdict, printed: &str) -> RunJupyterAnswer {
        let caller = Caller { client: String::new(), request_id: "r".into() };
        let mut reply = RunJupyterAnswer::default();
        let outcome = Outcome {
            verdict,
            exit_code: Some(0),
            stdout: printed.into(),
            ..Outcome::sandbox_error("/home/of/ours")
        };
        reply.fill(&caller, outcome);
        reply
    }

    #[test]
    fn a_report_is_believed_only_as_far_as_it_has_the_form() {
        let cell = r#"{"stdout": "x", "stderr": "", "display": [], "error": [], "more": 1}"#;
        let report = |status: &str| format!(r#"{{"status": "{status}", "cells": [{cell}]}}"#);
        let cases = [
            (Verdict::Ok, report("Finished"), RunStatus::Success, 1),
            (Verdict::Ok, report("TimeLimitExceeded"), RunStatus::Failed, 1),
            (Verdict::Ok, report("anything"), RunStatus::Failed, 1),
            (Verdict::Ok, report("missing"), RunStatus::SandboxError, 0),
            (Verdict::Ok, "{}".into(), RunStatus::Failed, 0),
            (Verdict::WallLimit, report("Finished"), RunStatus::Failed, 0),
            (Verdict::SandboxError, report("Finished"), RunStatus::SandboxError, 0),
        ];
        for (verdict, printed, status, cells) in cases {
            let found = reply(verdict, &printed);
            assert!(!serde_json::to_string(&found).unwrap().contains("/home"));
            assert_eq!((found.status, found.cells.len()), (status, cells), "{printed}");
        }
    }
}
