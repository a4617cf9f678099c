//! Sends a container's output on to a log daemon, without ever waiting for it.
//!
//! In: lines. Out: messages on a socket, and now and then a sentence for the container's own log: what a daemon that is away or slow does
//! not take is counted, and the count is said once it takes lines again and at the end.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::core::log_sink::{Address, Form, Line, Outbox, well_known};

/// Between two attempts to reach a daemon.
const RETRY: Duration = Duration::from_secs(1);

/// What the container's end waits for a daemon that is slow to take the rest.
const LAST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Sink {
    address: Address,
    form: Form,
    socket: Option<OwnedFd>,
    /// For a stream, which may take a part.
    outbox: Outbox,
    tried: Option<Instant>,
    lost: u64,
    /// Why it takes nothing, once that was said.
    down: Option<String>,
    notes: Vec<String>,
}

impl Sink {
    pub fn new(address: Address, form: Form) -> Self {
        Self { address, form, socket: None, outbox: Outbox::default(), tried: None, lost: 0, down: None, notes: Vec::new() }
    }

    /// Sends a line, or counts it as lost.
    pub fn send(&mut self, line: &Line<'_>) {
        let message = self.form.message(line);
        if matches!(self.address, Address::Tcp(_)) {
            if !self.outbox.push(&message) {
                self.lost += 1;
            }
            self.flush();
            return;
        }
        match self.connected().and_then(|socket| Ok(rustix::net::send(socket, &message, SendFlags::NOSIGNAL)?)) {
            Ok(_) => self.up(),
            Err(error) => {
                self.lost += 1;
                // A daemon that is only slow is not away.
                if error.kind() != ErrorKind::WouldBlock {
                    self.fail(&error);
                }
            }
        }
    }

    /// To be polled for room, when something waits for it.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| self.outbox.len() > 0).map(AsFd::as_fd)
    }

    /// Writes what waits, as far as there is room.
    pub fn flush(&mut self) {
        while let Some(bytes) = self.outbox.next() {
            let bytes = bytes.to_vec();
            match self.connected().and_then(|socket| Ok(rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?)) {
                Ok(count) => {
                    self.outbox.written(count);
                    self.up();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.outbox.restart();
                    return self.fail(&error);
                }
            }
        }
    }

    /// Gives the daemon a last moment; what it has not taken then is lost.
    pub fn finish(&mut self) {
        let end = Instant::now() + LAST;
        loop {
            self.flush();
            let Some(socket) = self.waits_for() else { break };
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
            // Interrupted or not, the time left decides.
            if matches!(rustix::event::poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], Some(&left)), Ok(0)) {
                break;
            }
        }
        self.lost += self.outbox.len() as u64;
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.notes.push(format!("{lost} lines were not taken by {}", self.form.name()));
        }
    }

    /// Sentences for the container's log.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn up(&mut self) {
        if self.down.take().is_some() || (self.lost > 0 && self.outbox.len() == 0) {
            let lost = std::mem::take(&mut self.lost);
            self.notes.push(format!("{} takes lines again: {lost} were not sent", self.form.name()));
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.socket = None;
        let why = error.to_string();
        if self.down.as_ref() != Some(&why) {
            let place = match &self.address {
                Address::Unix(path) => path.display().to_string(),
                Address::Udp(address) => format!("udp://{address}"),
                Address::Tcp(address) => format!("tcp://{address}"),
            };
            let hint = well_known(&self.address).map(|hint| format!("; {hint}")).unwrap_or_default();
            self.notes.push(format!("{} at {place} takes no lines: {why}{hint}", self.form.name()));
            self.down = Some(why);
        }
    }

    fn connected(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.socket.is_none() {
            if self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.tried = Some(Instant::now());
            self.socket = Some(connect(&self.address)?);
        }
        self.socket.as_ref().map(AsFd::as_fd).ok_or_else(|| ErrorKind::NotConnected.into())
    }
}

/// A socket on which nothing waits; a stream may still be on its way.
fn connect(address: &Address) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let of = |address: &SocketAddr| if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = match address {
        Address::Unix(path) => {
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            socket
        }
        Address::Udp(address) => {
            let socket = rustix::net::socket_with(of(address), SocketType::DGRAM, flags, None)?;
            rustix::net::connect(&socket, address)?;
            socket
        }
        Address::Tcp(address) => {
            let socket = rustix::net::socket_with(of(address), SocketType::STREAM, flags, None)?;
            match rustix::net::connect(&socket, address) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(errno) => return Err(errno.into()),
            }
            socket
        }
    };
    Ok(socket)
}
