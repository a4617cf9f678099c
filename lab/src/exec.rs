//! A command on a host of a lab, or inside a container of a task there: as if one had logged in.
//!
//! The calling process moves into the namespaces and the cgroup and starts the command; it must be single-threaded.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use crate::LabError;
use crate::cgroup::Cgroups;
use crate::client::Lab;
use crate::plan::cgroup_root;
use crate::supervisor::open_pid;

/// Where a command is to run.
struct Place {
    /// A process that is there.
    pid: i32,
    /// Its cgroup, from the root of each hierarchy.
    cgroup: String,
    namespaces: CloneFlags,
    environment: BTreeMap<String, String>,
}

/// Runs `command` on `host`, inside a container of the task with the id `task` if one is given; the answer is its exit code.
pub fn exec(lab: &Lab, host: &str, task: Option<&str>, container: Option<&str>, command: &[String]) -> Result<i32, LabError> {
    let (program, arguments) = command.split_first().ok_or_else(|| LabError::Refused("no command is given".to_owned()))?;
    let status = lab.status()?;
    let known = status.hosts.iter().find(|known| known.name == host);
    let known = known.ok_or_else(|| LabError::Refused(format!("lab {} has no host {host}", lab.name())))?;
    if known.init_pid == 0 {
        return Err(LabError::Refused(format!("{host} is off; start it with `rclusterctl lab start {host}`")));
    }
    let own =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    let cgroup = format!("{}/{host}", cgroup_root(lab.name()));
    let place = match task {
        None => Place { pid: known.init_pid, cgroup: format!("{cgroup}/system"), namespaces: own, environment: BTreeMap::new() },
        Some(task) => in_task(&cgroup, task, container, own | CloneFlags::CLONE_NEWCGROUP)?,
    };
    let target = open_pid(place.pid)?;
    Cgroups::find()?.join(&place.cgroup, 0)?;
    // A mount namespace cannot be entered while the root directory is shared with another process.
    unshare(CloneFlags::CLONE_FS).map_err(LabError::kernel("stop sharing the root directory"))?;
    setns(&target, place.namespaces).map_err(LabError::kernel(format!("enter the namespaces of process {}", place.pid)))?;
    std::env::set_current_dir("/").map_err(LabError::io("go to the root directory"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    if task.is_some() {
        command.env_clear().envs(place.environment);
    }
    let ended = command.status().map_err(LabError::io(format!("run {program}")))?;
    Ok(ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or_default()))
}

/// The container of a task: by its cgroup `pods/TASK/CONTAINER`.
fn in_task(host_cgroup: &str, task: &str, container: Option<&str>, namespaces: CloneFlags) -> Result<Place, LabError> {
    let cgroups = Cgroups::find()?;
    let tasks = format!("{host_cgroup}/pods");
    let gone = || LabError::Refused(format!("no container of task {task} runs on the host"));
    let mut containers = cgroups.children(&format!("{tasks}/{task}"));
    containers.sort();
    let name = match container {
        Some(wanted) if containers.iter().any(|name| name == wanted) => wanted.to_owned(),
        Some(wanted) => return Err(LabError::Refused(format!("task {task} has no container {wanted}; it has {}", containers.join(", ")))),
        None => containers.into_iter().next().ok_or_else(gone)?,
    };
    let cgroup = format!("{tasks}/{task}/{name}");
    let pid = cgroups.processes(&cgroup)?.into_iter().find(|pid| is_init(*pid)).ok_or_else(gone)?;
    let text = fs::read(format!("/proc/{pid}/environ")).map_err(LabError::io("read the container's environment"))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let environment =
        text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Place { pid, cgroup, namespaces, environment })
}

/// Whether a process is the first of its PID namespace (proc_pid_status(5), NSpid).
fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("NSpid:")).and_then(|pids| pids.split_whitespace().last()) == Some("1")
}
