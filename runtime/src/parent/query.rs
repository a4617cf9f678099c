//! `state`, `list` and `features`: answers without effect (runtime.md "State", features.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::existing;
use crate::core::capability;
use crate::core::check::OCI_VERSION;
use crate::core::hooks::HookKind;
use crate::core::mount_options::KNOWN;
use crate::core::seccomp::{self, flag};
use crate::core::status::Status;
use crate::state::{StateDir, ids};
use crate::sys;

/// The state of a container as the specification names its fields; `created` is runc's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    oci_version: String,
    pub id: String,
    pub status: Status,
    /// Absent when there is no process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub bundle: PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    created: String,
}

/// Tells the state of a container.
pub fn state(root: &Path, id: &str) -> Result<State> {
    let (dir, record) = existing(root, id)?;
    let status = dir.status(&record)?;
    Ok(State {
        oci_version: OCI_VERSION.to_owned(),
        id: record.id,
        status,
        pid: record.init.filter(|_| matches!(status, Status::Created | Status::Running | Status::Paused)).map(|init| init.pid),
        bundle: record.bundle,
        annotations: record.annotations,
        created: record.created_at,
    })
}

/// Tells the state of every container that is recorded.
pub fn list(root: &Path) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for id in ids(root)? {
        // One without a record is being made or removed at this moment.
        if StateDir::of(root, &id).is_ok_and(|dir| dir.read().is_ok_and(|record| record.is_some())) {
            states.push(state(root, &id).with_context(|| format!("container {id}"))?);
        }
    }
    Ok(states)
}

fn seccomp_features() -> serde_json::Value {
    let known = seccomp::PROFILE_FLAGS.map(|(name, _)| name);
    // The kernel knows it only together with a listener.
    let together = |flag| if flag == flag::WAIT_KILLABLE_RECV { flag | flag::NEW_LISTENER } else { flag };
    let supported = seccomp::PROFILE_FLAGS.into_iter().filter(|(_, flag)| sys::knows_seccomp_flags(together(*flag)));
    json!({
        "enabled": seccomp::Architecture::native().is_some(),
        "actions": seccomp::ACTIONS,
        "operators": seccomp::OPERATORS,
        "archs": seccomp::ARCHITECTURES.map(|(name, _)| name),
        "knownFlags": known,
        "supportedFlags": supported.map(|(name, _)| name).collect::<Vec<_>>()
    })
}

/// What this runtime knows and honours.
pub fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": HookKind::ALL.map(|kind| kind.to_string()),
        "mountOptions": KNOWN.as_slice(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capability::names(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": seccomp_features(),
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "netDevices": { "enabled": true },
            "mountExtensions": { "idmap": { "enabled": true } }
        }
    })
}
