//! `POST /v1/sessions/{id}/run`: one step of a session.
//!
//! Each step is a run of its own: what lies in the work directory is all that comes from the step before,
//! and no process does. A step that its caller leaves, or that the sandbox fails, changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Cancel, Command, Steps, Submission};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::Data;
use super::endpoint::Endpoint;
use super::object::object;
use super::run::{self, RunAnswer};
use super::session::of_gone;
use super::{Caller, answer, body};
use crate::app::{App, Fault};
use crate::sessions::Step;

/// Python takes a source for unchanged that has its length and was changed in the same second: an edit
/// between two steps may well be of that kind.
const NO_BYTECODE: &str = "PYTHONDONTWRITEBYTECODE=1";

/// A step: a command, or a source with its language.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct StepRequest {
    /// A line for the sandbox's shell, or a program with its words.
    command: Option<Words>,
    /// A program's text, instead of a command.
    source: Option<String>,
    /// Its language.
    language: Option<String>,
    /// What follows on the command line.
    arguments: Vec<String>,
    /// What it reads from its standard input.
    stdin: Data,
    /// Files to write before, by relative path. They stay.
    files: BTreeMap<String, Data>,
    /// Files of the work directory that are wanted back at once.
    fetch: Vec<String>,
    /// Limits of this step that differ from the session's; none of the disk.
    #[serde(deserialize_with = "object")]
    limits: LimitChanges,
    /// Limits of compiling that differ from the daemon's own; none of the disk.
    #[serde(deserialize_with = "object")]
    compile_limits: LimitChanges,
}

/// A command: a line for a shell, or words.
#[derive(Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Words {
    Line(String),
    List(Vec<String>),
}

/// What is run.
enum Work {
    Command(Box<Command>),
    Source(Box<Submission>),
}

/// The answer: that of a run, and whether the work directory is what it left.
#[derive(JsonSchema, Serialize)]
struct StepAnswer {
    #[serde(flatten)]
    result: RunAnswer,
    /// Whether the work directory is as the step has left it, or else as it was before.
    kept: bool,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/v1/sessions/{id}/run", step)
            .summary("Run a command or a program in a session's work directory")
            .takes::<StepRequest>()
            .runs()
            .gives::<StepAnswer>(200, "What became of it, whatever the verdict.")
            .refuses(409, "A step of the session is under way.")
            .refuses(410, "There is no such session, or no more."),
    ]
}

/// Runs a step.
async fn step(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let asked: StepRequest = match body::read_json(&app, request).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let cancel = match Cancel::new() {
        Ok(cancel) => Arc::new(cancel),
        Err(error) => return of_fault(&caller, &Fault::Sandbox(error)),
    };
    let step = match app.sessions.begin(&id, &cancel) {
        Ok(step) => step,
        Err(gone) => return of_gone(gone),
    };
    let ran = match work(&app, asked, &step, &cancel) {
        Ok(Work::Command(command)) => app.run_command(&caller.client, *command).await,
        Ok(Work::Source(submission)) => app.run(&caller.client, *submission).await,
        Err(message) => return answer::invalid(&message),
    };
    match ran.map(Steps::into_outcome) {
        Ok(mut outcome) => {
            let left = outcome.work.take();
            let kept = left.is_some();
            match step.keep(left) {
                Ok(()) => {
                    let result = RunAnswer::new(&caller, outcome);
                    Json(StepAnswer { result, kept }).into_response()
                }
                Err(gone) => of_gone(gone),
            }
        }
        Err(fault) => of_fault(&caller, &fault),
    }
}

fn of_fault(caller: &Caller, fault: &Fault) -> Response {
    answer::of_fault(caller, fault, answer::invalid)
}

/// What `asked` asks for, in the work directory of `step`.
fn work(app: &App, asked: StepRequest, step: &Step, cancel: &Arc<Cancel>) -> Result<Work, String> {
    for changes in [&asked.limits, &asked.compile_limits] {
        run::within(changes, &app.config.sandbox.most).map_err(|error| error.to_string())?;
        if changes.disk_bytes.is_some() || changes.disk_files.is_some() {
            return Err("limits: disk_bytes and disk_files are the session's: expected none".into());
        }
    }
    let limits = limits(asked.limits, step);
    let mut tree = Arc::clone(&step.tree);
    for (path, content) in asked.files {
        let written = Arc::make_mut(&mut tree).write(&path, content.0, None);
        written.map_err(|error| error.to_string())?;
    }
    let (work, cancel) = (Some(tree), Some(Arc::clone(cancel)));
    let (stdin, fetch) = (asked.stdin.0, asked.fetch);
    match (asked.command, asked.source, asked.language) {
        (Some(command), None, None) => {
            let words = words(command, asked.arguments)?;
            let environment = vec![NO_BYTECODE.to_owned()];
            let command = Command { words, environment, stdin, fetch, limits, work, cancel };
            Ok(Work::Command(Box::new(command)))
        }
        (None, Some(source), Some(language)) => Ok(Work::Source(Box::new(Submission {
            source,
            language,
            arguments: asked.arguments,
            stdin,
            files: BTreeMap::new(),
            run_files: BTreeMap::new(),
            fetch,
            limits,
            compile_limits: LimitChanges {
                disk_bytes: Some(step.limits.disk_bytes),
                disk_files: Some(step.limits.disk_files),
                ..asked.compile_limits
            },
            work,
            cancel,
        }))),
        _ => Err("expected `command`, or `source` and `language`".into()),
    }
}

/// A shell finds the program and says so if there is none: that is the program's fault and no other's.
fn words(command: Words, arguments: Vec<String>) -> Result<Vec<String>, String> {
    let (line, words) = match command {
        Words::Line(line) => (line, vec!["sh".to_owned()]),
        Words::List(words) if words.is_empty() => {
            return Err("command = []: expected at least one word".into());
        }
        Words::List(words) => {
            let own = [vec!["sh".to_owned()], words].concat();
            ("exec \"$@\"".to_owned(), own)
        }
    };
    let shell = ["/bin/sh", "-c"].map(str::to_owned);
    // As a shell's own arguments are: the name that it sees itself by comes after the line.
    let shell_words = [shell.to_vec(), vec![line], words, arguments];
    Ok(shell_words.concat())
}

/// The step's limits over the session's, whose disk is every step's.
fn limits(asked: LimitChanges, step: &Step) -> LimitChanges {
    let own = &step.changes;
    LimitChanges {
        cpu_seconds: asked.cpu_seconds.or(own.cpu_seconds),
        wall_seconds: asked.wall_seconds.or(own.wall_seconds),
        memory_bytes: asked.memory_bytes.or(own.memory_bytes),
        processes: asked.processes.or(own.processes),
        disk_bytes: Some(step.limits.disk_bytes),
        disk_files: Some(step.limits.disk_files),
        output_bytes: asked.output_bytes.or(own.output_bytes),
        open_files: asked.open_files.or(own.open_files),
        stack_bytes: asked.stack_bytes.or(own.stack_bytes),
        cpus: asked.cpus.or(own.cpus),
    }
}
