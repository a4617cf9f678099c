//! Processes that are not our children, named by number and start time and watched by pidfd.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::core::task::Process;
use crate::host::start_ticks;

/// The process that has this number now; `None` when there is none.
pub fn look(pid: u32) -> io::Result<Option<Process>> {
    Ok(start_ticks(pid)?.map(|start_ticks| Process { pid, start_ticks }))
}

/// Returns once the process has ended; at once when it had.
pub async fn ended(process: Process) -> io::Result<()> {
    let Some(handle) = open(process)? else { return Ok(()) };
    #[expect(deprecated, reason = "its successor is unsafe; what it guards against, a descriptor not its own, an OwnedFd is not")]
    let handle = AsyncFd::with_interest(handle, Interest::READABLE)?;
    // A pidfd is readable from the end of its process on.
    handle.readable().await?.retain_ready();
    Ok(())
}

/// Kills the process if it is still there.
pub fn kill(process: Process) -> io::Result<()> {
    signal(process, Signal::KILL)
}

/// Sends a signal to the process if it is still there.
pub fn signal(process: Process, signal: Signal) -> io::Result<()> {
    let Some(handle) = open(process)? else { return Ok(()) };
    match pidfd_send_signal(&handle, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file in which a runtime says the number of a command's process; removed when dropped.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Sends a signal to the command, if its number was said and it still runs.
    pub fn signal(&self, signal: Signal) {
        let said = std::fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok());
        let Some(process) = said.and_then(|pid| look(pid).ok().flatten()) else { return };
        if let Err(error) = self::signal(process, signal) {
            warn!(pid = process.pid, %error, "cannot signal a command");
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Not there, or swept with the task's bundle.
        drop(std::fs::remove_file(&self.0));
    }
}

fn open(process: Process) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Compared after the handle is held: from here on the number cannot change hands unseen.
    Ok((look(process.pid)? == Some(process)).then_some(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_another_with_its_number_is_not_taken_for_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = look(child.id()).expect("look").expect("it runs");
        let other = Process { start_ticks: process.start_ticks + 1, ..process };
        ended(other).await.expect("an older process has ended");
        kill(other).expect("nothing to kill");
        assert_eq!(child.try_wait().expect("wait"), None);
        kill(process).expect("kill");
        ended(process).await.expect("it ends");
        child.wait().expect("reap");
        ended(process).await.expect("it had ended");
    }
}
