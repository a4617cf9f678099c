//! What the parent does for a container with a user namespace: maps its ids and copies the mounts it cannot reach (user_namespaces(7)).

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::core::check::{IdMapping, IdMappings};
use crate::core::plan::Tree;
use crate::init::clone_tree;
use crate::sys;

/// Maps the ids of a process that has just made its user namespace.
pub fn map(pid: i32, ids: &IdMappings) -> Result<()> {
    write(pid, "uid_map", &ids.users).context("linux.uidMappings")?;
    write(pid, "gid_map", &ids.groups).context("linux.gidMappings")
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
    let Tree { field, source, recursive, cut_off } = tree;
    let said = || format!("{field}: copy the mount of {}", source.display());
    let source = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(said)?;
    let copy = clone_tree(source.as_fd(), *recursive).map_err(std::io::Error::from).with_context(said)?;
    if *cut_off {
        sys::mount_setattr(copy.as_fd(), true, 0, 0, sys::propagation::SLAVE).with_context(said)?;
    }
    Ok(copy)
}
