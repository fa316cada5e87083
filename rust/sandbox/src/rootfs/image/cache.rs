//! Where unpacked images are kept.
//!
//! An image is unpacked beside its place and renamed into it when it is whole, while a lock on a file of
//! its own is held. So what is in place is whole, whoever dies when; and of several processes that want the
//! same image one unpacks it and the others wait.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::layout::Image;
use crate::error::Step;
use crate::{Error, Result, sys};

/// The name says how images are unpacked: another way would be another directory.
const DIRECTORY: &str = "images-1";

/// Where images are kept unless somebody says otherwise.
pub(super) fn usual() -> Result<PathBuf> {
    let user = fs::metadata("/proc/self").step(|| "read /proc/self".into())?.uid();
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    Ok(match (set("XDG_CACHE_HOME"), set("HOME")) {
        _ if user == 0 => PathBuf::from("/var/cache/k15core"),
        (Some(base), _) => PathBuf::from(base).join("k15core"),
        (None, Some(home)) => PathBuf::from(home).join(".cache/k15core"),
        (None, None) => std::env::temp_dir().join(format!("k15core-cache-{user}")),
    })
}

/// The root of `image`, unpacked below `base` if it was not there.
pub(super) fn get(base: &Path, image: &Image) -> Result<PathBuf> {
    let directory = base.join(DIRECTORY);
    // Only its owner gets past it: what lies below has the rights that the run's users need.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .step(|| format!("make {}", directory.display()))?;
    check_owner(&directory)?;
    let place = directory.join(&image.digits);
    if place.is_dir() {
        return Ok(place);
    }
    let lock_path = directory.join(format!("{}.lock", image.digits));
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let lock: File = lock.step(|| format!("open {}", lock_path.display()))?;
    sys::descriptor::lock(lock.as_fd()).step(|| format!("lock {}", lock_path.display()))?;
    if place.is_dir() {
        return Ok(place);
    }
    let partial = directory.join(format!("{}.partial", image.digits));
    // Of one who died.
    remove_tree(&partial)?;
    DirBuilder::new()
        .mode(0o755)
        .create(&partial)
        .step(|| format!("make {}", partial.display()))?;
    if let Err(error) = image.unpack(&partial) {
        remove_tree(&partial)?;
        return Err(error);
    }
    fs::rename(&partial, &place).step(|| format!("rename to {}", place.display()))?;
    Ok(place)
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A cache that others can write to could hold anything under any digest.
fn check_owner(directory: &Path) -> Result<()> {
    let user = fs::metadata("/proc/self").step(|| "read /proc/self".into())?.uid();
    let status =
        fs::symlink_metadata(directory).step(|| format!("look at {}", directory.display()))?;
    if !status.is_dir() || status.uid() != user || status.mode() & 0o077 != 0 {
        let expected = "a directory that only this user can use";
        return Err(Error::invalid("image_cache", directory.display(), expected));
    }
    Ok(())
}
