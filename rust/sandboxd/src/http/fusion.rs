//! `POST /run_code`: SandboxFusion's contract, so that its clients need not change.
//!
//! A time-out or a code other than 0 is `Failed`; `SandboxError` is the sandbox's own fault only. Limits that
//! its server does not have (processes, disk) are the daemon's defaults. Where its server would run on
//! while it drops output beyond a megabyte, runs here end when they have written 64 times as much.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Limits, Outcome, Steps, Submission, Verdict};
use schemars::JsonSchema;
use serde::Serialize;

use super::endpoint::Endpoint;
use super::fusion_request::{Faults, RunCode};
use super::{Caller, answer, body, run};
use crate::app::App;
use crate::queue::Call;

/// What is kept of each output, as its server does.
const OUTPUT_BYTES: usize = 1 << 20;

/// SandboxFusion's answer.
#[derive(Default, JsonSchema, Serialize)]
#[schemars(rename = "RunCodeResponse")]
struct RunCodeAnswer {
    /// What became of the whole.
    status: RunStatus,
    /// What the sandbox has to say of its own fault.
    message: String,
    /// Null if nothing was compiled.
    compile_result: Option<Command>,
    /// Null if it was not run.
    run_result: Option<Command>,
    /// The daemon's `pod_name`.
    executor_pod_name: Option<String>,
    /// Those of the wanted files that are there, in base64.
    files: BTreeMap<String, String>,
}

/// What became of a request.
#[derive(Debug, Default, JsonSchema, PartialEq, Serialize)]
pub enum RunStatus {
    /// Every command ended with 0.
    #[default]
    Success,
    /// A command ended otherwise, or was out of time.
    Failed,
    /// The sandbox's own fault, or a language that is not here.
    SandboxError,
}

/// What became of one command.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "CommandRunResult")]
pub struct Command {
    /// How it ended.
    status: CommandStatus,
    /// Seconds.
    execution_time: Option<f64>,
    /// Its exit code, or -N if signal N ended it.
    return_code: Option<i32>,
    /// The first megabyte that it wrote.
    stdout: Option<String>,
    /// The first megabyte that it wrote to its standard error.
    stderr: Option<String>,
}

impl Command {
    /// It was ended by its own clock.
    pub fn run_out_of_time(&mut self) {
        (self.status, self.return_code) = (CommandStatus::TimeLimitExceeded, None);
    }
}

/// How a command ended.
#[derive(Debug, JsonSchema, PartialEq, Serialize)]
enum CommandStatus {
    /// By itself, or by a signal.
    Finished,
    /// Not at all: the sandbox failed.
    Error,
    /// It was out of time.
    TimeLimitExceeded,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/run_code", run_code)
            .summary("Run a program, by SandboxFusion's contract")
            .takes::<RunCode>()
            .runs()
            .gives::<RunCodeAnswer>(200, "What became of it, whatever its status.")
            .refuses(400, "The body is cut.")
            .gives::<Faults>(422, "The request makes no sense; what is wrong is listed."),
    ]
}

/// Runs it.
async fn run_code(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let bytes = match body::read(&app, request).await {
        Ok(bytes) => bytes,
        Err(response) => return response,
    };
    let (asked, known_by) = (RunCode::parse(&bytes), known_by(&caller, &bytes));
    drop(bytes);
    let asked = match asked {
        Ok(asked) => asked,
        Err(faults) => return faults.into_response(),
    };
    let mut reply = RunCodeAnswer {
        executor_pod_name: app.config.pod_name.clone(),
        ..RunCodeAnswer::default()
    };
    if let Some(missing) = missing(&app, asked.language) {
        (reply.status, reply.message) = (RunStatus::SandboxError, missing);
        return Json(reply).into_response();
    }
    let compile_time = asked.says_compile_timeout.then_some(asked.compile_timeout);
    let submission = submission(asked);
    let most = &app.config.sandbox.most;
    for changes in [&submission.limits, &submission.compile_limits] {
        if let Err(error) = run::within(changes, most) {
            return Faults::of_value(&error.to_string()).into_response();
        }
    }
    let within = within(&app, compile_time, &submission);
    let call = Call { client: &caller.client, within, known_by: Some(known_by) };
    match app.run_call(call, submission).await {
        Ok(steps) => {
            fill(&mut reply, &caller, steps);
            Json(reply).into_response()
        }
        Err(fault) => {
            answer::of_fault(&caller, &fault, |message| Faults::of_value(message).into_response())
        }
    }
}

/// What tells that the same request comes again: its clients try three times, without a word of it.
fn known_by(caller: &Caller, body: &[u8]) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one((&caller.client, body))
}

/// How long a request may wait: as long as any, and where nothing must be compiled for as long again as its client
/// reads for compiling.
fn within(app: &App, compile_time: Option<f64>, submission: &Submission) -> Duration {
    let usual = app.config.start_within();
    let spare = compile_time.filter(|_| app.config.queue.wait_in_compile_time);
    match spare.map(Duration::try_from_secs_f64) {
        Some(Ok(spare)) if !app.sandbox.must_compile(submission) => usual.saturating_add(spare),
        _ => usual,
    }
}

/// Why a language of its enum cannot be run here.
pub fn missing(app: &App, language: &str) -> Option<String> {
    match app.sandbox.missing(language) {
        None => Some(format!("{language:?} is not among this daemon's languages")),
        Some("") => None,
        Some(missing) => Some(missing.to_owned()),
    }
}

fn submission(asked: RunCode) -> Submission {
    Submission {
        limits: limits(asked.run_timeout, asked.memory_limit_mb),
        // What a compiler takes is not the program's.
        compile_limits: LimitChanges { output_bytes: None, ..limits(asked.compile_timeout, -1) },
        source: asked.code,
        language: asked.language.to_owned(),
        arguments: asked.args,
        stdin: asked.stdin.unwrap_or_default().into_bytes(),
        files: asked.files,
        run_files: BTreeMap::new(),
        fetch: asked.fetch_files,
        work: None,
        cancel: None,
    }
}

/// What its server's two limits come to here.
pub fn limits(timeout: f64, memory_limit_mb: i64) -> LimitChanges {
    // Below a millisecond nothing can be held; a program that is given none is out of time.
    let seconds = timeout.max(0.001);
    LimitChanges {
        wall_seconds: Some(seconds),
        // The clock is the only limit of its server: all processors may be busy until then.
        cpu_seconds: Some((seconds * processors() + 1.0).min(86_400.0)),
        memory_bytes: u64::try_from(memory_limit_mb)
            .ok()
            .filter(|megabytes| *megabytes > 0)
            .map(|megabytes| (megabytes << 20).max(2 * Limits::MEMORY_BESIDE_FILES)),
        output_bytes: Some(64 * OUTPUT_BYTES as u64),
        ..LimitChanges::default()
    }
}

fn processors() -> f64 {
    std::thread::available_parallelism()
        .map_or(1.0, |n| u32::try_from(n.get()).map_or(1.0, f64::from))
}

fn fill(reply: &mut RunCodeAnswer, caller: &Caller, mut steps: Steps) {
    if let Some(run) = &mut steps.run {
        let files = std::mem::take(&mut run.files);
        reply.files = files.iter().map(|(path, c)| (path.clone(), STANDARD.encode(c))).collect();
    }
    let ended: Vec<&Outcome> = [&steps.compile, &steps.run].into_iter().flatten().collect();
    if let Some(broken) = ended.iter().find(|outcome| outcome.verdict == Verdict::SandboxError) {
        (reply.status, reply.message) = (RunStatus::SandboxError, run::message(caller, broken));
    } else if ended.iter().any(|outcome| outcome.verdict != Verdict::Ok) || steps.run.is_none() {
        reply.status = RunStatus::Failed;
    }
    reply.compile_result = steps.compile.map(|outcome| command(caller, outcome));
    reply.run_result = steps.run.map(|outcome| command(caller, outcome));
}

/// What its server says of a command that ended so.
pub fn command(caller: &Caller, outcome: Outcome) -> Command {
    let (status, return_code) = match outcome.verdict {
        Verdict::SandboxError => (CommandStatus::Error, None),
        Verdict::WallLimit | Verdict::CpuLimit => (CommandStatus::TimeLimitExceeded, None),
        _ => (CommandStatus::Finished, outcome.exit_code.or(outcome.signal.map(|signal| -signal))),
    };
    if outcome.verdict == Verdict::SandboxError {
        let stderr = Some(answer::own_fault(caller));
        return Command { status, execution_time: None, return_code, stdout: None, stderr };
    }
    Command {
        status,
        execution_time: Some(Duration::as_secs_f64(&outcome.wall_time)),
        return_code,
        stdout: Some(text(outcome.stdout)),
        stderr: Some(text(outcome.stderr)),
    }
}

/// The first megabyte, as text.
fn text(mut bytes: Vec<u8>) -> String {
    bytes.truncate(OUTPUT_BYTES);
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(verdict: Verdict, exit_code: Option<i32>, signal: Option<i32>) -> Outcome {
        Outcome { verdict, exit_code, signal, ..Outcome::sandbox_error("/home/of/ours") }
    }

    fn reply(compile: Option<Outcome>, run: Option<Outcome>) -> RunCodeAnswer {
        let caller = Caller { client: String::new(), request_id: "r".into() };
        let mut reply = RunCodeAnswer::default();
        fill(&mut reply, &caller, Steps { compile, run });
        reply
    }

    #[test]
    fn each_ending_has_its_status() {
        let ok = || Some(ended(Verdict::Ok, Some(0), None));
        assert_eq!(reply(None, ok()).status, RunStatus::Success);
        assert_eq!(reply(ok(), ok()).status, RunStatus::Success);
        let cases = [
            (ended(Verdict::NonzeroExit, Some(3), None), CommandStatus::Finished, Some(3)),
            (ended(Verdict::Signalled, None, Some(11)), CommandStatus::Finished, Some(-11)),
            (ended(Verdict::MemoryLimit, None, Some(9)), CommandStatus::Finished, Some(-9)),
            (ended(Verdict::OutputLimit, None, Some(9)), CommandStatus::Finished, Some(-9)),
            (ended(Verdict::WallLimit, None, Some(9)), CommandStatus::TimeLimitExceeded, None),
            (ended(Verdict::CpuLimit, None, Some(9)), CommandStatus::TimeLimitExceeded, None),
        ];
        for (outcome, status, code) in cases {
            let name = outcome.verdict.name();
            let failed = reply(None, Some(outcome));
            let run = failed.run_result.unwrap();
            assert_eq!(
                (failed.status, run.status, run.return_code),
                (RunStatus::Failed, status, code),
                "{name}"
            );
        }
    }

    #[test]
    fn a_compilers_failure_leaves_no_run() {
        let failed = reply(Some(ended(Verdict::NonzeroExit, Some(1), None)), None);
        assert_eq!(failed.status, RunStatus::Failed);
        assert_eq!(failed.compile_result.unwrap().return_code, Some(1));
        assert!(failed.run_result.is_none());
    }

    #[test]
    fn the_sandboxs_own_fault_tells_nothing_of_the_host() {
        let broken = reply(None, Some(Outcome::sandbox_error("cannot start /home/of/ours")));
        assert_eq!(broken.status, RunStatus::SandboxError);
        assert!(!serde_json::to_string(&broken).unwrap().contains("/home"));
    }
}
