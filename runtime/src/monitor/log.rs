//! A container's output as lines of JSON: `{"t":"2026-01-31T12:00:00.000000001Z","s":"stdout","l":"text"}`.
//!
//! In: bytes from a pipe or a terminal. Out: whole lines in a file that is renamed to `FILE.1` when it is full. A line longer than the limit, or cut by
//! the container's end, is written in pieces; a piece with more to come carries `"p":true`. Never blocks the container: what cannot be
//! written, as on a full disk, is counted and lost.

use std::fs::{File, OpenOptions, rename};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use serde::Serialize;

use super::sink::Sink;
use crate::core::log_sink::{Line, Output};
use crate::core::request::OUTPUT_BYTES_MAX;
use crate::core::time::rfc3339;

const LINE_BYTES_MAX: usize = 16 << 10;
/// As much as one message to a viewer of a terminal holds.
const READ_BYTES: usize = OUTPUT_BYTES_MAX;

/// Which of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Serialize)]
struct Entry<'a> {
    t: &'a str,
    s: Stream,
    l: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    p: bool,
}

/// The file, at most two of `bytes_max` together, and the daemon that gets the same lines.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    lost_bytes: u64,
    is_kept: bool,
    sink: Option<Sink>,
}

impl LogFile {
    /// Opens a log to append to.
    pub fn open(path: &Path, bytes_max: u64, output: Option<Output>) -> Result<Self> {
        let file = open(path).with_context(|| format!("open log {}", path.display()))?;
        let bytes = file.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        let (is_kept, sink) = match output {
            None => (true, None),
            Some(Output::Nowhere) => (false, None),
            Some(Output::Sent { address, form }) => (true, Some(Sink::new(address, form))),
        };
        let mut log = Self { path: path.to_owned(), file, bytes, bytes_max, lost_bytes: 0, is_kept, sink };
        if !is_kept {
            log.note("the output of this container is not kept (logging.driver none)");
        }
        Ok(log)
    }

    /// To be polled for room in the daemon's socket, when something waits for it.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        self.sink.as_ref().and_then(Sink::waits_for)
    }

    /// Sends what waits for the daemon, as far as there is room.
    pub fn send_rest(&mut self) {
        self.with_sink(Sink::flush);
    }

    /// The last lines are written: the daemon gets a moment to take the rest.
    pub fn finish(&mut self) {
        self.with_sink(Sink::finish);
    }

    fn with_sink(&mut self, act: impl FnOnce(&mut Sink)) {
        let Some(sink) = &mut self.sink else { return };
        act(sink);
        for note in sink.take_notes() {
            self.note(&note);
        }
    }

    /// A line of the monitor's own.
    fn note(&mut self, text: &str) {
        self.keep(&now(), Stream::Stderr, &format!("rcluster: {text}"), false);
    }

    /// Output that could not be written.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn write(&mut self, stream: Stream, line: &[u8], partial: bool) {
        let time = now();
        if self.is_kept {
            self.keep(&time, stream, &String::from_utf8_lossy(line), partial);
        }
        let is_error = stream == Stream::Stderr;
        self.with_sink(|sink| sink.send(&Line { time: &time, is_error, text: line, goes_on: partial }));
    }

    fn keep(&mut self, time: &str, stream: Stream, line: &str, partial: bool) {
        let Ok(mut entry) = serde_json::to_vec(&Entry { t: time, s: stream, l: line, p: partial }) else { return };
        entry.push(b'\n');
        let length = entry.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.bytes_max {
            self.rotate();
        }
        match self.file.write_all(&entry) {
            Ok(()) => self.bytes += length,
            Err(_) => self.lost_bytes += line.len() as u64,
        }
    }

    /// Begins a new file; the last one stays as `FILE.1`. When that fails, the old one goes on.
    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        if rename(&self.path, old).is_ok()
            && let Ok(file) = open(&self.path)
        {
            self.file = file;
        }
        self.bytes = 0;
    }
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_nanos())
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// One output of the container.
#[derive(Debug)]
pub struct Pipe {
    stream: Stream,
    /// `None` once every writer is gone.
    file: Option<File>,
    /// Whether a carriage return goes before each line's end.
    is_terminal: bool,
    /// A line that has not ended.
    line: Vec<u8>,
}

impl Pipe {
    pub fn new(stream: Stream, pipe: OwnedFd) -> Self {
        Self { stream, file: Some(pipe.into()), is_terminal: false, line: Vec::new() }
    }

    /// The master side of a terminal, which has both outputs in one.
    pub fn terminal(master: OwnedFd) -> Self {
        Self { is_terminal: true, ..Self::new(Stream::Stdout, master) }
    }

    /// Makes reads return at once.
    pub fn set_nonblocking(&self) -> Result<()> {
        match &self.file {
            Some(file) => {
                let flags = rustix::fs::fcntl_getfl(file).context("look at a pipe")?;
                Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK).context("set a pipe")?)
            }
            None => Ok(()),
        }
    }

    /// To poll; `None` at the end.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Copies what is there, but not without end, and shows it; returns whether anything was.
    pub fn copy_some(&mut self, log: &mut LogFile, show: impl FnOnce(&[u8])) -> bool {
        let mut bytes = [0; READ_BYTES];
        let Some(file) = &mut self.file else { return false };
        match file.read(&mut bytes) {
            Ok(0) => {
                self.file = None;
                self.flush(log);
                false
            }
            Ok(count) => {
                show(&bytes[..count]);
                self.take(&bytes[..count], log);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            // EIO is how a terminal says that nobody has its other side open any more. A process that opens it again is not heard, as under runc.
            Err(_) => {
                self.file = None;
                false
            }
        }
    }

    /// Copies what the container left in the pipe. One that it handed on may be written to for ever: no more than a pipe holds is taken.
    pub fn drain(&mut self, log: &mut LogFile, mut show: impl FnMut(&[u8])) {
        const PIPE_BYTES_MAX: usize = 1 << 20;
        for _ in 0..PIPE_BYTES_MAX / READ_BYTES {
            if !self.copy_some(log, &mut show) {
                break;
            }
        }
        self.flush(log);
    }

    fn take(&mut self, mut bytes: &[u8], log: &mut LogFile) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.append(&bytes[..end], log);
            if self.is_terminal && self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            log.write(self.stream, &self.line, false);
            self.line.clear();
            bytes = &bytes[end + 1..];
        }
        self.append(bytes, log);
    }

    fn append(&mut self, bytes: &[u8], log: &mut LogFile) {
        self.line.extend_from_slice(bytes);
        while self.line.len() > LINE_BYTES_MAX {
            let cut = boundary(&self.line, LINE_BYTES_MAX);
            log.write(self.stream, &self.line[..cut], true);
            self.line.drain(..cut);
        }
    }

    fn flush(&mut self, log: &mut LogFile) {
        if !self.line.is_empty() {
            log.write(self.stream, &self.line, false);
            self.line = Vec::new();
        }
    }
}

/// The last place at or before `most` where no character of UTF-8 is cut.
fn boundary(bytes: &[u8], most: usize) -> usize {
    (most.saturating_sub(3)..=most).rev().find(|place| bytes.get(*place).is_none_or(|byte| byte & 0xc0 != 0x80)).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path) -> Vec<(String, bool)> {
        let text = std::fs::read_to_string(path).unwrap();
        let entry = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value["t"].as_str().unwrap().ends_with('Z') && value["s"] == "stderr", "{line}");
            (value["l"].as_str().unwrap().to_owned(), value["p"] == true)
        };
        text.lines().map(entry).collect()
    }

    fn copy(path: &Path, bytes_max: u64, chunks: &[&[u8]]) {
        let mut log = LogFile::open(path, bytes_max, None).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut pipe = Pipe::new(Stream::Stderr, read);
        pipe.set_nonblocking().unwrap();
        for chunk in chunks {
            rustix::io::write(&write, chunk).unwrap();
            while pipe.copy_some(&mut log, |_| {}) {}
        }
        pipe.drain(&mut log, |_| {});
    }

    #[test]
    fn lines_are_joined_and_the_last_is_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        copy(&path, 1 << 20, &[b"one\ntw", b"o\n\nbad \xff\nend"]);
        let lines: Vec<_> = written(&path).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, ["one", "two", "", "bad \u{fffd}", "end"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = format!("x{}", "ä".repeat(LINE_BYTES_MAX / 2));
        copy(&path, 1 << 20, &[long.as_bytes(), b"\n"]);
        let lines = written(&path);
        assert_eq!(lines.iter().map(|(_, partial)| *partial).collect::<Vec<_>>(), [true, false]);
        assert_eq!(lines.iter().map(|(line, _)| line.as_str()).collect::<String>(), long);
    }

    #[test]
    fn a_full_file_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = [b'x'; 500];
        for _ in 0..10 {
            copy(&path, 2000, &[&line, b"\n"]);
        }
        let sizes = ["log", "log.1"].map(|name| std::fs::metadata(dir.path().join(name)).unwrap().len());
        assert!(sizes.iter().all(|size| (500..=2000).contains(size)), "{sizes:?}");
        assert!(!dir.path().join("log.2").exists());
    }
}
