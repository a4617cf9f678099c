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
//!   │ ◄───────────────────────── Born{pid} │ it gave birth to the container's process, which goes on in its place
//!   │ ◄──────────────── Note{step, text} │ weaker than asked for, going on
//!   │ ◄───────── Failed{step, errno, text} │ and the child is gone: create undoes all it did
//!   │ ◄──────────────────────────── Hooks │ the mounts are made: prestart and createRuntime are wanted
//!   │ Go ──────────────────────────────► │ they ran
//!   │ ◄──────────────────────────── Ready │ every step is done
//!   │ Go ──────────────────────────────► │ only where an usher bore it: the parent knows it
//!   │ state.json := created              │ reads exec.fifo … blocks
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

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

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
    /// A step failed; `errno` is 0 when no system call did.
    Failed { step: u16, errno: i32, text: String },
    /// The ids of a new user namespace are to be mapped; waits for `Go`.
    Map,
    /// The container's process was born; the sender is done.
    Born { pid: i32 },
    /// The hooks of the host are to be run; waits for `Go`.
    Hooks,
    /// From the parent: what was asked for is done.
    Go,
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

impl Message {
    /// The message as bytes; a text too long is cut.
    pub fn encode(&self) -> [u8; SIZE] {
        let (kind, step, errno, text) = match self {
            Self::Ready => (READY, 0, 0, ""),
            Self::Note { step, text } => (NOTE, *step, 0, text.as_str()),
            Self::Failed { step, errno, text } => (FAILED, *step, *errno, text.as_str()),
            Self::Map => (MAP, 0, 0, ""),
            Self::Born { pid } => (BORN, 0, *pid, ""),
            Self::Hooks => (HOOKS, 0, 0, ""),
            Self::Go => (GO, 0, 0, ""),
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
            NOTE => Some(Self::Note { step, text }),
            FAILED => Some(Self::Failed { step, errno, text }),
            MAP => Some(Self::Map),
            BORN => Some(Self::Born { pid: errno }),
            HOOKS => Some(Self::Hooks),
            GO => Some(Self::Go),
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

    /// Sends a message whole.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        rustix::net::send(&self.0, &message.encode(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Says no more: who waits for a message hears that none comes.
    pub fn fall_silent(&self) {
        // An error means that the other end is gone.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    /// Takes the next message; `None` when the other end is gone.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = [0; SIZE];
        let count = loop {
            match rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty()) {
                Ok((count, _)) => break count,
                Err(rustix::io::Errno::INTR) => {}
                // The other end died with something of ours unread.
                Err(rustix::io::Errno::CONNRESET) => break 0,
                Err(error) => return Err(error.into()),
            }
        };
        if count == 0 {
            return Ok(None);
        }
        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "garbled message");
        Message::decode(&bytes[..count]).map(Some).ok_or_else(garbled)
    }
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
        ];
        let (parent, child) = Channel::pair().unwrap();
        for message in &messages {
            child.send(message).unwrap();
            assert_eq!(parent.receive().unwrap().as_ref(), Some(message));
        }
        drop(child);
        assert_eq!(parent.receive().unwrap(), None);
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
