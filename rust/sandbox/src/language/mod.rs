//! Languages: a table that a user can extend.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::{Error, Limits, Result};

/// The table that the crate brings.
const BUILT_IN: &str = include_str!("languages.toml");

/// How programs of one language are run. The fields are those of `languages.toml`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// The name under which the source is in the work directory.
    pub file: String,
    /// Programs that must be there.
    #[serde(default)]
    pub needs: Vec<String>,
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
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
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

/// All languages of a sandbox, by name.
#[derive(Clone, Debug)]
pub struct Languages(BTreeMap<String, Language>);

impl Languages {
    /// The built-in table with `tables` (TOML) on top, the later ones over the earlier.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for text that is no such table.
    pub fn new<'a>(tables: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for table in std::iter::once(BUILT_IN).chain(tables) {
            let languages: BTreeMap<String, Language> = toml::from_str(table).map_err(|error| {
                Error::invalid(
                    "languages",
                    error.to_string().trim(),
                    "a table of languages in TOML",
                )
            })?;
            for (name, language) in languages {
                language.check(&name)?;
                all.insert(name, language);
            }
        }
        Ok(Self(all))
    }

    /// The language called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] with the names that there are.
    pub fn get(&self, name: &str) -> Result<&Language> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            Error::invalid("language", format!("{name:?}"), format!("one of {}", known.join(", ")))
        })
    }

    /// All names, in order, with what each lacks in the root at `root` (nothing: it can be run).
    pub fn missing(&self, root: &Path) -> BTreeMap<String, Vec<String>> {
        let lacks = |language: &Language| {
            let absent = |need: &&String| !root.join(need.trim_start_matches('/')).exists();
            language.needs.iter().filter(absent).cloned().collect()
        };
        self.0.iter().map(|(name, language)| (name.clone(), lacks(language))).collect()
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
        self.limits.apply(&Limits::default())?;
        self.compile_limits.apply(&Limits::default())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_holds() {
        let languages = Languages::new([]).unwrap();
        assert_eq!(languages.get("python").unwrap().file, "main.py");
        let message = languages.get("cobol").unwrap_err().to_string();
        assert!(message.starts_with("language = \"cobol\": expected one of bash, c,"), "{message}");
    }

    #[test]
    fn a_table_of_ones_own_adds_and_replaces() {
        let own = "[awk]\nfile = \"a.awk\"\nrun = [\"/usr/bin/awk\", \"-f\", \"a.awk\"]\n\
                   [bash]\nfile = \"b.sh\"\nrun = [\"/bin/sh\", \"b.sh\"]\n";
        let languages = Languages::new([own]).unwrap();
        assert!(languages.get("awk").is_ok());
        assert_eq!(languages.get("bash").unwrap().file, "b.sh");
    }

    #[test]
    fn what_is_wrong_in_a_table_is_refused() {
        for wrong in [
            "[x]\nfile = \"x\"\nrun = []\n",
            "[x]\nfile = \"a/x\"\nrun = [\"x\"]\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\ncompile = [\"c\"]\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\ncolour = 1\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\nlimits = { processes = 0 }\n",
        ] {
            assert!(Languages::new([wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn less_memory_means_less_room_for_files() {
        let change = LimitChanges { memory_bytes: Some(32 << 20), ..LimitChanges::default() };
        assert_eq!(change.apply(&Limits::default()).unwrap().disk_bytes, 16 << 20);
    }
}
