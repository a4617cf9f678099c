//! A service's face on its networks: ports, affinity, how long its tasks wait when they leave; and who may speak with whom there.

use std::collections::{BTreeMap, BTreeSet};

use super::{check_name, check_range, invalid, label_bytes};
use crate::error::ApiError;
use crate::network::{Affinity, Allow, EndpointMode, HostAddress, NetworkPolicy, PREFIX6, Peer, Port, Ports, Published};
use crate::resource::Millis;
use crate::spec::{Mode, NetworkSpec, ServiceSpec, UpdateOrder};

/// Most published ports of one service.
pub const PUBLISHED_PORTS_MAX: usize = 256;
/// Most entries of `ports`, those that are in DNS alone too.
const PORTS_MAX: usize = 256;
/// Most ranges of clients of one entry.
const ALLOW_FROM_MAX: usize = 64;
/// Most ranges of clients of a service, each counted once for each port that they may connect to.
const ALLOWED_MAX: usize = 4096;
/// Most published ports times the replicas: each node has a place for each task behind each port.
const PUBLISHED_PLACES_MAX: usize = 1 << 16;
/// As many resolvers as programs take of a resolv.conf.
const RESOLVERS_MAX: usize = 3;
/// As many domains as old ones do.
const SEARCH_MAX: usize = 6;
/// Longest that a task may wait for others to send nothing more to it.
pub const LEAVE_MAX: Millis = Millis(60_000);

/// Most rules of a network's policy.
const POLICY_RULES_MAX: usize = 256;
/// Most entries of each list of a rule.
const POLICY_ENTRIES_MAX: usize = 64;

/// Checks what a network says of IPv6.
pub(super) fn check_six(spec: &NetworkSpec) -> Result<(), ApiError> {
    let Some(subnet6) = spec.subnet6 else { return Ok(()) };
    if !spec.ipv6 {
        return Err(
            invalid("subnet6", format!("{subnet6} is for IPv6, which the network does not have")).hint("add ipv6: true, or leave it out")
        );
    }
    if subnet6.prefix_len() != PREFIX6 {
        return Err(invalid("subnet6", format!("{subnet6} is no /{PREFIX6}")).hint("write one such as fd12:3456:789a:1::/64"));
    }
    check_range(subnet6.into(), "subnet6")?;
    // Global unicast, or unique local.
    if subnet6.addr().segments()[0] & 0xe000 != 0x2000 && !subnet6.addr().is_unique_local() {
        return Err(invalid("subnet6", format!("{subnet6} cannot be routed")).hint("use a private range such as fd12:3456:789a:1::/64"));
    }
    Ok(())
}

/// Checks who may speak with whom on a network.
pub(super) fn check_policy(policy: &NetworkPolicy) -> Result<(), ApiError> {
    let NetworkPolicy { allow } = policy;
    if allow.len() > POLICY_RULES_MAX {
        return Err(invalid("policy.allow", format!("{} rules are more than the limit of {POLICY_RULES_MAX}", allow.len())));
    }
    for (index, Allow { from, to, ports }) in allow.iter().enumerate() {
        let path = format!("policy.allow[{index}]");
        for (key, entries) in [("from", from.len()), ("to", to.len()), ("ports", ports.len())] {
            if entries > POLICY_ENTRIES_MAX {
                let message = format!("{entries} entries are more than the limit of {POLICY_ENTRIES_MAX}");
                return Err(invalid(format!("{path}.{key}"), message).hint("spread them over several rules"));
            }
        }
        for (key, peers) in [("from", from), ("to", to)] {
            if peers.is_empty() {
                return Err(invalid(format!("{path}.{key}"), "names nobody").hint("write services' names, or \"*\" for all"));
            }
            for (place, peer) in peers.iter().enumerate() {
                check_peer(peer, key == "from", &format!("{path}.{key}[{place}]"))?;
            }
        }
    }
    Ok(())
}

/// One side of a rule; `comes`: the one that speaks first.
fn check_peer(peer: &Peer, comes: bool, path: &str) -> Result<(), ApiError> {
    match peer {
        Peer::All => Ok(()),
        Peer::Service(name) => check_name("service", name).map_err(|error| error.field(path)),
        Peer::Range(cidr) if !comes => Err(invalid(path, format!("{cidr} is a range of addresses, and only services are spoken to"))
            .hint("write a service's name, or \"*\" for all")),
        Peer::Range(cidr) => check_range(*cidr, path),
    }
}

/// Bytes of a network's texts.
pub fn network_text_size(spec: &NetworkSpec) -> usize {
    const PORT_BYTES: usize = 16;
    let rule = |Allow { from, to, ports }: &Allow| from.iter().chain(to).map(Peer::text_bytes).sum::<usize>() + PORT_BYTES * ports.len();
    let rules: usize = spec.policy.as_ref().map_or(0, |policy| policy.allow.iter().map(rule).sum());
    label_bytes(&spec.labels) + rules
}

/// Checks what a service says of its endpoints.
pub(super) fn check_endpoints(spec: &ServiceSpec) -> Result<(), ApiError> {
    if spec.affinity == Affinity::Client && spec.endpoint_mode != EndpointMode::Vip {
        return Err(invalid("affinity", "needs endpoint_mode: vip"));
    }
    if spec.leave > LEAVE_MAX {
        return Err(invalid("leave", format!("{} is longer than the limit of {LEAVE_MAX}", spec.leave)));
    }
    for (index, port) in spec.ports.iter().enumerate() {
        check_port(port, &format!("ports[{index}]"))?;
    }
    check_static(spec)?;
    check_ports(spec)
}

/// Checks static addresses: each is one task's at a time.
fn check_static(spec: &ServiceSpec) -> Result<(), ApiError> {
    for (index, attachment) in spec.networks.iter().enumerate() {
        let Some(ip) = attachment.ip else { continue };
        let path = format!("networks[{index}].ip");
        if spec.mode == Mode::Global || spec.replicas() > 1 {
            return Err(invalid(path, "an address can be held by one task").hint("set replicas: 1, or leave ip out"));
        }
        if spec.update.order == UpdateOrder::StartFirst {
            return Err(invalid(path, format!("two tasks would hold {ip} at once")).hint("set update.order: stop-first, or leave ip out"));
        }
    }
    Ok(())
}

/// Checks what a service says of how its containers resolve names.
pub(super) fn check_resolving(spec: &ServiceSpec) -> Result<(), ApiError> {
    if spec.dns.len() > RESOLVERS_MAX {
        return Err(invalid("dns", format!("{} resolvers are more than the limit of {RESOLVERS_MAX}", spec.dns.len())));
    }
    if spec.dns_search.len() > SEARCH_MAX {
        return Err(invalid("dns_search", format!("{} domains are more than the limit of {SEARCH_MAX}", spec.dns_search.len())));
    }
    if let Some(domain) = spec.dns_search.iter().find(|domain| !is_domain(domain)) {
        return Err(invalid("dns_search", format!("{domain:?} is no domain")).hint("write one such as corp.example"));
    }
    if let Some(name) = spec.extra_hosts.keys().find(|name| !is_domain(name)) {
        return Err(invalid("extra_hosts", format!("{name:?} is no name of a host")).hint("write one such as db, or db.example"));
    }
    let asked = [("dns", !spec.dns.is_empty()), ("dns_search", !spec.dns_search.is_empty())];
    match asked.into_iter().find(|(_, given)| *given && spec.networks.is_empty()) {
        Some((key, _)) => Err(invalid(key, "a service without networks asks nobody for names").hint("add networks: [NAME]")),
        None => Ok(()),
    }
}

/// Labels of letters, digits, `-` and `_`, without a final dot (RFC 1035 §2.3.4 for how long).
fn is_domain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain))
}

/// Bytes of what a service says of how its containers resolve names, which each of its tasks carries.
pub fn words_bytes(search: &[String], hosts: &BTreeMap<String, HostAddress>) -> usize {
    const ADDRESS_BYTES: usize = 40;
    search.iter().map(String::len).sum::<usize>() + hosts.keys().map(|name| name.len() + ADDRESS_BYTES).sum::<usize>()
}

fn check_port(port: &Port, path: &str) -> Result<(), ApiError> {
    let Port { name, protocol: _, target, published } = port;
    if !name.is_empty() {
        check_name("port", name).map_err(|error| error.field(format!("{path}.name")))?;
    }
    let Some(Published { ports: _, mode: _, allow_from }) = published else {
        return if name.is_empty() {
            Err(invalid(path, format!("{target} says no published port"))
                .hint(format!("write {target}:{target}, or {{name: http, target: {target}}} for a name in DNS alone")))
        } else {
            Ok(())
        };
    };
    if allow_from.len() > ALLOW_FROM_MAX {
        let message = format!("{} ranges are more than the limit of {ALLOW_FROM_MAX}", allow_from.len());
        return Err(invalid(format!("{path}.allow_from"), message).hint("write fewer, wider ones"));
    }
    allow_from.iter().try_for_each(|cidr| check_range(*cidr, &format!("{path}.allow_from")))
}

/// Checks all ports together.
fn check_ports(spec: &ServiceSpec) -> Result<(), ApiError> {
    if spec.ports.len() > PORTS_MAX {
        return Err(invalid("ports", format!("{} entries are more than the limit of {PORTS_MAX}", spec.ports.len())));
    }
    let mut named = BTreeSet::new();
    for (index, Port { name, protocol, target: _, published: _ }) in spec.ports.iter().enumerate() {
        if !name.is_empty() && !named.insert((name, *protocol)) {
            let message = format!("{} port {name} is there twice", protocol.as_str());
            return Err(invalid(format!("ports[{index}].name"), message).hint("give each a name of its own"));
        }
    }
    check_published(spec)
}

/// Checks the published ports together.
fn check_published(spec: &ServiceSpec) -> Result<(), ApiError> {
    let published = |port: &Port| port.published.as_ref().map(|published| published.ports);
    let count: usize = spec.ports.iter().filter_map(published).map(|ports| usize::from(ports.count())).sum();
    if count > PUBLISHED_PORTS_MAX {
        return Err(invalid("ports", format!("{count} published ports are more than the limit of {PUBLISHED_PORTS_MAX}")));
    }
    let clients = |published: &Published| usize::from(published.ports.count()) * published.allow_from.len();
    let allowed: usize = spec.ports.iter().filter_map(|port| port.published.as_ref()).map(clients).sum();
    if allowed > ALLOWED_MAX {
        let message = format!("{allowed} ranges of clients, each counted for each of its ports, are more than the limit of {ALLOWED_MAX}");
        return Err(invalid("ports", message).hint("write fewer, wider ones in allow_from, or publish fewer ports"));
    }
    let replicas = if spec.mode == Mode::Replicated { spec.replicas() as usize } else { 1 };
    if count * replicas > PUBLISHED_PLACES_MAX {
        let message = format!("{count} published ports of {replicas} replicas are more than the limit of {PUBLISHED_PLACES_MAX} in all");
        return Err(invalid("ports", message).hint("publish fewer ports, or have several services"));
    }
    if count > 0 && spec.networks.is_empty() {
        return Err(invalid("ports", "a service without networks has nothing to publish").hint("add networks: [NAME]"));
    }
    let mut taken = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let twice = published(port).into_iter().flat_map(Ports::all).find(|number| !taken.insert((port.protocol, *number)));
        if let Some(number) = twice {
            return Err(invalid(format!("ports[{index}]"), format!("{} port {number} is published twice", port.protocol.as_str())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{check_network, check_service};

    #[test]
    fn what_is_wrong_with_endpoints_is_named_with_its_field() {
        let named = |name: &str, protocol: &str| serde_json::json!({"name": name, "target": 80, "protocol": protocol});
        for (given, expected) in [
            (serde_json::json!({"affinity": "client", "endpoint_mode": "dnsrr"}), "affinity: needs endpoint_mode: vip"),
            (serde_json::json!({"leave": "61s"}), "leave: 1m1s is longer than the limit of 1m"),
            (
                serde_json::json!({"ports": [8080]}),
                "ports[0]: 8080 says no published port (write 8080:8080, or {name: http, target: 8080} for a name in DNS alone)",
            ),
            (serde_json::json!({"ports": ["80:80", "8080:80", "79-80:90-91"]}), "ports[2]: tcp port 80 is published twice"),
            (serde_json::json!({"ports": ["1000-1299:1000-1299"]}), "ports: 300 published ports are more than the limit of 256"),
            (
                serde_json::json!({"ports": ["1000-1099:1000-1099"], "replicas": 656}),
                "ports: 100 published ports of 656 replicas are more than the limit of 65536 in all (publish fewer ports, or have several \
                 services)",
            ),
            (
                serde_json::json!({"ports": ["80:80"], "networks": []}),
                "ports: a service without networks has nothing to publish (add networks: [NAME])",
            ),
            (
                serde_json::json!({"ports": [{"target": 80, "published": 80, "allow_from": ["10.0.0.1/8"]}]}),
                "ports[0].allow_from: 10.0.0.1/8 has host bits set (write 10.0.0.0/8)",
            ),
            (
                serde_json::json!({"ports": [{"target": 80, "published": 80, "allow_from": ["10.0.0.0/8", "fd00::1/8"]}]}),
                "ports[0].allow_from: fd00::1/8 has host bits set (write fd00::/8)",
            ),
            (
                serde_json::json!({"ports": [{"target": 80, "published": 80, "allow_from": vec!["10.0.0.0/8"; 65]}]}),
                "ports[0].allow_from: 65 ranges are more than the limit of 64 (write fewer, wider ones)",
            ),
            (
                serde_json::json!({"ports": [{"target": "80-179", "published": "80-179", "allow_from": vec!["10.0.0.0/8"; 41]}]}),
                "ports: 4100 ranges of clients, each counted for each of its ports, are more than the limit of 4096 (write fewer, wider ones \
                 in allow_from, or publish fewer ports)",
            ),
            (
                serde_json::json!({"ports": (0..257).map(|index| named(&format!("p{index}"), "tcp")).collect::<Vec<_>>()}),
                "ports: 257 entries are more than the limit of 256",
            ),
            (
                serde_json::json!({"ports": [named("dns", "tcp"), named("dns", "tcp")]}),
                "ports[1].name: tcp port dns is there twice (give each a name of its own)",
            ),
            (
                serde_json::json!({"ports": [{"name": "HTTP", "target": 80}]}),
                "ports[0].name: port name \"HTTP\" holds a character that a host name cannot have (use 1 to 63 lower-case letters, digits and \
                 -, beginning and ending with a letter or digit, such as web-1)",
            ),
            (serde_json::json!({"dns": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}), "dns: 4 resolvers are more than the limit of 3"),
            (
                serde_json::json!({"dns": ["1.1.1.1"], "networks": []}),
                "dns: a service without networks asks nobody for names (add networks: [NAME])",
            ),
            (serde_json::json!({"dns_search": ["a", "b", "c", "d", "e", "f", "g"]}), "dns_search: 7 domains are more than the limit of 6"),
            (
                serde_json::json!({"dns_search": ["corp example"]}),
                "dns_search: \"corp example\" is no domain (write one such as corp.example)",
            ),
            (
                serde_json::json!({"extra_hosts": {"a..b": "10.0.0.1"}}),
                "extra_hosts: \"a..b\" is no name of a host (write one such as db, or db.example)",
            ),
        ] {
            assert_eq!(check(given).unwrap_err().to_string(), expected);
        }
        let ports = serde_json::json!(["53:53", "53:53/udp", named("http", "tcp"), named("dns", "tcp"), named("dns", "udp")]);
        check(serde_json::json!({"ports": ports, "affinity": "client", "leave": "1m"})).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_named_with_its_field() {
        let rule = |from: &str, to: &str| serde_json::json!({"from": [from], "to": [to]});
        let many = |count: usize| vec![serde_json::json!("web"); count];
        for (allow, expected) in [
            (serde_json::json!(vec![rule("*", "*"); 257]), "policy.allow: 257 rules are more than the limit of 256"),
            (
                serde_json::json!([{"from": many(65), "to": ["db"]}]),
                "policy.allow[0].from: 65 entries are more than the limit of 64 (spread them over several rules)",
            ),
            (
                serde_json::json!([rule("web", "db"), {"from": ["web"], "to": []}]),
                "policy.allow[1].to: names nobody (write services' names, or \"*\" for all)",
            ),
            (
                serde_json::json!([rule("Web", "db")]),
                "policy.allow[0].from[0]: service name \"Web\" holds a character that a host name cannot have (use 1 to 63 lower-case \
                 letters, digits and -, beginning and ending with a letter or digit, such as web-1)",
            ),
            (
                serde_json::json!([rule("web", "10.0.0.0/8")]),
                "policy.allow[0].to[0]: 10.0.0.0/8 is a range of addresses, and only services are spoken to (write a service's name, or \
                 \"*\" for all)",
            ),
            (serde_json::json!([rule("10.0.0.1/8", "db")]), "policy.allow[0].from[0]: 10.0.0.1/8 has host bits set (write 10.0.0.0/8)"),
            (serde_json::json!([rule("fd00::1/8", "db")]), "policy.allow[0].from[0]: fd00::1/8 has host bits set (write fd00::/8)"),
        ] {
            assert_eq!(check_network_with(allow).unwrap_err().to_string(), expected);
        }
        check_network_with(serde_json::json!([{"from": ["web", "*", "192.0.2.0/24", "2001:db8::/32"], "to": ["db", "*"], "ports": [80]}]))
            .unwrap();
        check_network_with(serde_json::json!([])).unwrap();
    }

    /// Checks a network with these rules.
    fn check_network_with(allow: serde_json::Value) -> Result<(), ApiError> {
        let spec = serde_json::from_value(serde_json::json!({"policy": {"allow": allow}})).unwrap();
        check_network(&NetworkSpec { name: "lab".to_owned(), ..spec })
    }

    #[test]
    fn what_is_wrong_with_ipv6_is_named_with_its_field() {
        let check = |given: serde_json::Value| {
            let spec = serde_json::from_value(given).unwrap();
            check_network(&NetworkSpec { name: "lab".to_owned(), ..spec })
        };
        for (given, expected) in [
            (
                serde_json::json!({"subnet6": "fd00:1::/64"}),
                "subnet6: fd00:1::/64 is for IPv6, which the network does not have (add ipv6: true, or leave it out)",
            ),
            (
                serde_json::json!({"ipv6": true, "subnet6": "fd00:1::/48"}),
                "subnet6: fd00:1::/48 is no /64 (write one such as fd12:3456:789a:1::/64)",
            ),
            (serde_json::json!({"ipv6": true, "subnet6": "fd00:1::7/64"}), "subnet6: fd00:1::7/64 has host bits set (write fd00:1::/64)"),
            (
                serde_json::json!({"ipv6": true, "subnet6": "fe80::/64"}),
                "subnet6: fe80::/64 cannot be routed (use a private range such as fd12:3456:789a:1::/64)",
            ),
        ] {
            assert_eq!(check(given).unwrap_err().to_string(), expected);
        }
        for subnet6 in ["fd00:1::/64", "2001:db8:0:7::/64"] {
            check(serde_json::json!({"ipv6": true, "subnet6": subnet6})).unwrap();
        }
        check(serde_json::json!({"ipv6": true})).unwrap();
    }

    #[test]
    fn what_is_no_address_is_not_read() {
        for (given, expected) in [
            (serde_json::json!({"dns": ["resolver"]}), "\"resolver\" is no address of a resolver"),
            (serde_json::json!({"dns": ["0.0.0.0"]}), "\"0.0.0.0\" is no address of a resolver"),
            (serde_json::json!({"dns": ["169.254.53.53"]}), "\"169.254.53.53\" is no address of a resolver"),
            (serde_json::json!({"extra_hosts": {"db": "x"}}), "\"x\" is no address: write an IP, or host-gateway"),
        ] {
            let mut spec = serde_json::json!({"containers": [{"image": "a"}]});
            spec.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
            assert_eq!(serde_json::from_value::<ServiceSpec>(spec).unwrap_err().to_string(), expected);
        }
        let hosts = serde_json::json!({"db": "10.0.0.7", "six.example": "fd00::7", "router": "host-gateway"});
        check(serde_json::json!({"dns": ["9.9.9.9"], "dns_search": ["corp.example"], "extra_hosts": hosts})).unwrap();
        check(serde_json::json!({"extra_hosts": {"db": "10.0.0.7"}, "networks": []})).unwrap();
    }

    /// Checks a service on a network with these keys besides.
    fn check(given: serde_json::Value) -> Result<(), ApiError> {
        let mut spec = serde_json::json!({"containers": [{"image": "a"}], "networks": ["lab"]});
        for (key, value) in given.as_object().unwrap() {
            spec[key] = value.clone();
        }
        check_service(&ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() })
    }
}
