//! `kill`: sends a signal to the container's first process, or to all of its processes (runtime.md "Kill").

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::pause::thaw;
use super::{existing, members, open_process};
use crate::core::status::Status;
use crate::sys;

/// Sends a signal. Without a pid namespace of its own a container's processes can outlive the first one: `all` reaches them.
pub fn kill(root: &Path, id: &str, signal: i32, all: bool) -> Result<()> {
    let (dir, record) = existing(root, id)?;
    if all {
        return members::signal(&record, signal);
    }
    let pidfd = record.init.as_ref().map(open_process).transpose()?.flatten();
    match (pidfd, dir.status(&record)?) {
        (Some(pidfd), Status::Created | Status::Running | Status::Paused) => {
            sys::send_signal(pidfd.as_fd(), signal).with_context(|| format!("send signal {signal} to container {id}"))?;
            // What is frozen by version 1 dies only when it is thawed.
            if signal == crate::core::signal::KILL { thaw(&record.cgroups) } else { Ok(()) }
        }
        (_, status) => bail!("container {id} is {status}, not running: nothing to send signal {signal} to"),
    }
}
