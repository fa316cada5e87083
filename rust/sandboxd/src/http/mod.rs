//! What can be asked, and what is checked before anything is.

mod answer;
mod auth;
mod batch;
mod body;
mod checker;
mod data;
mod endpoint;
mod fusion;
mod fusion_request;
mod judge;
mod jupyter;
mod object;
mod openapi;
mod operate;
mod page;
mod run;
mod session;
mod session_run;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use serde_json::json;

use self::endpoint::Endpoint;
pub use self::openapi::document;
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

/// All that can be asked. `endpoint.rs` says how one is added.
fn endpoints() -> Vec<Endpoint> {
    [
        fusion::endpoints(),
        jupyter::endpoints(),
        run::endpoints(),
        batch::endpoints(),
        session::endpoints(),
        session_run::endpoints(),
        operate::endpoints(),
        openapi::endpoints(),
        page::endpoints(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    let route =
        |router: Router<_>, endpoint: Endpoint| router.route(endpoint.path, endpoint.handler);
    endpoints()
        .into_iter()
        .fold(Router::new(), route)
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
    let is_open = PATHS.get(path).is_some_and(|is_open| *is_open);
    let mut response = if !is_open && auth::is_of_another_site(request.headers()) {
        app.metrics.rejected("site");
        answer::fault(StatusCode::FORBIDDEN, "a page of another site asks for this")
    } else if is_open || auth::is_allowed(&app, request.headers()) {
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

/// The paths, and whether each is open to who does not know the token, by all its methods.
static PATHS: LazyLock<BTreeMap<&str, bool>> = LazyLock::new(|| {
    let mut paths = BTreeMap::new();
    for endpoint in endpoints() {
        *paths.entry(endpoint.path).or_insert(true) &= endpoint.is_open;
    }
    paths
});

/// The route, so that what a caller makes up becomes neither a label nor a log line.
fn matched(request: &Request) -> &'static str {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    PATHS.get_key_value(route).map_or("other", |(path, _)| path)
}

fn client(request: &Request) -> String {
    let peer =
        || request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.0.clone());
    name(request, &CLIENT).unwrap_or_else(peer)
}

fn request_id(request: &Request) -> String {
    static START: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let own =
        || format!("{:016x}", scattered(START.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))));
    name(request, &REQUEST_ID).unwrap_or_else(own)
}

/// Another number for each, in no order: how many requests others make is theirs to know. It is the end
/// of `SplitMix64` (Steele, Lea and Flood, 2014).
fn scattered(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A header's value, if it is a plain name.
fn name(request: &Request, header: &HeaderName) -> Option<String> {
    let value = request.headers().get(header)?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let is_name = (1..=64).contains(&value.len()) && value.bytes().all(is_plain);
    is_name.then(|| value.to_owned())
}
