//! How the daemon is.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::Serialize;

use super::answer;
use super::endpoint::Endpoint;
use crate::app::App;

const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The process lives.
#[derive(JsonSchema, Serialize)]
struct Health {
    /// `ok`
    status: &'static str,
}

/// A request would be taken now.
#[derive(JsonSchema, Serialize)]
struct Readiness {
    /// `ready`
    status: &'static str,
    /// Requests that wait for a slot.
    waiting: usize,
    /// Slots that are busy.
    running: usize,
    /// The most slots that there are.
    slots: usize,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    let text = |_: &mut SchemaGenerator| json_schema!({"type": "string"});
    vec![
        Endpoint::new(Method::GET, "/v1/ping", ping)
            .summary("SandboxFusion's own sign of life")
            .open()
            .answers(200, "The word pong.", "text/plain", text),
        Endpoint::new(Method::GET, "/v1/languages", languages)
            .summary("The languages, each with a sentence on what is missing for it")
            .gives::<BTreeMap<String, String>>(200, "The sentence is empty if nothing is missing."),
        Endpoint::new(Method::GET, "/health", health)
            .summary("Whether the process lives")
            .open()
            .gives::<Health>(200, "It does."),
        Endpoint::new(Method::GET, "/ready", ready)
            .summary("Whether a request would be taken now")
            .open()
            .gives::<Readiness>(200, "It would.")
            .refuses(503, "The queue is full, or the daemon is stopping."),
        Endpoint::new(Method::GET, "/metrics", metrics)
            .summary("What was counted, for Prometheus")
            .answers(200, "In OpenMetrics' text form.", METRICS, text),
    ]
}

/// SandboxFusion's own.
async fn ping() -> &'static str {
    "pong"
}

/// The process lives.
async fn health() -> Response {
    Json(Health { status: "ok" }).into_response()
}

/// Whether a request would be taken now.
async fn ready(State(app): State<Arc<App>>) -> Response {
    let (waiting, running) = app.queue.load();
    if app.queue.is_full() {
        return answer::fault(StatusCode::SERVICE_UNAVAILABLE, "the queue is full, or closed");
    }
    let slots = app.sandbox.pool().most();
    Json(Readiness { status: "ready", waiting, running, slots }).into_response()
}

/// The languages, each with a sentence on what is missing for it; empty if nothing is.
async fn languages(State(app): State<Arc<App>>) -> Response {
    Json(app.sandbox.languages()).into_response()
}

/// See `metrics.rs`.
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (waiting, busy) = app.queue.load();
    app.metrics.count_sessions(app.sessions.counts());
    let pool = app.sandbox.pool();
    let text = app.metrics.text(pool.most(), pool.slots(), busy, waiting);
    ([(CONTENT_TYPE, METRICS)], text).into_response()
}
