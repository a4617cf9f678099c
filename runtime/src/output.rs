//! All that this program prints: data to standard output, talk to standard error and to the log of `--log`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::core::time::rfc3339;

/// How lines of the log look; both as runc's, which callers parse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How much a line of the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Warning,
    Error,
}

/// Where talk goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    pub debug: bool,
}

impl Log {
    /// Makes the log, if one is asked for; a caller that reads it for the error must not find none.
    pub fn open(&self) -> Result<(), String> {
        let Some(path) = &self.file else { return Ok(()) };
        append(path).map(drop).map_err(|error| format!("--log {}: {error}", path.display()))
    }

    /// Says something on standard error, and in the log if there is one.
    pub fn say(&self, level: Level, message: &str) {
        if level == Level::Debug && !self.debug {
            return;
        }
        let name = match level {
            Level::Debug => "debug",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        if let Some(path) = &self.file {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let time = rfc3339(since.as_secs(), since.subsec_nanos());
            let line = match self.format {
                LogFormat::Text => format!("time=\"{time}\" level={name} msg={message:?}\n"),
                LogFormat::Json => format!("{}\n", json!({ "level": name, "msg": message, "time": time })),
            };
            let written = append(path).and_then(|mut log| log.write_all(line.as_bytes()));
            if let Err(error) = written {
                eprintln!("warning: write log {}: {error}", path.display());
            }
        }
        // With a log, standard error may be the container's own: only what ends the call is told there.
        if self.file.is_none() || level == Level::Error {
            eprintln!("{name}: {message}");
        }
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Writes bytes to standard output as they are.
pub fn bytes(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Prints data; a reader that has gone away is no error.
pub fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}
