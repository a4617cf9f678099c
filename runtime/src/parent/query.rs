//! `state`, `list` and `features`: answers without effect (runtime.md "State", features.md).

use std::collections::BTreeMap;
use std::fs;
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
use crate::core::user;
use crate::state::{StateDir, ids};
use crate::sys;

/// linux/magic.h.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The state of a container: what the specification names, and what runc adds (`rootfs`, `created`, `owner`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    oci_version: String,
    pub id: String,
    /// 0 when there is no process.
    pub pid: i32,
    pub status: Status,
    pub bundle: PathBuf,
    /// Absent when an earlier version of this runtime made the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<PathBuf>,
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// Empty but in a list.
    pub owner: String,
}

/// Tells the state of a container.
pub fn state(root: &Path, id: &str) -> Result<State> {
    let (dir, record) = existing(root, id)?;
    let status = dir.status(&record)?;
    Ok(State {
        oci_version: OCI_VERSION.to_owned(),
        id: record.id,
        status,
        pid: record.init.filter(|_| matches!(status, Status::Created | Status::Running | Status::Paused)).map_or(0, |init| init.pid),
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created_at,
        annotations: record.annotations,
        owner: String::new(),
    })
}

/// Tells the state of every container that is recorded, and whose it is.
pub fn list(root: &Path) -> Result<Vec<State>> {
    // Without it, users have numbers.
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let mut states = Vec::new();
    for id in ids(root)? {
        // One without a record is being made or removed at this moment.
        let Some(dir) = StateDir::of(root, &id).ok().filter(|dir| dir.read().is_ok_and(|record| record.is_some())) else { continue };
        let told = state(root, &id).and_then(|state| Ok(State { owner: user::name(&passwd, dir.owner()?), ..state }));
        match told {
            // It was removed meanwhile.
            Err(_) if !dir.exists() => {}
            told => states.push(told.with_context(|| format!("container {id}"))?),
        }
    }
    Ok(states)
}

/// Whether what is mounted where cgroups are is version 2: then no other may be (cgroups(7)).
pub fn only_version_2() -> bool {
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|seen| seen.f_type == CGROUP2_SUPER_MAGIC)
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
