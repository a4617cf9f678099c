//! What a container asks for beside its image and Docker's defaults: capabilities, mounts, devices, limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxSeccomp, Mount, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType,
};
use rcluster_api::container::{DeviceSpec, MountSpec, Ulimit};
use rcluster_api::data::{DataKind, DataRef};
use rcluster_api::spec::ContainerSpec;

use super::mount;
use crate::core::seccomp_profile::{self, Machine};

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
}

/// Docker's default set (moby, `oci/caps/defaults.go`).
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// capabilities(7), as of Linux 5.9.
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// The sets of a container whose process is root or is not: as execve does for a user without privileges, and as Docker sets it.
pub fn capabilities(spec: &ContainerSpec, root: bool) -> Result<LinuxCapabilities, String> {
    let granted = granted(spec)?;
    let set = || Some(granted.iter().copied().collect::<Capabilities>());
    let none = || Some(Capabilities::default());
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(set())
        .set_effective(if root { set() } else { none() })
        .set_permitted(if root { set() } else { none() })
        .set_inheritable(none())
        .set_ambient(none());
    Ok(capabilities)
}

/// The system calls it may make; a privileged one makes any, as in Docker.
pub fn seccomp(spec: &ContainerSpec) -> Result<Option<LinuxSeccomp>, String> {
    let granted = granted(spec)?;
    let machine = Machine::own().filter(|_| !spec.privileged);
    Ok(machine.map(|machine| seccomp_profile::profile(&granted, machine)))
}

/// Dropped ones go first, so that `cap_drop: [ALL]` with `cap_add` leaves what was added, as in Docker.
fn granted(spec: &ContainerSpec) -> Result<Vec<Capability>, String> {
    if spec.privileged {
        return Ok(ALL.to_vec());
    }
    let mut granted = DEFAULT.to_vec();
    for name in &spec.cap_drop {
        let dropped = named(name)?;
        granted.retain(|capability| !dropped.contains(capability));
    }
    for name in &spec.cap_add {
        granted.extend(named(name)?);
    }
    Ok(granted)
}

fn named(name: &str) -> Result<Vec<Capability>, String> {
    if name == "ALL" {
        return Ok(ALL.to_vec());
    }
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let capability = ALL.into_iter().find(|capability| capability.to_string() == name);
    capability.map(|capability| vec![capability]).ok_or_else(|| format!("there is no capability {name:?}"))
}

/// The mounts that the spec names; `volumes` is where named ones lie, `binds` where sources of bind mounts really are.
pub fn mounts(spec: &ContainerSpec, volumes: &Path, binds: &BTreeMap<String, PathBuf>) -> Result<Vec<Mount>, String> {
    let bind = |source: &str, target: &str, read_only: bool| {
        mount(target, "bind", source, if read_only { &["rbind", "rprivate", "ro"] } else { &["rbind", "rprivate"] })
    };
    let each = spec.mounts.iter().map(|wanted| match wanted {
        MountSpec::Bind { source, target, read_only } => {
            let real = binds.get(source).ok_or_else(|| format!("mount {target}: it is not known where {source} lies on this node"))?;
            Ok(bind(&real.to_string_lossy(), target, *read_only))
        }
        MountSpec::Volume { source, target, read_only } => Ok(bind(&volumes.join(source).to_string_lossy(), target, *read_only)),
        MountSpec::Tmpfs { target, size, mode } => {
            let mode = format!("mode={}", mode.map_or_else(|| "1777".to_owned(), |mode| mode.to_string()));
            let size = size.map(|size| format!("size={}", size.0));
            let options: Vec<&str> = ["nosuid", "nodev", &mode].into_iter().chain(size.as_deref()).collect();
            Ok(mount(target, "tmpfs", "tmpfs", &options))
        }
    });
    each.collect()
}

/// The secrets and configs of a container, each with the name of its file: `KIND-INDEX`, by its place in the spec's list of the kind.
pub fn data_files(spec: &ContainerSpec) -> impl Iterator<Item = (String, DataKind, &DataRef)> {
    let secrets = spec.data().filter(|(kind, _)| *kind == DataKind::Secret).count();
    spec.data().enumerate().map(move |(place, (kind, data))| {
        let index = match kind {
            DataKind::Secret => place,
            DataKind::Config => place - secrets,
        };
        (format!("{}-{index}", kind.as_str()), kind, data)
    })
}

/// The secrets and configs, each a file of the task's tmpfs under `dir` that cannot be written.
pub fn data(spec: &ContainerSpec, dir: &Path) -> Vec<Mount> {
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "private"];
    data_files(spec).map(|(name, kind, data)| mount(&data.path(kind), "bind", &dir.join(name).to_string_lossy(), &options)).collect()
}

/// The options of `/dev/shm`.
pub fn shm(spec: &ContainerSpec) -> Mount {
    let size = format!("size={}", spec.shm_size.map_or(64 << 20, |size| size.0));
    mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size])
}

/// setrlimit(2).
pub fn rlimits(spec: &ContainerSpec) -> Result<Option<Vec<PosixRlimit>>, String> {
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let each = spec.ulimits.iter().map(|(name, Ulimit { soft, hard })| {
        let kind = format!("RLIMIT_{}", name.to_ascii_uppercase());
        let kind: PosixRlimitType =
            serde_json::from_value(serde_json::Value::String(kind)).map_err(|_| format!("there is no limit {name:?}"))?;
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit(*soft))
            .hard(limit(*hard))
            .build()
            .map_err(|error| format!("limit {name}: {error}"))
    });
    let limits = each.collect::<Result<Vec<_>, String>>()?;
    Ok((!limits.is_empty()).then_some(limits))
}

/// The device nodes to make, and what of them may be used: nothing else is allowed unless the container is privileged.
pub fn devices(spec: &ContainerSpec, found: &[HostDevice]) -> (Option<Vec<LinuxDevice>>, Vec<LinuxDeviceCgroup>) {
    let rule = |allow: bool, of: Option<&HostDevice>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(of.map(kind))
            .set_major(of.map(|device| device.major.into()))
            .set_minor(of.map(|device| device.minor.into()))
            .set_access(Some(access.into()));
        rule
    };
    let mut rules = vec![rule(spec.privileged, None, "rwm")];
    let mut nodes: Vec<LinuxDevice> = Vec::new();
    let mut add = |host: &HostDevice, target: &str| {
        let mut node = LinuxDevice::default();
        node.set_path(target.into()).set_typ(kind(host)).set_major(host.major.into()).set_minor(host.minor.into());
        nodes.push(node);
    };
    let host = |wanted: &DeviceSpec| found.iter().find(|host| host.path == Path::new(&wanted.source));
    for wanted in &spec.devices {
        if let Some(host) = host(wanted) {
            add(host, &wanted.target);
            rules.push(rule(true, Some(host), &wanted.access));
        }
    }
    if spec.privileged {
        let named = |host: &HostDevice| spec.devices.iter().any(|wanted| Path::new(&wanted.target) == host.path);
        found.iter().filter(|host| !named(host)).for_each(|host| add(host, &host.path.to_string_lossy()));
    }
    ((!nodes.is_empty()).then_some(nodes), rules)
}

fn kind(device: &HostDevice) -> LinuxDeviceType {
    if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(spec: serde_json::Value) -> String {
        let mut names: Vec<String> =
            granted(&serde_json::from_value(spec).expect("a spec")).expect("capabilities").iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        names.join(" ")
    }

    #[test]
    fn capabilities_are_dropped_before_they_are_added() {
        assert_eq!(names(serde_json::json!({"image": "a", "cap_drop": ["ALL"], "cap_add": ["NET_ADMIN", "CAP_CHOWN"]})), "CHOWN NET_ADMIN");
        assert_eq!(names(serde_json::json!({"image": "a"})).split(' ').count(), 14);
        assert_eq!(names(serde_json::json!({"image": "a", "privileged": true})).split(' ').count(), 41);
        assert_eq!(names(serde_json::json!({"image": "a", "cap_drop": ["MKNOD"]})).split(' ').count(), 13);
    }

    #[test]
    fn system_calls_follow_the_capabilities() {
        let allowed = |spec: serde_json::Value, name: &str| {
            let profile = seccomp(&serde_json::from_value(spec).expect("a spec")).expect("capabilities");
            profile.map(|profile| {
                profile.syscalls().iter().flatten().any(|rule| rule.args().is_none() && rule.names().iter().any(|other| other == name))
            })
        };
        assert_eq!(allowed(serde_json::json!({"image": "a"}), "mount"), Some(false));
        assert_eq!(allowed(serde_json::json!({"image": "a", "cap_add": ["SYS_ADMIN"]}), "mount"), Some(true));
        assert_eq!(allowed(serde_json::json!({"image": "a"}), "chroot"), Some(true));
        assert_eq!(allowed(serde_json::json!({"image": "a", "cap_drop": ["SYS_CHROOT"]}), "chroot"), Some(false));
        assert_eq!(allowed(serde_json::json!({"image": "a", "privileged": true}), "mount"), None);
    }

    /// The text that `runtime/tests/seccomp.rs` runs containers under.
    #[test]
    fn the_profile_with_the_default_capabilities() {
        let profile = seccomp_profile::profile(&DEFAULT, Machine::X86_64);
        let text = serde_json::to_string_pretty(&profile).expect("text");
        if text.trim() != include_str!("../golden/seccomp.json").trim() {
            let got = std::env::temp_dir().join("rcluster-seccomp.json");
            std::fs::write(&got, &text).expect("write what was got");
            panic!("differs from the golden text; what was made is in {}", got.display());
        }
    }

    #[test]
    fn a_device_is_made_and_allowed_and_no_other() {
        let spec: ContainerSpec =
            serde_json::from_value(serde_json::json!({"image": "a", "devices": ["/dev/fuse:/dev/f:r"]})).expect("a spec");
        let found = [HostDevice { path: "/dev/fuse".into(), block: false, major: 10, minor: 229 }];
        let (nodes, rules) = devices(&spec, &found);
        let text = serde_json::json!([nodes, rules]).to_string();
        assert_eq!(
            text,
            r#"[[{"major":10,"minor":229,"path":"/dev/f","type":"c"}],[{"access":"rwm","allow":false},{"access":"r","allow":true,"major":10,"minor":229,"type":"c"}]]"#
        );
    }

    #[test]
    fn limits_have_the_kernels_names() {
        let spec: ContainerSpec =
            serde_json::from_value(serde_json::json!({"image": "a", "ulimits": {"nofile": 64, "core": -1}})).expect("a spec");
        let text = serde_json::to_string(&rlimits(&spec).expect("limits")).expect("text");
        assert_eq!(
            text,
            r#"[{"type":"RLIMIT_CORE","hard":18446744073709551615,"soft":18446744073709551615},{"type":"RLIMIT_NOFILE","hard":64,"soft":64}]"#
        );
    }
}
