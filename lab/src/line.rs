//! Lines of JSON over a socket between the commands, the supervisor and the hosts.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::LabError;

/// No message is longer; a peer that sends more is not one of ours.
const LINE_BYTES_MAX: usize = 4 << 20;

/// One end of a conversation.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Line {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Reads then return what is there and never wait.
    pub fn never_wait(&self) -> Result<(), LabError> {
        self.stream.set_nonblocking(true).map_err(LabError::io("set up a socket"))
    }

    /// Waits at most so long for an answer.
    pub fn wait_at_most(&self, limit: Duration) -> Result<(), LabError> {
        self.stream.set_read_timeout(Some(limit)).map_err(LabError::io("set up a socket"))
    }

    /// Sends one message.
    pub fn tell<T: Serialize>(&self, message: &T) -> Result<(), LabError> {
        let mut bytes = serde_json::to_vec(message).map_err(|source| LabError::Json { what: "a message".to_owned(), source })?;
        bytes.push(b'\n');
        (&self.stream).write_all(&bytes).map_err(LabError::io("tell a part of the lab"))
    }

    /// Waits for one message; `None` when the peer has gone.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LabError> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// All messages that are there, and whether the peer is still there.
    pub fn hear_all<T: DeserializeOwned>(&mut self) -> Result<(Vec<T>, bool), LabError> {
        let there = loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => break false,
                Err(LabError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => break true,
                Err(error) => return Err(error),
            }
        };
        let mut messages = Vec::new();
        while let Some(message) = self.next()? {
            messages.push(message);
        }
        Ok((messages, there))
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LabError> {
        let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.pending.drain(..=end).collect();
        let decoded = serde_json::from_slice(&line);
        decoded.map(Some).map_err(|source| LabError::Json { what: String::from_utf8_lossy(&line).trim().to_owned(), source })
    }

    /// Reads once; false at the end.
    fn fill(&mut self) -> Result<bool, LabError> {
        let mut bytes = [0; 16 * 1024];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.pending.extend_from_slice(bytes.get(..length).unwrap_or_default());
                    if self.pending.len() > LINE_BYTES_MAX {
                        return Err(LabError::Refused(format!("a part of the lab sent more than {LINE_BYTES_MAX} bytes in a line")));
                    }
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(LabError::io("hear a part of the lab")(error)),
            }
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
