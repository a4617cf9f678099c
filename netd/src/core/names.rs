//! What a question about a name is answered with.
//!
//! In: who asks (the networks of its pod), a lower-case name without its final dot, a type. Out: an `Answer`; the order of addresses is
//! not this module's business (the shell shuffles). Rules:
//!
//! - A name of one of the asker's networks answers with every serving endpoint that bears it, over all of them; also as
//!   `<name>.<network>.internal`, for that network alone. A name of a service's virtual address answers with that address alone, also
//!   while no endpoint serves. An endpoint on this node serves only while its pod is attached and has not left, whatever the picture
//!   says: it is gone at once, not with the next picture.
//! - A name that exists answers other types, and times without a serving endpoint, with "no data", never with "no such name":
//!   resolvers drop a name for good on that (musl, `host`).
//! - "No such name" only for what is ours to deny: single labels, and names under `internal`. Of other names of several labels those are ours
//!   that exist (`svc.stack`, `tasks.svc`, `slot.svc`, an alias with dots): a service called `com` does not make `example.com` ours.
//! - Addresses of the asker's subnets answer with the task's name, in the network's zone, which leads back to the address. Those of other
//!   networks are refused.
//! - Everything else is foreign: for others to answer, if one of the asker's networks is not internal; refused at once if all are.
//!
//! Never: another network's names, whatever the name asked for; calls foreign what would tell others of our names and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::picture::{Attachments, Endpoint, Network, Picture, Place};
use ipnet::Ipv4Net;

/// The zone under which every network has its own.
pub const ZONE: &str = "internal";

/// The addresses of all networks.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 9);

/// Addresses that mean something on one link only (RFC 6303), ours among them.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

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
    /// Others are to be asked.
    Foreign,
    Refused,
}

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkNames {
    /// `.<network>.internal`.
    suffix: String,
    subnet: Ipv4Net,
    /// No way out for its pods, and no questions either.
    internal: bool,
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Last labels of the names of more than one label.
    last_labels: BTreeSet<String>,
    /// Full names of serving endpoints, and of services with an address of their own.
    pointers: BTreeMap<Ipv4Addr, String>,
}

/// The networks whose names an asker sees.
pub type Sight = Vec<Arc<NetworkNames>>;

/// The domains to search, in the order of the pod's networks.
pub fn search<'a>(networks: impl Iterator<Item = &'a Network>) -> Vec<String> {
    networks.map(|network| format!("{}.{ZONE}", network.name)).collect()
}

/// Each network's names, by network id.
pub fn networks(picture: &Picture, attachments: &Attachments) -> BTreeMap<String, Arc<NetworkNames>> {
    picture.networks.iter().map(|(id, network)| (id.clone(), Arc::new(NetworkNames::new(network, attachments)))).collect()
}

/// What each pod here sees, by task id.
pub fn sights(networks: &BTreeMap<String, Arc<NetworkNames>>, attachments: &Attachments) -> BTreeMap<String, Sight> {
    let sight = |memberships: &[super::picture::Membership]| -> Sight {
        memberships.iter().filter_map(|membership| networks.get(&membership.network_id).cloned()).collect()
    };
    attachments.iter().map(|(task, attachment)| (task.clone(), sight(&attachment.networks))).collect()
}

impl NetworkNames {
    /// The names of `network` while these pods are here.
    pub fn new(network: &Network, attachments: &Attachments) -> Self {
        let suffix = format!(".{}.{ZONE}", network.name);
        let mut names: BTreeMap<String, Vec<Ipv4Addr>> = network.names.iter().map(|name| (name.clone(), Vec::new())).collect();
        let mut pointers = BTreeMap::new();
        for (ip, endpoint) in &network.endpoints {
            let serving = endpoint.serving && is_there(*ip, endpoint, attachments);
            let task = (!endpoint.task.is_empty()).then_some(&endpoint.task);
            for name in endpoint.names.iter().chain(task.filter(|task| !endpoint.names.contains(*task))) {
                let addresses = names.entry(name.clone()).or_default();
                if serving {
                    addresses.push(*ip);
                }
            }
            if let Some(task) = task.filter(|_| serving) {
                pointers.insert(*ip, format!("{task}{suffix}"));
            }
        }
        let mut virtuals: BTreeMap<&String, Vec<Ipv4Addr>> = BTreeMap::new();
        for (ip, vip) in &network.vips {
            for name in &vip.names {
                virtuals.entry(name).or_default().push(*ip);
            }
            pointers.insert(*ip, format!("{}{suffix}", vip.service));
        }
        names.extend(virtuals.into_iter().map(|(name, ips)| (name.clone(), ips)));
        let last_labels = names.keys().filter_map(|name| name.rsplit_once('.')).map(|(_, last)| last.to_owned()).collect();
        Self { suffix, subnet: network.subnet, internal: network.internal, names, last_labels, pointers }
    }

    fn addresses(&self, name: &str) -> Option<&Vec<Ipv4Addr>> {
        self.names.get(name).or_else(|| name.strip_suffix(self.suffix.as_str()).and_then(|short| self.names.get(short)))
    }
}

/// Whether an endpoint that the picture calls serving does so as far as this node can tell.
pub(super) fn is_there(ip: Ipv4Addr, endpoint: &Endpoint, attachments: &Attachments) -> bool {
    match endpoint.place {
        Place::Node(_) => true,
        Place::Here => {
            attachments.get(&endpoint.task_id).is_some_and(|pod| !pod.left && pod.networks.iter().any(|membership| membership.ip == ip))
        }
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
        Kind::Address | Kind::Pointer | Kind::Other if is_ours(name) => Answer::NoSuchName,
        Kind::Address | Kind::Pointer | Kind::Other if name.is_empty() => Answer::Refused,
        Kind::Address | Kind::Pointer | Kind::Other => foreign(sight),
    }
}

/// Whether questions of an asker that sees these networks may go to other resolvers.
pub fn may_ask_others(sight: &[Arc<NetworkNames>]) -> bool {
    sight.iter().any(|network| !network.internal)
}

fn foreign(sight: &[Arc<NetworkNames>]) -> Answer {
    if may_ask_others(sight) { Answer::Foreign } else { Answer::Refused }
}

/// Names that exist only because others end in them (RFC 8020).
fn is_zone(sight: &[Arc<NetworkNames>], name: &str) -> bool {
    name == ZONE
        || sight
            .iter()
            .any(|network| network.suffix.strip_prefix('.').is_some_and(|zone| zone == name) || network.last_labels.contains(name))
}

/// Whether a name is ours to deny.
fn is_ours(name: &str) -> bool {
    match name.rsplit_once('.') {
        None => !name.is_empty(),
        Some((_, last)) => last == ZONE,
    }
}

fn lookup_address(sight: &[Arc<NetworkNames>], name: &str, kind: Kind) -> Answer {
    let (range, is_whole) = reversed(name);
    let Some(network) = sight.iter().find(|network| network.subnet.contains(&range)) else {
        return if POOL.contains(&range) || LINK_LOCAL.contains(&range) { Answer::Refused } else { foreign(sight) };
    };
    match (network.pointers.get(&range.addr()), kind) {
        _ if !is_whole => Answer::Refused,
        (Some(target), Kind::Pointer) => Answer::Pointer(target.clone()),
        (Some(_), Kind::Address | Kind::Other) => Answer::NoData,
        (None, _) => Answer::NoSuchName,
    }
}

/// The addresses that a name under `in-addr.arpa` is about: those that begin with the numbers at its end; and whether it is the name of
/// one address and no more.
fn reversed(name: &str) -> (Ipv4Net, bool) {
    let mut octets = [0u8; 4];
    let mut known = 0u8;
    let mut labels = name.strip_suffix("in-addr.arpa").unwrap_or_default().rsplit('.').filter(|label| !label.is_empty());
    let mut rest = labels.next();
    while let Some(octet) = rest.filter(|_| usize::from(known) < octets.len()).and_then(|label| label.parse().ok()) {
        octets[usize::from(known)] = octet;
        known += 1;
        rest = labels.next();
    }
    (Ipv4Net::new_assert(Ipv4Addr::from(octets), known * 8), known == 4 && rest.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::picture::{Attachment, Choice, Membership, Vip};

    fn network(name: &str, third: u8) -> Network {
        let endpoint = |slot: u8, serving: bool| {
            let names = ["web", "web.shop", "tasks.web"].map(str::to_owned).into_iter().chain([format!("{slot}.web")]).collect();
            let place = Place::Node(Ipv4Addr::new(10, 90, 0, 102));
            let (task_id, task, service_id) = (format!("id{slot}"), format!("web.{slot}"), "web".to_owned());
            let endpoint = Endpoint { task_id, task, place, serving, dead: false, names, service_id };
            (Ipv4Addr::new(10, 128, third, slot), endpoint)
        };
        Network {
            name: name.to_owned(),
            vni: u32::from(third) + 1,
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 128, third, 0), 24),
            internal: false,
            names: ["web", "empty"].map(str::to_owned).into(),
            endpoints: BTreeMap::from([endpoint(1, true), endpoint(2, true), endpoint(3, false)]),
            vips: BTreeMap::new(),
            policy: None,
            leaving: false,
        }
    }

    fn check(name: &str, kind: Kind, expected: &str) {
        check_in(&network("front", 0), &Attachments::new(), name, kind, expected);
    }

    fn check_in(network: &Network, attachments: &Attachments, name: &str, kind: Kind, expected: &str) {
        let sight = [Arc::new(NetworkNames::new(network, attachments))];
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
    fn a_virtual_address_is_the_one_answer_to_its_names() {
        let mut network = network("front", 0);
        let vip = |service: &str, names: &[&str]| Vip {
            service_id: service.to_owned(),
            service: service.to_owned(),
            choice: Choice::Random,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        network.vips.insert(Ipv4Addr::new(10, 128, 0, 8), vip("web", &["web", "web.shop", "www"]));
        network.vips.insert(Ipv4Addr::new(10, 128, 0, 9), vip("idle", &["idle", "www"]));
        let check = |name: &str, kind: Kind, expected: &str| check_in(&network, &Attachments::new(), name, kind, expected);
        for name in ["web", "web.shop", "web.front.internal"] {
            check(name, Kind::Address, "10.128.0.8");
        }
        check("idle", Kind::Address, "10.128.0.9");
        check("www", Kind::Address, "10.128.0.8 10.128.0.9");
        check("tasks.web", Kind::Address, "10.128.0.1 10.128.0.2");
        check("2.web", Kind::Address, "10.128.0.2");
        check("web.2", Kind::Address, "10.128.0.2");
        check("8.0.128.10.in-addr.arpa", Kind::Pointer, "web.front.internal");
        check("9.0.128.10.in-addr.arpa", Kind::Pointer, "idle.front.internal");
    }

    #[test]
    fn an_endpoint_here_is_named_while_its_pod_has_the_address() {
        let mut network = network("front", 0);
        network.endpoints.values_mut().for_each(|endpoint| endpoint.place = Place::Here);
        let attached = |slot: u8, last: u8| {
            let membership = Membership { network_id: "front".to_owned(), ip: Ipv4Addr::new(10, 128, 0, last) };
            Attachments::from([(format!("id{slot}"), Attachment { networks: vec![membership], ..Attachment::default() })])
        };
        check_in(&network, &attached(2, 2), "web", Kind::Address, "10.128.0.2");
        check_in(&network, &attached(2, 2), "2.0.128.10.in-addr.arpa", Kind::Pointer, "web.2.front.internal");
        for elsewhere in [attached(2, 9), attached(9, 2), attached(3, 3)] {
            check_in(&network, &elsewhere, "web", Kind::Address, "NoData");
            check_in(&network, &elsewhere, "2.0.128.10.in-addr.arpa", Kind::Pointer, "NoSuchName");
        }
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
    fn only_what_is_ours_is_denied_and_the_rest_is_foreign() {
        for name in ["wep", "wep.front.internal", "9.web.front.internal", "web.back.internal", "x.internal"] {
            check(name, Kind::Address, "NoSuchName");
        }
        for name in ["example.com", "com.example", "9.web", "wep.shop", "tasks.wep", "a.web.shop", "a.tasks.b"] {
            check(name, Kind::Address, "Foreign");
        }
        check("", Kind::Address, "Refused");
    }

    #[test]
    fn pods_whose_networks_are_all_internal_ask_nobody_else() {
        let front = Arc::new(NetworkNames::new(&network("front", 0), &Attachments::new()));
        let back = Arc::new(NetworkNames::new(&Network { internal: true, ..network("back", 1) }, &Attachments::new()));
        for name in ["example.com", "8.8.8.8.in-addr.arpa"] {
            assert_eq!(lookup(std::slice::from_ref(&back), name, Kind::Pointer), Answer::Refused, "{name}");
            assert_eq!(lookup(&[back.clone(), front.clone()], name, Kind::Pointer), Answer::Foreign, "{name}");
            assert_eq!(lookup(&[], name, Kind::Pointer), Answer::Refused, "{name}");
        }
    }

    #[test]
    fn a_service_that_is_called_like_a_domain_has_its_names_and_no_others() {
        let mut com = network("front", 0);
        let names = ["com", "tasks.com", "1.com"].map(str::to_owned);
        com.endpoints.values_mut().for_each(|endpoint| endpoint.names.extend(names.clone()));
        let sight = [Arc::new(NetworkNames::new(&com, &Attachments::new()))];
        for name in ["com", "tasks.com", "1.com"] {
            assert!(matches!(lookup(&sight, name, Kind::Address), Answer::Addresses(_)), "{name}");
            assert_eq!(lookup(&sight, name, Kind::Other), Answer::NoData, "{name}");
        }
        for name in ["example.com", "163.com", "www.example.com"] {
            assert_eq!(lookup(&sight, name, Kind::Address), Answer::Foreign, "{name}");
        }
    }

    #[test]
    fn addresses_of_the_subnet_lead_to_names_and_back() {
        check("1.0.128.10.in-addr.arpa", Kind::Pointer, "web.1.front.internal");
        check("web.1.front.internal", Kind::Address, "10.128.0.1");
        check("3.0.128.10.in-addr.arpa", Kind::Pointer, "NoSuchName");
        check("1.0.128.10.in-addr.arpa", Kind::Address, "NoData");
        for name in
            ["8.8.8.8.in-addr.arpa", "1.2.3.in-addr.arpa", "10.in-addr.arpa", "in-addr.arpa", "lb._dns-sd._udp.0.2.0.192.in-addr.arpa"]
        {
            check(name, Kind::Pointer, "Foreign");
        }
    }

    #[test]
    fn others_are_not_asked_about_our_addresses() {
        for name in [
            "2.9.200.10.in-addr.arpa",
            "9.200.10.in-addr.arpa",
            "0.128.10.in-addr.arpa",
            "53.53.254.169.in-addr.arpa",
            "254.169.in-addr.arpa",
        ] {
            check(name, Kind::Pointer, "Refused");
        }
        check("lb._dns-sd._udp.0.0.128.10.in-addr.arpa", Kind::Pointer, "Refused");
    }

    #[test]
    fn a_pod_on_two_networks_sees_both_and_nobody_sees_more() {
        let names = |name, third| Arc::new(NetworkNames::new(&network(name, third), &Attachments::new()));
        let both = [names("front", 0), names("back", 1)];
        let Answer::Addresses(addresses) = lookup(&both, "web", Kind::Address) else { panic!("no addresses") };
        assert_eq!(addresses.len(), 4);
        assert_eq!(lookup(&both, "1.web.back.internal", Kind::Address), Answer::Addresses(vec![Ipv4Addr::new(10, 128, 1, 1)]));
        assert_eq!(lookup(&[], "web", Kind::Address), Answer::NoSuchName);
    }
}
