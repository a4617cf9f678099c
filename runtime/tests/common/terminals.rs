//! Both sides of a terminal, for tests that sit before one.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::Bundle;

const WAIT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A terminal's master side, and what was read of it so far.
pub struct Master {
    pub file: File,
    pub text: String,
}

impl Master {
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), text: String::new() }
    }

    pub fn say(&mut self, line: &str) {
        self.file.write_all(line.as_bytes()).unwrap();
    }

    /// Reads until a text has come; returns all up to its end.
    pub fn expect(&mut self, expected: &str) -> String {
        while !self.text.contains(expected) {
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            assert!(rustix::event::poll(&mut fds, Some(&WAIT)).unwrap() > 0, "{expected:?} did not come: {:?}", self.text);
            let mut chunk = [0; 1024];
            let count = self.file.read(&mut chunk).unwrap_or_else(|error| panic!("{expected:?} did not come: {:?}: {error}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        let end = self.text.find(expected).unwrap() + expected.len();
        self.text.drain(..end).collect()
    }
}

/// A terminal of the test's own, for a call to be started in.
pub fn outer(rows: u16, columns: u16) -> (Master, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let side = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    rustix::termios::tcsetwinsize(&side, size(rows, columns)).unwrap();
    (Master::new(master), side)
}

pub fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

pub fn in_terminal(mut command: Command, side: &OwnedFd) -> Child {
    let copy = || Stdio::from(side.try_clone().unwrap());
    command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap()
}

/// The terminal that a runtime sends over its console socket.
pub fn sent(listener: &UnixListener) -> (String, Master) {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    assert!(rustix::event::poll(&mut fds, Some(&WAIT)).unwrap() > 0, "nobody connected to the console socket");
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut name)];
    let count = rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let file = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    (String::from_utf8_lossy(&name[..count]).into_owned(), Master::new(file.expect("a descriptor")))
}

pub fn listener(bundle: &Bundle) -> (UnixListener, String) {
    let path = bundle.path("console.sock");
    (UnixListener::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
}
