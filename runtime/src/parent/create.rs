//! `create`: from a bundle to a process that waits at the gate (runtime-spec, runtime.md "Create").
//!
//! Everything that can fail without the process is done before the clone. What fails after that undoes all: the process, the cgroups
//! and the state directory.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::thread::LinkNameSpaceType;

use super::bundle::{self, Bundle};
use super::{cgroups, hooks, now, userns};
use crate::core::check::{NamespaceKind, check_not_the_hosts};
use crate::core::hooks::{HookKind, Hooks};
use crate::core::plan::{Plan, joined};
use crate::core::status::Identity;
use crate::init::{self, Work};
use crate::state::{Record, StateDir, boot_id, observe, replace};
use crate::sync::{Channel, GATE, Message, RESULT};
use crate::sys::{self, Cloned, namespace};

/// What `create` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// What is weaker than asked for.
    pub notes: Vec<String>,
}

const UNDO_WAIT: Duration = Duration::from_secs(10);

/// Creates a container; its first process is a child of this one.
pub fn create(root: &Path, id: &str, options: &CreateOptions) -> Result<Created> {
    crate::state::check_id(id)?;
    let bundle = bundle::load(&options.bundle, id)?;
    let opened = Opened::new(&bundle)?;
    let (dir, _lock) = StateDir::create(root, id)?;
    let mut record = Record {
        annotations: bundle.container.annotations.clone(),
        own_pid_namespace: bundle.container.has_new(NamespaceKind::Pid),
        cgroups: bundle.cgroups.groups.iter().map(|group| group.directory.clone()).collect(),
        cgroup_parents: cgroups::missing_parents(&bundle.cgroups),
        hooks: Hooks {
            poststart: bundle.container.hooks.poststart.clone(),
            poststop: bundle.container.hooks.poststop.clone(),
            ..Hooks::default()
        },
        ..Record::new(id, &bundle.container.oci_version, &bundle.path, now()?)
    };
    let mut begun = false;
    let created = prepare_and_clone(&dir, &mut record, bundle, opened, options, &mut begun);
    created.map_err(|error| {
        let undone = undo(&dir, &record);
        // Where no process was, poststop hooks have nothing to clean up (runtime.md "Lifecycle").
        let failed = if begun { hooks::after(&record) } else { Vec::new() };
        let error = if failed.is_empty() { error } else { anyhow!("{error:#}; and then {}", failed.join("; ")) };
        match undone {
            Ok(()) => error,
            Err(left) => error.context(format!("and not all could be undone: {left:#}")),
        }
    })
}

/// What is opened before anything is made, in the order of the plan's handles: namespaces to join, then mounts.
struct Opened {
    namespaces: Vec<(NamespaceKind, OwnedFd)>,
    trees: Vec<OwnedFd>,
}

impl Opened {
    fn new(bundle: &Bundle) -> Result<Self> {
        let open = |(kind, path): (NamespaceKind, &PathBuf)| {
            let said = || format!("linux.namespaces: open the {kind} namespace {}", path.display());
            let file = File::open(path).with_context(said)?;
            let joined = file.metadata().with_context(said)?;
            let is_own = |own: std::fs::Metadata| (own.dev(), own.ino()) == (joined.dev(), joined.ino());
            if own_namespace(kind).is_some_and(|own| std::fs::metadata(own).is_ok_and(is_own)) {
                check_not_the_hosts(&bundle.container, kind).map_err(|refusal| anyhow!("{refusal}"))?;
            }
            Ok((kind, file.into()))
        };
        Ok(Self {
            namespaces: joined(&bundle.container).map(open).collect::<Result<_>>()?,
            trees: bundle.plan.trees.iter().map(userns::tree).collect::<Result<_>>()?,
        })
    }
}

/// `begun` tells whether the container had a process.
fn prepare_and_clone(
    dir: &StateDir,
    record: &mut Record,
    bundle: Bundle,
    opened: Opened,
    options: &CreateOptions,
    begun: &mut bool,
) -> Result<Created> {
    dir.write(record)?;
    let joins = cgroups::make(&bundle.cgroups)?;
    let process = &bundle.container.process;
    let c_strings = |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (channel, child_end) = Channel::pair().context("make a socket pair")?;
    let pid_namespace = opened.namespaces.iter().find(|(kind, _)| *kind == NamespaceKind::Pid);
    let pid_namespace = pid_namespace.map(|(_, namespace)| namespace.try_clone()).transpose().context("linux.namespaces")?;
    let namespaces = opened.namespaces.into_iter().map(|(_, namespace)| namespace);
    let handles = joins.files.into_iter().chain(namespaces).chain(opened.trees).map(Some).collect();
    let work = Work {
        handles,
        args: c_strings(&process.args)?,
        env: c_strings(&process.env)?,
        uid: process.uid,
        channel: child_end,
        gate: fifo(&dir.file(GATE))?,
        result: fifo(&dir.file(RESULT))?,
        hooks: Hooks {
            create_container: bundle.container.hooks.create_container.clone(),
            start_container: bundle.container.hooks.start_container.clone(),
            ..Hooks::default()
        },
        hook_state: hooks::told(record, HookKind::CreateContainer, None),
    };
    // In a joined pid namespace others could otherwise look into the process before its exec (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    let clone = || clone_child(&bundle.plan, work, joins.unified);
    let first = match pid_namespace.filter(|_| !bundle.plan.has_usher()) {
        Some(namespace) => born_in(&namespace, clone)?,
        None => clone()?,
    };
    *begun = true;
    let mut talk = Talk { channel, bundle: &bundle, first, born: None, notes: bundle.plan.notes.clone() };
    let listened = talk.listen(record).and_then(|()| {
        let pid = talk.child().pid;
        let seen = observe(pid).with_context(|| format!("read /proc/{pid}/stat"))?;
        record.init = Some(Identity { pid, start_time: seen.start_time, boot_id: boot_id()? });
        dir.write(record)?;
        options.pid_file.as_ref().map_or(Ok(()), |path| replace(path, pid.to_string().as_bytes()))
    });
    match listened {
        Ok(()) => Ok(talk.finish()),
        Err(error) => {
            talk.end();
            Err(error)
        }
    }
}

/// Where this process's own namespace is, of a kind that holds settings.
fn own_namespace(kind: NamespaceKind) -> Option<&'static str> {
    match kind {
        NamespaceKind::Network => Some("/proc/self/ns/net"),
        NamespaceKind::Ipc => Some("/proc/self/ns/ipc"),
        NamespaceKind::Uts => Some("/proc/self/ns/uts"),
        NamespaceKind::Pid | NamespaceKind::Cgroup | NamespaceKind::Time | NamespaceKind::User | NamespaceKind::Mount => None,
    }
}

/// Makes a child in a pid namespace and leaves it again: the parent's other children, hooks among them, are the host's.
fn born_in(namespace: &OwnedFd, clone: impl FnOnce() -> Result<Process>) -> Result<Process> {
    let own = File::open("/proc/self/ns/pid").context("open /proc/self/ns/pid")?;
    let enter = |namespace: BorrowedFd<'_>| rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID));
    enter(namespace.as_fd()).context("linux.namespaces: join the pid namespace")?;
    let made = clone();
    enter(own.as_fd()).context("linux.namespaces: leave the pid namespace")?;
    made
}

/// A process this one made.
struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

impl Process {
    fn reap(&self) {
        // An error means that someone else has, as where SIGCHLD is ignored.
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The talk with the child, from its clone until it is ready.
struct Talk<'a> {
    channel: Channel,
    bundle: &'a Bundle,
    /// The container's process, or the usher that bears it.
    first: Process,
    /// The container's process, if an usher bore it.
    born: Option<Process>,
    notes: Vec<String>,
}

impl Talk<'_> {
    fn child(&self) -> &Process {
        self.born.as_ref().unwrap_or(&self.first)
    }

    /// Hears the child out until it is ready.
    fn listen(&mut self, record: &Record) -> Result<()> {
        let plan = &self.bundle.plan;
        let step = |place: u16| plan.steps.get(usize::from(place)).map_or_else(String::new, ToString::to_string);
        let mut ready = false;
        let mut hooks_wanted = false;
        while !ready || plan.has_usher() && self.born.is_none() {
            match self.channel.receive().context("listen to the container's process")? {
                // The usher's last word may come after the child's.
                Some(Message::Ready) => ready = true,
                Some(Message::Map) => {
                    userns::map(self.first.pid, &self.bundle.container.ids).context("linux")?;
                    self.channel.send(&Message::Go).context("answer the container's process")?;
                }
                Some(Message::Hooks) => hooks_wanted = true,
                Some(Message::Born { pid }) => self.born = Some(open_child(pid)?),
                Some(Message::Note { step: place, text }) => self.notes.push(format!("{}: {text}", step(place))),
                Some(Message::Failed { step: place, errno, text }) => {
                    let cause = if errno == 0 { String::new() } else { std::io::Error::from_raw_os_error(errno).to_string() };
                    let parts: Vec<String> = [step(place), text, cause].into_iter().filter(|part| !part.is_empty()).collect();
                    bail!("{}", parts.join(": "));
                }
                Some(Message::Go) => bail!("the container's process answered nonsense"),
                None => {
                    return Err(anyhow!("the container's process was killed while it was set up")
                        .context("linux.resources.memory.limit may be too small, or someone killed it"));
                }
            }
            // The child may be heard before the usher tells of it.
            if hooks_wanted && (!plan.has_usher() || self.born.is_some()) {
                hooks_wanted = false;
                for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                    hooks::run(&self.bundle.container.hooks, kind, record, self.child().pid)?;
                }
                self.channel.send(&Message::Go).context("answer the container's process")?;
            }
        }
        if plan.has_usher() {
            self.channel.send(&Message::Go).context("answer the container's process")?;
        }
        Ok(())
    }

    fn finish(self) -> Created {
        let child = match self.born {
            Some(born) => {
                self.first.reap();
                born
            }
            None => self.first,
        };
        Created { pid: child.pid, pidfd: child.pidfd, notes: self.notes }
    }

    /// Ends all that was made; the death of the last takes its mounts along.
    fn end(mut self) {
        let kill = |process: &Process| {
            // An error means that it is dead already.
            let _ = sys::send_signal(process.pidfd.as_fd(), crate::core::signal::KILL);
        };
        self.born.iter().for_each(kill);
        if self.bundle.plan.has_usher() {
            // Killed it could not tell what it bore; it ends by itself when it hears no more.
            self.channel.fall_silent();
        } else {
            kill(&self.first);
        }
        while let Ok(Some(message)) = self.channel.receive() {
            if let Message::Born { pid } = message {
                self.born = open_child(pid).ok();
                self.born.iter().for_each(kill);
            }
        }
        self.first.reap();
        self.born.iter().for_each(Process::reap);
    }
}

/// Opens a child by its id, which is its own as long as it is not reaped.
fn open_child(pid: i32) -> Result<Process> {
    let raw = Pid::from_raw(pid).context("the container's process has no id")?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).context("open the container's process")?;
    Ok(Process { pid, pidfd })
}

/// Returns in the parent only. An usher stays out of the container's cgroups.
fn clone_child(plan: &Plan, mut work: Work, unified: Option<(usize, OwnedFd)>) -> Result<Process> {
    let unified = unified.filter(|_| !plan.has_usher());
    let flags = plan.clone_namespaces.iter().fold(0, |flags, kind| flags | namespace::flag(*kind));
    let cgroup = unified.as_ref().map(|(_, directory)| directory.as_fd());
    let (side, took_cgroup) = sys::clone_process(flags, cgroup).context("clone the container's process")?;
    match side {
        Cloned::Parent { pid, pidfd } => Ok(Process { pid, pidfd }),
        Cloned::Child => {
            if let Some((place, _)) = unified.filter(|_| took_cgroup) {
                work.handles[place] = None;
            }
            init::run(plan, work)
        }
    }
}

fn fifo(path: &Path) -> Result<File> {
    rustix::fs::mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).with_context(|| format!("make {}", path.display()))?;
    // For both directions: then neither opening nor reading depends on who else has it open (fifo(7)).
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {}", path.display()))
}

fn undo(dir: &StateDir, record: &Record) -> Result<()> {
    let cgroups = cgroups::remove(&record.cgroups, &record.cgroup_parents, UNDO_WAIT);
    // Without the cgroups gone the record is still needed, to remove them later.
    cgroups.and_then(|()| dir.remove())
}
