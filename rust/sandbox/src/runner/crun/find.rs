//! Finding crun on this host.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// The oldest version that is known to do what the runner needs of it.
const OLDEST: (u32, u32) = (1, 8);

/// Where it is looked for after PATH.
const USUAL: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/sbin"];

/// The path of crun on this host.
pub(super) fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(std::env::split_paths(&path).chain(USUAL.iter().map(PathBuf::from)))
}

fn find_in(directories: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
    let found = directories
        .map(|directory| directory.join("crun"))
        .find(|path| path.is_absolute() && path.is_file());
    let remedy = "Install it (Debian, Ubuntu: apt-get install crun; Fedora: dnf install crun), or use \
                  the direct runner, which needs no runtime";
    let Some(path) = found else {
        return Err(Error::Missing { what: "crun, the container runtime", remedy });
    };
    match version(&path) {
        Some(version) if version >= OLDEST => Ok(path),
        _ => {
            let expected = format!("crun of version {}.{} or newer", OLDEST.0, OLDEST.1);
            Err(Error::invalid("runner", path.display(), expected))
        }
    }
}

/// What it says of itself: major, minor.
fn version(crun: &Path) -> Option<(u32, u32)> {
    // It makes the directory of its containers' states whatever it is asked: this one is there.
    let said = Command::new(crun).args(["--root", "/", "--version"]).output().ok()?.stdout;
    parse(&String::from_utf8_lossy(&said))
}

fn parse(said: &str) -> Option<(u32, u32)> {
    let version = said.lines().next()?.strip_prefix("crun version ")?;
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{find_in, parse};

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let message = find_in(std::iter::once("/nowhere".into())).unwrap_err().to_string();
        let start = "crun, the container runtime, is missing. Install it (Debian, Ubuntu: apt-get";
        assert!(message.starts_with(start), "{message}");
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse("crun version 1.8.1\ncommit: f8a0\n"), Some((1, 8)));
        assert_eq!(parse("crun version 1.19.1.0.0.0.23-3b15\n"), Some((1, 19)));
        assert_eq!(parse("crun version 1.20\n"), Some((1, 20)));
        assert_eq!(parse("runc version 1.1.5\n"), None);
        assert_eq!(parse(""), None);
    }
}
