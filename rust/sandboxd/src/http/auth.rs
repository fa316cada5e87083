//! Who may ask.

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::answer;
use crate::app::App;

/// Whether the head carries the token: as a bearer token, or as the password of a URL's
/// `user:password@`, for clients that send no heads of their own.
pub fn is_allowed(app: &App, headers: &HeaderMap) -> bool {
    let Some(token) = &app.token else { return true };
    let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let given = match value.split_once(' ') {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") => given.as_bytes().to_vec(),
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("basic") => {
            let decoded = STANDARD.decode(given).unwrap_or_default();
            let colon =
                decoded.iter().position(|byte| *byte == b':').map_or(decoded.len(), |at| at + 1);
            decoded.get(colon..).unwrap_or_default().to_vec()
        }
        _ => return false,
    };
    given.ct_eq(token.as_bytes()).into()
}

/// Whether a browser says that it asks on behalf of another site's page. Such a page could have programs
/// run by a daemon that only this machine reaches, and that therefore asks for no token.
pub fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// The answer to whoever may not.
pub fn refusal() -> Response {
    let message = "expected the daemon's token: Authorization: Bearer TOKEN";
    let mut response = answer::fault(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
