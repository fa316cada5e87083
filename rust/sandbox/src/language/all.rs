//! All languages of a sandbox, each with its tools as they were found in the sandbox's root.

use std::collections::BTreeMap;

use super::Language;
use crate::{Error, Limits, Result};

/// The table that the crate brings.
const BUILT_IN: &str = include_str!("languages.toml");

/// Stands in commands for the memory that the run is given, in MiB.
const MEMORY: &str = "{memory_mib}";

/// The languages by name.
#[derive(Clone, Debug)]
pub struct Languages(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
struct Entry {
    language: Language,
    /// Where each tool is, or what is missing.
    tools: Result<BTreeMap<String, String>, String>,
}

/// A language whose tools are there.
#[derive(Clone, Copy, Debug)]
pub struct Ready<'a> {
    /// Its table.
    pub language: &'a Language,
    tools: &'a BTreeMap<String, String>,
}

impl Languages {
    /// The built-in table with `tables` (TOML) on top, the later ones over the earlier. `is_there` says
    /// whether a run sees a program at a path.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for text that is no such table.
    pub fn new<'a>(
        tables: impl IntoIterator<Item = &'a str>,
        is_there: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut all = BTreeMap::new();
        for table in std::iter::once(BUILT_IN).chain(tables) {
            let languages: BTreeMap<String, Language> = toml::from_str(table).map_err(|error| {
                let start = error.span().and_then(|span| table.get(..span.start)).unwrap_or("");
                let line = format!("line {}", start.matches('\n').count() + 1);
                let said = error.message().replace('\n', " ");
                Error::invalid("languages", line, format!("a table of languages in TOML: {said}"))
            })?;
            for (name, language) in languages {
                language.check(&name)?;
                let tools = find(&language, &is_there);
                all.insert(name, Entry { language, tools });
            }
        }
        Ok(Self(all))
    }

    /// The language called `name`, ready to be used.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] with the names that there are, or with what is missing.
    pub fn get(&self, name: &str) -> Result<Ready<'_>> {
        let Some(Entry { language, tools }) = self.0.get(name) else {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let expected = format!("one of {}", known.join(", "));
            return Err(Error::invalid("language", format!("{name:?}"), expected));
        };
        match tools {
            Ok(tools) => Ok(Ready { language, tools }),
            Err(missing) => {
                let expected = format!("a language whose tools are there: {missing}");
                Err(Error::invalid("language", format!("{name:?}"), expected))
            }
        }
    }

    /// All names, in order, each with a sentence on what is missing (empty: it can be run).
    #[must_use]
    pub fn missing(&self) -> BTreeMap<String, String> {
        let missing = |entry| Entry::missing(entry).to_owned();
        self.0.iter().map(|(name, entry)| (name.clone(), missing(entry))).collect()
    }

    /// What is missing for one of them; `None` for a name that is not there.
    #[must_use]
    pub fn missing_for(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Entry::missing)
    }
}

impl Entry {
    /// Empty if nothing is.
    fn missing(&self) -> &str {
        self.tools.as_ref().err().map_or("", String::as_str)
    }
}

/// The path of each tool of `language`, or a sentence that names those that are missing.
fn find(
    language: &Language,
    is_there: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, String>, String> {
    let (mut tools, mut missing) = (BTreeMap::new(), Vec::new());
    for (name, paths) in &language.tools {
        match paths.iter().find(|path| is_there(path)) {
            Some(path) => {
                tools.insert(name.clone(), path.clone());
            }
            None => missing.push(format!("{name} is none of {}", paths.join(", "))),
        }
    }
    if missing.is_empty() {
        return Ok(tools);
    }
    let mut says = missing.join(" and ");
    for (before, text) in
        [("; on Debian and Ubuntu: apt install ", &language.package), ("; or ", &language.hint)]
    {
        if !text.is_empty() {
            says = says + before + text;
        }
    }
    Err(says)
}

impl Ready<'_> {
    /// `words` with the tools' paths and `limits` in their places.
    #[must_use]
    pub fn command(&self, words: &[String], limits: &Limits) -> Vec<String> {
        let memory = (limits.memory_bytes >> 20).to_string();
        let put = |word: &String| {
            let word = word.replace(MEMORY, &memory);
            self.tools
                .iter()
                .fold(word, |word, (name, path)| word.replace(&format!("{{{name}}}"), path))
        };
        words.iter().map(put).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "[awk]\nfile = \"a.awk\"\ntools = { awk = [\"/opt/awk\", \"/usr/bin/awk\"] }\n\
                       package = \"gawk\"\nrun = [\"{awk}\", \"-m{memory_mib}\", \"-f\", \"a.awk\"]\n\
                       [bash]\nfile = \"b.sh\"\nrun = [\"/bin/sh\", \"b.sh\"]\n";

    #[test]
    fn the_built_in_table_holds() {
        let languages = Languages::new([], |_| true).unwrap();
        assert_eq!(languages.get("python").unwrap().language.file, "main.py");
        let message = languages.get("cobol").unwrap_err().to_string();
        assert!(message.starts_with("language = \"cobol\": expected one of bash, c,"), "{message}");
        assert_eq!(languages.missing().len(), 13);
        for (name, entry) in &languages.0 {
            assert!(!entry.language.package.is_empty(), "{name} has no package");
            let ready = languages.get(name).unwrap();
            let commands = [Some(&entry.language.run), entry.language.compile.as_ref()];
            for word in commands
                .into_iter()
                .flatten()
                .flat_map(|words| ready.command(words, &Limits::default()))
            {
                assert!(!word.contains('{') || word.contains(' '), "{name}: {word} is left");
            }
        }
    }

    #[test]
    fn a_table_of_ones_own_adds_and_replaces() {
        let languages = Languages::new([OWN], |path| path == "/usr/bin/awk").unwrap();
        let awk = languages.get("awk").unwrap();
        let command = awk.command(&awk.language.run, &Limits::default());
        assert_eq!(command, ["/usr/bin/awk", "-m512", "-f", "a.awk"]);
        assert_eq!(languages.get("bash").unwrap().language.file, "b.sh");
    }

    #[test]
    fn what_is_missing_is_said_with_its_package() {
        let languages = Languages::new([OWN], |_| false).unwrap();
        let missing =
            "awk is none of /opt/awk, /usr/bin/awk; on Debian and Ubuntu: apt install gawk";
        assert_eq!(languages.missing()["awk"], missing);
        assert_eq!(languages.missing()["bash"], "");
        let message = languages.get("awk").unwrap_err().to_string();
        assert!(message.ends_with(missing), "{message}");
    }

    #[test]
    fn what_is_wrong_in_a_table_is_refused() {
        for wrong in [
            "[x]\nfile = \"x\"\nrun = []\n",
            "[x]\nfile = \"a/x\"\nrun = [\"x\"]\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\ncompile = [\"c\"]\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\ncolour = 1\n",
            "[x]\nfile = \"x\"\nrun = [\"x\"]\nlimits = { processes = 0 }\n",
            "[x]\nfile = \"x\"\nrun = [\"{y}\"]\n",
            "[x]\nfile = \"x\"\nrun = [\"{y}\"]\ntools = { y = [] }\n",
            "[x]\nfile = \"x\"\nrun = [\"{y}\"]\ntools = { y = [\"bin/y\"] }\n",
        ] {
            assert!(Languages::new([wrong], |_| true).is_err(), "{wrong}");
        }
    }
}
