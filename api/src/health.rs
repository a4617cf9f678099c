//! Health: what a container is asked to find out whether it serves, and what came of it.
//!
//! The forms and defaults are Docker's (`HEALTHCHECK`), with HTTP and TCP checks beside commands: those are made by the agent inside the
//! pod's network namespace and need no program in the image.

use serde::{Deserialize, Serialize};

use crate::resource::Millis;

/// How a container's health is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Run in the container; healthy when it exits with 0. A single string is given to `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "command")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// Between the end of one check and the start of the next.
    #[serde(default = "default_interval")]
    pub interval: Millis,
    /// A check that takes longer has failed.
    #[serde(default = "default_timeout")]
    pub timeout: Millis,
    /// From the start of the container; a failure in it is not counted.
    #[serde(default)]
    pub start_period: Millis,
    /// Between checks until the first that succeeds.
    #[serde(default = "default_start_interval")]
    pub start_interval: Millis,
    /// So many failures in a row make the container unhealthy, and its task fails.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// Leaves out the image's own check.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable: bool,
}

/// `GET` answered by a status from 200 to 399, over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    pub port: u16,
    #[serde(default = "default_path")]
    pub path: String,
}

/// A connection that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {
    pub port: u16,
}

/// What the checks have shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing is checked: running is all there is to know.
    #[default]
    None,
    /// No check has succeeded yet.
    Starting,
    Healthy,
    Unhealthy,
}

impl Health {
    /// The word as users see it; empty when nothing is checked.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// Whether nothing is checked.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Whether requests may be sent there.
    pub fn serves(self) -> bool {
        matches!(self, Self::None | Self::Healthy)
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            http: None,
            tcp: None,
            interval: default_interval(),
            timeout: default_timeout(),
            start_period: Millis(0),
            start_interval: default_start_interval(),
            retries: default_retries(),
            disable: false,
        }
    }
}

fn default_interval() -> Millis {
    Millis(30_000)
}

fn default_timeout() -> Millis {
    Millis(30_000)
}

/// Docker's is 5 s; a check costs us no program start, and a service that is up sooner serves sooner.
fn default_start_interval() -> Millis {
    Millis(1_000)
}

fn default_retries() -> u32 {
    3
}

fn default_path() -> String {
    "/".to_owned()
}

/// A list of words, or a line for the shell.
fn command<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of words, or one line for /bin/sh")]
    enum Form {
        Words(Vec<String>),
        Line(String),
    }
    Ok(match Form::deserialize(deserializer)? {
        Form::Words(words) => words,
        Form::Line(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
    })
}
