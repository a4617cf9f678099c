//! A step as a user reads it, when it is the one that failed.

use std::fmt;

use super::*;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroup { directory, .. } => write!(f, "linux.cgroupsPath: join {}", directory.display()),
            Self::JoinResctrl { group, .. } => write!(f, "linux.intelRdt: join {}", group.display()),
            Self::JoinNamespace { kind, path, .. } => write!(f, "linux.namespaces: join the {kind} namespace {}", path.display()),
            Self::RaiseLimit(limit) => write!(f, "process.rlimits: raise {} to at most {}", limit.name, limit.hard),
            Self::NewUserNamespace(ids) => {
                let lines = |ranges: &[IdMapping]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let (users, groups) = (lines(&ids.users), lines(&ids.groups));
                write!(f, "linux.uidMappings, linux.gidMappings: make a user namespace of users {users} and groups {groups}")
            }
            Self::JoinUserNamespace { path, .. } => write!(f, "linux.namespaces: join the user namespace {}", path.display()),
            Self::BecomeRoot => write!(f, "linux.uidMappings: become root of the user namespace"),
            Self::Bear(kinds) => {
                let kinds: Vec<String> = kinds.iter().map(|kind| format!(" {kind}")).collect();
                write!(f, "linux.namespaces: begin a process")?;
                if kinds.is_empty() { Ok(()) } else { write!(f, " in new namespaces{}", kinds.concat()) }
            }
            Self::NewTimeNamespace(offsets) => {
                write!(f, "linux.timeOffsets: make a time namespace")?;
                offsets.iter().try_for_each(|TimeOffset { clock, seconds, nanoseconds }| write!(f, " {clock}={seconds}.{nanoseconds:09}"))
            }
            Self::JoinProcess { kinds, .. } => {
                let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
                write!(f, "join the container's {} namespaces", kinds.join(" "))
            }
            Self::Undumpable => write!(f, "hide from the container until the program is executed"),
            Self::NewCgroupNamespace => write!(f, "linux.namespaces: make a cgroup namespace"),
            Self::NewSession => write!(f, "begin a session"),
            Self::SessionKeyring(name) => write!(f, "begin or join the session keyring {name:?}"),
            Self::LoopbackUp => write!(f, "linux.namespaces: bring the loopback interface up"),
            Self::Hostname(name) => write!(f, "hostname: set {name:?}"),
            Self::Domainname(name) => write!(f, "domainname: set {name:?}"),
            Self::IsolateMounts(propagation) => write!(f, "linux.rootfsPropagation: make the host's mounts {propagation}"),
            Self::AttachRoot { path, .. } => write!(f, "root.path: attach {}", path.display()),
            Self::Mount(mount) => mount.fmt(f),
            Self::Device(device) => device.fmt(f),
            Self::BindDevice(device) => write!(f, "linux.devices: bind the host's {}", device.path.display()),
            Self::Link { path, target, .. } => write!(f, "default devices: link {} to {}", path.display(), target.display()),
            Self::WorkDirectory(path) => write!(f, "process.cwd: make {}", path.display()),
            Self::Sysctl { name, value } => write!(f, "linux.sysctl[{name}]: write {value:?}"),
            Self::ReadonlyPath { index, path } => write!(f, "linux.readonlyPaths[{index}]: make {} read-only", path.display()),
            Self::MaskedPath { index, path } => write!(f, "linux.maskedPaths[{index}]: mask {}", path.display()),
            Self::OomScoreAdj(value) => write!(f, "process.oomScoreAdj: set {value}"),
            Self::AwaitHooks => write!(f, "hooks: wait for prestart and createRuntime"),
            Self::ContainerHooks => write!(f, "hooks: run createContainer"),
            Self::PivotRoot => write!(f, "root.path: make it the root"),
            Self::RootPropagation { propagation, recursive } => {
                write!(f, "linux.rootfsPropagation: make the root {}{propagation}", if *recursive { "r" } else { "" })
            }
            Self::MoveRoot => write!(f, "root.path: move it over the root"),
            Self::Terminal { .. } => write!(f, "process.terminal: open it"),
            Self::RootReadonly => write!(f, "root.readonly: make the root read-only"),
            Self::Rlimit(limit) => write!(f, "process.rlimits: set {} to {} of at most {}", limit.name, limit.soft, limit.hard),
            Self::Scheduler(scheduler) => {
                let Scheduler { name, policy: _, flags, nice, priority, runtime_ns, deadline_ns, period_ns } = scheduler;
                write!(f, "process.scheduler: set {name} flags {flags:#x} nice {nice} priority {priority}")?;
                write!(f, " runtime {runtime_ns} deadline {deadline_ns} period {period_ns}")
            }
            Self::IoPriority(value) => write!(f, "process.ioPriority: set class {} priority {}", value >> 13, value & 7),
            Self::Affinity { field, processors } => write!(f, "process.execCPUAffinity.{field}: run on {processors:?}"),
            Self::Personality(value) => write!(f, "linux.personality: set {value:#x}"),
            Self::MemoryPolicy(MemoryPolicy { name, nodes, .. }) => write!(f, "linux.memoryPolicy: set {name} of nodes {nodes:?}"),
            Self::Label { field, label, .. } => write!(f, "{field}: take on {label:?}"),
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
            MountSource::Bind { source, recursive: false, .. } => write!(f, "bind {} at {at}", source.display())?,
            MountSource::Bind { source, recursive: true, .. } => write!(f, "bind {} and what is below at {at}", source.display())?,
            MountSource::Remount { bind: true } => write!(f, "change the mount at {at}")?,
            MountSource::Remount { bind: false } => write!(f, "change the file system at {at}")?,
            MountSource::FileSystem { kind, .. } => write!(f, "mount {kind} at {at}")?,
            MountSource::Cgroups { views, layout: CgroupLayout::Unified } => write!(f, "mount {} cgroup2 hierarchy at {at}", views.len())?,
            MountSource::Cgroups { views, layout: CgroupLayout::PerHierarchy } => {
                let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
                write!(f, "mount cgroups {} at {at}", names.join(" "))?;
            }
        }
        let MountOptions { bind: _, attributes, recursive, propagation, idmap, copy_up, remount: _, data, hints } = &self.options;
        if attributes.set != 0 {
            write!(f, " {attributes}")?;
        }
        if recursive.set != 0 {
            write!(f, " recursively {recursive}")?;
        }
        for (propagation, recursive) in propagation {
            write!(f, " {}{propagation}", if *recursive { "r" } else { "" })?;
        }
        let named = [(idmap == &Some(false), "idmap"), (idmap == &Some(true), "ridmap"), (*copy_up, "tmpcopyup")];
        named.into_iter().filter(|(given, _)| *given).try_for_each(|(_, name)| write!(f, " {name}"))?;
        hints.iter().try_for_each(|hint| write!(f, " {hint}"))?;
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
