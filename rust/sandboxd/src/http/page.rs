//! `GET /`: a page for people, one file without anything from elsewhere.

use std::sync::LazyLock;

use axum::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::{SchemaGenerator, json_schema};
use sha2::{Digest, Sha256};

use super::endpoint::Endpoint;

const PAGE: &str = include_str!("page.html");

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    let text = |_: &mut SchemaGenerator| json_schema!({"type": "string"});
    // It is the same for all, and asks for the token itself where there is one.
    vec![
        Endpoint::new(Method::GET, "/", page)
            .summary("A page to run programs from")
            .open()
            .answers(200, "The page.", "text/html", text),
    ]
}

async fn page() -> Response {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        HeaderValue::from_str(&policy(PAGE))
            .unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, PAGE).into_response()
}

/// Lets the page's own style and script be, known by their hashes, and it ask its own daemon.
fn policy(page: &str) -> String {
    let hash = |tag: &str| {
        let from = page.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
        let content = from.split_once(&format!("</{tag}>")).map_or("", |(content, _)| content);
        STANDARD.encode(Sha256::digest(content))
    };
    let (style, script) = (hash("style"), hash("script"));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
    )
}
