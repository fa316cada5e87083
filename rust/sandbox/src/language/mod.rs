//! Languages: a table that a user can extend.

mod all;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Limits, Result};
pub use all::{Languages, Ready};

/// How programs of one language are run. The fields are those of `languages.toml`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// The name under which the source is in the work directory.
    pub file: String,
    /// The programs that it needs: for each, by the name that commands call it, the paths in the
    /// sandbox's root where it may be. The first that is there is used.
    #[serde(default)]
    pub tools: BTreeMap<String, Vec<String>>,
    /// What a user would install to have them.
    #[serde(default)]
    pub package: String,
    /// What else a user can do to have them.
    #[serde(default)]
    pub hint: String,
    /// The command that makes the artifacts, if there is one.
    pub compile: Option<Vec<String>>,
    /// The files that compiling leaves for the run.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// The command that runs it.
    pub run: Vec<String>,
    /// What is added to the environment.
    #[serde(default)]
    pub environment: Vec<String>,
    /// What a run is given other than the defaults.
    #[serde(default)]
    pub limits: LimitChanges,
    /// What compiling is given other than the defaults.
    #[serde(default)]
    pub compile_limits: LimitChanges,
}

/// Limits of which only some are given.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of Limits, times in seconds")]
pub struct LimitChanges {
    pub cpu_seconds: Option<f64>,
    pub wall_seconds: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub disk_files: Option<u64>,
    pub output_bytes: Option<u64>,
    pub open_files: Option<u64>,
    pub stack_bytes: Option<u64>,
    pub cpus: Option<f64>,
}

impl LimitChanges {
    /// `base` with what is given here in its place.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a value that is out of range.
    pub fn apply(&self, base: &Limits) -> Result<Limits> {
        let seconds = |field, given: Option<f64>, base| match given {
            None => Ok(base),
            Some(given) => Duration::try_from_secs_f64(given)
                .map_err(|_| Error::invalid(field, given, "between 0.001 and 86400")),
        };
        let limits = Limits {
            cpu_time: seconds("cpu_seconds", self.cpu_seconds, base.cpu_time)?,
            wall_time: seconds("wall_seconds", self.wall_seconds, base.wall_time)?,
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            processes: self.processes.unwrap_or(base.processes),
            // A smaller memory makes room smaller too, unless that was asked for.
            disk_bytes: self.disk_bytes.unwrap_or_else(|| match self.memory_bytes {
                Some(memory) => base.disk_bytes.min((memory / 2).max(4096)),
                None => base.disk_bytes,
            }),
            disk_files: self.disk_files.unwrap_or(base.disk_files),
            output_bytes: self.output_bytes.unwrap_or(base.output_bytes),
            open_files: self.open_files.unwrap_or(base.open_files),
            stack_bytes: self.stack_bytes.unwrap_or(base.stack_bytes),
            cpus: self.cpus.or(base.cpus),
        };
        limits.check()?;
        Ok(limits)
    }
}

impl Language {
    fn check(&self, name: &str) -> Result<()> {
        let wrong = |what: &str| {
            Err(Error::invalid("languages", format!("{name:?}"), format!("a language with {what}")))
        };
        if self.run.is_empty() || self.compile.as_ref().is_some_and(Vec::is_empty) {
            return wrong("commands of at least one word");
        }
        if self.compile.is_some() == self.artifacts.is_empty() {
            return wrong("`artifacts` if and only if it has `compile`");
        }
        if self.file.is_empty() || self.file.contains('/') {
            return wrong("a plain name as `file`");
        }
        let absolute = |paths: &Vec<String>| {
            !paths.is_empty() && paths.iter().all(|path| path.starts_with('/'))
        };
        if !self.tools.values().all(absolute) {
            return wrong("absolute paths for each of its `tools`");
        }
        for word in self.run.iter().chain(self.compile.iter().flatten()) {
            let name = word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            if let Some(name) = name.filter(|name| !self.tools.contains_key(*name)) {
                return wrong(&format!("a tool called {name}, as its commands say"));
            }
        }
        self.limits.apply(&Limits::default())?;
        self.compile_limits.apply(&Limits::default())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_memory_means_less_room_for_files() {
        let change = LimitChanges { memory_bytes: Some(32 << 20), ..LimitChanges::default() };
        assert_eq!(change.apply(&Limits::default()).unwrap().disk_bytes, 16 << 20);
    }
}
