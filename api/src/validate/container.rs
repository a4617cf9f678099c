//! Checks one container of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{MEMORY_LIMIT_MIN, check_name, invalid};
use crate::container::{FACILITIES, LogDriver, Logging, MountSpec, ULIMITS, Ulimit};
use crate::data::DataKind;
use crate::error::ApiError;
use crate::health::HealthCheck;
use crate::resource::{Bytes, Millis};
use crate::spec::ContainerSpec;

/// RFC 5424, 6.2.5: APP-NAME.
const TAG_BYTES_MAX: usize = 48;

/// What the monitor holds to be a file worth its rotation.
const LOG_SIZE_MIN: Bytes = Bytes(64 << 10);

/// Least time between two checks of health.
const INTERVAL_MIN: Millis = Millis(100);

/// Checks that a container's spec means something; `path` leads to it.
pub fn check_container(container: &ContainerSpec, path: &str) -> Result<(), ApiError> {
    check_program(container, path)?;
    check_resources(container, path)?;
    if let Some(check) = &container.healthcheck {
        check_health(check, &format!("{path}.healthcheck"))?;
    }
    if let Some(logging) = &container.logging {
        check_logging(logging, &format!("{path}.logging"))?;
    }
    check_mounts(&container.mounts, path)?;
    check_data(container, path)?;
    for (field, names) in [("cap_add", &container.cap_add), ("cap_drop", &container.cap_drop)] {
        if let Some(unknown) = names.iter().find(|name| !is_capability(name)) {
            return Err(invalid(format!("{path}.{field}"), format!("there is no capability {unknown:?}"))
                .hint("names are those of capabilities(7), such as NET_ADMIN, or ALL"));
        }
    }
    for (name, Ulimit { soft, hard }) in &container.ulimits {
        let field = format!("{path}.ulimits");
        if !ULIMITS.contains(&name.as_str()) {
            return Err(invalid(field, format!("there is no limit {name:?}")).hint(format!("there are {}", ULIMITS.join(", "))));
        }
        if *soft < -1 || *hard < -1 || (*hard != -1 && (*soft == -1 || soft > hard)) {
            return Err(invalid(format!("{field}.{name}"), format!("soft {soft} and hard {hard} do not go together"))
                .hint("soft is at most hard; -1 is no limit"));
        }
    }
    if let Some(name) = container.sysctls.keys().find(|name| !is_namespaced(name)) {
        return Err(invalid(format!("{path}.sysctls"), format!("{name} belongs to the whole node, not to a container's namespaces"))
            .hint("there are net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm* and kernel.domainname"));
    }
    Ok(())
}

fn check_logging(logging: &Logging, path: &str) -> Result<(), ApiError> {
    let Logging { driver, address, facility, tag, max_size } = logging;
    let field = |name: &str| format!("{path}.{name}");
    for (name, value) in [("address", address), ("facility", facility)] {
        if !value.is_empty() && *driver != LogDriver::Syslog {
            return Err(invalid(field(name), format!("the driver {} has none", driver.name())).hint("it belongs to driver: syslog"));
        }
    }
    if !address.is_empty() && !is_log_address(address) {
        return Err(invalid(field("address"), format!("{address:?} is not the address of a syslog daemon"))
            .hint("write unix:///PATH, udp://IP:PORT or tcp://IP:PORT; names are not resolved"));
    }
    if !facility.is_empty() && !FACILITIES.contains(&facility.as_str()) {
        return Err(
            invalid(field("facility"), format!("there is no facility {facility:?}")).hint(format!("there are {}", FACILITIES.join(", ")))
        );
    }
    if tag.len() > TAG_BYTES_MAX || !tag.chars().all(|c| c.is_ascii_graphic()) {
        return Err(invalid(field("tag"), format!("{tag:?} cannot be a tag"))
            .hint(format!("at most {TAG_BYTES_MAX} printable characters of ASCII, none of them a blank")));
    }
    if let Some(size) = max_size.filter(|size| *size < LOG_SIZE_MIN) {
        return Err(invalid(field("max_size"), format!("{size} is too little")).hint(format!("give at least {LOG_SIZE_MIN}")));
    }
    Ok(())
}

fn is_log_address(address: &str) -> bool {
    match address.split_once("://") {
        Some(("unix", path)) => path.starts_with('/'),
        Some(("udp" | "tcp", address)) => address.parse::<SocketAddr>().is_ok(),
        _ => false,
    }
}

fn check_program(container: &ContainerSpec, path: &str) -> Result<(), ApiError> {
    if !container.name.is_empty() {
        check_name("container", &container.name).map_err(|error| error.field(format!("{path}.name")))?;
    }
    if container.image.trim().is_empty() {
        return Err(invalid(format!("{path}.image"), "no image is given").hint("write image: NAME:TAG"));
    }
    if container.image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(invalid(format!("{path}.image"), format!("image {:?} holds a blank", container.image)).hint("write image: NAME:TAG"));
    }
    for key in container.env.keys() {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(invalid(format!("{path}.env"), format!("{key:?} cannot be the name of an environment variable")));
        }
    }
    if container.command.iter().chain(&container.args).chain(container.env.values()).any(|text| text.contains('\0')) {
        return Err(invalid(path, "holds a NUL byte, which no process can be given"));
    }
    if !container.workdir.is_empty() && !container.workdir.starts_with('/') {
        return Err(invalid(format!("{path}.workdir"), format!("{:?} does not begin with /", container.workdir)));
    }
    if !container.stop_signal.is_empty() && !SIGNALS.contains(&container.stop_signal.as_str()) {
        return Err(invalid(format!("{path}.stop_signal"), format!("unknown signal {:?}", container.stop_signal))
            .hint("write it like SIGTERM, SIGINT, SIGQUIT or SIGUSR1"));
    }
    Ok(())
}

fn check_resources(container: &ContainerSpec, path: &str) -> Result<(), ApiError> {
    let limits = container.resources.limits;
    let reservations = container.resources.reservations;
    if let Some(memory) = limits.memory
        && memory.0 < MEMORY_LIMIT_MIN
    {
        return Err(invalid(
            format!("{path}.resources.limits.memory"),
            format!("{memory} is too little to start a process: at least 1MiB"),
        ));
    }
    if limits.cpus.is_some_and(|cpus| cpus.0 < 10) {
        return Err(invalid(format!("{path}.resources.limits.cpus"), "less than 0.01 CPU cannot be enforced by the kernel"));
    }
    if limits.pids == Some(0) {
        return Err(invalid(format!("{path}.resources.limits.pids"), "with 0 processes nothing could run"));
    }
    if reservations.pids.is_some() {
        return Err(invalid(format!("{path}.resources.reservations.pids"), "processes can be limited, not reserved")
            .hint("move it to resources.limits.pids"));
    }
    if let (Some(limit), Some(reservation)) = (limits.memory, reservations.memory)
        && reservation > limit
    {
        return Err(invalid(
            format!("{path}.resources.reservations.memory"),
            format!("{reservation} reserved is more than the limit of {limit}"),
        ));
    }
    Ok(())
}

fn check_health(check: &HealthCheck, path: &str) -> Result<(), ApiError> {
    let kinds = [!check.command.is_empty(), check.http.is_some(), check.tcp.is_some()].into_iter().filter(|given| *given).count();
    match (kinds, check.disable) {
        (0, false) => return Err(invalid(path, "says nothing to check").hint("give command, http or tcp, or disable: true")),
        (1, false) | (0, true) => {}
        (_, true) => return Err(invalid(path, "is disabled and yet says what to check").hint("remove disable, or the check")),
        (_, false) => return Err(invalid(path, "more than one of command, http and tcp is given").hint("keep one")),
    }
    for (field, port) in [("http", check.http.as_ref().map(|http| http.port)), ("tcp", check.tcp.as_ref().map(|tcp| tcp.port))] {
        if port == Some(0) {
            return Err(invalid(format!("{path}.{field}.port"), "there is no port 0"));
        }
    }
    if let Some(http) = &check.http
        && (!http.path.starts_with('/') || http.path.bytes().any(|byte| byte <= b' ' || byte == 0x7f))
    {
        return Err(invalid(format!("{path}.http.path"), format!("{:?} cannot be asked for", http.path))
            .hint("it begins with / and has no blanks, such as /healthz?full=1"));
    }
    if check.command.iter().any(|word| word.contains('\0')) {
        return Err(invalid(format!("{path}.command"), "holds a NUL byte, which no process can be given"));
    }
    for (field, span) in [("interval", check.interval), ("timeout", check.timeout), ("start_interval", check.start_interval)] {
        if span < INTERVAL_MIN {
            return Err(invalid(format!("{path}.{field}"), format!("{span} is too short")).hint(format!("at least {INTERVAL_MIN}")));
        }
    }
    if check.retries == 0 {
        return Err(invalid(format!("{path}.retries"), "with 0 failures it would be unhealthy from the start"));
    }
    Ok(())
}

fn check_mounts(mounts: &[MountSpec], path: &str) -> Result<(), ApiError> {
    let mut targets = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = format!("{path}.mounts[{index}]");
        let target = mount.target();
        if !is_plain(target) || target == "/" {
            return Err(invalid(format!("{path}.target"), format!("{target:?} is not a plain absolute path"))
                .hint("write it like /data, without . and .."));
        }
        if !targets.insert(target.trim_end_matches('/')) {
            return Err(invalid(format!("{path}.target"), format!("two mounts have the target {target}")));
        }
        match mount {
            MountSpec::Bind { source, .. } if !is_plain(source) => {
                return Err(invalid(format!("{path}.source"), format!("{source:?} is not a plain absolute path of the node"))
                    .hint("write it like /srv/data, without . and .."));
            }
            MountSpec::Volume { source, .. } => check_name("volume", source).map_err(|error| error.field(format!("{path}.source")))?,
            MountSpec::Bind { .. } | MountSpec::Tmpfs { .. } => {}
        }
    }
    Ok(())
}

fn check_data(container: &ContainerSpec, path: &str) -> Result<(), ApiError> {
    let mut targets: BTreeSet<String> = container.mounts.iter().map(|mount| mount.target().trim_end_matches('/').to_owned()).collect();
    let mut places: BTreeMap<DataKind, usize> = BTreeMap::new();
    for (kind, data) in container.data() {
        let index = places.entry(kind).or_default();
        let path = format!("{path}.{}s[{index}]", kind.as_str());
        *index += 1;
        check_name(kind.as_str(), &data.source).map_err(|error| error.field(path.clone()))?;
        let target = data.path(kind);
        if !is_plain(&target) || target.ends_with('/') {
            return Err(invalid(format!("{path}.target"), format!("{:?} is not a plain path of a file", data.target))
                .hint("write it like /etc/app/key, without . and .."));
        }
        if !targets.insert(target.clone()) {
            return Err(invalid(format!("{path}.target"), format!("something else has the target {target} already")));
        }
        if data.mode.0 == 0 {
            return Err(invalid(format!("{path}.mode"), "0000 lets nobody read it").hint("leave it out for 0444"));
        }
    }
    Ok(())
}

/// Absolute, and without parts that lead elsewhere.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "." || part == "..")
}

fn is_capability(name: &str) -> bool {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    name == "ALL" || CAPABILITIES.contains(&name)
}

/// Settings that a network or IPC namespace has of its own (namespaces(7), and what Docker lets through).
fn is_namespaced(name: &str) -> bool {
    let name = name.replace('/', ".");
    ["net.", "fs.mqueue.", "kernel.msg", "kernel.shm"].iter().any(|prefix| name.starts_with(prefix))
        || ["kernel.sem", "kernel.domainname"].contains(&name.as_str())
}

/// capabilities(7), as of Linux 5.9.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

const SIGNALS: [&str; 10] = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT", "SIGCONT"];
