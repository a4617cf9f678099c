//! `run`: create, start, wait and delete in one call; signals sent to it go to the container.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;

use super::foreground::Foreground;
use super::{CreateOptions, create, delete, start};

/// Runs a container; returns its exit code, 128 and the signal for one that was killed, or 0 at once with `detach`.
pub fn run(root: &Path, id: &str, options: &CreateOptions, detach: bool, notes: impl FnOnce(&[String])) -> Result<i32> {
    let foreground = if detach { None } else { Some(Foreground::begin()?) };
    let created = create(root, id, options)?;
    notes(&created.notes);
    let ended = start(root, id).and_then(|()| foreground.map_or(Ok(0), |mut foreground| foreground.wait(created.pidfd.as_fd())));
    if detach && ended.is_ok() {
        return ended;
    }
    let deleted = delete(root, id, true);
    let code = ended?;
    deleted.map(|()| code)
}
