//! A command on a host of a lab, or inside a container of a task there: as if one had logged in.
//!
//! The caller stays where it is. It starts this program again inside the PID namespace; that process joins the cgroup, enters the other
//! namespaces and becomes the command, which therefore dies with the host, pauses with it, and ends when the caller does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write, stderr};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{chroot, fchdir};

use crate::PART;
use crate::cgroup::Cgroups;
use crate::client::Lab;
use crate::core::plan::cgroup_root;
use crate::error::LabError;
use crate::protocol::HostState;

/// A container, or a host as a whole.
struct Place {
    /// A process that is there.
    pid: i32,
    /// Its cgroup below the root of each hierarchy.
    cgroup: String,
    /// The container's; none: the caller's.
    environment: Option<BTreeMap<String, String>>,
}

/// One container that runs on a host.
struct Container {
    task_id: String,
    /// SERVICE.SLOT, as the container's environment has it.
    task_name: String,
    name: String,
    place: Place,
}

/// Runs `command` on `host`, or inside a container of `task` (an id, the beginning of one, or a name) if one is given; `container` none is
/// the first. The answer is its exit code, as a shell counts: 128 and the signal, 127 when there is no such program.
pub fn exec(lab: &Lab, host: &str, task: Option<&str>, container: Option<&str>, command: &[String]) -> Result<i32, LabError> {
    if command.is_empty() {
        return Err(LabError::Refused("no command is given".to_owned()));
    }
    let status = lab.status()?;
    let names = || status.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ");
    let known = status.hosts.iter().find(|known| known.name == host);
    let known = known.ok_or_else(|| LabError::Refused(format!("lab {} has no host {host}; it has {}", lab.name(), names())))?;
    let refuse = |state, verb| LabError::Refused(format!("{host} is {state}; `rclusterctl lab {verb} --lab {} {host}` first", lab.name()));
    match known.state {
        HostState::Up => {}
        HostState::Paused => return Err(refuse("paused", "resume")),
        HostState::Off => return Err(refuse("off", "start")),
    }
    let cgroup = format!("{}/{host}", cgroup_root(lab.name()));
    let place = match task {
        None => Place { pid: known.init_pid, cgroup: format!("{cgroup}/system"), environment: None },
        Some(task) => find(&format!("{cgroup}/pods"), host, task, container)?,
    };
    let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let mut stage = Command::new(program);
    stage.args([PART, "exec", &place.pid.to_string(), &place.cgroup, if task.is_some() { "container" } else { "host" }]).args(command);
    if let Some(environment) = place.environment {
        stage.env_clear().envs(environment);
    }
    let own = namespace("self", "pid")?;
    let theirs = namespace(&place.pid.to_string(), "pid")?;
    let enter = |namespace: &File| setns(namespace.as_fd(), CloneFlags::CLONE_NEWPID).map_err(LabError::kernel("enter a PID namespace"));
    // It concerns only children of this thread.
    enter(&theirs)?;
    let spawned = stage.spawn().map_err(LabError::io("start a process on the host"));
    enter(&own)?;
    let ended = spawned?.wait().map_err(LabError::io("wait for the command"))?;
    Ok(ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or_default()))
}

fn namespace(pid: &str, kind: &str) -> Result<File, LabError> {
    let path = format!("/proc/{pid}/ns/{kind}");
    File::open(&path).map_err(LabError::io(format!("open {path}")))
}

/// The containers on a host: their cgroups are `pods/TASK/CONTAINER`.
fn containers(cgroups: &Cgroups, pods: &str) -> Result<Vec<Container>, LabError> {
    let mut found = Vec::new();
    for task_id in cgroups.children(pods) {
        for name in cgroups.children(&format!("{pods}/{task_id}")) {
            let cgroup = format!("{pods}/{task_id}/{name}");
            let Some(pid) = cgroups.processes(&cgroup)?.into_iter().find(|pid| is_init(*pid)) else { continue };
            let environment = match environment(pid) {
                // It ended while it was being looked at.
                Err(LabError::Io { source, .. }) if is_gone(&source) => continue,
                read => read?,
            };
            let task_name = environment.get("RCLUSTER_TASK").cloned().unwrap_or_default();
            let place = Place { pid, cgroup, environment: Some(environment) };
            found.push(Container { task_id: task_id.clone(), task_name, name, place });
        }
    }
    Ok(found)
}

fn find(pods: &str, host: &str, task: &str, container: Option<&str>) -> Result<Place, LabError> {
    let mut found = containers(&Cgroups::find()?, pods)?;
    let all: Vec<String> = found.iter().map(|container| format!("{} ({})", container.task_name, container.task_id)).collect();
    found.retain(|known| known.task_name == task || (!task.is_empty() && known.task_id.starts_with(task)));
    let ids: Vec<&str> = found.iter().map(|known| known.task_id.as_str()).collect();
    match ids.first() {
        None => {
            let running = if all.is_empty() { "nothing runs there".to_owned() } else { format!("there are {}", all.join(", ")) };
            return Err(LabError::Refused(format!("no container of task {task} runs on {host}: {running}")));
        }
        Some(first) if ids.iter().any(|id| id != first) => {
            return Err(LabError::Refused(format!("{task} can be any of the tasks {} on {host}; give the whole id", ids.join(", "))));
        }
        Some(_) => {}
    }
    let names: Vec<String> = found.iter().map(|known| known.name.clone()).collect();
    let chosen = found.into_iter().find(|known| container.is_none_or(|wanted| wanted == known.name));
    chosen.map(|known| known.place).ok_or_else(|| {
        LabError::Refused(format!("task {task} has no container {}; it has {}", container.unwrap_or_default(), names.join(", ")))
    })
}

/// Whether a process is the first of its PID namespace (proc_pid_status(5), NSpid); one that has ended is not.
fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("NSpid:")).and_then(|pids| pids.split_whitespace().last()) == Some("1")
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn environment(pid: i32) -> Result<BTreeMap<String, String>, LabError> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).map_err(LabError::io("read the container's environment"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Runs as the process that becomes the command: PID CGROUP host|container COMMAND…
pub fn main(arguments: &[String]) -> i32 {
    let (code, why) = match arguments {
        [pid, cgroup, kind, program, rest @ ..] => match move_in(pid, cgroup, kind == "container") {
            Ok(()) => {
                let error = Command::new(program).args(rest).exec();
                (if error.kind() == ErrorKind::NotFound { 127 } else { 126 }, format!("run {program}: {error}"))
            }
            Err(error) => (125, error.with_causes()),
        },
        _ => (125, "this is a part of a lab and not to be started by hand".to_owned()),
    };
    // The exit code says it too.
    drop(writeln!(stderr(), "rclusterctl lab exec: {why}"));
    code
}

fn move_in(pid: &str, cgroup: &str, container: bool) -> Result<(), LabError> {
    set_pdeathsig(Signal::SIGKILL).map_err(LabError::kernel("ask to die with the caller"))?;
    Cgroups::find()?.join(cgroup)?;
    let mut kinds = vec![("uts", CloneFlags::CLONE_NEWUTS), ("ipc", CloneFlags::CLONE_NEWIPC), ("net", CloneFlags::CLONE_NEWNET)];
    if container {
        kinds.push(("cgroup", CloneFlags::CLONE_NEWCGROUP));
    }
    // The mount namespace last: after it, /proc is another one.
    kinds.push(("mnt", CloneFlags::CLONE_NEWNS));
    let root_path = format!("/proc/{pid}/root");
    let root = File::open(&root_path).map_err(LabError::io(format!("open {root_path}")))?;
    for (kind, flag) in kinds {
        setns(namespace(pid, kind)?.as_fd(), flag).map_err(LabError::kernel(format!("enter the {kind} namespace of process {pid}")))?;
    }
    fchdir(root.as_fd()).and_then(|()| chroot(".")).map_err(LabError::kernel("enter the root directory"))?;
    std::env::set_current_dir("/").map_err(LabError::io("go to the root directory"))
}
