//! What is said between the commands, the supervisor and the hosts: a line of JSON each way. All of them are one program, so that both ends
//! always have the same version.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::core::plan::{LabPlan, Role};

/// The first thing that the supervisor hears, from the command that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub plan: LabPlan,
    /// The lab goes when this process ends.
    pub owner_pid: Option<i32>,
}

/// What a command asks the supervisor for. A target is HOST or HOST/DAEMON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Only from the command that started the lab: it stays when that command ends.
    Keep,
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
    /// `host` none: every cut; `other` none: every cut of that host.
    Heal {
        host: Option<String>,
        other: Option<String>,
    },
    Down,
}

/// The supervisor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Not the answer yet, but worth telling the user.
    Note(String),
    Status(LabStatus),
    Done,
    Refused(String),
}

/// What the supervisor tells a host's init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostCommand {
    /// The link is plugged in: set up what a host has of its own.
    Furnish,
    Spawn {
        daemon: String,
        words: Vec<String>,
        log: String,
    },
    Kill {
        daemon: String,
    },
}

/// What a host's init tells the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostEvent {
    /// It has its namespaces; the link can be plugged in.
    Unshared,
    /// It takes orders for daemons.
    Ready,
    /// `pid` is the daemon's in the host's own numbering.
    Spawned {
        daemon: String,
        pid: i32,
    },
    /// It ended, or could not be started at all.
    Exited {
        daemon: String,
        end: Exit,
    },
    Failed {
        why: String,
    },
}

/// How a daemon ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// "code 1", "SIGKILL", or why it could not be started.
    pub how: String,
    /// The last lines of its log, when it failed by itself.
    pub last_words: String,
}

/// A host's power; one that boots is off until it is up.
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
    /// How it ended, in words: "code 1", "SIGKILL".
    Exited(String),
    Off,
}

/// A daemon of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// manager, netd or agent
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
    /// Why it is off although nobody asked for that; else empty.
    pub message: String,
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
    /// IP:PORT each, to be reached on the lab's wire only.
    pub managers: Vec<String>,
    pub hosts: Vec<HostStatus>,
    /// Pairs that are cut off from each other.
    pub cuts: Vec<(String, String)>,
}
