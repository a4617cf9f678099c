//! `exec`: one more process in a container (no verb of the specification; the options and the exit codes are runc's).
//!
//! The process is made here, in the container's pid namespace, and goes in by itself: its cgroups first, then all other namespaces at once
//! by the descriptor of the container's first process, then the same steps down to its user's rights as that one took. For a user who is
//! not root an usher (`init::userns`) enters the container's user namespace, where that user has all privileges, and bears the process.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;

use super::console::{self, Console};
use super::foreground::Foreground;
use super::talk::{self, Heard, Line, why_not_executed};
use super::{bundle, cgroups, existing, listener, open_process, passed, read_bounded, resctrl};
use crate::core::caller::{Caller, adapt};
use crate::core::cgroup::{Version, hierarchies};
use crate::core::check::{Container, NamespaceKind};
use crate::core::exec::{Asked, SubCgroup};
use crate::core::plan::Plan;
use crate::core::status::{Identity, Status};
use crate::core::{self, exec, spec};
use crate::init::{self, Start, Work};
use crate::state::{Record, replace};
use crate::sync::{Channel, Message};
use crate::sys::{self, Cloned};

/// What `exec` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOptions {
    pub process: ProcessSource,
    pub detach: bool,
    pub pid_file: Option<PathBuf>,
    /// Where the terminal goes.
    pub console_socket: Option<PathBuf>,
    /// Descriptors after the standard ones that are passed on.
    pub preserve_fds: u32,
    pub ignore_paused: bool,
    /// The process is killed when this one dies. Not so for a user who is not root: an usher bears it then, and goes before it.
    pub is_bound: bool,
    pub cgroups: Vec<SubCgroup>,
}

/// Where the process to run is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessSource {
    /// On the command line, on top of the container's own.
    Options(Asked),
    /// In a file of its own; the switch asks for a terminal in any case.
    File { path: PathBuf, terminal: bool },
    /// As such a file's content.
    Given(Vec<u8>),
}

/// Runs a process in a container; returns its exit code, 128 and the signal for one that was killed, or 0 at once with `detach`.
pub fn exec(root: &Path, id: &str, options: &ExecOptions, notes: impl FnOnce(&[String])) -> Result<i32> {
    let Executed { pidfd, terminal, notes: said, foreground, .. } = execute(root, id, options)?;
    notes(&said);
    foreground.map_or(Ok(0), |mut foreground| foreground.wait(pidfd.as_fd(), terminal))
}

/// A process whose program runs in the container; a child of this one.
pub struct Executed {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// What is weaker than asked for.
    pub notes: Vec<String>,
    terminal: Option<OwnedFd>,
    /// Unless it is detached.
    foreground: Option<Foreground>,
}

/// The same up to the moment when its program runs; who calls it waits for its end, or leaves that to the reaper.
pub fn execute(root: &Path, id: &str, options: &ExecOptions) -> Result<Executed> {
    let (dir, record) = existing(root, id)?;
    let status = dir.status(&record)?;
    match status {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => bail!("container {id} is paused: `resume {id}` it first, or use --ignore-paused"),
        other => bail!("container {id} is {other}: a process can be executed in a created or running one only"),
    }
    let gone = || anyhow!("container {id} has just ended");
    let container_process = record.init.as_ref().map(open_process).transpose()?.flatten().ok_or_else(gone)?;
    let spec = bundle::recorded(&dir, &record)?;
    let mut container = container(&record.bundle, spec, &options.process)?;
    container.process.env.extend(passed::environment());
    let console = Console::open(container.process.terminal, !options.detach, options.console_socket.as_deref())?;
    let groups = joined_cgroups(&record, &options.cgroups)?;
    let caller = Caller {
        foreground: !options.detach,
        size: console::outer_size(!options.detach),
        preserved_fds: passed::count(options.preserve_fds),
        pivot: true,
        keyring: record.keyring.clone(),
    };
    let privileges = bundle::privileges()?;
    let without = record.init.as_ref().filter(|_| !privileges.over_mounts());
    let shared = without.map(|init| shared_namespaces(init.pid)).unwrap_or_default();
    let mut plan = adapt(exec::plan(&container, &groups, privileges, &shared), &caller);
    if let Some(resctrl) = &record.resctrl {
        // After the cgroups and the container's process.
        core::resctrl::join(&mut plan, resctrl, groups.len() + 1);
    }
    // A process that changed its user before its exec is nobody's to join but root's (prctl(2), PR_SET_DUMPABLE).
    let is_hidden = |init: &Identity| fs::read_link(format!("/proc/{}/ns/user", init.pid)).is_err();
    if plan.has_usher() && status == Status::Created && record.init.as_ref().is_some_and(is_hidden) {
        bail!("container {id} waits for its start as another user than this one, and only root can join it: `start {id}` it first");
    }
    let foreground = if options.detach { None } else { Some(Foreground::begin()?) };
    let resctrl = record.resctrl.as_ref().map(resctrl::open).transpose()?.unwrap_or_default();
    let mut line = clone_child(&container, &plan, &groups, container_process, resctrl, options.is_bound)?;
    let mut said = plan.notes.clone();
    let introduce = |pid: i32, notifications: &OwnedFd| match container.seccomp.as_ref().and_then(|seccomp| seccomp.listener.as_ref()) {
        Some(to) => listener::introduce(to, &record, status, pid, notifications),
        None => bail!("the process has notifications for nobody"),
    };
    let started = listen(&mut line, &plan, &mut said, introduce).and_then(|terminal| {
        let terminal = console.take(terminal)?;
        let write = |path: &PathBuf| replace(path, line.child().pid.to_string().as_bytes());
        options.pid_file.as_ref().map_or(Ok(()), write)?;
        Ok(terminal)
    });
    match started {
        Ok(terminal) => {
            let talk::Process { pid, pidfd } = line.finish();
            Ok(Executed { pid, pidfd, notes: said, terminal, foreground })
        }
        Err(error) => {
            line.end();
            Err(error)
        }
    }
}

/// Which of a process's namespaces this one lives in too; one that cannot be looked at is not among them.
fn shared_namespaces(pid: i32) -> Vec<NamespaceKind> {
    let names = [
        (NamespaceKind::Mount, "mnt"),
        (NamespaceKind::Pid, "pid"),
        (NamespaceKind::Network, "net"),
        (NamespaceKind::Ipc, "ipc"),
        (NamespaceKind::Uts, "uts"),
        (NamespaceKind::Cgroup, "cgroup"),
        (NamespaceKind::Time, "time"),
    ];
    let of = |whose: &str, name: &str| fs::read_link(format!("/proc/{whose}/ns/{name}")).ok();
    let is_shared = |name: &str| of("self", name).is_some_and(|own| of(&pid.to_string(), name) == Some(own));
    names.into_iter().filter(|(_, name)| is_shared(name)).map(|(kind, _)| kind).collect()
}

/// The container with the process to run instead of its own, checked as a whole.
fn container(bundle: &Path, mut spec: spec::Spec, source: &ProcessSource) -> Result<Container> {
    let own = spec.process.take().unwrap_or_default();
    let process = match source {
        ProcessSource::Options(asked) => exec::with_options(&own, asked),
        ProcessSource::File { path, terminal } => {
            let file = fs::File::open(path).with_context(|| format!("--process: open {}", path.display()))?;
            let bytes = read_bounded(file).with_context(|| format!("--process: read {}", path.display()))?;
            let given = spec::parse_process(&bytes).map_err(|error| anyhow!("--process {}: {error}", path.display()))?;
            spec::Process { terminal: given.terminal || *terminal, ..exec::completed(&own, given) }
        }
        ProcessSource::Given(bytes) => {
            let given = spec::parse_process(bytes).map_err(|error| anyhow!("process: {error}"))?;
            spec::Process { terminal: given.terminal, ..exec::completed(&own, given) }
        }
    };
    spec.process = Some(process);
    bundle::checked(bundle, &spec)
}

fn joined_cgroups(record: &Record, asked: &[SubCgroup]) -> Result<Vec<PathBuf>> {
    if asked.is_empty() {
        return record.cgroups.iter().map(|group| Ok(inhabitable(group, record)?.unwrap_or_else(|| group.clone()))).collect();
    }
    let mounted = bundle::observed_hierarchies()?;
    let held = |group: &PathBuf| {
        let above = mounted.iter().filter(|hierarchy| group.starts_with(&hierarchy.mount_point));
        let nearest = above.max_by_key(|hierarchy| hierarchy.mount_point.components().count());
        nearest.map(|hierarchy| hierarchy.controllers.clone()).unwrap_or_default()
    };
    let groups: Vec<_> = record.cgroups.iter().map(|group| (group.clone(), held(group))).collect();
    exec::cgroups(&groups, asked).map_err(|why| anyhow!("--cgroup: {why}"))
}

/// A container that manages cgroups of its own has moved its processes below: with controllers enabled for those below, version 2 takes
/// none in the cgroup itself (cgroup-v2.rst, "No Internal Process Constraint"). Then the one its first process is in.
fn inhabitable(group: &Path, record: &Record) -> Result<Option<PathBuf>> {
    let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let Some(init) = record.init.as_ref().filter(|_| !enabled.trim().is_empty()) else { return Ok(None) };
    let read = |path: String| fs::read_to_string(&path).with_context(|| format!("read {path}"));
    let hierarchies = hierarchies(&read("/proc/self/mountinfo".to_owned())?, &read(format!("/proc/{}/cgroup", init.pid))?);
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    Ok(unified.map(|hierarchy| hierarchy.mount_point.join(&hierarchy.own)).filter(|own| own.starts_with(group)))
}

/// Returns in the parent only.
fn clone_child(
    container: &Container,
    plan: &Plan,
    groups: &[PathBuf],
    container_process: OwnedFd,
    resctrl: Vec<OwnedFd>,
    is_bound: bool,
) -> Result<Line> {
    let process = &container.process;
    let c_strings = |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let joins = cgroups::open(groups)?;
    let (channel, child_end) = Channel::pair().context("make a socket pair")?;
    if !plan.has_usher() {
        // Only children of this process are born there, itself it stays.
        rustix::thread::move_into_thread_name_spaces(container_process.as_fd(), ThreadNameSpaceType::PROCESS_ID)
            .context("join the container's pid namespace")?;
        // The container could otherwise look into the process before its exec (CVE-2016-9962).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    }
    let handles = joins.files.into_iter().chain([container_process]).chain(resctrl).map(Some).collect();
    let mut work = Work {
        handles,
        args: c_strings(&process.args)?,
        env: c_strings(&process.env)?,
        uid: process.uid,
        channel: child_end,
        start: Start::AtOnce,
        is_bound: is_bound && !plan.has_usher(),
        hooks: None,
    };
    // A process on given processors until it is in the cgroups cannot be born there, and an usher stays out of them.
    let is_born_there = container.process.exec_cpu_affinity.initial.is_empty() && !plan.has_usher();
    let unified = joins.unified.filter(|_| is_born_there);
    let (side, took_cgroup) =
        sys::clone_process(0, unified.as_ref().map(|(_, directory)| directory.as_fd())).context("clone the process")?;
    match side {
        Cloned::Parent { pid, pidfd } => Ok(Line::new(channel, talk::Process { pid, pidfd }, plan)),
        Cloned::Child => {
            // Else it would never hear that the parent is gone.
            drop(channel);
            if let Some((place, _)) = unified.filter(|_| took_cgroup) {
                work.handles[place] = None;
            }
            init::run(plan, work)
        }
    }
}

/// Hears the child out until its program runs.
fn listen(
    line: &mut Line,
    plan: &Plan,
    notes: &mut Vec<String>,
    introduce: impl Fn(i32, &OwnedFd) -> Result<()>,
) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    loop {
        match line.hear(plan, notes)? {
            Heard::Message(Message::Ready, _) => break,
            Heard::Message(Message::Terminal, master) => terminal = master,
            Heard::Notifications(notifications) => introduce(line.child().pid, &notifications)?,
            Heard::Message(..) => bail!("the process answered nonsense"),
        }
    }
    match line.last_word()? {
        // It closed at exec.
        None => Ok(terminal),
        Some(Message::Failed { errno, text, .. }) => {
            bail!("process.args[0]: execute {text}: {}", why_not_executed(errno))
        }
        Some(_) => bail!("the process answered nonsense"),
    }
}
