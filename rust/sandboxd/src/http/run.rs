//! `POST /v1/run`: one source, with everything that the sandbox can be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Error, Outcome, Submission, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::data::Data;
use super::endpoint::Endpoint;
use super::object::object;
use super::{Caller, answer, body};
use crate::app::App;
use crate::log;

/// A program, and what it is run with.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The program's text.
    source: String,
    /// One of `GET /v1/languages`.
    #[schemars(example = &"python")]
    language: String,
    /// What follows the program's name on its command line.
    #[serde(default)]
    arguments: Vec<String>,
    /// What it reads from its standard input.
    #[serde(default)]
    stdin: Data,
    /// Files in its work directory, by relative path.
    #[serde(default)]
    files: BTreeMap<String, Data>,
    /// Files of its work directory that are wanted back.
    #[serde(default)]
    fetch: Vec<String>,
    /// Limits of the run that differ from the daemon's own.
    #[serde(default, deserialize_with = "object")]
    limits: LimitChanges,
    /// Limits of compiling that differ from the daemon's own.
    #[serde(default, deserialize_with = "object")]
    compile_limits: LimitChanges,
}

/// What became of a run: the fields of `k15core.types.RunResult`.
#[derive(JsonSchema, Serialize)]
pub struct RunAnswer {
    /// How it ended.
    #[schemars(with = "Verdict")]
    verdict: &'static str,
    /// Its exit code, if it exited.
    exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    signal: Option<i32>,
    /// What it wrote, up to `output_bytes`.
    stdout: Data,
    /// What it wrote to its standard error; the compiler's messages if it does not compile.
    stderr: Data,
    /// Whether either is cut.
    truncated: bool,
    /// Processor time of all its processes.
    cpu_seconds: f64,
    /// From its start to its end.
    wall_seconds: f64,
    /// The most memory that all its processes held together, in bytes.
    peak_memory: u64,
    /// Those of the wanted files that are there.
    files: BTreeMap<String, Data>,
    /// Those that are not given back, with the reason.
    refused_files: BTreeMap<String, String>,
    /// What there is to say of the verdict; often nothing.
    message: String,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/v1/run", run)
            .summary("Run a program")
            .takes::<RunRequest>()
            .runs()
            .gives::<RunAnswer>(200, "What became of it, whatever the verdict."),
    ]
}

/// Runs it.
async fn run(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let submission = match body::read_json::<RunRequest>(&app, request).await {
        Ok(request) => request.into_submission(&app),
        Err(response) => return response,
    };
    let submission = match submission {
        Ok(submission) => submission,
        Err(error) => return answer::invalid(&error.to_string()),
    };
    match app.run(&caller.client, submission).await {
        Ok(steps) => Json(RunAnswer::new(&caller, steps.into_outcome())).into_response(),
        Err(fault) => answer::of_fault(&caller, &fault, answer::invalid),
    }
}

impl RunRequest {
    /// What is run.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn into_submission(self, app: &App) -> Result<Submission, Error> {
        for changes in [&self.limits, &self.compile_limits] {
            within(changes, &app.config.sandbox.most)?;
        }
        Ok(Submission {
            source: self.source,
            language: self.language,
            arguments: self.arguments,
            stdin: self.stdin.0,
            files: self.files.into_iter().map(|(path, data)| (path, data.0)).collect(),
            run_files: BTreeMap::new(),
            fetch: self.fetch,
            limits: self.limits,
            compile_limits: self.compile_limits,
            work: None,
            cancel: None,
        })
    }
}

impl RunAnswer {
    /// What became of a run.
    pub fn new(caller: &Caller, outcome: Outcome) -> Self {
        let message = message(caller, &outcome);
        Self::saying(message, outcome)
    }

    /// A run that makes no sense.
    pub fn invalid(error: &Error) -> Self {
        Self::saying(error.to_string(), Outcome::sandbox_error(""))
    }

    fn saying(message: String, outcome: Outcome) -> Self {
        let files = outcome.files.into_iter().map(|(path, content)| (path, Data(content)));
        Self {
            verdict: outcome.verdict.name(),
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            stdout: Data(outcome.stdout),
            stderr: Data(outcome.stderr),
            truncated: outcome.truncated,
            cpu_seconds: outcome.cpu_time.as_secs_f64(),
            wall_seconds: outcome.wall_time.as_secs_f64(),
            peak_memory: outcome.peak_memory,
            files: files.collect(),
            refused_files: outcome.refused,
            message,
        }
    }
}

/// What an outcome says of itself. The sandbox's own faults name paths of this machine: they are for the log.
pub fn message(caller: &Caller, outcome: &Outcome) -> String {
    if outcome.verdict != Verdict::SandboxError {
        return outcome.message.clone();
    }
    log::write("fault", json!({"id": caller.request_id, "message": outcome.message}));
    answer::own_fault(caller)
}

/// Refuses limits beyond the most that a request can ask for.
pub fn within(changes: &LimitChanges, most: &LimitChanges) -> Result<(), Error> {
    #[expect(clippy::cast_precision_loss, reason = "compared with what a user wrote")]
    let count = |value: Option<u64>| value.map(|value| value as f64);
    for (field, asked, most) in [
        ("cpu_seconds", changes.cpu_seconds, most.cpu_seconds),
        ("wall_seconds", changes.wall_seconds, most.wall_seconds),
        ("memory_bytes", count(changes.memory_bytes), count(most.memory_bytes)),
        ("processes", count(changes.processes), count(most.processes)),
        ("disk_bytes", count(changes.disk_bytes), count(most.disk_bytes)),
        ("disk_files", count(changes.disk_files), count(most.disk_files)),
        ("output_bytes", count(changes.output_bytes), count(most.output_bytes)),
        ("open_files", count(changes.open_files), count(most.open_files)),
        ("stack_bytes", count(changes.stack_bytes), count(most.stack_bytes)),
        ("cpus", changes.cpus, most.cpus),
    ] {
        if let (Some(asked), Some(most)) = (asked, most)
            && asked > most
        {
            let expected = format!("at most {most}, this daemon's `sandbox.most`");
            return Err(Error::invalid(field, asked, expected));
        }
    }
    Ok(())
}
