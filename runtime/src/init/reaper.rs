//! The first process of a container whose program is not made to be it, if the configuration asks for one.
//!
//! ```text
//! first process ─┬─ fork ──► the program
//!                │            signals ──► passed on
//!                └─ reaps whatever ends; the program's end is its own
//! ```
//!
//! The first process of a pid namespace gets every orphan of it, and no signal that it has no handler for (pid_namespaces(7)): a program that
//! does not know this leaves zombies and does not stop when asked to.

use std::fs::File;
use std::io::{self, Read};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::core::signal;
use crate::sys::{self, Cloned};

const FAILED: i32 = 1;
const BY_SIGNAL: i32 = 128;

/// Splits the process: `None` in the one that becomes the program, which in the other is what to stay with.
pub fn split() -> io::Result<Option<Reaper>> {
    let passed: Vec<i32> = (1..=signal::LAST).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)).collect();
    // Before the fork: no signal is lost in between.
    sys::block_signals(&passed)?;
    // Without a pid namespace of its own the container's orphans would go elsewhere.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    match sys::clone_process(0, None)?.0 {
        Cloned::Child => {
            sys::reset_signals();
            Ok(None)
        }
        Cloned::Parent { pid, .. } => {
            let program = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the kernel gave it no id"))?;
            Ok(Some(Reaper { program, passed }))
        }
    }
}

/// The first process, once the program is another.
pub struct Reaper {
    program: Pid,
    passed: Vec<i32>,
}

impl Reaper {
    /// Goes on until the program has ended, and ends as it did.
    pub fn stay(self) -> ! {
        sys::trim_memory();
        sys::exit(watch(self.program, &self.passed).unwrap_or(FAILED))
    }
}

/// Passes signals on and reaps until the program has ended; its exit code, or 128 and its signal.
fn watch(program: Pid, passed: &[i32]) -> io::Result<i32> {
    let mut signals = File::from(sys::signal_descriptor(passed)?);
    loop {
        if let Some(code) = reap(program)? {
            return Ok(code);
        }
        match rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // `struct signalfd_siginfo` (signalfd(2)): 128 bytes, the signal's number first.
        let mut bytes = [0; 128];
        while signals.read(&mut bytes).is_ok_and(|count| count == bytes.len()) {
            let number = i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if number != libc::SIGCHLD {
                // It may have ended meanwhile, which the next look tells.
                let _ = sys::send_signal_to(program.as_raw_nonzero().get(), number);
            }
        }
    }
}

fn reap(program: Pid) -> io::Result<Option<i32>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => {
                let signal = status.terminating_signal().map(|signal| BY_SIGNAL + signal);
                return Ok(Some(status.exit_status().or(signal).unwrap_or(FAILED)));
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}
