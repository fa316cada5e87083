//! What this host can hold a run to.

use crate::cgroup::Host;
use crate::sys::credentials::{self, capability};
use crate::{Error, Result};

/// One promise and whether it is kept here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name: that of a field of [`crate::Limits`], or `isolation`. A caller can allow it to be missing.
    pub name: &'static str,
    /// Whether it is kept.
    pub enforced: bool,
    /// By what, or why not.
    pub how: String,
    /// What to do about it where it is not; else empty.
    pub remedy: String,
}

/// What runs may be allowed to go without. The rest is always kept, or nothing runs at all.
pub const OPTIONAL: [&str; 4] = ["memory_bytes", "processes", "cpu_seconds", "cpus"];

pub(crate) const REMEDY: &str = "Give this process a cgroup in which it may make others (systemd: Delegate=yes, or \
                      `systemd-run --user --scope -p Delegate=yes COMMAND`; Docker: --privileged or a \
                      writable /sys/fs/cgroup with the controller), or allow it to be missing by this name";

/// Looks at this process and `host`.
#[must_use]
pub fn capabilities(host: &Host) -> Vec<Capability> {
    let mut all = vec![isolation()];
    let mut add = |name, enforced: bool, how: &str, remedy: &str| {
        let (how, remedy) = (how.to_owned(), if enforced { "" } else { remedy }.to_owned());
        all.push(Capability { name, enforced, how, remedy });
    };
    let version = host.version().map_or("none", |version| match version {
        crate::cgroup::Version::V1 => "v1",
        crate::cgroup::Version::V2 => "v2",
    });
    let moved = match host.v2_home().filter(|home| home.must_leave) {
        Some(home) => format!(
            "; while it has a sandbox, this process lives in a group of its own below {}",
            home.directory.display()
        ),
        None => String::new(),
    };
    let with = |controller: &str| format!("the {controller} controller of cgroup {version}{moved}");
    let obstacle = host.v2_obstacle();
    let why = obstacle.map_or(String::new(), |obstacle| format!(": {}", obstacle.why));
    let without =
        |controller: &str| format!("no usable {controller} controller (cgroup {version}){why}");
    let remedy = obstacle.map_or(REMEDY, |obstacle| &obstacle.remedy);
    let mut by_cgroup = |name, controller: &str, instead: Option<&str>| {
        let (there, how) = match (host.can_use(controller), instead) {
            (true, _) => (true, with(controller)),
            (false, Some(instead)) => (true, instead.to_owned()),
            (false, None) => (false, without(controller)),
        };
        add(name, there, &how, remedy);
    };
    by_cgroup("memory_bytes", "memory", None);
    let by_user = if is_privileged() {
        "RLIMIT_NPROC of a user that no other run has"
    } else {
        "RLIMIT_NPROC in a user namespace that no other slot has"
    };
    by_cgroup("processes", "pids", Some(by_user));
    by_cgroup("cpu_seconds", "cpuacct", None);
    by_cgroup("cpus", "cpu", None);
    add("wall_seconds", true, "a clock outside of the sandbox", "");
    add("disk_bytes", true, "a tmpfs of fixed size", "");
    add("disk_files", true, "a tmpfs with a fixed number of inodes", "");
    add("output_bytes", true, "the reader outside of the sandbox", "");
    add("open_files", true, "RLIMIT_NOFILE", "");
    add("stack_bytes", true, "RLIMIT_STACK", "");
    all
}

/// What the direct way needs to keep runs apart by users of their own.
const NEEDED: [(&str, u32); 7] = [
    ("CAP_SYS_ADMIN", capability::SYS_ADMIN),
    ("CAP_SETUID", capability::SETUID),
    ("CAP_SETGID", capability::SETGID),
    ("CAP_SETPCAP", capability::SETPCAP),
    ("CAP_CHOWN", capability::CHOWN),
    ("CAP_DAC_OVERRIDE", capability::DAC_OVERRIDE),
    ("CAP_MKNOD", capability::MKNOD),
];

/// The capabilities of [`NEEDED`] that this process lacks.
fn lacking() -> Vec<&'static str> {
    let have = credentials::effective_capabilities().unwrap_or(0);
    NEEDED.iter().filter(|(_, bit)| have >> bit & 1 == 0).map(|&(name, _)| name).collect()
}

/// Whether this process can give runs users of their own. Else it is an ordinary user's, or root's in a
/// user namespace, and its slots live in user namespaces.
pub(crate) fn is_privileged() -> bool {
    lacking().is_empty() && has_all_users()
}

/// Whether all users of the kernel are mapped here: so it is in the first user namespace.
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn isolation() -> Capability {
    let lacking = lacking();
    let (user, _) = credentials::user_and_group();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (how, fault) = if is_privileged() {
        ("namespaces, a read-only root, no capabilities, no_new_privs, seccomp", None)
    } else if user == 0 && has_all_users() {
        let why = format!("this process is root without {}", lacking.join(", "));
        let remedy = "Start it (or its container) with these capabilities, or as an ordinary user";
        ("", Some((why, remedy.to_owned())))
    } else {
        let how = "a user namespace with this user alone in it, and below it namespaces, a \
                   read-only root, no capabilities, no_new_privs, seccomp";
        (how, obstacle(&read))
    };
    let (how, remedy) = fault.clone().unwrap_or((how.to_owned(), String::new()));
    Capability { name: "isolation", enforced: fault.is_none(), how, remedy }
}

/// What keeps an ordinary user from making user namespaces and mounting /proc in them: what it is, and
/// what to do about it. `read` reads a file, or nothing where there is none.
fn obstacle(read: &dyn Fn(&str) -> String) -> Option<(String, String)> {
    let settings = [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    for (name, wrong, right) in settings {
        let value = read(&format!("/proc/sys/{}", name.replace('.', "/")));
        if value.trim() == wrong {
            let why = format!("ordinary users may make no user namespaces: {name} is {wrong}");
            return Some((why, format!("Run `sudo sysctl -w {name}={right}`, or run it as root")));
        }
    }
    let mounts = read("/proc/self/mountinfo");
    let over = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|target| target.starts_with("/proc/") && *target != "/proc/sys/fs/binfmt_misc")?;
    Some((
        format!("a user namespace may mount no /proc where parts of it are hidden: {over} is"),
        "Start the container with all of /proc (Docker: --security-opt systempaths=unconfined), \
         or as root with CAP_SYS_ADMIN"
            .to_owned(),
    ))
}

/// Refuses to go on where something is not kept that the caller has not allowed to be missing.
///
/// # Errors
///
/// [`Error::Unenforceable`] names the first such; [`Error::InvalidInput`] a name that cannot be allowed.
pub fn require(all: &[Capability], allowed: &[String]) -> Result<()> {
    for name in allowed {
        if !OPTIONAL.contains(&name.as_str()) {
            let expected = format!("one of {}", OPTIONAL.join(", "));
            return Err(Error::invalid("allow_unenforced", format!("{name:?}"), expected));
        }
    }
    for each in all {
        // A share of processors is not part of the defaults: it is refused when asked for.
        let excused = each.name == "cpus" || allowed.iter().any(|name| name == each.name);
        if !each.enforced && !excused {
            return Err(Error::Unenforceable {
                what: each.name,
                why: each.how.clone(),
                remedy: each.remedy.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cgroups_memory_is_refused_unless_allowed() {
        let mut all = capabilities(&Host::none());
        all.retain(|each| each.name != "isolation");
        let message = require(&all, &[]).unwrap_err().to_string();
        assert!(
            message.starts_with("this host cannot enforce memory_bytes: no usable"),
            "{message}"
        );
        let allowed = ["memory_bytes".to_owned(), "cpu_seconds".to_owned()];
        assert!(require(&all, &allowed).is_ok());
    }

    #[test]
    fn what_keeps_an_ordinary_user_from_user_namespaces_is_named() {
        let host = |setting: &'static str, value: &'static str| {
            obstacle(&move |path| {
                if path.ends_with(setting) { value.into() } else { String::new() }
            })
        };
        assert_eq!(host("nothing", ""), None);
        assert_eq!(host("max_user_namespaces", "96365\n"), None);
        let (why, remedy) = host("max_user_namespaces", "0\n").unwrap();
        assert!(why.ends_with("user.max_user_namespaces is 0"), "{why}");
        assert!(remedy.contains("sysctl -w user.max_user_namespaces=10000"), "{remedy}");
        assert!(host("apparmor_restrict_unprivileged_userns", "1\n").is_some());
        let free = "25 1 0:5 / /proc rw - proc proc rw\n\
                    26 25 0:6 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n";
        assert_eq!(host("mountinfo", free), None);
        let masked =
            "25 1 0:5 / /proc rw - proc proc rw\n26 25 0:6 /null /proc/kcore rw - tmpfs a rw\n";
        assert!(host("mountinfo", masked).unwrap().0.contains("/proc/kcore"));
    }

    #[test]
    fn isolation_cannot_be_done_without() {
        assert!(require(&[], &["isolation".to_owned()]).is_err());
    }
}
