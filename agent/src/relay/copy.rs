//! Copies files out of a container and into it, as tar archives.
//!
//! Every path is resolved by the kernel inside the container's own root (openat2, `RESOLVE_IN_ROOT`, no magic links), one name at a time
//! below a directory that is held open: links of the container lead to its own files, and nothing leads out of it. What arrives belongs to
//! root, as with docker.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rcluster_api::copy::{Destination, Landing, Source, land, split};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, relay_output};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fchmod, fstat, futimens, linkat, mkdirat, openat, readlinkat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Builder, Entry, EntryType, Header};
use tokio::task::spawn_blocking;

use super::pieces::{Ended, Frames, Pieces, deaf, pass_in};
use super::{Gone, Line, Target, internal, invalid, opened};
use crate::exec::Tools;
use crate::image::root::Root;

/// Directories deeper than this are refused: each is held open on the way down.
const DEPTH_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 4096;
const CHANGED: &str = "it changed while it was copied";

/// Sends what is at a path, as an archive.
pub async fn copy_from(tools: &Tools, target: &Target, asked: v1::RelayCopyFrom, line: &mut Line) -> Result<(), ApiError> {
    let root = target.root()?;
    if !is_plain(&asked.root_name) && asked.root_name != "." {
        return Err(invalid(&format!("{:?} cannot be the name of a copy", asked.root_name)));
    }
    let found = find(&root, &asked).map_err(|error| no_path(target, &asked.path, &error))?;
    if line.say(opened(tools, target)).await.is_err() {
        return Ok(());
    }
    let (speaker, line) = line.split();
    let sender = speaker.clone();
    let packing = spawn_blocking(move || pack(found, &asked.root_name, Frames::new(sender)));
    let packed = tokio::select! {
        packed = packing => packed.map_err(|error| internal("pack the files", &error))?,
        // The packer meets the closed line by itself.
        Gone = deaf(line) => return Ok(()),
    };
    packed.map_err(|why| ApiError::new(ErrorCode::Conflict, format!("copy from container {}: {why}", target.container.name)))?;
    // A user who has gone misses nothing.
    let _ = speaker.say(relay_output::Kind::Exit(v1::RelayExit { code: 0 })).await;
    Ok(())
}

/// Unpacks the archive that the user sends.
pub async fn copy_to(tools: &Tools, target: &Target, asked: v1::RelayCopyTo, line: &mut Line) -> Result<(), ApiError> {
    let root = target.root()?;
    let landing = landing(&root, &asked).map_err(|why| why.of(target, &asked.path))?;
    let said = [opened(tools, target), relay_output::Kind::Landing(v1::RelayLanding { root_name: landing.root_name.clone() })];
    for kind in said {
        if line.say(kind).await.is_err() {
            return Ok(());
        }
    }
    let (sender, pieces) = Pieces::new();
    let unpacking = spawn_blocking(move || unpack(&root, &landing, pieces));
    let (speaker, line) = line.split();
    let unpacked = tokio::select! {
        unpacked = unpacking => unpacked.map_err(|error| internal("unpack the files", &error))?,
        // The unpacker meets the end of what came. Without a limit of time it ends only with the user.
        Ended::Gone | Ended::Stalled = pass_in(line, sender, None) => return Ok(()),
    };
    unpacked.map_err(|why| ApiError::new(ErrorCode::Conflict, format!("copy to container {}: {why}", target.container.name)))?;
    let _ = speaker.say(relay_output::Kind::Exit(v1::RelayExit { code: 0 })).await;
    Ok(())
}

fn no_path(target: &Target, path: &str, error: &io::Error) -> ApiError {
    let code = if error.kind() == io::ErrorKind::NotFound { ErrorCode::NotFound } else { ErrorCode::Conflict };
    ApiError::new(code, format!("{path} in container {}: {}", target.container.name, words(error)))
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => "there is no such file".into(),
        Some(Errno::LOOP) => "a link of /proc, or too many links: copying follows none of them".into(),
        _ => error.to_string(),
    }
}

/// One name of a path, no way up or down.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\0'])
}

/// What is to be packed: a name in a directory, or a directory itself.
struct Found {
    dir: OwnedFd,
    name: Option<OsString>,
}

fn find(root: &Root, asked: &v1::RelayCopyFrom) -> io::Result<Found> {
    let path = Path::new(&asked.path);
    let (parent, name) = split(&asked.path);
    // A path that ends so means the directory that it leads to, also over a link; and the contents are those of a directory.
    let as_dir = name.is_empty() || name == ".." || name == "." || asked.path.ends_with('/') || asked.path.ends_with("/.");
    if as_dir || asked.root_name == "." {
        return Ok(Found { dir: root.dir_readable(path)?, name: None });
    }
    let dir = root.dir(Path::new(parent))?;
    let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if asked.follow_link && kind(&stat) == FileType::Symlink {
        let followed = root.find(path)?;
        if kind(&fstat(&followed)?) == FileType::Directory {
            return Ok(Found { dir: root.dir_readable(path)?, name: None });
        }
        return followed_file(root, path);
    }
    Ok(Found { dir, name: Some(name.into()) })
}

/// Follows links by hand inside the root, so that the last name is the file's own.
fn followed_file(root: &Root, path: &Path) -> io::Result<Found> {
    const LINKS_MAX: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let (parent, name) = (path.parent().unwrap_or(Path::new("/")).to_path_buf(), path.file_name().unwrap_or_default().to_owned());
        let dir = root.dir(&parent)?;
        if kind(&statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?) != FileType::Symlink {
            return Ok(Found { dir, name: Some(name) });
        }
        let to = readlinkat(&dir, &name, Vec::new())?;
        path = parent.join(OsStr::from_bytes(to.as_bytes()));
    }
    Err(Errno::LOOP.into())
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn pack(found: Found, root_name: &str, frames: Frames) -> Result<(), String> {
    let mut archive = Builder::new(frames);
    let name = Path::new(root_name);
    match &found.name {
        None => pack_dir(&mut archive, found.dir.as_fd(), name, 0)?,
        Some(from) => pack_one(&mut archive, found.dir.as_fd(), from, name, 0)?,
    }
    let done = archive.into_inner().and_then(|mut frames| frames.flush());
    done.map_err(|error| error.to_string())
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    // Before 1970 there is nothing in a tar header.
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

fn pack_dir(archive: &mut Builder<Frames>, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if depth > DEPTH_MAX {
        return Err(failed(&format!("directories deeper than {DEPTH_MAX}")));
    }
    let stat = fstat(dir).map_err(|error| failed(&error))?;
    let mut own = header(&stat, EntryType::Directory);
    archive.append_data(&mut own, path, io::empty()).map_err(|error| failed(&error))?;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    names.iter().try_for_each(|name| pack_one(archive, dir, name, &path.join(name), depth))
}

fn pack_one(archive: &mut Builder<Frames>, dir: BorrowedFd<'_>, name: &OsStr, path: &Path, depth: usize) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        // Gone since the directory was read.
        Err(Errno::NOENT) if depth > 0 => return Ok(()),
        done => done.map_err(|error| failed(&error))?,
    };
    let open = |flags| openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let packed = match kind(&stat) {
        FileType::Directory => {
            let below = open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| failed(&error))?;
            return pack_dir(archive, below.as_fd(), path, depth + 1);
        }
        FileType::RegularFile => {
            // Nonblocking: it may have become a pipe since it was looked at.
            let file = open(OFlags::RDONLY | OFlags::NONBLOCK).map_err(|error| failed(&error))?;
            let stat = fstat(&file).map_err(|error| failed(&error))?;
            if kind(&stat) != FileType::RegularFile {
                return Err(failed(&CHANGED));
            }
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let mut header = header(&stat, EntryType::Regular);
            header.set_size(size);
            let mut content = Whole { inner: File::from(file), left: size };
            archive.append_data(&mut header, path, &mut content)
        }
        FileType::Symlink => {
            let to = readlinkat(dir, name, Vec::new()).map_err(|error| failed(&error))?;
            archive.append_link(&mut header(&stat, EntryType::Symlink), path, OsStr::from_bytes(to.as_bytes()))
        }
        FileType::Fifo => archive.append_data(&mut header(&stat, EntryType::Fifo), path, io::empty()),
        FileType::CharacterDevice | FileType::BlockDevice => {
            let is_char = kind(&stat) == FileType::CharacterDevice;
            let mut header = header(&stat, if is_char { EntryType::Char } else { EntryType::Block });
            let numbers = [rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)];
            let set = header.set_device_major(numbers[0]).and_then(|()| header.set_device_minor(numbers[1]));
            set.and_then(|()| archive.append_data(&mut header, path, io::empty()))
        }
        // A socket is nothing without the process that listens on it.
        FileType::Socket | FileType::Unknown => Ok(()),
    };
    packed.map_err(|error| failed(&error))
}

/// Exactly as many bytes as the archive was told.
struct Whole {
    inner: File,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.left -= count as u64;
        if count == 0 { Err(io::Error::other(CHANGED)) } else { Ok(count) }
    }
}

/// Why nothing can be copied to a path.
enum NoLanding {
    Io(io::Error),
    Refused(String),
}

impl NoLanding {
    fn of(self, target: &Target, path: &str) -> ApiError {
        match self {
            Self::Io(error) => no_path(target, path, &error),
            Self::Refused(why) => {
                let message = format!("container {}: {why}", target.container.name);
                ApiError::new(ErrorCode::Conflict, message).hint("make the directory first, or choose another path")
            }
        }
    }
}

fn landing(root: &Root, asked: &v1::RelayCopyTo) -> Result<Landing, NoLanding> {
    let there = match root.find(Path::new(&asked.path)).and_then(|file| Ok(fstat(&file)?)) {
        Ok(stat) if kind(&stat) == FileType::Directory => Destination::Directory,
        Ok(_) => Destination::File,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Destination::Absent,
        Err(error) => return Err(NoLanding::Io(error)),
    };
    if asked.archive {
        return match there {
            Destination::Directory => Ok(Landing { directory: asked.path.clone(), root_name: String::new() }),
            Destination::Absent => Err(NoLanding::Refused(format!("there is no directory {}", asked.path))),
            Destination::File => Err(NoLanding::Refused(format!("{} is no directory", asked.path))),
        };
    }
    if !is_plain(&asked.source_name) && !asked.contents_only {
        return Err(NoLanding::Refused(format!("{:?} cannot be the name of a copy", asked.source_name)));
    }
    let source = Source { name: &asked.source_name, is_dir: asked.source_is_dir, contents_only: asked.contents_only };
    let landing = land(source, &asked.path, there).map_err(|error| NoLanding::Refused(error.to_string()))?;
    match root.dir(Path::new(&landing.directory)) {
        Ok(_) => Ok(landing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(NoLanding::Refused(format!("there is no directory {}", landing.directory)))
        }
        Err(error) => Err(NoLanding::Io(error)),
    }
}

fn unpack(root: &Root, landing: &Landing, pieces: Pieces) -> Result<(), String> {
    let mut archive = Archive::new(pieces);
    let mut dirs = Vec::new();
    for entry in archive.entries().map_err(|error| error.to_string())? {
        let mut entry = entry.map_err(|error| error.to_string())?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        unpack_one(root, landing, &mut entry, &mut dirs).map_err(|why| format!("{shown}: {why}"))?;
    }
    // Last: what is put into a directory changes its time, and its mode may forbid putting anything there.
    for (dir, mode, times) in dirs.into_iter().rev() {
        fchmod(&dir, mode).and_then(|()| futimens(&dir, &times)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

type Dirs = Vec<(OwnedFd, Mode, Timestamps)>;

fn unpack_one<R: Read>(root: &Root, landing: &Landing, entry: &mut Entry<'_, R>, dirs: &mut Dirs) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let path = inside(&entry.path_bytes())?;
    let kind_there = entry.header().entry_type();
    if kind_there == EntryType::XGlobalHeader {
        return Ok(());
    }
    let is_first = path == Path::new(&landing.root_name);
    let mode = Mode::from_raw_mode(entry.header().mode().map_err(|error| said(&error))? & 0o7777);
    let seconds = i64::try_from(entry.header().mtime().map_err(|error| said(&error))?).map_err(|error| said(&error))?;
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let base = Path::new(&landing.directory);
    let Some(name) = path.file_name() else {
        // The directory that is filled stays as it is.
        return if kind_there == EntryType::Directory { Ok(()) } else { Err("only a directory can be the whole".into()) };
    };
    let dir = root.make_dir(&base.join(path.parent().unwrap_or(Path::new("")))).map_err(|error| words(&error))?;
    match kind_there {
        EntryType::Directory => {
            match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    dirs.push((openat(&dir, name, flags, Mode::empty()).map_err(|error| said(&error))?, mode, times));
                    if dirs.len() > DIRS_HELD_MAX {
                        // The oldest are complete by now in every archive that is in order.
                        let (dir, mode, times) = dirs.remove(0);
                        fchmod(&dir, mode).and_then(|()| futimens(&dir, &times)).map_err(|error| said(&error))?;
                    }
                    Ok(())
                }
                // Also over a link of the container to one of its directories.
                Err(Errno::EXIST) => root.dir(&base.join(&path)).map(drop).map_err(|_| "something else is there already".to_owned()),
                Err(error) => Err(said(&error)),
            }
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = make_file(root, &dir, name, is_first.then(|| base.join(&path)).as_deref()).map_err(|error| words(&error))?;
            io::copy(entry, &mut file).map_err(|error| said(&error))?;
            fchmod(&file, mode).and_then(|()| futimens(&file, &times)).map_err(|error| said(&error))
        }
        EntryType::Symlink => {
            let to = entry.link_name_bytes().ok_or("a link without a target")?.into_owned();
            make_way(&dir, name).map_err(|error| words(&error))?;
            symlinkat(OsStr::from_bytes(&to), &dir, name).map_err(|error| said(&error))
        }
        EntryType::Link => {
            let to = inside(&entry.link_name_bytes().ok_or("a link without a target")?)?;
            let (to_dir, to_name) = (to.parent().unwrap_or(Path::new("")), to.file_name().ok_or("a hard link to the directory itself")?);
            let to_dir = root.dir(&base.join(to_dir)).map_err(|error| words(&error))?;
            make_way(&dir, name).map_err(|error| words(&error))?;
            linkat(&to_dir, to_name, &dir, name, AtFlags::empty()).map_err(|error| said(&error))
        }
        other => Err(format!("entries of type {other:?} are not copied into containers")),
    }
}

/// So many directories wait for their times; a descriptor each.
const DIRS_HELD_MAX: usize = 200;

/// A new file in place of what is there. The copy's own name may be a link of the container to one of its files, or a file that is mounted
/// and cannot be replaced: that file is written.
fn make_file(root: &Root, dir: &OwnedFd, name: &OsStr, whole: Option<&Path>) -> io::Result<File> {
    if let Some(path) = whole {
        match root.writable(path) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    make_way(dir, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?))
}

/// Removes what has the name; a directory is not removed for the sake of a file.
fn make_way(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The path of an entry without `.` and a leading `/`; one that leads upwards is refused.
fn inside(bytes: &[u8]) -> Result<PathBuf, String> {
    if bytes.len() > PATH_BYTES_MAX || bytes.contains(&0) {
        return Err(format!("a path has {PATH_BYTES_MAX} bytes at most, and no NUL"));
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
