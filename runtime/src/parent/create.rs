//! `create`: from a bundle to a process that waits at the gate (runtime-spec, runtime.md "Create").
//!
//! Everything that can fail without the process is done before the clone. What fails after that undoes all: the process, the cgroups
//! and the state directory.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{CWD, Mode};
use rustix::process::DumpableBehavior;
use rustix::thread::LinkNameSpaceType;

use super::bundle::{self, Bundle, CONFIG};
use super::console::{self, Console};
use super::talk::{Process, Talk};
use super::{cgroups, hooks, now, passed, resctrl, userns};
use crate::core::caller::{Caller, adapt};
use crate::core::check::{NamespaceKind, check_not_the_hosts};
use crate::core::hooks::{HookKind, Hooks};
use crate::core::plan::{Plan, joined};
use crate::core::resctrl::ResctrlPlan;
use crate::core::status::Identity;
use crate::init::{self, Start, Work};
use crate::state::{Lock, Record, StateDir, boot_id, observe, replace};
use crate::sync::{Channel, GATE, RESULT};
use crate::sys::{self, Cloned, namespace};

/// What `create` is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    /// Where the terminal goes.
    pub console_socket: Option<PathBuf>,
    /// Whether the caller stays and relays the terminal itself.
    pub foreground: bool,
    /// Descriptors after the standard ones that are passed on.
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// `linux.cgroupsPath` is in systemd's form.
    pub systemd_cgroup: bool,
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master side of a terminal that the caller is to relay.
    pub terminal: Option<OwnedFd>,
    /// What is weaker than asked for.
    pub notes: Vec<String>,
    /// What is done in another way than the caller may think, and no weaker.
    pub remark: Option<String>,
}

const UNDO_WAIT: Duration = Duration::from_secs(10);

/// Creates a container; its first process is a child of this one.
pub fn create(root: &Path, id: &str, options: &CreateOptions) -> Result<Created> {
    crate::state::check_id(id)?;
    let caller = caller(id, options);
    let mut bundle = bundle::load(&options.bundle, id, options.systemd_cgroup)?;
    bundle.plan = adapt(bundle.plan, &caller);
    bundle.container.process.env.extend(passed::environment());
    let console = Console::open(bundle.container.process.terminal, options.foreground, options.console_socket.as_deref())?;
    let opened = Opened::new(&bundle)?;
    let (dir, lock) = StateDir::create(root, id)?;
    let mut record = Record {
        rootfs: Some(bundle.container.root.clone()),
        annotations: bundle.container.annotations.clone(),
        own_pid_namespace: bundle.container.has_new(NamespaceKind::Pid),
        cgroups: bundle.cgroups.groups.iter().map(|group| group.directory.clone()).collect(),
        freezers: Some(bundle.cgroups.groups.iter().filter(|group| group.can_freeze()).map(|group| group.directory.clone()).collect()),
        cgroup_parents: cgroups::missing_parents(&bundle.cgroups),
        hooks: Hooks {
            poststart: bundle.container.hooks.poststart.clone(),
            poststop: bundle.container.hooks.poststop.clone(),
            ..Hooks::default()
        },
        resctrl: bundle.resctrl.as_ref().map(ResctrlPlan::record),
        keyring: caller.keyring,
        ..Record::new(id, &bundle.container.oci_version, &bundle.path, now()?)
    };
    let mut begun = false;
    let taken = Taken { dir: &dir, lock: &lock, console: &console };
    let created = prepare_and_clone(&taken, &mut record, bundle, opened, options, &mut begun);
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

fn caller(id: &str, options: &CreateOptions) -> Caller {
    Caller {
        foreground: options.foreground,
        size: console::outer_size(options.foreground),
        preserved_fds: passed::count(options.preserve_fds),
        pivot: !options.no_pivot,
        keyring: (!options.no_new_keyring).then(|| keyring(id)),
    }
}

/// The name runc gives to a container's session keyring.
fn keyring(id: &str) -> String {
    format!("_ses.{id}")
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

/// What is the container's from the beginning.
struct Taken<'a> {
    dir: &'a StateDir,
    lock: &'a Lock,
    console: &'a Console,
}

/// `begun` tells whether the container had a process.
fn prepare_and_clone(
    taken: &Taken<'_>,
    record: &mut Record,
    bundle: Bundle,
    opened: Opened,
    options: &CreateOptions,
    begun: &mut bool,
) -> Result<Created> {
    let Taken { dir, lock, console } = taken;
    dir.write(record)?;
    // What joins later is to be configured as the container was, whatever becomes of the bundle.
    fs::write(dir.file(CONFIG), &bundle.config).with_context(|| format!("write {}", dir.file(CONFIG).display()))?;
    let joins = cgroups::make(&bundle.cgroups)?;
    let process = &bundle.container.process;
    let c_strings = |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (channel, child_end) = Channel::pair().context("make a socket pair")?;
    let pid_namespace = opened.namespaces.iter().find(|(kind, _)| *kind == NamespaceKind::Pid);
    let pid_namespace = pid_namespace.map(|(_, namespace)| namespace.try_clone()).transpose().context("linux.namespaces")?;
    let namespaces = opened.namespaces.into_iter().map(|(_, namespace)| namespace);
    let resctrl = match bundle.resctrl.as_ref().zip(record.resctrl.as_mut()) {
        Some((plan, record)) => resctrl::make(&resctrl::Mounted, plan, record)?,
        None => Vec::new(),
    };
    let handles = joins.files.into_iter().chain(namespaces).chain(opened.trees).chain(resctrl).map(Some).collect();
    let work = Work {
        is_bound: false,
        handles,
        args: c_strings(&process.args)?,
        env: c_strings(&process.env)?,
        uid: process.uid,
        channel: child_end,
        start: Start::Gated { gate: fifo(&dir.file(GATE))?, result: fifo(&dir.file(RESULT))?, reaper: bundle.container.has_reaper() },
        hooks: Some((bundle.container.hooks.clone(), hooks::told(record, HookKind::CreateContainer, None))),
    };
    // In a joined pid namespace others could otherwise look into the process before its exec (CVE-2016-9962). Of an undumpable process only
    // root may write the mappings, so one without privileges stays as it is: nobody but its own user could look.
    if rustix::process::geteuid().is_root() {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    }
    let clone = || clone_child(&bundle.plan, work, joins.unified, channel, lock);
    let (first, channel) = match pid_namespace.filter(|_| !bundle.plan.has_usher()) {
        Some(namespace) => born_in(&namespace, clone)?,
        None => clone()?,
    };
    *begun = true;
    let mut talk = Talk::new(channel, &bundle, first);
    let listened = talk.listen(record).and_then(|terminal| {
        let terminal = console.take(terminal)?;
        let pid = talk.child().pid;
        let seen = observe(pid).with_context(|| format!("read /proc/{pid}/stat"))?;
        record.init = Some(Identity { pid, start_time: seen.start_time, boot_id: boot_id()? });
        dir.write(record)?;
        options.pid_file.as_ref().map_or(Ok(()), |path| replace(path, pid.to_string().as_bytes()))?;
        talk.answer()?;
        Ok(terminal)
    });
    match listened {
        Ok(terminal) => {
            let (Process { pid, pidfd }, notes) = talk.finish();
            Ok(Created { pid, pidfd, terminal, notes, remark: bundle.remark })
        }
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
fn born_in<T>(namespace: &OwnedFd, clone: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = File::open("/proc/self/ns/pid").context("open /proc/self/ns/pid")?;
    let enter = |namespace: BorrowedFd<'_>| rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID));
    enter(namespace.as_fd()).context("linux.namespaces: join the pid namespace")?;
    let made = clone();
    enter(own.as_fd()).context("linux.namespaces: leave the pid namespace")?;
    made
}

/// Returns in the parent only, with its end of the channel. An usher stays out of the container's cgroups.
fn clone_child(
    plan: &Plan,
    mut work: Work,
    unified: Option<(usize, OwnedFd)>,
    channel: Channel,
    lock: &Lock,
) -> Result<(Process, Channel)> {
    let unified = unified.filter(|_| !plan.has_usher());
    let flags = plan.clone_namespaces.iter().fold(0, |flags, kind| flags | namespace::flag(*kind));
    let cgroup = unified.as_ref().map(|(_, directory)| directory.as_fd());
    let (side, took_cgroup) = sys::clone_process(flags, cgroup).context("clone the container's process")?;
    match side {
        Cloned::Parent { pid, pidfd } => Ok((Process { pid, pidfd }, channel)),
        Cloned::Child => {
            // Else it would never hear that the parent is gone.
            drop(channel);
            lock.leave();
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
    let resctrl = record.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl::remove(&resctrl::Mounted, resctrl));
    // Without them gone the record is still needed, to remove them later.
    cgroups.and(resctrl).and_then(|()| dir.remove())
}
