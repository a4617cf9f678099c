//! Network namespaces: made and entered in threads of their own, so that the rest of the process never leaves the host's; pinned by bind
//! mounts of `/proc/thread-self/ns/net`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::KernelError;

/// The calling thread's namespace, as a file.
const OWN: &str = "/proc/thread-self/ns/net";

/// Whether `path` is the pin of a namespace (and not the empty file that is left when its mount went with a reboot).
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Makes a namespace, runs `prepare` in it, and pins it at `path`. What is pinned there already stays and is not prepared again.
pub fn create<T: Send>(path: &Path, prepare: impl FnOnce() -> Result<T, KernelError> + Send) -> Result<Option<T>, KernelError> {
    if is_pinned(path) {
        return Ok(None);
    }
    let failed = |source: io::Error| KernelError::Namespace { path: path.to_path_buf(), source };
    File::create(path).map_err(failed)?;
    let made = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            let prepared = prepare()?;
            let none: Option<&str> = None;
            mount(Some(OWN), path, none, MsFlags::MS_BIND, none).map_err(|errno| failed(errno.into()))?;
            Ok(prepared)
        });
        thread.join().expect("the thread returns its errors")
    });
    if made.is_err() {
        remove(path)?;
    }
    made.map(Some)
}

/// Runs `work` in the namespace pinned at `path`.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, KernelError> + Send) -> Result<T, KernelError> {
    let failed = |source: io::Error| KernelError::Namespace { path: path.to_path_buf(), source };
    let namespace = File::open(path).map_err(failed)?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            work()
        });
        thread.join().expect("the thread returns its errors")
    })
}

/// Takes the pin at `path` away; the kernel ends the namespace when nothing else holds it. Not an error when there is none.
pub fn remove(path: &Path) -> Result<(), KernelError> {
    let failed = |source: io::Error| KernelError::Namespace { path: path.to_path_buf(), source };
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Sets a sysctl under `/proc/sys/net` in the calling thread's namespace; `optional` ones may be missing from the kernel.
pub fn set_sysctl(name: &str, value: &str, optional: bool) -> Result<(), KernelError> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && optional => Ok(()),
        Err(source) => Err(KernelError::Sysctl { path, source }),
        Ok(()) => Ok(()),
    }
}

/// Whether the kernel has IPv6.
pub fn has_six() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

/// A sysctl's value under `/proc/sys/net` in the calling thread's namespace.
pub fn sysctl(name: &str) -> Result<String, KernelError> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|source| KernelError::Sysctl { path, source })
}
