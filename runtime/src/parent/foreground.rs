//! A process that the caller waits for: signals sent to this program go to it, and its end becomes the exit code.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use super::console::Relay;
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

    /// Waits for a child of this program, and relays its terminal; 128 and the signal is the code of one that was killed.
    pub fn wait(&mut self, pidfd: BorrowedFd<'_>, terminal: Option<OwnedFd>) -> Result<i32> {
        let mut relay = terminal.map(Relay::begin).transpose()?;
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            let own = fds.len();
            fds.extend(relay.iter().flat_map(Relay::poll));
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno)).context("wait for the process"),
            }
            let input_ready = fds.get(own + 1).is_some_and(|fd| !fd.revents().is_empty());
            // A master side that nobody has the other side of is always ready: then there is only the process to wait for.
            let hung_up = fds.get(own).is_some_and(|fd| fd.revents() == PollFlags::HUP);
            drop(fds);
            self.pass_on(pidfd, relay.as_ref());
            if let Some(relay) = &mut relay {
                relay.copy(input_ready)?;
                if hung_up {
                    relay.hang_up();
                }
            }
            let ended = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            if let Some(status) = ended.context("wait for the process")? {
                relay.as_mut().map_or(Ok(()), Relay::copy_output)?;
                let by_signal = status.terminating_signal().map(|signal| EXIT_BY_SIGNAL + signal);
                return Ok(status.exit_status().or(by_signal).unwrap_or(EXIT_BY_SIGNAL));
            }
        }
    }

    fn pass_on(&mut self, pidfd: BorrowedFd<'_>, relay: Option<&Relay>) {
        let mut info = [0; SIGINFO_BYTES];
        while self.signals.read(&mut info).is_ok_and(|count| count == info.len()) {
            match (i32::from_ne_bytes([info[0], info[1], info[2], info[3]]), relay) {
                (libc::SIGCHLD, _) => {}
                // The kernel tells the terminal's processes itself.
                (libc::SIGWINCH, Some(relay)) => relay.resize(),
                // It may have ended meanwhile; the next turn tells.
                (signal, _) => drop(sys::send_signal(pidfd.as_fd(), signal)),
            }
        }
    }
}
