//! What a question about a name is answered with.
//!
//! In: who asks (the networks of its pod), a lower-case name without its final dot, a type. Out: an `Answer`, for the most part lent from
//! the names; the order of addresses is not this module's business (the shell shuffles). Rules:
//!
//! - A name of one of the asker's networks answers with every serving endpoint that bears it, over all of them; also as
//!   `<name>.<network>.internal`, for that network alone. A name of a service's virtual address answers with that address alone, also
//!   while no endpoint serves. An endpoint on this node serves only while its pod is attached and has not left, whatever the picture
//!   says: it is gone at once, not with the next picture.
//! - Besides the names that the managers give, an endpoint has `<task id>.<service>`, and with the others of its service on the same node
//!   `<service>.<node>.node` and `<service>.<stack>.<node>.node`.
//! - `_<port>._tcp.<service>` and `_<port>._udp.<service>`, also with the stack, tell which endpoints serve at which port.
//! - `host.rcluster.internal` is the router, which answers pings and questions.
//! - A name that exists answers other types, and times without a serving endpoint, with "no data", never with "no such name":
//!   resolvers drop a name for good on that (musl, `host`). So does a name in which others end (RFC 8020).
//! - "No such name" only for what is ours to deny: single labels, names under `internal` and `node`, and ports of services that exist. Of
//!   other names of several labels those are ours that exist (`svc.stack`, `tasks.svc`, `slot.svc`, an alias with dots): a service called
//!   `com` does not make `example.com` ours.
//! - Addresses of the asker's subnets answer with the task's name, in the network's zone, which leads back to the address. Those of other
//!   networks, and of what networks' subnets are chosen from, are refused.
//! - Everything else is foreign: for others to answer, if one of the asker's networks is not internal; refused at once if all are.
//!
//! Never: another network's names, whatever the name asked for; calls foreign what would tell others of our names and addresses.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::links::RESOLVER;
use super::picture::{Attachments, Endpoint, Membership, Network, Picture, Place, Service};

/// The zone under which every network has its own.
pub const ZONE: &str = "internal";

/// The zone of what is on one node. Like `internal` it is nobody else's.
const NODE_ZONE: &str = "node";

/// What a pod calls the router of its node.
const HOST: &str = "host.rcluster.internal";
const HOST_ADDRESSES: &[Ipv4Addr] = &[RESOLVER];

/// What is asked for; types that are answered alike are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A, and ANY, which is answered with the addresses (RFC 8482).
    Address,
    /// PTR.
    Pointer,
    /// SRV.
    Port,
    Other,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    Addresses(Cow<'a, [Ipv4Addr]>),
    Pointer(&'a str),
    Ports(Vec<Target<'a>>),
    NoData,
    NoSuchName,
    /// Others are to be asked.
    Foreign,
    Refused,
}

/// Where something listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// A full name, which leads to the address.
    pub host: &'a str,
    pub ip: Ipv4Addr,
    pub port: u16,
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
    /// Which ports of which endpoints a name stands for.
    ports: BTreeMap<String, Ports>,
    /// In which names of more than one label end.
    zones: BTreeSet<String>,
    /// Full names of serving endpoints, and of services with an address of their own.
    pointers: BTreeMap<Ipv4Addr, String>,
}

/// Each of these ports of each of these endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ports {
    numbers: Vec<u16>,
    endpoints: Vec<Ipv4Addr>,
}

impl Ports {
    fn in_words(&self) -> String {
        let of_number = |number: &u16| self.endpoints.iter().map(|ip| format!("{ip}:{number}")).collect::<Vec<_>>().join(" ");
        self.numbers.iter().map(of_number).collect::<Vec<_>>().join(" ")
    }
}

/// What an asker sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sight {
    /// Of its pod, in their order.
    pub networks: Vec<Arc<NetworkNames>>,
    /// Addresses that are nobody else's business.
    pub inside: Arc<BTreeSet<Ipv4Net>>,
}

/// The domains to search, in the order of the pod's networks.
pub fn search<'a>(networks: impl Iterator<Item = &'a Network>) -> Vec<String> {
    networks.map(|network| format!("{}.{ZONE}", network.name)).collect()
}

/// Each network's names, by network id.
pub fn networks(picture: &Picture, attachments: &Attachments) -> BTreeMap<String, Arc<NetworkNames>> {
    let names = |network: &Network| Arc::new(NetworkNames::new(picture, network, attachments));
    picture.networks.iter().map(|(id, network)| (id.clone(), names(network))).collect()
}

/// What each pod here sees, by task id; `inside` are the addresses of networks, whoever holds them.
pub fn sights(
    networks: &BTreeMap<String, Arc<NetworkNames>>,
    attachments: &Attachments,
    inside: BTreeSet<Ipv4Net>,
) -> BTreeMap<String, Sight> {
    let inside = Arc::new(inside);
    let sight = |memberships: &[Membership]| Sight {
        networks: memberships.iter().filter_map(|membership| networks.get(&membership.network_id).cloned()).collect(),
        inside: inside.clone(),
    };
    attachments.iter().map(|(task, attachment)| (task.clone(), sight(&attachment.networks))).collect()
}

impl NetworkNames {
    /// The names of `network`, which is one of the picture's, while these pods are here.
    pub fn new(picture: &Picture, network: &Network, attachments: &Attachments) -> Self {
        let suffix = format!(".{}.{ZONE}", network.name);
        let mut names: BTreeMap<String, Vec<Ipv4Addr>> = network.names.iter().map(|name| (name.clone(), Vec::new())).collect();
        let mut pointers = BTreeMap::new();
        let mut by_service: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for (ip, endpoint) in &network.endpoints {
            let serving = endpoint.serving && is_there(*ip, endpoint, attachments);
            let service = picture.services.get(&endpoint.service_id);
            let scoped = service.map(|service| scoped_names(service, endpoint, picture.node_name(endpoint.place))).unwrap_or_default();
            let task = Some(&endpoint.task).filter(|task| !task.is_empty());
            for name in endpoint.names.iter().chain(task).chain(&scoped) {
                match names.get_mut(name) {
                    None => drop(names.insert(name.clone(), Vec::from_iter(serving.then_some(*ip)))),
                    // Its own name may come twice.
                    Some(addresses) if serving && addresses.last() != Some(ip) => addresses.push(*ip),
                    Some(_) => {}
                }
            }
            if serving && !endpoint.task.is_empty() {
                pointers.insert(*ip, format!("{}{suffix}", endpoint.task));
                by_service.entry(&endpoint.service_id).or_default().push(*ip);
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
        let services = picture.services.iter().filter(|(_, service)| network.names.contains(&service.name));
        let ports = named_ports(services, &by_service);
        let mut zones: BTreeSet<String> = BTreeSet::new();
        for name in names.keys().chain(ports.keys()) {
            let mut rest = name.as_str();
            while let Some((_, zone)) = rest.split_once('.') {
                if !zones.contains(zone) {
                    zones.insert(zone.to_owned());
                }
                rest = zone;
            }
        }
        Self { suffix, subnet: network.subnet, internal: network.internal, names, ports, zones, pointers }
    }

    /// `<network>.internal`.
    pub fn zone(&self) -> &str {
        self.suffix.trim_start_matches('.')
    }

    /// Every name in full with its addresses, every name of ports with where they are, and every address that has a name with that.
    pub fn answers(&self) -> impl Iterator<Item = (String, String)> {
        let name = move |(name, addresses): (&String, &Vec<Ipv4Addr>)| {
            let addresses: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
            (format!("{name}{}", self.suffix), addresses.join(" "))
        };
        let ports = move |(name, ports): (&String, &Ports)| (format!("{name}{}", self.suffix), ports.in_words());
        let pointer = |(ip, name): (&Ipv4Addr, &String)| (ip.to_string(), name.clone());
        self.names.iter().map(name).chain(self.ports.iter().map(ports)).chain(self.pointers.iter().map(pointer))
    }

    /// A name of this network without the network's zone.
    fn short<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(self.suffix.as_str())
    }

    fn find<'a, T>(&self, among: &'a BTreeMap<String, T>, name: &str) -> Option<&'a T> {
        among.get(name).or_else(|| self.short(name).and_then(|short| among.get(short)))
    }

    /// Whether names of this network end in it.
    fn is_zone(&self, name: &str) -> bool {
        self.suffix.strip_prefix('.') == Some(name)
            || self.zones.contains(name)
            || self.short(name).is_some_and(|short| self.zones.contains(short))
    }

    /// Whether it is the name of a port of something on this network, known or not.
    fn is_port(&self, name: &str) -> bool {
        let mut labels = name.splitn(3, '.');
        let underscored = |label: Option<&str>| label.is_some_and(|label| label.starts_with('_'));
        underscored(labels.next()) && underscored(labels.next()) && labels.next().is_some_and(|of| self.find(&self.names, of).is_some())
    }
}

/// An endpoint's names that follow from its service and its node.
fn scoped_names(service: &Service, endpoint: &Endpoint, node: Option<&str>) -> Vec<String> {
    let Service { name, stack, ports: _ } = service;
    let mut names = vec![format!("{}.{name}", endpoint.task_id.to_ascii_lowercase())];
    if let Some(node) = node {
        names.push(format!("{name}.{node}.{NODE_ZONE}"));
        if !stack.is_empty() {
            names.push(format!("{name}.{stack}.{node}.{NODE_ZONE}"));
        }
    }
    names
}

/// The names of services' ports (RFC 2782), with those of the serving endpoints that are theirs.
fn named_ports<'a>(
    services: impl Iterator<Item = (&'a String, &'a Service)>,
    serving: &BTreeMap<&str, Vec<Ipv4Addr>>,
) -> BTreeMap<String, Ports> {
    let mut named: BTreeMap<String, Ports> = BTreeMap::new();
    for (id, service) in services {
        let endpoints = serving.get(id.as_str()).cloned().unwrap_or_default();
        for port in &service.ports {
            let label = format!("_{}._{}", port.name, if port.udp { "udp" } else { "tcp" });
            let in_stack = (!service.stack.is_empty()).then(|| format!("{label}.{}.{}", service.name, service.stack));
            for name in [format!("{label}.{}", service.name)].into_iter().chain(in_stack) {
                let ports = named.entry(name).or_default();
                ports.numbers.push(port.target);
                ports.endpoints.clone_from(&endpoints);
            }
        }
    }
    named
}

/// Whether an endpoint that the picture calls serving does so as far as this node can tell.
pub(super) fn is_there(ip: Ipv4Addr, endpoint: &Endpoint, attachments: &Attachments) -> bool {
    match endpoint.place {
        Place::Node(_) => true,
        Place::Here => attachments.get(&endpoint.task_id).is_some_and(|pod| pod.takes(ip)),
    }
}

/// Answers `name` (lower case, no final dot) for an asker with this sight.
pub fn lookup<'a>(sight: &'a Sight, name: &str, kind: Kind) -> Answer<'a> {
    if name == "in-addr.arpa" || name.ends_with(".in-addr.arpa") {
        return lookup_address(sight, name, kind);
    }
    if name == HOST {
        return if kind == Kind::Address { Answer::Addresses(Cow::Borrowed(HOST_ADDRESSES)) } else { Answer::NoData };
    }
    let found = match kind {
        Kind::Address => addresses(sight, name).map(Answer::Addresses),
        Kind::Port => targets(sight, name).map(Answer::Ports),
        Kind::Pointer | Kind::Other => None,
    };
    if let Some(answer) = found {
        answer
    } else if exists(sight, name) {
        Answer::NoData
    } else if is_ours(sight, name) {
        Answer::NoSuchName
    } else if name.is_empty() {
        Answer::Refused
    } else {
        foreign(sight)
    }
}

/// Whether questions of an asker with this sight may go to other resolvers.
pub fn may_ask_others(sight: &Sight) -> bool {
    sight.networks.iter().any(|network| !network.internal)
}

fn foreign(sight: &Sight) -> Answer<'_> {
    if may_ask_others(sight) { Answer::Foreign } else { Answer::Refused }
}

/// The addresses of a name, if it has any now.
fn addresses<'a>(sight: &'a Sight, name: &str) -> Option<Cow<'a, [Ipv4Addr]>> {
    let mut found = sight.networks.iter().filter_map(|network| network.find(&network.names, name)).filter(|found| !found.is_empty());
    let first = found.next()?;
    match found.next() {
        None => Some(Cow::Borrowed(first.as_slice())),
        Some(second) => {
            let all: BTreeSet<Ipv4Addr> = [first, second].into_iter().chain(found).flatten().copied().collect();
            Some(Cow::Owned(all.into_iter().collect()))
        }
    }
}

/// Where what a name stands for listens, if anything does now.
fn targets<'a>(sight: &'a Sight, name: &str) -> Option<Vec<Target<'a>>> {
    let mut targets = Vec::new();
    for network in &sight.networks {
        let Some(ports) = network.find(&network.ports, name) else { continue };
        for port in &ports.numbers {
            targets.extend(ports.endpoints.iter().filter_map(|ip| {
                let host = network.pointers.get(ip)?;
                Some(Target { host, ip: *ip, port: *port })
            }));
        }
    }
    (!targets.is_empty()).then_some(targets)
}

/// Whether it is a name, be it with or without anything to answer, or others end in it.
fn exists(sight: &Sight, name: &str) -> bool {
    name == ZONE
        || HOST.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
        || sight.networks.iter().any(|network| {
            network.find(&network.names, name).is_some() || network.find(&network.ports, name).is_some() || network.is_zone(name)
        })
}

/// Whether a name is ours to deny.
fn is_ours(sight: &Sight, name: &str) -> bool {
    match name.rsplit_once('.') {
        None => !name.is_empty(),
        Some((_, last)) => last == ZONE || last == NODE_ZONE || sight.networks.iter().any(|network| network.is_port(name)),
    }
}

fn lookup_address<'a>(sight: &'a Sight, name: &str, kind: Kind) -> Answer<'a> {
    let (range, is_whole) = reversed(name);
    let Some(network) = sight.networks.iter().find(|network| network.subnet.contains(&range)) else {
        let is_inside = sight.inside.iter().any(|inside| inside.contains(&range));
        return if is_inside { Answer::Refused } else { foreign(sight) };
    };
    match (network.pointers.get(&range.addr()), kind) {
        _ if !is_whole => Answer::Refused,
        (Some(target), Kind::Pointer) => Answer::Pointer(target),
        (Some(_), Kind::Address | Kind::Port | Kind::Other) => Answer::NoData,
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
    use crate::core::picture::{Attachment, Choice, NamedPort, Vip};
    use crate::core::uplink::inside;

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
        assert_eq!(in_words(&lookup(&sight(std::slice::from_ref(network), attachments), name, kind)), expected, "{name} {kind:?}");
    }

    /// Of a pod that is on all of these.
    fn sight(networks: &[Network], attachments: &Attachments) -> Sight {
        let picture = picture(networks);
        let networks = networks.iter().map(|network| Arc::new(NetworkNames::new(&picture, network, attachments)));
        Sight { networks: networks.collect(), inside: Arc::new(inside(&picture)) }
    }

    /// In which the service `web` of the stack `shop` has two ports with names, and nodes are called `n1` (this one) and `n2`.
    fn picture(networks: &[Network]) -> Picture {
        let port = |name: &str, udp: bool, target: u16| NamedPort { name: name.to_owned(), udp, target };
        let ports = vec![port("http", false, 80), port("http", false, 8080), port("dns", true, 53)];
        let web = Service { name: "web".to_owned(), stack: "shop".to_owned(), ports };
        Picture {
            networks: networks.iter().map(|network| (network.name.clone(), network.clone())).collect(),
            services: BTreeMap::from([("web".to_owned(), web)]),
            node: "n1".to_owned(),
            node_names: BTreeMap::from([(Ipv4Addr::new(10, 90, 0, 102), "n2".to_owned())]),
            ..Picture::default()
        }
    }

    fn in_words(answer: &Answer<'_>) -> String {
        match answer {
            Answer::Addresses(addresses) => addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(" "),
            Answer::Pointer(target) => (*target).to_owned(),
            Answer::Ports(targets) => {
                targets.iter().map(|Target { host, ip, port }| format!("{host}:{port}={ip}")).collect::<Vec<_>>().join(" ")
            }
            other @ (Answer::NoData | Answer::NoSuchName | Answer::Foreign | Answer::Refused) => format!("{other:?}"),
        }
    }

    #[test]
    fn an_endpoint_has_names_by_its_id_and_its_node() {
        for (name, expected) in [
            ("web.n2.node", "10.128.0.1 10.128.0.2"),
            ("web.shop.n2.node", "10.128.0.1 10.128.0.2"),
            ("web.n2.node.front.internal", "10.128.0.1 10.128.0.2"),
            ("id2.web", "10.128.0.2"),
            ("id3.web", "NoData"),
            ("web.n1.node", "NoSuchName"),
            ("db.n2.node", "NoSuchName"),
            ("n2.node", "NoData"),
            ("shop.n2.node", "NoData"),
            ("node", "NoData"),
            ("n9.node", "NoSuchName"),
        ] {
            check(name, Kind::Address, expected);
        }
        let mut mixed = network("front", 0);
        mixed.endpoints.get_mut(&Ipv4Addr::new(10, 128, 0, 2)).unwrap().place = Place::Here;
        let membership = Membership { network_id: "front".to_owned(), ip: Ipv4Addr::new(10, 128, 0, 2) };
        let here = Attachments::from([("id2".to_owned(), Attachment { networks: vec![membership], ..Attachment::default() })]);
        check_in(&mixed, &here, "web.n1.node", Kind::Address, "10.128.0.2");
        check_in(&mixed, &here, "web.n2.node", Kind::Address, "10.128.0.1");
        check_in(&mixed, &Attachments::new(), "web.n1.node", Kind::Address, "NoData");
    }

    #[test]
    fn ports_with_names_lead_to_the_endpoints_that_serve() {
        let dns = "web.1.front.internal:53=10.128.0.1 web.2.front.internal:53=10.128.0.2";
        for name in ["_dns._udp.web", "_dns._udp.web.shop", "_dns._udp.web.front.internal", "_dns._udp.web.shop.front.internal"] {
            check(name, Kind::Port, dns);
            check(name, Kind::Address, "NoData");
        }
        check(
            "_http._tcp.web",
            Kind::Port,
            "web.1.front.internal:80=10.128.0.1 web.2.front.internal:80=10.128.0.2 \
             web.1.front.internal:8080=10.128.0.1 web.2.front.internal:8080=10.128.0.2",
        );
        for zone in ["_tcp.web", "_udp.web.shop", "web"] {
            check(zone, Kind::Port, "NoData");
        }
        for name in ["_http._udp.web", "_x._tcp.web.shop", "_dns._udp.web.back.internal"] {
            check(name, Kind::Port, "NoSuchName");
        }
        for name in ["_http._tcp.example.com", "_http._tcp.wep", "_http.web.x"] {
            check(name, Kind::Port, "Foreign");
        }
        let mut idle = network("front", 0);
        idle.endpoints.values_mut().for_each(|endpoint| endpoint.serving = false);
        check_in(&idle, &Attachments::new(), "_dns._udp.web", Kind::Port, "NoData");
    }

    #[test]
    fn the_router_has_a_name() {
        check("host.rcluster.internal", Kind::Address, "169.254.53.53");
        check("host.rcluster.internal", Kind::Other, "NoData");
        check("rcluster.internal", Kind::Address, "NoData");
        check("other.rcluster.internal", Kind::Address, "NoSuchName");
        check("cluster.internal", Kind::Address, "NoSuchName");
    }

    #[test]
    fn what_is_inside_is_said_by_the_picture() {
        let network = network("front", 0);
        let refused = |pools: &[&str]| {
            let mut picture = picture(std::slice::from_ref(&network));
            picture.pools = pools.iter().map(|pool| pool.parse().unwrap()).collect();
            let names = Arc::new(NetworkNames::new(&picture, &network, &Attachments::new()));
            let sight = Sight { networks: vec![names], inside: Arc::new(inside(&picture)) };
            let asked = ["9.9.200.10.in-addr.arpa", "9.9.20.172.in-addr.arpa", "20.172.in-addr.arpa", "172.in-addr.arpa"];
            asked.map(|name| lookup(&sight, name, Kind::Pointer) == Answer::Refused)
        };
        assert_eq!(refused(&[]), [true, false, false, false]);
        assert_eq!(refused(&["172.20.0.0/16"]), [false, true, true, false]);
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
        let (front, back) = (network("front", 0), Network { internal: true, ..network("back", 1) });
        let of = |networks: &[Network]| sight(networks, &Attachments::new());
        for name in ["example.com", "8.8.8.8.in-addr.arpa"] {
            assert_eq!(lookup(&of(std::slice::from_ref(&back)), name, Kind::Pointer), Answer::Refused, "{name}");
            assert_eq!(lookup(&of(&[back.clone(), front.clone()]), name, Kind::Pointer), Answer::Foreign, "{name}");
            assert_eq!(lookup(&of(&[]), name, Kind::Pointer), Answer::Refused, "{name}");
        }
    }

    #[test]
    fn a_service_that_is_called_like_a_domain_has_its_names_and_no_others() {
        let mut com = network("front", 0);
        let names = ["com", "tasks.com", "1.com"].map(str::to_owned);
        com.endpoints.values_mut().for_each(|endpoint| endpoint.names.extend(names.clone()));
        let sight = sight(&[com], &Attachments::new());
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
        let both = sight(&[network("front", 0), network("back", 1)], &Attachments::new());
        let Answer::Addresses(addresses) = lookup(&both, "web", Kind::Address) else { panic!("no addresses") };
        assert_eq!(addresses.len(), 4);
        assert_eq!(lookup(&both, "1.web.back.internal", Kind::Address), Answer::Addresses(Cow::Owned(vec![Ipv4Addr::new(10, 128, 1, 1)])));
        assert_eq!(lookup(&Sight::default(), "web", Kind::Address), Answer::NoSuchName);
    }
}
