//! Decides whether a bundle can be run here, and what exactly it asks for.
//!
//! In: the [`Spec`] as written and the bundle's directory. Out: a [`Container`], in which every field is meant and checked, or all the
//! refusals at once. Never lets a field that matters pass unhonoured: what is not built is refused by its name. Never looks at the
//! machine: what only the kernel can tell is found out by `init`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::capability::CapabilitySet;
use super::mount_options::{self, MountOptions, Propagation};
use super::seccomp::{self, Seccomp};
use super::spec::{self, ConsoleSize, Spec, Unbuilt};

/// The newest specification this runtime was written against.
pub const OCI_VERSION: &str = "1.2.1";

/// The annotation that asks for a first process which passes signals on and reaps orphans: Docker's `--init`, without a program in the image.
pub const REAPER: &str = "io.rcluster.init";

/// A field that cannot be honoured, why, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// A bundle's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub oci_version: String,
    /// Absolute, on the host.
    pub root: PathBuf,
    pub root_readonly: bool,
    pub root_propagation: Propagation,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub namespaces: Vec<Namespace>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub sysctl: BTreeMap<String, String>,
    pub process: Process,
    pub cgroups_path: Option<PathBuf>,
    pub resources: Resources,
    pub seccomp: Option<Seccomp>,
    pub annotations: BTreeMap<String, String>,
}

impl Container {
    /// The entry of a kind, if the container does not share the runtime's.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// Whether another process than the program is to be the container's first, as [`REAPER`] asks for.
    pub fn has_reaper(&self) -> bool {
        self.annotations.get(REAPER).is_some_and(|value| value == "true")
    }

    /// Whether a namespace of this kind is made for the container.
    pub fn has_new(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.path.is_none())
    }
}

/// The kinds of `linux.namespaces[].type` that are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceKind {
    Network,
    Ipc,
    Uts,
    Pid,
    Cgroup,
    Mount,
}

impl fmt::Display for NamespaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
        })
    }
}

/// A namespace: new, or one that exists at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub kind: NamespaceKind,
    pub path: Option<PathBuf>,
}

/// One of `mounts[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its place in `mounts[]`.
    pub index: usize,
    /// Absolute, in the container.
    pub destination: PathBuf,
    pub what: MountWhat,
    pub options: MountOptions,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountWhat {
    /// A file or directory of the host, absolute.
    Bind { source: PathBuf, recursive: bool },
    /// The container's view of the cgroup hierarchies.
    Cgroup,
    /// A file system by its kernel name.
    FileSystem { kind: String, source: String },
}

/// One of `linux.devices[]`, or a default device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The type of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// `process`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Whether a pseudo-terminal of its own is its standard input and outputs, and how large it is at first.
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Absolute, in the container.
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: u32,
    /// Without `process.capabilities` the process has none, as under runc and crun.
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
}

/// `process.capabilities`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub permitted: CapabilitySet,
    pub ambient: CapabilitySet,
}

/// One of `process.rlimits[]`, by the kernel's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    pub name: String,
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// `linux.resources`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub devices: Vec<DeviceRule>,
    /// Bytes; -1 is no limit.
    pub memory_limit: Option<i64>,
    pub memory_reservation: Option<i64>,
    /// Memory and swap together.
    pub memory_swap: Option<i64>,
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; -1 is no limit.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// At most this many tasks; zero or less is no limit.
    pub pids_limit: Option<i64>,
}

/// One of `linux.resources.devices[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None`: both kinds.
    pub kind: Option<DeviceKind>,
    /// `None`: any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of the letters `r`, `w`, `m`.
    pub access: String,
}

const HOST_TEXT_BYTES_MAX: usize = 64;
const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

/// Checks a configuration; `bundle` is the absolute path relative paths in it start from.
pub fn check(bundle: &Path, spec: &Spec) -> Result<Container, Vec<Refusal>> {
    let mut refusals = Refusals::default();
    refusals.version(&spec.oci_version);
    refusals.unbuilt_fields(spec);
    let linux = spec.linux.clone().unwrap_or_default();
    let root = refusals.root(bundle, spec.root.as_ref());
    let namespaces = refusals.namespaces(&linux.namespaces);
    let container = Container {
        oci_version: spec.oci_version.clone(),
        root,
        root_readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        root_propagation: refusals.root_propagation(linux.rootfs_propagation.as_deref()),
        hostname: refusals.host_text("hostname", spec.hostname.as_deref(), &namespaces),
        domainname: refusals.host_text("domainname", spec.domainname.as_deref(), &namespaces),
        mounts: refusals.mounts(bundle, &spec.mounts),
        devices: refusals.devices(&linux.devices),
        masked_paths: refusals.paths("linux.maskedPaths", &linux.masked_paths),
        readonly_paths: refusals.paths("linux.readonlyPaths", &linux.readonly_paths),
        sysctl: refusals.sysctl(&linux.sysctl, &namespaces),
        process: refusals.process(spec.process.as_ref()),
        cgroups_path: refusals.cgroups_path(linux.cgroups_path.as_deref()),
        resources: refusals.resources(&linux.resources.unwrap_or_default()),
        seccomp: refusals.seccomp(bundle, linux.seccomp.as_ref()),
        annotations: spec.annotations.clone(),
        namespaces,
    };
    if refusals.found.is_empty() { Ok(container) } else { Err(refusals.found) }
}

/// Whether a JSON value asks for anything.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Collects what is refused while the parts are read.
#[derive(Default)]
struct Refusals {
    found: Vec<Refusal>,
}

impl Refusals {
    fn refuse(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.found.push(Refusal { field: field.into(), why: why.into() });
    }

    fn unbuilt(&mut self, field: impl Into<String>, value: &Unbuilt) {
        if value.as_ref().is_some_and(|value| !is_empty(value)) {
            self.refuse(field, "not built yet: leave it out, or run this container with another OCI runtime");
        }
    }

    /// Semantic Versioning: within a major version a runtime takes any minor one.
    fn version(&mut self, version: &str) {
        if version.split('.').next() != Some("1") || version.split('.').count() < 3 {
            self.refuse("ociVersion", format!("{version:?} is not a version 1.x.y, which this runtime follows up to {OCI_VERSION}"));
        }
    }

    fn unbuilt_fields(&mut self, spec: &Spec) {
        let top = [("hooks", &spec.hooks), ("vm", &spec.vm)];
        top.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        let foreign = [("windows", &spec.windows), ("solaris", &spec.solaris), ("zos", &spec.zos), ("freebsd", &spec.freebsd)];
        for (field, value) in foreign {
            if value.is_some() {
                self.refuse(field, "this runtime runs Linux containers only");
            }
        }
        if let Some(process) = &spec.process {
            let fields = [
                ("process.commandLine", &process.command_line),
                ("process.apparmorProfile", &process.apparmor_profile),
                ("process.selinuxLabel", &process.selinux_label),
                ("process.scheduler", &process.scheduler),
                ("process.ioPriority", &process.io_priority),
                ("process.execCPUAffinity", &process.exec_cpu_affinity),
            ];
            fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        }
        let Some(linux) = &spec.linux else { return };
        let fields = [
            ("linux.uidMappings", &linux.uid_mappings),
            ("linux.gidMappings", &linux.gid_mappings),
            ("linux.timeOffsets", &linux.time_offsets),
            ("linux.netDevices", &linux.net_devices),
            ("linux.mountLabel", &linux.mount_label),
            ("linux.personality", &linux.personality),
            ("linux.intelRdt", &linux.intel_rdt),
            ("linux.memoryPolicy", &linux.memory_policy),
        ];
        fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
    }

    fn root(&mut self, bundle: &Path, root: Option<&spec::Root>) -> PathBuf {
        match root {
            Some(root) if !root.path.as_os_str().is_empty() => bundle.join(&root.path),
            _ => {
                self.refuse("root.path", "missing: name the directory of the container's file system");
                PathBuf::new()
            }
        }
    }

    fn root_propagation(&mut self, text: Option<&str>) -> Propagation {
        match text {
            None | Some("" | "slave" | "rslave") => Propagation::Slave,
            Some("private" | "rprivate") => Propagation::Private,
            Some(other) => {
                self.refuse("linux.rootfsPropagation", format!("{other:?} is not built yet: use rslave or rprivate"));
                Propagation::Slave
            }
        }
    }

    fn namespaces(&mut self, given: &[spec::Namespace]) -> Vec<Namespace> {
        let mut namespaces: Vec<Namespace> = Vec::new();
        for (index, namespace) in given.iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            let kind = match namespace.kind.as_str() {
                "network" => NamespaceKind::Network,
                "ipc" => NamespaceKind::Ipc,
                "uts" => NamespaceKind::Uts,
                "pid" => NamespaceKind::Pid,
                "cgroup" => NamespaceKind::Cgroup,
                "mount" => NamespaceKind::Mount,
                "user" | "time" => {
                    self.refuse(field, format!("{} namespaces are not built yet: leave it out", namespace.kind));
                    continue;
                }
                other => {
                    self.refuse(field, format!("{other:?} is no kind of namespace"));
                    continue;
                }
            };
            let path = namespace.path.clone().filter(|path| !path.as_os_str().is_empty());
            if namespaces.iter().any(|other| other.kind == kind) {
                self.refuse(&field, format!("{kind} is listed twice"));
            }
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                self.refuse(format!("{field}.path"), "not an absolute path");
            }
            if kind == NamespaceKind::Mount && path.is_some() {
                self.refuse(format!("{field}.path"), "joining a mount namespace is not built yet: leave the path out");
            }
            namespaces.push(Namespace { kind, path });
        }
        if !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Mount) {
            self.refuse("linux.namespaces", "a container shares no mount namespace with the host: add {\"type\":\"mount\"}");
        }
        namespaces.sort_by_key(|namespace| namespace.kind);
        namespaces
    }

    /// `hostname` and `domainname`: changing the host's own is refused.
    fn host_text(&mut self, field: &str, text: Option<&str>, namespaces: &[Namespace]) -> Option<String> {
        let text = text.filter(|text| !text.is_empty())?;
        if !namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Uts) {
            self.refuse(field, "would change the host's: add {\"type\":\"uts\"} to linux.namespaces");
        }
        if text.len() > HOST_TEXT_BYTES_MAX {
            self.refuse(field, format!("longer than the kernel's {HOST_TEXT_BYTES_MAX} bytes"));
        }
        Some(text.to_owned())
    }

    fn mounts(&mut self, bundle: &Path, given: &[spec::Mount]) -> Vec<Mount> {
        given.iter().enumerate().filter_map(|(index, mount)| self.mount(bundle, index, mount)).collect()
    }

    fn mount(&mut self, bundle: &Path, index: usize, mount: &spec::Mount) -> Option<Mount> {
        let field = format!("mounts[{index}]");
        self.unbuilt(format!("{field}.uidMappings"), &mount.uid_mappings);
        self.unbuilt(format!("{field}.gidMappings"), &mount.gid_mappings);
        // A relative destination counts from the root (config.md: older configurations have them).
        let destination = Path::new("/").join(&mount.destination);
        if destination.components().all(|component| component == Component::RootDir) {
            self.refuse(format!("{field}.destination"), "is the root itself: set root.path instead");
        }
        let options = match mount_options::parse(&mount.options) {
            Ok(options) => options,
            Err(why) => {
                self.refuse(format!("{field}.options"), why);
                return None;
            }
        };
        let kind = mount.kind.as_deref().unwrap_or_default();
        let source = mount.source.clone().unwrap_or_default();
        let bind = options.bind.or_else(|| (kind == "bind").then_some(false));
        let what = match (bind, kind) {
            (Some(_), _) if source.as_os_str().is_empty() => {
                self.refuse(format!("{field}.source"), "missing: a bind mount needs what it binds");
                return None;
            }
            (Some(recursive), _) => {
                for (key, _) in &options.data {
                    self.refuse(format!("{field}.options"), format!("{key:?} is no option of a bind mount"));
                }
                MountWhat::Bind { source: bundle.join(source), recursive }
            }
            (None, "") => {
                self.refuse(format!("{field}.type"), "missing: name the file system, or add the option bind");
                return None;
            }
            (None, "cgroup" | "cgroup2") => {
                for (key, _) in &options.data {
                    self.refuse(format!("{field}.options"), format!("{key:?} is no option of a cgroup mount"));
                }
                MountWhat::Cgroup
            }
            (None, kind) => MountWhat::FileSystem { kind: kind.to_owned(), source: source.to_string_lossy().into_owned() },
        };
        Some(Mount { index, destination, what, options })
    }

    fn devices(&mut self, given: &[spec::Device]) -> Vec<Device> {
        let mut devices = default_devices();
        for (index, device) in given.iter().enumerate() {
            let field = format!("linux.devices[{index}]");
            let kind = match device.kind.as_str() {
                "c" | "u" => DeviceKind::Character,
                "b" => DeviceKind::Block,
                "p" => DeviceKind::Fifo,
                other => {
                    self.refuse(format!("{field}.type"), format!("{other:?} is none of c, u, b, p"));
                    continue;
                }
            };
            if !device.path.is_absolute() {
                self.refuse(format!("{field}.path"), "not an absolute path");
            }
            let numbers = match (kind, device.major, device.minor) {
                (DeviceKind::Fifo, _, _) => (0, 0),
                (_, Some(major), Some(minor)) => (major, minor),
                _ => {
                    self.refuse(format!("{field}.major"), "major and minor are both needed");
                    continue;
                }
            };
            let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
            let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
            devices.retain(|other| other.path != device.path);
            devices.push(Device { path: device.path.clone(), kind, major: numbers.0, minor: numbers.1, mode, uid, gid });
        }
        devices
    }

    fn paths(&mut self, field: &str, given: &[PathBuf]) -> Vec<PathBuf> {
        for (index, path) in given.iter().enumerate() {
            if !path.is_absolute() {
                self.refuse(format!("{field}[{index}]"), "not an absolute path");
            }
        }
        given.to_vec()
    }

    /// Only what a namespace of the container holds: any other would change the host's.
    fn sysctl(&mut self, given: &BTreeMap<String, String>, namespaces: &[Namespace]) -> BTreeMap<String, String> {
        const IPC: [&str; 7] =
            ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni"];
        for name in given.keys() {
            let dotted = name.replace('/', ".");
            let needed = if dotted.starts_with("net.") {
                NamespaceKind::Network
            } else if IPC.contains(&dotted.as_str()) || dotted == "kernel.shm_rmid_forced" || dotted.starts_with("fs.mqueue.") {
                NamespaceKind::Ipc
            } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
                NamespaceKind::Uts
            } else {
                self.refuse(format!("linux.sysctl[{name}]"), "belongs to the whole host, not to a namespace of the container");
                continue;
            };
            if name.split(['.', '/']).any(|part| part.is_empty()) {
                self.refuse(format!("linux.sysctl[{name}]"), "is no name of a setting");
            }
            if !namespaces.iter().any(|namespace| namespace.kind == needed) {
                let why = format!("would change the host's: add {{\"type\":\"{needed}\"}} to linux.namespaces");
                self.refuse(format!("linux.sysctl[{name}]"), why);
            }
        }
        given.clone()
    }

    fn process(&mut self, given: Option<&spec::Process>) -> Process {
        let Some(given) = given else {
            self.refuse("process", "missing: say what the container runs");
            return self.process(Some(&spec::Process { cwd: "/".into(), args: vec!["none".into()], ..spec::Process::default() }));
        };
        if given.args.first().is_none_or(String::is_empty) {
            self.refuse("process.args", "empty: name a program");
        }
        if !given.cwd.starts_with('/') {
            self.refuse("process.cwd", format!("{:?} is not an absolute path", given.cwd));
        }
        for (field, list) in [("process.args", &given.args), ("process.env", &given.env)] {
            if let Some(index) = list.iter().position(|text| text.contains('\0')) {
                self.refuse(format!("{field}[{index}]"), "holds a NUL byte");
            }
        }
        let umask = given.user.umask.unwrap_or(0o022);
        if umask > 0o777 {
            self.refuse("process.user.umask", format!("{umask} is above 511 (0777)"));
        }
        for (field, id) in [("process.user.uid", given.user.uid), ("process.user.gid", given.user.gid)] {
            if id == u32::MAX {
                self.refuse(field, "4294967295 means \"leave it\" to the kernel and is no id");
            }
        }
        if let Some(adjustment) = given.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            self.refuse("process.oomScoreAdj", format!("{adjustment} is not between -1000 and 1000"));
        }
        Process {
            terminal: given.terminal,
            console_size: given.console_size,
            args: given.args.clone(),
            env: given.env.clone(),
            cwd: PathBuf::from(&given.cwd),
            uid: given.user.uid,
            gid: given.user.gid,
            additional_gids: given.user.additional_gids.clone(),
            umask,
            capabilities: given.capabilities.as_ref().map(|sets| self.capabilities(sets)).unwrap_or_default(),
            no_new_privileges: given.no_new_privileges,
            rlimits: self.rlimits(&given.rlimits),
            oom_score_adj: given.oom_score_adj,
        }
    }

    fn capabilities(&mut self, given: &spec::Capabilities) -> Capabilities {
        let mut read = |set: &str, names: &[String]| {
            CapabilitySet::parse(names).unwrap_or_else(|name| {
                self.refuse(format!("process.capabilities.{set}"), format!("{name:?} is no capability this runtime knows"));
                CapabilitySet::default()
            })
        };
        let sets = Capabilities {
            bounding: read("bounding", &given.bounding),
            effective: read("effective", &given.effective),
            inheritable: read("inheritable", &given.inheritable),
            permitted: read("permitted", &given.permitted),
            ambient: read("ambient", &given.ambient),
        };
        let beyond = sets.effective.difference(sets.permitted);
        if !beyond.is_empty() {
            self.refuse("process.capabilities.effective", format!("{beyond} is not in permitted, and the kernel allows no such set"));
        }
        sets
    }

    fn rlimits(&mut self, given: &[spec::Rlimit]) -> Vec<Rlimit> {
        let mut limits: Vec<Rlimit> = Vec::new();
        for (index, limit) in given.iter().enumerate() {
            let field = format!("process.rlimits[{index}]");
            let Some((name, resource)) = RLIMITS.iter().find(|(name, _)| *name == limit.kind) else {
                self.refuse(format!("{field}.type"), format!("{:?} is no resource limit", limit.kind));
                continue;
            };
            if limit.soft > limit.hard {
                self.refuse(format!("{field}.soft"), format!("{} is above the hard limit {}", limit.soft, limit.hard));
            }
            if limits.iter().any(|other| other.resource == *resource) {
                self.refuse(format!("{field}.type"), format!("{name} is listed twice"));
            }
            limits.push(Rlimit { name: (*name).to_owned(), resource: *resource, soft: limit.soft, hard: limit.hard });
        }
        limits
    }

    fn cgroups_path(&mut self, path: Option<&Path>) -> Option<PathBuf> {
        let path = path.filter(|path| !path.as_os_str().is_empty())?;
        let text = path.to_string_lossy();
        if text.split(':').count() == 3 && !text.contains('/') {
            self.refuse("linux.cgroupsPath", "slice:prefix:name is systemd's form: give a path, or use --systemd-cgroup");
        }
        if path.components().any(|component| component == Component::ParentDir) {
            self.refuse("linux.cgroupsPath", "must not hold \"..\"");
        }
        if path.components().all(|component| component == Component::RootDir) {
            self.refuse("linux.cgroupsPath", "is the root of all cgroups: name one of the container's own");
        }
        Some(path.to_owned())
    }

    fn seccomp(&mut self, bundle: &Path, given: Option<&seccomp::Written>) -> Option<Seccomp> {
        seccomp::check(bundle, seccomp::Architecture::native(), given?).unwrap_or_else(|refusals| {
            self.found.extend(refusals);
            None
        })
    }

    fn resources(&mut self, given: &spec::Resources) -> Resources {
        let fields = [
            ("linux.resources.blockIO", &given.block_io),
            ("linux.resources.hugepageLimits", &given.hugepage_limits),
            ("linux.resources.network", &given.network),
            ("linux.resources.rdma", &given.rdma),
            ("linux.resources.unified", &given.unified),
        ];
        fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        let memory = given.memory.clone().unwrap_or_default();
        let fields = [
            ("linux.resources.memory.kernel", &memory.kernel),
            ("linux.resources.memory.kernelTCP", &memory.kernel_tcp),
            ("linux.resources.memory.swappiness", &memory.swappiness),
            ("linux.resources.memory.disableOOMKiller", &memory.disable_oom_killer),
            ("linux.resources.memory.useHierarchy", &memory.use_hierarchy),
            ("linux.resources.memory.checkBeforeUpdate", &memory.check_before_update),
        ];
        // `false` is what an unset switch does anyway.
        for (field, value) in fields {
            let asked = value.as_ref().filter(|value| **value != Value::Bool(false)).cloned();
            self.unbuilt(field, &asked);
        }
        let cpu = given.cpu.clone().unwrap_or_default();
        let fields = [
            ("linux.resources.cpu.burst", &cpu.burst),
            ("linux.resources.cpu.realtimeRuntime", &cpu.realtime_runtime),
            ("linux.resources.cpu.realtimePeriod", &cpu.realtime_period),
            ("linux.resources.cpu.idle", &cpu.idle),
        ];
        fields.into_iter().for_each(|(field, value)| self.unbuilt(field, value));
        self.memory(&memory);
        if let Some(quota) = cpu.quota.filter(|quota| *quota > 0 && *quota < 1000) {
            self.refuse("linux.resources.cpu.quota", format!("{quota} µs is below the kernel's 1000"));
        }
        if let Some(period) = cpu.period.filter(|period| *period != 0 && !(1000..=1_000_000).contains(period)) {
            self.refuse("linux.resources.cpu.period", format!("{period} µs is not between 1000 and 1000000"));
        }
        Resources {
            devices: self.device_rules(&given.devices),
            memory_limit: memory.limit.filter(|limit| *limit != 0),
            memory_reservation: memory.reservation.filter(|limit| *limit != 0),
            memory_swap: memory.swap.filter(|limit| *limit != 0),
            cpu_shares: cpu.shares.filter(|shares| *shares != 0),
            cpu_quota: cpu.quota.filter(|quota| *quota != 0),
            cpu_period: cpu.period.filter(|period| *period != 0),
            cpuset_cpus: cpu.cpus.filter(|text| !text.is_empty()),
            cpuset_mems: cpu.mems.filter(|text| !text.is_empty()),
            pids_limit: given.pids.as_ref().map(|pids| pids.limit),
        }
    }

    fn memory(&mut self, memory: &spec::Memory) {
        let fields = [("limit", memory.limit), ("reservation", memory.reservation), ("swap", memory.swap)];
        for (field, value) in fields {
            if value.is_some_and(|value| value < -1) {
                self.refuse(format!("linux.resources.memory.{field}"), "is negative; only -1, no limit, may be");
            }
        }
        match (memory.limit.filter(|limit| *limit > 0), memory.swap.filter(|swap| *swap > 0)) {
            (Some(limit), Some(swap)) if swap < limit => {
                self.refuse("linux.resources.memory.swap", format!("{swap} is memory and swap together and below the limit {limit}"));
            }
            (None, Some(_)) => self.refuse("linux.resources.memory.swap", "needs linux.resources.memory.limit beside it"),
            _ => {}
        }
    }

    fn device_rules(&mut self, given: &[spec::DeviceRule]) -> Vec<DeviceRule> {
        let mut rules = Vec::new();
        for (index, rule) in given.iter().enumerate() {
            let field = format!("linux.resources.devices[{index}]");
            let kind = match rule.kind.as_deref() {
                None | Some("" | "a") => None,
                Some("c" | "u") => Some(DeviceKind::Character),
                Some("b") => Some(DeviceKind::Block),
                Some(other) => {
                    self.refuse(format!("{field}.type"), format!("{other:?} is none of a, c, b"));
                    continue;
                }
            };
            let access = rule.access.clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
            if let Some(letter) = access.chars().find(|letter| !"rwm".contains(*letter)) {
                self.refuse(format!("{field}.access"), format!("{letter:?} is none of r, w, m"));
            }
            let mut number = |name: &str, value: Option<i64>| match value {
                None | Some(-1) => None,
                Some(value) => u32::try_from(value).map_or_else(
                    |_| {
                        self.refuse(format!("{field}.{name}"), format!("{value} is no device number"));
                        None
                    },
                    Some,
                ),
            };
            let (major, minor) = (number("major", rule.major), number("minor", rule.minor));
            if kind.is_none() && (major.is_some() || minor.is_some()) {
                self.refuse(format!("{field}.type"), "missing: a device number belongs to c or to b");
            }
            rules.push(DeviceRule { allow: rule.allow, kind, major, minor, access });
        }
        rules
    }
}

/// The devices every container has (config-linux.md "Default Devices").
fn default_devices() -> Vec<Device> {
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        .into_iter()
        .map(|(name, major, minor)| Device {
            path: Path::new("/dev").join(name),
            kind: DeviceKind::Character,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect()
}

#[cfg(test)]
mod tests;
