//! `/v1/sessions`: a work directory that lives over several steps, its files, and its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Kind, Node, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::data::Data;
use super::endpoint::Endpoint;
use super::object::object;
use super::{answer, body, run};
use crate::app::App;
use crate::log;
use crate::sessions::{Full, Gone, Terms};

/// What a session is opened with.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SessionRequest {
    /// Seconds that it lives when nobody uses it; null: the daemon's own.
    lease_seconds: Option<f64>,
    /// Limits of its steps that differ from the daemon's own. The disk is that of the session.
    #[serde(deserialize_with = "object")]
    limits: LimitChanges,
}

/// A session.
#[derive(JsonSchema, Serialize)]
struct SessionAnswer {
    /// The right to it: who knows it may do all.
    session_id: String,
    /// Seconds until it ends, if nobody uses it.
    expires_in: f64,
}

/// How long a session lives.
#[derive(JsonSchema, Serialize)]
struct Lease {
    /// Seconds until it ends, if nobody uses it.
    expires_in: f64,
}

/// A session has ended.
#[derive(JsonSchema, Serialize)]
struct Closed {
    /// True.
    closed: bool,
}

/// What is changed in a work directory: all of it or nothing.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct FilesRequest {
    /// Files to write, by relative path. One that is there keeps its permissions.
    files: BTreeMap<String, Data>,
    /// The same, to be executable.
    executables: BTreeMap<String, Data>,
    /// Files, links and directories to remove first, with all that is in them.
    delete: Vec<String>,
}

/// What a work directory has then.
#[derive(JsonSchema, Serialize)]
struct FilesAnswer {
    /// How many files, directories and links.
    files: usize,
    /// What they take on its disk, in pages.
    bytes: u64,
}

/// A file, or the list of all.
#[derive(JsonSchema, Serialize)]
#[serde(untagged)]
enum FileAnswer {
    /// With `?path=`.
    File {
        /// Its path.
        path: String,
        /// Its content.
        content: Data,
    },
    /// Without.
    List {
        /// In the order of paths.
        files: Vec<SessionFile>,
    },
}

/// An entry of a work directory.
#[derive(JsonSchema, Serialize)]
struct SessionFile {
    /// Relative to the work directory.
    path: String,
    /// file, directory or link.
    kind: &'static str,
    /// A file's length.
    bytes: usize,
    /// Permissions, in octal.
    mode: String,
    /// What a link says.
    target: Option<String>,
}

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    let gone = |endpoint: Endpoint| endpoint.refuses(410, "There is no such session, or no more.");
    let busy = "A step of the session is under way.";
    vec![
        Endpoint::new(Method::POST, "/v1/sessions", open)
            .summary("Open a session: a work directory that lives over several steps")
            .takes::<SessionRequest>()
            .gives::<SessionAnswer>(200, "It is open.")
            .refuses(500, "The sandbox itself failed; the daemon's log says why, under the id.")
            .refuses(
                503,
                "There is no room for another session; Retry-After says when to try again.",
            ),
        gone(Endpoint::new(Method::DELETE, "/v1/sessions/{id}", close))
            .summary("End a session, and the step that is under way")
            .gives::<Closed>(200, "It has ended."),
        gone(Endpoint::new(Method::POST, "/v1/sessions/{id}/renew", renew))
            .summary("Begin a session's lease anew, as everything else that is asked of it does")
            .gives::<Lease>(200, "It lives."),
        gone(Endpoint::new(Method::GET, "/v1/sessions/{id}/files", files))
            .summary("A file of a session's work directory, or the list of all")
            .query("path", "The file's path. Without it all are listed.")
            .gives::<FileAnswer>(200, "As it was before the step that is under way.")
            .refuses(400, "What is at the path is no regular file.")
            .refuses(404, "There is no such file. Links are not followed."),
        gone(Endpoint::new(Method::POST, "/v1/sessions/{id}/files", change))
            .summary("Write and remove files of a session's work directory")
            .takes::<FilesRequest>()
            .gives::<FilesAnswer>(200, "It is done.")
            .refuses(409, busy),
    ]
}

/// Opens one.
async fn open(State(app): State<Arc<App>>, request: Request) -> Response {
    let asked = match body::read_json(&app, request).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let terms = match terms(&app, asked) {
        Ok(terms) => terms,
        Err(message) => return answer::invalid(&message),
    };
    match app.sessions.open(terms) {
        Ok((id, left)) => {
            let expires_in = left.as_secs_f64();
            Json(SessionAnswer { session_id: id, expires_in }).into_response()
        }
        Err(Full::Now) => {
            app.metrics.rejected("sessions");
            let message = "there is no room for another session: try again";
            let mut response = answer::fault(StatusCode::SERVICE_UNAVAILABLE, message);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
        Err(Full::Ever) => {
            let message = "limits: disk_bytes and disk_files are more than this daemon's \
                           `sessions.bytes` lets all sessions have together";
            answer::invalid(message)
        }
        Err(Full::Broken(errno)) => {
            log::write("fault", json!({"message": errno.to_string()}));
            answer::fault(StatusCode::INTERNAL_SERVER_ERROR, "no identifier could be drawn")
        }
    }
}

fn terms(app: &App, asked: SessionRequest) -> Result<Terms, String> {
    let most = app.config.sessions.life_seconds;
    let usual = app.config.sessions.lease_seconds.min(most);
    let lease = asked.lease_seconds.unwrap_or(usual);
    if !(0.0..=most).contains(&lease) {
        return Err(format!("lease_seconds = {lease}: expected between 0 and {most}"));
    }
    let (lease, life) = (Duration::from_secs_f64(lease), Duration::from_secs_f64(most));
    run::within(&asked.limits, &app.config.sandbox.most).map_err(|error| error.to_string())?;
    let changes = asked.limits;
    let limits = changes.apply(app.sandbox.limits()).map_err(|error| error.to_string())?;
    Ok(Terms { lease, life, changes, limits })
}

/// Begins its lease anew.
async fn renew(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.sessions.renew(&id) {
        Ok(expires_in) => Json(Lease { expires_in }).into_response(),
        Err(gone) => of_gone(gone),
    }
}

/// Ends it.
async fn close(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    if app.sessions.close(&id) {
        Json(Closed { closed: true }).into_response()
    } else {
        of_gone(Gone::Absent)
    }
}

/// Writes and removes files.
async fn change(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    let asked: FilesRequest = match body::read_json(&app, request).await {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    match app.sessions.edit(&id, |tree| edit(tree, asked)) {
        Ok(Ok(tree)) => {
            let (files, bytes) = (tree.len(), tree.size());
            Json(FilesAnswer { files, bytes }).into_response()
        }
        Ok(Err(error)) => answer::invalid(&error.to_string()),
        Err(gone) => of_gone(gone),
    }
}

fn edit(tree: &mut Tree, asked: FilesRequest) -> k15_sandbox::Result<()> {
    for path in asked.delete {
        if !tree.remove(&path) {
            let expected = "a path that is there";
            return Err(k15_sandbox::Error::invalid("delete", format!("{path:?}"), expected));
        }
    }
    for (path, content) in asked.files {
        tree.write(&path, content.0, None)?;
    }
    for (path, content) in asked.executables {
        tree.write(&path, content.0, Some(true))?;
    }
    Ok(())
}

/// One file's content, or the list of all.
async fn files(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    let tree = match app.sessions.tree(&id) {
        Ok(tree) => tree,
        Err(gone) => return of_gone(gone),
    };
    let path = match path_of(request.uri().query().unwrap_or_default()) {
        Ok(Some(path)) => path,
        Ok(None) => {
            let files = tree.iter().map(|(path, node)| listed(path, node)).collect();
            return Json(FileAnswer::List { files }).into_response();
        }
        Err(message) => return answer::invalid(message),
    };
    match tree.get(&path).map(|node| &node.kind) {
        Some(Kind::File(content)) => {
            let content = Data(content.to_vec());
            Json(FileAnswer::File { path, content }).into_response()
        }
        Some(Kind::Directory | Kind::Link(_)) => {
            answer::invalid("path: this is a directory or a link, no file")
        }
        None => answer::fault(StatusCode::NOT_FOUND, "path: there is no such file"),
    }
}

fn listed(path: &[u8], node: &Node) -> SessionFile {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (kind, bytes, target) = match &node.kind {
        Kind::Directory => ("directory", 0, None),
        Kind::File(content) => ("file", content.len(), None),
        Kind::Link(says) => ("link", says.len(), Some(text(says))),
    };
    SessionFile { path: text(path), kind, bytes, mode: format!("{:03o}", node.mode), target }
}

/// The value of `path`, the one parameter there is.
fn path_of(query: &str) -> Result<Option<String>, &'static str> {
    if query.is_empty() {
        return Ok(None);
    }
    let wrong = "expected ?path=PATH, percent-encoded UTF-8, and no other parameter";
    let value = query.strip_prefix("path=").filter(|value| !value.contains('&')).ok_or(wrong)?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().ok_or(wrong)?, rest.next().ok_or(wrong)?];
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let [high, low] = digits.map(digit);
                let value = high.zip(low).map(|(high, low)| high * 16 + low).ok_or(wrong)?;
                u8::try_from(value).map_err(|_| wrong)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map(Some).map_err(|_| wrong)
}

/// The answer where a session cannot be had.
pub fn of_gone(gone: Gone) -> Response {
    match gone {
        Gone::Absent => answer::fault(StatusCode::GONE, "there is no such session, or no more"),
        Gone::Busy => {
            answer::fault(StatusCode::CONFLICT, "a step of this session is under way: wait for it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_once() {
        let cases = [
            ("", Ok(None)),
            ("path=a/b.txt", Ok(Some("a/b.txt"))),
            ("path=a%2Fb+c%C3%A9", Ok(Some("a/b cé"))),
            ("path=%252e", Ok(Some("%2e"))),
        ];
        for (query, expected) in cases {
            assert_eq!(path_of(query), expected.map(|path| path.map(str::to_owned)), "{query}");
        }
        for query in ["path=%f", "path=%zz", "path=%ff", "other=1", "path=a&path=b"] {
            assert!(path_of(query).is_err(), "{query}");
        }
    }
}
