//! Where what a node's network holds is not what is wanted of it, in words.
//!
//! In: dumps, the addresses of tasks and services. Out: differences. Knows nothing of what entries mean, but that rules have an order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcluster_api::network::address6;
use rcluster_api::wire::v1;
use serde::Serialize;

/// One thing that is not as it is wanted: one of `wanted` and `held` at least is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    pub node: String,
    pub kind: String,
    /// Which one of its kind.
    pub what: String,
    /// What it is to be like; absent: it is not to be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// What it is like; absent: it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Who has the address that it speaks of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, kind, what, wanted, held, about } = self;
        let like = |value: &str| if value.is_empty() { String::new() } else { format!(": {value}") };
        let or_nothing = |value: &str| if value.is_empty() { "nothing".to_owned() } else { value.to_owned() };
        write!(f, "{node}: {kind} {what} ")?;
        match (wanted, held) {
            (Some(wanted), Some(held)) => write!(f, "is {}, not {}", or_nothing(held), or_nothing(wanted))?,
            (Some(wanted), None) => write!(f, "is missing{}", like(wanted))?,
            (None, Some(held)) => write!(f, "is not wanted{}", like(held))?,
            (None, None) => write!(f, "is as it is wanted")?,
        }
        if about.is_empty() { Ok(()) } else { write!(f, " ({about})") }
    }
}

/// A dump that came in parts.
pub fn gathered(parts: impl IntoIterator<Item = v1::DumpResponse>) -> v1::DumpResponse {
    parts.into_iter().fold(v1::DumpResponse::default(), |mut whole, part| {
        let v1::DumpResponse { term, revision, wanted, held, problems } = part;
        (whole.term, whole.revision) = (term, revision);
        whole.wanted.extend(wanted);
        whole.held.extend(held);
        whole.problems.extend(problems);
        whole
    })
}

/// What differs on a node; `holders` has who has which address.
pub fn differences(node: &str, dump: &v1::DumpResponse, holders: &BTreeMap<IpAddr, String>) -> BTreeSet<Difference> {
    let mut things: BTreeMap<(&str, &str), [Vec<&str>; 2]> = BTreeMap::new();
    for (side, entries) in [&dump.wanted, &dump.held].into_iter().enumerate() {
        for v1::NetEntry { kind, text, value } in entries {
            things.entry((kind.as_str(), text.as_str())).or_default()[side].push(value);
        }
    }
    let difference = |kind: &str, what: &str, wanted: Option<&str>, held: Option<&str>| Difference {
        node: node.to_owned(),
        kind: kind.to_owned(),
        what: what.to_owned(),
        wanted: wanted.map(str::to_owned),
        held: held.map(str::to_owned),
        about: about(what, holders).unwrap_or_default(),
    };
    let mut found = BTreeSet::new();
    for ((kind, what), [wanted, held]) in things {
        let (wanted, held) = without_common(wanted, held);
        for place in 0..wanted.len().max(held.len()) {
            found.insert(difference(kind, what, wanted.get(place).copied(), held.get(place).copied()));
        }
    }
    if !found.iter().any(|difference| difference.kind == RULE) && rules(&dump.wanted) != rules(&dump.held) {
        found.insert(difference(RULE, "order", Some("as netd makes it"), Some("another")));
    }
    found
}

/// The kind of entries whose order matters.
const RULE: &str = "rule";

fn rules(entries: &[v1::NetEntry]) -> Vec<&str> {
    entries.iter().filter(|entry| entry.kind == RULE).map(|entry| entry.text.as_str()).collect()
}

/// Both without what they have in common, each as often as it is there.
fn without_common<'a>(mut wanted: Vec<&'a str>, mut held: Vec<&'a str>) -> (Vec<&'a str>, Vec<&'a str>) {
    wanted.retain(|value| match held.iter().position(|other| other == value) {
        Some(place) => {
            held.remove(place);
            false
        }
        None => true,
    });
    (wanted, held)
}

/// Who has the first address that a text speaks of and somebody has.
fn about(text: &str, holders: &BTreeMap<IpAddr, String>) -> Option<String> {
    let words = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let words6 = text.split(|letter: char| !letter.is_ascii_hexdigit() && letter != ':');
    let ips = words.filter_map(|word| word.parse::<Ipv4Addr>().ok()).map(IpAddr::V4);
    let ips6 = words6.filter_map(|word| word.parse::<Ipv6Addr>().ok()).map(IpAddr::V6);
    ips.chain(ips6).find_map(|ip| holders.get(&ip).cloned())
}

/// Who has which address of those that a node is to know: tasks, services and nodes.
pub fn holders(view: &v1::NetView) -> BTreeMap<IpAddr, String> {
    let names: BTreeMap<&str, &str> = view.nodes.iter().map(|node| (node.id.as_str(), node.name.as_str())).collect();
    let mut holders = BTreeMap::new();
    for node in &view.nodes {
        // Of a node whose tasks it does not see a node is not told the name.
        let name = if node.name.is_empty() { &node.id } else { &node.name };
        holders.extend(node.addr.parse().ok().map(|ip: IpAddr| (ip, format!("node {name}"))));
    }
    for (service, vip) in view.services.iter().flat_map(|service| service.vips.iter().map(move |vip| (service, vip))) {
        let network = view.networks.iter().find(|network| network.id == vip.network_id);
        holders.extend(addresses(network, &vip.ip).map(|ip| (ip, format!("service {}", service.name))));
    }
    // An address of a task that has ended is nobody's, and still routed for a moment.
    let endpoints = view.networks.iter().flat_map(|network| network.endpoints.iter().map(move |endpoint| (network, endpoint)));
    for (network, endpoint) in endpoints.filter(|(_, endpoint)| !endpoint.task.is_empty()) {
        let node = names.get(endpoint.node_id.as_str()).unwrap_or(&"a node that is gone");
        holders.extend(addresses(Some(network), &endpoint.ip).map(|ip| (ip, format!("{} on {node}", endpoint.task))));
    }
    holders
}

/// An address, and the one of IPv6 that follows from it on its network.
fn addresses(network: Option<&v1::NetworkView>, ip: &str) -> impl Iterator<Item = IpAddr> {
    let ip: Option<Ipv4Addr> = ip.parse().ok();
    let ip6 = network.and_then(|network| Some(address6(network.subnet6.parse().ok()?, ip?)));
    [ip.map(IpAddr::V4), ip6.map(IpAddr::V6)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `KIND TEXT` or `KIND TEXT | VALUE` each.
    fn entries(lines: &[&str]) -> Vec<v1::NetEntry> {
        let entry = |line: &&str| {
            let (thing, value) = line.split_once(" | ").unwrap_or((line, ""));
            let (kind, text) = thing.split_once(' ').unwrap();
            v1::NetEntry { kind: kind.to_owned(), text: text.to_owned(), value: value.to_owned() }
        };
        lines.iter().map(entry).collect()
    }

    fn check(wanted: &[&str], held: &[&str], expected: &[&str]) {
        let endpoint =
            v1::EndpointView { task: "web.3".into(), node_id: "id2".into(), ip: "10.128.0.7".into(), ..v1::EndpointView::default() };
        let view = v1::NetView {
            nodes: vec![v1::NodeView { id: "id2".into(), name: "n2".into(), addr: "10.90.0.102".into(), ..v1::NodeView::default() }],
            networks: vec![v1::NetworkView { endpoints: vec![endpoint], subnet6: "fd00:1::/64".into(), ..v1::NetworkView::default() }],
            ..v1::NetView::default()
        };
        let (wanted, held) = (entries(wanted), entries(held));
        let parts = [
            v1::DumpResponse { term: 1, revision: 7, wanted, ..v1::DumpResponse::default() },
            v1::DumpResponse { term: 1, revision: 7, held, ..v1::DumpResponse::default() },
        ];
        let dump = gathered(parts);
        assert_eq!((dump.term, dump.revision), (1, 7));
        let found: Vec<String> = differences("n1", &dump, &holders(&view)).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_as_it_is_wanted_is_not_told() {
        let all = ["route 10.128.0.7/32 | via 10.90.0.102 on v1", "rule a: x", "rule a: x", "name web | 10.128.0.7"];
        check(&all, &all, &[]);
        let mut otherwise = all;
        otherwise.rotate_left(1);
        check(&all, &otherwise, &[]);
    }

    #[test]
    fn what_is_missing_too_much_or_otherwise_is_told_with_who_it_is_about() {
        check(
            &["route 10.128.0.7/32 | via 10.90.0.102 on v1", "name web | 10.128.0.7", "name db | ", "rule a: x", "rule a: x", "pod t1"],
            &["route 10.128.0.9/32 | on lo", "name web | 10.128.0.9", "name db | 10.128.0.8", "rule a: x"],
            &[
                "n1: name db is 10.128.0.8, not nothing",
                "n1: name web is 10.128.0.9, not 10.128.0.7",
                "n1: pod t1 is missing",
                "n1: route 10.128.0.7/32 is missing: via 10.90.0.102 on v1 (web.3 on n2)",
                "n1: route 10.128.0.9/32 is not wanted: on lo",
                "n1: rule a: x is missing",
            ],
        );
        check(&["host peer 10.90.0.102"], &[], &["n1: host peer 10.90.0.102 is missing (node n2)"]);
        check(
            &["route fd00:1::a80:7/128 | via fe80::a5a:66 on v1"],
            &[],
            &["n1: route fd00:1::a80:7/128 is missing: via fe80::a5a:66 on v1 (web.3 on n2)"],
        );
    }

    #[test]
    fn rules_in_another_order_are_others() {
        check(&["rule a: x", "rule a: y"], &["rule a: y", "rule a: x"], &["n1: rule order is another, not as netd makes it"]);
    }
}
