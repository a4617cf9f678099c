//! A refusal of a manifest: where, what, why, and what was probably meant.

use std::fmt;

use rcluster_api::validate::nearest;
use thiserror::Error;

/// A place in a manifest, both counted from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.line, self.column)
    }
}

/// Why a manifest is refused. Prints as `web.yaml:12:5: unknown key "replcas" in spec of service web; did you mean "replicas"?`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}:{position}: {message}{}", hint_suffix(hint))]
pub struct ManifestError {
    pub file: String,
    pub position: Position,
    pub message: String,
    /// What mends it; may be empty.
    pub hint: String,
}

fn hint_suffix(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}

/// The same before the file's name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub position: Position,
    pub message: String,
    pub hint: String,
}

impl Problem {
    pub(super) fn new(position: Position, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { position, message: message.into(), hint: hint.into() }
    }

    pub(super) fn in_file(self, file: &str) -> ManifestError {
        ManifestError { file: file.to_owned(), position: self.position, message: self.message, hint: self.hint }
    }
}

/// `did you mean …?`, or the list of what there is.
pub(super) fn suggest(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(candidate) => format!("did you mean {candidate:?}?"),
        None if known.is_empty() => String::new(),
        None => format!("there are {}", known.join(", ")),
    }
}
