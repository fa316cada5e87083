//! Log lines: one JSON object each, on the standard error.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Writes a line: `event` with what belongs to it.
pub fn write(event: &str, facts: Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = json!({"time": now.as_secs_f64(), "event": event});
    if let (Some(line), Value::Object(facts)) = (line.as_object_mut(), facts) {
        line.extend(facts);
    }
    let text = format!("{line}\n");
    // Whoever reads the log may be gone: that is no reason to stop.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
