//! Decides the steps that turn a cloned process into the container's first process.
//!
//! In: the checked [`Container`], its cgroups, the capabilities the runtime holds. Out: a [`Plan`]: the namespaces to clone with, the
//! ordered [`Step`]s, and notes of what is weaker than asked for. `init` performs one step after another and names the one that failed,
//! so the text of a step is what a user reads. Never asks the machine anything.
//!
//! The order is a security matter and follows runc's: cgroups before anything is charged, the old root detached before the user's
//! settings are applied, privileges dropped last.

mod text;

use std::path::{Path, PathBuf};

use super::capability::CapabilitySet;
use super::cgroup::{CgroupPlan, Hierarchy, Version};
use super::check::{
    Capabilities, Container, Device, DeviceKind, IdMapping, IdMappings, MemoryPolicy, Mount, MountWhat, NamespaceKind, Process, Rlimit,
    Scheduler, TimeOffset,
};
use super::mount_options::{MountOptions, Propagation};
use super::seccomp::Seccomp;
use super::spec::ConsoleSize;

/// What the parent clones with and what the child then does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Made by clone3(2) itself. The cgroup namespace is not among them: it must come after the cgroups are joined. With a user namespace
    /// there are none: the namespaces must belong to it, so they are made by [`Step::Bear`].
    pub clone_namespaces: Vec<NamespaceKind>,
    /// What the parent opens for steps that name a handle; their handles follow those of the cgroups and the joined namespaces.
    pub trees: Vec<Tree>,
    pub steps: Vec<Step>,
    /// What is asked for and cannot be had, and why going on is right.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether another process bears the container's.
    pub fn has_usher(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Bear(_)))
    }
}

/// A copy of mounts that the parent makes, for a child that may not: in its user namespace it could neither reach the path nor copy a
/// mount of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// For errors.
    pub field: String,
    pub source: PathBuf,
    pub recursive: bool,
    /// Mounts made below it by the container are not seen by the host.
    pub cut_off: bool,
    pub idmap: Option<TreeIdmap>,
}

/// How the files of a tree seem to be owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeIdmap {
    pub by: IdmapBy,
    pub recursive: bool,
}

/// The user namespace that maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdmapBy {
    /// One made for it.
    Ids(IdMappings),
    /// The one the container joins.
    Joined(PathBuf),
}

/// One deed of the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `handle` counts the descriptors the parent opened, in this order.
    JoinCgroup {
        directory: PathBuf,
        handle: usize,
    },
    JoinResctrl {
        group: PathBuf,
        handle: usize,
    },
    JoinNamespace {
        kind: NamespaceKind,
        path: PathBuf,
        handle: usize,
    },
    /// Steps of a process that stands between the parent and the child: what needs the host's privileges, the user namespace, and last the
    /// birth of the child in namespaces that belong to it.
    RaiseLimit(Rlimit),
    NewUserNamespace(IdMappings),
    JoinUserNamespace {
        path: PathBuf,
        handle: usize,
        expected: IdMappings,
    },
    /// Root of the user namespace.
    BecomeRoot,
    Bear(Vec<NamespaceKind>),
    /// All at once, those of the process at a descriptor (setns(2)); that of processes is the next child's.
    JoinProcess {
        kinds: Vec<NamespaceKind>,
        handle: usize,
    },
    /// Nobody else can look into this process or trace it until it executes its program (`PR_SET_DUMPABLE` of prctl(2)).
    Undumpable,
    NewCgroupNamespace,
    NewTimeNamespace(Vec<TimeOffset>),
    NewSession,
    SessionKeyring(String),
    LoopbackUp,
    Hostname(String),
    Domainname(String),
    IsolateMounts(Propagation),
    /// `handle`: its tree, if the parent copied it; `below`: how the mounts below it pass mounts on.
    AttachRoot {
        path: PathBuf,
        handle: Option<usize>,
        below: Option<Propagation>,
    },
    Mount(MountStep),
    Device(Device),
    /// The host's node bound, where a user namespace may make none.
    BindDevice(Device),
    /// `always`: also when the target is not there (yet).
    Link {
        path: PathBuf,
        target: PathBuf,
        always: bool,
    },
    WorkDirectory(PathBuf),
    Sysctl {
        name: String,
        value: String,
    },
    ReadonlyPath {
        index: usize,
        path: PathBuf,
    },
    MaskedPath {
        index: usize,
        path: PathBuf,
    },
    OomScoreAdj(i32),
    /// The parent runs those of the host.
    AwaitHooks,
    ContainerHooks,
    PivotRoot,
    /// `recursive`: also of `mounts[]` that do not say it themselves.
    RootPropagation {
        propagation: Propagation,
        recursive: bool,
    },
    /// Where pivot_root(2) cannot be had.
    MoveRoot,
    /// `bind`: also as `/dev/console`. `relayed`: lines end in the caller's terminal, not in this one.
    Terminal {
        size: Option<ConsoleSize>,
        bind: bool,
        relayed: bool,
    },
    RootReadonly,
    Rlimit(Rlimit),
    Scheduler(Scheduler),
    IoPriority(u16),
    /// `field`: of `process.execCPUAffinity`.
    Affinity {
        field: &'static str,
        processors: Vec<u32>,
    },
    Personality(u32),
    MemoryPolicy(MemoryPolicy),
    /// Of a security module, for the next execve(2); `file` is below `/proc`.
    Label {
        field: &'static str,
        file: &'static str,
        label: String,
    },
    OwnStdio {
        uid: u32,
    },
    BoundingSet(CapabilitySet),
    User {
        uid: u32,
        gid: u32,
        additional_gids: Vec<u32>,
    },
    CapabilitySets {
        effective: CapabilitySet,
        permitted: CapabilitySet,
        inheritable: CapabilitySet,
    },
    AmbientSet(CapabilitySet),
    NoNewPrivileges,
    Seccomp(Seccomp),
    ChangeDirectory(PathBuf),
    FindProgram(String),
    Umask(u32),
    /// All but the standard ones and those the caller passes on, which follow them.
    CloseDescriptorsOnExec {
        preserved: u32,
    },
}

/// One of `mounts[]`, ready to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountStep {
    pub index: usize,
    pub destination: PathBuf,
    pub what: MountSource,
    pub options: MountOptions,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// `handle`: its tree, if the parent copied it.
    Bind {
        source: PathBuf,
        recursive: bool,
        handle: Option<usize>,
    },
    FileSystem {
        kind: String,
        source: String,
    },
    Cgroups {
        views: Vec<CgroupView>,
        layout: CgroupLayout,
    },
    /// What is mounted there gets other options; with `bind` only the mount, else the file system too.
    Remount {
        bind: bool,
    },
}

/// How the cgroup hierarchies stand below one mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Version 2 alone, at the mount point itself.
    Unified,
    /// A directory each, on a tmpfs.
    PerHierarchy,
}

/// One hierarchy as the container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupView {
    /// The directory below the mount point.
    pub name: String,
    pub controllers: Vec<String>,
    pub version: Version,
    /// The container's own cgroup, bound where there is no cgroup namespace to hide the rest.
    pub bind: Option<PathBuf>,
}

/// What this process may do, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// The permitted capabilities.
    pub held: CapabilitySet,
    pub bounding: CapabilitySet,
}

impl Privileges {
    /// Whether the mounts of the host can be copied and its namespaces joined.
    pub fn over_mounts(self) -> bool {
        self.held.holds("CAP_SYS_ADMIN")
    }
}

/// Decides the plan.
pub fn plan(container: &Container, cgroups: &CgroupPlan, privileges: Privileges) -> Plan {
    let mut steps = Vec::new();
    let mut notes = Vec::new();
    let mut trees = Trees::new(container, cgroups, privileges);
    let user = container.namespace(NamespaceKind::User).is_some();
    if user {
        usher(container, cgroups.groups.len(), privileges, &mut steps);
    }
    join(container, cgroups, &mut steps);
    identity(container, &mut steps);
    file_system(container, cgroups, &mut trees, &mut steps);
    if let (Some(adjustment), false) = (container.process.oom_score_adj, user) {
        steps.push(Step::OomScoreAdj(adjustment));
    }
    if !container.hooks.prestart.is_empty() || !container.hooks.create_runtime.is_empty() {
        steps.push(Step::AwaitHooks);
    }
    if !container.hooks.create_container.is_empty() {
        steps.push(Step::ContainerHooks);
    }
    steps.push(Step::PivotRoot);
    // Not before: a root that is shared cannot be changed (pivot_root(2)).
    let propagation = |(propagation, recursive)| Step::RootPropagation { propagation, recursive };
    steps.extend(container.root_propagation.map(propagation));
    if container.root_readonly {
        steps.push(Step::RootReadonly);
    }
    let granted = grant(&container.process, available(container, privileges), &mut notes);
    process(&container.process, container.seccomp.as_ref(), &granted, &mut steps);
    Plan { clone_namespaces: if user { Vec::new() } else { cloned(container) }, trees: trees.found, steps, notes }
}

/// What a process has to give when its program's rights are set: all capabilities where it entered a user namespace (user_namespaces(7)).
pub(super) fn available(container: &Container, privileges: Privileges) -> Privileges {
    let all = Privileges { held: CapabilitySet::ALL, bounding: CapabilitySet::ALL };
    container.namespace(NamespaceKind::User).map_or(privileges, |_| all)
}

/// The namespaces to join, in the order of the handles.
pub fn joined(container: &Container) -> impl Iterator<Item = (NamespaceKind, &PathBuf)> {
    let paths = container.namespaces.iter();
    paths.filter_map(|namespace| namespace.path.as_ref().map(|path| (namespace.kind, path)))
}

/// The namespaces a process is born in.
fn cloned(container: &Container) -> Vec<NamespaceKind> {
    let kinds = [NamespaceKind::Mount, NamespaceKind::Pid, NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts];
    kinds.into_iter().filter(|kind| container.has_new(*kind)).collect()
}

fn joins(container: &Container, first: usize) -> impl Iterator<Item = Step> {
    let numbered = joined(container).enumerate().filter(|(_, (kind, _))| *kind != NamespaceKind::User);
    numbered.map(move |(place, (kind, path))| Step::JoinNamespace { kind, path: path.clone(), handle: first + place })
}

/// With a user namespace, what comes before the child is born. As root the host's namespaces are joined, and the limits raised, as long as
/// that is allowed, so before the user namespace; without privileges they are had in the user namespace only, so after it.
fn usher(container: &Container, first: usize, privileges: Privileges, steps: &mut Vec<Step>) {
    let mut of_others: Vec<Step> = joins(container, first).collect();
    if container.has_new(NamespaceKind::Time) {
        of_others.push(Step::NewTimeNamespace(container.time_offsets.clone()));
    }
    let mut user: Vec<Step> = match joined(container).enumerate().find(|(_, (kind, _))| *kind == NamespaceKind::User) {
        Some((place, (_, path))) => {
            vec![Step::JoinUserNamespace { path: path.clone(), handle: first + place, expected: container.ids.clone() }]
        }
        None => vec![Step::NewUserNamespace(container.ids.clone())],
    };
    user.push(Step::BecomeRoot);
    steps.extend(container.process.rlimits.iter().cloned().map(Step::RaiseLimit));
    steps.extend(container.process.oom_score_adj.map(Step::OomScoreAdj));
    let (before, after) = if privileges.over_mounts() { (of_others, user) } else { (user, of_others) };
    steps.extend(before.into_iter().chain(after));
    steps.push(Step::Bear(cloned(container)));
}

/// Collects what the parent is to open.
struct Trees {
    /// The handle of the first.
    first: usize,
    /// The parent may copy mounts.
    can: bool,
    /// The container has a user namespace, and may not.
    user: bool,
    /// `linux.rootfsPropagation` lets the container show the host what it mounts.
    shared: bool,
    /// The user namespace that maps ids where a mount does not say how.
    idmap: Option<IdmapBy>,
    found: Vec<Tree>,
}

impl Trees {
    fn new(container: &Container, cgroups: &CgroupPlan, privileges: Privileges) -> Self {
        let user = container.namespace(NamespaceKind::User);
        let idmap = user.map(|user| user.path.clone().map_or_else(|| IdmapBy::Ids(container.ids.clone()), IdmapBy::Joined));
        Self {
            first: cgroups.groups.len() + joined(container).count(),
            can: privileges.over_mounts(),
            user: user.is_some(),
            shared: matches!(container.root_propagation, Some((Propagation::Shared, _))),
            idmap,
            found: Vec::new(),
        }
    }

    /// The handle of a tree.
    fn take(&mut self, tree: Tree) -> usize {
        self.found.push(tree);
        self.first + self.found.len() - 1
    }

    fn root(&mut self, path: &Path) -> Option<usize> {
        let tree = || Tree { field: "root.path".to_owned(), source: path.to_owned(), recursive: true, cut_off: true, idmap: None };
        (self.user && self.can).then(|| self.take(tree()))
    }

    /// What passes mounts on to the host or from it must be copied where the host's own mount is; what maps ids, where it may be said. The
    /// host is shown what is mounted in a shared one only if the root is shared too, as under runc.
    fn bind(&mut self, mount: &Mount, source: &Path, recursive: bool) -> Option<usize> {
        let has = |wanted: Propagation| mount.options.propagation.iter().any(|(propagation, _)| *propagation == wanted);
        let shown = has(Propagation::Shared) && self.shared;
        let needed = self.user || shown || has(Propagation::Slave);
        let idmap = mount.idmap.as_ref().and_then(|idmap| {
            let by = idmap.ids.clone().map(IdmapBy::Ids).or_else(|| self.idmap.clone())?;
            Some(TreeIdmap { by, recursive: idmap.recursive })
        });
        // Without the privilege the kernel refuses a mapping, and the error says so.
        if idmap.is_none() && !(needed && self.can) {
            return None;
        }
        let field = format!("mounts[{}].source", mount.index);
        Some(self.take(Tree { field, source: source.to_owned(), recursive, cut_off: self.user || !shown, idmap }))
    }
}

fn join(container: &Container, cgroups: &CgroupPlan, steps: &mut Vec<Step>) {
    for (handle, group) in cgroups.groups.iter().enumerate() {
        steps.push(Step::JoinCgroup { directory: group.directory.clone(), handle });
    }
    if container.namespace(NamespaceKind::User).is_none() {
        // A process joins a pid namespace only by being born there.
        let is_pid = |step: &Step| matches!(step, Step::JoinNamespace { kind: NamespaceKind::Pid, .. });
        steps.extend(joins(container, cgroups.groups.len()).filter(|step| !is_pid(step)));
        if container.has_new(NamespaceKind::Time) {
            steps.push(Step::NewTimeNamespace(container.time_offsets.clone()));
        }
    }
    if container.has_new(NamespaceKind::Cgroup) {
        steps.push(Step::NewCgroupNamespace);
    }
    steps.push(Step::NewSession);
}

fn identity(container: &Container, steps: &mut Vec<Step>) {
    if container.has_new(NamespaceKind::Network) {
        steps.push(Step::LoopbackUp);
    }
    steps.extend(container.hostname.clone().map(Step::Hostname));
    steps.extend(container.domainname.clone().map(Step::Domainname));
}

fn file_system(container: &Container, cgroups: &CgroupPlan, trees: &mut Trees, steps: &mut Vec<Step>) {
    let isolation = match container.root_propagation {
        Some((Propagation::Private, _)) => Propagation::Private,
        // What is shared with the host would show it all of the container's mounts.
        _ => Propagation::Slave,
    };
    steps.push(Step::IsolateMounts(isolation));
    let below = container.root_propagation.and_then(|(propagation, recursive)| recursive.then_some(propagation));
    steps.push(Step::AttachRoot { path: container.root.clone(), handle: trees.root(&container.root), below });
    let private_cgroups = container.namespace(NamespaceKind::Cgroup).is_some();
    steps.extend(
        container
            .mounts
            .iter()
            .map(|mount| Step::Mount(mount_step(mount, cgroups, private_cgroups, container.mount_label.as_deref(), trees))),
    );
    // A /dev bound from the host is the host's own: nothing is made in it.
    let dev_is_bound = |mount: &Mount| mount.destination == Path::new("/dev") && matches!(mount.what, MountWhat::Bind { .. });
    if !container.mounts.iter().any(dev_is_bound) {
        let user = container.namespace(NamespaceKind::User).is_some();
        let step = |device: Device| if user && device.kind != DeviceKind::Fifo { Step::BindDevice(device) } else { Step::Device(device) };
        steps.extend(container.devices.iter().cloned().map(step));
        let links = [
            ("/dev/fd", "/proc/self/fd", true),
            ("/dev/stdin", "/proc/self/fd/0", true),
            ("/dev/stdout", "/proc/self/fd/1", true),
            ("/dev/stderr", "/proc/self/fd/2", true),
            // A kernel need not have it.
            ("/dev/core", "/proc/kcore", false),
            ("/dev/ptmx", "pts/ptmx", true),
        ];
        steps.extend(links.map(|(path, target, always)| Step::Link { path: path.into(), target: target.into(), always }));
    }
    if container.process.terminal {
        steps.push(Step::Terminal { size: container.process.console_size, bind: true, relayed: false });
    }
    steps.push(Step::WorkDirectory(container.process.cwd.clone()));
    let sysctl = container.sysctl.iter();
    steps.extend(sysctl.map(|(name, value)| Step::Sysctl { name: name.clone(), value: value.clone() }));
    // While a procfs of the host's can be had: the container's own could be anything.
    let label = |field, file, label: &Option<String>| label.clone().map(|label| Step::Label { field, file, label });
    let apparmor = container.process.apparmor_profile.as_ref().map(|profile| format!("exec {profile}"));
    steps.extend(label("process.apparmorProfile", "self/attr/apparmor/exec", &apparmor));
    steps.extend(label("process.selinuxLabel", "self/attr/exec", &container.process.selinux_label));
    let numbered = |paths: &[PathBuf]| paths.iter().cloned().enumerate().collect::<Vec<_>>();
    steps.extend(numbered(&container.readonly_paths).into_iter().map(|(index, path)| Step::ReadonlyPath { index, path }));
    steps.extend(numbered(&container.masked_paths).into_iter().map(|(index, path)| Step::MaskedPath { index, path }));
}

fn mount_step(mount: &Mount, cgroups: &CgroupPlan, private_cgroups: bool, label: Option<&str>, trees: &mut Trees) -> MountStep {
    let what = match &mount.what {
        MountWhat::Bind { source, recursive } => {
            let handle = trees.bind(mount, source, *recursive);
            MountSource::Bind { source: source.clone(), recursive: *recursive, handle }
        }
        MountWhat::Remount { bind } => MountSource::Remount { bind: *bind },
        MountWhat::FileSystem { kind, source } => MountSource::FileSystem { kind: kind.clone(), source: source.clone() },
        MountWhat::Cgroup => {
            let joined = cgroups.groups.iter().map(|group| (&group.hierarchy, group.directory.clone()));
            let others = cgroups.others.iter().map(|other| (other, other.mount_point.join(&other.own)));
            let all: Vec<(&Hierarchy, PathBuf)> = joined.chain(others).collect();
            let unified = matches!(all.as_slice(), [(only, _)] if only.version == Version::V2);
            let views = all.into_iter().map(|(hierarchy, directory)| CgroupView {
                name: hierarchy.mount_point.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                controllers: hierarchy.controllers.clone(),
                version: hierarchy.version,
                bind: (!private_cgroups).then_some(directory),
            });
            let layout = if unified { CgroupLayout::Unified } else { CgroupLayout::PerHierarchy };
            MountSource::Cgroups { views: views.collect(), layout }
        }
    };
    let mut options = mount.options.clone();
    // Of the file systems of the kernel's own only some can be labelled whole (selinux "context mount").
    if let (MountSource::FileSystem { kind, .. }, Some(label)) = (&what, label)
        && !matches!(kind.as_str(), "proc" | "sysfs")
    {
        options.data.push(("context".to_owned(), Some(label.to_owned())));
    }
    MountStep { index: mount.index, destination: mount.destination.clone(), what, options }
}

/// The sets that can be had. runc fails when a set holds more than it has itself; a container that asks for Docker's default, or for
/// everything, then could not start under a supervisor that lacks one capability, so what is not held is left out, with a note.
/// The kernel raises an ambient capability only when it is permitted and inheritable (capabilities(7)); the rest is left out as well.
pub(super) fn grant(process: &Process, available: Privileges, notes: &mut Vec<String>) -> Capabilities {
    let asked = &process.capabilities;
    notes.extend(
        process.unknown_capabilities.iter().map(|name| format!("process.capabilities: {name:?} is none this runtime knows: left out")),
    );
    let Privileges { held, bounding: held_bounding } = available;
    let everything = [asked.effective, asked.permitted, asked.inheritable].into_iter().fold(asked.bounding, CapabilitySet::union);
    let missing = everything.difference(held.intersection(held_bounding));
    if !missing.is_empty() {
        notes.push(format!("process.capabilities: {missing} not granted: this runtime does not hold it itself"));
    }
    let permitted = asked.permitted.intersection(held);
    let inheritable = asked.inheritable.intersection(held).intersection(held_bounding);
    let ambient = asked.ambient.intersection(permitted).intersection(inheritable);
    let not_raised = asked.ambient.difference(ambient);
    if !not_raised.is_empty() {
        notes.push(format!("process.capabilities.ambient: {not_raised} not raised: it must be permitted and inheritable as well"));
    }
    Capabilities {
        bounding: asked.bounding.intersection(held_bounding),
        effective: asked.effective.intersection(permitted),
        inheritable,
        permitted,
        ambient,
    }
}

/// The filter comes as late as it can, so that it need not allow what the runtime does: last where it may be installed without privileges,
/// else before they are given up, as by runc (seccomp(2): CAP_SYS_ADMIN or no_new_privs). What old profiles know nothing of, as of
/// close_range, comes before it in either case.
pub(super) fn process(process: &Process, seccomp: Option<&Seccomp>, granted: &Capabilities, steps: &mut Vec<Step>) {
    let (early, late) = if process.no_new_privileges { (None, seccomp) } else { (seccomp, None) };
    steps.extend(process.rlimits.iter().cloned().map(Step::Rlimit));
    steps.extend(process.scheduler.clone().map(Step::Scheduler));
    steps.extend(process.io_priority.map(Step::IoPriority));
    steps.extend(process.memory_policy.clone().map(Step::MemoryPolicy));
    steps.extend(process.personality.map(Step::Personality));
    steps.push(Step::OwnStdio { uid: process.uid });
    steps.push(Step::BoundingSet(granted.bounding));
    // As root: the user need not be able to enter it alone, as under runc.
    steps.push(Step::ChangeDirectory(process.cwd.clone()));
    steps.push(Step::Umask(process.umask));
    steps.push(Step::CloseDescriptorsOnExec { preserved: 0 });
    steps.extend(early.cloned().map(Step::Seccomp));
    steps.push(Step::User { uid: process.uid, gid: process.gid, additional_gids: process.additional_gids.clone() });
    let Capabilities { effective, permitted, inheritable, .. } = *granted;
    steps.push(Step::CapabilitySets { effective, permitted, inheritable });
    if !granted.ambient.is_empty() {
        steps.push(Step::AmbientSet(granted.ambient));
    }
    if process.no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    steps.push(Step::FindProgram(process.args[0].clone()));
    steps.extend(late.cloned().map(Step::Seccomp));
}

#[cfg(test)]
mod tests;
