//! Unpacks one layer, written by strangers, into a directory of its own.
//!
//! Every path is resolved inside the directory (`root`); `..` is refused; hard links point inside only; entries, bytes and path
//! lengths have limits. Whiteouts become what overlayfs knows: a character device 0:0 for a removed name, `trusted.overlay.opaque`
//! for a directory that hides the lower one. The unpacked stream must have the digest that the image's configuration names.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use oci_spec::image::Digest;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, futimens,
    linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entries, Entry, EntryType};

use super::root::Root;
use super::sparse::Sparse;
use super::{ImageError, compress, io_error};

/// What one layer may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    pub entries_max: u64,
    pub bytes_max: u64,
    pub path_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries_max: 2_000_000, bytes_max: 64 << 30, path_bytes_max: 4096 }
    }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// Unpacks an archive, packed or not, into the empty directory `target`; syncs the file system it is on.
pub fn unpack(packed: impl Read, diff_id: &Digest, target: &Path, limits: &Limits) -> Result<(), ImageError> {
    let refused = |why: String| ImageError::refused(format!("layer {diff_id}"), why);
    let allowance = Allowance::default();
    let hashing = Hashing { inner: compress::open(packed).map_err(|error| refused(error.to_string()))?, hash: Sha256::new() };
    let mut archive = Archive::new(Limited { inner: hashing, left: limits.bytes_max, allowance: allowance.clone() });
    let root = Root::open(target).map_err(io_error("open", target))?;
    let mut tree = Tree { root, dirs: Vec::new(), content_left: limits.bytes_max };
    let mut entries = archive.entries().map_err(|error| refused(error.to_string()))?;
    let mut count = 0;
    while let Some(entry) = allowance.next(&mut entries) {
        count += 1;
        if count > limits.entries_max {
            return Err(refused(format!("more than {} entries", limits.entries_max)));
        }
        let mut entry = entry.map_err(|error| refused(error.to_string()))?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        tree.add(&mut entry, limits).map_err(|why| refused(format!("entry {shown:?}: {why}")))?;
        // Content of what has none, such as a directory.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| refused(error.to_string()))?;
    }
    tree.finish().map_err(|why| refused(format!("times of directories: {why}")))?;
    let mut reader = archive.into_inner();
    io::copy(&mut reader, &mut io::sink()).map_err(|error| refused(error.to_string()))?;
    let got = hex(&reader.inner.hash.finalize());
    if got != diff_id.digest() {
        return Err(refused(format!("its content has digest sha256:{got}")));
    }
    let dir = File::open(target).map_err(io_error("open", target))?;
    syncfs(&dir).map_err(|error| io_error("sync", target)(error.into()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// How much may be read on the way to the next entry. The tar library reads long names and attributes whole into memory.
#[derive(Debug, Clone, Default)]
pub struct Allowance(Rc<Cell<Option<u64>>>);

impl Allowance {
    const BYTES: u64 = 2 << 20;

    /// The next entry, whose names and attributes must fit. What the entry before it holds has to be read already.
    pub fn next<'a, R: Read + 'a>(&self, entries: &mut Entries<'a, R>) -> Option<io::Result<Entry<'a, R>>> {
        self.0.set(Some(Self::BYTES));
        let entry = entries.next();
        self.0.set(None);
        entry
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        if let Some(left) = self.0.get() {
            let left = left.checked_sub(bytes);
            self.0.set(Some(left.ok_or_else(|| io::Error::other("names and attributes of an entry are longer than they may be"))?));
        }
        Ok(())
    }
}

/// A stream with an end, and with an allowance between entries.
pub struct Limited<R> {
    pub inner: R,
    pub left: u64,
    pub allowance: Allowance,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.allowance.take(count as u64)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other("unpacked it is larger than it may be"))?;
        Ok(count)
    }
}

struct Tree {
    root: Root,
    /// Directories and their times, set last because filling a directory changes them.
    dirs: Vec<(PathBuf, Timestamps)>,
    /// What the files may still hold, their holes included: a hole costs nothing in the archive.
    content_left: u64,
}

/// Where an entry goes: its directory, opened, and its name there.
struct Place {
    dir: OwnedFd,
    dir_path: PathBuf,
    name: OsString,
}

struct Meta {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
}

impl Tree {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, limits: &Limits) -> Result<(), String> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let sparse = Sparse::of(entry)?;
        let path = match &sparse {
            Some(Sparse { name: Some(name), .. }) => clean(name, limits)?,
            _ => clean(&entry.path_bytes(), limits)?,
        };
        let size = sparse.as_ref().map_or(entry.size(), |sparse| sparse.size);
        self.content_left = self
            .content_left
            .checked_sub(size)
            .ok_or_else(|| format!("its {size} bytes make the layer larger than it may be, {} bytes", limits.bytes_max))?;
        let meta = meta(entry)?;
        let Some(name) = path.file_name() else {
            return self.add_root(kind, &meta);
        };
        let dir_path = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let dir = self.root.make_dir(&dir_path).map_err(|error| format!("its directory: {error}"))?;
        let place = Place { dir, dir_path, name: name.to_owned() };
        if name.as_bytes() == OPAQUE {
            return self.make_opaque(&place.dir_path);
        }
        if name.as_bytes().starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.white_out(&place, OsStr::from_bytes(hidden));
        }
        match kind {
            EntryType::Directory => self.directory(&place, &path, meta, entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => regular(&place, &meta, entry, sparse.as_ref()),
            EntryType::Symlink => symlink(&place, &meta, &link_name(entry)?),
            EntryType::Link => self.hard_link(&place, &clean(&link_name(entry)?, limits)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => node(&place, &meta, kind, entry),
            other => Err(format!("entries of type {other:?} are not known in layers")),
        }
    }

    fn add_root(&mut self, kind: EntryType, meta: &Meta) -> Result<(), String> {
        if kind != EntryType::Directory {
            return Err("the root can only be a directory".into());
        }
        let dir = self.root.dir_readable(Path::new(".")).map_err(words)?;
        fchown(&dir, Some(meta.uid), Some(meta.gid)).map_err(words)?;
        fchmod(&dir, meta.mode).map_err(words)?;
        self.dirs.push((PathBuf::from("."), meta.times.clone()));
        Ok(())
    }

    fn directory<R: Read>(&mut self, place: &Place, path: &Path, meta: Meta, entry: &mut Entry<'_, R>) -> Result<(), String> {
        let there = kind_of(place)?;
        if there != Some(FileType::Directory) {
            let over_whiteout = there == Some(FileType::CharacterDevice);
            remove(place, there)?;
            mkdirat(place.dir.as_fd(), &place.name, Mode::from_raw_mode(0o700)).map_err(words)?;
            if over_whiteout {
                self.make_opaque(path)?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(place.dir.as_fd(), &place.name, flags, Mode::empty()).map_err(words)?;
        fchown(&dir, Some(meta.uid), Some(meta.gid)).map_err(words)?;
        fchmod(&dir, meta.mode).map_err(words)?;
        set_xattrs(&dir, entry)?;
        self.dirs.push((path.to_path_buf(), meta.times));
        Ok(())
    }

    /// A link to another name of this layer; the name itself may be a symlink and is not followed.
    fn hard_link(&self, place: &Place, to: &Path) -> Result<(), String> {
        let name = to.file_name().ok_or("a hard link to the root")?;
        let dir = self.root.dir(to.parent().unwrap_or(Path::new(""))).map_err(|error| format!("hard link to {}: {error}", to.display()))?;
        let target =
            statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| format!("hard link to {}: {error}", to.display()))?;
        if FileType::from_raw_mode(target.st_mode) == FileType::Directory {
            return Err(format!("hard link to the directory {}", to.display()));
        }
        remove(place, kind_of(place)?)?;
        linkat(dir.as_fd(), name, place.dir.as_fd(), &place.name, AtFlags::empty()).map_err(words)
    }

    fn make_opaque(&self, path: &Path) -> Result<(), String> {
        let dir = self.root.dir_readable(path).map_err(words)?;
        fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(words)
    }

    /// Hides a name of the lower layers; what this layer itself has under the name stays.
    fn white_out(&self, place: &Place, hidden: &OsStr) -> Result<(), String> {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err("it hides no name".into());
        }
        let hidden = Place { dir: place.dir.try_clone().map_err(words)?, dir_path: place.dir_path.clone(), name: hidden.to_owned() };
        match kind_of(&hidden)? {
            None => mknodat(hidden.dir.as_fd(), &hidden.name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).map_err(words),
            Some(FileType::Directory) => self.make_opaque(&hidden.dir_path.join(&hidden.name)),
            Some(_) => Ok(()),
        }
    }

    fn finish(&self) -> Result<(), String> {
        for (path, times) in self.dirs.iter().rev() {
            // A later entry may have put something else under the name.
            match self.root.dir_readable(path) {
                Ok(dir) => futimens(&dir, times).map_err(words)?,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(words(error)),
            }
        }
        Ok(())
    }
}

fn regular<R: Read>(place: &Place, meta: &Meta, entry: &mut Entry<'_, R>, sparse: Option<&Sparse>) -> Result<(), String> {
    remove(place, kind_of(place)?)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(place.dir.as_fd(), &place.name, flags, Mode::from_raw_mode(0o600)).map_err(words)?);
    match sparse {
        Some(sparse) => sparse.write(entry, &mut file)?,
        None if entry.header().entry_type() == EntryType::GNUSparse => copy_with_holes(entry, &mut file)?,
        None => {
            let size = entry.size();
            let written = io::copy(entry, &mut file).map_err(words)?;
            if written != size {
                return Err(format!("{written} bytes of {size} are there"));
            }
        }
    }
    file.flush().map_err(words)?;
    fchown(&file, Some(meta.uid), Some(meta.gid)).map_err(words)?;
    // After the owner: a change of owner clears the set-user-id bit and file capabilities.
    fchmod(&file, meta.mode).map_err(words)?;
    set_xattrs(&file, entry)?;
    futimens(&file, &meta.times).map_err(words)
}

/// Copies content whose holes come as zeros, and leaves holes where only zeros are.
fn copy_with_holes(from: &mut impl Read, to: &mut File) -> Result<(), String> {
    const BLOCK_BYTES: usize = 64 << 10;
    let mut block = vec![0; BLOCK_BYTES];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..]).map_err(words)? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return to.set_len(length).map_err(words);
        }
        length += filled as u64;
        if block[..filled].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Start(length)).map_err(words)?;
        } else {
            to.write_all(&block[..filled]).map_err(words)?;
        }
    }
}

fn symlink(place: &Place, meta: &Meta, to: &[u8]) -> Result<(), String> {
    remove(place, kind_of(place)?)?;
    symlinkat(OsStr::from_bytes(to), place.dir.as_fd(), &place.name).map_err(words)?;
    chownat(place.dir.as_fd(), &place.name, Some(meta.uid), Some(meta.gid), AtFlags::SYMLINK_NOFOLLOW).map_err(words)?;
    utimensat(place.dir.as_fd(), &place.name, &meta.times, AtFlags::SYMLINK_NOFOLLOW).map_err(words)
}

fn node<R: Read>(place: &Place, meta: &Meta, kind: EntryType, entry: &Entry<'_, R>) -> Result<(), String> {
    let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default).map_err(words);
    let (kind, device) = match kind {
        EntryType::Fifo => (FileType::Fifo, 0),
        kind => {
            let device = makedev(number(entry.header().device_major())?, number(entry.header().device_minor())?);
            (if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice }, device)
        }
    };
    if kind == FileType::CharacterDevice && device == makedev(0, 0) {
        return Err("character device 0:0 means a removed file to overlayfs".into());
    }
    remove(place, kind_of(place)?)?;
    mknodat(place.dir.as_fd(), &place.name, kind, meta.mode, device).map_err(words)?;
    chownat(place.dir.as_fd(), &place.name, Some(meta.uid), Some(meta.gid), AtFlags::SYMLINK_NOFOLLOW).map_err(words)?;
    chmodat(place.dir.as_fd(), &place.name, meta.mode, AtFlags::empty()).map_err(words)?;
    utimensat(place.dir.as_fd(), &place.name, &meta.times, AtFlags::SYMLINK_NOFOLLOW).map_err(words)
}

/// The path without a leading `/` and without `.`; `..`, NUL and what is too long are refused.
fn clean(bytes: &[u8], limits: &Limits) -> Result<PathBuf, String> {
    if bytes.len() > limits.path_bytes_max {
        return Err(format!("its path has more than {} bytes", limits.path_bytes_max));
    }
    if bytes.contains(&0) {
        return Err("its path holds a NUL".into());
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err("its path leads upwards".into()),
        }
    }
    Ok(path)
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<Vec<u8>, String> {
    entry.link_name_bytes().map(|name| name.into_owned()).ok_or_else(|| "a link without a target".into())
}

fn meta<R: Read>(entry: &Entry<'_, R>) -> Result<Meta, String> {
    let header = entry.header();
    let id = |what: &str, id: io::Result<u64>| {
        let id = id.map_err(words)?;
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| format!("{what} {id} is out of range"))
    };
    let seconds = i64::try_from(header.mtime().map_err(words)?).map_err(|_| "its time is out of range".to_owned())?;
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(Meta {
        uid: Uid::from_raw(id("user", header.uid())?),
        gid: Gid::from_raw(id("group", header.gid())?),
        mode: Mode::from_raw_mode(header.mode().map_err(words)? & 0o7777),
        times: Timestamps { last_access: time, last_modification: time },
    })
}

/// Extended attributes of users and file capabilities; those of overlayfs itself are not an image's to set.
fn set_xattrs<R: Read>(file: &impl AsFd, entry: &mut Entry<'_, R>) -> Result<(), String> {
    const KEY: &[u8] = b"SCHILY.xattr.";
    let Some(extensions) = entry.pax_extensions().map_err(words)? else { return Ok(()) };
    for extension in extensions {
        let extension = extension.map_err(words)?;
        let Some(name) = extension.key_bytes().strip_prefix(KEY) else { continue };
        if name.starts_with(b"user.") || name == b"security.capability" {
            match fsetxattr(file, OsStr::from_bytes(name), extension.value_bytes(), XattrFlags::empty()) {
                // The file system keeps none: as Docker, go on without.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(format!("attribute {}: {error}", String::from_utf8_lossy(name))),
            }
        }
    }
    Ok(())
}

fn kind_of(place: &Place) -> Result<Option<FileType>, String> {
    match statat(place.dir.as_fd(), &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(words(error)),
    }
}

/// Makes way for a later entry of the same name.
fn remove(place: &Place, there: Option<FileType>) -> Result<(), String> {
    match there {
        None => Ok(()),
        Some(FileType::Directory) => remove_dir(place.dir.as_fd(), &place.name, 0),
        Some(_) => unlinkat(place.dir.as_fd(), &place.name, AtFlags::empty()).map_err(words),
    }
}

fn remove_dir(parent: impl AsFd, name: &OsStr, depth: usize) -> Result<(), String> {
    const DEPTH_MAX: usize = 512;
    if depth > DEPTH_MAX {
        return Err(format!("directories deeper than {DEPTH_MAX}"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent.as_fd(), name, flags, Mode::empty()).map_err(words)?;
    for entry in rustix::fs::Dir::read_from(&dir).map_err(words)? {
        let entry = entry.map_err(words)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_dir(dir.as_fd(), name, depth + 1)?;
        } else {
            unlinkat(dir.as_fd(), name, AtFlags::empty()).map_err(words)?;
        }
    }
    unlinkat(parent.as_fd(), name, AtFlags::REMOVEDIR).map_err(words)
}

pub(super) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
