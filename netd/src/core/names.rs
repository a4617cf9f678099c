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
//! - On a network with IPv6 a name that has addresses has those of IPv6 too that follow from them.
//! - Addresses of the asker's subnets answer with the task's name, in the network's zone, which leads back to the address. Those of other
//!   networks, and of what networks' subnets are chosen from, are refused.
//! - Everything else is foreign: for others to answer, if one of the asker's networks is not internal; refused at once if all are.
//!
//! Never: another network's names, whatever the name asked for; calls foreign what would tell others of our names and addresses.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::{Ipv4Net, Ipv6Net};
use rcluster_api::network::{address4, address6};

use super::links::RESOLVER;
use super::picture::{Attachments, Endpoint, Membership, Network, Picture, Place, Service};
use super::uplink::range6;
use table::{Names, Pointers};

mod table;

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
    /// AAAA.
    Address6,
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
    Addresses6(Vec<Ipv6Addr>),
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
    /// In which every address is once more.
    subnet6: Option<Ipv6Net>,
    /// No way out for its pods, and no questions either.
    internal: bool,
    names: Names,
    /// Which ports of which endpoints a name stands for.
    ports: BTreeMap<String, Ports>,
    /// In which names of more than one label end.
    zones: BTreeSet<String>,
    /// Full names of serving endpoints, and of services with an address of their own.
    pointers: Pointers,
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
            let service = picture.services.get(endpoint.service_id.as_str());
            let scoped = service.map(|service| scoped_names(service, endpoint, picture.node_name(endpoint.place))).unwrap_or_default();
            let task = Some(&endpoint.task).filter(|task| !task.is_empty());
            for name in endpoint.names.iter().chain(task).map(CompactString::as_str).chain(scoped.iter().map(String::as_str)) {
                match names.get_mut(name) {
                    None => drop(names.insert(name.to_owned(), Vec::from_iter(serving.then_some(*ip)))),
                    // Its own name may come twice.
                    Some(addresses) if serving && addresses.last() != Some(ip) => addresses.push(*ip),
                    Some(_) => {}
                }
            }
            if serving && !endpoint.task.is_empty() {
                pointers.insert(*ip, format!("{}{suffix}", endpoint.task));
                by_service.entry(endpoint.service_id.as_str()).or_default().push(*ip);
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
        Self {
            suffix,
            subnet: network.subnet,
            subnet6: network.subnet6,
            internal: network.internal,
            names: Names::new(&names),
            ports,
            zones,
            pointers: Pointers::new(&pointers),
        }
    }

    /// `<network>.internal`.
    pub fn zone(&self) -> &str {
        self.suffix.trim_start_matches('.')
    }

    /// Every name in full with its addresses, every name of ports with where they are, and every address that has a name with that.
    pub fn answers(&self) -> impl Iterator<Item = (String, String)> {
        let name = move |(name, addresses): (&str, &[Ipv4Addr])| {
            let addresses: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
            (format!("{name}{}", self.suffix), addresses.join(" "))
        };
        let ports = move |(name, ports): (&String, &Ports)| (format!("{name}{}", self.suffix), ports.in_words());
        let pointer = |(ip, name): (Ipv4Addr, &str)| (ip.to_string(), name.to_owned());
        let six = self.subnet6.map(|subnet6| (format!("IPv6 of {}", self.zone()), subnet6.to_string()));
        self.names.iter().map(name).chain(self.ports.iter().map(ports)).chain(self.pointers.iter().map(pointer)).chain(six)
    }

    /// A name of this network without the network's zone.
    fn short<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(self.suffix.as_str())
    }

    /// The addresses of one of its names, with or without its zone.
    fn addresses(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.names.get(name).or_else(|| self.short(name).and_then(|short| self.names.get(short)))
    }

    /// The same of names of ports.
    fn listeners(&self, name: &str) -> Option<&Ports> {
        self.ports.get(name).or_else(|| self.short(name).and_then(|short| self.ports.get(short)))
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
        underscored(labels.next()) && underscored(labels.next()) && labels.next().is_some_and(|of| self.addresses(of).is_some())
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
        Place::Here => attachments.get(endpoint.task_id.as_str()).is_some_and(|pod| pod.takes(ip)),
    }
}

/// Answers `name` (lower case, no final dot) for an asker with this sight.
pub fn lookup<'a>(sight: &'a Sight, name: &str, kind: Kind) -> Answer<'a> {
    if name == "in-addr.arpa" || name.ends_with(".in-addr.arpa") {
        return lookup_address(sight, name, kind);
    }
    if name == "ip6.arpa" || name.ends_with(".ip6.arpa") {
        return lookup_address6(sight, name, kind);
    }
    if name == HOST {
        return if kind == Kind::Address { Answer::Addresses(Cow::Borrowed(HOST_ADDRESSES)) } else { Answer::NoData };
    }
    let found = match kind {
        Kind::Address => addresses(sight, name).map(Answer::Addresses),
        Kind::Address6 => addresses6(sight, name).map(Answer::Addresses6),
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
    let mut found = sight.networks.iter().filter_map(|network| network.addresses(name)).filter(|found| !found.is_empty());
    let first = found.next()?;
    match found.next() {
        None => Some(Cow::Borrowed(first)),
        Some(second) => {
            let all: BTreeSet<Ipv4Addr> = [first, second].into_iter().chain(found).flatten().copied().collect();
            Some(Cow::Owned(all.into_iter().collect()))
        }
    }
}

/// The IPv6 addresses of a name, if it has any now.
fn addresses6(sight: &Sight, name: &str) -> Option<Vec<Ipv6Addr>> {
    let mut found = BTreeSet::new();
    for network in &sight.networks {
        let Some(subnet6) = network.subnet6 else { continue };
        found.extend(network.addresses(name).into_iter().flatten().map(|ip| address6(subnet6, *ip)));
    }
    (!found.is_empty()).then(|| found.into_iter().collect())
}

/// Where what a name stands for listens, if anything does now.
fn targets<'a>(sight: &'a Sight, name: &str) -> Option<Vec<Target<'a>>> {
    let mut targets = Vec::new();
    for network in &sight.networks {
        let Some(ports) = network.listeners(name) else { continue };
        for port in &ports.numbers {
            targets.extend(ports.endpoints.iter().filter_map(|ip| {
                let host = network.pointers.get(*ip)?;
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
        || sight
            .networks
            .iter()
            .any(|network| network.addresses(name).is_some() || network.listeners(name).is_some() || network.is_zone(name))
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
    match (network.pointers.get(range.addr()), kind) {
        _ if !is_whole => Answer::Refused,
        (Some(target), Kind::Pointer) => Answer::Pointer(target),
        (Some(_), Kind::Address | Kind::Address6 | Kind::Port | Kind::Other) => Answer::NoData,
        (None, _) => Answer::NoSuchName,
    }
}

fn lookup_address6<'a>(sight: &'a Sight, name: &str, kind: Kind) -> Answer<'a> {
    let (range, is_whole) = reversed6(name);
    let holds = |subnet6: &Ipv6Net| subnet6.contains(&range);
    let Some(network) = sight.networks.iter().find(|network| network.subnet6.as_ref().is_some_and(holds)) else {
        // Of what the asker's networks' prefixes are chosen from, others are not asked.
        let mut own = sight.networks.iter().filter_map(|network| network.subnet6.and_then(range6));
        return if own.any(|own| own.contains(&range)) { Answer::Refused } else { foreign(sight) };
    };
    let ip = network.subnet6.and_then(|subnet6| address4(subnet6, range.addr()));
    match (ip.and_then(|ip| network.pointers.get(ip)), kind) {
        _ if !is_whole => Answer::Refused,
        (Some(target), Kind::Pointer) => Answer::Pointer(target),
        (Some(_), Kind::Address | Kind::Address6 | Kind::Port | Kind::Other) => Answer::NoData,
        (None, _) => Answer::NoSuchName,
    }
}

/// The same for a name under `ip6.arpa`, which has a label for every four bits.
fn reversed6(name: &str) -> (Ipv6Net, bool) {
    const DIGITS: u8 = 32;
    let (mut bits, mut known) = (0_u128, 0_u8);
    let mut labels = name.strip_suffix("ip6.arpa").unwrap_or_default().rsplit('.').filter(|label| !label.is_empty());
    let mut rest = labels.next();
    let digit = |label: &str| u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1);
    while let Some(digit) = rest.filter(|_| known < DIGITS).and_then(digit) {
        known += 1;
        bits |= digit << (128 - 4 * u32::from(known));
        rest = labels.next();
    }
    (Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), known * 4), known == DIGITS && rest.is_none())
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
#[path = "names_tests.rs"]
mod tests;
