//! When to end: SIGTERM or SIGINT, and for some commands the end of stdin.
//!
//! The first process of a PID namespace is not killed by a signal it has no handler for. Signals are blocked and taken by `sigwait` in a
//! thread of their own: a blocked signal stays pending for a PID 1 too, and nothing has to run in a handler.

use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// A word that can be waited for: "end now".
#[derive(Debug, Clone, Default)]
pub struct Stop {
    said: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    /// Says stop at SIGTERM, SIGINT or the end of stdin.
    ///
    /// A character device that is no terminal (`/dev/null`, what a container's first process has) says nothing by ending.
    pub fn on_signal_or_stdin_end() -> io::Result<Self> {
        let stop = Self::default();
        let signals = block_signals()?;
        let at_signal = stop.clone();
        std::thread::Builder::new().spawn(move || {
            if signals.wait().is_ok() {
                at_signal.say();
            }
        })?;
        if stdin_can_end() {
            let at_end = stop.clone();
            std::thread::Builder::new().spawn(move || {
                let mut buffer = [0; 256];
                let mut stdin = io::stdin().lock();
                loop {
                    match stdin.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        // Nobody can say anything through a broken stdin: the same as its end.
                        Err(_) => break,
                    }
                }
                at_end.say();
            })?;
        }
        Ok(stop)
    }

    /// Says stop.
    pub fn say(&self) {
        let (said, changed) = &*self.said;
        *said.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    /// Waits until `until` at most; true when stop was said.
    pub fn wait_until(&self, until: Instant) -> bool {
        let (said, changed) = &*self.said;
        let guard = said.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let (guard, _) = changed.wait_timeout_while(guard, left, |said| !*said).unwrap_or_else(PoisonError::into_inner);
        *guard
    }

    /// Waits for `time` at most; true when stop was said.
    pub fn wait(&self, time: Duration) -> bool {
        self.wait_until(Instant::now() + time)
    }
}

/// Ends the process with code 0 at SIGTERM or SIGINT.
pub fn exit_on_signal() -> io::Result<()> {
    let signals = block_signals()?;
    std::thread::Builder::new().spawn(move || {
        if signals.wait().is_ok() {
            std::process::exit(0);
        }
    })?;
    Ok(())
}

/// Returns at SIGTERM or SIGINT.
pub fn wait_for_signal() -> io::Result<()> {
    block_signals()?.wait()?;
    Ok(())
}

/// Blocks the signals for this thread and all that it starts from now on.
fn block_signals() -> io::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(signals)
}

fn stdin_can_end() -> bool {
    let is_device = std::fs::metadata("/proc/self/fd/0").is_ok_and(|stdin| stdin.file_type().is_char_device());
    !is_device || io::IsTerminal::is_terminal(&io::stdin())
}
