//! What can be asked, each thing with what the OpenAPI document says of it.
//!
//! # Adding one
//!
//! Beside its handler a module has a function that returns its [`Endpoint`]s, and `mod.rs` has that
//! function in its `endpoints`. The router, the check of the token, the metrics' labels and the document
//! are all made from this list:
//!
//! ```ignore
//! pub fn endpoints() -> Vec<Endpoint> {
//!     vec![
//!         Endpoint::new(Method::POST, "/v1/sessions/{id}/run", run)
//!             .summary("Run a command in a session")
//!             .takes::<CommandRequest>()
//!             .runs()
//!             .gives::<CommandAnswer>(200, "How it ended.")
//!             .refuses(404, "There is no such session."),
//!     ]
//! }
//! ```
//!
//! The types derive `schemars::JsonSchema` beside serde's traits: their doc comments, defaults and
//! `deny_unknown_fields` become the schema. Every status that a handler gives must be named; the tests
//! compare what daemons log with the document.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::answer::ErrorAnswer;
use crate::app::App;

/// Makes a schema, or a reference to one that it leaves with the generator.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A method of a path.
pub struct Endpoint {
    /// The path, in axum's and OpenAPI's common form.
    pub path: &'static str,
    /// What answers it.
    pub handler: MethodRouter<Arc<App>>,
    /// Whether it is answered without the daemon's token: it tells nothing and does nothing.
    pub is_open: bool,
    /// Which method.
    pub method: Method,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Parameters of its query, each with what it means. None must be there.
    pub query: Vec<(&'static str, &'static str)>,
    /// The body that it takes.
    pub request: Option<SchemaOf>,
    /// What it answers, by status.
    pub answers: BTreeMap<u16, Answer>,
}

/// An answer.
pub struct Answer {
    /// When it is given.
    pub about: &'static str,
    /// Its content's type.
    pub media: &'static str,
    /// Its content.
    pub schema: SchemaOf,
}

impl Endpoint {
    /// An endpoint that takes no body and, as all do, asks for the token.
    pub fn new<H, T>(method: Method, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        let handler = MethodFilter::try_from(method.clone())
            .map_or_else(|_| MethodRouter::new(), |filter| on(filter, handler));
        let answers = BTreeMap::new();
        Self {
            path,
            handler,
            is_open: false,
            method,
            summary: "",
            query: Vec::new(),
            request: None,
            answers,
        }
        .refuses(401, "The daemon's token is wanted.")
        .refuses(403, "A browser asks for another site's page.")
    }

    /// Says what it does, in a few words.
    pub fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    /// It tells nothing and does nothing that needs the token.
    pub fn open(mut self) -> Self {
        self.answers.retain(|status, _| *status < 400);
        Self { is_open: true, ..self }
    }

    /// It takes a parameter in its query.
    pub fn query(mut self, name: &'static str, about: &'static str) -> Self {
        self.query.push((name, about));
        self
    }

    /// It takes a body in JSON, by `body::read`.
    pub fn takes<T: JsonSchema>(self) -> Self {
        Self { request: Some(SchemaGenerator::subschema_for::<T>), ..self }
            .refuses(400, "The request makes no sense; the message says why.")
            .refuses(408, "The body did not come in time.")
            .refuses(413, "The body is too large.")
    }

    /// It runs a program, by `App::run`.
    pub fn runs(self) -> Self {
        self.refuses(500, "The sandbox itself failed; the daemon's log says why, under the id.")
            .refuses(503, "The daemon is stopping.")
            .refuses(504, "It cannot start in time; Retry-After says when to try again.")
    }

    /// It gives JSON.
    pub fn gives<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.answers(status, about, "application/json", SchemaGenerator::subschema_for::<T>)
    }

    /// It refuses with a sentence.
    pub fn refuses(self, status: u16, about: &'static str) -> Self {
        self.gives::<ErrorAnswer>(status, about)
    }

    /// It gives content of another type.
    pub fn answers(
        mut self,
        status: u16,
        about: &'static str,
        media: &'static str,
        schema: SchemaOf,
    ) -> Self {
        self.answers.insert(status, Answer { about, media, schema });
        self
    }
}
