//! `run`: create, start, wait and delete in one call; signals sent to it go to the container.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;

use super::foreground::Foreground;
use super::{CreateOptions, Created, create, delete, start};

/// Runs a container; returns its exit code, 128 and the signal for one that was killed, or 0 at once when it is not to be waited for.
/// `keep`: it is left as it is when it has ended. `warn` hears of poststop hooks that failed.
pub fn run(
    root: &Path,
    id: &str,
    options: &CreateOptions,
    keep: bool,
    tell: impl FnOnce(&Created),
    warn: impl FnOnce(&[String]),
) -> Result<i32> {
    let foreground = if options.foreground { Some(Foreground::begin()?) } else { None };
    let created = create(root, id, options)?;
    tell(&created);
    let detached = foreground.is_none();
    let wait = |mut foreground: Foreground| foreground.wait(created.pidfd.as_fd(), created.terminal);
    let ended = start(root, id).and_then(|()| foreground.map_or(Ok(0), wait));
    if ended.is_ok() && (detached || keep) {
        return ended;
    }
    let deleted = delete(root, id, true);
    warn(deleted.as_deref().unwrap_or_default());
    let code = ended?;
    deleted.map(|_| code)
}
