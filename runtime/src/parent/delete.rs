//! `delete`: removes what `create` made (runtime.md "Delete").
//!
//! Goes on past what fails, tells it, and removes the record last: as long as anything is left, `delete --force` can be called again.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{cgroups, hooks, open_process, resctrl};
use crate::core::signal;
use crate::core::status::{Identity, Status};
use crate::state::StateDir;
use crate::sys;

const KILL_WAIT: Duration = Duration::from_secs(10);
const REMOVE_WAIT: Duration = Duration::from_secs(10);

/// Deletes a stopped container; with `force` one in any state, killed first, and none that does not exist. Tells which poststop hooks
/// failed; the container is gone all the same.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<Vec<String>> {
    let dir = StateDir::of(root, id)?;
    if !dir.exists() {
        if force {
            return Ok(Vec::new());
        }
        bail!("container {id} does not exist under {}", root.display());
    }
    let _lock = dir.lock()?;
    let Some(record) = dir.read()? else {
        // `create` was killed before it did anything else.
        return dir.remove().map(|()| Vec::new());
    };
    let status = dir.status(&record)?;
    if status != Status::Stopped && !force {
        bail!("container {id} is {status}: stop it first (`kill {id} KILL`), or use `delete --force {id}`");
    }
    if let Some(init) = &record.init {
        kill(init, &record.cgroups)?;
    }
    if !cgroups::remove_empty(&record.cgroups) {
        // What shares the host's pid namespace, what `create` left unrecorded, and what is frozen.
        cgroups::kill_all(&record.cgroups, KILL_WAIT)?;
    }
    cgroups::remove(&record.cgroups, &record.cgroup_parents, REMOVE_WAIT)?;
    record.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl::remove(&resctrl::Mounted, resctrl))?;
    // Before the record is: killed between the two, a second call runs them again rather than nobody ever.
    let failed = hooks::after(&record);
    dir.remove()?;
    Ok(failed)
}

fn kill(init: &Identity, groups: &[std::path::PathBuf]) -> Result<()> {
    let Some(pidfd) = open_process(init)? else { return Ok(()) };
    // An error means that it has just died.
    let _ = sys::send_signal(pidfd.as_fd(), signal::KILL);
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let timeout = |wait: Duration| Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: i64::from(wait.subsec_nanos()) };
    if rustix::event::poll(&mut fds, Some(&timeout(Duration::from_millis(200)))).context("wait for the container's process")? > 0 {
        return Ok(());
    }
    // A frozen one dies when it is thawed.
    cgroups::kill_all(groups, KILL_WAIT)
}
