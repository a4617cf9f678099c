//! Decides the OCI configuration of one container (runtime-spec 1.2, config.md and config-linux.md).
//!
//! In: the task and the container's spec, the image's configuration, the identity found in the image, what netd answered, the pod's
//! first process if there is one, places on this node. Out: the text of `config.json`, the same for the same input. Never loosens
//! what Docker holds closed by default: its capabilities, its system calls, its masked and read-only paths.

mod options;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, Mount, Process, Root,
    Spec, User,
};
use rcluster_api::health::HealthCheck;
use rcluster_api::object::Task;
use rcluster_api::spec::ContainerSpec;
use serde::{Deserialize, Serialize};

use super::exec::TERM;
use super::task::Network;
use super::user::Identity;
pub use options::{HostDevice, data_files};

/// What an image says of the container it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
    pub stop_signal: String,
    #[serde(default)]
    pub healthcheck: Option<HealthCheck>,
    /// Directories whose content the image wants kept apart from its layers.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Such as `80/tcp`.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// All that a container's configuration is made from.
#[derive(Debug)]
pub struct Input<'a> {
    pub task: &'a Task,
    pub spec: &'a ContainerSpec,
    /// The container's name in the pod.
    pub name: &'a str,
    pub image: &'a ImageConfig,
    pub identity: &'a Identity,
    pub network: &'a Network,
    /// The pod's first container's process, for all but the first.
    pub pod_pid: Option<u32>,
    pub node: &'a str,
    pub cgroup_parent: &'a str,
    pub rootfs: &'a Path,
    /// Where the pod's hosts, hostname and resolv.conf are.
    pub files: &'a Path,
    /// Where the container's secrets and configs are.
    pub data: &'a Path,
    /// Where this node's volumes are.
    pub volumes: &'a Path,
    /// The image's volumes and where they are on this node.
    pub image_volumes: &'a [(String, PathBuf)],
    /// Where the sources of the spec's bind mounts really are.
    pub binds: &'a BTreeMap<String, PathBuf>,
    /// The devices of the host that the spec names, or all for a privileged container.
    pub devices: &'a [HostDevice],
}

const VERSION: &str = "1.2.0";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What asks our runtime for a first process that passes signals on and reaps orphans.
const INIT: &str = "io.rcluster.init";
const CPU_PERIOD_US: u64 = 100_000;

/// Docker's (moby, `oci/defaults.go`).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration as the bytes of `config.json`.
pub fn config_json(input: &Input<'_>) -> Result<Vec<u8>, String> {
    let spec = spec(input)?;
    // The library keeps capabilities in a set without an order: sorted here, so that equal inputs give equal bytes.
    let mut value = serde_json::to_value(&spec).map_err(|error| format!("encode the configuration: {error}"))?;
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(|sets| sets.as_object_mut()) {
        for list in sets.values_mut().filter_map(|list| list.as_array_mut()) {
            list.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    serde_json::to_vec_pretty(&value).map_err(|error| format!("encode the configuration: {error}"))
}

/// The working directory of the container's process; refused when it is not absolute.
pub fn workdir(spec: &ContainerSpec, image: &ImageConfig) -> Result<String, String> {
    let workdir = [&spec.workdir, &image.workdir].into_iter().find(|dir| !dir.is_empty()).map_or("/", String::as_str);
    if workdir.starts_with('/') { Ok(workdir.to_owned()) } else { Err(format!("working directory {workdir:?} is not absolute")) }
}

/// What the container's process runs; refused when neither spec nor image names anything.
pub fn args(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, String> {
    let (head, tail) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = head.iter().chain(tail).cloned().collect();
    if args.is_empty() { Err("image and spec name no command: set `command` or `args`".into()) } else { Ok(args) }
}

/// The signal that asks the container to stop, by name.
pub fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> String {
    [&spec.stop_signal, &image.stop_signal].into_iter().find(|signal| !signal.is_empty()).map_or("SIGTERM", String::as_str).to_owned()
}

/// How the container's health is checked, if it is.
pub fn healthcheck(spec: &ContainerSpec, image: &ImageConfig) -> Option<HealthCheck> {
    spec.healthcheck.as_ref().or(image.healthcheck.as_ref()).filter(|check| !check.disable).cloned()
}

/// The pod's host name: the task's name as one DNS label.
pub fn hostname(task: &str) -> String {
    let label: String = task.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    label.trim_matches('-').to_owned()
}

/// The text of the pod's `/etc/hosts`.
pub fn hosts_file(task: &Task) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for network in &task.networks {
        let addresses = [Some(IpAddr::V4(network.ip)), network.ip6.map(IpAddr::V6)];
        text.extend(addresses.into_iter().flatten().map(|ip| format!("{ip}\t{}\n", hostname(&task.name))));
    }
    for (name, address) in &task.template.extra_hosts {
        text += &format!("{}\t{name}\n", address.ip());
    }
    text
}

/// The text of the pod's `/etc/resolv.conf`: the service's domains are searched first. A name is asked as it is before any is searched, so that
/// one of the cluster's takes one question; one that is lost, as while netd is started anew, is asked again after a second.
pub fn resolv_file(task: &Task, network: &Network) -> String {
    if network.dns.is_empty() {
        return "# this pod is on no network\n".into();
    }
    let mut text = format!("nameserver {}\n", network.dns);
    let search: Vec<&str> = task.template.dns_search.iter().chain(&network.search).map(String::as_str).collect();
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text + "options ndots:0 timeout:1 attempts:3\n"
}

fn spec(input: &Input<'_>) -> Result<Spec, String> {
    let mut root = Root::default();
    root.set_path(input.rootfs.to_path_buf()).set_readonly(Some(input.spec.read_only));
    let mut spec = Spec::default();
    spec.set_version(VERSION.into())
        .set_annotations(Some(annotations(input.image).chain(input.spec.init.then(|| (INIT.to_owned(), "true".to_owned()))).collect()))
        .set_root(Some(root))
        .set_hostname(input.pod_pid.is_none().then(|| hostname(&input.task.name)))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts(input)?))
        .set_linux(Some(linux(input)?));
    Ok(spec)
}

fn process(input: &Input<'_>) -> Result<Process, String> {
    let Identity { uid, gid, additional_gids, home: _ } = input.identity;
    let mut user = User::default();
    user.set_uid(*uid).set_gid(*gid).set_additional_gids((!additional_gids.is_empty()).then(|| additional_gids.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(input.spec.tty))
        .set_user(user)
        .set_args(Some(args(input.spec, input.image)?))
        .set_env(Some(env(input)?))
        .set_cwd(PathBuf::from(workdir(input.spec, input.image)?))
        .set_capabilities(Some(options::capabilities(input.spec, *uid == 0)?))
        .set_rlimits(options::rlimits(input.spec)?)
        .set_no_new_privileges(Some(input.spec.no_new_privileges));
    Ok(process)
}

/// Ours first, then the image's, then the spec's: the later wins.
fn env(input: &Input<'_>) -> Result<Vec<String>, String> {
    let task = input.task;
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), input.identity.home.clone()),
        ("HOSTNAME".to_owned(), hostname(&task.name)),
        ("RCLUSTER_TASK".to_owned(), task.name.clone()),
        ("RCLUSTER_TASK_ID".to_owned(), task.id.to_string()),
        ("RCLUSTER_SERVICE".to_owned(), task.service.clone()),
        ("RCLUSTER_SLOT".to_owned(), task.slot.to_string()),
        ("RCLUSTER_NODE".to_owned(), input.node.to_owned()),
    ]);
    env.extend(input.spec.tty.then(|| ("TERM".to_owned(), TERM.to_owned())));
    env.extend(input.image.env.iter().map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_owned(), value.to_owned())
    }));
    env.extend(input.spec.env.clone());
    match env.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        Some(key) => Err(format!("{key:?} cannot be the name of an environment variable")),
        None => Ok(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()),
    }
}

/// What of the image's configuration has no other place here (image-spec, conversion.md); its labels win over what is derived.
fn annotations(image: &ImageConfig) -> impl Iterator<Item = (String, String)> {
    let derived = [("stopSignal", image.stop_signal.clone()), ("exposedPorts", image.exposed_ports.join(","))];
    let derived = derived.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value));
    let labels = image.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    derived.filter(|(_, value)| !value.is_empty()).chain(labels).filter(|(key, _)| !key.is_empty())
}

fn mounts(input: &Input<'_>) -> Result<Vec<Mount>, String> {
    let file = |name: &str| {
        let source = input.files.join(name).to_string_lossy().into_owned();
        mount(&format!("/etc/{name}"), "bind", &source, &["bind", "ro", "nosuid", "nodev", "noexec", "private"])
    };
    // A privileged container may change the kernel's settings, as in Docker.
    let access = if input.spec.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        options::shm(input.spec),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        file("hosts"),
        file("hostname"),
        file("resolv.conf"),
    ];
    // Writable also where the rest is not. Otherwise they are on the container's own file system as they are.
    let of_image = input.image_volumes.iter().filter(|_| input.spec.read_only);
    mounts.extend(of_image.map(|(target, source)| mount(target, "bind", &source.to_string_lossy(), &["rbind", "rprivate"])));
    let mut own = options::mounts(input.spec, input.volumes, input.binds)?;
    own.extend(options::data(input.spec, input.data));
    // What the spec mounts takes the place of ours; the shorter path first, so that none hides another.
    mounts.retain(|ours| !own.iter().any(|theirs| theirs.destination() == ours.destination()));
    mounts.extend(own);
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.into()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

fn linux(input: &Input<'_>) -> Result<Linux, String> {
    let strings = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = Linux::default();
    let (devices, rules) = options::devices(input.spec, input.devices);
    let hidden = |list: &[&str]| Some(if input.spec.privileged { Vec::new() } else { strings(list) });
    linux
        .set_resources(Some(resources(input.spec, rules)?))
        .set_cgroups_path(Some(Path::new(input.cgroup_parent).join(input.task.id.as_str()).join(input.name)))
        .set_namespaces(Some(namespaces(input)))
        .set_devices(devices)
        .set_sysctl((!input.spec.sysctls.is_empty()).then(|| input.spec.sysctls.clone().into_iter().collect()))
        .set_seccomp(options::seccomp(input.spec)?)
        .set_masked_paths(hidden(&MASKED))
        .set_readonly_paths(hidden(&READ_ONLY));
    Ok(linux)
}

fn namespaces(input: &Input<'_>) -> Vec<LinuxNamespace> {
    let of_pod = |name: &str| input.pod_pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/{name}")));
    let netns = &input.network.netns_path;
    let network = if netns.is_empty() { of_pod("net") } else { Some(PathBuf::from(netns)) };
    [
        (LinuxNamespaceType::Pid, None),
        (LinuxNamespaceType::Mount, None),
        (LinuxNamespaceType::Cgroup, None),
        (LinuxNamespaceType::Ipc, of_pod("ipc")),
        (LinuxNamespaceType::Uts, of_pod("uts")),
        (LinuxNamespaceType::Network, network),
    ]
    .into_iter()
    .map(|(kind, path)| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    })
    .collect()
}

fn resources(spec: &ContainerSpec, devices: Vec<LinuxDeviceCgroup>) -> Result<LinuxResources, String> {
    let limits = spec.resources.limits;
    let signed = |what: &str, value: u64| i64::try_from(value).map_err(|_| format!("limit of {what} {value} is too large"));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices));
    if let Some(limit) = limits.memory {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(signed("memory", limit.0)?));
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = limits.cpus {
        let mut cpu = LinuxCpu::default();
        let quota = limit.0.saturating_mul(CPU_PERIOD_US / 1000);
        cpu.set_quota(Some(signed("cpus", quota)?)).set_period(Some(CPU_PERIOD_US));
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = limits.pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(signed("pids", limit)?);
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests;
