//! Copies what a tmpfs covers into it (the mount option `tmpcopyup`, which is runc's).
//!
//! In: two directories by descriptor. Out: the same files, directories, links and nodes, with their owners, modes, times and extended
//! attributes. Follows no link: everything is opened by name in a directory that is open already.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Doing, Failure};

/// As deep as a path of the kernel's can be.
const DEPTH_MAX: usize = 2048;
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Copies all that is in a directory into another, and what the directory itself looks like.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let from = rustix::fs::openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    directory(&from, to, DEPTH_MAX)
}

fn directory(from: &OwnedFd, to: BorrowedFd<'_>, depth: usize) -> Result<(), Failure> {
    let depth = depth.checked_sub(1).ok_or_else(|| Failure::refused("it is too deep"))?;
    let stat = rustix::fs::fstat(from)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from.as_fd(), to, name, depth).doing(|| name.to_string_lossy().into_owned())?;
        }
    }
    let to = rustix::fs::openat(to, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    look_like(from.as_fd(), to.as_fd(), &stat)
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Failure> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = |flags: OFlags| rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, name, flags, Mode::empty())?;
            directory(&open(OFlags::RDONLY | OFlags::DIRECTORY)?, made.as_fd(), depth)
        }
        FileType::RegularFile => {
            let source = open(OFlags::RDONLY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))?;
            io::copy(&mut std::fs::File::from(source.try_clone()?), &mut std::fs::File::from(made.try_clone()?))?;
            look_like(source.as_fd(), made.as_fd(), &stat)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
            own(to, name, &stat)
        }
        kind => {
            rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
            own(to, name, &stat)
        }
    }
}

fn own(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner before mode, which a change of owner cuts; times last.
fn look_like(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Failure> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    extended_attributes(from, to)?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

/// Those a tmpfs can hold.
fn extended_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut value = vec![0; XATTR_BYTES_MAX];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno).doing(|| name.to_string_lossy().into_owned()),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps { last_access: time(stat.st_atime, stat.st_atime_nsec), last_modification: time(stat.st_mtime, stat.st_mtime_nsec) }
}
