//! What the parent does for a container with a user namespace: maps its ids and copies the mounts it cannot reach (user_namespaces(7)).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions, getegid, geteuid};

use crate::core::check::{IdMapping, IdMappings};
use crate::core::plan::{IdmapBy, Tree, TreeIdmap};
use crate::init::clone_tree;
use crate::sync::Channel;
use crate::sys::{self, Cloned};

/// Maps the ids of a process that has just made its user namespace.
pub fn map(pid: i32, ids: &IdMappings) -> Result<()> {
    if !geteuid().is_root() {
        return map_as_user(pid, ids);
    }
    write(pid, "uid_map", &ids.users).context("uidMappings")?;
    write(pid, "gid_map", &ids.groups).context("gidMappings")
}

/// Without privileges the kernel maps the caller's own ids and nothing else, and with groups denied (user_namespaces(7)); more is mapped
/// by the programs newuidmap and newgidmap, which hold the privilege and know what `/etc/subuid` grants (newuidmap(1)).
fn map_as_user(pid: i32, ids: &IdMappings) -> Result<()> {
    let own = |ranges: &[IdMapping], id: u32| matches!(ranges, [only] if only.host == id && only.size == 1);
    if own(&ids.users, geteuid().as_raw()) && own(&ids.groups, getegid().as_raw()) {
        let path = format!("/proc/{pid}/setgroups");
        std::fs::write(&path, "deny").with_context(|| format!("write {path}"))?;
        write(pid, "uid_map", &ids.users).context("uidMappings")?;
        return write(pid, "gid_map", &ids.groups).context("gidMappings");
    }
    for (field, program, ranges) in [("uidMappings", "newuidmap", &ids.users), ("gidMappings", "newgidmap", &ids.groups)] {
        let numbers = ranges.iter().flat_map(|range| [range.container, range.host, range.size]).map(|number| number.to_string());
        let output = Command::new(program).arg(pid.to_string()).args(numbers).stdin(Stdio::null()).output().with_context(|| {
            format!("{field}: a user who is not root maps more than its own id by {program}, which is missing: apt-get install uidmap")
        })?;
        if !output.status.success() {
            bail!("{field}: {program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// The kernel takes a mapping in one write only.
fn write(pid: i32, file: &str, ranges: &[IdMapping]) -> Result<()> {
    let text: String = ranges.iter().map(|range| format!("{range}\n")).collect();
    let path = format!("/proc/{pid}/{file}");
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {:?} to {path}", text.trim_end()))
}

/// Copies the mounts at a path.
pub fn tree(tree: &Tree) -> Result<OwnedFd> {
    let Tree { field, source, recursive, cut_off, idmap } = tree;
    let said = || format!("{field}: copy the mount of {}", source.display());
    let source = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(said)?;
    let copy = clone_tree(source.as_fd(), *recursive).map_err(std::io::Error::from).with_context(said)?;
    if *cut_off {
        sys::mount_setattr(copy.as_fd(), true, 0, 0, sys::propagation::SLAVE).with_context(said)?;
    }
    if let Some(TreeIdmap { by, recursive }) = idmap {
        let field = field.replace(".source", ".uidMappings");
        let namespace = match by {
            IdmapBy::Ids(ids) => mapping_namespace(ids).with_context(|| field.clone())?,
            IdmapBy::Joined(path) => File::open(path).with_context(|| format!("linux.namespaces: open {}", path.display()))?.into(),
        };
        let mapped = sys::mount_idmap(copy.as_fd(), *recursive, namespace.as_fd());
        mapped.with_context(|| format!("{field}: map the ids of {} (its file system must allow it)", tree.source.display()))?;
    }
    Ok(copy)
}

/// A user namespace nobody lives in, that a mount's ids can be mapped by.
fn mapping_namespace(ids: &IdMappings) -> Result<OwnedFd> {
    let (channel, child_end) = Channel::pair().context("make a socket pair")?;
    match sys::clone_process(sys::namespace::USER, None).context("make a user namespace")?.0 {
        Cloned::Child => {
            drop(channel);
            // It lasts until the parent has what it wants, or is gone.
            let _ = child_end.receive();
            sys::exit(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(child_end);
            let path = format!("/proc/{pid}/ns/user");
            let opened = map(pid, ids).and_then(|()| Ok(File::open(&path).with_context(|| format!("open {path}"))?.into()));
            drop(channel);
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context("wait for it")?;
            opened
        }
    }
}
