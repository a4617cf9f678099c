//! Performs one step of the plan at a time. In: a [`Step`]. Out: nothing, a note, or a [`Failure`]. Decides nothing.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::DumpableBehavior;
use rustix::thread::{CpuSet, LinkNameSpaceType, ThreadNameSpaceType};

use super::root::Root;
use super::{Doing, Failure, Work, caps, console, devices, mounts, program, seccomp, userns};
use crate::core::check::{NamespaceKind, Rlimit};
use crate::core::hooks::HookKind;
use crate::core::mount_options::attr;
use crate::core::plan::{MountSource, Step};
use crate::sync::Message;
use crate::sys;

/// The child's state between steps.
pub struct Performer<'a> {
    work: &'a Work,
    root: Option<Root>,
    /// Mounts that pass mounts on as the root does.
    plain: Vec<OwnedFd>,
    /// The user namespace lets nobody change groups (user_namespaces(7), "/proc/PID/setgroups").
    groups_denied: bool,
    ready: Ready,
}

/// What is executed at the end.
pub struct Ready {
    pub program: CString,
    pub env: Vec<CString>,
    /// It no longer dies with its parent, unless it is bound to it.
    pub outlives_parent: bool,
}

type Performed = Result<Option<String>, Failure>;

impl<'a> Performer<'a> {
    pub fn new(work: &'a Work) -> Self {
        Self {
            work,
            root: None,
            plain: Vec::new(),
            groups_denied: false,
            ready: Ready { program: CString::default(), env: work.env.clone(), outlives_parent: false },
        }
    }

    /// The program and its environment, after every step.
    pub fn finish(self) -> Ready {
        self.ready
    }

    pub fn perform(&mut self, step: &Step) -> Performed {
        match step {
            Step::JoinCgroup { handle, .. } | Step::JoinResctrl { handle, .. } => self.join_group(*handle)?,
            Step::JoinNamespace { kind, handle, .. } => self.join_namespace(*kind, *handle)?,
            Step::RaiseLimit(limit) => raise_limit(limit)?,
            Step::NewUserNamespace(_) => userns::make(&self.work.channel)?,
            Step::JoinUserNamespace { handle, expected, .. } => {
                self.join_namespace(NamespaceKind::User, *handle)?;
                userns::compare(expected)?;
            }
            Step::BecomeRoot => self.groups_denied = userns::become_root()?,
            Step::Bear(kinds) => userns::bear(&self.work.channel, kinds)?,
            Step::JoinProcess { kinds, handle } => self.join_process(kinds, *handle)?,
            Step::Undumpable => rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?,
            Step::NewCgroupNamespace => sys::unshare(sys::namespace::CGROUP)?,
            Step::NewTimeNamespace(offsets) => userns::shift_time(offsets)?,
            Step::NewSession => {
                super::die_with_parent()?;
                rustix::process::setsid()?;
            }
            Step::SessionKeyring(name) => return session_keyring(name),
            Step::LoopbackUp => {
                let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
                sys::loopback_up(socket.as_fd())?;
            }
            Step::Hostname(name) => rustix::system::sethostname(name.as_bytes())?,
            Step::Domainname(name) => rustix::system::setdomainname(name.as_bytes())?,
            Step::IsolateMounts(propagation) => mounts::isolate(*propagation)?,
            Step::AttachRoot { path, handle, below } => {
                let tree = handle.map(|handle| self.tree(handle)).transpose()?;
                self.root = Some(mounts::attach_root(path, tree, *below)?);
            }
            Step::Mount(mount) => {
                let tree = match mount.what {
                    MountSource::Bind { handle: Some(handle), .. } => Some(self.tree(handle)?),
                    _ => None,
                };
                let mounts::Mounted { mount: made, note } = mounts::mount(self.root(), mount, tree)?;
                if mount.options.propagation.is_empty() {
                    self.plain.push(made);
                }
                return Ok(note);
            }
            Step::Device(device) => devices::make(self.root(), device)?,
            Step::BindDevice(device) => devices::bind(self.root(), device)?,
            Step::Link { target, always: false, .. } if self.root().find(target).is_err() => {}
            Step::Link { path, target, .. } => devices::link(self.root(), path, target)?,
            Step::WorkDirectory(path) => drop(self.root().make_directory(path)?),
            Step::Sysctl { name, value } => sysctl(name, value)?,
            Step::ReadonlyPath { path, .. } => mounts::read_only(self.root(), path)?,
            Step::MaskedPath { path, .. } => mounts::mask(self.root(), path)?,
            Step::OomScoreAdj(value) => return oom_score_adj(*value),
            Step::AwaitHooks => userns::ask(&self.work.channel, &Message::Hooks)?,
            Step::ContainerHooks => {
                rustix::process::fchdir(self.root())?;
                super::run_hooks(self.work.hooks.as_ref(), HookKind::CreateContainer).map_err(Failure::refused)?;
            }
            Step::MoveRoot => mounts::move_root(self.root())?,
            Step::Terminal { size, bind, relayed } => {
                let outside;
                let root = match &self.root {
                    Some(root) => root,
                    // Already in the container.
                    None => {
                        outside = Root::new(rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
                        &outside
                    }
                };
                let master = console::open(root, *size, *bind, *relayed)?;
                self.work.channel.send_with_file(&Message::Terminal, master.as_fd())?;
            }
            Step::PivotRoot => mounts::pivot(self.root())?,
            Step::RootPropagation { propagation, recursive } => {
                mounts::pass_on(self.root().as_fd(), *propagation, false)?;
                for mount in self.plain.iter().filter(|_| *recursive) {
                    mounts::pass_on(mount.as_fd(), *propagation, true)?;
                }
            }
            Step::RootReadonly => sys::mount_setattr(self.root().as_fd(), false, attr::RDONLY, 0, sys::propagation::NONE)?,
            Step::Rlimit(limit) => rlimit(limit)?,
            Step::Scheduler(scheduler) => sys::set_scheduler(scheduler)?,
            Step::IoPriority(value) => sys::set_io_priority(*value)?,
            Step::Affinity { processors, .. } => affinity(processors)?,
            Step::Personality(value) => sys::set_personality(*value)?,
            Step::MemoryPolicy(policy) => sys::set_memory_policy(policy.mode, &policy.nodes)?,
            Step::Label { file, label, .. } => write_proc(Path::new(file), label, ResolveFlags::BENEATH)?,
            Step::OwnStdio { uid } => devices::own_stdio(*uid)?,
            Step::BoundingSet(keep) => caps::keep_in_bounding_set(*keep)?,
            Step::User { uid, gid, additional_gids } => {
                caps::become_user(*uid, *gid, additional_gids, self.groups_denied)?;
                // Behind a filter it was asked for already, and the change has ended it.
                if self.work.is_bound && self.ready.outlives_parent {
                    super::die_with_parent().doing(|| "die with the parent".to_owned())?;
                }
            }
            Step::CapabilitySets { effective, permitted, inheritable } => caps::set(*effective, *permitted, *inheritable)?,
            Step::AmbientSet(set) => caps::raise_ambient(*set)?,
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true)?,
            Step::Seccomp(filter) => {
                // The filter may allow no more prctl(2). Should the parent die now, the end of the channel tells.
                super::leave_parent(self.work.is_bound)?;
                self.ready.outlives_parent = true;
                seccomp::install(filter, &self.work.channel)?;
            }
            Step::ChangeDirectory(path) => change_directory(path)?,
            Step::FindProgram(name) => {
                program::add_home(&mut self.ready.env, self.work.uid);
                self.ready.program = program::find(name, &self.ready.env)?;
            }
            Step::Umask(mask) => drop(rustix::process::umask(Mode::from_raw_mode(*mask))),
            Step::CloseDescriptorsOnExec { preserved } => sys::close_on_exec_from(3 + preserved)?,
        }
        Ok(None)
    }

    fn root(&self) -> &Root {
        self.root.as_ref().expect("the plan attaches the root before it is used")
    }

    fn handle(&self, handle: usize) -> Option<&OwnedFd> {
        self.work.handles.get(handle).and_then(Option::as_ref)
    }

    fn tree(&self, handle: usize) -> Result<OwnedFd, Failure> {
        let tree = self.handle(handle).ok_or_else(|| Failure::refused("the parent opened no such mount"))?;
        Ok(tree.try_clone()?)
    }

    /// Writing 0 moves the writer, for resctrl as well. Version 1's `tasks` moves a single thread, for which the kernel skips the lock over all of the
    /// system's forks and exits that `cgroup.procs` takes (`kernel/cgroup/cgroup.c`, `cgroup_procs_write_start`).
    fn join_group(&self, handle: usize) -> Result<(), Failure> {
        match self.handle(handle) {
            Some(file) => Ok(rustix::io::write(file, b"0").map(drop)?),
            None => Ok(()),
        }
    }

    fn join_namespace(&self, kind: NamespaceKind, handle: usize) -> Result<(), Failure> {
        let kind = match kind {
            NamespaceKind::Network => LinkNameSpaceType::Network,
            NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
            NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
            NamespaceKind::Mount => LinkNameSpaceType::Mount,
            NamespaceKind::User => LinkNameSpaceType::User,
            NamespaceKind::Time => LinkNameSpaceType::Time,
        };
        let file = self.handle(handle).ok_or_else(|| Failure::refused("the parent opened no such namespace"))?;
        Ok(rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))?)
    }

    fn join_process(&self, kinds: &[NamespaceKind], handle: usize) -> Result<(), Failure> {
        let flags = kinds.iter().fold(0, |flags, kind| flags | sys::namespace::flag(*kind));
        let process = self.handle(handle).ok_or_else(|| Failure::refused("the parent opened no such process"))?;
        let kinds = ThreadNameSpaceType::from_bits_retain(u32::try_from(flags).unwrap_or(0));
        Ok(rustix::thread::move_into_thread_name_spaces(process.as_fd(), kinds)?)
    }
}

/// Writes a kernel setting.
fn sysctl(name: &str, value: &str) -> Result<(), Failure> {
    // sysctl(8): the first separator tells which of the two separates, and the other is then part of a name.
    let dotted = name.find(['.', '/']).is_some_and(|place| name.as_bytes()[place] == b'.');
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dotted { name.chars().map(swap).collect() } else { name.to_owned() };
    write_proc(&Path::new("sys").join(path), value, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Writes a file of a private procfs: the container's own `/proc` could be anything by now (CVE-2025-52881).
fn write_proc(path: &Path, value: &str, resolve: ResolveFlags) -> Result<(), Failure> {
    let proc = mounts::private_proc()?;
    let resolve = resolve | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
        .doing(|| "this kernel has no such setting".to_owned())?;
    Ok(File::from(file).write_all(value.as_bytes())?)
}

/// A kernel without keyrings, and a sandbox that forbids them, have none to hide.
fn session_keyring(name: &str) -> Performed {
    let name = CString::new(name).map_err(|_| Failure::refused("holds a NUL byte"))?;
    match sys::join_session_keyring(&name) {
        Ok(()) => Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(None),
        // The caller's quota is used up (keyctl_join_session_keyring(3)).
        Err(error) if error.raw_os_error() == Some(libc::EDQUOT) => {
            Err(error).doing(|| "raise kernel.keys.maxkeys, or use --no-new-keyring".to_owned())
        }
        Err(error) => Err(error.into()),
    }
}

/// Lowering below what the runtime was given needs CAP_SYS_RESOURCE; without it the process keeps what it has, as conmon's and
/// rootless runc's do, rather than not to start at all.
fn oom_score_adj(value: i32) -> Performed {
    let written = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").and_then(|mut file| write!(file, "{value}"));
    match written {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let now = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
            Ok(Some(format!("stays at {}: lowering it needs CAP_SYS_RESOURCE, which this runtime does not hold", now.trim())))
        }
        Err(error) => Err(error.into()),
    }
}

fn rlimit(limit: &Rlimit) -> Result<(), Failure> {
    sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => {
            let now = sys::limits(limit.resource).map_or_else(|error| error.to_string(), |(_, hard)| hard.to_string());
            Failure { errno: libc::EPERM, detail: format!("the hard limit is {now}, and raising it needs CAP_SYS_RESOURCE") }
        }
        _ => error.into(),
    })
}

/// Raises a hard limit while that is allowed; the soft one stays until the last, lest it stop the steps between.
fn raise_limit(limit: &Rlimit) -> Result<(), Failure> {
    let (soft, hard) = sys::limits(limit.resource)?;
    if limit.hard <= hard { Ok(()) } else { rlimit(&Rlimit { soft, ..limit.clone() }) }
}

fn affinity(processors: &[u32]) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    for processor in processors {
        let number = *processor as usize;
        if number >= CpuSet::MAX_CPU {
            return Err(Failure::refused(format!("{number} is beyond the {} processors that can be named", CpuSet::MAX_CPU)));
        }
        set.set(number);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Changes the directory and makes sure that it lies in the container: through a leaked descriptor it need not (CVE-2024-21626), and then
/// the kernel names it `(unreachable)`.
fn change_directory(path: &Path) -> Result<(), Failure> {
    rustix::process::chdir(path)?;
    let now = rustix::process::getcwd(Vec::new());
    let inside = |path: &CStr| path.to_bytes().starts_with(b"/");
    match now {
        Ok(path) if inside(&path) => Ok(()),
        Ok(_) => Err(Failure::refused("lies outside the container's root")),
        Err(errno) => Err(errno).doing(|| "lies outside the container's root".to_owned()),
    }
}
