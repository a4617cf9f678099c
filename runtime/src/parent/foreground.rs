//! A process that the caller waits for: signals sent to this program go to it, and its end becomes the exit code.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::core::signal;
use crate::sys;

const EXIT_BY_SIGNAL: i32 = 128;
/// `struct signalfd_siginfo` of signalfd(2); its first field is the signal.
const SIGINFO_BYTES: usize = 128;

/// The signals of this program, held back until the process they are for exists.
#[derive(Debug)]
pub struct Foreground {
    signals: File,
}

impl Foreground {
    /// Holds every signal back that can and may be; to be called before the process is made.
    pub fn begin() -> Result<Self> {
        let kept = [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGTRAP];
        let signals: Vec<i32> = (1..=signal::LAST).filter(|signal| !kept.contains(signal) && !matches!(signal, 32 | 33)).collect();
        sys::block_signals(&signals).context("hold signals back")?;
        Ok(Self { signals: File::from(sys::signal_descriptor(&signals).context("watch signals")?) })
    }

    /// Waits for a child of this program; 128 and the signal is the code of one that was killed.
    pub fn wait(&mut self, pidfd: BorrowedFd<'_>) -> Result<i32> {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno)).context("wait for the process"),
            }
            self.pass_on(pidfd);
            let ended = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            if let Some(status) = ended.context("wait for the process")? {
                let by_signal = status.terminating_signal().map(|signal| EXIT_BY_SIGNAL + signal);
                return Ok(status.exit_status().or(by_signal).unwrap_or(EXIT_BY_SIGNAL));
            }
        }
    }

    fn pass_on(&mut self, pidfd: BorrowedFd<'_>) {
        let mut info = [0; SIGINFO_BYTES];
        while self.signals.read(&mut info).is_ok_and(|count| count == info.len()) {
            let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if signal != libc::SIGCHLD {
                // It may have ended meanwhile; the next turn tells.
                let _ = sys::send_signal(pidfd.as_fd(), signal);
            }
        }
    }
}
