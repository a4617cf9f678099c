//! `create`: from a bundle to a process that waits at the gate (runtime-spec, runtime.md "Create").
//!
//! Everything that can fail without the process is done before the clone. What fails after that undoes all: the process, the cgroups
//! and the state directory.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode};
use rustix::process::{DumpableBehavior, PidfdGetfdFlags, WaitId, WaitIdOptions};
use rustix::thread::LinkNameSpaceType;

use super::bundle::{self, Bundle, CONFIG};
use super::console::{self, Console};
use super::{cgroups, listener, now, passed};
use crate::core::caller::{Caller, adapt};
use crate::core::check::NamespaceKind;
use crate::core::plan::{Plan, joined_inside};
use crate::core::status::{Identity, Status};
use crate::init::{self, Start, Work};
use crate::state::{Record, StateDir, boot_id, observe, replace};
use crate::sync::{Channel, GATE, Message, RESULT};
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
    let namespaces = open_namespaces(&bundle)?;
    let (dir, _lock) = StateDir::create(root, id)?;
    let mut record = Record {
        annotations: bundle.container.annotations.clone(),
        own_pid_namespace: bundle.container.has_new(NamespaceKind::Pid),
        cgroups: bundle.cgroups.groups.iter().map(|group| group.directory.clone()).collect(),
        cgroup_parents: cgroups::missing_parents(&bundle.cgroups),
        keyring: caller.keyring,
        ..Record::new(id, &bundle.container.oci_version, &bundle.path, now()?)
    };
    let created = prepare_and_clone(&dir, &mut record, bundle, namespaces, options, &console);
    created.map_err(|error| match undo(&dir, &record) {
        Ok(()) => error,
        Err(left) => error.context(format!("and not all could be undone: {left:#}")),
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

/// Namespaces to join, opened before anything is made.
struct Namespaces {
    pid: Option<File>,
    inside: Vec<OwnedFd>,
}

fn open_namespaces(bundle: &Bundle) -> Result<Namespaces> {
    let open = |kind: NamespaceKind, path: &Path| {
        File::open(path).with_context(|| format!("linux.namespaces: open the {kind} namespace {}", path.display()))
    };
    let container = &bundle.container;
    let inside = joined_inside(container).map(|(kind, path)| Ok(open(kind, path)?.into())).collect::<Result<_>>()?;
    let pid = container.namespace(NamespaceKind::Pid).and_then(|namespace| namespace.path.as_ref());
    Ok(Namespaces { pid: pid.map(|path| open(NamespaceKind::Pid, path)).transpose()?, inside })
}

fn prepare_and_clone(
    dir: &StateDir,
    record: &mut Record,
    bundle: Bundle,
    namespaces: Namespaces,
    options: &CreateOptions,
    console: &Console,
) -> Result<Created> {
    dir.write(record)?;
    // What joins later is to be configured as the container was, whatever becomes of the bundle.
    fs::write(dir.file(CONFIG), &bundle.config).with_context(|| format!("write {}", dir.file(CONFIG).display()))?;
    let joins = cgroups::make(&bundle.cgroups)?;
    let process = &bundle.container.process;
    let c_strings = |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (channel, child_end) = Channel::pair().context("make a socket pair")?;
    let handles = joins.files.into_iter().chain(namespaces.inside).map(Some).collect();
    let work = Work {
        handles,
        args: c_strings(&process.args)?,
        env: c_strings(&process.env)?,
        uid: process.uid,
        channel: child_end,
        start: Start::Gated { gate: fifo(&dir.file(GATE))?, result: fifo(&dir.file(RESULT))?, reaper: bundle.container.has_reaper() },
    };
    if let Some(pid) = namespaces.pid {
        let join = rustix::thread::move_into_link_name_space(pid.as_fd(), Some(LinkNameSpaceType::ProcessID));
        join.context("linux.namespaces: join the pid namespace")?;
    }
    // In a joined pid namespace others could otherwise look into the process before its exec (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    let (pid, pidfd) = clone_child(&bundle.plan, work, joins.unified)?;
    let mut notes = bundle.plan.notes.clone();
    let introduce = |notifications: &OwnedFd| match bundle.container.seccomp.as_ref().and_then(|seccomp| seccomp.listener.as_ref()) {
        Some(to) => listener::introduce(to, record, Status::Creating, pid, notifications),
        None => bail!("the container's process has notifications for nobody"),
    };
    let listened = listen(&channel, &pidfd, &bundle.plan, &mut notes, introduce).and_then(|terminal| {
        let terminal = console.take(terminal)?;
        let seen = observe(pid).with_context(|| format!("read /proc/{pid}/stat"))?;
        record.init = Some(Identity { pid, start_time: seen.start_time, boot_id: boot_id()? });
        dir.write(record)?;
        options.pid_file.as_ref().map_or(Ok(()), |path| replace(path, pid.to_string().as_bytes()))?;
        Ok(terminal)
    });
    match listened {
        Ok(terminal) => Ok(Created { pid, pidfd, terminal, notes, remark: bundle.remark }),
        Err(error) => {
            // Its death takes its mounts along; an error means that it is dead already.
            let _ = sys::send_signal(pidfd.as_fd(), crate::core::signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(error)
        }
    }
}

/// Returns in the parent only.
fn clone_child(plan: &Plan, mut work: Work, unified: Option<(usize, OwnedFd)>) -> Result<(i32, OwnedFd)> {
    let flags = plan.clone_namespaces.iter().fold(0, |flags, kind| flags | namespace::flag(*kind));
    let cgroup = unified.as_ref().map(|(_, directory)| directory.as_fd());
    let (side, took_cgroup) = sys::clone_process(flags, cgroup).context("clone the container's process")?;
    match side {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            if let Some((place, _)) = unified.filter(|_| took_cgroup) {
                work.handles[place] = None;
            }
            init::run(plan, work)
        }
    }
}

/// Hears the child out until it is ready; the master side of its terminal comes on the way, and `introduce` is given the descriptor of its
/// seccomp notifications.
pub(super) fn listen(
    channel: &Channel,
    child: &OwnedFd,
    plan: &Plan,
    notes: &mut Vec<String>,
    introduce: impl Fn(&OwnedFd) -> Result<()>,
) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    let step = |place: u16| plan.steps.get(usize::from(place)).map_or_else(String::new, ToString::to_string);
    loop {
        match channel.receive().context("listen to the container's process")? {
            Some((Message::Ready, _)) => return Ok(terminal),
            Some((Message::Terminal, master)) => terminal = master,
            Some((Message::Listener { .. }, Some(descriptor))) => introduce(&descriptor)?,
            Some((Message::Listener { number }, None)) => {
                let copy = rustix::process::pidfd_getfd(child, number, PidfdGetfdFlags::empty());
                introduce(&copy.context("linux.seccomp: take a copy of the notifications' descriptor")?)?;
            }
            Some((Message::Note { step: place, text }, _)) => notes.push(format!("{}: {text}", step(place))),
            Some((Message::Failed { step: place, errno, text }, _)) => {
                let cause = if errno == 0 { String::new() } else { std::io::Error::from_raw_os_error(errno).to_string() };
                let parts: Vec<String> = [step(place), text, cause].into_iter().filter(|part| !part.is_empty()).collect();
                bail!("{}", parts.join(": "));
            }
            None => {
                return Err(anyhow!("the container's process was killed while it was set up")
                    .context("linux.resources.memory.limit may be too small, or someone killed it"));
            }
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
