//! A root that a run can write to: an overlay of the slot's root, what is written on the run's own file
//! system, and so within its size.
//!
//! # Design
//!
//! The slot's root is put together in a directory that nobody enters, the skeleton, with what the host
//! or an image has in a second one below it. A run's overlay of the two is made when the run starts and
//! goes with it. An overlay does not look through mounts, so what is bound into the skeleton is bound
//! again over it, read-only; so is /dev, since the overlay takes no devices.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::setup::path_string;
use crate::Result;
use crate::error::Step;
use crate::rootfs::Plan;
use crate::sys::{Errno, descriptor, mount};

/// What is written, on the run's file system.
pub(super) const UPPER: &CStr = c"upper";
/// What the kernel needs beside it.
pub(super) const WORK: &CStr = c"work";
/// The run's /tmp, in [`UPPER`].
pub(super) const RUN_TMP: &CStr = c"upper/tmp";

/// Directories of a slot's root, by their names below one that is its caller's.
const SKELETON: &str = "skeleton";
const LOWER: &str = "lower";
const FILES: &str = "files";
const ROOT: &str = "tree";

/// Where the parts of a run's overlay lie.
#[derive(Debug)]
pub(super) struct Overlay {
    lower: CString,
    upper: CString,
    work: CString,
    /// Where the run's file system is attached while the overlay is made from it.
    files: CString,
    /// Where the overlay is attached: the run's root.
    pub(super) root: CString,
    /// What is bound over it: from where, to where.
    binds: Vec<(CString, CString)>,
}

impl Overlay {
    /// The overlay for `plan`, whose directories will be seen in `base`. Making one allocates nothing more.
    pub(super) fn new(plan: &Plan, base: &str) -> Result<Self> {
        let text = |parts: &[&str]| path_string(Path::new(&format!("{base}/{}", parts.join("/"))));
        let mut lower = format!("{base}/{SKELETON}");
        if plan.lower.is_some() {
            lower += &format!(":{base}/{LOWER}");
        }
        let mut binds = vec![(text(&[SKELETON, "dev"])?, text(&[ROOT, "dev"])?)];
        for bind in &plan.binds {
            let target = bind.target.trim_start_matches('/');
            binds.push((text(&[SKELETON, target])?, text(&[ROOT, target])?));
        }
        Ok(Self {
            lower: path_string(Path::new(&lower))?,
            upper: text(&[FILES, "upper"])?,
            work: text(&[FILES, "work"])?,
            files: text(&[FILES])?,
            root: text(&[ROOT])?,
            binds,
        })
    }

    /// Makes its directories in `here`, attaches `lower` (a view of what is below the skeleton), and says
    /// where the skeleton is to be put together.
    pub(super) fn make_places(here: &Path, lower: Option<&OwnedFd>) -> Result<PathBuf> {
        for name in [SKELETON, LOWER, FILES, ROOT] {
            let path = here.join(name);
            // A root that a container runtime binds is there already.
            std::fs::create_dir_all(&path).step(|| format!("make {}", path.display()))?;
        }
        // For the spawner itself, whose root the place may be.
        symlink(format!("{SKELETON}/dev"), here.join("dev")).step(|| "link /dev".into())?;
        if let Some(lower) = lower {
            mount::attach(lower.as_fd(), &path_string(&here.join(LOWER))?)
                .step(|| "attach the image".into())?;
        }
        Ok(here.join(SKELETON))
    }

    /// Mounts it, with what a run writes on the file system `files`. Allocates nothing.
    pub(super) fn mount(&self, files: BorrowedFd<'_>) -> Result<(), Errno> {
        mount::attach(files, &self.files)?;
        let options: [(&CStr, &CStr); 3] =
            [(c"lowerdir", &self.lower), (c"upperdir", &self.upper), (c"workdir", &self.work)];
        let attributes = mount::attribute::NO_SUID | mount::attribute::NO_DEV;
        let overlay = mount::detached(c"overlay", &options, attributes)?;
        mount::attach(overlay.as_fd(), &self.root)?;
        for (from, to) in &self.binds {
            mount::attach(mount::view(from)?.as_fd(), to)?;
        }
        Ok(())
    }

    /// Mounts it with a fresh /proc and makes it this process's root. Allocates nothing.
    pub(super) fn enter(&self, files: BorrowedFd<'_>) -> Result<(), Errno> {
        self.mount(files)?;
        descriptor::change_directory(&self.root)?;
        mount::mount_processes(c"proc")?;
        mount::pivot_into_working_directory()
    }

    /// Takes it away, for who has mounted it in a namespace that stays.
    pub(super) fn unmount(&self) -> Result<(), Errno> {
        let (root, files) = (mount::detach(&self.root), mount::detach(&self.files));
        root.and(files)
    }
}
