//! Root file systems from OCI image layouts on disk (OCI image specification 1.1).
//!
//! # Design
//!
//! An image is unpacked once, into a cache that is addressed by the digest of its manifest, which names
//! the digests of all else: [`cache`] holds the locks and the renaming, [`layout`] finds and checks the
//! blobs, [`layer`] applies one layer to a directory. What lies in the cache is a plain directory, which
//! is used as any other. Nothing is trusted before its digest is checked, and what a layer says is
//! carried out inside the new directory or refused.

mod blob;
mod cache;
mod layer;
mod layout;

use std::path::{Path, PathBuf};

use crate::Result;

/// An image that is unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Its root file system.
    pub root: PathBuf,
    /// `NAME=value`, as the image's configuration has it.
    pub environment: Vec<String>,
}

/// Unpacks the image called `reference` (the only one, without) of the layout in `directory`, unless it is
/// in the cache already.
///
/// # Errors
///
/// [`crate::Error::InvalidInput`] for what is no such layout, lacks a blob, has a wrong digest or a layer
/// that would leave its directory; [`crate::Error::System`] if the cache cannot be written.
pub fn unpack(directory: &Path, reference: Option<&str>, cache: Option<&Path>) -> Result<Unpacked> {
    let image = layout::Image::find(directory, reference)?;
    let root = match cache {
        Some(directory) => cache::get(directory, &image)?,
        None => cache::get(&cache::usual()?, &image)?,
    };
    Ok(Unpacked { root, environment: image.environment })
}
