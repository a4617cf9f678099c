//! The hooks that run on the host (runtime.md "Lifecycle").

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::core::check::OCI_VERSION;
use crate::core::hooks::{HookKind, HookState, Hooks};
use crate::hook_process;
use crate::state::Record;

/// What hooks are told of a container; the status is that of their kind.
pub fn told(record: &Record, kind: HookKind, pid: Option<i32>) -> HookState {
    HookState {
        oci_version: OCI_VERSION.to_owned(),
        id: record.id.clone(),
        status: kind.status(),
        pid,
        bundle: record.bundle.clone(),
        annotations: record.annotations.clone(),
    }
}

/// Runs hooks of which none may fail.
pub fn run(hooks: &Hooks, kind: HookKind, record: &Record, pid: i32) -> Result<()> {
    let directory = directory(&record.bundle);
    hook_process::run(hooks, kind, &told(record, kind, Some(pid)), directory).map_err(|why| anyhow!(why))
}

/// Runs what is to run when the container is no more, each of them; those that failed are told, and stop nothing.
pub fn after(record: &Record) -> Vec<String> {
    let state = told(record, HookKind::Poststop, None);
    hook_process::run_each(&record.hooks, HookKind::Poststop, &state, directory(&record.bundle)).collect()
}

/// The bundle, where runc runs them, as long as it exists.
fn directory(bundle: &Path) -> Option<&Path> {
    bundle.is_dir().then_some(bundle)
}
