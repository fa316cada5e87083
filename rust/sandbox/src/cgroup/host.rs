//! Which controllers this host has, and where this process is in their hierarchies.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use super::v2::home::{self, Home, Obstacle};
use crate::error::Step;
use crate::{Result, sys};

/// A generation of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// The controllers that the crate uses.
pub const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

/// What was found. For v1, the directory of this process's own cgroup by controller; for v2, where in the
/// unified hierarchy groups can be made, with the controllers that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    v1: BTreeMap<String, PathBuf>,
    v2: Option<Unified>,
}

/// The unified hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unified {
    home: std::result::Result<Home, Obstacle>,
    controllers: Vec<String>,
}

impl Unified {
    /// What a process in the group `own` finds in the hierarchy mounted at `top`.
    fn look(own: &Path, top: &Path) -> Self {
        let home = home::find(own, top);
        let at = home.as_ref().map_or(own, |home| &home.directory);
        let controllers = home::words(at, "cgroup.controllers");
        Self { home, controllers }
    }
}

impl Host {
    /// Looks at this process's mounts and cgroups.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn detect() -> Result<Self> {
        let read = |path: &str| {
            fs::read_to_string(path).step(|| format!("read {path} (is /proc mounted?)"))
        };
        Ok(Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
    }

    /// A host without cgroups.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// What /proc/self/mountinfo and /proc/self/cgroup say.
    fn parse(mounts: &str, groups: &str) -> Self {
        let mut host = Self::default();
        let own = |name: &str| {
            groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                names.split(',').any(|each| each == name).then(|| path.to_owned())
            })
        };
        for line in mounts.lines() {
            let Some((fields, tail)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = fields.split(' ').collect();
            let [_, _, _, root, target, ..] = fields.as_slice() else { continue };
            let tail: Vec<&str> = tail.split(' ').collect();
            let [kind, _, options, ..] = tail.as_slice() else { continue };
            // What begins above the root of this cgroup namespace does not say where in it our groups are.
            if root.split('/').any(|part| part == "..") {
                continue;
            }
            match *kind {
                "cgroup2" => {
                    if let Some(path) = own("") {
                        let top = locate(target, root, root);
                        host.v2 = Some(Unified::look(&locate(target, root, &path), &top));
                    }
                }
                "cgroup" => {
                    for name in options.split(',').filter(|name| CONTROLLERS.contains(name)) {
                        if let Some(path) = own(name) {
                            host.v1.insert(name.to_owned(), locate(target, root, &path));
                        }
                    }
                }
                _ => {}
            }
        }
        host
    }

    /// The generation whose controllers are used: v1 if it has any and v2 has not memory.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match &self.v2 {
            Some(v2)
                if self.v1.is_empty() || v2.controllers.iter().any(|name| name == "memory") =>
            {
                Some(Version::V2)
            }
            _ if self.v1.is_empty() => None,
            _ => Some(Version::V1),
        }
    }

    /// Whether `controller` can be had.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        match self.version() {
            // On v2 every group counts its processor time, with or without the controller.
            Some(Version::V2) => {
                let v2 = self.v2.iter().flat_map(|v2| &v2.controllers);
                controller == "cpuacct" || v2.into_iter().any(|name| name == controller)
            }
            Some(Version::V1) => self.v1.contains_key(controller),
            None => false,
        }
    }

    /// Whether `controller` can be had and groups can be made there.
    #[must_use]
    pub fn can_use(&self, controller: &str) -> bool {
        self.has(controller)
            && match self.version() {
                Some(Version::V1) => self.v1_directory(controller).is_some_and(may_write),
                Some(Version::V2) => self.v2_home().is_some(),
                None => false,
            }
    }

    /// The group below which groups are made, in every hierarchy that is used, each once.
    pub(crate) fn directories(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = match self.version() {
            Some(Version::V1) => self.v1.values().map(PathBuf::as_path).collect(),
            Some(Version::V2) => self.v2_home().map(|home| &*home.directory).into_iter().collect(),
            None => Vec::new(),
        };
        all.sort_unstable();
        all.dedup();
        all
    }

    /// This process's own group in the hierarchy of a v1 controller.
    #[must_use]
    pub fn v1_directory(&self, controller: &str) -> Option<&Path> {
        self.v1.get(controller).map(PathBuf::as_path)
    }

    /// Where groups can be made on v2, if it is used.
    #[must_use]
    pub fn v2_home(&self) -> Option<&Home> {
        let v2 = self.v2.as_ref().filter(|_| self.version() == Some(Version::V2))?;
        v2.home.as_ref().ok()
    }

    /// What keeps groups from being made on v2, if it is used and something does.
    #[must_use]
    pub fn v2_obstacle(&self) -> Option<&Obstacle> {
        let v2 = self.v2.as_ref().filter(|_| self.version() == Some(Version::V2))?;
        v2.home.as_ref().err()
    }
}

/// Whether this process may make directories in `directory`.
fn may_write(directory: &Path) -> bool {
    CString::new(directory.as_os_str().as_encoded_bytes())
        .is_ok_and(|path| sys::descriptor::may_write(&path))
}

/// Where the group `path` is seen, when the group `root` is what is mounted at `target`.
fn locate(target: &str, root: &str, path: &str) -> PathBuf {
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
    let mut directory = PathBuf::from(target.replace("\\040", " "));
    let below = below.trim_start_matches('/');
    if !below.is_empty() {
        directory.push(below); // nothing would leave a slash at the end
    }
    directory
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_host_uses_its_v1_controllers() {
        let groups = "4:memory:/some/group\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let host = Host::parse(HYBRID, groups);
        assert_eq!(host.version(), Some(Version::V1));
        assert_eq!(
            host.v1_directory("memory"),
            Some(Path::new("/sys/fs/cgroup/memory/some/group"))
        );
        assert_eq!(host.v1_directory("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/")));
        assert!(host.has("cpu") && !host.has("pids"));
    }

    #[test]
    fn in_a_container_the_mounted_part_is_the_root() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let host = Host::parse(mounts, "4:memory:/docker/abc/inner\n");
        assert_eq!(host.v1_directory("memory"), Some(Path::new("/sys/fs/cgroup/memory/inner")));
        let elsewhere = Host::parse(mounts, "4:memory:/else\n");
        assert_eq!(elsewhere.v1_directory("memory"), Some(Path::new("/sys/fs/cgroup/memory/")));
    }

    #[test]
    fn a_mount_of_more_than_the_namespace_is_no_place_for_groups() {
        let mounts = "35 31 0:32 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(Host::parse(mounts, "0::/\n"), Host::none());
    }

    #[test]
    fn nothing_mounted_is_a_host_without_groups() {
        let host = Host::parse("22 27 0:21 / /proc rw - proc proc rw", "0::/\n");
        assert_eq!(host.version(), None);
        assert_eq!(host, Host::none());
    }
}
