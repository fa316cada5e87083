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

const REMEDY: &str = "Give this process a cgroup in which it may make others (systemd: Delegate=yes; \
                      Docker: --privileged or a writable /sys/fs/cgroup with the controller), or allow \
                      it to be missing by this name";

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
    let with = |controller: &str| format!("the {controller} controller of cgroup {version}");
    let without =
        |controller: &str| format!("no usable {controller} controller (cgroup {version})");
    let mut by_cgroup = |name, controller: &str, instead: Option<&str>| {
        let (there, how) = match (host.can_use(controller), instead) {
            (true, _) => (true, with(controller)),
            (false, Some(instead)) => (true, instead.to_owned()),
            (false, None) => (false, without(controller)),
        };
        add(name, there, &how, REMEDY);
    };
    by_cgroup("memory_bytes", "memory", None);
    by_cgroup("processes", "pids", Some("RLIMIT_NPROC of a user that no other run has"));
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

fn isolation() -> Capability {
    let needed = [
        ("CAP_SYS_ADMIN", capability::SYS_ADMIN),
        ("CAP_SETUID", capability::SETUID),
        ("CAP_SETGID", capability::SETGID),
        ("CAP_CHOWN", capability::CHOWN),
        ("CAP_DAC_OVERRIDE", capability::DAC_OVERRIDE),
        ("CAP_MKNOD", capability::MKNOD),
    ];
    let have = credentials::effective_capabilities().unwrap_or(0);
    let missing: Vec<&str> =
        needed.iter().filter(|(_, bit)| have >> bit & 1 == 0).map(|&(name, _)| name).collect();
    if missing.is_empty() {
        let how = "namespaces, a read-only root, no capabilities, no_new_privs, seccomp";
        return Capability {
            name: "isolation",
            enforced: true,
            how: how.into(),
            remedy: String::new(),
        };
    }
    Capability {
        name: "isolation",
        enforced: false,
        how: format!("this process lacks {}", missing.join(", ")),
        remedy: "Run it as root, or in a container started with these capabilities".into(),
    }
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
    fn isolation_cannot_be_done_without() {
        assert!(require(&[], &["isolation".to_owned()]).is_err());
    }
}
