//! SandboxFusion's request, and what its server says to one that is wrong: status 422 with a list of
//! faults, each with its type, place and message (FastAPI's and pydantic's form).

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The names in its enum of languages (sandbox/runners/types.py), and ours where they differ.
const LANGUAGES: [(&str, &str); 29] = [
    ("python", "python"),
    ("cpp", "cpp"),
    ("nodejs", "javascript"),
    ("go", "go"),
    ("go_test", "go_test"),
    ("java", "java"),
    ("php", "php"),
    ("csharp", "csharp"),
    ("bash", "bash"),
    ("typescript", "typescript"),
    ("sql", "sql"),
    ("rust", "rust"),
    ("cuda", "cuda"),
    ("lua", "lua"),
    ("R", "R"),
    ("perl", "perl"),
    ("D_ut", "D_ut"),
    ("ruby", "ruby"),
    ("scala", "scala"),
    ("julia", "julia"),
    ("pytest", "pytest"),
    ("junit", "junit"),
    ("kotlin_script", "kotlin_script"),
    ("jest", "jest"),
    ("verilog", "verilog"),
    ("python_gpu", "python"),
    ("lean", "lean"),
    ("swift", "swift"),
    ("racket", "racket"),
];

/// SandboxFusion's request. As its server does, this takes numbers that are written as text, and passes
/// over fields that it does not know.
#[derive(Debug, JsonSchema, PartialEq)]
#[schemars(rename = "RunCodeRequest")]
pub struct RunCode {
    /// Seconds.
    #[schemars(default = "timeout")]
    pub compile_timeout: f64,
    /// Whether the request said so itself: its client then knows how long an answer may take.
    #[schemars(skip)]
    pub says_compile_timeout: bool,
    /// Seconds.
    #[schemars(default = "timeout")]
    pub run_timeout: f64,
    /// -1: the daemon's own.
    #[schemars(rename = "memory_limit_MB", default = "no_memory_limit")]
    pub memory_limit_mb: i64,
    /// The program.
    pub code: String,
    /// What it can read.
    #[schemars(default)]
    pub stdin: Option<String>,
    /// Its language.
    #[schemars(schema_with = "languages")]
    pub language: &'static str,
    /// Files in base64, by path; null is passed over.
    #[schemars(default, with = "BTreeMap<String, Option<String>>")]
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files that are wanted back.
    #[schemars(default)]
    pub fetch_files: Vec<String>,
    /// What follows the program's name on its command line.
    #[schemars(default)]
    pub args: Vec<String>,
}

fn timeout() -> f64 {
    10.0
}

/// -1: none that the request asks for.
pub fn no_memory_limit() -> i64 {
    -1
}

fn languages(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": LANGUAGES.map(|(name, _)| name)})
}

/// What is wrong with a request.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "ValidationError")]
pub struct Faults {
    detail: Vec<Fault>,
}

/// One thing that is wrong with it.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(inline)]
struct Fault {
    /// pydantic's name of it.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Where.
    loc: Vec<Place>,
    /// A sentence.
    msg: String,
    /// What was given there.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Value>,
    /// What the sentence was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<BTreeMap<&'static str, String>>,
}

/// A step on the way to a value.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(inline)]
#[serde(untagged)]
enum Place {
    /// A field.
    Field(String),
    /// A place in a list, or in the text.
    At(usize),
}

impl Faults {
    /// A request that is well formed and makes no sense to the sandbox.
    pub fn of_value(message: &str) -> Self {
        Self::one(Fault {
            kind: "value_error",
            loc: vec![Place::Field("body".into())],
            msg: message.into(),
            input: None,
            ctx: None,
        })
    }

    /// The answer.
    pub fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, Json(self)).into_response()
    }

    fn add(&mut self, kind: &'static str, place: &[&str], message: &str, input: &Value) {
        let words = ["body"].iter().chain(place);
        let loc = words.map(|word| Place::Field((*word).to_owned())).collect();
        let (msg, input) = (message.to_owned(), Some(input.clone()));
        self.detail.push(Fault { kind, loc, msg, input, ctx: None });
    }

    fn one(fault: Fault) -> Self {
        Self { detail: vec![fault] }
    }
}

impl RunCode {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// Every fault that it has.
    pub fn parse(body: &[u8]) -> Result<Self, Faults> {
        let mut reader = Reader::new(body)?;
        let request = Self {
            says_compile_timeout: reader.has("compile_timeout"),
            compile_timeout: reader.seconds("compile_timeout", timeout()),
            run_timeout: reader.seconds("run_timeout", timeout()),
            memory_limit_mb: reader.integer("memory_limit_MB", no_memory_limit()),
            code: reader.required_text("code"),
            stdin: reader.optional_text("stdin"),
            language: reader.language(),
            files: reader.files(),
            fetch_files: reader.texts("fetch_files"),
            args: reader.texts("args"),
        };
        reader.end(request)
    }
}

/// Takes fields out of an object and notes what is wrong with them.
pub struct Reader {
    faults: Faults,
    fields: Map<String, Value>,
}

impl Reader {
    /// Reads a body that is an object.
    ///
    /// # Errors
    ///
    /// What it is instead.
    pub fn new(body: &[u8]) -> Result<Self, Faults> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            Faults::one(Fault {
                kind: "json_invalid",
                loc: vec![Place::Field("body".into()), Place::At(error.column())],
                msg: "JSON decode error".into(),
                input: Some(json!({})),
                ctx: Some(BTreeMap::from([("error", error.to_string())])),
            })
        })?;
        let mut faults = Faults { detail: Vec::new() };
        match value {
            Value::Object(fields) => Ok(Self { faults, fields }),
            other => {
                let message = "Input should be a valid dictionary or object to extract fields from";
                faults.add("model_attributes_type", &[], message, &other);
                Err(faults)
            }
        }
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// `request`, if all that was read was right.
    ///
    /// # Errors
    ///
    /// Every fault that there was.
    pub fn end<T>(self, request: T) -> Result<T, Faults> {
        if self.faults.detail.is_empty() { Ok(request) } else { Err(self.faults) }
    }

    /// Seconds.
    pub fn seconds(&mut self, name: &str, default: f64) -> f64 {
        let Some(value) = self.fields.remove(name) else { return default };
        let parsed = match &value {
            Value::Number(number) => number.as_f64(),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            self.faults.add("float_type", &[name], "Input should be a valid number", &value);
            default
        })
    }

    /// A whole number.
    pub fn integer(&mut self, name: &str, default: i64) -> i64 {
        let Some(value) = self.fields.remove(name) else { return default };
        #[expect(clippy::cast_possible_truncation, reason = "it has no fraction")]
        let whole =
            |number: f64| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
        let parsed = match &value {
            Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            Value::Bool(flag) => Some(i64::from(*flag)),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            self.faults.add("int_type", &[name], "Input should be a valid integer", &value);
            default
        })
    }

    fn required_text(&mut self, name: &str) -> String {
        match self.fields.remove(name) {
            Some(Value::String(text)) => text,
            Some(other) => {
                self.no_text(&[name], &other);
                String::new()
            }
            None => {
                let input = Value::Object(Map::new());
                self.faults.add("missing", &[name], "Field required", &input);
                String::new()
            }
        }
    }

    fn optional_text(&mut self, name: &str) -> Option<String> {
        match self.fields.remove(name)? {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => {
                self.no_text(&[name], &other);
                None
            }
        }
    }

    fn language(&mut self) -> &'static str {
        let before = self.faults.detail.len();
        let given = self.required_text("language");
        if self.faults.detail.len() > before {
            return "";
        }
        if let Some((_, ours)) = LANGUAGES.iter().find(|(name, _)| *name == given) {
            return ours;
        }
        let names: Vec<String> = LANGUAGES.iter().map(|(name, _)| format!("'{name}'")).collect();
        let expected = match names.split_last() {
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        self.faults.detail.push(Fault {
            kind: "literal_error",
            loc: ["body", "language"].map(|word| Place::Field(word.into())).into(),
            msg: format!("Input should be {expected}"),
            input: Some(given.into()),
            ctx: Some(BTreeMap::from([("expected", expected)])),
        });
        ""
    }

    /// Files, each in base64.
    pub fn files(&mut self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let Some(value) = self.fields.remove("files") else { return files };
        let Value::Object(given) = value else {
            let message = "Input should be a valid dictionary";
            self.faults.add("dict_type", &["files"], message, &value);
            return files;
        };
        for (path, content) in given {
            match content {
                // Its server passes over files without content.
                Value::Null => {}
                Value::String(text) => match STANDARD.decode(&text) {
                    Ok(content) => {
                        files.insert(path, content);
                    }
                    Err(error) => {
                        let message = format!("Input should be base64: {error}");
                        self.faults.add("value_error", &["files", &path], &message, &Value::Null);
                    }
                },
                other => self.no_text(&["files", &path], &other),
            }
        }
        files
    }

    /// A field that can have one value only.
    pub fn only(&mut self, name: &str, expected: &str) {
        match self.fields.remove(name) {
            Some(given) if given != expected => {
                let message = format!("Input should be '{expected}'");
                self.faults.add("literal_error", &[name], &message, &given);
            }
            _ => {}
        }
    }

    /// A list of strings that must be there.
    pub fn required_texts(&mut self, name: &str) -> Vec<String> {
        if !self.fields.contains_key(name) {
            let input = Value::Object(Map::new());
            self.faults.add("missing", &[name], "Field required", &input);
        }
        self.texts(name)
    }

    /// A list of strings.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        match self.fields.remove(name) {
            None => Vec::new(),
            Some(Value::Array(values)) => {
                let mut texts = Vec::new();
                for (index, value) in values.into_iter().enumerate() {
                    match value {
                        Value::String(text) => texts.push(text),
                        other => self.no_text(&[name, &index.to_string()], &other),
                    }
                }
                texts
            }
            Some(other) => {
                self.faults.add("list_type", &[name], "Input should be a valid list", &other);
                Vec::new()
            }
        }
    }

    fn no_text(&mut self, place: &[&str], value: &Value) {
        self.faults.add("string_type", place, "Input should be a valid string", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_its_servers() {
        let request = RunCode::parse(br#"{"code": "x", "language": "nodejs", "more": 1}"#).unwrap();
        let expected = RunCode {
            compile_timeout: 10.0,
            says_compile_timeout: false,
            run_timeout: 10.0,
            memory_limit_mb: -1,
            code: "x".into(),
            stdin: None,
            language: "javascript",
            files: BTreeMap::new(),
            fetch_files: Vec::new(),
            args: Vec::new(),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn numbers_may_be_written_as_text() {
        let body = br#"{"code": "", "language": "R", "run_timeout": "2.5", "memory_limit_MB": "64",
                        "stdin": null, "files": {"a": "eA==", "b": null}}"#;
        let request = RunCode::parse(body).unwrap();
        assert_eq!((request.run_timeout, request.memory_limit_mb), (2.5, 64));
        assert_eq!(request.files, BTreeMap::from([("a".to_owned(), b"x".to_vec())]));
    }

    fn places(faults: &Faults) -> Vec<String> {
        let word = |place: &Place| match place {
            Place::Field(name) => name.clone(),
            Place::At(index) => index.to_string(),
        };
        let place = |fault: &Fault| fault.loc.iter().map(word).collect::<Vec<_>>().join(".");
        faults.detail.iter().map(place).collect()
    }

    #[test]
    fn the_schema_has_the_fields_that_are_read() {
        let schema = schemars::schema_for!(RunCode);
        let fields = schema.get("properties").unwrap().as_object().unwrap();
        assert_eq!(schema.get("required").unwrap(), &json!(["code", "language"]));
        // A field that is read complains of what it cannot be.
        for (name, field) in fields {
            let body = json!({"code": "", "language": "python", name: [[]]});
            let faults = RunCode::parse(body.to_string().as_bytes()).unwrap_err();
            assert!(places(&faults)[0].starts_with(&format!("body.{name}")), "{name}");
            // And its default is what it is without it.
            let Some(default) = field.get("default") else { continue };
            let mut body = json!({"code": "", "language": "python"});
            let without = RunCode::parse(body.to_string().as_bytes()).unwrap();
            body[name] = default.clone();
            let mut with = RunCode::parse(body.to_string().as_bytes()).unwrap();
            with.says_compile_timeout = false;
            assert_eq!(with, without, "{name}");
        }
        for name in field_names(&fields["language"]) {
            let body = json!({"code": "", "language": name});
            assert!(RunCode::parse(body.to_string().as_bytes()).is_ok(), "{name}");
        }
    }

    fn field_names(schema: &Value) -> Vec<&str> {
        schema["enum"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
    }

    #[test]
    fn every_fault_is_named() {
        let body = br#"{"language": "cobol", "run_timeout": [], "memory_limit_MB": 1.5, "stdin": 1,
                        "files": {"a": "*", "b": 2}, "fetch_files": ["a", 3], "args": {}}"#;
        let places = places(&RunCode::parse(body).unwrap_err());
        let expected = [
            "body.run_timeout",
            "body.memory_limit_MB",
            "body.code",
            "body.stdin",
            "body.language",
            "body.files.a",
            "body.files.b",
            "body.fetch_files.1",
            "body.args",
        ];
        assert_eq!(places, expected);
        for body in [&b"[]"[..], b"{", b"\xff", b""] {
            assert_eq!(RunCode::parse(body).unwrap_err().detail.len(), 1);
        }
    }
}
