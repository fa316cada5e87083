//! Finding an image in a layout: index, manifest, configuration.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::blob::{self, Descriptor, Hashed};
use super::layer::Tree;
use crate::{Error, Result};

/// The annotation of an index's entry that names it.
const NAME: &str = "org.opencontainers.image.ref.name";

/// How deep indexes may lie in indexes.
const MOST_INDEXES: usize = 4;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct Execution {
    #[serde(default, rename = "Env")]
    environment: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image in a layout.
#[derive(Debug)]
pub(super) struct Image {
    directory: PathBuf,
    /// The manifest's digest, in digits.
    pub(super) digits: String,
    /// Each layer with the digest of what it is when it is not compressed.
    layers: Vec<(Descriptor, String)>,
    pub(super) environment: Vec<String>,
}

impl Image {
    /// The image called `reference` in the layout in `directory`.
    pub(super) fn find(directory: &Path, reference: Option<&str>) -> Result<Self> {
        let path = directory.join("index.json");
        let text = fs::read(&path).map_err(|error| {
            let expected = format!("an OCI image layout, which has index.json: {error}");
            Error::invalid("root", directory.display(), expected)
        })?;
        let index: Index = parse(&text, "index.json")?;
        let mut chosen = choose(&index, reference, directory)?.clone();
        for _ in 0..MOST_INDEXES {
            check_kind(&chosen)?;
            let bytes = blob::read(directory, &chosen)?;
            if !is_index(&chosen, &bytes) {
                return Self::read(directory, &chosen, &bytes);
            }
            let index: Index = parse(&bytes, "an index of the image")?;
            chosen = choose(&index, None, directory)?.clone();
        }
        Err(Error::invalid("root", directory.display(), "indexes that come to a manifest"))
    }

    fn read(directory: &Path, descriptor: &Descriptor, manifest: &[u8]) -> Result<Self> {
        let manifest: Manifest = parse(manifest, "the image's manifest")?;
        let bytes = blob::read(directory, &manifest.config)?;
        let configuration: Configuration = parse(&bytes, "the image's configuration")?;
        let identities = configuration.rootfs.diff_ids;
        if identities.len() != manifest.layers.len() {
            let value = format!("{} layers", manifest.layers.len());
            let expected = format!("{}, as in the configuration's diff_ids", identities.len());
            return Err(Error::invalid("root", value, expected));
        }
        let environment = configuration.config.and_then(|config| config.environment);
        Ok(Self {
            directory: directory.to_owned(),
            digits: blob::digits(&descriptor.digest)?.to_owned(),
            layers: manifest.layers.into_iter().zip(identities).collect(),
            environment: environment.unwrap_or_default(),
        })
    }

    /// Unpacks it into the empty directory `root`.
    pub(super) fn unpack(&self, root: &Path) -> Result<()> {
        let mut tree = Tree::new(root);
        for (layer, identity) in &self.layers {
            let mut packed = Hashed::new(blob::open(&self.directory, layer)?);
            let plain = decompress(&layer.media_type, &mut packed)?;
            let mut plain = Hashed::new(plain);
            tree.apply(&mut plain)
                .map_err(|said| Error::invalid("root", format!("layer {}", layer.digest), said))?;
            plain.check(identity)?;
            packed.check(&layer.digest)?;
        }
        Ok(())
    }
}

/// What a layer is as a tar archive, by the end of its media type (that of OCI or of Docker).
fn decompress<'a>(media_type: &str, packed: &'a mut dyn Read) -> Result<Box<dyn Read + 'a>> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::invalid("root", format!("a layer of {media_type}"), error.to_string())
    };
    match media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Ok(Box::new(flate2::read::MultiGzDecoder::new(packed))),
        Some("zstd") => ruzstd::decoding::StreamingDecoder::new(packed)
            .map(|reader| Box::new(reader) as Box<dyn Read>)
            .map_err(|error| wrong(&error)),
        Some("tar") => Ok(Box::new(packed)),
        _ => Err(wrong(&"a layer of tar, tar+gzip or tar+zstd")),
    }
}

fn parse<T: DeserializeOwned>(text: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        Error::invalid("root", what, format!("JSON as the OCI image specification has it: {error}"))
    })
}

/// The ends of the media types of indexes and of manifests, OCI's and Docker's.
const INDEXES: [&str; 2] = ["image.index.v1+json", "manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = ["image.manifest.v1+json", "distribution.manifest.v2+json"];

/// Refuses what is neither an image nor an index. Without a media type it is seen when it is read.
fn check_kind(descriptor: &Descriptor) -> Result<()> {
    let kind = descriptor.media_type.as_str();
    if kind.is_empty() || INDEXES.iter().chain(&MANIFESTS).any(|end| kind.ends_with(end)) {
        return Ok(());
    }
    let value = format!("{} of media type {kind:?}", descriptor.digest);
    Err(Error::invalid("root", value, "an image's manifest or an index, of OCI or Docker (v2)"))
}

fn is_index(descriptor: &Descriptor, bytes: &[u8]) -> bool {
    let kind = descriptor.media_type.as_str();
    INDEXES.iter().any(|end| kind.ends_with(end))
        || (kind.is_empty() && parse::<Index>(bytes, "").is_ok())
}

/// The entry called `reference`; without a reference the one that is for this machine.
fn choose<'a>(
    index: &'a Index,
    reference: Option<&str>,
    directory: &Path,
) -> Result<&'a Descriptor> {
    let names = || index.manifests.iter().filter_map(|each| each.annotations.get(NAME));
    if let Some(reference) = reference {
        let named =
            |each: &&Descriptor| each.annotations.get(NAME).is_some_and(|name| name == reference);
        return index.manifests.iter().find(named).ok_or_else(|| {
            let known: Vec<&str> = names().map(String::as_str).collect();
            let expected = format!("one of the layout's names: {}", known.join(", "));
            Error::invalid("root", format!("image {reference:?}"), expected)
        });
    }
    let fits = |each: &&Descriptor| {
        let platform = each.platform.as_ref();
        platform.is_none_or(|it| it.os == "linux" && it.architecture == "amd64")
    };
    let mut fitting = index.manifests.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => {
            Err(Error::invalid("root", directory.display(), "an image for linux on amd64"))
        }
        (Some(_), Some(_)) => {
            let known: Vec<&str> = names().map(String::as_str).collect();
            let expected = format!("`oci:DIRECTORY:NAME` with one of {}", known.join(", "));
            Err(Error::invalid("root", directory.display(), expected))
        }
    }
}
