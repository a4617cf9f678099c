//! `config.json` as it is written (runtime-spec 1.2, config.md and config-linux.md).
//!
//! In: the bytes of the file. Out: [`Spec`], or an error with the path of the field. Decides nothing: `check` does.
//!
//! The types are ours and not the `oci-spec` crate's because a field that is known but not built must be seen, to be refused by name,
//! and because that crate brings builders, getters and a regex engine into a program that is started several times per container.
//! Such fields are read as [`Unbuilt`]. Properties the specification does not name are ignored, as its "Extensibility" asks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A field this runtime knows of and does not honour yet.
pub type Unbuilt = Option<Value>;

/// The root of `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub oci_version: String,
    pub root: Option<Root>,
    pub process: Option<Process>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    pub linux: Option<Linux>,
    #[serde(default, deserialize_with = "nullable")]
    pub hooks: Hooks,
    pub solaris: Unbuilt,
    pub windows: Unbuilt,
    pub vm: Unbuilt,
    pub zos: Unbuilt,
    pub freebsd: Unbuilt,
}

/// `hooks`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    #[serde(default, deserialize_with = "nullable")]
    pub prestart: Vec<Hook>,
    #[serde(default, deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    #[serde(default, deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    #[serde(default, deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    #[serde(default, deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    #[serde(default, deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

/// A hook; `timeout` in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// `root`: where the container's file system is.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Root {
    pub path: PathBuf,
    #[serde(default)]
    pub readonly: bool,
}

/// `process`: the container's first process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    #[serde(default)]
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    pub cwd: String,
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub user: User,
    #[serde(default, deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    pub capabilities: Option<Capabilities>,
    #[serde(default)]
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub command_line: Unbuilt,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
    pub scheduler: Option<Scheduler>,
    pub io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<ExecCpuAffinity>,
}

/// `process.scheduler` (sched_setattr(2)); times in nanoseconds.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Scheduler {
    pub policy: String,
    pub nice: Option<i32>,
    pub priority: Option<i32>,
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
    pub runtime: Option<u64>,
    pub deadline: Option<u64>,
    pub period: Option<u64>,
}

/// `process.ioPriority` (ioprio_set(2)).
#[derive(Debug, Clone, Deserialize)]
pub struct IoPriority {
    pub class: String,
    #[serde(default)]
    pub priority: i64,
}

/// `process.execCPUAffinity`, in the list format of cpuset(7).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ExecCpuAffinity {
    pub initial: Option<String>,
    #[serde(rename = "final")]
    pub last: Option<String>,
}

/// `process.consoleSize`, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

/// `process.user`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// `process.rlimits[]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// `process.capabilities`: names as in capabilities(7).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Capabilities {
    #[serde(default, deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub effective: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// `mounts[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub destination: PathBuf,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<PathBuf>,
    #[serde(default, deserialize_with = "nullable")]
    pub options: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}

/// `linux`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    pub cgroups_path: Option<PathBuf>,
    pub rootfs_propagation: Option<String>,
    pub resources: Option<Resources>,
    #[serde(default, deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub masked_paths: Vec<PathBuf>,
    #[serde(default, deserialize_with = "nullable")]
    pub readonly_paths: Vec<PathBuf>,
    #[serde(default, deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    #[serde(default, deserialize_with = "nullable")]
    pub net_devices: BTreeMap<String, NetDevice>,
    pub seccomp: Option<super::seccomp::Written>,
    pub mount_label: Option<String>,
    pub personality: Option<Personality>,
    pub intel_rdt: Option<IntelRdt>,
    pub memory_policy: Option<MemoryPolicy>,
}

/// `linux.intelRdt`; the last two are of versions before 1.3.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub schemata: Vec<String>,
    pub l3_cache_schema: Option<String>,
    pub mem_bw_schema: Option<String>,
    pub enable_monitoring: Option<bool>,
    #[serde(rename = "enableCMT")]
    pub enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM")]
    pub enable_mbm: Option<bool>,
}

/// `linux.personality` (personality(2)).
#[derive(Debug, Clone, Deserialize)]
pub struct Personality {
    pub domain: String,
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// `linux.memoryPolicy` (set_mempolicy(2)).
#[derive(Debug, Clone, Deserialize)]
pub struct MemoryPolicy {
    pub mode: String,
    pub nodes: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// `linux.namespaces[]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: Option<PathBuf>,
}

/// An entry of `linux.uidMappings` and the like (user_namespaces(7)).
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

/// `linux.netDevices`: how an interface of the host's is called in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct NetDevice {
    pub name: Option<String>,
}

/// A value of `linux.timeOffsets`, by the name of its clock (time_namespaces(7)).
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct TimeOffset {
    #[serde(default)]
    pub secs: i64,
    #[serde(default)]
    pub nanosecs: u32,
}

/// `linux.devices[]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: PathBuf,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// `linux.resources`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<DeviceRule>,
    pub memory: Option<Memory>,
    pub cpu: Option<Cpu>,
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    #[serde(default, deserialize_with = "nullable")]
    pub hugepage_limits: Vec<HugepageLimit>,
    pub network: Option<Network>,
    #[serde(default, deserialize_with = "nullable")]
    pub rdma: BTreeMap<String, Rdma>,
    #[serde(default, deserialize_with = "nullable")]
    pub unified: BTreeMap<String, String>,
}

/// `linux.resources.blockIO`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
    #[serde(default, deserialize_with = "nullable")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(default, deserialize_with = "nullable")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(default, deserialize_with = "nullable")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(default, rename = "throttleReadIOPSDevice", deserialize_with = "nullable")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(default, rename = "throttleWriteIOPSDevice", deserialize_with = "nullable")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// `linux.resources.blockIO.weightDevice[]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightDevice {
    pub major: u32,
    pub minor: u32,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// `linux.resources.blockIO.throttle…Device[]`; per second.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ThrottleDevice {
    pub major: u32,
    pub minor: u32,
    pub rate: u64,
}

/// `linux.resources.hugepageLimits[]`, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

/// `linux.resources.network`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Network {
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub priorities: Vec<InterfacePriority>,
}

/// `linux.resources.network.priorities[]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InterfacePriority {
    pub name: String,
    pub priority: u32,
}

/// A value of `linux.resources.rdma`, by the name of its device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rdma {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

/// `linux.resources.devices[]`: an entry of the device allow list; a later entry overrules an earlier one.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: Option<String>,
}

/// `linux.resources.memory`, in bytes; -1 is no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    pub kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    pub use_hierarchy: Option<bool>,
    pub check_before_update: Option<bool>,
}

/// `linux.resources.cpu`; quota and period in microseconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub burst: Option<u64>,
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    pub idle: Option<i64>,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pids {
    #[serde(default)]
    pub limit: i64,
}

/// Reads `config.json`; an error begins with the path of the field.
pub fn parse(bytes: &[u8]) -> Result<Spec, String> {
    parse_as(bytes)
}

/// Reads a file that is a `process` alone, as `exec --process` takes one.
pub fn parse_process(bytes: &[u8]) -> Result<Process, String> {
    parse_as(bytes)
}

fn parse_as<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if path == "." { cause.to_string() } else { format!("{path}: {cause}") }
    })?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(read)
}

/// Go's encoder writes an empty list as `null`.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_field() {
        let error = parse(br#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":"zero"}}}"#).unwrap_err();
        assert!(error.starts_with("process.user.uid: invalid type: string \"zero\""), "{error}");
    }

    #[test]
    fn text_after_the_object_is_an_error() {
        assert!(parse(br#"{"ociVersion":"1.2.0"} {}"#).is_err());
    }

    #[test]
    fn null_lists_are_empty() {
        let spec = parse(br#"{"ociVersion":"1.2.0","mounts":null,"linux":{"maskedPaths":null}}"#).unwrap();
        assert!(spec.mounts.is_empty() && spec.linux.unwrap().masked_paths.is_empty());
    }
}
