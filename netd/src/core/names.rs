//! What a question about a name is answered with.
//!
//! In: who asks (the networks of its pod), a lower-case name without its final dot, a type. Out: an `Answer`; the order of addresses is
//! not this module's business (the shell shuffles). Rules:
//!
//! - A name of one of the asker's networks answers with every serving endpoint that bears it, over all of them; also as
//!   `<name>.<network>.internal`, for that network alone.
//! - A name that exists answers other types, and times without a serving endpoint, with "no data", never with "no such name":
//!   resolvers drop a name for good on that (musl, `host`).
//! - "No such name" only for what is ours to deny: single labels, `internal`, `tasks.<one label>`, and names under a last label that
//!   names of the asker's networks end in (a stack, a service).
//! - Addresses of the asker's subnets answer with the task's name, in the network's zone, which leads back to the address.
//! - Everything else is refused at once: there is no forwarding to other resolvers yet.
//!
//! Never: another network's names, whatever the name asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::picture::{Attachments, Network, Picture};
use ipnet::Ipv4Net;

/// The zone under which every network has its own.
pub const ZONE: &str = "internal";

/// What is asked for; types that are answered alike are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A, and ANY, which is answered with the addresses (RFC 8482).
    Address,
    Pointer,
    Other,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<Ipv4Addr>),
    Pointer(String),
    NoData,
    NoSuchName,
    Refused,
}

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkNames {
    /// `.<network>.internal`.
    suffix: String,
    subnet: Ipv4Net,
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Last labels of the names of more than one label.
    last_labels: BTreeSet<String>,
    /// Serving endpoints' full names.
    pointers: BTreeMap<Ipv4Addr, String>,
}

/// The networks whose names an asker sees.
pub type Sight = Vec<Arc<NetworkNames>>;

/// The domains to search, in the order of the pod's networks.
pub fn search<'a>(networks: impl Iterator<Item = &'a Network>) -> Vec<String> {
    networks.map(|network| format!("{}.{ZONE}", network.name)).collect()
}

/// Each network's names, by network id.
pub fn networks(picture: &Picture) -> BTreeMap<String, Arc<NetworkNames>> {
    picture.networks.iter().map(|(id, network)| (id.clone(), Arc::new(NetworkNames::new(network)))).collect()
}

/// What each pod here sees, by task id.
pub fn sights(networks: &BTreeMap<String, Arc<NetworkNames>>, attachments: &Attachments) -> BTreeMap<String, Sight> {
    let sight = |memberships: &[super::picture::Membership]| -> Sight {
        memberships.iter().filter_map(|membership| networks.get(&membership.network_id).cloned()).collect()
    };
    attachments.iter().map(|(task, attachment)| (task.clone(), sight(&attachment.networks))).collect()
}

impl NetworkNames {
    fn new(network: &Network) -> Self {
        let suffix = format!(".{}.{ZONE}", network.name);
        let mut names: BTreeMap<String, Vec<Ipv4Addr>> = network.names.iter().map(|name| (name.clone(), Vec::new())).collect();
        let mut pointers = BTreeMap::new();
        for (ip, endpoint) in &network.endpoints {
            let task = (!endpoint.task.is_empty()).then_some(&endpoint.task);
            for name in endpoint.names.iter().chain(task.filter(|task| !endpoint.names.contains(*task))) {
                let addresses = names.entry(name.clone()).or_default();
                if endpoint.serving {
                    addresses.push(*ip);
                }
            }
            if let Some(task) = task.filter(|_| endpoint.serving) {
                pointers.insert(*ip, format!("{task}{suffix}"));
            }
        }
        let last_labels = names.keys().filter_map(|name| name.rsplit_once('.')).map(|(_, last)| last.to_owned()).collect();
        Self { suffix, subnet: network.subnet, names, last_labels, pointers }
    }

    fn addresses(&self, name: &str) -> Option<&Vec<Ipv4Addr>> {
        self.names.get(name).or_else(|| name.strip_suffix(self.suffix.as_str()).and_then(|short| self.names.get(short)))
    }
}

/// Answers `name` (lower case, no final dot) for an asker that sees these networks.
pub fn lookup(sight: &[Arc<NetworkNames>], name: &str, kind: Kind) -> Answer {
    if name == "in-addr.arpa" || name.ends_with(".in-addr.arpa") {
        return lookup_address(sight, name, kind);
    }
    let mut found = false;
    let mut addresses = BTreeSet::new();
    for network in sight {
        if let Some(more) = network.addresses(name) {
            found = true;
            addresses.extend(more);
        }
    }
    match kind {
        Kind::Address if !addresses.is_empty() => Answer::Addresses(addresses.into_iter().collect()),
        Kind::Address | Kind::Pointer | Kind::Other if found || is_zone(sight, name) => Answer::NoData,
        Kind::Address | Kind::Pointer | Kind::Other if is_ours(sight, name) => Answer::NoSuchName,
        Kind::Address | Kind::Pointer | Kind::Other => Answer::Refused,
    }
}

/// Names that exist only because others end in them (RFC 8020).
fn is_zone(sight: &[Arc<NetworkNames>], name: &str) -> bool {
    name == ZONE
        || sight
            .iter()
            .any(|network| network.suffix.strip_prefix('.').is_some_and(|zone| zone == name) || network.last_labels.contains(name))
}

fn is_ours(sight: &[Arc<NetworkNames>], name: &str) -> bool {
    match name.rsplit_once('.') {
        None => !name.is_empty(),
        Some((rest, last)) => last == ZONE || rest == "tasks" || sight.iter().any(|network| network.last_labels.contains(last)),
    }
}

fn lookup_address(sight: &[Arc<NetworkNames>], name: &str, kind: Kind) -> Answer {
    let Some(ip) = reversed(name) else { return Answer::Refused };
    let Some(network) = sight.iter().find(|network| network.subnet.contains(&ip)) else { return Answer::Refused };
    match (network.pointers.get(&ip), kind) {
        (Some(target), Kind::Pointer) => Answer::Pointer(target.clone()),
        (Some(_), Kind::Address | Kind::Other) => Answer::NoData,
        (None, _) => Answer::NoSuchName,
    }
}

fn reversed(name: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut labels = name.strip_suffix(".in-addr.arpa")?.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::picture::{Endpoint, Place};

    fn network(name: &str, third: u8) -> Network {
        let endpoint = |slot: u8, serving: bool| {
            let names = ["web", "web.shop", "tasks.web"].map(str::to_owned).into_iter().chain([format!("{slot}.web")]).collect();
            let endpoint = Endpoint { task_id: format!("id{slot}"), task: format!("web.{slot}"), place: Place::Here, serving, names };
            (Ipv4Addr::new(10, 128, third, slot), endpoint)
        };
        Network {
            name: name.to_owned(),
            vni: u32::from(third) + 1,
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 128, third, 0), 24),
            internal: false,
            names: ["web", "empty"].map(str::to_owned).into(),
            endpoints: BTreeMap::from([endpoint(1, true), endpoint(2, true), endpoint(3, false)]),
            leaving: false,
        }
    }

    fn check(name: &str, kind: Kind, expected: &str) {
        let sight = [Arc::new(NetworkNames::new(&network("front", 0)))];
        let text = match lookup(&sight, name, kind) {
            Answer::Addresses(addresses) => addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(" "),
            Answer::Pointer(target) => target,
            other => format!("{other:?}"),
        };
        assert_eq!(text, expected, "{name} {kind:?}");
    }

    #[test]
    fn names_of_the_network_answer_with_its_serving_endpoints() {
        for name in ["web", "web.shop", "tasks.web", "web.front.internal", "tasks.web.front.internal"] {
            check(name, Kind::Address, "10.128.0.1 10.128.0.2");
        }
        check("2.web", Kind::Address, "10.128.0.2");
        check("web.2", Kind::Address, "10.128.0.2");
    }

    #[test]
    fn a_name_that_exists_is_never_denied() {
        check("web", Kind::Other, "NoData");
        check("empty", Kind::Address, "NoData");
        check("3.web", Kind::Address, "NoData");
        check("front.internal", Kind::Address, "NoData");
        check("shop", Kind::Address, "NoData");
    }

    #[test]
    fn only_what_is_ours_is_denied_and_the_rest_refused() {
        for name in ["wep", "9.web", "wep.shop", "tasks.wep", "wep.front.internal", "web.back.internal", "x.internal"] {
            check(name, Kind::Address, "NoSuchName");
        }
        for name in ["example.com", "com.example", "a.tasks.b", ""] {
            check(name, Kind::Address, "Refused");
        }
    }

    #[test]
    fn addresses_of_the_subnet_lead_to_names_and_back() {
        check("1.0.128.10.in-addr.arpa", Kind::Pointer, "web.1.front.internal");
        check("web.1.front.internal", Kind::Address, "10.128.0.1");
        check("3.0.128.10.in-addr.arpa", Kind::Pointer, "NoSuchName");
        check("1.0.128.10.in-addr.arpa", Kind::Address, "NoData");
        check("8.8.8.8.in-addr.arpa", Kind::Pointer, "Refused");
        check("1.2.3.in-addr.arpa", Kind::Pointer, "Refused");
    }

    #[test]
    fn a_pod_on_two_networks_sees_both_and_nobody_sees_more() {
        let both = [Arc::new(NetworkNames::new(&network("front", 0))), Arc::new(NetworkNames::new(&network("back", 1)))];
        let Answer::Addresses(addresses) = lookup(&both, "web", Kind::Address) else { panic!("no addresses") };
        assert_eq!(addresses.len(), 4);
        assert_eq!(lookup(&both, "1.web.back.internal", Kind::Address), Answer::Addresses(vec![Ipv4Addr::new(10, 128, 1, 1)]));
        assert_eq!(lookup(&[], "web", Kind::Address), Answer::NoSuchName);
    }
}
