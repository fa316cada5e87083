//! Below which group of v2 the groups of slots are made.
//!
//! # Design
//!
//! v2 hands controllers down only from a group without processes, the hierarchy's root excepted. But a
//! process that was given a group (a container's, or that of a systemd unit with `Delegate=yes`) was put
//! into it, and that is where its groups belong. So it has to move into a [`leaf`](super::leaf) first,
//! together with what it has started. Nobody else is moved: where others live in the group too, nothing is
//! touched and the [`Obstacle`] says who they are.
//!
//! A group above ours is used only if ours is part of what was given to us with it: when it is above a leaf
//! of ours, is marked as delegated by systemd, or is the root of a container, with no unit of systemd's in
//! between. What limits it limits us too.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};

use super::CONTROLLERS;
use super::leaf;
use crate::{capability, sys};

/// Where slots' groups are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The group that they lie below.
    pub directory: PathBuf,
    /// Whether this process lives in it and has to move into a leaf first.
    pub must_leave: bool,
}

/// Why there is no such group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What is in the way.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

const GET_OWN: &str = "Start this command in a cgroup of its own (`systemd-run --user --scope -p Delegate=yes COMMAND`; \
                       as root without --user); in a container, make it the first process, or move the others to a \
                       group beside the runs': `cd /sys/fs/cgroup && mkdir others && for p in $(cat cgroup.procs); do \
                       echo $p > others/cgroup.procs; done`; or allow it to be missing by this name";

impl Obstacle {
    fn new(why: String, remedy: &str) -> Self {
        Self { why, remedy: remedy.to_owned() }
    }
}

/// Finds it for a process in the group `own`, in a hierarchy mounted at `top`. Nothing is made or moved.
pub(crate) fn find(own: &Path, top: &Path) -> Result<Home, Obstacle> {
    let home = |directory: &Path, must_leave| Home { directory: directory.to_owned(), must_leave };
    let above = given_above(own, top).filter(|above| is_usable(above));
    let has_more = |above: &PathBuf| offered(above).len() > offered(own).len();
    // A group made for this process alone may have been handed no controllers.
    if is_usable(own) && !above.as_ref().is_some_and(has_more) {
        return Ok(home(own, false));
    }
    if let Some(above) = above {
        return Ok(home(&above, false));
    }
    let files = ["", "cgroup.procs", "cgroup.subtree_control"];
    if let Some(file) = files.iter().map(|name| own.join(name)).find(|file| !may_write(file)) {
        let why = format!("this process may not write to {}", file.display());
        return Err(Obstacle::new(why, capability::REMEDY));
    }
    if is_unit(own) && capability::is_privileged() && !is_delegated(own) {
        let why = format!("{} is systemd's own, without Delegate=yes", own.display());
        return Err(Obstacle::new(why, capability::REMEDY));
    }
    let strangers = match processes(own) {
        Ok(all) => strangers(&all),
        Err(error) => {
            let why = format!("cannot read {}/cgroup.procs: {error}", own.display());
            return Err(Obstacle::new(why, capability::REMEDY));
        }
    };
    if let Some(first) = strangers.first() {
        let why = format!(
            "cgroup v2 sets no limits below a group in which processes live, and beside this one there are {} in {}, \
             {} among them",
            strangers.len(),
            own.display(),
            name(*first)
        );
        return Err(Obstacle::new(why, GET_OWN));
    }
    Ok(home(own, true))
}

/// Whether groups with all controllers that are there can be made below `directory` as it is.
fn is_usable(directory: &Path) -> bool {
    let is_empty = || processes(directory).is_ok_and(|all| all.is_empty());
    let may_enable = || {
        (is_real_root(directory) || is_empty())
            && may_write(&directory.join("cgroup.subtree_control"))
    };
    may_write(directory)
        && may_write(&directory.join("cgroup.procs"))
        && (missing(directory).is_empty() || may_enable())
}

/// The controllers that are there and are not handed down yet.
pub(super) fn missing(directory: &Path) -> Vec<&'static str> {
    let enabled = words(directory, "cgroup.subtree_control");
    let mut offered = offered(directory);
    offered.retain(|name| !enabled.iter().any(|each| each == name));
    offered
}

/// The controllers that are there.
fn offered(directory: &Path) -> Vec<&'static str> {
    let all = words(directory, "cgroup.controllers");
    CONTROLLERS.into_iter().filter(|name| all.iter().any(|each| each == name)).collect()
}

/// The words of a file; none if it cannot be read.
pub(crate) fn words(directory: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The nearest group above `own` that was given to this process together with it.
fn given_above(own: &Path, top: &Path) -> Option<PathBuf> {
    let mut at = own;
    loop {
        let is_leaf = leaf::is_leaf(at);
        if is_unit(at) || at == top {
            return None;
        }
        at = at.parent()?;
        if is_leaf || is_delegated(at) || (at == top && !is_real_root(at)) {
            return Some(at.to_owned());
        }
    }
}

/// The root of the hierarchy itself, not of what a container sees of it, has no type.
fn is_real_root(directory: &Path) -> bool {
    !directory.join("cgroup.type").exists()
}

/// Whether it is named as systemd names what it manages.
fn is_unit(directory: &Path) -> bool {
    let extension = directory.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ["service", "scope", "slice"].contains(&extension))
}

/// Whether systemd has marked it as given away.
fn is_delegated(directory: &Path) -> bool {
    const MARKS: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];
    c_path(directory).is_some_and(|path| {
        MARKS.iter().any(|mark| sys::descriptor::has_attribute(&path, mark, b"1"))
    })
}

fn may_write(path: &Path) -> bool {
    c_path(path).is_some_and(|path| sys::descriptor::may_write(&path))
}

fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).ok()
}

/// The processes of a group; 0 stands for one that this process cannot see.
pub(super) fn processes(directory: &Path) -> std::io::Result<Vec<i32>> {
    let text = fs::read_to_string(directory.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Those that are neither this process nor started by it. Those that have ended meanwhile are nobody.
pub(super) fn strangers(all: &[i32]) -> Vec<i32> {
    let me = std::process::id().cast_signed();
    all.iter().copied().filter(|&pid| !descends(pid, me)).collect()
}

/// Whether `pid` is `ancestor`, was started by it or by what it has started, or has ended meanwhile.
fn descends(pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    while at != ancestor {
        if at <= 1 {
            return false;
        }
        match parent(at) {
            Some(parent) => at = parent,
            None if at == pid => return true,
            // Its parent has ended since it was asked for: it has another now.
            None => at = pid,
        }
    }
    true
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// What a process is called, with its number.
fn name(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} ({pid})", name.trim()),
        Err(_) => "one that cannot be seen from here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Fake;

    /// A group with all controllers, in which `processes` live; below `enabled` is handed down.
    fn group(fake: &Fake, path: &str, processes: &str, enabled: &str) -> PathBuf {
        let directory = fake.path().join(path);
        fs::create_dir_all(&directory).unwrap();
        let files = [
            ("cgroup.type", "domain\n"),
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cgroup.subtree_control", enabled),
            ("cgroup.procs", processes),
        ];
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
        directory
    }

    fn me() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn the_real_root_is_used_as_it_is() {
        let fake = Fake::new(&[]);
        let top = group(&fake, "", &format!("1\n{}", me()), "");
        fs::remove_file(top.join("cgroup.type")).unwrap();
        assert_eq!(find(&top, &top), Ok(Home { directory: top.clone(), must_leave: false }));
    }

    #[test]
    fn a_process_alone_in_its_group_leaves_it_and_takes_its_children() {
        let fake = Fake::new(&[]);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = group(&fake, "", &format!("{}{}\n", me(), child.id()), "");
        assert_eq!(find(&own, &own), Ok(Home { directory: own.clone(), must_leave: true }));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn others_in_the_group_are_named_and_left_alone() {
        let fake = Fake::new(&[]);
        for (stranger, called) in [("1", "(1)"), ("0", "cannot be seen")] {
            let own = group(&fake, "", &format!("{}{stranger}\n", me()), "");
            let obstacle = find(&own, &own).unwrap_err();
            assert!(obstacle.why.contains("there are 1 in"), "{obstacle:?}");
            assert!(obstacle.why.contains(called), "{obstacle:?}");
            assert!(obstacle.remedy.contains("cgroup of its own"), "{obstacle:?}");
        }
    }

    #[test]
    fn the_group_above_a_leaf_of_ours_is_used() {
        let fake = Fake::new(&[]);
        let top = group(&fake, "", "", "");
        let above = group(&fake, "a.scope", "", "cpu memory pids");
        let own = group(&fake, "a.scope/k15core-7-8-leaf", &me(), "");
        assert_eq!(find(&own, &top), Ok(Home { directory: above, must_leave: false }));
    }

    #[test]
    fn a_group_without_controllers_is_not_better_than_the_one_above_that_has_them() {
        let fake = Fake::new(&[]);
        let top = group(&fake, "", "", "");
        let own = group(&fake, "main", &me(), "");
        fs::write(own.join("cgroup.controllers"), "\n").unwrap();
        assert_eq!(find(&own, &top), Ok(Home { directory: top.clone(), must_leave: false }));
        // Where there is nothing above, it is what there is.
        assert_eq!(find(&own, &own), Ok(Home { directory: own.clone(), must_leave: false }));
    }

    #[test]
    fn a_containers_root_is_used_if_nobody_lives_there_and_systemd_does_not_rule_it() {
        let fake = Fake::new(&[]);
        let top = group(&fake, "", "", "");
        let own = group(&fake, "others", &me(), "");
        assert_eq!(find(&own, &top), Ok(Home { directory: top.clone(), must_leave: false }));
        let own = group(&fake, "a.slice/b.scope/others", &me(), "");
        group(&fake, "a.slice", "", "cpu memory pids");
        group(&fake, "a.slice/b.scope", "", "cpu memory pids");
        assert_eq!(find(&own, &top), Ok(Home { directory: own.clone(), must_leave: true }));
    }

    #[test]
    fn what_is_handed_down_already_needs_no_moving() {
        let fake = Fake::new(&[]);
        let own = group(&fake, "", &me(), "cpu memory pids");
        assert_eq!(find(&own, &own), Ok(Home { directory: own.clone(), must_leave: false }));
        assert_eq!(missing(&own), Vec::<&str>::new());
    }
}
