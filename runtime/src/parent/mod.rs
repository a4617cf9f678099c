//! The verbs, seen from outside the container: they decide through `core`, and prepare, watch and clean up.

mod bundle;
mod cgroups;
mod console;
mod create;
mod delete;
mod events;
mod exec;
mod foreground;
mod hooks;
mod kill;
mod listener;
mod members;
mod net_devices;
mod own_binary;
mod passed;
mod pause;
mod ps;
mod query;
mod resctrl;
mod run;
mod start;
mod talk;
mod update;
mod userns;

pub use create::{CreateOptions, Created, create};
pub use delete::delete;
pub use events::{events, stats};
pub use exec::{ExecOptions, Executed, ProcessSource, exec, execute};
pub use kill::kill;
pub use own_binary::protect;
pub use passed::check as check_passed_fds;
pub use pause::{pause, resume};
pub use ps::{processes, ps};
pub use query::{State, features, list, only_version_2, state};
pub use run::run;
pub use start::start;
pub use update::{Schemas, UpdateSource, update};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::core::status::{Identity, is_alive};
use crate::state::{Record, StateDir, boot_id, observe};

/// Opens the container's process, and not another that took its id.
fn open_process(init: &Identity) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(init.pid) else { return Ok(None) };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    // Looked at after it was opened: if it is ours now, the descriptor is ours for good.
    Ok(is_alive(init, &boot_id()?, observe(init.pid)).then_some(pidfd))
}

/// What a caller may hand over at most, in one file.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Reads what a caller handed over, but not without end: what a file says of its size need not be true.
fn read_bounded(source: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("more than the limit of {FILE_BYTES_MAX} bytes");
    }
    Ok(bytes)
}

/// The record of a container that must exist.
fn existing(root: &Path, id: &str) -> Result<(StateDir, Record)> {
    let dir = StateDir::of(root, id)?;
    match dir.read()? {
        Some(record) => Ok((dir, record)),
        None => bail!("container {id} does not exist under {}: `list` shows those that do", root.display()),
    }
}

/// Now, for records.
fn now() -> Result<String> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(crate::core::time::rfc3339(since.as_secs(), since.subsec_nanos()))
}
