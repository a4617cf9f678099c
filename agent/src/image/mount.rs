//! A container's root file system: an overlay of the image's layers under a directory of its own.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

/// Where the parts of one overlay are.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// The lowest first.
    pub layers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub target: PathBuf,
}

impl Overlay {
    /// Mounts it; what the upper directory held is gone, so every call gives the image's files as they are.
    pub fn mount(&self) -> io::Result<()> {
        unmount_all(&self.target)?;
        for dir in [&self.upper, &self.work] {
            remove(dir)?;
            fs::create_dir_all(dir)?;
        }
        fs::create_dir_all(&self.target)?;
        match self.mount_by_handles() {
            // Before Linux 6.8 layers cannot be given one at a time.
            Err(Errno::INVAL) => self.mount_by_options(),
            done => Ok(done?),
        }
    }

    fn mount_by_handles(&self) -> rustix::io::Result<()> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&overlay, "source", "overlay")?;
        for layer in self.layers.iter().rev() {
            fsconfig_set_string(&overlay, "lowerdir+", layer)?;
        }
        fsconfig_set_string(&overlay, "upperdir", &self.upper)?;
        fsconfig_set_string(&overlay, "workdir", &self.work)?;
        // What a container wrote need not outlive a power cut: without this each unmount waits for the whole disk.
        fsconfig_set_flag(&overlay, "volatile")?;
        fsconfig_create(&overlay)?;
        let tree = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(&tree, "", CWD, &self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    fn mount_by_options(&self) -> io::Result<()> {
        let mut options = b"volatile,upperdir=".to_vec();
        options.extend(self.upper.as_os_str().as_bytes());
        options.extend(b",workdir=");
        options.extend(self.work.as_os_str().as_bytes());
        options.extend(b",lowerdir=");
        let layers: Vec<&[u8]> = self.layers.iter().rev().map(|layer| layer.as_os_str().as_bytes()).collect();
        options.extend(layers.join(&b':'));
        if options.len() > 4000 {
            let layers = self.layers.len();
            return Err(io::Error::other(format!("{layers} layers are more than this kernel takes in one mount; Linux 6.8 takes them")));
        }
        let options = CString::new(options).map_err(|_| io::Error::other("a path holds a NUL"))?;
        Ok(mount("overlay", &self.target, "overlay", MountFlags::empty(), options.as_c_str())?)
    }
}

/// Unmounts whatever is mounted at `target`; not an error when nothing is.
pub fn unmount_all(target: &Path) -> io::Result<()> {
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: it is not a mount point.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a tree that may not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
