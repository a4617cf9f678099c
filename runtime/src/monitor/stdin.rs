//! A container's standard input that stays open: a FIFO by which whoever may open it writes to the container.
//!
//! The kernel passes the bytes; the monitor only holds the FIFO open, so that the container waits for more when a writer leaves, and does
//! not read the end of its input.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// Makes the FIFO, for root alone. Out: what to hold for as long as the container lives, and the end to read from.
pub fn open(path: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let named = || format!("make the FIFO {}", path.display());
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).with_context(named),
    }
    rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).with_context(named)?;
    // Opened for both, a FIFO waits for nobody; then there is a writer, and the reader waits for nobody either (fifo(7)).
    let held = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).with_context(named)?;
    let end = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).with_context(named)?;
    Ok((held, end))
}
