//! One file of a controller, kept open: reading and writing it costs one system call.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::Step;
use crate::{Error, Result};

/// An open file of a cgroup's directory.
#[derive(Debug)]
pub struct ControlFile {
    file: File,
    path: PathBuf,
}

impl ControlFile {
    /// Opens `name` in `directory`, for writing too if `writable`.
    ///
    /// # Errors
    ///
    /// When it is not there or may not be opened so.
    pub fn open(directory: &Path, name: &str, writable: bool) -> Result<Self> {
        let path = directory.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(&path)
            .step(|| format!("open {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Opens a file that can only be written, such as a command.
    ///
    /// # Errors
    ///
    /// When it is not there or may not be opened so.
    pub fn open_write_only(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .step(|| format!("open {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Writes `value` as one write, which is what the kernel takes as one command.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the value.
    pub fn write(&self, value: &str) -> Result<()> {
        self.try_write(value).step(|| format!("write {value} to {}", self.path.display()))
    }

    /// [`ControlFile::write`] with the kernel's own answer, for callers that act on it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn try_write(&self, value: &str) -> std::io::Result<()> {
        self.file.write_all_at(value.as_bytes(), 0)
    }

    /// The file's one number.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no number.
    pub fn number(&self) -> Result<u64> {
        self.with_text(|text| text.trim().parse().ok())
    }

    /// The number after `key` in a file of lines `key number`.
    ///
    /// # Errors
    ///
    /// When it cannot be read or has no such line.
    pub fn value_of(&self, key: &str) -> Result<u64> {
        self.with_text(|text| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        })
    }

    fn with_text<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let mut buffer = [0; 1024];
        let length =
            self.file.read_at(&mut buffer, 0).step(|| format!("read {}", self.path.display()))?;
        let text = buffer.get(..length).and_then(|bytes| str::from_utf8(bytes).ok());
        text.and_then(parse).ok_or_else(|| {
            let text = text.unwrap_or("bytes that are no text").trim().to_owned();
            Error::system(
                format!("understand {}: {text:?}", self.path.display()),
                std::io::Error::from(std::io::ErrorKind::InvalidData),
            )
        })
    }
}
