//! The node's images: blobs by digest, layers unpacked once, names in one index.
//!
//! ```text
//! images/blobs/sha256/HEX      verified when written, never changed
//! images/layers/HEX/           one unpacked layer by its diff id, whole or absent
//! images/layers/HEX.lock       held while the layer is unpacked
//! images/partial/HEX           what has come of a blob; HEX.lock is held while more comes
//! images/incoming/             blobs of an archive that is being loaded; load.lock is held meanwhile
//! images/index.json            name → manifest digest, replaced by rename; lock is held meanwhile
//! images/leases/               what may not be collected though nothing names it, see `lease`
//! images/trash/                collected, being removed; trash.lock is held meanwhile
//! images/gate.lock             held shared to begin to use content, alone to collect
//! ```

pub mod load;
pub mod pull;
pub mod registry;

pub mod compress;
pub mod root;
pub mod sparse;
pub mod take;
pub mod unpack;

pub mod gc;
pub mod housekeeper;
pub mod inspect;
pub mod save;

pub mod flight;
pub mod lease;
pub mod mount;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::image::{Arch, Descriptor, Digest, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, Os};
use rcluster_base::ledger::{self, LedgerError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::core::bundle::ImageConfig;
use crate::core::image::{Extension, config};
use crate::core::reference::Reference;
use registry::error::RegistryError;
use unpack::Limits;

/// Why an image cannot be had.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("image {name:?} is not on this node; images there: {there}")]
    Absent { name: String, there: String },
    #[error("{0}")]
    Name(String),
    #[error("{what} {path}", path = path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what}: {why}")]
    Refused { what: String, why: String },
    #[error("write the {what}")]
    Write { what: &'static str, source: io::Error },
    /// Of work that others waited for, too.
    #[error(transparent)]
    Shared(Arc<ImageError>),
    #[error("{what} was not finished")]
    Interrupted { what: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("keep the index of images")]
    Index(#[from] LedgerError),
}

impl ImageError {
    fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }

    /// Whether trying again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Absent { .. } | Self::Name(_) | Self::Refused { .. } => true,
            Self::Registry(error) => error.is_final(),
            Self::Shared(error) => error.is_final(),
            Self::Io { .. } | Self::Write { .. } | Self::Index(_) | Self::Interrupted { .. } => false,
        }
    }
}

/// Adds what was being done, and to what.
fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Io { what, path, source }
}

const INDEX_FORMAT: u32 = 1;
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
    /// Of its blobs; 0 when it is damaged.
    pub bytes: u64,
    /// RFC 3339; empty when the image does not say, or is damaged.
    pub created: String,
    /// Whether a container on this host runs on it.
    pub in_use: bool,
    /// Unix time at which it was last pulled, loaded, named, or used for a container.
    pub used_at_ms: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    format: u32,
    images: BTreeMap<String, String>,
}

impl Index {
    fn absent(&self, name: &str) -> ImageError {
        let names: Vec<&str> = self.images.keys().map(String::as_str).collect();
        ImageError::Absent { name: name.to_owned(), there: if names.is_empty() { "none".to_owned() } else { names.join(", ") } }
    }
}

impl Store {
    /// The store under `state_dir`; makes its directories.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        Self::with_limits(state_dir, Limits::default())
    }

    /// The same with other limits for layers.
    pub fn with_limits(state_dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        let store = Self { dir: state_dir.join("images"), limits };
        for dir in ["blobs/sha256", "layers", "partial", "leases"].map(|dir| store.dir.join(dir)) {
            fs::create_dir_all(&dir).map_err(io_error("make directory", &dir))?;
        }
        Ok(store)
    }

    /// Every image by name.
    pub fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let used = gc::used_layers()?;
        let listed = self.index()?.images.into_iter().map(|(name, digest)| {
            let known = parse_digest(&digest).and_then(|digest| {
                let manifest = self.manifest(&digest)?;
                let configuration: ImageConfiguration = self.document(manifest.config())?;
                let in_use = gc::is_under(&self.read(&name, &digest)?, &used);
                let bytes = manifest.config().size() + manifest.layers().iter().map(Descriptor::size).sum::<u64>();
                Ok((bytes, configuration.created().clone().unwrap_or_default(), in_use, self.used_at_ms(&digest)))
            });
            let (bytes, created, in_use, used_at_ms) = known.unwrap_or_else(|error| {
                warn!(image = name, %error, "an image is damaged; pull or load it again");
                (0, String::new(), false, 0)
            });
            Listed { name, digest, bytes, created, in_use, used_at_ms }
        });
        Ok(listed.collect())
    }

    /// When the image was last of use: the time of its manifest's file says so, also to the next agent.
    fn used_at_ms(&self, digest: &Digest) -> u64 {
        let modified = fs::metadata(self.blob(digest)).and_then(|meta| meta.modified());
        let since = modified.map_or(Duration::ZERO, |time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that the image is of use now.
    fn note_use(&self, digest: &Digest) {
        let path = self.blob(digest);
        if let Err(error) = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
            warn!(path = %path.display(), %error, "cannot note that an image is used");
        }
    }

    /// The image of that name.
    pub fn find(&self, name: &str) -> Result<Image, ImageError> {
        let wanted = normalise(name)?;
        let index = self.index()?;
        let Some(digest) = index.images.get(&wanted) else {
            return Err(index.absent(name));
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
            let blob = self.blob(&layer.blob);
            let file = File::open(&blob).map_err(io_error("open layer", &blob))?;
            self.unpack_aside(file, &layer.diff_id)?;
            fs::rename(self.aside(&layer.diff_id), &dir).map_err(io_error("put in place", &dir))?;
        }
        drop(lock);
        Ok(dir)
    }

    fn read(&self, name: &str, digest: &Digest) -> Result<Image, ImageError> {
        let manifest = self.manifest(digest)?;
        let configuration: ImageConfiguration = self.document(manifest.config())?;
        let extension: Extension = self.document(manifest.config())?;
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
        let config = config(&configuration, extension).map_err(|why| ImageError::refused(format!("image {name:?}"), why))?;
        Ok(Image { name: name.to_owned(), digest: digest.clone(), config, layers })
    }

    /// Digests, in hexadecimal, of all that the image is made of.
    fn content_of(&self, image: &Image) -> Result<Vec<String>, ImageError> {
        let config = sha256(self.manifest(&image.digest)?.config().digest().clone())?;
        let layers = image.layers.iter().flat_map(|layer| [&layer.blob, &layer.diff_id]);
        Ok([&image.digest, &config].into_iter().chain(layers).map(|digest| digest.digest().to_owned()).collect())
    }

    /// Keeps a document, whose digest was checked.
    fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        Ok(ledger::write_bytes(&self.blob(digest), bytes)?)
    }

    /// Gives names to manifests that are there with all they need.
    fn name(&self, names: &[(String, String)]) -> Result<(), ImageError> {
        self.edit(|_, index| {
            index.images.extend(names.iter().cloned());
            Ok(())
        })?;
        names.iter().filter_map(|(_, digest)| parse_digest(digest).ok()).for_each(|digest| self.note_use(&digest));
        Ok(())
    }

    /// Changes the index; nothing changes when `change` refuses.
    fn edit(&self, change: impl FnOnce(&Self, &mut Index) -> Result<(), ImageError>) -> Result<(), ImageError> {
        let lock = lock(&self.dir.join("lock"))?;
        let mut index = self.index()?;
        index.format = INDEX_FORMAT;
        change(self, &mut index)?;
        ledger::write::<Index>(&self.dir.join("index.json"), &index)?;
        drop(lock);
        Ok(())
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

/// The name under which the store keeps the image.
fn normalise(name: &str) -> Result<String, ImageError> {
    let reference = Reference::parse(name).map_err(ImageError::Name)?;
    Ok(reference.to_string())
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

/// The one manifest of an index that is for this host, or that names no platform.
fn for_this_host(index: &ImageIndex) -> impl Iterator<Item = &Descriptor> {
    let arch = Arch::default();
    index.manifests().iter().filter(move |descriptor| {
        descriptor.platform().as_ref().is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == arch)
    })
}
