//! What the log asks of a disk.
//!
//! # Design
//!
//! Log files are mapped, so the bytes themselves go past every interface: the kernel may write a
//! page back at any instant, or never. What a disk promises, and what a simulated one can break, are
//! the points in between: which range of a file has reached the disk, and which names the directory
//! has. So the trait has these, and memory stays memory. The rules that the log follows on top of it:
//!
//! - A file's header is on the disk before the file gets its name in the log.
//! - A file's name is on the disk before records are written into it, and before it is used again.
//! - What was cut is on the disk before something else is written in its place.
//!
//! With `sync="never"` nothing of this is asked for.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::map::Map;

/// Files that can be mapped, in a directory that can be synced. Reading needs none of it.
pub(super) trait Disk: Send + Sync {
    /// Identifies the running system: what it has in memory survives a killed process, not a reboot.
    fn boot(&self) -> [u8; 16];

    /// A new file with all its blocks allocated, mapped.
    fn create(&self, path: &Path, bytes: usize) -> io::Result<Map>;

    /// Put a range of a mapped file on the disk, and its length.
    fn sync(&self, path: &Path, map: &Map, from: usize, to: usize) -> io::Result<()>;

    /// Give a file another name, at once or, if power is lost, not at all.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Remove a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Put the names in a directory on the disk.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// The disk that is there.
pub(super) struct FileSystem;

impl Disk for FileSystem {
    fn boot(&self) -> [u8; 16] {
        // Zeros where the system does not say.
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).map_or([0; 16], u128::to_be_bytes)
    }

    fn create(&self, path: &Path, bytes: usize) -> io::Result<Map> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        let map = allocate_blocks(&file, bytes).and_then(|()| Map::file(&file));
        if map.is_err() {
            // What was allocated in part is of no use; the disk is better off without it.
            fs::remove_file(path).ok();
        }
        map
    }

    fn sync(&self, _path: &Path, map: &Map, from: usize, to: usize) -> io::Result<()> {
        map.sync(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

/// Make a directory and what is missing above it, all of them on the disk.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
    make_directory(&parent)?;
    fs::create_dir_all(directory)?;
    File::open(parent)?.sync_all()
}

fn allocate_blocks(file: &File, len: usize) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len as u64) {
        // A file system without the call gets its blocks by being written.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let mut file = file;
            io::copy(&mut io::Read::take(io::repeat(0), len as u64), &mut file).map(|_| ())
        }
        other => other.map_err(io::Error::from),
    }
}
