//! Looking for a program in a root that is only planned, with links read as a run would follow them.

use std::fs;
use std::path::{Path, PathBuf};

use super::Plan;

/// The most links that are followed: the kernel's own number.
const MOST_LINKS: usize = 40;

impl Plan {
    /// Where the file that a run sees at `path` lies on the host; `None` if it would see none.
    #[must_use]
    pub(crate) fn find(&self, path: &str) -> Option<PathBuf> {
        self.on_host(&self.resolve(path)?).filter(|real| real.is_file())
    }

    /// `path` with its links followed; `None` if there are too many.
    pub(super) fn resolve(&self, path: &str) -> Option<PathBuf> {
        let mut here = PathBuf::from("/");
        let mut ahead: Vec<String> = parts(path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "." => continue,
                ".." => {
                    here.pop();
                    continue;
                }
                _ => here.push(&part),
            }
            let Some(says) = self.link_at(&here) else { continue };
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            here.pop();
            if says.is_absolute() {
                here = PathBuf::from("/");
            }
            ahead.extend(parts(&says.to_string_lossy()));
        }
        Some(here)
    }

    /// What the link at `path` says, if there is one.
    fn link_at(&self, path: &Path) -> Option<PathBuf> {
        let planned = self.links.iter().find(|(link, _)| Path::new(link) == path);
        match planned {
            Some((_, says)) => Some(says.into()),
            None => fs::read_link(self.on_host(path)?).ok(),
        }
    }

    /// What of the host lies at `path`: by the innermost bind or copy that holds it.
    pub(super) fn on_host(&self, path: &Path) -> Option<PathBuf> {
        let holding =
            self.binds.iter().chain(&self.copies).filter(|bind| path.starts_with(&bind.target));
        let Some(bind) = holding.max_by_key(|bind| bind.target.len()) else {
            return Some(self.lower.as_ref()?.join(path.strip_prefix("/").ok()?));
        };
        let rest = path.strip_prefix(&bind.target).ok()?;
        Some(if rest.as_os_str().is_empty() { bind.source.clone() } else { bind.source.join(rest) })
    }
}

/// The parts of `path`, the first one last.
fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).rev().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::Bind;
    use super::*;

    #[test]
    fn links_are_followed_inside_and_never_out() {
        let base = std::env::temp_dir().join(format!("k15-find-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(base.join("usr/bin")).unwrap();
        fs::create_dir_all(base.join("etc/alternatives")).unwrap();
        fs::create_dir_all(base.join("root")).unwrap();
        for file in ["usr/bin/tool-1", "root/secret"] {
            fs::write(base.join(file), "").unwrap();
        }
        for (says, link) in [
            ("/etc/alternatives/tool", "usr/bin/tool"),
            ("/bin/../bin/tool-1", "etc/alternatives/tool"),
            ("../../root/secret", "usr/bin/hidden"),
            ("loop", "usr/bin/loop"),
        ] {
            symlink(says, base.join(link)).unwrap();
        }
        let bind = |name: &str| Bind { source: base.join(name), target: format!("/{name}") };
        let plan = Plan {
            binds: vec![bind("usr")],
            copies: vec![bind("etc/alternatives")],
            links: vec![("/bin".into(), "usr/bin".into())],
            ..Plan::default()
        };
        assert_eq!(plan.find("/usr/bin/tool"), Some(base.join("usr/bin/tool-1")));
        assert_eq!(plan.find("/bin/tool-1"), Some(base.join("usr/bin/tool-1")));
        for absent in
            ["/usr/bin/hidden", "/root/secret", "/usr/bin/loop", "/usr/bin", "/usr/bin/no"]
        {
            assert_eq!(plan.find(absent), None, "{absent}");
        }
        fs::remove_dir_all(base).unwrap();
    }
}
