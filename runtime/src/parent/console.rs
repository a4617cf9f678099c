//! Where the master side of a terminal goes: over a socket to the caller, as runc sends it, or to a relay of this program's own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, OutputModes, Termios};

use crate::core::spec::ConsoleSize;
use crate::sync::send_file;

/// What becomes of the terminal.
#[derive(Debug)]
pub enum Console {
    /// There is none.
    None,
    /// The caller of this program relays it.
    Socket(UnixStream),
    /// This program does.
    Own,
}

impl Console {
    /// Decides by runc's rules, and connects before anything is made.
    pub fn open(terminal: bool, foreground: bool, socket: Option<&Path>) -> Result<Self> {
        match (terminal, foreground, socket) {
            (true, false, Some(path)) => {
                let stream = UnixStream::connect(path).with_context(|| format!("--console-socket: connect to {}", path.display()))?;
                Ok(Self::Socket(stream))
            }
            (true, false, None) => bail!("process.terminal: needs --console-socket, as this program does not stay to relay the terminal"),
            (_, true, Some(_)) => {
                bail!("--console-socket: this program stays and relays the terminal itself: leave it out, or use --detach")
            }
            (false, false, Some(_)) => bail!("--console-socket: there is no terminal: set process.terminal, or leave it out"),
            (true, true, None) => Ok(Self::Own),
            (false, _, None) => Ok(Self::None),
        }
    }

    /// Takes what the process sent; returns it if this program is to relay it.
    pub fn take(&self, terminal: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
        // runc sends the name of what was opened along.
        const NAME: &[u8] = b"/dev/pts/ptmx";
        match (self, terminal) {
            (Self::None, None) => Ok(None),
            (Self::Own, Some(master)) => Ok(Some(master)),
            (Self::Socket(stream), Some(master)) => {
                send_file(stream.as_fd(), NAME, master.as_fd()).context("--console-socket: send the terminal")?;
                Ok(None)
            }
            (Self::None, Some(_)) | (Self::Own | Self::Socket(_), None) => bail!("process.terminal: the process answered nonsense"),
        }
    }
}

/// How large the terminal is that a caller in the foreground relays to, if it has one.
pub fn outer_size(foreground: bool) -> Option<ConsoleSize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok().filter(|_| foreground)?;
    Some(ConsoleSize { height: size.ws_row, width: size.ws_col })
}

const CHUNK: usize = 4096;

/// Copies between this program's standard descriptors and a terminal's master side.
#[derive(Debug)]
pub struct Relay {
    master: File,
    /// What standard input was like, if it is a terminal.
    saved: Option<Termios>,
    input_open: bool,
    /// Read from standard input and not yet taken by the terminal.
    pending: Vec<u8>,
    hung_up: bool,
}

impl Relay {
    /// Gives the caller's terminal over: keys go through as they are, and its size is the new terminal's.
    pub fn begin(master: OwnedFd) -> Result<Self> {
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).context("relay the terminal")?;
        let stdin = rustix::stdio::stdin();
        let saved = rustix::termios::tcgetattr(stdin).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            raw.output_modes.insert(OutputModes::OPOST);
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).context("make the caller's terminal raw")?;
        }
        let relay = Self { master: master.into(), saved, input_open: true, pending: Vec::new(), hung_up: false };
        relay.resize();
        Ok(relay)
    }

    /// Takes the size of the caller's terminal over, if there is one.
    pub fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            // Without a size the terminal works all the same.
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// Nobody has the other side open any more; a process that opens it again is not heard.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// What there is to wait for: the terminal, and standard input last.
    pub fn poll(&self) -> Vec<PollFd<'_>> {
        if self.hung_up {
            return Vec::new();
        }
        let room = if self.pending.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.master, room)];
        if self.input_open && self.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        fds
    }

    /// Copies what is there. `input_ready`: standard input can be read without waiting.
    pub fn copy(&mut self, input_ready: bool) -> Result<()> {
        if input_ready && self.input_open && self.pending.is_empty() {
            let mut chunk = [0; CHUNK];
            match rustix::io::read(rustix::stdio::stdin(), &mut chunk) {
                Ok(0) => self.input_open = false,
                Ok(count) => self.pending.extend(&chunk[..count]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                // A terminal that has gone away.
                Err(_) => self.input_open = false,
            }
        }
        if !self.pending.is_empty()
            && let Ok(count) = self.master.write(&self.pending)
        {
            self.pending.drain(..count);
        }
        self.copy_output()
    }

    /// Copies what the terminal has; it has nothing more when the last process that has it open is gone, which reads as an error.
    pub fn copy_output(&mut self) -> Result<()> {
        let mut chunk = [0; CHUNK];
        while let Ok(count @ 1..) = self.master.read(&mut chunk) {
            crate::output::bytes(&chunk[..count]).context("write standard output")?;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // There is nobody to tell, and nothing else to try.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, saved);
        }
    }
}
