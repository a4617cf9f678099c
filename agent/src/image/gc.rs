//! Names come and go; content that nothing needs any more is collected.
//!
//! Kept is what a name leads to, what a lease lists, and every layer under a mounted root file system, whether it has a name or not:
//! what runs is never removed. A collection holds the gate alone, so that nothing begins to be used while it decides; what it takes
//! away goes by a rename and is removed afterwards, with the gate open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tracing::warn;

use super::{Image, ImageError, Store, io_error, lock, normalise, parse_digest, remove_tree};
use crate::core::mounts::overlays;

/// What was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Names that are gone.
    pub names: Vec<String>,
    pub layers: usize,
    pub blobs: usize,
    /// On disk.
    pub bytes: u64,
}

impl Collected {
    /// So many more whole entries of a directory.
    fn count(&mut self, dir: &str, whole: usize) {
        match dir {
            LAYERS => self.layers += whole,
            BLOBS => self.blobs += whole,
            // The beginning of a blob is nothing that has a name.
            _ => {}
        }
    }
}

const LAYERS: &str = "layers";
const BLOBS: &str = "blobs/sha256";
/// The directories that are collected.
const DIRS: [&str; 3] = [LAYERS, BLOBS, "partial"];

/// Content that is in use whether it has a name or not.
struct Use {
    /// Digests in hexadecimal.
    leased: BTreeSet<String>,
    /// The layers under each root file system, likewise.
    mounted: BTreeSet<Vec<String>>,
}

/// Something that nothing needs.
struct Thrown {
    path: PathBuf,
    /// Not a lock, nor a part of something.
    whole: bool,
}

impl Store {
    /// Gives the image another name, which may have been another image's.
    pub fn tag(&self, from: &str, to: &str) -> Result<(), ImageError> {
        let to = normalise(to)?;
        if to.contains('@') {
            return Err(ImageError::refused(format!("image name {to:?}"), "a name with a digest belongs to that digest's image only"));
        }
        // Held, so that it does not go between being found and being named.
        let (image, _lease) = self.hold(from)?;
        self.name(&[(to, image.digest.to_string())])
    }

    /// Takes a name away, and what only it kept. An image that a container runs on keeps its last name, unless `force`d; its layers
    /// stay as long as the container in any case.
    pub fn rm(&self, name: &str, force: bool) -> Result<Collected, ImageError> {
        let wanted = normalise(name)?;
        let used = used_layers()?;
        self.edit(|store, index| {
            let Some(digest) = index.images.get(&wanted) else { return Err(index.absent(name)) };
            let is_last = index.images.values().filter(|other| *other == digest).count() == 1;
            // A damaged image runs nowhere.
            let runs = || parse_digest(digest).and_then(|digest| store.read(&wanted, &digest)).is_ok_and(|image| is_under(&image, &used));
            if is_last && !force && runs() {
                let why = "a container on this node runs on it; stop it first, or force it: the container's files stay until it ends";
                return Err(ImageError::refused(format!("image {wanted:?}"), why));
            }
            index.images.remove(&wanted);
            Ok(())
        })?;
        Ok(Collected { names: vec![wanted], ..self.collect()? })
    }

    /// Collects; with `all`, also takes away the names of images that no container runs on and no task is about to.
    pub fn prune(&self, all: bool) -> Result<Collected, ImageError> {
        let names = if all { self.forget_unused(|_| true)? } else { Vec::new() };
        Ok(Collected { names, ..self.collect()? })
    }

    /// Takes away those of the chosen names whose images no container runs on and no task is about to; says which went.
    pub fn forget_unused(&self, is_chosen: impl Fn(&str) -> bool) -> Result<Vec<String>, ImageError> {
        let _gate = self.gate_alone()?;
        let use_now = self.use_now()?;
        let mut names = Vec::new();
        self.edit(|store, index| {
            index.images.retain(|name, digest| {
                let kept = !is_chosen(name) || store.is_used(name, digest, &use_now);
                if !kept {
                    names.push(name.clone());
                }
                kept
            });
            Ok(())
        })?;
        Ok(names)
    }

    /// What `prune` would take away now.
    pub fn prunable(&self, all: bool) -> Result<Collected, ImageError> {
        let _gate = self.gate_alone()?;
        let use_now = self.use_now()?;
        let mut collected = Collected::default();
        let mut images = self.index()?.images;
        images.retain(|name, digest| {
            let kept = !all || self.is_used(name, digest, &use_now);
            if !kept {
                collected.names.push(name.clone());
            }
            kept
        });
        let kept = self.kept(&images, use_now);
        for dir in DIRS {
            for Thrown { path, whole } in self.dispensable(dir, &kept)? {
                collected.bytes += disk_bytes(&path).map_err(io_error("look at", &path))?;
                collected.count(dir, usize::from(whole));
            }
        }
        Ok(collected)
    }

    /// What is leased and what is mounted. In this order: a lease ends when its image is mounted, and must be seen in one of the two.
    fn use_now(&self) -> Result<Use, ImageError> {
        let leased = self.leased()?;
        Ok(Use { leased, mounted: used_layers()? })
    }

    /// A damaged image runs nowhere.
    fn is_used(&self, name: &str, digest: &str, Use { leased, mounted }: &Use) -> bool {
        let image = parse_digest(digest).and_then(|digest| self.read(name, &digest));
        image.is_ok_and(|image| leased.contains(image.digest.digest()) || is_under(&image, mounted))
    }

    /// Removes all content that nothing needs.
    pub fn collect(&self) -> Result<Collected, ImageError> {
        let gate = self.gate_alone()?;
        let use_now = self.use_now()?;
        let kept = self.kept(&self.index()?.images, use_now);
        let trash = self.dir.join("trash");
        fs::create_dir_all(&trash).map_err(io_error("make directory", &trash))?;
        let mut collected = Collected::default();
        for dir in DIRS {
            collected.count(dir, self.throw_away(dir, &kept, &trash)?);
        }
        // Loading holds the gate: what is there is of a process that was killed.
        remove_tree(&self.dir.join("incoming"))?;
        drop(gate);
        let emptying = lock(&self.dir.join("trash.lock"))?;
        for entry in fs::read_dir(&trash).map_err(io_error("list", &trash))? {
            let path = entry.map_err(io_error("list", &trash))?.path();
            collected.bytes += disk_bytes(&path).map_err(io_error("look at", &path))?;
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io_error("remove", &path))?;
        }
        drop(emptying);
        Ok(collected)
    }

    /// Digests of all that the images, and what is in use, need.
    fn kept(&self, images: &BTreeMap<String, String>, Use { leased: mut kept, mounted }: Use) -> BTreeSet<String> {
        kept.extend(mounted.into_iter().flatten());
        for (name, digest) in images {
            let content = parse_digest(digest).and_then(|digest| self.read(name, &digest)).and_then(|image| self.content_of(&image));
            match content {
                Ok(content) => kept.extend(content),
                // What it was made of is not known, and it cannot be started.
                Err(error) => {
                    warn!(image = name, %error, "an image is damaged; pull or load it again");
                    kept.extend(digest.strip_prefix("sha256:").map(str::to_owned));
                }
            }
        }
        kept
    }

    /// Moves what is not kept out of a directory; says how much of it was whole.
    fn throw_away(&self, dir: &str, kept: &BTreeSet<String>, trash: &Path) -> Result<usize, ImageError> {
        let mut count = 0;
        for Thrown { path, whole } in self.dispensable(dir, kept)? {
            let to = trash.join(format!("{:016x}", rand::random::<u64>()));
            match fs::rename(&path, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => {
                    moved.map_err(io_error("throw away", &path))?;
                    count += usize::from(whole);
                }
            }
        }
        Ok(count)
    }

    /// What is not kept in a directory.
    fn dispensable(&self, dir: &str, kept: &BTreeSet<String>) -> Result<Vec<Thrown>, ImageError> {
        let dir = self.dir.join(dir);
        let mut thrown = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let entry = entry.map_err(io_error("list", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Beside HEX there are HEX.lock, HEX.partial, and .HEX.NUMBER while a document is written.
            let hex = name.trim_start_matches('.').split('.').next().unwrap_or_default();
            if !kept.contains(hex) {
                thrown.push(Thrown { path: entry.path(), whole: hex == name });
            }
        }
        Ok(thrown)
    }
}

/// Whether a mounted root file system has exactly the image's layers.
pub(super) fn is_under(image: &Image, used: &BTreeSet<Vec<String>>) -> bool {
    let own: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.digest().to_owned()).collect();
    used.contains(&own)
}

/// The layers under every overlay that is mounted anywhere on this host, not only where this process can see the mount.
pub(super) fn used_layers() -> Result<BTreeSet<Vec<String>>, ImageError> {
    let proc = Path::new("/proc");
    let (mut namespaces, mut used) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(proc).map_err(io_error("list", proc))? {
        let path = entry.map_err(io_error("list", proc))?.path();
        let is_process = path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        if !is_process {
            continue;
        }
        let read = fs::read_link(path.join("ns/mnt")).and_then(|namespace| {
            let new = namespaces.insert(namespace.clone());
            let text = if new { fs::read_to_string(path.join("mountinfo")) } else { Ok(String::new()) };
            // Another process may show the namespace that this one just left.
            if text.is_err() {
                namespaces.remove(&namespace);
            }
            text
        });
        match read {
            Ok(text) => used.extend(overlays(&text)),
            // Also one with more privileges than this process has: what was started from here has no more (ptrace(2), access mode).
            Err(error) if has_ended(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(io_error("read the mounts of", &path)(error)),
        }
    }
    Ok(used)
}

/// A process that ends has no mounts any more; the kernel says so in several ways.
fn has_ended(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::SRCH, Errno::INVAL];
    error.raw_os_error().is_some_and(|number| gone.iter().any(|gone| gone.raw_os_error() == number))
}

/// What a tree takes on disk.
fn disk_bytes(path: &Path) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 512;
    let meta = fs::symlink_metadata(path)?;
    let mut bytes = meta.blocks() * BLOCK_BYTES;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}
