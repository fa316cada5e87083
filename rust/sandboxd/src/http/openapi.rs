//! `GET /openapi.json`: the OpenAPI 3.1 document, made from the endpoints and their types.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::generate::{Contract, SchemaSettings};
use schemars::{SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::endpoint::Endpoint;

const ABOUT: &str = "Runs untrusted programs in sandboxes. A path that is not here is answered 404, a \
    method that a path does not take 405, and a request whose head is malformed or too large 400 or \
    431. Every answer has the header X-Request-Id, under which the daemon's log has it. A daemon that \
    only its own machine can reach may be run without a token; it then asks nobody for one.";

/// What this file answers.
pub fn endpoints() -> Vec<Endpoint> {
    let any = |_: &mut SchemaGenerator| json_schema!({"type": "object"});
    // It is the same in every daemon of this version: there is nothing in it to be kept.
    vec![
        Endpoint::new(Method::GET, "/openapi.json", openapi)
            .summary("This document")
            .open()
            .answers(200, "The document.", "application/json", any),
    ]
}

async fn openapi() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    ([(CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// The document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for endpoint in super::endpoints() {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        let method = endpoint.method.as_str().to_ascii_lowercase();
        path[method.as_str()] = operation(&endpoint, &method, &mut schemas);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "k15-sandboxd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        // Any of these; the last is none.
        "security": [{"bearer": []}, {"password": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas.all(),
            "parameters": {
                "Client": {
                    "name": "X-K15-Client", "in": "header", "schema": {"type": "string"},
                    "description": "Who asks: clients are served in turn. Without it, or if it is not \
                        1 to 64 letters, digits, '-', '_', '.' or ':', the address counts.",
                },
                "RequestId": {
                    "name": "X-Request-Id", "in": "header", "schema": {"type": "string"},
                    "description": "The id to log and to answer under; of the same letters, or it is \
                        passed over.",
                },
            },
            "headers": {
                "RequestId": {"schema": {"type": "string"}, "required": true},
                "RetryAfter": {
                    "schema": {"type": "integer", "minimum": 1, "maximum": 3600}, "required": true,
                    "description": "Seconds after which another try makes sense.",
                },
                "Challenge": {"schema": {"type": "string"}, "required": true},
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "password": {
                    "type": "http", "scheme": "basic",
                    "description": "The token as the password of any user, for clients that can only \
                        be given an address: http://user:TOKEN@host/",
                },
            },
        },
    })
}

fn operation(endpoint: &Endpoint, method: &str, schemas: &mut Schemas) -> Value {
    let words = endpoint.path.split(['/', '.', '{', '}']).filter(|word| !word.is_empty());
    let id: Vec<&str> = std::iter::once(method).chain(words).collect();
    let mut parameters: Vec<Value> = in_path(endpoint.path).collect();
    parameters.extend(endpoint.query.iter().map(|(name, about)| {
        json!({"name": name, "in": "query", "description": about, "schema": {"type": "string"}})
    }));
    parameters.extend(
        ["Client", "RequestId"]
            .map(|name| json!({"$ref": format!("#/components/parameters/{name}")})),
    );
    let mut answers = Map::new();
    for (status, answer) in &endpoint.answers {
        let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/RequestId"}});
        match status {
            401 => headers["WWW-Authenticate"] = json!({"$ref": "#/components/headers/Challenge"}),
            504 => headers["Retry-After"] = json!({"$ref": "#/components/headers/RetryAfter"}),
            _ => {}
        }
        let schema = (answer.schema)(&mut schemas.given);
        answers.insert(
            status.to_string(),
            json!({
                "description": answer.about,
                "headers": headers,
                "content": {answer.media: {"schema": schema}},
            }),
        );
    }
    let mut operation = json!({
        "operationId": id.join("_"),
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": answers,
    });
    if endpoint.is_open {
        operation["security"] = json!([]);
    }
    if let Some(request) = endpoint.request {
        let schema = request(&mut schemas.taken);
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn in_path(path: &str) -> impl Iterator<Item = Value> {
    path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')).map(
        |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
    )
}

/// Schemas of what is taken, where defaults may be left out, and of what is given, where all is there.
struct Schemas {
    taken: SchemaGenerator,
    given: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let generator = |contract: Contract| {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.contract = contract;
            settings.into_generator()
        };
        Self { taken: generator(Contract::Deserialize), given: generator(Contract::Serialize) }
    }

    fn all(mut self) -> Map<String, Value> {
        let mut all = self.taken.take_definitions(true);
        all.extend(self.given.take_definitions(true));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    found.insert(target.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in &found {
            assert!(document.pointer(&target[1..]).is_some(), "{target}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/schemas/{name}")), "{name}");
        }
    }

    #[test]
    fn no_name_means_two_schemas() {
        let mut schemas = Schemas::new();
        for endpoint in super::super::endpoints() {
            operation(&endpoint, "", &mut schemas);
        }
        let taken = schemas.taken.take_definitions(true);
        let given = schemas.given.take_definitions(true);
        for (name, schema) in taken {
            assert!(given.get(&name).is_none_or(|other| *other == schema), "{name}");
        }
    }

    #[test]
    fn each_endpoint_says_what_it_does_and_what_it_gives() {
        for endpoint in super::super::endpoints() {
            assert!(!endpoint.summary.is_empty(), "{}", endpoint.path);
            assert!(endpoint.answers.keys().any(|status| *status < 300), "{}", endpoint.path);
        }
    }
}
