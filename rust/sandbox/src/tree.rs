//! A work directory between runs: what lies in it, held in our own memory.
//!
//! # Design
//!
//! Whoever works in steps gives each run what the one before has left. In between it is no directory of
//! any file system but a map from paths to contents: a link in it is so many bytes, no path is ever
//! followed, and nothing is left when this process ends. The spawner puts it into the file system of the
//! next run, whose size bounds it, and takes it from there when no process of that run lives.
//!
//! Files, directories and symbolic links are kept, with their permissions and times; names of one file
//! become files of their own. Pipes, sockets and attributes beyond permissions are not kept.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::slot::check_path;
use crate::{Error, Limits, Result};

/// The longest path in it.
pub(crate) const MAX_PATH: usize = 1024;
/// The most directories below each other.
pub(crate) const MAX_DEPTH: usize = 64;

/// Seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its permissions: the lower nine bits of a mode.
    pub mode: u32,
    /// When it was changed.
    pub modified: Time,
}

/// A kind of node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; what is in it has paths of its own.
    Directory,
    /// A regular file with its content.
    File(Arc<Vec<u8>>),
    /// A symbolic link with what it says.
    Link(Vec<u8>),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// By path, relative to the work directory. A directory is before what is in it.
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Node {
    /// The bytes that it takes on a run's disk, which counts in pages.
    fn size(&self) -> u64 {
        match &self.kind {
            Kind::Directory => 0,
            Kind::File(content) => in_pages(content.len() as u64),
            Kind::Link(says) => link_size(says),
        }
    }
}

/// What a link takes on the disk: a short one lies in its inode (SHORT_SYMLINK_LEN of Linux' mm/shmem.c).
pub(crate) const fn link_size(says: &[u8]) -> u64 {
    if says.len() < 128 { 0 } else { in_pages(says.len() as u64) }
}

/// `length` as the disk counts it.
pub(crate) const fn in_pages(length: u64) -> u64 {
    length.next_multiple_of(4096)
}

impl Tree {
    /// How many files, directories and links it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The bytes that it takes on a run's disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.nodes.values().map(Node::size).sum()
    }

    /// All paths with what is there, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes.iter().map(|(path, node)| (&**path, node))
    }

    /// What is at `path`. Nothing is found by way of a link.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.as_bytes())
    }

    /// Writes the file `path`, making the directories on its way. A link that was there is replaced;
    /// `executable` is as it was where it is not given.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a path that leaves the work directory, leads through what is no
    /// directory, or is one.
    pub fn write(&mut self, path: &str, content: Vec<u8>, executable: Option<bool>) -> Result<()> {
        check_path("files", path)?;
        if path.split('/').count() > MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} parts");
            return Err(Error::invalid("files", format!("{path:?}"), expected));
        }
        let refused = |what: &str| Err(Error::invalid("files", format!("{path:?}"), what));
        let ends = || path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
        let parents = || ends().filter_map(|end| path.get(..end));
        for parent in parents() {
            match self.get(parent).map(|node| &node.kind) {
                None | Some(Kind::Directory) => {}
                Some(_) => return refused("a path on which there are only directories"),
            }
        }
        let mode = match self.get(path) {
            Some(Node { kind: Kind::Directory, .. }) => {
                return refused("a file: this is a directory");
            }
            Some(Node { kind: Kind::File(_), mode, .. }) => *mode,
            _ => 0o644,
        };
        let mode = match executable {
            Some(true) => mode | 0o755,
            Some(false) => mode & !0o111,
            None => mode,
        };
        let modified = now();
        for parent in parents() {
            self.nodes.entry(parent.as_bytes().to_vec()).or_insert(Node {
                kind: Kind::Directory,
                mode: 0o755,
                modified,
            });
        }
        let kind = Kind::File(Arc::new(content));
        self.nodes.insert(path.as_bytes().to_vec(), Node { kind, mode, modified });
        Ok(())
    }

    /// Removes `path` with all that is below it: whether it was there.
    pub fn remove(&mut self, path: &str) -> bool {
        let below = format!("{path}/").into_bytes();
        let first = (Bound::Included(below.clone()), Bound::Unbounded);
        let inside = self.nodes.range(first).map(|(path, _)| path);
        let inside: Vec<Vec<u8>> =
            inside.take_while(|path| path.starts_with(&below)).cloned().collect();
        for path in inside {
            self.nodes.remove(&path);
        }
        self.nodes.remove(path.as_bytes()).is_some()
    }

    /// Refuses a tree that the disk of a run does not hold with `spare` files besides, its root among them.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] with its size.
    pub fn check(&self, limits: &Limits, spare: u64) -> Result<()> {
        let size = self.size();
        if size > limits.disk_bytes {
            let expected = format!("at most disk_bytes = {} in all", limits.disk_bytes);
            return Err(Error::invalid("files", format!("{size} bytes"), expected));
        }
        let most = limits.disk_files.saturating_sub(spare);
        if self.len() as u64 > most {
            let expected = format!("at most disk_files - {spare} = {most}");
            return Err(Error::invalid("files", format!("{} files", self.len()), expected));
        }
        Ok(())
    }

    /// Adds what a spawner has found.
    pub(crate) fn add(&mut self, path: &[u8], node: Node) {
        self.nodes.insert(path.to_vec(), node);
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(tree: &Tree) -> Vec<String> {
        tree.iter().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
    }

    fn link(says: &str) -> Node {
        Node { kind: Kind::Link(says.into()), mode: 0o777, modified: (0, 0) }
    }

    #[test]
    fn files_make_their_directories_and_go_with_them() {
        let mut tree = Tree::default();
        for path in ["a/b/c", "a/b.txt", "a-b", "a/b/d"] {
            tree.write(path, b"x".to_vec(), None).unwrap();
        }
        assert_eq!(paths(&tree), ["a", "a-b", "a/b", "a/b.txt", "a/b/c", "a/b/d"]);
        assert_eq!(tree.size(), 4 * 4096);
        assert!(tree.remove("a/b"));
        assert!(!tree.remove("a/b"));
        assert_eq!(paths(&tree), ["a", "a-b", "a/b.txt"]);
    }

    #[test]
    fn no_path_leads_out_or_through_a_link() {
        let mut tree = Tree::default();
        tree.add(b"out", link("/etc"));
        tree.add(b"passwd", link("/etc/passwd"));
        tree.write("file", Vec::new(), None).unwrap();
        for path in ["../x", "/x", "a/../x", "", ".", "a//b", "out/x", "file/x", "a\0"] {
            assert!(tree.write(path, Vec::new(), None).is_err(), "{path:?}");
        }
        assert_eq!(paths(&tree), ["file", "out", "passwd"]);
        tree.write("passwd", b"mine".to_vec(), None).unwrap();
        assert_eq!(tree.get("passwd").unwrap().kind, Kind::File(Arc::new(b"mine".to_vec())));
    }

    #[test]
    fn permissions_stay_unless_they_are_asked_for() {
        let mut tree = Tree::default();
        for (executable, mode) in
            [(None, 0o644), (Some(true), 0o755), (None, 0o755), (Some(false), 0o644)]
        {
            tree.write("x", Vec::new(), executable).unwrap();
            assert_eq!(tree.get("x").unwrap().mode, mode);
        }
    }

    #[test]
    fn what_the_disk_does_not_hold_is_refused() {
        let limits = Limits { disk_bytes: 8192, disk_files: 8, ..Limits::default() };
        let mut tree = Tree::default();
        tree.write("a", vec![0; 4097], None).unwrap();
        tree.check(&limits, 4).unwrap();
        tree.write("b", vec![0], None).unwrap();
        assert!(tree.check(&limits, 4).is_err());
        tree = Tree::default();
        for number in 0..5 {
            tree.write(&number.to_string(), Vec::new(), None).unwrap();
        }
        assert!(tree.check(&limits, 4).is_err());
    }
}
