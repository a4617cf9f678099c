//! Takes an OCI image layout, a directory or a tar archive of one (as `docker save` writes since version 25), into the store.
//!
//! Every blob is hashed while it is written and kept only under its true digest; names come from the index's annotations. The store's
//! index changes last, by a rename, when everything it names is on disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndex};
use sha2::{Digest as _, Sha256};
use tar::Archive;

use super::compress;
use super::unpack::{Allowance, Limited, hex};
use super::{DOCUMENT_BYTES_MAX, ImageError, Store, for_this_host, io_error, lock, normalise, remove_tree, sha256};

/// One image that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub name: String,
    pub digest: String,
}

pub(super) const NAME: &str = "io.containerd.image.name";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const ENTRIES_MAX: u64 = 100_000;
const ARCHIVE_BYTES_MAX: u64 = 256 << 30;
/// An index may name an index; nobody nests deeper.
const NESTING_MAX: u32 = 3;

impl Store {
    /// Takes in every image of the layout or archive at `path`. Safe while an agent uses the store.
    pub fn load(&self, path: &Path) -> Result<Vec<Loaded>, ImageError> {
        let meta = fs::metadata(path).map_err(io_error("open image", path))?;
        let what = path.display().to_string();
        self.load_with(&what, |aside| {
            if meta.is_dir() {
                return self.take_dir(path, aside);
            }
            let file = File::open(path).map_err(io_error("open image", path))?;
            self.take_archive(file, &what, aside)
        })
    }

    /// Takes in every image of an archive that is called `what` in errors, while it comes.
    pub fn load_archive(&self, archive: impl Read, what: &str) -> Result<Vec<Loaded>, ImageError> {
        self.load_with(what, |aside| self.take_archive(archive, what, aside))
    }

    /// `take` puts the blobs in their place and returns the index.
    fn load_with(&self, what: &str, take: impl FnOnce(&Path) -> Result<Vec<u8>, ImageError>) -> Result<Vec<Loaded>, ImageError> {
        // What the archive holds is known only when it was read: no collection runs meanwhile.
        let gate = self.gate_shared()?;
        let lock = lock(&self.dir.join("load.lock"))?;
        let aside = self.dir.join("incoming");
        // The lock is held: what is there is of a process that was killed.
        remove_tree(&aside)?;
        fs::create_dir(&aside).map_err(io_error("make directory", &aside))?;
        let loaded = take(&aside).and_then(|document| self.load_index(what, &document));
        remove_tree(&aside)?;
        drop((lock, gate));
        loaded
    }

    fn load_index(&self, what: &str, document: &[u8]) -> Result<Vec<Loaded>, ImageError> {
        let index: ImageIndex =
            serde_json::from_slice(document).map_err(|error| ImageError::refused(what, format!("index.json: {error}")))?;
        let mut found = Vec::new();
        self.walk(&index, None, NESTING_MAX, &mut found)?;
        if found.is_empty() {
            return Err(ImageError::refused(what, "it holds no image for linux on this architecture"));
        }
        let mut kept = Vec::new();
        for (name, descriptor) in found {
            let digest = sha256(descriptor.digest().clone())?;
            let name = name.ok_or_else(|| {
                let why = format!("image {digest} has no name: annotate it with {REF_NAME}, or save it by name");
                ImageError::refused(what, why)
            })?;
            let image = self.read(&name, &digest).map_err(|error| explain(error, &name))?;
            // Unpacked now, so that the first start does not wait for it.
            self.layers(&image).map_err(|error| explain(error, &name))?;
            kept.push(Loaded { name, digest: digest.to_string() });
        }
        let names: Vec<_> = kept.iter().map(|image| (image.name.clone(), image.digest.clone())).collect();
        self.name(&names)?;
        Ok(kept)
    }

    /// The images an index names for this host, each with its name.
    fn walk(
        &self,
        index: &ImageIndex,
        name: Option<&str>,
        depth: u32,
        found: &mut Vec<(Option<String>, Descriptor)>,
    ) -> Result<(), ImageError> {
        for descriptor in for_this_host(index) {
            let own = name_of(descriptor)?;
            let name = own.as_deref().or(name);
            if !descriptor.media_type().as_ref().ends_with("index.v1+json") && !descriptor.media_type().as_ref().contains("manifest.list") {
                let known = found.iter().any(|(known, other)| known.as_deref() == name && name.is_some() && other == descriptor);
                if !known {
                    found.push((name.map(str::to_owned), descriptor.clone()));
                }
                continue;
            }
            if depth == 0 {
                return Err(ImageError::refused("index.json", format!("indexes are nested deeper than {NESTING_MAX}")));
            }
            self.walk(&self.document(descriptor)?, name, depth - 1, found)?;
        }
        Ok(())
    }

    fn take_dir(&self, path: &Path, aside: &Path) -> Result<Vec<u8>, ImageError> {
        let blobs = path.join("blobs/sha256");
        let entries = fs::read_dir(&blobs).map_err(|source| missing_layout(path, &blobs, source))?;
        for entry in entries {
            let entry = entry.map_err(io_error("list", &blobs))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(io_error("look at", &entry.path()))?;
            if kind.is_file() && is_hex_digest(&name) {
                let mut file = File::open(entry.path()).map_err(io_error("open", &entry.path()))?;
                self.take_blob(&name, &mut file, aside)?;
            }
        }
        let index = path.join("index.json");
        let file = File::open(&index).map_err(|source| missing_layout(path, &index, source))?;
        read_document(file).map_err(io_error("read", &index))
    }

    fn take_archive(&self, archive: impl Read, what: &str, aside: &Path) -> Result<Vec<u8>, ImageError> {
        let refused = |error: io::Error| ImageError::refused(what, format!("it is not a readable tar archive: {error}"));
        let reader = compress::open(archive).map_err(refused)?;
        let allowance = Allowance::default();
        let mut archive = Archive::new(Limited { inner: reader, left: ARCHIVE_BYTES_MAX, allowance: allowance.clone() });
        let mut entries = archive.entries().map_err(refused)?;
        let (mut index, mut docker, mut count) = (None, false, 0);
        while let Some(entry) = allowance.next(&mut entries) {
            count += 1;
            if count > ENTRIES_MAX {
                return Err(ImageError::refused(what, format!("more than {ENTRIES_MAX} entries")));
            }
            let mut entry = entry.map_err(refused)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name);
            if !entry.header().entry_type().is_file() {
                // A directory or a link: a layout's blobs are files.
            } else if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|hex| is_hex_digest(hex)) {
                self.take_blob(hex, &mut entry, aside)?;
            } else if name == "index.json" {
                index = Some(read_document(&mut entry).map_err(refused)?);
            } else if name == "manifest.json" {
                docker = true;
            }
            io::copy(&mut entry, &mut io::sink()).map_err(refused)?;
        }
        index.ok_or_else(|| {
            let why = if docker {
                "it is an archive of Docker before version 25, which holds no OCI layout; save it with a newer Docker"
            } else {
                "it holds no index.json: it is not an OCI image layout"
            };
            ImageError::refused(what, why)
        })
    }

    /// Writes a blob that is not there yet; what does not have the digest it is named by is refused.
    fn take_blob(&self, hex_digest: &str, reader: &mut impl Read, aside: &Path) -> Result<(), ImageError> {
        let target = self.dir.join("blobs/sha256").join(hex_digest);
        if target.exists() {
            return Ok(());
        }
        let path = aside.join(hex_digest);
        let mut file = File::create(&path).map_err(io_error("write blob", &path))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(ImageError::refused(format!("blob sha256:{hex_digest}"), error.to_string())),
            };
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(io_error("write blob", &path))?;
        }
        let got = hex(&hash.finalize());
        if got != hex_digest {
            return Err(ImageError::refused(format!("blob sha256:{hex_digest}"), format!("its content has digest sha256:{got}")));
        }
        file.sync_all().map_err(io_error("write blob", &path))?;
        fs::rename(&path, &target).map_err(io_error("put in place", &target))
    }
}

fn read_document(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.by_ref().take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(io::Error::other(format!("index.json has more than {DOCUMENT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn missing_layout(layout: &Path, path: &Path, source: io::Error) -> ImageError {
    match source.kind() {
        io::ErrorKind::NotFound => {
            let why = format!("{} is missing: it is not an OCI image layout", path.display());
            ImageError::refused(layout.display().to_string(), why)
        }
        _ => io_error("read", path)(source),
    }
}

/// Says that a blob is missing where the store only knows that a file is.
fn explain(error: ImageError, name: &str) -> ImageError {
    match error {
        ImageError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let blob = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            ImageError::refused(format!("image {name:?}"), format!("blob sha256:{blob} is neither in the archive nor on this node"))
        }
        other => other,
    }
}

fn name_of(descriptor: &Descriptor) -> Result<Option<String>, ImageError> {
    let annotations = descriptor.annotations().as_ref();
    let name = annotations.and_then(|annotations| annotations.get(NAME).or_else(|| annotations.get(REF_NAME)));
    name.map(|name| normalise(name)).transpose()
}

fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
