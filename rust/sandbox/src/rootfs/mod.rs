//! What a run sees as its root: read-only, made once per slot.
//!
//! # Design
//!
//! A root is a small tmpfs of our own with directories of the host (or of an image) bound into it
//! read-only, a /dev of a few harmless nodes, and mount points for /proc and /tmp. Making it from
//! top-level entries instead of binding one directory as the whole needs no mount point inside
//! the image, and lets us leave out what is nobody's business. Each bind is copied at every run (a new
//! mount namespace), so there are few.

mod binds;
mod find;
mod image;

use std::fs;
use std::path::{Path, PathBuf};

use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// A host directory or file that is seen read-only inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it lies on the host.
    pub source: PathBuf,
    /// The absolute path under which the run sees it.
    pub target: String,
}

/// What the root is made from.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// The host's own programs and libraries: /usr, /lib and so on; of /etc only what they need.
    #[default]
    Host,
    /// A directory that holds a root file system.
    Directory(PathBuf),
    /// An image of an OCI image layout.
    Image {
        /// The layout: the directory with index.json.
        layout: PathBuf,
        /// The image's name in it; without one it must have a single image for this machine.
        name: Option<String>,
    },
}

impl Source {
    /// What `text` says: `oci:DIRECTORY` or `oci:DIRECTORY:NAME` is an image, anything else a directory.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let Some(image) = text.strip_prefix("oci:") else {
            return Self::Directory(PathBuf::from(text));
        };
        // A directory may have a colon in its name; an image's name has no slash before its own.
        match image.rsplit_once(':') {
            Some((layout, name)) if !name.contains('/') && !Path::new(image).is_dir() => {
                Self::Image { layout: layout.into(), name: Some(name.to_owned()) }
            }
            _ => Self::Image { layout: image.into(), name: None },
        }
    }

    /// The same as something that is there: an image is unpacked into `cache` (the usual one, without)
    /// unless it is in it. The second is the environment that the image asks for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a layout that is wrong, [`Error::System`] for a cache that is.
    pub fn unpacked(&self, cache: Option<&Path>) -> Result<(Self, Vec<String>)> {
        match self {
            Self::Image { layout, name } => {
                let image = image::unpack(layout, name.as_deref(), cache)?;
                Ok((Self::Directory(image.root), image.environment))
            }
            other => Ok((other.clone(), Vec::new())),
        }
    }
}

/// How to make a root. The spawner carries it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Directories and files bound read-only.
    pub(crate) binds: Vec<Bind>,
    /// Symbolic links: path, what it says.
    pub(crate) links: Vec<(String, String)>,
    /// Files copied from the host: source, path.
    pub(crate) copies: Vec<Bind>,
    /// Small files made up: path, content.
    pub(crate) files: Vec<(String, String)>,
    /// Whether runs can write to it.
    pub(crate) is_writable: bool,
    /// What lies below all that, where runs can write to it too.
    pub(crate) lower: Option<PathBuf>,
}

/// Top-level directories that programs and libraries live in.
const PROGRAM_DIRECTORIES: &[&str] = &["bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr"];

/// What of the host's /etc programs need to start. All of it is readable by everyone.
const CONFIGURATION: &[&str] = &[
    "alternatives",    // what /usr/bin/java and others point at
    "ld.so.cache",     // where libraries are
    "localtime",       // local time
    "java-17-openjdk", // the JVM reads its security settings from here
    "java-21-openjdk",
    "python3",
    "python3.11", // sitecustomize is a link into it
    "python3.12",
    "python3.13",
    "php",
    "perl",
];

/// Top-level entries of an image that are ours or nobody's business.
const NOT_FROM_IMAGE: &[&str] = &["boot", "dev", "lost+found", "proc", "run", "sys", "tmp"];

impl Plan {
    /// The plan for `source` with `extra` binds on top, for runs that can write to it if `is_writable`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a source that is no directory or a target that is not absolute.
    pub(crate) fn new(source: &Source, extra: &[Bind], is_writable: bool) -> Result<Self> {
        let mut plan = Self { is_writable, ..Self::default() };
        match source {
            Source::Host => plan.add_host(Path::new("/")),
            Source::Directory(root) => plan.add_directory(root)?,
            Source::Image { layout, .. } => {
                let expected = "an image that is unpacked";
                return Err(Error::invalid("root", layout.display(), expected));
            }
        }
        plan.add_binds(extra)?;
        Ok(plan)
    }

    /// What a container runtime of the host needs to start.
    pub(crate) fn for_runtime() -> Self {
        let mut plan = Self::default();
        plan.add_programs(Path::new("/"));
        let libraries = PathBuf::from("/etc/ld.so.cache");
        if libraries.exists() {
            plan.copies.push(Bind { source: libraries, target: "/etc/ld.so.cache".into() });
        }
        plan
    }

    fn add_programs(&mut self, root: &Path) {
        for name in PROGRAM_DIRECTORIES {
            self.add_entry(&root.join(name), format!("/{name}"));
        }
    }

    fn add_host(&mut self, root: &Path) {
        self.add_programs(root);
        for name in CONFIGURATION {
            let path = root.join("etc").join(name);
            if path.exists() {
                self.copies.push(Bind { source: path, target: format!("/etc/{name}") });
            }
        }
        let accounts = [
            ("passwd", "root:x:0:0::/:/bin/sh\nrunner:x:65534:65534::/tmp:/bin/sh\n"),
            ("group", "root:x:0:\nrunner:x:65534:\n"),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("hosts", "127.0.0.1 localhost sandbox\n"),
        ];
        for (name, content) in accounts {
            self.files.push((format!("/etc/{name}"), content.to_owned()));
        }
    }

    fn add_directory(&mut self, root: &Path) -> Result<()> {
        let entries = fs::read_dir(root).map_err(|error| {
            Error::invalid("root", root.display(), format!("a directory that can be read: {error}"))
        })?;
        let mut names: Vec<_> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        if self.is_writable {
            // As a whole: one overlay instead of one for each entry.
            self.lower = Some(root.to_owned());
            return Ok(());
        }
        names.sort();
        for name in names {
            if !NOT_FROM_IMAGE.contains(&name.as_str()) {
                self.add_entry(&root.join(&name), format!("/{name}"));
            }
        }
        Ok(())
    }

    /// A link stays a link; anything else is bound.
    fn add_entry(&mut self, source: &Path, target: String) {
        if let Ok(says) = fs::read_link(source) {
            self.links.push((target, says.to_string_lossy().into_owned()));
        } else if source.exists() {
            self.binds.push(Bind { source: source.to_owned(), target });
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.byte(u8::from(self.is_writable));
        let lower = self.lower.as_ref().map(|path| path.to_string_lossy());
        writer.string(lower.as_deref().unwrap_or_default());
        for binds in [&self.binds, &self.copies] {
            writer.count(binds.len());
            for bind in binds {
                writer.string(&bind.source.to_string_lossy());
                writer.string(&bind.target);
            }
        }
        for pairs in [&self.links, &self.files] {
            writer.count(pairs.len());
            for (path, text) in pairs {
                writer.string(path);
                writer.string(text);
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let is_writable = reader.byte()? != 0;
        let lower = reader.string()?.to_str().ok()?.to_owned();
        let lower = Some(PathBuf::from(lower)).filter(|path| !path.as_os_str().is_empty());
        let mut pairs = || {
            let count = reader.count()?;
            let mut pairs = Vec::new();
            for _ in 0..count {
                let first = reader.string()?.to_str().ok()?.to_owned();
                pairs.push((first, reader.string()?.to_str().ok()?.to_owned()));
            }
            Some(pairs)
        };
        let binds = |pairs: Vec<(String, String)>| {
            let bind = |(source, target): (String, _)| Bind { source: source.into(), target };
            pairs.into_iter().map(bind).collect()
        };
        let (bound, copied) = (binds(pairs()?), binds(pairs()?));
        let (links, files) = (pairs()?, pairs()?);
        Some(Self { binds: bound, copies: copied, links, files, is_writable, lower })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_wire() {
        let plan = Plan::new(&Source::Host, &[], false).unwrap();
        assert!(plan.binds.iter().any(|bind| bind.target == "/usr"));
        let mut writer = Writer::new(0);
        plan.write(&mut writer);
        let mut reader = Reader::new(writer.as_slice());
        reader.byte();
        assert_eq!(Plan::read(&mut reader), Some(plan));
    }

    #[test]
    fn of_the_host_only_programs_and_a_little_of_etc_are_seen() {
        let plan = Plan::new(&Source::Host, &[], false).unwrap();
        let targets = || plan.binds.iter().map(|bind| bind.target.as_str());
        assert!(targets().all(|target| PROGRAM_DIRECTORIES.contains(&&target[1..])));
        assert!(plan.copies.iter().all(|copy| !copy.target.contains("shadow")));
    }
}
