//! Hooks: programs of the host's or the container's that run at set points of a container's life (runtime-spec, config.md "POSIX-platform
//! Hooks", runtime.md "Lifecycle").
//!
//! In: `hooks` as written. Out: [`Hooks`], checked, and the state they are told. Never runs one.
//!
//! ```text
//! create  prestart, createRuntime   on the host, when the container's mounts are made and before they become its root
//!         createContainer           in the container's namespaces, still with the host's files
//! start   startContainer            in the container, before its program
//!         poststart                 on the host, once the program runs
//! delete  poststop                  on the host, when nothing is left; also when one of the above or `create` failed
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::status::Status;

/// The six kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookKind {
    pub const ALL: [Self; 6] =
        [Self::Prestart, Self::CreateRuntime, Self::CreateContainer, Self::StartContainer, Self::Poststart, Self::Poststop];

    /// What a hook of this kind is told of the container.
    pub fn status(self) -> Status {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => Status::Creating,
            Self::StartContainer => Status::Created,
            Self::Poststart => Status::Running,
            Self::Poststop => Status::Stopped,
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// One program, as execve(2) takes it. Recorded with the container, so the form only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: PathBuf,
    /// With the program's own name first.
    pub args: Vec<String>,
    /// `NAME=value` each, and nothing else.
    pub env: Vec<String>,
    pub timeout_s: Option<u64>,
}

/// All hooks of a container, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

impl Hooks {
    pub fn of(&self, kind: HookKind) -> &[Hook] {
        match kind {
            HookKind::Prestart => &self.prestart,
            HookKind::CreateRuntime => &self.create_runtime,
            HookKind::CreateContainer => &self.create_container,
            HookKind::StartContainer => &self.start_container,
            HookKind::Poststart => &self.poststart,
            HookKind::Poststop => &self.poststop,
        }
    }
}

/// The container's state as a hook reads it from its standard input (runtime.md "State").
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    pub oci_version: String,
    pub id: String,
    pub status: Status,
    /// As seen from where the hook runs; none when the process is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub bundle: PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
