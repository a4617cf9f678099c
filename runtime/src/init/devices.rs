//! Device nodes, the links beside them, and who owns the standard descriptors (config-linux.md "Devices", runtime-linux.md "Dev symbolic
//! links").

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::root::Root;
use super::{Doing, Failure, mounts};
use crate::core::check::{Device, DeviceKind};

/// Makes a device node; one that is there already must be the very device.
pub fn make(root: &Root, device: &Device) -> Result<(), Failure> {
    let (parent, name) = root.make_parent(&device.path)?;
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(device.mode), number) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == kind && (kind == FileType::Fifo || stat.st_rdev == number) {
                return Ok(());
            }
            Err(Failure { errno: libc::EEXIST, detail: "something else is there".to_owned() })
        }
        made => {
            made?;
            let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            Ok(rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
        }
    }
}

/// Binds the host's node where none may be made; it must be the very device.
pub fn bind(root: &Root, device: &Device) -> Result<(), Failure> {
    let node = rustix::fs::open(&device.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(|| "open the host's".to_owned())?;
    let stat = rustix::fs::fstat(&node)?;
    let kind = if device.kind == DeviceKind::Block { FileType::BlockDevice } else { FileType::CharacterDevice };
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != rustix::fs::makedev(device.major, device.minor) {
        return Err(Failure::refused("the host's is another device, and a user namespace may make none"));
    }
    mounts::cover(root.make_file(&device.path)?.as_fd(), node.as_fd())
}

/// Makes a symbolic link, unless something has that name.
pub fn link(root: &Root, path: &Path, target: &Path) -> Result<(), Failure> {
    let (parent, name) = root.make_parent(path)?;
    match rustix::fs::symlinkat(target, &parent, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Lets the user open `/dev/stdout` and the like, which are the caller's pipes: as runc does, they are given to the user, but for
/// `/dev/null` and those that cannot be given.
pub fn own_stdio(uid: u32) -> Result<(), Failure> {
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).and_then(rustix::fs::fstat).ok();
    for (fd, name) in [(rustix::stdio::stdin(), "0"), (rustix::stdio::stdout(), "1"), (rustix::stdio::stderr(), "2")] {
        let stat = match rustix::fs::fstat(fd.as_fd()) {
            Ok(stat) => stat,
            Err(Errno::BADF) => continue,
            Err(errno) => return Err(errno).doing(|| name.to_owned()),
        };
        let device = matches!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice | FileType::BlockDevice);
        if stat.st_uid == uid || device && null.as_ref().is_some_and(|null| null.st_rdev == stat.st_rdev) {
            continue;
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            Err(errno) => return Err(errno).doing(|| name.to_owned()),
        }
    }
    Ok(())
}
