//! A request's body, within its limits.

use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use serde::de::DeserializeOwned;

use super::answer;
use super::object::Object;
use crate::app::App;

/// Reads it whole.
///
/// # Errors
///
/// The answer to a body that is too large (413), too slow (408) or cut (400).
pub async fn read(app: &App, request: Request) -> Result<Bytes, Response> {
    let most = app.config.http.body_bytes;
    let too_large = || {
        let message = format!("the body is too large: expected at most {most} bytes");
        answer::fault(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    let said = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if said.and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > most as u64) {
        return Err(too_large());
    }
    let within = Duration::from_secs_f64(app.config.http.read_seconds);
    match tokio::time::timeout(within, to_bytes(request.into_body(), most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_over(&error) => Err(too_large()),
        Ok(Err(_)) => Err(answer::invalid("the body is cut")),
        Err(_) => Err(answer::fault(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// Reads it whole, as JSON.
///
/// # Errors
///
/// Those of [`read`], and the answer to one that says something else (400).
pub async fn read_json<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, Response> {
    let bytes = read(app, request).await?;
    let read = serde_json::from_slice::<Object<T>>(&bytes);
    read.map(|object| object.0).map_err(|error| answer::invalid(&error.to_string()))
}

fn is_over(error: &axum::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(|source| source.to_string().contains("length limit"))
}
