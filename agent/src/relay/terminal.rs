//! A command's terminal. The runtime makes the one inside the container and passes it on to its own standard streams; those are a
//! terminal made here (pty(7)), so that it is as every OCI runtime is run by a person.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;

/// The end of a terminal that is not the runtime's.
#[derive(Debug)]
pub struct Terminal {
    pub reader: pipe::Receiver,
    pub writer: pipe::Sender,
    pub control: Control,
}

/// Sets a terminal's size.
#[derive(Debug)]
pub struct Control(OwnedFd);

/// Makes a terminal: our end, and the one for the runtime.
pub fn open() -> io::Result<(Terminal, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let runtimes = ioctl_tiocgptpeer(&ours, flags)?;
    fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
    let file = || ours.try_clone().map(File::from);
    let (reader, writer) = (pipe::Receiver::from_file_unchecked(file()?)?, pipe::Sender::from_file_unchecked(file()?)?);
    Ok((Terminal { reader, writer, control: Control(ours) }, runtimes))
}

impl Control {
    /// The runtime takes the size over when it begins, and at SIGWINCH.
    pub fn resize(&self, rows: u32, columns: u32) -> io::Result<()> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        Ok(tcsetwinsize(&self.0, Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 })?)
    }
}
