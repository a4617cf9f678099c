//! The only printing of this crate: data to stdout in the form asked for, talk to stderr.
//!
//! Everything printed as JSON or YAML is the same value that the table shows.

pub mod describe;
pub mod progress;
pub mod rows;
pub mod table;

use std::io::{self, IsTerminal, Write};

use rcluster_api::rest::ClusterJson;
use serde::Serialize;

use crate::args::Format;
use crate::error::CliError;
use crate::views::View;

/// Prints in one form.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    pub format: Format,
}

/// How many values a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// The value itself.
    One,
    /// A list, also of one or none.
    Many,
}

impl Out {
    /// Whether columns for people are wanted.
    pub fn is_table(self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Prints views of one kind; `empty` is said when there are none.
    pub fn views(self, views: &[View], number: Number, now_ms: u64, empty: &str) -> Result<(), CliError> {
        match self.format {
            Format::Table | Format::Wide => {
                if views.is_empty() {
                    return talk(empty);
                }
                data(&rows::table(views, self.format == Format::Wide, now_ms).to_string())
            }
            Format::Json | Format::Yaml => match (number, views) {
                (Number::One, [view]) => self.value(view),
                _ if self.format == Format::Json => self.value(&views),
                _ => data(&views.iter().map(yaml).collect::<Result<Vec<_>, _>>()?.join("---\n")),
            },
            Format::Name => data(&views.iter().map(|view| format!("{}/{}\n", view.kind(), view.name())).collect::<String>()),
        }
    }

    /// Prints a value as JSON, or as YAML when that was asked for.
    pub fn value<T: Serialize>(self, value: &T) -> Result<(), CliError> {
        if self.format == Format::Yaml { data(&yaml(value)?) } else { data(&(json(value, true)? + "\n")) }
    }

    /// Prints a value as one line of JSON, or as a YAML document: one of a stream.
    pub fn streamed<T: Serialize>(self, value: &T) -> Result<(), CliError> {
        if self.format == Format::Yaml { data(&format!("---\n{}", yaml(value)?)) } else { data(&(json(value, false)? + "\n")) }
    }

    /// Prints the managers' standing.
    pub fn cluster(self, cluster: &ClusterJson, nodes: &[View]) -> Result<(), CliError> {
        if self.is_table() { data(&rows::cluster(cluster, nodes)) } else { self.value(cluster) }
    }
}

fn json<T: Serialize>(value: &T, pretty: bool) -> Result<String, CliError> {
    let printed = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    printed.map_err(|error| CliError::refused(format!("print as JSON: {error}"), ""))
}

fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_yaml::to_string(value).map_err(|error| CliError::refused(format!("print as YAML: {error}"), ""))
}

/// Writes data to stdout.
pub fn data(text: &str) -> Result<(), CliError> {
    bytes(text.as_bytes())
}

/// Writes bytes to stdout as they are.
pub fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| gone_or(&error))
}

/// Says a line on stderr.
pub fn talk(line: &str) -> Result<(), CliError> {
    talk_raw(&format!("{line}\n"))
}

/// Says something on stderr as it is.
pub fn talk_raw(text: &str) -> Result<(), CliError> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).map_err(|error| gone_or(&error))
}

fn gone_or(error: &io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe { CliError::ReaderGone } else { CliError::refused(format!("write output: {error}"), "") }
}

/// Whether a person looks at stdout.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether a person looks at stderr.
pub fn talks_to_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether a person can be asked.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && talks_to_terminal()
}

/// Says why a command did not succeed, and what mends it.
pub fn failure(error: &CliError) {
    if matches!(error, CliError::ReaderGone | CliError::Ended { .. }) {
        return;
    }
    let hint = if error.hint().is_empty() { String::new() } else { format!("hint: {}\n", error.hint()) };
    // When stderr is gone too there is nobody left to tell; the exit code remains.
    drop(talk_raw(&format!("error: {error}\n{hint}")));
}
