//! The root that a container runtime sees, with the bundle of all its runs in it.

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::setup::{self, Parts, STAGING, path_string};
use crate::Result;
use crate::error::Step;
use crate::rootfs::Plan;
use crate::sys::{descriptor, mount, process, program};

/// The bundle, in the runtime's world.
pub(crate) const BUNDLE: &str = "/bundle";
/// Where the runtime keeps what it knows of its containers.
pub(crate) const STATE: &str = "/state";
/// The container's init, in the run's root. Only root may read or execute it.
pub(crate) const INIT: &str = "/.k15-init";
/// The run's /tmp, in the runtime's world.
pub(crate) const RUN_TMP: &str = "/bundle/tree/tmp";
/// Where a run's own file system is attached.
pub(super) const RUN_FILES: &CStr = c"/bundle/tree/tmp";

/// Moves this process into a root made by `world` for the runtime, with a bundle of the run's root, made
/// by `root`, and of `config` in it. `is_outside`: of its runs' cgroup. Returns the runtime as a sealed copy, and the file that counts the
/// sockets of the slot's network namespace.
pub(super) fn make_world(
    root: &Plan,
    world: &Plan,
    runtime: &Path,
    config: &[u8],
    is_outside: bool,
) -> Result<(OwnedFd, OwnedFd)> {
    let sockets = setup::make_namespaces(is_outside)?;
    setup::limit_all_runs()?;
    process::adopt_orphans().step(|| "adopt orphans".into())?;
    // All that is the host's is taken before the staging directory hides anything.
    let step = || format!("copy {}", runtime.display());
    let copy = program::sealed(&fs::read(runtime).step(step)?).step(step)?;
    // Above the numbers that the runtime is started with.
    let copy = program::duplicate_from(copy.as_fd(), 16).step(step)?;
    let init = fs::read("/proc/self/exe").step(|| "read the spawner's binary".into())?;
    let processes = mount::view(c"/proc").step(|| "bind /proc".into())?;
    let (outer, inner) = (Parts::collect(world)?, Parts::collect(root)?);
    let outer_root = setup::new_root()?;
    setup::enter_staging(&outer_root)?;
    let here = Path::new(STAGING);
    outer.put_together(here)?;
    let below = |path: &str| here.join(path.trim_start_matches('/'));
    // crun tells versions of cgroups apart by what lies there, also when it is to leave them alone.
    for directory in ["/sys/fs/cgroup", STATE, "/bundle/tree"] {
        fs::create_dir_all(below(directory)).step(|| format!("make {directory}"))?;
    }
    mount::attach(processes.as_fd(), &path_string(&here.join("proc"))?)
        .step(|| "attach /proc".into())?;
    let inner_root = setup::new_root()?;
    // A run's overlay lies at the place of the root that others have.
    let place = below(if root.is_writable { BUNDLE } else { "/bundle/tree" });
    mount::attach(inner_root.as_fd(), &path_string(&place)?)
        .step(|| "attach the run's root".into())?;
    add_init(&inner.put_together(&place)?, &init)?;
    fs::set_permissions(below(BUNDLE), Permissions::from_mode(0o700))
        .and_then(|()| fs::write(below(BUNDLE).join("config.json"), config))
        .step(|| "write the bundle".into())?;
    if !root.is_writable {
        // Else only its /dev is seen, which crun wants to change: of what is there, to the same.
        mount::set_attributes(inner_root.as_fd(), setup::READ_ONLY)
            .step(|| "make the run's root read-only".into())?;
    }
    mount::pivot_into_working_directory().step(|| "change to the root".into())?;
    Ok((copy, sockets))
}

/// Puts init into the run's root, and what a runtime would else add to its /dev at the first run.
fn add_init(root: &Path, init: &[u8]) -> Result<()> {
    let path = root.join(INIT.trim_start_matches('/'));
    fs::write(&path, init)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o500)))
        .step(|| "write the container's init".into())?;
    let devices = root.join("dev");
    descriptor::make_device(&path_string(&devices.join("tty"))?, 5, 0, 0o666)
        .step(|| "make /dev/tty".into())?;
    for (name, says) in [("ptmx", "pts/ptmx"), ("core", "/proc/kcore")] {
        symlink(says, devices.join(name)).step(|| format!("link /dev/{name}"))?;
    }
    Ok(())
}
