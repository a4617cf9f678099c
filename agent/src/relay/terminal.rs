//! Terminals. Of a container with one, the monitor holds the master side and gives it away. For a command, the runtime makes the one inside the container and passes it on to its own standard streams; those are a
//! terminal made here (pty(7)), so that it is as every OCI runtime is run by a person.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
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

/// The two uses of the master side of a container's terminal; it is its monitor that reads.
pub fn of_container(master: OwnedFd) -> io::Result<(pipe::Sender, Control)> {
    Ok((pipe::Sender::from_file_unchecked(File::from(master.try_clone()?))?, Control(master)))
}

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
        Ok(tcsetwinsize(&self.0, size(rows, columns))?)
    }

    /// Sets the size so that it changes in any case: then a program that draws draws itself for one who has just come, as docker has it.
    pub fn change(&self, rows: u32, columns: u32) -> io::Result<()> {
        let (now, wanted) = (tcgetwinsize(&self.0)?, size(rows, columns));
        if (now.ws_row, now.ws_col) == (wanted.ws_row, wanted.ws_col) {
            tcsetwinsize(&self.0, Winsize { ws_row: wanted.ws_row.saturating_add(1), ..wanted })?;
        }
        Ok(tcsetwinsize(&self.0, wanted)?)
    }
}

fn size(rows: u32, columns: u32) -> Winsize {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 }
}
