//! Which pools there are on this machine, on disk, so that what a killed process has left behind is found
//! and cleaned by the next one.
//!
//! A pool writes one file before it makes anything, and removes it last. The file names its process (by
//! number, start time, pid namespace and boot) and the directories that it may make. Only those are ever
//! touched, and only when that process is gone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cgroup::{Host, leaf};
use crate::error::Step;
use crate::{Error, Result, sys};

/// The first line of every file: a file with another is not ours to act on.
const HEAD: &str = "k15core pool 1";

/// Held by who moves this process into a leaf or out of one: its pools share it.
static MOVES: Mutex<()> = Mutex::new(());

/// A pool's entry.
pub(crate) struct Entry {
    path: PathBuf,
    /// Once it is, the path may be another pool's.
    closed: AtomicBool,
    /// The pool's directory name in each hierarchy.
    pub(crate) name: String,
}

impl Entry {
    /// Cleans what dead processes have left, then enters a pool of this process and makes room for its groups.
    /// Where those are to be made is the second.
    pub(crate) fn new() -> Result<(Self, Host)> {
        let directory = directory()?;
        clean_all(&directory);
        let _moving = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::detect()?;
        let identity = Identity::of_this_process()?;
        for number in 0..10_000 {
            let name = format!("k15core-{}-{}-{number}", identity.pid, identity.start);
            let path = directory.join(&name);
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let mut file = match opened {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    // Whoever has left the directory empty has removed it.
                    self::directory()?;
                    continue;
                }
                opened => opened.step(|| format!("make {}", path.display()))?,
            };
            let mut text = format!("{HEAD}\n{}\n", identity.line());
            for own in host.directories() {
                text += &format!("{}\n", own.join(&name).display());
            }
            let leaf = host.v2_home().and_then(|home| leaf_below(&home.directory, &name));
            text += &leaf.as_ref().map_or(String::new(), |leaf| format!("{}\n", leaf.display()));
            file.write_all(text.as_bytes()).step(|| format!("write {}", path.display()))?;
            if let (Some(home), Some(leaf)) = (host.v2_home().filter(|home| home.must_leave), &leaf)
                && let Err(error) = leaf::enter(home, leaf)
            {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
            return Ok((Self { path, closed: AtomicBool::new(false), name }, host));
        }
        Err(Error::system("enter the pool", std::io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// Its file, for the janitor.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what the pool has made, which must be empty by now, and its entry. Only the first call does.
    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            let _moving = MOVES.lock().unwrap_or_else(PoisonError::into_inner);
            clean(&self.path);
        }
    }
}

/// The leaf that the process of the pool `name` has in the group `home`, if it has one.
fn leaf_below(home: &Path, name: &str) -> Option<PathBuf> {
    leaf::name_for(name).map(|leaf| home.join(leaf))
}

/// Where entries are: a directory of this user's own.
fn directory() -> Result<PathBuf> {
    let (user, _) = sys::credentials::user_and_group();
    let is_own = |base: &PathBuf| {
        fs::metadata(base).is_ok_and(|status| status.is_dir() && status.uid() == user)
    };
    // To root of a user namespace, /run is somebody else's.
    let run = Some(PathBuf::from("/run")).filter(|_| user == 0).filter(is_own);
    let runtime = || std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_own);
    let path = match run.or_else(runtime) {
        Some(base) => base.join("k15core"),
        None => PathBuf::from(format!("/tmp/k15core-{}", outside(user))),
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.step(|| format!("make {}", path.display()))?,
    }
    let status = fs::symlink_metadata(&path).step(|| format!("look at {}", path.display()))?;
    if !status.is_dir() || status.uid() != user || status.mode() & 0o022 != 0 {
        let expected = "a directory that only this user can write to";
        return Err(Error::invalid("registry", path.display(), expected));
    }
    Ok(path)
}

/// What `user` is called outside of this user namespace, where the same number can mean many.
fn outside(user: u32) -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let lines = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    let mut found = lines.filter_map(|(inside, outside, count)| {
        let place = user.checked_sub(inside).filter(|place| *place < count)?;
        outside.checked_add(place)
    });
    found.next().unwrap_or(user)
}

/// Who made a pool.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    pid: u32,
    start: u64,
    /// The pid namespace in which `pid` means something, and the boot.
    place: String,
}

impl Identity {
    fn of_this_process() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid)
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ESRCH))
            .step(|| "read /proc/self/stat".into())?;
        Ok(Self { pid, start, place: place() })
    }

    fn line(&self) -> String {
        format!("{} {} {}", self.pid, self.start, self.place)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ' ');
        let (pid, start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { pid, start, place: parts.next()?.to_owned() })
    }

    /// Whether it is certain that the process is no more. One of another pid namespace may live.
    fn is_gone(&self) -> bool {
        self.place == place() && start_time(self.pid) != Some(self.start)
    }
}

fn place() -> String {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{} {}", namespace.display(), boot.trim())
}

/// When process `pid` started, in the kernel's ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the rest may not.
    let (_, rest) = stat.rsplit_once(") ")?;
    if rest.starts_with(['Z', 'X']) {
        return None;
    }
    rest.split(' ').nth(19)?.parse().ok()
}

/// Cleans after every entry whose process is gone. Entries that make no sense are left alone.
fn clean_all(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let mut lines = text.lines();
        let gone = lines.next() == Some(HEAD)
            && lines.next().and_then(Identity::parse).is_some_and(|identity| identity.is_gone());
        if gone {
            clean(&path);
        }
    }
}

/// Ends all that is left of the pool entered at `path` and removes its directories and its entry.
fn clean(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let Some(leaf_name) = leaf::name_for(name) else { return };
    // Nothing but directories of this pool's own names is ever removed.
    let is_called = |line: &&Path, name: &str| line.file_name().is_some_and(|last| last == name);
    let lines: Vec<&Path> = text.lines().skip(2).map(Path::new).collect();
    let pools = lines.iter().filter(|line| is_called(line, name));
    let is_gone = pools.filter(|pool| !remove_group(pool)).count() == 0;
    let leaf = lines.iter().find(|line| is_called(line, &leaf_name));
    let is_shared = || has_sisters(path);
    let was_shared = is_shared();
    if is_gone && leaf.is_none_or(|leaf| was_shared || leaf::give_up(leaf, LEAF_TRIES)) {
        let _ = fs::remove_file(path);
        // Only if it is empty.
        let _ = path.parent().map(fs::remove_dir);
    }
    // Of several that end at once each may have seen the others.
    if let Some(leaf) = leaf.filter(|_| was_shared && !is_shared()) {
        leaf::give_up(leaf, LEAF_TRIES);
    }
}

/// How often it is tried to give up a leaf. A group of somebody else's may stay beside it for ever.
const LEAF_TRIES: usize = 20;

/// Whether other pools of the same process are entered beside the one at `path`.
fn has_sisters(path: &Path) -> bool {
    let leaf = |path: &Path| leaf::name_for(path.file_name()?.to_str()?);
    let entries = path.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    entries.map(|entry| entry.path()).any(|other| other != path && leaf(&other) == leaf(path))
}

/// Kills what is in a group of ours and in those below it and removes them; says whether they are gone.
fn remove_group(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return true };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    for _ in 0..200 {
        kill_all(directory);
        match fs::remove_dir(directory) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            removed => return removed.is_ok() || !directory.exists(),
        }
    }
    false
}

/// Kills every process of a group that is ours, once.
pub(crate) fn kill_all(directory: &Path) -> bool {
    let command = OpenOptions::new().write(true).open(directory.join("cgroup.kill"));
    if command.and_then(|mut file| file.write_all(b"1")).is_ok() {
        return true;
    }
    let listed = || fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<i32> = listed().lines().filter_map(|line| line.parse().ok()).collect();
    for &pid in &pids {
        let _ = sys::process::kill_checked(pid, || {
            listed().lines().any(|line| line.parse() == Ok(pid))
        });
    }
    !pids.is_empty()
}

/// Waits until process `parent` is gone, then cleans after the pool entered at `path`, unless it did so
/// itself. This is a process of its own, so that a pool's end does not depend on how its process ends.
///
/// # Errors
///
/// When the process cannot be watched.
pub fn clean_after(parent: i32, path: &Path) -> Result<()> {
    use std::os::fd::AsFd;
    let pidfd = sys::process::open_pidfd(parent).step(|| format!("watch process {parent}"))?;
    if sys::process::parent() == parent {
        let mut wait = [sys::descriptor::Poll::readable(Some(pidfd.as_fd()))];
        while sys::descriptor::poll(&mut wait, None) == Ok(0) {}
    }
    if File::open(path).is_ok() {
        clean(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_not_gone_and_a_stranger_of_its_number_is() {
        let me = Identity::of_this_process().unwrap();
        assert!(!me.is_gone());
        assert_eq!(Identity::parse(&me.line()), Some(Identity { ..me }));
        let earlier = Identity { start: me.start - 1, pid: me.pid, place: place() };
        assert!(earlier.is_gone());
        let elsewhere = Identity { start: 1, pid: me.pid, place: "pid:[1] boot".into() };
        assert!(!elsewhere.is_gone());
    }

    #[test]
    fn only_directories_of_the_entrys_name_are_removed() {
        let base = std::env::temp_dir().join(format!("k15-registry-{}", std::process::id()));
        let (name, strange) = ("k15core-1-1-0", "somebody-elses");
        for below in [name, strange] {
            fs::create_dir_all(base.join(below).join("slot-1")).unwrap();
        }
        let path = base.join(format!("entries-{name}"));
        let directories =
            format!("{}\n{}", base.join(name).display(), base.join(strange).display());
        fs::write(&path, format!("{HEAD}\n1 1 x\n{directories}\n")).unwrap();
        // The entry's name is not the directory's: nothing is touched.
        clean(&path);
        assert!(base.join(name).exists());
        fs::create_dir(base.join("entries")).unwrap();
        let path = base.join("entries").join(name);
        fs::write(&path, format!("{HEAD}\n1 1 x\n{directories}\n")).unwrap();
        clean(&path);
        assert!(!base.join(name).exists() && base.join(strange).exists() && !path.exists());
        fs::remove_dir_all(base).unwrap();
    }
}
