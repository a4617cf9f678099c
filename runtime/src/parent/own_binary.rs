//! Keeps containers from overwriting this program on the host (CVE-2019-5736).
//!
//! A container that executes `/proc/self/exe` before its own program, or looks at `/proc/PID/exe` of a process that is still this program,
//! holds the host's binary, and as root it could write to it. So whatever makes containers first executes itself again from a read-only
//! clone of the mount it lies on. The clone is attached nowhere: nobody can make it writable again. That costs one execve(2), and no
//! copy in memory as a sealed memfd would; a user who may not clone mounts gets that copy. Where `sys/seal` knows the processor, it has done
//! it before; here it is made sure of.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::core::mount_options::attr;
use crate::sys;

/// Returns when this program runs from a read-only mount, which it then shares with every container's process before its exec.
pub fn protect() -> Result<()> {
    const SELF: &str = "/proc/self/exe";
    let own = rustix::fs::open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open /proc/self/exe")?;
    let mount = rustix::fs::fstatvfs(&own).context("look at the mount of /proc/self/exe")?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = match rustix::mount::open_tree(&own, "", flags) {
        Err(Errno::PERM) => match sealed_copy(SELF)? {
            Some(copy) => copy,
            None => return Ok(()),
        },
        clone => {
            let clone = clone.context("clone the mount of this program (Linux 5.12 is needed)")?;
            sys::mount_setattr(clone.as_fd(), false, attr::RDONLY, 0, sys::propagation::NONE).context("make the clone read-only")?;
            clone
        }
    };
    let args = std::env::args_os().map(|text| CString::new(text.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let env = std::env::vars_os()
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect::<Result<Vec<_>, _>>()?;
    Err(sys::execute_file(clone.as_fd(), &args, &env)).context("execute this program from its read-only clone")
}

/// A copy in memory that nobody can write, for a user who may not clone mounts; `None` when this program runs from one.
fn sealed_copy(own: &str) -> Result<Option<OwnedFd>> {
    const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);
    let mut program = File::open(own).with_context(|| format!("open {own}"))?;
    // Only a file in memory has seals.
    if rustix::fs::fcntl_get_seals(&program).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(None);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("rcluster-runtime", flags).context("make a file in memory")?);
    std::io::copy(&mut program, &mut copy).context("copy this program into memory")?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).context("seal the copy of this program")?;
    Ok(Some(copy.into()))
}
