//! What is said between the command, the supervisor and the hosts: a line of JSON each way.

use std::io::{BufRead, Write};
use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::plan::Role;

/// What the command asks the supervisor for. Hosts are names; a process of a host is HOST/DAEMON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    Kill {
        targets: Vec<String>,
    },
    Start {
        targets: Vec<String>,
    },
    Pause {
        hosts: Vec<String>,
    },
    Resume {
        hosts: Vec<String>,
    },
    /// `other` none: from everyone.
    Cut {
        host: String,
        other: Option<String>,
    },
    Heal,
    Down,
}

/// The supervisor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Status(LabStatus),
    Done,
    Refused(String),
}

/// What the supervisor tells the command that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Every host is up and its daemons are started.
    Up,
    Failed(String),
}

/// What the supervisor tells a host's init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostCommand {
    Spawn { daemon: String, words: Vec<String>, log: String },
    Kill { daemon: String },
}

/// What a host tells the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostEvent {
    /// The shell has its namespaces; the wire can be plugged.
    Unshared,
    /// The init runs; its PID as the supervisor sees it.
    Booted {
        pid: i32,
    },
    /// The init is ready for commands.
    Ready,
    Spawned {
        daemon: String,
        pid: i32,
    },
    Exited {
        daemon: String,
        how: String,
    },
    Failed {
        why: String,
    },
}

/// A host's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    Up,
    Paused,
    Off,
}

/// What a daemon does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonState {
    Running,
    /// How it ended, in words.
    Exited(String),
    Off,
}

/// A daemon of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub name: String,
    pub state: DaemonState,
    /// In the host's own numbering; 0 when it does not run.
    pub pid: i32,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    pub name: String,
    pub role: Role,
    pub addr: Ipv4Addr,
    pub state: HostState,
    /// Whether it is cut off from all others.
    pub cut: bool,
    /// The host's init on this machine; 0 when it is off.
    pub init_pid: i32,
    pub daemons: Vec<DaemonStatus>,
}

/// A lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    pub name: String,
    pub supervisor_pid: i32,
    pub managers: Vec<String>,
    pub hosts: Vec<HostStatus>,
    /// Pairs that are cut off from each other.
    pub cuts: Vec<(String, String)>,
}

/// Writes one line.
pub fn tell<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), LabError> {
    let mut line = serde_json::to_vec(message).map_err(|source| LabError::Json { what: "a message".to_owned(), source })?;
    line.push(b'\n');
    to.write_all(&line).and_then(|()| to.flush()).map_err(LabError::io("write to a part of the lab"))
}

/// Reads one line; `None` at the end.
pub fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>, LabError> {
    let mut line = String::new();
    if from.read_line(&mut line).map_err(LabError::io("read from a part of the lab"))? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(|source| LabError::Json { what: format!("the message {}", line.trim()), source })
}
