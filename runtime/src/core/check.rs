//! Decides whether a bundle can be run here, and what exactly it asks for.
//!
//! In: the [`Spec`] as written and the bundle's directory. Out: a [`Container`], in which every field is meant and checked, or all the
//! refusals at once. Never lets a field that matters pass unhonoured: what is not built is refused by its name. Never looks at the
//! machine: what only the kernel can tell is found out by `init`.

mod namespaces;
mod net_devices;

mod hooks;
mod intel_rdt;
mod mounts;
mod process;
mod resources;

pub use intel_rdt::IntelRdt;
pub use mounts::{Device, DeviceKind, Mount, MountWhat};
pub use namespaces::{IdMapping, IdMappings, Namespace, NamespaceKind, TimeOffset, check_not_the_hosts};
pub use net_devices::NetDevice;
pub use process::{Capabilities, MemoryPolicy, Process, Rlimit, Scheduler};
pub use resources::{BlockIo, DeviceRule, Resources};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::hooks::Hooks;
use super::mount_options::Propagation;
use super::seccomp::{self, Seccomp};
use super::spec::Spec;

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
    /// With whether it is recursive.
    pub root_propagation: Option<(Propagation, bool)>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub namespaces: Vec<Namespace>,
    /// Of a new user namespace, or what a joined one must have; empty without one.
    pub ids: IdMappings,
    pub time_offsets: Vec<TimeOffset>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// SELinux's, for the mounts that are made.
    pub mount_label: Option<String>,
    pub intel_rdt: Option<IntelRdt>,
    pub net_devices: Vec<NetDevice>,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub sysctl: BTreeMap<String, String>,
    pub process: Process,
    pub cgroups_path: Option<PathBuf>,
    pub resources: Resources,
    pub seccomp: Option<Seccomp>,
    pub annotations: BTreeMap<String, String>,
    pub hooks: Hooks,
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

/// Checks a configuration; `bundle` is the absolute path relative paths in it start from.
pub fn check(bundle: &Path, spec: &Spec) -> Result<Container, Vec<Refusal>> {
    let mut refusals = Refusals::default();
    refusals.version(&spec.oci_version);
    refusals.unbuilt_fields(spec);
    let linux = spec.linux.clone().unwrap_or_default();
    let root = refusals.root(bundle, spec.root.as_ref());
    let namespaces = refusals.namespaces(&linux.namespaces);
    let ids = refusals.id_mappings(&linux, &namespaces);
    let process = Process {
        personality: refusals.personality(linux.personality.as_ref()),
        memory_policy: refusals.memory_policy(linux.memory_policy.as_ref()),
        ..refusals.process(spec.process.as_ref())
    };
    refusals.mapped_user(&process, &ids);
    let container = Container {
        oci_version: spec.oci_version.clone(),
        root,
        root_readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        root_propagation: refusals.root_propagation(linux.rootfs_propagation.as_deref()),
        hostname: refusals.host_text("hostname", spec.hostname.as_deref(), &namespaces),
        domainname: refusals.host_text("domainname", spec.domainname.as_deref(), &namespaces),
        mounts: refusals.mounts(bundle, &spec.mounts, &namespaces),
        devices: refusals.devices(&linux.devices),
        mount_label: refusals.text("linux.mountLabel", linux.mount_label.as_deref()),
        intel_rdt: refusals.intel_rdt(linux.intel_rdt.as_ref()),
        net_devices: refusals.net_devices(&linux.net_devices, &namespaces),
        masked_paths: refusals.paths("linux.maskedPaths", &linux.masked_paths),
        readonly_paths: refusals.paths("linux.readonlyPaths", &linux.readonly_paths),
        sysctl: refusals.sysctl(&linux.sysctl, &namespaces),
        process,
        cgroups_path: refusals.cgroups_path(linux.cgroups_path.as_deref()),
        resources: refusals.resources(&linux.resources.unwrap_or_default()),
        seccomp: refusals.seccomp(bundle, linux.seccomp.as_ref()),
        annotations: spec.annotations.clone(),
        hooks: refusals.hooks(&spec.hooks),
        time_offsets: refusals.time_offsets(&linux.time_offsets, &namespaces),
        ids,
        namespaces,
    };
    if refusals.found.is_empty() { Ok(container) } else { Err(refusals.found) }
}

/// What of this machine decides whether a field can be honoured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    pub apparmor: bool,
    pub selinux: bool,
    pub resctrl: bool,
}

/// Refuses what this machine lacks, as runc does: a container that is to be confined must not run unconfined.
pub fn check_machine(container: &Container, machine: Machine) -> Result<(), Vec<Refusal>> {
    let mut refusals = Refusals::default();
    let process = &container.process;
    if process.apparmor_profile.is_some() && !machine.apparmor {
        refusals.refuse("process.apparmorProfile", "AppArmor is not enabled in this kernel: leave it out, or enable it");
    }
    let selinux = [("process.selinuxLabel", &process.selinux_label), ("linux.mountLabel", &container.mount_label)];
    for (field, _) in selinux.into_iter().filter(|(_, label)| label.is_some() && !machine.selinux) {
        refusals.refuse(field, "SELinux is not enabled in this kernel: leave it out, or enable it");
    }
    if container.intel_rdt.is_some() && !machine.resctrl {
        let why = "this machine has no resctrl file system mounted (CPU support and kernel configuration are needed): leave it out";
        refusals.refuse("linux.intelRdt", why);
    }
    if refusals.found.is_empty() { Ok(()) } else { Err(refusals.found) }
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

    /// A text that is handed to the kernel; an empty one is none.
    fn text(&mut self, field: &str, text: Option<&str>) -> Option<String> {
        let text = text.filter(|text| !text.is_empty())?;
        if text.contains('\0') {
            self.refuse(field, "holds a NUL byte");
        }
        Some(text.to_owned())
    }

    /// Semantic Versioning: within a major version a runtime takes any minor one.
    fn version(&mut self, version: &str) {
        if version.split('.').next() != Some("1") || version.split('.').count() < 3 {
            self.refuse("ociVersion", format!("{version:?} is not a version 1.x.y, which this runtime follows up to {OCI_VERSION}"));
        }
    }

    fn unbuilt_fields(&mut self, spec: &Spec) {
        let foreign =
            [("vm", &spec.vm), ("windows", &spec.windows), ("solaris", &spec.solaris), ("zos", &spec.zos), ("freebsd", &spec.freebsd)];
        for (field, value) in foreign {
            if value.is_some() {
                self.refuse(field, "this runtime runs Linux containers only");
            }
        }
        let command_line = spec.process.as_ref().and_then(|process| process.command_line.as_ref());
        if command_line.is_some_and(|value| !is_empty(value)) {
            self.refuse("process.commandLine", "is of Windows: use process.args");
        }
    }

    fn seccomp(&mut self, bundle: &Path, given: Option<&seccomp::Written>) -> Option<Seccomp> {
        seccomp::check(bundle, seccomp::Architecture::native(), given?).unwrap_or_else(|refusals| {
            self.found.extend(refusals);
            None
        })
    }
}

#[cfg(test)]
mod tests;
