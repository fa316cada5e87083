//! Answers.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::Caller;
use crate::app::Fault;
use crate::log;
use crate::queue::Refused;

/// Why a request was refused.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Error")]
pub struct ErrorAnswer {
    error: Message,
}

/// What is wrong.
#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
struct Message {
    /// A sentence.
    message: String,
}

/// What is wrong, in a sentence.
pub fn fault(status: StatusCode, message: &str) -> Response {
    let error = Message { message: message.to_owned() };
    (status, Json(ErrorAnswer { error })).into_response()
}

/// What is wrong with a request.
pub fn invalid(message: &str) -> Response {
    fault(StatusCode::BAD_REQUEST, message)
}

/// Why a submission has no outcome. `invalid` answers one that makes no sense.
pub fn of_fault(
    caller: &Caller,
    fault_: &Fault,
    invalid: impl FnOnce(&str) -> Response,
) -> Response {
    use k15_sandbox::Error;
    match fault_ {
        Fault::Refused(Refused::Busy(after)) => {
            let message = "all slots are busy for longer than a request is held: try again";
            let mut response = fault(StatusCode::GATEWAY_TIMEOUT, message);
            let seconds = after.as_secs_f64().ceil().clamp(1.0, 3600.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
                response.headers_mut().insert(RETRY_AFTER, value);
            }
            response
        }
        Fault::Refused(Refused::Stopping) | Fault::Sandbox(Error::Closed(_)) => {
            fault(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")
        }
        Fault::Refused(Refused::Broken) => broken(caller, "a thread panicked"),
        Fault::Sandbox(error @ (Error::InvalidInput { .. } | Error::Unenforceable { .. })) => {
            invalid(&error.to_string())
        }
        Fault::Sandbox(error) => broken(caller, &error.to_string()),
    }
}

/// The daemon's own fault: the caller learns its number, the log what it was.
fn broken(caller: &Caller, what: &str) -> Response {
    log::write("fault", json!({"id": caller.request_id, "message": what}));
    fault(StatusCode::INTERNAL_SERVER_ERROR, &own_fault(caller))
}

/// What a caller is told of a fault that is not its own.
pub fn own_fault(caller: &Caller) -> String {
    format!("the sandbox failed; the daemon's log says more under {}", caller.request_id)
}
