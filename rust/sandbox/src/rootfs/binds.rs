//! Putting what a user wants to be seen on top of a planned root.

use std::path::{Path, PathBuf};

use super::{Bind, Plan};
use crate::{Error, Result};

/// What every run has anew, whatever lies there.
const FRESH: [&str; 3] = ["/dev", "/proc", "/tmp"];

impl Plan {
    /// Adds `binds`, those that lie in others after these.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a path that is not absolute or does not exist, and for a place that cannot be
    /// made or would not be seen.
    pub(super) fn add_binds(&mut self, binds: &[Bind]) -> Result<()> {
        let mut binds: Vec<&Bind> = binds.iter().collect();
        binds.sort_by_key(|bind| Path::new(&bind.target).components().count());
        for bind in binds {
            let plain = !bind.target.split('/').any(|part| part == "..");
            if !(bind.target.starts_with('/') && bind.target.len() > 1 && plain) {
                return Err(Error::invalid("binds", &bind.target, "an absolute path without `..`"));
            }
            if !bind.source.exists() {
                return Err(Error::invalid("binds", bind.source.display(), "a path that exists"));
            }
            let target = self.place_for(bind)?;
            self.binds.push(Bind { source: bind.source.clone(), target });
        }
        Ok(())
    }

    /// The path of a bind's target with the root's links followed, if there is or can be such a place.
    fn place_for(&self, bind: &Bind) -> Result<String> {
        let wrong = |expected: String| Error::invalid("binds", &bind.target, expected);
        let place = self.resolve(&bind.target).unwrap_or_else(|| PathBuf::from(&bind.target));
        if let Some(fresh) = FRESH.iter().find(|fresh| place.starts_with(fresh)) {
            return Err(wrong(format!("a path outside of {fresh}, which every run has anew")));
        }
        let kind = |path: &Path| if path.is_dir() { "a directory" } else { "a file" };
        // Places are made where nothing is bound yet. What is bound is read-only.
        let holder = self.binds.iter().filter(|other| place.starts_with(&other.target));
        if let Some(holder) = holder.max_by_key(|other| other.target.len()) {
            let there = self.on_host(&place).filter(|there| there.exists());
            let Some(there) = there else {
                let holder = &holder.target;
                let expected = format!(
                    "a path that {holder} has, which is shown read-only, or one outside of {holder}"
                );
                return Err(wrong(expected));
            };
            if kind(&there) != kind(&bind.source) {
                let (is, wanted) = (kind(&there), kind(&bind.source));
                return Err(wrong(format!("a path where {wanted} can be, as {is} is there")));
            }
        }
        place.into_os_string().into_string().map_err(|_| wrong("a path in UTF-8".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::Source;

    fn plan(binds: &[(&str, &str)]) -> Result<Plan> {
        let bind = |&(source, target): &(&str, &str)| Bind {
            source: source.into(),
            target: target.into(),
        };
        let binds: Vec<Bind> = binds.iter().map(bind).collect();
        Plan::new(&Source::Host, &binds, false)
    }

    #[test]
    fn a_bind_must_be_absolute_and_exist() {
        for wrong in [("/usr", "opt"), ("/usr", "/opt/../etc"), ("/no-such", "/opt")] {
            assert!(plan(&[wrong]).is_err());
        }
    }

    #[test]
    fn a_place_that_cannot_be_made_is_refused_with_what_is_in_the_way() {
        let said = |binds: &[(&str, &str)]| plan(binds).unwrap_err().to_string();
        let start =
            "binds = /usr/local/no-such: expected a path that /usr has, which is shown read-only";
        assert!(said(&[("/etc", "/usr/local/no-such")]).starts_with(start));
        let both = [("/etc", "/opt/no-such"), ("/usr", "/opt")];
        assert!(said(&both).contains("a path that /opt has"), "{}", said(&both));
        for fresh in ["/tmp/x", "/tmp", "/proc/x", "/dev/x"] {
            assert!(said(&[("/usr", fresh)]).contains("which every run has anew"));
        }
        let file = said(&[("/etc/hostname", "/usr/bin")]);
        assert!(file.ends_with("a path where a file can be, as a directory is there"), "{file}");
    }

    #[test]
    fn beside_and_inside_of_others_they_come_in_order() {
        let both = [("/usr", "/opt/mine"), ("/usr", "/opt/rust")];
        assert_eq!(plan(&both).unwrap().binds.len(), plan(&[]).unwrap().binds.len() + 2);
        let nested = plan(&[("/etc", "/opt/bin"), ("/usr", "/opt")]).unwrap();
        let last: Vec<&str> = nested.binds.iter().rev().take(2).map(|bind| &*bind.target).collect();
        assert_eq!(last, ["/opt/bin", "/opt"]);
        let place = plan(&[("/etc", "/usr/local/bin/")]).unwrap();
        assert_eq!(place.binds.last().map(|bind| &*bind.target), Some("/usr/local/bin"));
    }
}
