//! Content with a digest.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// Where content is found: the specification's descriptor, without what is not needed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

/// What an image of an index is for.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

/// The digest in hexadecimal digits, of a `sha256:` digest that is one.
pub(super) fn digits(digest: &str) -> Result<&str> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match digest.strip_prefix("sha256:") {
        Some(digits) if digits.len() == 64 && digits.bytes().all(is_digit) => Ok(digits),
        _ => Err(Error::invalid("root", format!("digest {digest:?}"), "sha256: and 64 digits")),
    }
}

/// Opens the blob that `descriptor` names in the layout in `directory`.
pub(super) fn open(directory: &Path, descriptor: &Descriptor) -> Result<File> {
    let path = directory.join("blobs/sha256").join(digits(&descriptor.digest)?);
    File::open(&path).map_err(|error| {
        let expected = format!("the image's blob {}: {error}", descriptor.digest);
        Error::invalid("root", path.display(), expected)
    })
}

/// Reads a blob of JSON and checks it.
pub(super) fn read(directory: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    const LONGEST: u64 = 16 << 20;
    if descriptor.size > LONGEST {
        let value = format!("blob {} of {} bytes", descriptor.digest, descriptor.size);
        return Err(Error::invalid("root", value, format!("JSON of at most {LONGEST} bytes")));
    }
    let mut reader = Hashed::new(open(directory, descriptor)?.take(descriptor.size + 1));
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes);
    read.map_err(|error| {
        Error::invalid("root", format!("blob {}", descriptor.digest), error.to_string())
    })?;
    reader.check(&descriptor.digest)?;
    Ok(bytes)
}

/// Hashes what is read through it.
pub(super) struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads what is left and compares the digest of the whole.
    pub(super) fn check(mut self, expected: &str) -> Result<()> {
        let drained = io::copy(&mut self, &mut io::sink());
        let mut found = String::from("sha256:");
        for byte in self.hash.finalize() {
            // Writing to a string does not fail.
            let _ = write!(found, "{byte:02x}");
        }
        match drained {
            Ok(_) if found == expected => Ok(()),
            Ok(_) => Err(Error::invalid(
                "root",
                format!("a blob of digest {found}"),
                expected.to_owned(),
            )),
            Err(error) => {
                let value = format!("blob {expected}");
                Err(Error::invalid("root", value, format!("content that can be read: {error}")))
            }
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}
