//! Rust by rustup lies in its user's home, which no run sees: where it is, so that it can be shown alone.

use std::fs;
use std::path::PathBuf;

/// Where runs see the toolchain. `languages.toml` looks for rustc there too.
pub(crate) const SEEN_AT: &str = "/opt/rust";

/// The directory of the toolchain that rustup uses by default, if there is one with a compiler in it.
pub(crate) fn toolchain() -> Option<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")))?;
    let name = match std::env::var("RUSTUP_TOOLCHAIN") {
        Ok(name) => name,
        Err(_) => {
            let settings = fs::read_to_string(home.join("settings.toml")).ok()?;
            let settings: toml::Table = settings.parse().ok()?;
            settings.get("default_toolchain")?.as_str()?.to_owned()
        }
    };
    // A name without the machine's, such as `stable`, is the beginning of its directory's.
    let entries = fs::read_dir(home.join("toolchains")).ok()?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let entry = entry.file_name();
            let entry = entry.to_string_lossy();
            entry
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .filter(|path| path.join("bin/rustc").is_file())
        .collect();
    found.sort();
    found.into_iter().next()
}
