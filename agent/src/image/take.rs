//! Takes one layer into the store while it arrives: kept as it came, hashed, unpacked, all in one pass.
//!
//! ```text
//! partial/HEX (of an earlier try) ─┐                         ┌► partial/HEX ──────────► blobs/sha256/HEX
//! bytes from the registry ─────────┴─► hash ── decompress ───┴► layers/HEX.partial ───► layers/HEX
//!                                                    both renames only after both digests were found right
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::{Buf, Bytes};
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};

use super::unpack::{self, hex};
use super::{ImageError, Store, io_error, lock, remove_tree};

/// How far a layer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerProgress {
    pub bytes: u64,
    pub bytes_total: u64,
    /// Verified, unpacked and in its place.
    pub done: bool,
}

/// A layer as an image's documents name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Digest and length of what is transferred.
    pub blob: Digest,
    pub bytes: u64,
    /// Digest of the archive in it.
    pub diff_id: Digest,
}

/// How taking in ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Whole,
    /// All bytes came, and they are not those of the blob.
    Mismatch {
        got: String,
    },
}

/// What connects a taking with who brings the bytes.
#[derive(Debug)]
pub struct Intake {
    /// Answered with the offset from which bytes are wanted; dropped when none are.
    pub from: oneshot::Sender<u64>,
    pub chunks: mpsc::Receiver<Bytes>,
    pub progress: watch::Sender<LayerProgress>,
}

impl Store {
    /// Takes in a layer; blocks, for as long as bytes are awaited. What was taken before stays, so that the next call goes on there.
    pub fn take_layer(&self, wanted: &Wanted, intake: Intake) -> Result<Taken, ImageError> {
        let Wanted { blob, bytes, diff_id } = wanted;
        let Intake { from, chunks, progress } = intake;
        let dir = self.dir.join("layers").join(diff_id.digest());
        let target = self.blob(blob);
        let layer_lock = lock(&self.dir.join("layers").join(format!("{}.lock", diff_id.digest())))?;
        let partial = self.dir.join("partial").join(blob.digest());
        let blob_lock = lock(&partial.with_extension("lock"))?;
        if !target.exists() {
            let (mut arriving, at) = Arriving::new(&partial, *bytes, chunks, progress.clone())?;
            if from.send(at).is_err() {
                // Who asked is gone.
                return Err(cancelled(wanted));
            }
            let unpacked = if dir.exists() { Ok(()) } else { self.unpack_aside(&mut arriving, diff_id) };
            // What is wrong with the content of the right blob is another thing than wrong bytes: all of them are looked at first.
            let got = match arriving.finish() {
                Ok(got) => got,
                Err(Some(error)) => return Err(io_error("keep layer", &partial)(error)),
                Err(None) => return Err(cancelled(wanted)),
            };
            if got != blob.digest() {
                fs::remove_file(&partial).map_err(io_error("remove", &partial))?;
                return Ok(Taken::Mismatch { got: format!("sha256:{got}") });
            }
            unpacked?;
            fs::rename(&partial, &target).map_err(io_error("put in place", &target))?;
            sync_dir(target.parent().unwrap_or(&self.dir))?;
        } else if !dir.exists() {
            let file = File::open(&target).map_err(io_error("open layer", &target))?;
            self.unpack_aside(file, diff_id)?;
        }
        if !dir.exists() {
            fs::rename(self.aside(diff_id), &dir).map_err(io_error("put in place", &dir))?;
        }
        drop((layer_lock, blob_lock));
        progress.send_replace(LayerProgress { bytes: *bytes, bytes_total: *bytes, done: true });
        Ok(Taken::Whole)
    }

    /// Unpacks into a directory that is not yet the layer's. The layer's lock has to be held.
    pub(super) fn unpack_aside(&self, packed: impl Read, diff_id: &Digest) -> Result<(), ImageError> {
        // The lock is held: what is there is of a process that was killed.
        let aside = self.aside(diff_id);
        remove_tree(&aside)?;
        fs::create_dir(&aside).map_err(io_error("make directory", &aside))?;
        unpack::unpack(packed, diff_id, &aside, &self.limits).inspect_err(|_| drop(remove_tree(&aside)))
    }

    pub(super) fn aside(&self, diff_id: &Digest) -> std::path::PathBuf {
        self.dir.join("layers").join(format!("{}.partial", diff_id.digest()))
    }
}

fn cancelled(wanted: &Wanted) -> ImageError {
    ImageError::Interrupted { what: format!("layer {}", wanted.blob) }
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

/// The bytes of a blob: those of an earlier try, then those that arrive, which are written down as they are read.
struct Arriving {
    file: File,
    /// Of the earlier try, not read yet.
    earlier: u64,
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    hash: Sha256,
    left: u64,
    progress: watch::Sender<LayerProgress>,
    /// The disk's; nothing is read after it.
    failure: Option<io::Error>,
}

impl Arriving {
    /// Also says from where on bytes have to come.
    fn new(
        partial: &Path,
        bytes: u64,
        chunks: mpsc::Receiver<Bytes>,
        progress: watch::Sender<LayerProgress>,
    ) -> Result<(Self, u64), ImageError> {
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(partial);
        let file = opened.map_err(io_error("open partial layer", partial))?;
        let mut earlier = file.metadata().map_err(io_error("look at partial layer", partial))?.len();
        if earlier > bytes {
            file.set_len(0).map_err(io_error("shorten partial layer", partial))?;
            earlier = 0;
        }
        progress.send_replace(LayerProgress { bytes: earlier, bytes_total: bytes, done: false });
        let arriving = Self { file, earlier, chunks, chunk: Bytes::new(), hash: Sha256::new(), left: bytes, progress, failure: None };
        Ok((arriving, earlier))
    }

    /// Reads what nobody has read, makes it durable, gives the digest of all of it; without an error of the disk, bytes are missing.
    fn finish(&mut self) -> Result<String, Option<io::Error>> {
        let copied = io::copy(self, &mut io::sink());
        if let Some(failure) = self.failure.take() {
            return Err(Some(failure));
        }
        if copied.is_err() || self.left > 0 {
            return Err(None);
        }
        self.file.sync_all().map_err(Some)?;
        Ok(hex(&std::mem::take(&mut self.hash).finalize()))
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        // None: whoever brought the bytes is gone; that all have come is seen by their number.
        let Some(chunk) = self.chunks.blocking_recv() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let written = self.file.seek(SeekFrom::End(0)).and_then(|_| self.file.write_all(&chunk));
        written.map_err(|error| self.fail(error))?;
        self.chunk = chunk;
        Ok(())
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        let told = io::Error::new(error.kind(), error.to_string());
        self.failure = Some(error);
        told
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        if self.failure.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = if self.earlier > 0 {
            let count = match (&self.file).take(self.earlier).read(&mut buffer[..wanted]) {
                Ok(0) => return Err(self.fail(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) => return Err(self.fail(error)),
            };
            self.earlier -= count as u64;
            count
        } else {
            while self.chunk.is_empty() {
                self.next_chunk()?;
            }
            let count = wanted.min(self.chunk.len());
            self.chunk.copy_to_slice(&mut buffer[..count]);
            self.progress.send_modify(|progress| progress.bytes += count as u64);
            count
        };
        self.hash.update(&buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}
