//! The node's images: blobs by digest, layers unpacked once, names in one index.
//!
//! ```text
//! images/blobs/sha256/HEX      verified when written, never changed
//! images/layers/HEX/           one unpacked layer by its diff id, whole or absent
//! images/index.json            name → manifest digest, replaced by rename
//! images/lock                  held while an archive is loaded
//! ```

pub mod load;
pub mod mount;
pub mod root;
pub mod unpack;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{Arch, Descriptor, Digest, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, Os};
use rcluster_base::ledger::{self, LedgerError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::bundle::ImageConfig;
use crate::core::reference::normalise;
use unpack::Limits;

/// Why an image cannot be had.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("image {name:?} is not on this node; images there: {there}")]
    Absent { name: String, there: String },
    #[error("{what} {path}", path = path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what}: {why}")]
    Refused { what: String, why: String },
    #[error("keep the index of images")]
    Index(#[from] LedgerError),
}

impl ImageError {
    fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }

    /// Whether trying again cannot help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Refused { .. })
    }
}

/// Adds what was being done, and to what.
fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Io { what, path, source }
}

/// A document of an image may not be larger.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// The images under one state directory. Any number of processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    limits: Limits,
}

/// An image whose documents were read and found in order.
#[derive(Debug, Clone)]
pub struct Image {
    pub name: String,
    pub digest: Digest,
    pub config: ImageConfig,
    layers: Vec<Layer>,
}

/// A layer: what its archive is called packed and unpacked.
#[derive(Debug, Clone)]
struct Layer {
    blob: Digest,
    diff_id: Digest,
}

/// One line of `image ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub digest: String,
    pub bytes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    format: u32,
    images: BTreeMap<String, String>,
}

impl Store {
    /// The store under `state_dir`; makes its directories.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        Self::with_limits(state_dir, Limits::default())
    }

    /// The same with other limits for layers.
    pub fn with_limits(state_dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        let store = Self { dir: state_dir.join("images"), limits };
        for dir in [store.dir.join("blobs/sha256"), store.dir.join("layers")] {
            fs::create_dir_all(&dir).map_err(io_error("make directory", &dir))?;
        }
        Ok(store)
    }

    /// Every image by name.
    pub fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let listed = self.index()?.images.into_iter().map(|(name, digest)| {
            let bytes = parse_digest(&digest)
                .and_then(|digest| self.manifest(&digest))
                .map(|manifest| manifest.config().size() + manifest.layers().iter().map(Descriptor::size).sum::<u64>())?;
            Ok(Listed { name, digest, bytes })
        });
        listed.collect()
    }

    /// The image of that name.
    pub fn find(&self, name: &str) -> Result<Image, ImageError> {
        let wanted = normalise(name);
        let index = self.index()?;
        let Some(digest) = index.images.get(&wanted) else {
            let names: Vec<&str> = index.images.keys().map(String::as_str).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(ImageError::Absent { name: name.to_owned(), there });
        };
        self.read(&wanted, &parse_digest(digest)?)
    }

    /// The image's layers as directories, the lowest first; unpacks what is not unpacked yet, each layer once however many ask.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        image.layers.iter().map(|layer| self.layer(layer)).collect()
    }

    fn layer(&self, layer: &Layer) -> Result<PathBuf, ImageError> {
        let hex = layer.diff_id.digest();
        let dir = self.dir.join("layers").join(hex);
        if dir.exists() {
            return Ok(dir);
        }
        let lock = lock(&self.dir.join("layers").join(format!("{hex}.lock")))?;
        if !dir.exists() {
            // The lock is held: a partial directory is of a process that was killed.
            let partial = self.dir.join("layers").join(format!("{hex}.partial"));
            remove_tree(&partial)?;
            fs::create_dir(&partial).map_err(io_error("make directory", &partial))?;
            let blob = self.blob(&layer.blob);
            let file = File::open(&blob).map_err(io_error("open layer", &blob))?;
            unpack::unpack(file, &layer.diff_id, &partial, &self.limits).inspect_err(|_| drop(remove_tree(&partial)))?;
            fs::rename(&partial, &dir).map_err(io_error("put in place", &dir))?;
        }
        drop(lock);
        Ok(dir)
    }

    fn read(&self, name: &str, digest: &Digest) -> Result<Image, ImageError> {
        let manifest = self.manifest(digest)?;
        let configuration: ImageConfiguration = self.document(manifest.config())?;
        let diff_ids = configuration.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            let why = format!("its manifest names {} layers and its configuration {}", manifest.layers().len(), diff_ids.len());
            return Err(ImageError::refused(format!("image {name:?}"), why));
        }
        let layers = manifest
            .layers()
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| Ok(Layer { blob: sha256(layer.digest().clone())?, diff_id: parse_digest(diff_id)? }));
        let layers = layers.collect::<Result<_, ImageError>>()?;
        Ok(Image { name: name.to_owned(), digest: digest.clone(), config: image_config(&configuration), layers })
    }

    fn manifest(&self, digest: &Digest) -> Result<ImageManifest, ImageError> {
        decode(&self.blob(digest))
    }

    fn document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, ImageError> {
        decode(&self.blob(&sha256(descriptor.digest().clone())?))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.digest())
    }

    fn index(&self) -> Result<Index, ImageError> {
        Ok(ledger::read(&self.dir.join("index.json"))?.unwrap_or_default())
    }
}

/// Waits for, and then holds, the lock until dropped. Locks of two opens exclude one another, also within one process.
fn lock(path: &Path) -> Result<File, ImageError> {
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(io_error("open lock", path))?;
    file.lock().map_err(io_error("lock", path))?;
    Ok(file)
}

/// Removes what may not be there.
fn remove_tree(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

fn decode<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let length = fs::metadata(path).map_err(io_error("read", path))?.len();
    let what = || path.display().to_string();
    if length > DOCUMENT_BYTES_MAX {
        return Err(ImageError::refused(what(), format!("{length} bytes are more than a document of an image may have")));
    }
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| ImageError::refused(what(), error.to_string()))
}

/// A digest of the one kind that is kept here.
fn parse_digest(text: &str) -> Result<Digest, ImageError> {
    let digest = text.parse::<Digest>().map_err(|error| ImageError::refused(format!("digest {text:?}"), error.to_string()))?;
    sha256(digest)
}

fn sha256(digest: Digest) -> Result<Digest, ImageError> {
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest),
        _ => Err(ImageError::refused(format!("digest {digest}"), "only sha256 is kept")),
    }
}

fn image_config(configuration: &ImageConfiguration) -> ImageConfig {
    let Some(config) = configuration.config() else { return ImageConfig::default() };
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ImageConfig {
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        env: list(config.env()),
        workdir: text(config.working_dir()),
        user: text(config.user()),
        stop_signal: text(config.stop_signal()),
        healthcheck: None,
    }
}

/// The one manifest of an index that is for this host, or that names no platform.
fn for_this_host(index: &ImageIndex) -> impl Iterator<Item = &Descriptor> {
    let arch = Arch::default();
    index.manifests().iter().filter(move |descriptor| {
        descriptor.platform().as_ref().is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == arch)
    })
}
