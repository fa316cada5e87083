//! How the daemon is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer;
use crate::app::App;

/// SandboxFusion's own.
pub async fn ping() -> &'static str {
    "pong"
}

/// The process lives.
pub async fn health() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Whether a request would be taken now.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let (waiting, running) = app.queue.load();
    if app.queue.is_full() {
        return answer::fault(StatusCode::SERVICE_UNAVAILABLE, "the queue is full, or closed");
    }
    Json(json!({"status": "ready", "waiting": waiting, "running": running})).into_response()
}

/// The languages, each with a sentence on what is missing for it; empty if nothing is.
pub async fn languages(State(app): State<Arc<App>>) -> Response {
    Json(app.sandbox.languages()).into_response()
}

/// See `metrics.rs`.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (waiting, busy) = app.queue.load();
    let pool = app.sandbox.pool();
    let text = app.metrics.text(pool.most(), pool.slots(), busy, waiting);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text).into_response()
}
