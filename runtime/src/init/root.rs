//! The container's root, and paths in it that cannot lead out.
//!
//! In: absolute paths as a configuration names them. Out: `O_PATH` descriptors below the root, made on the way if missing. Never follows a
//! symbolic link out of the root: each path is resolved by openat2(2) with `RESOLVE_IN_ROOT`, and what is made is made by name in a
//! directory that was so resolved, also while another container swaps parts of the path (CVE-2021-30465).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Failure;

/// The mount that becomes the container's `/`.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// As the kernel's own limit on links in one path.
const LINKS_MAX: usize = 40;
const RACES_MAX: usize = 128;

impl Root {
    pub fn new(mount: OwnedFd) -> Self {
        Self(mount)
    }

    /// Finds a path, following links as a process in the container would.
    pub fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, ResolveFlags::empty())
    }

    /// Finds a path no part of which is a link.
    pub fn find_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, ResolveFlags::NO_SYMLINKS)
    }

    /// Finds something to mount a file on at a path no part of which is a link, or makes an empty file.
    pub fn make_plain_file(&self, path: &Path) -> Result<OwnedFd, Failure> {
        match self.find_plain(path) {
            Ok(found) if is_directory(found.as_fd())? => Err(Failure { errno: libc::EISDIR, detail: String::new() }),
            Ok(found) => Ok(found),
            Err(Errno::NOENT) => {
                let (parent, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
                Kind::File.make_in(self.make_plain_directory(parent)?.0.as_fd(), name, true)?;
                Ok(self.find_plain(path)?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Finds or makes a directory; and whether it was there.
    pub fn make_directory(&self, path: &Path) -> Result<(OwnedFd, bool), Failure> {
        match self.find(path) {
            Ok(found) if is_directory(found.as_fd())? => Ok((found, true)),
            Ok(_) => Err(Failure { errno: libc::ENOTDIR, detail: String::new() }),
            Err(Errno::NOENT) => Ok((self.make(path, Kind::Directory)?, false)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Finds a directory no part of which is a link, or makes it; and whether it was there.
    pub fn make_plain_directory(&self, path: &Path) -> Result<(OwnedFd, bool), Failure> {
        match self.open(path, ResolveFlags::NO_SYMLINKS) {
            Ok(found) => Ok((found, true)),
            Err(Errno::NOENT) => Ok((self.make(path, Kind::Directory)?, false)),
            Err(Errno::LOOP) => {
                Err(Failure::refused("a part of the path is a symbolic link, and this kind of mount needs a plain directory"))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Finds something to mount a file on, or makes an empty file.
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd, Failure> {
        match self.find(path) {
            Ok(found) if is_directory(found.as_fd())? => Err(Failure { errno: libc::EISDIR, detail: String::new() }),
            Ok(found) => Ok(found),
            Err(Errno::NOENT) => Ok(self.make(path, Kind::File)?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The directory a path lies in, made if missing, and the last name.
    pub fn make_parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Failure> {
        let name = path.file_name().ok_or_else(|| Failure::refused("the path has no last name"))?;
        Ok((self.make_directory(path.parent().unwrap_or(Path::new("/")))?.0, name))
    }

    fn open(&self, path: &Path, more: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        for _ in 0..RACES_MAX {
            // EAGAIN: something was renamed meanwhile, and the kernel cannot tell whether `..` still leads inside.
            match rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Walks a path whose end is missing, making what is missing. Links are resolved here, dangling ones too: `/etc/resolv.conf` often
    /// leads to a file that only a mount brings into being.
    fn make(&self, path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
        let mut done = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            let parent = self.open(&done, ResolveFlags::NO_SYMLINKS)?;
            let last = rest.is_empty();
            match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(&parent, &name, Vec::new())?;
                    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    for part in names(target).into_iter().rev() {
                        rest.push_front(part);
                    }
                    continue;
                }
                Ok(_) => {}
                Err(Errno::NOENT) => kind.make_in(parent.as_fd(), &name, last)?,
                Err(errno) => return Err(errno),
            }
            done.push(name);
        }
        self.open(&done, ResolveFlags::NO_SYMLINKS)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl Kind {
    fn make_in(self, parent: BorrowedFd<'_>, name: &OsStr, last: bool) -> Result<(), Errno> {
        let made = if last && self == Self::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        } else {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        };
        // Another container with the same volume may have made it first.
        if made == Err(Errno::EXIST) { Ok(()) } else { made }
    }
}

/// Whether a descriptor is a directory.
pub fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}
