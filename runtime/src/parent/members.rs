//! The processes of a container, for `ps` and `kill --all`: by its cgroups or, where it has none, by its pid namespace.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags};

use super::{cgroups, open_process};
use crate::core::members::{Process, members};
use crate::core::status::parse_parent;
use crate::state::Record;
use crate::sys;

/// Their ids on the host, rising.
pub fn processes(record: &Record) -> Result<Vec<i32>> {
    if record.cgroups.is_empty() {
        return by_namespace(record);
    }
    let found = record.cgroups.iter().map(|group| cgroups::processes(group)).find(|found| !found.is_empty());
    let mut found = found.unwrap_or_default();
    found.sort_unstable();
    Ok(found)
}

/// Sends a signal to each.
pub fn signal(record: &Record, signal: i32) -> Result<()> {
    if !record.cgroups.is_empty() {
        cgroups::signal_all(&record.cgroups, signal);
        return Ok(());
    }
    for pid in by_namespace(record)? {
        let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        // Looked at once more now that it is held: another may have taken the id.
        if by_namespace(record)?.contains(&pid) {
            // It may end at any time: then there is nothing left to signal.
            let _ = sys::send_signal(pidfd.as_fd(), signal);
        }
    }
    Ok(())
}

fn by_namespace(record: &Record) -> Result<Vec<i32>> {
    let Some(init) = record.init.as_ref().filter(|_| record.own_pid_namespace) else { return Ok(Vec::new()) };
    let own = namespace(init.pid);
    if open_process(init)?.is_none() {
        return Ok(Vec::new());
    }
    let own = own.with_context(|| format!("read /proc/{}/ns/pid", init.pid))?;
    let seen = fs::read_dir("/proc").context("read /proc")?.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let parent = parse_parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Process { pid, parent, is_inside: namespace(pid).is_ok_and(|namespace| namespace == own) })
    });
    Ok(members(&seen.collect::<Vec<_>>()))
}

fn namespace(pid: i32) -> std::io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid"))
}
