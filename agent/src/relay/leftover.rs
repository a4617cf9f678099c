//! Commands that an agent before this one was running, for users or to check health, when it was killed: nobody hears them any more, so they
//! end.
//!
//! A command's number stands in a file of its container's bundle. A number may have gone to another process since; one that is not in
//! the container's cgroup is left alone.

use std::fs;
use std::path::Path;

use rcluster_api::id::is_id;
use rustix::process::Signal;
use tracing::{info, warn};

use crate::exec::process;
use crate::place::{COMMAND, Places};

/// Ends what is left of users' commands on this node, and removes their files.
pub fn end(places: &Places) {
    for task in names(&places.tasks()).into_iter().filter(|name| is_id(name)) {
        let task_dir = places.tasks().join(&task);
        for bundle in names(&task_dir) {
            let Some(container) = bundle.strip_prefix("c-") else { continue };
            let cgroup = format!("/{task}/{container}");
            for file in names(&task_dir.join(&bundle)).into_iter().filter(|name| name.starts_with(COMMAND)) {
                let path = task_dir.join(&bundle).join(&file);
                if file.ends_with(".pid") {
                    end_one(&path, &cgroup);
                }
                remove(&path);
            }
        }
    }
}

fn end_one(pid_file: &Path, cgroup: &str) {
    let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    let Some(process) = pid.and_then(|pid| process::look(pid).ok().flatten()) else { return };
    // Looked at after the start time was taken: a number that changes hands in between is then not signalled.
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
    if !cgroups.lines().any(|line| line.ends_with(cgroup)) {
        return;
    }
    match process::signal(process, Signal::KILL) {
        Ok(()) => info!(pid = process.pid, cgroup, "ended a command whose user has gone"),
        Err(error) => warn!(pid = process.pid, cgroup, %error, "cannot end a command whose user has gone"),
    }
}

/// The names in a directory; none when it is not there.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(path = %path.display(), %error, "cannot remove a file of a command that has ended");
    }
}
