//! Keeps containers from overwriting this program on the host (CVE-2019-5736).
//!
//! A container that executes `/proc/self/exe` before its own program, or looks at `/proc/PID/exe` of a process that is still this program,
//! holds the host's binary, and as root it could write to it. So whatever makes containers first executes itself again from a read-only
//! clone of the mount it lies on. The clone is attached nowhere: nobody can make it writable again. That costs one execve(2), and no
//! copy in memory as a sealed memfd would.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
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
    let clone =
        rustix::mount::open_tree(&own, "", flags).context("clone the mount of this program (CAP_SYS_ADMIN and Linux 5.12 are needed)")?;
    sys::mount_setattr(clone.as_fd(), false, attr::RDONLY, 0, sys::propagation::NONE).context("make the clone read-only")?;
    let args = std::env::args_os().map(|text| CString::new(text.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let env = std::env::vars_os()
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')))
        .collect::<Result<Vec<_>, _>>()?;
    Err(sys::execute_file(clone.as_fd(), &args, &env)).context("execute this program from its read-only clone")
}
