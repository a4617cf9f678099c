//! Decides the steps that turn a cloned process into the container's first process.
//!
//! In: the checked [`Container`], its cgroups, the capabilities the runtime holds. Out: a [`Plan`]: the namespaces to clone with, the
//! ordered [`Step`]s, and notes of what is weaker than asked for. `init` performs one step after another and names the one that failed,
//! so the text of a step is what a user reads. Never asks the machine anything.
//!
//! The order is a security matter and follows runc's: cgroups before anything is charged, the old root detached before the user's
//! settings are applied, privileges dropped last.

use std::fmt;
use std::path::{Path, PathBuf};

use super::capability::CapabilitySet;
use super::cgroup::{CgroupPlan, Version};
use super::check::{Capabilities, Container, Device, DeviceKind, Mount, MountWhat, NamespaceKind, Process, Rlimit};
use super::mount_options::{MountOptions, Propagation};
use super::seccomp::Seccomp;
use super::spec::ConsoleSize;

/// What the parent clones with and what the child then does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Made by clone3(2) itself. The cgroup namespace is not among them: it must come after the cgroups are joined.
    pub clone_namespaces: Vec<NamespaceKind>,
    pub steps: Vec<Step>,
    /// What is asked for and cannot be had, and why going on is right.
    pub notes: Vec<String>,
}

/// One deed of the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `handle` counts the descriptors the parent opened, in this order.
    JoinCgroup {
        directory: PathBuf,
        handle: usize,
    },
    JoinNamespace {
        kind: NamespaceKind,
        path: PathBuf,
        handle: usize,
    },
    /// All at once, those of the process at a descriptor (setns(2)).
    JoinProcess {
        kinds: Vec<NamespaceKind>,
        handle: usize,
    },
    NewCgroupNamespace,
    NewSession,
    SessionKeyring(String),
    LoopbackUp,
    Hostname(String),
    Domainname(String),
    IsolateMounts(Propagation),
    AttachRoot(PathBuf),
    Mount(MountStep),
    Device(Device),
    Link {
        path: PathBuf,
        target: PathBuf,
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
    PivotRoot,
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
    Bind { source: PathBuf, recursive: bool },
    FileSystem { kind: String, source: String },
    Cgroups { views: Vec<CgroupView>, layout: CgroupLayout },
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

/// Decides the plan. `held`: the runtime's permitted set; `held_bounding`: its bounding set.
pub fn plan(container: &Container, cgroups: &CgroupPlan, held: CapabilitySet, held_bounding: CapabilitySet) -> Plan {
    let mut steps = Vec::new();
    let mut notes = Vec::new();
    join(container, cgroups, &mut steps);
    identity(container, &mut steps);
    file_system(container, cgroups, &mut steps);
    if let Some(adjustment) = container.process.oom_score_adj {
        steps.push(Step::OomScoreAdj(adjustment));
    }
    steps.push(Step::PivotRoot);
    if container.root_readonly {
        steps.push(Step::RootReadonly);
    }
    let granted = grant(&container.process.capabilities, held, held_bounding, &mut notes);
    process(&container.process, container.seccomp.as_ref(), &granted, &mut steps);
    let is_cloned = |kind: &NamespaceKind| *kind != NamespaceKind::Cgroup && container.has_new(*kind);
    let kinds = [NamespaceKind::Mount, NamespaceKind::Pid, NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts];
    Plan { clone_namespaces: kinds.into_iter().filter(is_cloned).collect(), steps, notes }
}

/// The namespaces to join from inside the child; a process joins a pid namespace only by being born there.
pub fn joined_inside(container: &Container) -> impl Iterator<Item = (NamespaceKind, &PathBuf)> {
    container
        .namespaces
        .iter()
        .filter(|namespace| namespace.kind != NamespaceKind::Pid)
        .filter_map(|namespace| namespace.path.as_ref().map(|path| (namespace.kind, path)))
}

fn join(container: &Container, cgroups: &CgroupPlan, steps: &mut Vec<Step>) {
    for (handle, group) in cgroups.groups.iter().enumerate() {
        steps.push(Step::JoinCgroup { directory: group.directory.clone(), handle });
    }
    for (place, (kind, path)) in joined_inside(container).enumerate() {
        steps.push(Step::JoinNamespace { kind, path: path.clone(), handle: cgroups.groups.len() + place });
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

fn file_system(container: &Container, cgroups: &CgroupPlan, steps: &mut Vec<Step>) {
    steps.push(Step::IsolateMounts(container.root_propagation));
    steps.push(Step::AttachRoot(container.root.clone()));
    let private_cgroups = container.namespace(NamespaceKind::Cgroup).is_some();
    steps.extend(container.mounts.iter().map(|mount| Step::Mount(mount_step(mount, cgroups, private_cgroups))));
    // A /dev bound from the host is the host's own: nothing is made in it.
    let dev_is_bound = |mount: &Mount| mount.destination == Path::new("/dev") && matches!(mount.what, MountWhat::Bind { .. });
    if !container.mounts.iter().any(dev_is_bound) {
        steps.extend(container.devices.iter().cloned().map(Step::Device));
        let links = [
            ("/dev/fd", "/proc/self/fd"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/stdout", "/proc/self/fd/1"),
            ("/dev/stderr", "/proc/self/fd/2"),
            ("/dev/core", "/proc/kcore"),
            ("/dev/ptmx", "pts/ptmx"),
        ];
        steps.extend(links.map(|(path, target)| Step::Link { path: path.into(), target: target.into() }));
    }
    if container.process.terminal {
        steps.push(Step::Terminal { size: container.process.console_size, bind: true, relayed: false });
    }
    steps.push(Step::WorkDirectory(container.process.cwd.clone()));
    let sysctl = container.sysctl.iter();
    steps.extend(sysctl.map(|(name, value)| Step::Sysctl { name: name.clone(), value: value.clone() }));
    let numbered = |paths: &[PathBuf]| paths.iter().cloned().enumerate().collect::<Vec<_>>();
    steps.extend(numbered(&container.readonly_paths).into_iter().map(|(index, path)| Step::ReadonlyPath { index, path }));
    steps.extend(numbered(&container.masked_paths).into_iter().map(|(index, path)| Step::MaskedPath { index, path }));
}

fn mount_step(mount: &Mount, cgroups: &CgroupPlan, private_cgroups: bool) -> MountStep {
    let what = match &mount.what {
        MountWhat::Bind { source, recursive } => MountSource::Bind { source: source.clone(), recursive: *recursive },
        MountWhat::FileSystem { kind, source } => MountSource::FileSystem { kind: kind.clone(), source: source.clone() },
        MountWhat::Cgroup => {
            let unified = matches!(cgroups.groups.as_slice(), [only] if only.hierarchy.version == Version::V2);
            let views = cgroups.groups.iter().map(|group| CgroupView {
                name: group.hierarchy.mount_point.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                controllers: group.hierarchy.controllers.clone(),
                version: group.hierarchy.version,
                bind: (!private_cgroups).then(|| group.directory.clone()),
            });
            let layout = if unified { CgroupLayout::Unified } else { CgroupLayout::PerHierarchy };
            MountSource::Cgroups { views: views.collect(), layout }
        }
    };
    MountStep { index: mount.index, destination: mount.destination.clone(), what, options: mount.options.clone() }
}

/// The sets that can be had. runc fails when a set holds more than it has itself; a container that asks for Docker's default, or for
/// everything, then could not start under a supervisor that lacks one capability, so what is not held is left out, with a note.
/// The kernel raises an ambient capability only when it is permitted and inheritable (capabilities(7)); the rest is left out as well.
pub(super) fn grant(asked: &Capabilities, held: CapabilitySet, held_bounding: CapabilitySet, notes: &mut Vec<String>) -> Capabilities {
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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroup { directory, .. } => write!(f, "linux.cgroupsPath: join {}", directory.display()),
            Self::JoinNamespace { kind, path, .. } => write!(f, "linux.namespaces: join the {kind} namespace {}", path.display()),
            Self::JoinProcess { kinds, .. } => {
                let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
                write!(f, "join the container's {} namespaces", kinds.join(" "))
            }
            Self::NewCgroupNamespace => write!(f, "linux.namespaces: make a cgroup namespace"),
            Self::NewSession => write!(f, "begin a session"),
            Self::SessionKeyring(name) => write!(f, "begin or join the session keyring {name:?}"),
            Self::LoopbackUp => write!(f, "linux.namespaces: bring the loopback interface up"),
            Self::Hostname(name) => write!(f, "hostname: set {name:?}"),
            Self::Domainname(name) => write!(f, "domainname: set {name:?}"),
            Self::IsolateMounts(propagation) => write!(f, "linux.rootfsPropagation: make all mounts {propagation}"),
            Self::AttachRoot(path) => write!(f, "root.path: attach {}", path.display()),
            Self::Mount(mount) => mount.fmt(f),
            Self::Device(device) => device.fmt(f),
            Self::Link { path, target } => write!(f, "default devices: link {} to {}", path.display(), target.display()),
            Self::WorkDirectory(path) => write!(f, "process.cwd: make {}", path.display()),
            Self::Sysctl { name, value } => write!(f, "linux.sysctl[{name}]: write {value:?}"),
            Self::ReadonlyPath { index, path } => write!(f, "linux.readonlyPaths[{index}]: make {} read-only", path.display()),
            Self::MaskedPath { index, path } => write!(f, "linux.maskedPaths[{index}]: mask {}", path.display()),
            Self::OomScoreAdj(value) => write!(f, "process.oomScoreAdj: set {value}"),
            Self::PivotRoot => write!(f, "root.path: make it the root"),
            Self::MoveRoot => write!(f, "root.path: move it over the root"),
            Self::Terminal { .. } => write!(f, "process.terminal: open it"),
            Self::RootReadonly => write!(f, "root.readonly: make the root read-only"),
            Self::Rlimit(limit) => write!(f, "process.rlimits: set {} to {} of at most {}", limit.name, limit.soft, limit.hard),
            Self::OwnStdio { uid } => write!(f, "process.user.uid: give standard input and outputs to user {uid}"),
            Self::BoundingSet(set) => write!(f, "process.capabilities.bounding: keep {set}"),
            Self::User { uid, gid, additional_gids } => {
                write!(f, "process.user: become user {uid}, group {gid}, additional groups {additional_gids:?}")
            }
            Self::CapabilitySets { effective, permitted, inheritable } => {
                write!(f, "process.capabilities: set effective {effective}; permitted {permitted}; inheritable {inheritable}")
            }
            Self::AmbientSet(set) => write!(f, "process.capabilities.ambient: raise {set}"),
            Self::NoNewPrivileges => write!(f, "process.noNewPrivileges: set it"),
            Self::Seccomp(filter) => filter.fmt(f),
            Self::ChangeDirectory(path) => write!(f, "process.cwd: change to {}", path.display()),
            Self::FindProgram(name) => write!(f, "process.args[0]: find {name:?}"),
            Self::Umask(mask) => write!(f, "process.user.umask: set {mask:03o}"),
            Self::CloseDescriptorsOnExec { preserved: 0 } => write!(f, "close all but the standard descriptors at exec"),
            Self::CloseDescriptorsOnExec { preserved } => write!(f, "close all but the standard descriptors and {preserved} more at exec"),
        }
    }
}

impl fmt::Display for MountStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.destination.display();
        write!(f, "mounts[{}]: ", self.index)?;
        match &self.what {
            MountSource::Bind { source, recursive: false } => write!(f, "bind {} at {at}", source.display())?,
            MountSource::Bind { source, recursive: true } => write!(f, "bind {} and what is below at {at}", source.display())?,
            MountSource::FileSystem { kind, .. } => write!(f, "mount {kind} at {at}")?,
            MountSource::Cgroups { views, layout: CgroupLayout::Unified } => write!(f, "mount {} cgroup2 hierarchy at {at}", views.len())?,
            MountSource::Cgroups { views, layout: CgroupLayout::PerHierarchy } => {
                let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
                write!(f, "mount cgroups {} at {at}", names.join(" "))?;
            }
        }
        let MountOptions { bind: _, attributes, recursive, propagation, data } = &self.options;
        if attributes.set != 0 {
            write!(f, " {attributes}")?;
        }
        if recursive.set != 0 {
            write!(f, " recursively {recursive}")?;
        }
        for (propagation, recursive) in propagation {
            write!(f, " {}{propagation}", if *recursive { "r" } else { "" })?;
        }
        for (key, value) in data {
            match value {
                Some(value) => write!(f, " {key}={value}")?,
                None => write!(f, " {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
            DeviceKind::Fifo => 'p',
        };
        write!(f, "linux.devices: make {} {kind} {}:{} {:04o}", self.path.display(), self.major, self.minor, self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::{Group, Hierarchy};
    use super::super::{check, spec};
    use super::*;

    const EVERYTHING: CapabilitySet = CapabilitySet(u64::MAX);

    fn container(text: &str) -> Container {
        check::check(Path::new("/b"), &spec::parse(text.as_bytes()).unwrap()).unwrap()
    }

    fn groups(version: Version, names: &[&str]) -> CgroupPlan {
        let group = |name: &&str| Group {
            hierarchy: Hierarchy {
                version,
                mount_point: Path::new("/sys/fs/cgroup").join(name),
                controllers: vec![(*name).to_owned()],
                own: PathBuf::new(),
            },
            directory: Path::new("/sys/fs/cgroup").join(name).join("x"),
            enable: Vec::new(),
            writes: Vec::new(),
            device_filter: Vec::new(),
        };
        CgroupPlan { groups: names.iter().map(group).collect() }
    }

    fn text(plan: &Plan) -> String {
        let lines = plan.steps.iter().map(|step| format!("{step}\n"));
        lines.chain(plan.notes.iter().map(|note| format!("note: {note}\n"))).collect()
    }

    #[test]
    fn every_step_in_order() {
        let container = container(
            r#"{"ociVersion":"1.2.0","hostname":"web","domainname":"lan","root":{"path":"rootfs","readonly":true},
            "process":{"cwd":"/srv","args":["sh","-c","true"],"user":{"uid":7,"gid":8,"additionalGids":[9],"umask":63},
              "noNewPrivileges":true,"oomScoreAdj":100,"rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}],
              "capabilities":{"bounding":["CAP_KILL","CAP_SYS_RESOURCE"],"permitted":["CAP_KILL"],"effective":["CAP_KILL"],
                "inheritable":["CAP_KILL"],"ambient":["CAP_KILL","CAP_CHOWN"]}},
            "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]},
              {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]},
              {"destination":"/sys/fs/cgroup","type":"cgroup","options":["ro"]},
              {"destination":"/data","source":"/srv/data","options":["rbind","rro","rprivate"]}],
            "linux":{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"uts"},{"type":"network"},{"type":"cgroup"},
                {"type":"ipc","path":"/proc/7/ns/ipc"}],
              "sysctl":{"net.ipv4.ip_forward":"1"},"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"]}}"#,
        );
        let held = CapabilitySet(EVERYTHING.0 & !(1 << 24));
        let plan = plan(&container, &groups(Version::V1, &["memory", "pids"]), held, held);
        let filter = container.seccomp.as_ref().unwrap().program.len();
        let expected = format!(
            "\
linux.cgroupsPath: join /sys/fs/cgroup/memory/x
linux.cgroupsPath: join /sys/fs/cgroup/pids/x
linux.namespaces: join the ipc namespace /proc/7/ns/ipc
linux.namespaces: make a cgroup namespace
begin a session
linux.namespaces: bring the loopback interface up
hostname: set \"web\"
domainname: set \"lan\"
linux.rootfsPropagation: make all mounts slave
root.path: attach /b/rootfs
mounts[0]: mount proc at /proc nosuid
mounts[1]: mount tmpfs at /dev nosuid mode=755
mounts[2]: mount cgroups memory pids at /sys/fs/cgroup ro
mounts[3]: bind /srv/data and what is below at /data recursively ro rprivate
linux.devices: make /dev/null c 1:3 0666
linux.devices: make /dev/zero c 1:5 0666
linux.devices: make /dev/full c 1:7 0666
linux.devices: make /dev/random c 1:8 0666
linux.devices: make /dev/urandom c 1:9 0666
linux.devices: make /dev/tty c 5:0 0666
default devices: link /dev/fd to /proc/self/fd
default devices: link /dev/stdin to /proc/self/fd/0
default devices: link /dev/stdout to /proc/self/fd/1
default devices: link /dev/stderr to /proc/self/fd/2
default devices: link /dev/core to /proc/kcore
default devices: link /dev/ptmx to pts/ptmx
process.cwd: make /srv
linux.sysctl[net.ipv4.ip_forward]: write \"1\"
linux.readonlyPaths[0]: make /proc/sys read-only
linux.maskedPaths[0]: mask /proc/kcore
process.oomScoreAdj: set 100
root.path: make it the root
root.readonly: make the root read-only
process.rlimits: set RLIMIT_NOFILE to 10 of at most 20
process.user.uid: give standard input and outputs to user 7
process.capabilities.bounding: keep CAP_KILL
process.cwd: change to /srv
process.user.umask: set 077
close all but the standard descriptors at exec
process.user: become user 7, group 8, additional groups [9]
process.capabilities: set effective CAP_KILL; permitted CAP_KILL; inheritable CAP_KILL
process.capabilities.ambient: raise CAP_KILL
process.noNewPrivileges: set it
process.args[0]: find \"sh\"
linux.seccomp: install a filter of {filter} instructions
note: process.capabilities: CAP_SYS_RESOURCE not granted: this runtime does not hold it itself
note: process.capabilities.ambient: CAP_CHOWN not raised: it must be permitted and inheritable as well
"
        );
        assert_eq!(text(&plan), expected);
        use NamespaceKind::{Mount, Network, Pid, Uts};
        assert_eq!(plan.clone_namespaces, [Mount, Pid, Network, Uts]);
    }

    #[test]
    fn with_privileges_to_gain_the_filter_comes_before_they_are_given_up() {
        let container = container(
            r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},"linux":{"namespaces":[{"type":"mount"}],
            "seccomp":{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/agent.sock",
              "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}}}"#,
        );
        let text = text(&plan(&container, &CgroupPlan::default(), EVERYTHING, EVERYTHING));
        let (_, after) = text.split_once("close all but the standard descriptors at exec\nlinux.seccomp: install a filter of ").unwrap();
        let (_, after) = after.split_once(" instructions with flags LOG NEW_LISTENER, notifying /run/agent.sock\n").unwrap();
        assert!(after.starts_with("process.user: become user 0"), "{text}");
    }

    #[test]
    fn nothing_is_made_in_a_bound_dev() {
        let container = container(
            r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},
            "mounts":[{"destination":"/dev","source":"/dev","options":["rbind"]}],"linux":{"namespaces":[{"type":"mount"}]}}"#,
        );
        let text = text(&plan(&container, &CgroupPlan::default(), EVERYTHING, EVERYTHING));
        assert!(!text.contains("default devices") && !text.contains("linux.devices"), "{text}");
    }

    #[test]
    fn without_a_cgroup_namespace_only_the_own_cgroup_is_bound() {
        let container = container(
            r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},
            "mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup"}],"linux":{"namespaces":[{"type":"mount"}]}}"#,
        );
        let plan = plan(&container, &groups(Version::V2, &["unified"]), EVERYTHING, EVERYTHING);
        let Some(Step::Mount(mount)) = plan.steps.iter().find(|step| matches!(step, Step::Mount(_))) else { panic!("no mount") };
        let MountSource::Cgroups { views, layout } = &mount.what else { panic!("no cgroup mount") };
        assert_eq!(*layout, CgroupLayout::Unified);
        assert_eq!(views[0].bind.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/x")));
    }
}
