//! `start`: lets the container's process through the gate and hears whether its program was executed (runtime.md "Start").

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::talk::why_not_executed;
use super::{existing, hooks, open_process};
use crate::core::hooks::HookKind;
use crate::core::signal;
use crate::core::status::Status;
use crate::state::Record;
use crate::sync::{GATE, HOOK, Message, RESULT, SIZE};
use crate::sys;

const STOP_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A process that has said its last word and does not end is stuck in the kernel.
const EXIT_WAIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Starts a created container; returns once its program runs.
pub fn start(root: &Path, id: &str) -> Result<()> {
    let (dir, _) = existing(root, id)?;
    let _lock = dir.lock()?;
    let (dir, record) = existing(root, id)?;
    match dir.status(&record)? {
        Status::Created => {}
        Status::Stopped => bail!("container {id} is stopped: it can be deleted, not started again"),
        other => bail!("container {id} is {other}: only a created container can be started"),
    }
    let mut result = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(dir.file(RESULT))
        .with_context(|| format!("open {}", dir.file(RESULT).display()))?;
    // Without a reader there is no process at the gate, and the open fails instead of waiting for one.
    let mut gate = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(dir.file(GATE))
        .with_context(|| format!("open {}: the container's process is gone", dir.file(GATE).display()))?;
    gate.write_all(&[0]).context("open the gate")?;
    let mut answer = Vec::with_capacity(SIZE);
    wait(&result)?;
    result.read_to_end(&mut answer).context("hear whether the program was executed")?;
    dir.open_gate();
    if answer.is_empty() {
        return run_hooks(&record);
    }
    match Message::decode(&answer) {
        Some(Message::Failed { step: HOOK, text, .. }) => bail!("{text}"),
        Some(Message::Failed { errno, text, .. }) => {
            // So that whoever asks for the state next hears that it is stopped.
            if let Some(process) = record.init.as_ref().map(open_process).transpose()?.flatten() {
                let mut fds = [PollFd::new(&process, PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&EXIT_WAIT)).context("wait for the end of the process")?;
            }
            bail!("process.args[0]: execute {text}: {}", why_not_executed(errno))
        }
        _ => bail!("the container's process answered nonsense"),
    }
}

/// Runs the poststart hooks; when one fails the container is stopped (runtime.md "Lifecycle", step 10, as of 1.3).
fn run_hooks(record: &Record) -> Result<()> {
    let Some(init) = record.init.as_ref().filter(|_| !record.hooks.poststart.is_empty()) else { return Ok(()) };
    hooks::run(&record.hooks, HookKind::Poststart, record, init.pid).or_else(|error| {
        let Some(pidfd) = open_process(init)? else { return Err(error) };
        // An error means that it is dead already.
        let _ = sys::send_signal(pidfd.as_fd(), signal::KILL);
        let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&STOP_WAIT));
        ended.map_err(std::io::Error::from).context("wait for the container to stop")?;
        Err(error)
    })
}

/// Waits until the process has executed its program, failed to, or died: each closes its end.
fn wait(result: &std::fs::File) -> Result<()> {
    loop {
        let mut fds = [PollFd::new(result, PollFlags::empty())];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) if fds[0].revents().contains(PollFlags::HUP) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).context("wait for the program"),
        }
    }
}
