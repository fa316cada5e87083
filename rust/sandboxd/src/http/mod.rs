//! What can be asked, and what is checked before anything is.

mod answer;
mod auth;
mod batch;
mod body;
mod checker;
mod data;
mod fusion;
mod fusion_request;
mod operate;
mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::json;

use crate::app::App;
use crate::log;
use crate::server::Peer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT: HeaderName = HeaderName::from_static("x-k15-client");

/// Who asks, for the queue's turns, and under which number.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What the caller calls itself, or where it connects from.
    pub client: String,
    /// In the log and in the answer's head.
    pub request_id: String,
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/run_code", post(fusion::run_code))
        .route("/v1/ping", get(operate::ping))
        .route("/v1/run", post(run::run))
        .route("/v1/batch", post(batch::batch))
        .route("/v1/languages", get(operate::languages))
        .route("/health", get(operate::health))
        .route("/ready", get(operate::ready))
        .route("/metrics", get(operate::metrics))
        .fallback(async || answer::fault(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            answer::fault(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
        })
        .layer(from_fn_with_state(Arc::clone(&app), gate))
        .with_state(app)
}

/// Names the request, checks the token, and counts and logs the answer.
async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let path = matched(&request);
    let method = request.method().clone();
    let caller = Caller { client: client(&request), request_id: request_id(&request) };
    request.extensions_mut().insert(caller.clone());
    let is_open = auth::is_open_to_all(path) || auth::is_allowed(&app, request.headers());
    let mut response = if is_open {
        next.run(request).await
    } else {
        app.metrics.rejected("token");
        auth::refusal()
    };
    if let Ok(value) = HeaderValue::from_str(&caller.request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status();
    app.metrics.answered(path, status.as_u16());
    if app.config.log_requests || status == StatusCode::INTERNAL_SERVER_ERROR {
        log_request(&caller, &method, path, status, start);
    }
    response
}

fn log_request(caller: &Caller, method: &Method, path: &str, status: StatusCode, start: Instant) {
    log::write(
        "request",
        json!({
            "id": caller.request_id,
            "client": caller.client,
            "method": method.as_str(),
            "path": path,
            "status": status.as_u16(),
            "seconds": start.elapsed().as_secs_f64(),
        }),
    );
}

/// The route, so that what a caller makes up becomes neither a label nor a log line.
fn matched(request: &Request) -> &'static str {
    const PATHS: [&str; 8] = [
        "/run_code",
        "/v1/ping",
        "/v1/run",
        "/v1/batch",
        "/v1/languages",
        "/health",
        "/ready",
        "/metrics",
    ];
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    PATHS.into_iter().find(|path| *path == route).unwrap_or("other")
}

fn client(request: &Request) -> String {
    let peer =
        || request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.0.clone());
    name(request, &CLIENT).unwrap_or_else(peer)
}

fn request_id(request: &Request) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let own = || format!("{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    name(request, &REQUEST_ID).unwrap_or_else(own)
}

/// A header's value, if it is a plain name.
fn name(request: &Request, header: &HeaderName) -> Option<String> {
    let value = request.headers().get(header)?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let is_name = (1..=64).contains(&value.len()) && value.bytes().all(is_plain);
    is_name.then(|| value.to_owned())
}
