//! Paths inside a directory that was filled by strangers: no component, link or absolute path leads out of it (openat2,
//! `RESOLVE_IN_ROOT`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

/// A file that is read as text may not be larger.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A directory that is the root for every path resolved through it.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The directory at `path`, which is trusted.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// The directory `path`, links followed inside the root.
    pub fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The same for reading or for attributes, which a mere path handle does not allow.
    pub fn dir_readable(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Whatever is at `path`, as a mere path handle, links followed inside the root.
    pub fn find(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH)
    }

    /// The regular file `path`, emptied for writing, links followed inside the root.
    pub fn writable(&self, path: &Path) -> io::Result<File> {
        let file = self.resolve(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let file = File::from(file);
        file.set_len(0)?;
        Ok(file)
    }

    /// The directory `path`; what is missing on the way is made, owned by root, mode 0755.
    pub fn make_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mut walked = PathBuf::new();
        let mut at = self.dir(Path::new("."))?;
        for name in path.components().filter_map(normal) {
            walked.push(name);
            at = match self.dir(&walked) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(at.as_fd(), name, Mode::from_raw_mode(0o755)) {
                        // A link that leads nowhere, or another worker that was faster; the next look tells.
                        Ok(()) | Err(Errno::EXIST) => self.dir(&walked)?,
                        Err(error) => return Err(error.into()),
                    }
                }
                done => done?,
            };
        }
        Ok(at)
    }

    /// The text of a regular file; `None` when there is none.
    pub fn read_text(&self, path: &Path) -> io::Result<Option<String>> {
        let file = match self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            done => done?,
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(openat2(self.0.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn normal(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    }
}
