//! Applying layers to a directory.
//!
//! # Design
//!
//! Layers may come from anyone. Paths are resolved here, part by part, as if the directory were the root:
//! a link on the way is followed inside, one that leads out is refused, and so is any `..`. Owners are not
//! taken over: all belongs to the one who unpacks, and to the group of runs with the rights that the image
//! gives its owner, since a run is to its image what root is to its host. Set-user-id and
//! set-group-id bits are dropped; devices and pipes are left out.
//!
//! Whiteouts (`.wh.NAME`, `.wh..wh..opq`) take away what lower layers have put there and nothing of their own
//! layer, in whichever order the entries come.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{Archive, Entry, EntryType};

use crate::spawner::GROUP;

/// What is wrong with a layer, after `expected`.
type Refusal = String;

/// The most links that are followed on the way to one path: the kernel's own number.
const MOST_LINKS: usize = 40;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// A directory that layers are applied to.
pub(super) struct Tree<'a> {
    root: &'a Path,
    /// What the present layer has put there, by path below the root.
    own: BTreeSet<PathBuf>,
    /// Whether files can be given to the group of runs.
    may_chown: bool,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        let may_chown = chown(root, None, Some(GROUP)).is_ok();
        Self { root, own: BTreeSet::new(), may_chown }
    }

    /// Applies the next layer, a tar archive.
    pub(super) fn apply(&mut self, layer: impl Read) -> Result<(), Refusal> {
        self.own.clear();
        let mut archive = Archive::new(layer);
        let entries = archive.entries().map_err(|error| unreadable(&error))?;
        for entry in entries {
            let mut entry = entry.map_err(|error| unreadable(&error))?;
            let path = entry.path().map_err(|error| unreadable(&error))?.into_owned();
            self.apply_entry(&path, &mut entry).map_err(|said| {
                format!("entries that can be applied: {}: {said}", path.display())
            })?;
        }
        Ok(())
    }

    fn apply_entry<R: Read>(
        &mut self,
        path: &Path,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), Refusal> {
        let Some((parent, name)) = split(path)? else {
            return Ok(()); // the root itself
        };
        if let Some(hidden) = name.to_str().and_then(|name| name.strip_prefix(WHITEOUT)) {
            return self.white_out(&parent, &name, hidden);
        }
        let parent = self.resolve(&parent, true)?;
        let place = parent.join(&name);
        match entry.header().entry_type() {
            EntryType::Directory => self.make_directory(&place, mode(entry)?)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_file(&place, entry)?;
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                self.clear_way(&place)?;
                symlink(target, self.root.join(&place)).map_err(|error| failed(&error))?;
                if self.may_chown {
                    let _ = lchown(self.root.join(&place), None, Some(GROUP));
                }
            }
            EntryType::Link => {
                let Some((directory, name)) = split(&link_name(entry)?)? else {
                    return Err("a hard link to the root".into());
                };
                let source = self.resolve(&directory, false)?.join(name);
                let kind = fs::symlink_metadata(self.root.join(&source));
                if !kind.is_ok_and(|kind| kind.is_file() || kind.is_symlink()) {
                    return Err(format!("a hard link to {}, which is no file", source.display()));
                }
                if source == place {
                    return Err("a hard link to itself".into());
                }
                self.clear_way(&place)?;
                fs::hard_link(self.root.join(&source), self.root.join(&place))
                    .map_err(|error| failed(&error))?;
            }
            // Devices, pipes, and what has no meaning for a root.
            _ => return Ok(()),
        }
        self.own.insert(place);
        Ok(())
    }

    fn make_directory(&mut self, place: &Path, mode: u32) -> Result<(), Refusal> {
        let real = self.root.join(place);
        if !fs::symlink_metadata(&real).is_ok_and(|status| status.is_dir()) {
            self.clear_way(place)?;
            fs::create_dir(&real).map_err(|error| failed(&error))?;
        }
        // Its owner must be able to go on in it.
        self.set_rights(&real, mode | 0o700)
    }

    fn make_file<R: Read>(
        &mut self,
        place: &Path,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), Refusal> {
        let (mode, time) = (mode(entry)?, entry.header().mtime().unwrap_or(0));
        self.clear_way(place)?;
        let real = self.root.join(place);
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&real)
            .map_err(|error| failed(&error))?;
        io::copy(entry, &mut file).map_err(|error| failed(&error))?;
        self.set_rights(&real, mode)?;
        // What is compiled from it (Python's caches) goes by its time.
        if let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time)) {
            let _ = file.set_modified(time);
        }
        Ok(())
    }

    /// The owner's rights are the group's too; neither set-id bit is kept.
    fn set_rights(&self, real: &Path, mode: u32) -> Result<(), Refusal> {
        let mut mode = mode & 0o1777;
        if self.may_chown {
            chown(real, None, Some(GROUP)).map_err(|error| failed(&error))?;
            mode |= (mode & 0o700) >> 3;
        }
        fs::set_permissions(real, Permissions::from_mode(mode)).map_err(|error| failed(&error))
    }

    /// Removes what is at `place`, with all that is below it.
    fn clear_way(&mut self, place: &Path) -> Result<(), Refusal> {
        let real = self.root.join(place);
        match fs::symlink_metadata(&real) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&error)),
            Ok(status) if status.is_dir() => fs::remove_dir_all(&real),
            Ok(_) => fs::remove_file(&real),
        }
        .map_err(|error| failed(&error))?;
        self.own.retain(|own| !own.starts_with(place));
        Ok(())
    }

    fn white_out(&mut self, parent: &Path, name: &OsStr, hidden: &str) -> Result<(), Refusal> {
        let Ok(parent) = self.resolve(parent, false) else {
            return Ok(()); // nothing is there to be taken away
        };
        if name == OPAQUE {
            return self.remove_lower_below(&parent);
        }
        if hidden.starts_with(WHITEOUT) {
            return Ok(()); // other marks of the union file system that the format comes from
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err("a whiteout of no file".into());
        }
        self.remove_lower(&parent.join(hidden))
    }

    /// Removes what lower layers have put at `place`.
    fn remove_lower(&mut self, place: &Path) -> Result<(), Refusal> {
        let below = self.own.range(place.to_owned()..).next();
        if !below.is_some_and(|own| own.starts_with(place)) {
            return self.clear_way(place);
        }
        let status = fs::symlink_metadata(self.root.join(place)).map_err(|error| failed(&error))?;
        if status.is_dir() { self.remove_lower_below(place) } else { Ok(()) }
    }

    fn remove_lower_below(&mut self, place: &Path) -> Result<(), Refusal> {
        let entries = match fs::read_dir(self.root.join(place)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| failed(&error))?,
        };
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        for name in names.map_err(|error| failed(&error))? {
            self.remove_lower(&place.join(name))?;
        }
        Ok(())
    }

    /// The directory `path` below the root with no link in it; with `make`, what is missing is made.
    fn resolve(&mut self, path: &Path, make: bool) -> Result<PathBuf, Refusal> {
        let mut here = PathBuf::new();
        let mut ahead: Vec<PathBuf> = components(path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            if part == Path::new("..") {
                // Only a link can say this.
                if !here.pop() {
                    return Err("a link on the way leads out of the root".into());
                }
                continue;
            }
            here.push(&part);
            let real = self.root.join(&here);
            match fs::symlink_metadata(&real) {
                Ok(status) if status.is_dir() => {}
                Ok(status) if status.is_symlink() => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err("too many links on the way".into());
                    }
                    let says = fs::read_link(&real).map_err(|error| failed(&error))?;
                    here.pop();
                    if says.is_absolute() {
                        here = PathBuf::new();
                    }
                    ahead.extend(components(&says));
                }
                Ok(_) => return Err(format!("{} is no directory", here.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                    fs::create_dir(&real).map_err(|error| failed(&error))?;
                    self.set_rights(&real, 0o755)?;
                    self.own.insert(here.clone());
                }
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(here)
    }
}

/// The parts of a path in reverse, `..` kept.
fn components(path: &Path) -> Vec<PathBuf> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    let mut parts: Vec<PathBuf> = path.components().filter_map(part).collect();
    parts.reverse();
    parts
}

/// A path of an archive as directory and name; `None` for the root.
fn split(path: &Path) -> Result<Option<(PathBuf, std::ffi::OsString)>, Refusal> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{} has `..` in it", path.display()));
    }
    let mut parts = components(path);
    if parts.is_empty() {
        return Ok(None);
    }
    let name = parts.remove(0).into_os_string();
    Ok(Some((parts.into_iter().rev().collect(), name)))
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, Refusal> {
    let name = entry.link_name().map_err(|error| unreadable(&error))?;
    name.map(std::borrow::Cow::into_owned).ok_or_else(|| "a link to nothing".into())
}

fn mode<R: Read>(entry: &Entry<'_, R>) -> Result<u32, Refusal> {
    entry.header().mode().map_err(|error| unreadable(&error))
}

fn unreadable(error: &io::Error) -> Refusal {
    format!("a tar archive that can be read: {error}")
}

fn failed(error: &io::Error) -> Refusal {
    error.to_string()
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
