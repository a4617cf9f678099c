//! Netlink, synchronously and in batches: many messages go out in one write, only the last asks for an acknowledgement, and errors are
//! matched to their messages by sequence number. Dumps are read whole.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::KernelError;

/// The protocol of devices, addresses, neighbours and routes.
pub const NETLINK_ROUTE: isize = 0;

/// Messages sent before their answers are read: so many error answers fit the socket's default buffer.
const BATCH_MAX: usize = 128;

/// How long the kernel may take to answer; deleting devices waits for RCU, and for others who do the same.
const ANSWER_SECONDS_MAX: i64 = 60;

const RECEIVE_BYTES: usize = 256 * 1024;

/// Room for what is sent at once; more is made where one transaction needs it, for the kernel takes no part of one.
const SEND_BYTES: usize = 4 * 1024 * 1024;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A netlink socket in the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    /// Bytes that can be sent at once.
    room: usize,
}

/// A raw answer: type, flags, sequence number, payload.
pub struct Answer {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of a netlink protocol (`NETLINK_ROUTE`, `NETLINK_NETFILTER`) in the calling thread's network namespace.
    pub fn open(protocol: isize) -> Result<Self, KernelError> {
        let open = || -> io::Result<(Socket, u32)> {
            let mut socket = Socket::new(protocol)?;
            let port = socket.bind_auto()?.port_number();
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS_MAX, 0))?;
            setsockopt(&socket.as_fd(), sockopt::SndBufForce, &SEND_BYTES)?;
            setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(1024 * 1024))?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(|source| KernelError::Open { source })?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES), room: SEND_BYTES })
    }

    /// By which the kernel tells others whose request a change was.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends the messages, in order, each with its flags; the answer has the error of each that failed, by its place.
    pub fn batch(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>) -> Result<BTreeMap<usize, Errno>, KernelError> {
        let mut errors = BTreeMap::new();
        let mut messages = messages.into_iter().enumerate().peekable();
        while messages.peek().is_some() {
            let first_sequence = self.sequence + 1;
            let mut bytes = Vec::new();
            let mut places = Vec::new();
            while places.len() < BATCH_MAX {
                let Some((place, (message, flags))) = messages.next() else { break };
                let last = places.len() + 1 == BATCH_MAX || messages.peek().is_none();
                let ack = if last { NLM_F_ACK } else { 0 };
                self.write(&mut bytes, message, flags | NLM_F_REQUEST | ack);
                places.push(place);
            }
            self.send(&bytes)?;
            let last_sequence = self.sequence;
            let mut done = false;
            while !done {
                for answer in self.receive()? {
                    let Some(offset) = answer.sequence.checked_sub(first_sequence) else { continue };
                    if answer.kind == NLMSG_ERROR {
                        if let (Some(errno), Some(place)) = (error_of(&answer.payload), places.get(offset as usize)) {
                            errors.insert(*place, errno);
                        }
                        done |= answer.sequence == last_sequence;
                    }
                }
            }
        }
        Ok(errors)
    }

    /// One message; the error names it as `what`.
    pub fn request(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), KernelError> {
        match self.batch(vec![(message, flags)])?.remove(&0) {
            Some(errno) => Err(KernelError::Refused { what: what.to_owned(), errno }),
            None => Ok(()),
        }
    }

    /// The answers to a question that is not a dump.
    pub fn ask(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK);
        self.send(&bytes)?;
        self.collect(what)?.iter().map(parse).collect()
    }

    /// Everything of a kind that the kernel holds.
    pub fn dump(&mut self, what: &str, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.write(&mut bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            self.send(&bytes)?;
            let answers = self.collect(what)?;
            if answers.iter().all(|answer| answer.flags & NLM_F_DUMP_INTR == 0) {
                return answers.iter().map(parse).collect();
            }
        }
    }

    /// Sends raw messages that carry their own headers; for nf_tables.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), KernelError> {
        if bytes.len() > self.room {
            let room = bytes.len().next_power_of_two();
            let made = setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &room);
            made.map_err(|errno| KernelError::Transfer { source: errno.into() })?;
            self.room = room;
        }
        let sent = self.socket.send(bytes, 0).map_err(|source| KernelError::Transfer { source })?;
        if sent == bytes.len() { Ok(()) } else { Err(KernelError::Decode { why: format!("{sent} of {} bytes were taken", bytes.len()) }) }
    }

    /// The next sequence number.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// The answers to the last message, until the kernel says that they are all.
    pub fn collect(&mut self, what: &str) -> Result<Vec<Answer>, KernelError> {
        let mut answers = Vec::new();
        self.each(what, |answer| answers.push(answer))?;
        Ok(answers)
    }

    /// The same, one after the other as they come.
    pub fn each(&mut self, what: &str, mut take: impl FnMut(Answer)) -> Result<(), KernelError> {
        let sequence = self.sequence;
        loop {
            for answer in self.receive()? {
                match answer.kind {
                    _ if answer.sequence != sequence => {}
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => match error_of(&answer.payload) {
                        Some(errno) => return Err(KernelError::Refused { what: what.to_owned(), errno }),
                        None => return Ok(()),
                    },
                    NLMSG_DONE => return Ok(()),
                    _ => take(answer),
                }
            }
        }
    }

    /// One datagram's messages.
    pub fn receive(&mut self) -> Result<Vec<Answer>, KernelError> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0).map_err(|source| KernelError::Transfer { source })?;
        answers(&self.buffer)
    }

    fn write(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.next_sequence();
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        finalize(&mut packet);
        let start = bytes.len();
        bytes.resize(start + packet.buffer_len().next_multiple_of(4), 0);
        packet.serialize(&mut bytes[start..]);
    }
}

/// The messages of a datagram, one after the other.
pub(super) fn answers(datagram: &[u8]) -> Result<Vec<Answer>, KernelError> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|error| KernelError::Decode { why: error.to_string() })?;
        answers.push(Answer {
            kind: message.message_type(),
            flags: message.flags(),
            sequence: message.sequence_number(),
            payload: message.payload().to_vec(),
        });
        let aligned = (message.length() as usize).next_multiple_of(4).max(16);
        rest = rest.get(aligned..).unwrap_or_default();
    }
    Ok(answers)
}

fn finalize<I: NetlinkSerializable>(packet: &mut NetlinkMessage<I>) {
    packet.finalize();
}

/// An answer about devices, addresses, neighbours or routes.
pub(super) fn parse(answer: &Answer) -> Result<RouteNetlinkMessage, KernelError> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    header.flags = answer.flags;
    RouteNetlinkMessage::deserialize(&header, &answer.payload).map_err(|error| KernelError::Decode { why: error.to_string() })
}

/// The error in an NLMSG_ERROR; `None` is an acknowledgement.
pub fn error_of(payload: &[u8]) -> Option<Errno> {
    let code = payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    (code != 0).then(|| Errno::from_raw(-code))
}
