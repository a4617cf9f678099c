//! The protocol between the process that creates a container and the container's first process.
//!
//! One `SOCK_SEQPACKET` pair carries messages of a fixed size, from child to parent but for `Go`; two FIFOs in the state directory carry the start.
//!
//! ```text
//! parent (create)                       child (init)                        parent (start)
//!   │ clone3 ──────────────────────────► │
//!   │                                    │ step 0, step 1, …
//!   │ ◄────────────────────────────── Map │ its user namespace is new: ids are wanted
//!   │ Go ──────────────────────────────► │ they are mapped
//!   │ ◄───────────────────────── Born{pid} │ it bore the container's process, which says so and goes on in its place
//!   │ Go ──────────────────────────────► │ the parent knows it
//!   │ ◄──────────────── Note{step, text} │ weaker than asked for, going on
//!   │ ◄──────── Terminal + its descriptor │ the caller relays it or hands it on
//!   │ ◄──────── Listener{number} + descriptor │ of its seccomp notifications: to whom they concern
//!   │ ◄───────── Failed{step, errno, text} │ and the child is gone: create undoes all it did
//!   │ ◄──────────────────────────── Hooks │ the mounts are made: prestart and createRuntime are wanted
//!   │ Go ──────────────────────────────► │ they ran
//!   │ ◄──────────────────────────── Ready │ every step is done
//!   │ state.json := created
//!   │ Go ──────────────────────────────► │ reads exec.fifo … blocks
//!   └ exits                              │                                    │
//!                                        │ ◄────────────── one byte: exec.fifo │
//!                                        │ runs the startContainer hooks
//!                                        │ execve                             │
//!                                        │ ── end of file: exec.result ─────► │ it closed at exec: running
//!                                        │ ── Failed{…}: exec.result ───────► │ and the child is gone
//! ```
//!
//! A closed socket before `Ready` means that the child died. Both FIFOs are held open for both directions by the child, so that neither
//! side waits for the other to open them, and both are closed by execve(2).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

/// The gate a created container waits at, in its state directory.
pub const GATE: &str = "exec.fifo";

/// Where a start hears whether the program was executed, in the state directory.
pub const RESULT: &str = "exec.result";

/// The step of a failure to execute the program.
pub const EXECUTE: u16 = u16::MAX;

/// The step of a hook that failed after the gate; the text says all.
pub const HOOK: u16 = u16::MAX - 1;

/// What the child says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Every step is done.
    Ready,
    /// A step is weaker than asked for.
    Note { step: u16, text: String },
    /// The master side of the terminal comes along.
    Terminal,
    /// A step failed; `errno` is 0 when no system call did.
    Failed { step: u16, errno: i32, text: String },
    /// The ids of a new user namespace are to be mapped; waits for `Go`.
    Map,
    /// The sender is the container's process, which another bore; waits for `Go`.
    Born { pid: i32 },
    /// The hooks of the host are to be run; waits for `Go`.
    Hooks,
    /// From the parent: what was asked for is done.
    Go,
    /// The child's number of the descriptor of its seccomp notifications.
    Listener { number: i32 },
}

/// The size of every message; below `PIPE_BUF`, so that a FIFO carries one whole.
pub const SIZE: usize = 512;

const HEADER: usize = 9;
const READY: u8 = 1;
const NOTE: u8 = 2;
const FAILED: u8 = 3;
const MAP: u8 = 10;
const BORN: u8 = 11;
const GO: u8 = 12;
const HOOKS: u8 = 13;
const TERMINAL: u8 = 4;
const LISTENER: u8 = 5;

impl Message {
    /// The message as bytes; a text too long is cut.
    pub fn encode(&self) -> [u8; SIZE] {
        let (kind, step, errno, text) = match self {
            Self::Ready => (READY, 0, 0, ""),
            Self::Terminal => (TERMINAL, 0, 0, ""),
            Self::Note { step, text } => (NOTE, *step, 0, text.as_str()),
            Self::Failed { step, errno, text } => (FAILED, *step, *errno, text.as_str()),
            Self::Map => (MAP, 0, 0, ""),
            Self::Born { pid } => (BORN, 0, *pid, ""),
            Self::Hooks => (HOOKS, 0, 0, ""),
            Self::Go => (GO, 0, 0, ""),
            Self::Listener { number } => (LISTENER, 0, *number, ""),
        };
        let mut length = text.len().min(SIZE - HEADER);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let mut bytes = [0; SIZE];
        bytes[0] = kind;
        bytes[1..3].copy_from_slice(&step.to_le_bytes());
        bytes[3..7].copy_from_slice(&errno.to_le_bytes());
        bytes[7..9].copy_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
        bytes[HEADER..HEADER + length].copy_from_slice(&text.as_bytes()[..length]);
        bytes
    }

    /// Reads a message; `None` when the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let step = u16::from_le_bytes([bytes[1], bytes[2]]);
        let errno = i32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]);
        let length = usize::from(u16::from_le_bytes([bytes[7], bytes[8]]));
        let text = String::from_utf8_lossy(bytes.get(HEADER..HEADER + length)?).into_owned();
        match bytes[0] {
            READY => Some(Self::Ready),
            TERMINAL => Some(Self::Terminal),
            NOTE => Some(Self::Note { step, text }),
            FAILED => Some(Self::Failed { step, errno, text }),
            MAP => Some(Self::Map),
            BORN => Some(Self::Born { pid: errno }),
            HOOKS => Some(Self::Hooks),
            GO => Some(Self::Go),
            LISTENER => Some(Self::Listener { number: errno }),
            _ => None,
        }
    }
}

/// One end of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The parent's and the child's end.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (parent, child) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(parent), Self(child)))
    }

    /// Sends a message whole. By write(2), which a container's filter allows even where it allows no sockets; when the other end is gone,
    /// the signal that it then brings is as good an end as an error.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        rustix::io::write(&self.0, &message.encode())?;
        Ok(())
    }

    /// Says no more: who waits for a message hears that none comes.
    pub fn fall_silent(&self) {
        // An error means that the other end is gone.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    /// Sends a message and a descriptor with it (unix(7), SCM_RIGHTS).
    pub fn send_with_file(&self, message: &Message, file: BorrowedFd<'_>) -> io::Result<()> {
        send_file(self.0.as_fd(), &message.encode(), file)
    }

    /// Waits for a word of the other end, whatever it is, with read(2) alone, which any filter lets a program have; an error when the
    /// other end is gone.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match rustix::io::read(&self.0, &mut [0; SIZE]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the next message, and the descriptor that came with it; `None` when the other end is gone.
    pub fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0; SIZE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received.bytes,
                Err(Errno::INTR) => {}
                // The other end died with something of ours unread.
                Err(Errno::CONNRESET) => break 0,
                Err(error) => return Err(error.into()),
            }
        };
        let file = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        if count == 0 {
            return Ok(None);
        }
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "garbled message");
        Message::decode(&bytes[..count]).map(|message| Some((message, file))).ok_or_else(garbled)
    }
}

/// Sends bytes and a descriptor over a socket of this machine.
pub fn send_file(socket: BorrowedFd<'_>, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let messages = [
            Message::Ready,
            Message::Note { step: 3, text: "ä".into() },
            Message::Failed { step: u16::MAX, errno: libc::EPERM, text: "mounts[1]".into() },
            Message::Map,
            Message::Born { pid: 77 },
            Message::Hooks,
            Message::Go,
            Message::Listener { number: 5 },
        ];
        let (parent, child) = Channel::pair().unwrap();
        for message in &messages {
            child.send(message).unwrap();
            assert_eq!(parent.receive().unwrap().unwrap().0, *message);
        }
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        child.send_with_file(&Message::Terminal, writer.as_fd()).unwrap();
        let (message, file) = parent.receive().unwrap().unwrap();
        assert_eq!(message, Message::Terminal);
        rustix::io::write(file.unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(reader, &mut [0; 2]).unwrap(), 1);
        drop(child);
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = Message::Note { step: 0, text: "ä".repeat(SIZE) };
        let Some(Message::Note { text, .. }) = Message::decode(&long.encode()) else { panic!("not a note") };
        assert!(text.len() <= SIZE - HEADER && text.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn garbage_is_no_message() {
        assert_eq!(Message::decode(&[9; SIZE]), None);
        assert_eq!(Message::decode(&[READY; 3]), None);
    }
}
