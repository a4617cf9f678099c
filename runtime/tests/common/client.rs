//! A client of the monitor's socket, as the agent is one.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use super::monitored::Monitored;

pub const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Kinds of requests.
pub const EXEC: u8 = 9;
pub const EXEC_PROCESS: u8 = 10;

pub struct Client {
    pub socket: OwnedFd,
    pub stdin: File,
    pub stdout: File,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    Started(i32),
    Ended(i32),
    Refused(String),
    HungUp,
}

pub fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WAIT)).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap())?;
    Ok(socket)
}

pub fn request(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&[1, kind, 0, 0, 0, 0, 0, 0], &length[..], payload].concat()
}

pub fn receive(socket: &OwnedFd) -> (Answer, Option<OwnedFd>) {
    let mut bytes = [0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    let count = match received {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(errno) => panic!("no answer: {errno}"),
    };
    let file = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    if count == 0 {
        return (Answer::HungUp, file);
    }
    let number = i32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let answer = match bytes[1] {
        2 => Answer::Started(number),
        3 => Answer::Ended(number),
        4 => Answer::Refused(String::from_utf8(bytes[12..count].to_vec()).unwrap()),
        11 => Answer::Taken,
        kind => panic!("a reply of kind {kind}"),
    };
    (answer, file)
}

impl Client {
    pub fn exec(monitored: &Monitored, args: &[&str]) -> Self {
        let payload: String = args.iter().map(|arg| format!("{arg}\0")).collect();
        Self::ask(monitored, &request(EXEC, payload.as_bytes()))
    }

    pub fn ask(monitored: &Monitored, message: &[u8]) -> Self {
        Self::over(connect(&monitored.bundle.path("monitor.sock")).unwrap(), message)
    }

    pub fn over(socket: OwnedFd, message: &[u8]) -> Self {
        let (theirs_in, stdin) = rustix::pipe::pipe().unwrap();
        let (stdout, theirs_out) = rustix::pipe::pipe().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [theirs_in.as_fd(), theirs_out.as_fd(), theirs_out.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        match rustix::net::sendmsg(&socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
            // It may be refused before it asks: the answer is there all the same.
            Ok(_) | Err(rustix::io::Errno::PIPE) => {}
            Err(errno) => panic!("ask: {errno}"),
        }
        Self { socket, stdin: stdin.into(), stdout: stdout.into() }
    }

    pub fn answer(&self) -> Answer {
        receive(&self.socket).0
    }

    pub fn started(&self) -> i32 {
        assert_eq!(self.answer(), Answer::Taken);
        match self.answer() {
            Answer::Started(pid) => pid,
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(&self) -> String {
        match self.answer() {
            Answer::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Why a request was not carried out after it was taken.
    pub fn not_started(&self) -> String {
        assert_eq!(self.answer(), Answer::Taken);
        self.refused()
    }

    pub fn printed(&mut self) -> String {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        text
    }
}
