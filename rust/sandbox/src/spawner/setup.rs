//! What a slot has once, for all its runs: namespaces, the root, privileges, the filter.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::overlay::Overlay;
use super::user_namespace;
use crate::error::Step;
use crate::rootfs::{Bind, Plan};
use crate::sys::credentials::{self, capability};
use crate::sys::{self, descriptor, mount, process, seccomp};
use crate::{Error, Result, seccomp as filter};

/// Where the new root is put together: any directory that every host has. What was there is hidden
/// from this process alone.
pub(super) const STAGING: &str = "/proc";

/// The group of every run, that of nobody's. Users differ from run to run.
pub(crate) const GROUP: u32 = 65534;

pub(super) const READ_ONLY: u64 = mount::attribute::READ_ONLY | mount::attribute::NO_SUID;

/// Character devices of a run's /dev, all of major number 1.
const DEVICES: [(&str, u32); 5] =
    [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("shm", "/tmp"),
];

/// Makes this process a slot's spawner: afterwards it sees only the slot's root and may do only what
/// runs need. With `has_zygotes`, interpreters that it starts may do the same. `is_outside`: of its runs'
/// cgroup. Returns the file that counts the sockets of the slot's network namespace.
pub(super) fn become_slot(plan: &Plan, has_zygotes: bool, is_outside: bool) -> Result<OwnedFd> {
    let sockets = make_namespaces(is_outside)?;
    limit_all_runs()?;
    make_root(plan)?;
    drop_privileges(has_zygotes, plan.is_writable)?;
    Ok(sockets)
}

/// Makes the namespaces that all runs of a slot share, or that its root is made in. A cgroup namespace is among
/// them if this process lives in its runs' cgroup. If it `is_outside`, runs make one of their own: nobody
/// starts a process in a cgroup that its namespace does not have. Returns the file that counts the sockets of
/// the slot's network namespace.
pub(super) fn make_namespaces(is_outside: bool) -> Result<OwnedFd> {
    let namespaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let groups = if is_outside { 0 } else { libc::CLONE_NEWCGROUP };
    process::unshare(namespaces | groups).step(|| "make the slot's namespaces".into())?;
    mount::make_all_private().step(|| "make mounts private".into())?;
    process::set_host_name("sandbox").step(|| "name the host".into())?;
    let sockets = fs::File::open("/proc/self/net/sockstat").step(|| "open sockstat".into())?;
    Ok(sockets.into())
}

/// Sets the limits that are the same for every run, which inherits them.
pub(super) fn limit_all_runs() -> Result<()> {
    // Where the kernel pipes a crash's dump to a program of the host, it starts that program whatever the
    // limit, except for a limit of 1.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let core = u64::from(pattern.starts_with(['|', '@']));
    let none = [libc::RLIMIT_MEMLOCK, libc::RLIMIT_NICE, libc::RLIMIT_RTPRIO];
    for (resource, value) in
        none.map(|each| (each, 0)).into_iter().chain([(libc::RLIMIT_CORE, core)])
    {
        credentials::limit_resource(resource, value, value).step(|| "set a limit".into())?;
    }
    Ok(())
}

fn make_root(plan: &Plan) -> Result<()> {
    // The views are taken before the staging directory hides anything.
    let parts = Parts::collect(plan)?;
    // In a user namespace the kernel mounts a /proc only beside one that is seen as a whole already. Every
    // run mounts its own over it.
    let processes = match user_namespace::is_entered() {
        true => Some(view(Path::new("/proc"), 0)?),
        false => None,
    };
    let root = new_root()?;
    enter_staging(&root)?;
    parts.put_together(Path::new(STAGING))?;
    if let Some(processes) = processes {
        let target = path_string(&Path::new(STAGING).join("proc"))?;
        mount::attach(processes.as_fd(), &target).step(|| "attach /proc".into())?;
    }
    mount::set_attributes(root.as_fd(), READ_ONLY).step(|| "make the root read-only".into())?;
    mount::pivot_into_working_directory().step(|| "change to the root".into())
}

/// An empty file system for a root, mounted nowhere.
pub(super) fn new_root() -> Result<OwnedFd> {
    let options = [(c"size", c"16m"), (c"nr_inodes", c"16k"), (c"mode", c"755")];
    mount::detached(c"tmpfs", &options, mount::attribute::NO_SUID).step(|| "make the root".into())
}

/// Attaches a root where it is put together and makes that the working directory.
pub(super) fn enter_staging(root: &OwnedFd) -> Result<()> {
    let staging = path_string(Path::new(STAGING))?;
    mount::attach(root.as_fd(), &staging).step(|| "attach the root".into())?;
    descriptor::change_directory(&staging).step(|| "enter the root".into())
}

/// What a root is made of, taken from the host.
pub(super) struct Parts<'a> {
    plan: &'a Plan,
    views: Vec<(OwnedFd, &'a Bind)>,
    /// What lies below all that.
    lower: Option<OwnedFd>,
    copies: Vec<(Tree, &'a str)>,
}

impl<'a> Parts<'a> {
    /// Takes them.
    pub(super) fn collect(plan: &'a Plan) -> Result<Self> {
        let no_devices = mount::attribute::NO_DEV;
        let lower = plan.lower.as_deref().map(|path| view(path, no_devices)).transpose()?;
        let views = plan.binds.iter().map(|bind| Ok((view(&bind.source, no_devices)?, bind)));
        let views = views.collect::<Result<_>>()?;
        let copies = plan.copies.iter().map(|copy| (read_tree(&copy.source), &*copy.target));
        Ok(Self { plan, views, lower, copies: copies.collect() })
    }

    /// Puts them together in the empty directory `here`, or in one below it if overlays are to be made of
    /// it: that directory.
    pub(super) fn put_together(self, here: &Path) -> Result<PathBuf> {
        let place = if self.plan.is_writable {
            Overlay::make_places(here, self.lower.as_ref())?
        } else {
            here.to_owned()
        };
        let here = &*place;
        for directory in ["dev", "proc", "tmp"] {
            fs::create_dir(here.join(directory)).step(|| format!("make /{directory}"))?;
        }
        make_devices(here)?;
        for (path, says) in &self.plan.links {
            symlink(says, inside(here, path)?).step(|| format!("link {path}"))?;
        }
        for (path, content) in &self.plan.files {
            fs::write(inside(here, path)?, content).step(|| format!("write {path}"))?;
        }
        for (tree, target) in self.copies {
            write_tree(&tree, &inside(here, target)?).step(|| format!("copy {target}"))?;
        }
        for (view, bind) in self.views {
            attach_view(&view, &bind.source, &inside(here, &bind.target)?)?;
        }
        Ok(place)
    }
}

/// A read-only view of what is at `source`, with more attributes. In a user namespace the mounts below it
/// are seen too: what they hide must stay hidden.
fn view(source: &Path, more: u64) -> Result<OwnedFd> {
    let (path, attributes) = (path_string(source)?, READ_ONLY | more);
    let take = || -> sys::Result<OwnedFd> {
        if user_namespace::is_entered() {
            let view = mount::view_of_all(&path)?;
            mount::set_attributes_of_all(view.as_fd(), attributes)?;
            Ok(view)
        } else {
            let view = mount::view(&path)?;
            mount::set_attributes(view.as_fd(), attributes)?;
            Ok(view)
        }
    };
    take().step(|| format!("bind {}", source.display()))
}

fn make_devices(root: &Path) -> Result<()> {
    let directory = root.join("dev");
    for (name, minor) in DEVICES {
        let path = directory.join(name);
        if user_namespace::is_entered() {
            // No user namespace makes devices: the host's own are seen.
            let source = Path::new("/dev").join(name);
            attach_view(&view(&source, 0)?, &source, &path)?;
            continue;
        }
        descriptor::make_device(&path_string(&path)?, 1, minor, 0o666)
            .step(|| format!("make /dev/{name}"))?;
        // The mode above is cut by the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .step(|| format!("open up /dev/{name}"))?;
    }
    for (name, says) in DEVICE_LINKS {
        symlink(says, directory.join(name)).step(|| format!("link /dev/{name}"))?;
    }
    Ok(())
}

fn attach_view(view: &OwnedFd, source: &Path, target: &Path) -> Result<()> {
    let step = || format!("make {}", target.display());
    if source.is_dir() {
        fs::create_dir_all(target).step(step)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).step(step)?;
        }
        if !target.exists() {
            fs::write(target, "").step(step)?;
        }
    }
    mount::attach(view.as_fd(), &path_string(target)?).step(step)
}

/// What of a small tree is copied into the root.
enum Tree {
    Absent,
    File(Vec<u8>),
    Link(PathBuf),
    Directory(Vec<(std::ffi::OsString, Tree)>),
}

/// Reads a small tree, leaving out what only its owner may read and what is larger than a few MiB.
fn read_tree(path: &Path) -> Tree {
    const LARGEST: u64 = 4 << 20;
    let Ok(status) = fs::symlink_metadata(path) else { return Tree::Absent };
    if status.is_symlink() {
        // A link to outside the tree would lead nowhere: take what it points at, if that is a file.
        let relative = fs::read_link(path).unwrap_or_default();
        if relative.is_absolute() && relative.starts_with("/usr") {
            return Tree::Link(relative);
        }
        return match fs::canonicalize(path) {
            Ok(real) if real.is_file() => read_tree(&real),
            _ => Tree::Link(relative),
        };
    }
    if status.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        return Tree::Directory(
            entries.map(|entry| (entry.file_name(), read_tree(&entry.path()))).collect(),
        );
    }
    let readable = status.permissions().mode() & 0o004 != 0;
    if status.is_file() && readable && status.len() <= LARGEST {
        return fs::read(path).map_or(Tree::Absent, Tree::File);
    }
    Tree::Absent
}

fn write_tree(tree: &Tree, target: &Path) -> std::io::Result<()> {
    match tree {
        Tree::Absent => Ok(()),
        Tree::File(content) => fs::write(target, content),
        Tree::Link(says) => symlink(says, target),
        Tree::Directory(entries) => {
            fs::create_dir_all(target)?;
            entries.iter().try_for_each(|(name, tree)| write_tree(tree, &target.join(name)))
        }
    }
}

/// `path`, absolute in the sandbox, as it is reached while the root is put together; its parents are made.
fn inside(root: &Path, path: &str) -> Result<PathBuf> {
    let path = root.join(path.trim_start_matches('/'));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).step(|| format!("make {}", parent.display()))?;
    }
    Ok(path)
}

pub(super) fn path_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::invalid("path", path.display(), "no NUL in it"))
}

/// Keeps what making a run needs, for as long as it is the spawner's: programs get nothing of it.
fn drop_privileges(has_zygotes: bool, makes_overlays: bool) -> Result<()> {
    let key = process::random_words().step(|| "draw the setup key".into())?[0];
    if user_namespace::is_entered() {
        process::close_memory().step(|| "close the spawner's memory".into())?;
    } else {
        credentials::leave_groups().step(|| "leave groups".into())?;
        credentials::set_group(GROUP).step(|| "change to the runs' group".into())?;
    }
    let keep = [
        capability::CHOWN,
        capability::DAC_OVERRIDE,
        capability::SETGID,
        capability::SETUID,
        capability::SYS_ADMIN,
    ];
    // An overlay changes files for their owners with the rights of the one who has mounted it.
    let keep = keep.iter().chain(makes_overlays.then_some(&capability::FOWNER));
    let keep = keep.fold(0, |bits, number| bits | 1 << number);
    let passed_on = if has_zygotes { keep } else { 0 };
    credentials::pass_on_capabilities(passed_on).step(|| "pass on capabilities".into())?;
    credentials::drop_bounding_set().step(|| "empty the bounding set".into())?;
    credentials::keep_capabilities(keep).step(|| "drop capabilities".into())?;
    credentials::set_no_new_privileges().step(|| "set no_new_privs".into())?;
    seccomp::load(&filter::compile(filter::RULES, key)).step(|| "load the filter".into())?;
    sys::set_setup_key(key);
    Ok(())
}
