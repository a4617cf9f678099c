//! `start`: lets the container's process through the gate and hears whether its program was executed (runtime.md "Start").

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{existing, open_process};
use crate::core::status::Status;
use crate::sync::{GATE, Message, RESULT, SIZE};

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
        return Ok(());
    }
    match Message::decode(&answer) {
        Some(Message::Failed { errno, text, .. }) => {
            // So that whoever asks for the state next hears that it is stopped.
            if let Some(process) = record.init.as_ref().map(open_process).transpose()?.flatten() {
                let mut fds = [PollFd::new(&process, PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&EXIT_WAIT)).context("wait for the end of the process")?;
            }
            bail!("process.args[0]: execute {text}: {}", std::io::Error::from_raw_os_error(errno))
        }
        _ => bail!("the container's process answered nonsense"),
    }
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
