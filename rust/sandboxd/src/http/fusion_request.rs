//! SandboxFusion's request, and what its server says to one that is wrong: status 422 with a list of
//! faults, each with its type, place and message (FastAPI's and pydantic's form).

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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

/// What is asked for.
#[derive(Debug, PartialEq)]
pub struct RunCode {
    /// Seconds.
    pub compile_timeout: f64,
    /// Seconds.
    pub run_timeout: f64,
    /// -1: none.
    pub memory_limit_mb: i64,
    /// The program.
    pub code: String,
    /// What it can read.
    pub stdin: Option<String>,
    /// Our name of its language.
    pub language: &'static str,
    /// Files by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files that are wanted.
    pub fetch_files: Vec<String>,
    /// For the languages that take arguments.
    pub args: Vec<String>,
}

/// What is wrong with a request.
#[derive(Debug)]
pub struct Faults(Vec<Value>);

impl Faults {
    /// A request that is well formed and makes no sense to the sandbox.
    pub fn of_value(message: &str) -> Self {
        Self(vec![json!({"type": "value_error", "loc": ["body"], "msg": message})])
    }

    /// The answer.
    pub fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"detail": self.0}))).into_response()
    }

    fn add(&mut self, kind: &str, place: &[&str], message: &str, input: &Value) {
        let place: Vec<&str> = ["body"].iter().chain(place).copied().collect();
        self.0.push(json!({"type": kind, "loc": place, "msg": message, "input": input}));
    }
}

impl RunCode {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// Every fault that it has.
    pub fn parse(body: &[u8]) -> Result<Self, Faults> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let place = json!(["body", error.column()]);
            let (kind, message) = ("json_invalid", "JSON decode error");
            Faults(vec![json!({"type": kind, "loc": place, "msg": message, "input": {},
                               "ctx": {"error": error.to_string()}})])
        })?;
        let mut reader = Reader { faults: Faults(Vec::new()), fields: Map::new() };
        match value {
            Value::Object(fields) => reader.fields = fields,
            other => {
                let message = "Input should be a valid dictionary or object to extract fields from";
                reader.faults.add("model_attributes_type", &[], message, &other);
                return Err(reader.faults);
            }
        }
        let request = Self {
            compile_timeout: reader.seconds("compile_timeout"),
            run_timeout: reader.seconds("run_timeout"),
            memory_limit_mb: reader.integer("memory_limit_MB", -1),
            code: reader.required_text("code"),
            stdin: reader.optional_text("stdin"),
            language: reader.language(),
            files: reader.files(),
            fetch_files: reader.texts("fetch_files"),
            args: reader.texts("args"),
        };
        if reader.faults.0.is_empty() { Ok(request) } else { Err(reader.faults) }
    }
}

/// Takes fields out of an object and notes what is wrong with them.
struct Reader {
    faults: Faults,
    fields: Map<String, Value>,
}

impl Reader {
    fn seconds(&mut self, name: &str) -> f64 {
        let Some(value) = self.fields.remove(name) else { return 10.0 };
        let parsed = match &value {
            Value::Number(number) => number.as_f64(),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            self.faults.add("float_type", &[name], "Input should be a valid number", &value);
            10.0
        })
    }

    fn integer(&mut self, name: &str, default: i64) -> i64 {
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
        let before = self.faults.0.len();
        let given = self.required_text("language");
        if self.faults.0.len() > before {
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
        self.faults.0.push(json!({
            "type": "literal_error",
            "loc": ["body", "language"],
            "msg": format!("Input should be {expected}"),
            "input": given,
            "ctx": {"expected": expected},
        }));
        ""
    }

    fn files(&mut self) -> BTreeMap<String, Vec<u8>> {
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

    fn texts(&mut self, name: &str) -> Vec<String> {
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

    #[test]
    fn every_fault_is_named() {
        let body = br#"{"language": "cobol", "run_timeout": [], "memory_limit_MB": 1.5, "stdin": 1,
                        "files": {"a": "*", "b": 2}, "fetch_files": ["a", 3], "args": {}}"#;
        let faults = RunCode::parse(body).unwrap_err().0;
        let places: Vec<String> = faults
            .iter()
            .map(|fault| {
                let words = fault["loc"].as_array().unwrap();
                words.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(".")
            })
            .collect();
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
            assert_eq!(RunCode::parse(body).unwrap_err().0.len(), 1);
        }
    }
}
