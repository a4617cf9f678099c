//! Checks a spec on its own: names, counts, references inside it. What needs the cluster's state is checked by the managers.
//!
//! In: a parsed spec. Out: the first error with its field path, or nothing. Never changes the spec.

mod container;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use self::container::check_container;
pub use self::network::{LEAVE_MAX, PUBLISHED_PORTS_MAX, network_text_size, words_bytes};
use self::network::{check_endpoints, check_policy, check_resolving, check_six};
use crate::data::{DATA_BYTES_MAX, DataSpec};
use crate::error::{ApiError, ErrorCode};
use crate::network::Port;
use crate::spec::{ContainerSpec, Mode, NetworkSpec, ServiceSpec, Spec};

/// Most replicas of one service.
pub const REPLICAS_MAX: u32 = 10_000;
/// Most containers in a pod.
pub const CONTAINERS_MAX: usize = 16;
/// Smallest memory limit: less does not start a process.
pub const MEMORY_LIMIT_MIN: u64 = 1 << 20;
/// Most bytes of a spec's text fields in all.
pub const SPEC_BYTES_MAX: usize = 256 << 10;

/// A label of a domain name (RFC 1123 §2.1): what services, networks and containers may be called.
pub fn check_name(what: &str, name: &str) -> Result<(), ApiError> {
    let invalid = |why: &str| {
        Err(ApiError::new(ErrorCode::Invalid, format!("{what} name {name:?} {why}"))
            .field("name")
            .hint("use 1 to 63 lower-case letters, digits and -, beginning and ending with a letter or digit, such as web-1"))
    };
    if name.is_empty() {
        return invalid("is empty");
    }
    if name.len() > 63 {
        return invalid("is longer than 63 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return invalid("holds a character that a host name cannot have");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return invalid("begins or ends with -");
    }
    Ok(())
}

/// `HOST:PORT`, at which others reach a manager.
pub fn check_address(addr: &str) -> Result<(), ApiError> {
    let printable = |host: &str| host.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = |host: &str| !host.is_empty() && printable(host) && !host.contains(['/', '@', '?', '#']);
    let parts = addr.rsplit_once(':').filter(|(host, _)| fits(host));
    match parts.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port != 0) {
        Some(_) => Ok(()),
        None => Err(ApiError::new(ErrorCode::Invalid, format!("{addr:?} is no address")).field("addr").hint("write HOST:PORT")),
    }
}

/// Checks a spec of any kind.
pub fn check(spec: &Spec) -> Result<(), ApiError> {
    match spec {
        Spec::Service(service) => check_service(service),
        Spec::Network(network) => check_network(network),
        Spec::Data(data) => check_data(data),
    }
}

/// The known word that `word` was most probably meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_ascii_lowercase().replace(['-', '_'], "");
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_ascii_lowercase().replace(['-', '_'], "")), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message).field(field)
}

/// Refuses a range that is not written by its first address.
fn check_range(range: IpNet, path: &str) -> Result<(), ApiError> {
    if range.addr() == range.network() {
        return Ok(());
    }
    Err(invalid(path, format!("{range} has host bits set")).hint(format!("write {}", range.trunc())))
}

/// Checks a service's spec.
pub fn check_service(spec: &ServiceSpec) -> Result<(), ApiError> {
    check_name("service", &spec.name)?;
    if spec.name == "tasks" {
        return Err(
            invalid("name", "the name tasks is taken: tasks.SERVICE is how DNS names a service's tasks").hint("choose another name")
        );
    }
    if !spec.stack.is_empty() {
        check_name("stack", &spec.stack).map_err(|error| error.field("stack"))?;
    }
    match (spec.mode, spec.replicas) {
        (Mode::Global, Some(_)) => {
            return Err(invalid("replicas", "a global service runs one task on each node and has no replicas")
                .hint("remove replicas, or set mode: replicated"));
        }
        (Mode::Replicated, Some(replicas)) if replicas > REPLICAS_MAX => {
            return Err(invalid("replicas", format!("{replicas} replicas are more than the limit of {REPLICAS_MAX}")));
        }
        _ => {}
    }
    if spec.containers.is_empty() {
        return Err(invalid("containers", "a service needs at least one container").hint("add - image: NAME:TAG"));
    }
    if spec.containers.len() > CONTAINERS_MAX {
        return Err(invalid("containers", format!("{} containers are more than the limit of {CONTAINERS_MAX}", spec.containers.len())));
    }
    let mut names = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        check_container(container, &format!("containers[{index}]"))?;
        if !names.insert(container_name(spec, index)) {
            return Err(invalid(format!("containers[{index}].name"), "two containers of the pod have the same name")
                .hint("give each container of the pod a name of its own"));
        }
    }
    let mut networks = BTreeSet::new();
    for (index, attachment) in spec.networks.iter().enumerate() {
        let path = format!("networks[{index}]");
        check_name("network", &attachment.network).map_err(|error| error.field(path.clone()))?;
        if !networks.insert(&attachment.network) {
            return Err(invalid(path, format!("network {} is named twice", attachment.network)));
        }
        for alias in &attachment.aliases {
            check_name("alias", alias).map_err(|error| error.field(format!("{path}.aliases")))?;
        }
    }
    check_endpoints(spec)?;
    check_resolving(spec)?;
    if spec.placement.max_per_node == Some(0) {
        return Err(invalid("placement.max_per_node", "with 0 tasks on each node nothing could run").hint("remove it for no limit"));
    }
    if spec.restart.max_attempts == Some(0) {
        return Err(invalid("restart.max_attempts", "0 attempts are not told from no limit").hint("write condition: none for no restarts"));
    }
    if spec.restart.delay > spec.restart.delay_max {
        return Err(invalid("restart.delay", "is longer than restart.delay_max"));
    }
    if !spec.runtime.is_empty() {
        check_name("runtime", &spec.runtime).map_err(|error| error.field("runtime"))?;
    }
    let size = text_size(spec);
    if size > SPEC_BYTES_MAX {
        return Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the spec of service {} has {size} bytes, more than the limit of {SPEC_BYTES_MAX}", spec.name),
        )
        .hint("keep what is long in configs, or in the image"));
    }
    Ok(())
}

/// A container's name: its own, else the service's for the first, `service-N` for others.
pub fn container_name(spec: &ServiceSpec, index: usize) -> String {
    match spec.containers.get(index) {
        Some(container) if !container.name.is_empty() => container.name.clone(),
        _ if index == 0 => spec.name.clone(),
        _ => format!("{}-{}", spec.name, index + 1),
    }
}

/// Bytes of a service's texts.
pub fn text_size(spec: &ServiceSpec) -> usize {
    text_bytes(&spec.containers)
        + label_bytes(&spec.labels)
        + spec.ports.iter().map(Port::text_bytes).sum::<usize>()
        + words_bytes(&spec.dns_search, &spec.extra_hosts)
}

/// Bytes of containers' texts: all that can be long in them.
pub fn text_bytes(containers: &[ContainerSpec]) -> usize {
    let container = |container: &ContainerSpec| {
        container.image.len()
            + container.command.iter().chain(&container.args).map(String::len).sum::<usize>()
            + container.env.iter().chain(&container.sysctls).map(|(key, value)| key.len() + value.len()).sum::<usize>()
            + container.healthcheck.iter().flat_map(|check| &check.command).map(String::len).sum::<usize>()
            + container.mounts.iter().map(|mount| mount.target().len()).sum::<usize>()
            + container.data().map(|(_, data)| data.source.len() + data.target.len()).sum::<usize>()
    };
    containers.iter().map(container).sum()
}

/// Checks how long the labels of an object are.
pub fn check_labels(kind: &str, name: &str, labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bytes = label_bytes(labels);
    if bytes <= SPEC_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the labels of {kind} {name} have {bytes} bytes, more than the limit of {SPEC_BYTES_MAX}");
    Err(ApiError::new(ErrorCode::TooLarge, message).field("labels").hint("keep what is long in configs"))
}

/// Checks a secret's or config's spec.
pub fn check_data(spec: &DataSpec) -> Result<(), ApiError> {
    let kind = spec.kind.as_str();
    check_name(kind, &spec.name)?;
    if !spec.stack.is_empty() {
        check_name("stack", &spec.stack).map_err(|error| error.field("stack"))?;
    }
    check_labels(kind, &spec.name, &spec.labels)?;
    match spec.data.as_ref().map_or(0, |data| data.0.len()) {
        size if size > DATA_BYTES_MAX => Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("{kind} {} has {size} bytes, more than the limit of {DATA_BYTES_MAX}", spec.name),
        )
        .field("data")
        .hint("split it, or keep it on a volume or in the image")),
        _ => Ok(()),
    }
}

/// Bytes of labels.
pub fn label_bytes(labels: &BTreeMap<String, String>) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// A range with which these addresses share one and which no pod can have, and what it is (RFC 6890).
pub fn not_for_pods(addresses: Ipv4Net) -> Option<(Ipv4Net, &'static str)> {
    const RANGES: [(Ipv4Net, &str); 4] = [
        (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "\"this network\""),
        (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
        (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local"),
        (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3), "multicast and reserved"),
    ];
    RANGES.into_iter().find(|(range, _)| range.contains(&addresses.network()) || addresses.contains(&range.network()))
}

/// Checks a network's spec.
pub fn check_network(spec: &NetworkSpec) -> Result<(), ApiError> {
    check_name("network", &spec.name)?;
    check_labels("network", &spec.name, &spec.labels)?;
    if let Some(subnet) = spec.subnet {
        check_range(subnet.into(), "subnet")?;
        if !(8..=29).contains(&subnet.prefix_len()) {
            return Err(invalid("subnet", format!("{subnet} is too small or too large")).hint("use a prefix from /8 to /29"));
        }
        if let Some((range, what)) = not_for_pods(subnet) {
            let message = format!("{subnet} overlaps {range}, which is {what}");
            return Err(invalid("subnet", message).hint("use a private range such as 10.200.0.0/24"));
        }
    }
    check_six(spec)?;
    match &spec.policy {
        Some(policy) => check_policy(policy),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(yaml: serde_json::Value) -> ServiceSpec {
        let mut spec: ServiceSpec = serde_json::from_value(yaml).unwrap();
        spec.name = "web".to_owned();
        spec
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (spec, expected) in [
            (serde_json::json!({"containers": []}), "containers: a service needs at least one container (add - image: NAME:TAG)"),
            (serde_json::json!({"containers": [{"image": ""}]}), "containers[0].image: no image is given (write image: NAME:TAG)"),
            (
                serde_json::json!({"mode": "global", "replicas": 2, "containers": [{"image": "a"}]}),
                "replicas: a global service runs one task on each node and has no replicas (remove replicas, or set mode: replicated)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "resources": {"limits": {"memory": "1KiB"}}}]}),
                "containers[0].resources.limits.memory: 1KiB is too little to start a process: at least 1MiB",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "healthcheck": {"tcp": {"port": 1}, "command": "true"}}]}),
                "containers[0].healthcheck: more than one of command, http and tcp is given (keep one)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "mounts": [{"type": "tmpfs", "target": "/a/../proc"}]}]}),
                "containers[0].mounts[0].target: \"/a/../proc\" is not a plain absolute path (write it like /data, without . and ..)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "cap_add": ["NET_ADMN"]}]}),
                "containers[0].cap_add: there is no capability \"NET_ADMN\" (names are those of capabilities(7), such as NET_ADMIN, or ALL)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "sysctls": {"vm.swappiness": "1"}}]}),
                "containers[0].sysctls: vm.swappiness belongs to the whole node, not to a container's namespaces (there are net.*, fs.mqueue.*, \
                 kernel.msg*, kernel.sem, kernel.shm* and kernel.domainname)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "logging": {"driver": "syslog", "address": "tcp://logs:514"}}]}),
                "containers[0].logging.address: \"tcp://logs:514\" is not the address of a syslog daemon (write unix:///PATH, udp://IP:PORT or \
                 tcp://IP:PORT; names are not resolved)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "logging": {"driver": "journald", "facility": "cron"}}]}),
                "containers[0].logging.facility: the driver journald has none (it belongs to driver: syslog)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a", "ulimits": {"files": 1}}]}),
                "containers[0].ulimits: there is no limit \"files\" (there are as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, \
                 nproc, rss, rtprio, rttime, sigpending, stack)",
            ),
            (serde_json::json!({"containers": [{"image": "a"}], "networks": ["a", "a"]}), "networks[1]: network a is named twice"),
            (
                serde_json::json!({"replicas": 2, "containers": [{"image": "a"}], "networks": [{"network": "a", "ip": "10.1.0.5"}]}),
                "networks[0].ip: an address can be held by one task (set replicas: 1, or leave ip out)",
            ),
            (
                serde_json::json!({"containers": [{"image": "a"}], "networks": [{"network": "a", "ip": "10.1.0.5"}],
                    "update": {"order": "start-first"}}),
                "networks[0].ip: two tasks would hold 10.1.0.5 at once (set update.order: stop-first, or leave ip out)",
            ),
        ] {
            assert_eq!(check_service(&service(spec)).unwrap_err().to_string(), expected);
        }
        check_service(&service(serde_json::json!({"containers": [{"image": "a:1"}], "replicas": 0}))).unwrap();
    }

    #[test]
    fn a_subnet_shares_no_address_with_what_no_pod_can_have() {
        for (subnet, expected) in [
            ("0.0.0.0/8", Some("0.0.0.0/8, which is \"this network\"")),
            ("127.0.0.0/24", Some("127.0.0.0/8, which is loopback")),
            ("169.0.0.0/8", Some("169.254.0.0/16, which is link-local")),
            ("169.254.53.0/24", Some("169.254.0.0/16, which is link-local")),
            ("240.1.0.0/16", Some("224.0.0.0/3, which is multicast and reserved")),
            ("10.0.0.0/8", None),
            ("169.253.0.0/16", None),
        ] {
            let spec = NetworkSpec { name: "lab".to_owned(), subnet: Some(subnet.parse().unwrap()), ..NetworkSpec::default() };
            let expected = expected.map(|why| format!("subnet: {subnet} overlaps {why} (use a private range such as 10.200.0.0/24)"));
            assert_eq!(check_network(&spec).err().map(|refused| refused.to_string()), expected);
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for name in ["", "Web", "a_b", "-a", "a-", "a.b", "é", &"a".repeat(64)] {
            check_name("service", name).unwrap_err();
        }
        for name in ["a", "web-1", "0", &"a".repeat(63)] {
            check_name("service", name).unwrap();
        }
    }
}
