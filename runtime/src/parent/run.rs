//! `run`: create, start, wait and delete in one call; signals sent to it go to the container.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{WaitId, WaitIdOptions};

use super::{CreateOptions, Created, create, delete, start};
use crate::core::signal;
use crate::sys;

const EXIT_BY_SIGNAL: i32 = 128;

/// Runs a container; returns its exit code, 128 and the signal for one that was killed, or 0 at once with `detach`.
pub fn run(root: &Path, id: &str, options: &CreateOptions, detach: bool, notes: impl Fn(&[String])) -> Result<i32> {
    // Stop, kill and faults cannot or must not be held back.
    let kept = [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGTRAP];
    let signals: Vec<i32> = (1..=signal::LAST).filter(|signal| !kept.contains(signal) && !matches!(signal, 32 | 33)).collect();
    if !detach {
        sys::block_signals(&signals).context("hold signals back")?;
    }
    let created = create(root, id, options)?;
    notes(&created.notes);
    let ended = start(root, id).and_then(|()| if detach { Ok(0) } else { wait(&created, &signals) });
    if detach && ended.is_ok() {
        return ended;
    }
    let deleted = delete(root, id, true);
    let code = match ended {
        Ok(code) => code,
        Err(error) => {
            notes(&deleted.unwrap_or_default());
            return Err(error);
        }
    };
    notes(&deleted?);
    Ok(code)
}

fn wait(created: &Created, signals: &[i32]) -> Result<i32> {
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = rustix::process::waitid(WaitId::PidFd(created.pidfd.as_fd()), options).context("wait for the container")?;
        if let Some(status) = ended {
            let by_signal = status.terminating_signal().map(|signal| EXIT_BY_SIGNAL + signal);
            return Ok(status.exit_status().or(by_signal).unwrap_or(EXIT_BY_SIGNAL));
        }
        let signal = sys::wait_signal(signals).context("wait for a signal")?;
        if signal != libc::SIGCHLD {
            // It may have ended meanwhile; the next turn tells.
            let _ = sys::send_signal(created.pidfd.as_fd(), signal);
        }
    }
}
