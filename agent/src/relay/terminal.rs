//! A command's terminal: the runtime makes it inside the container and hands its other end over a socket (runc's console socket, one
//! message with one descriptor, as in runtime-spec's runtimes; unix(7), SCM_RIGHTS).

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, isatty, tcsetwinsize};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// How long the runtime may take to hand the terminal over.
const HANDOVER: Duration = Duration::from_secs(10);

/// Where the runtime hands a terminal over; the socket's file goes with it.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

/// The end of a terminal that is not the command's.
#[derive(Debug)]
pub struct Terminal {
    pub reader: pipe::Receiver,
    pub writer: pipe::Sender,
    control: OwnedFd,
}

impl ConsoleSocket {
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The terminal, once the runtime has handed it over.
    pub async fn accept(&self) -> io::Result<Terminal> {
        let handed = async {
            let (stream, _) = self.listener.accept().await?;
            receive(&stream).await
        };
        let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("no terminal within {} s", HANDOVER.as_secs()));
        Terminal::new(timeout(HANDOVER, handed).await.map_err(|_| silent())??)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Gone already, or swept with the run directory at the next boot.
        drop(fs::remove_file(&self.path));
    }
}

impl Terminal {
    fn new(end: OwnedFd) -> io::Result<Self> {
        if !isatty(&end) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime handed over something else than a terminal"));
        }
        fcntl_setfl(&end, fcntl_getfl(&end)? | OFlags::NONBLOCK)?;
        let (reader, writer) = (File::from(end.try_clone()?), File::from(end.try_clone()?));
        Ok(Self { reader: pipe::Receiver::from_file_unchecked(reader)?, writer: pipe::Sender::from_file_unchecked(writer)?, control: end })
    }

    /// A second handle for [`resize`].
    pub fn control(&self) -> io::Result<OwnedFd> {
        self.control.try_clone()
    }
}

/// Tells the programs on the terminal its size; SIGWINCH goes to those in its foreground.
pub fn resize(terminal: &OwnedFd, rows: u32, columns: u32) -> io::Result<()> {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Ok(tcsetwinsize(terminal, Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 })?)
}

async fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || {
            let mut name = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut descriptors = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let none = || io::Error::new(io::ErrorKind::UnexpectedEof, "the runtime handed no terminal over");
            descriptors.find_map(|mut descriptors| descriptors.next()).ok_or_else(none)
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}
