//! A network's policy: who may speak with whom there, and who may come to it by published ports.
//!
//! In: the wire's `NetworkPolicyView`, and a network's endpoints with their services. Out: what may pass, as boxes of addresses, protocols and
//! ports. A policy only ever allows, so what cannot be read of it is left out and named: less passes then, never more.
//!
//! Protocols and ports are one row of numbers here, the protocol before the port, so that sets of them are spans that can be joined and cut.
//! Everyone on a network is its subnet: a box, however many they are. What everyone may is not said again for someone, for the kernel takes
//! no two boxes of which one holds a corner of the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rcluster_api::wire::v1;
use serde::{Deserialize, Serialize};

use super::flows::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use super::picture::Network;

/// Boxes of one network; of more nothing passes. Enough for what managers let a policy be while all of its services are updated at once,
/// so that each has twice its tasks.
const BOXES_MAX: usize = 1 << 15;

/// All ports of all protocols.
const EVERYTHING: Span = Span { first: 0, last: 0x00ff_ffff };

/// Who may speak with whom; whom nothing here allows may not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    pub allow: Vec<Allowance>,
}

/// One allowance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allowance {
    pub from: Side,
    /// Who comes by a published port.
    pub from_ranges: BTreeSet<Ipv4Net>,
    #[serde(default)]
    pub from_ranges6: BTreeSet<Ipv6Net>,
    pub to: Side,
    /// Joined, in order.
    pub spans: Vec<Span>,
}

/// Whom of a network an allowance means.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Side {
    pub all: bool,
    /// Their ids.
    pub services: BTreeSet<String>,
}

/// Ports in a row, each with its protocol before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    pub first: u32,
    pub last: u32,
}

/// Protocols and ports, each from a first to a last.
type Row = ((u8, u8), (u16, u16));

/// What may pass: a connection all of whose parts are within these, each with its first and its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Passage {
    pub from: (Ipv4Addr, Ipv4Addr),
    pub to: (Ipv4Addr, Ipv4Addr),
    pub protocols: (u8, u8),
    pub ports: (u16, u16),
}

/// Who may come by a published port of IPv6, and to what; each span from a first one to a last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission6 {
    pub from: (Ipv6Addr, Ipv6Addr),
    pub protocols: (u8, u8),
    pub ports: (u16, u16),
}

impl Policy {
    /// Reads the wire's policy of the network called `name`.
    pub fn parse(wire: &v1::NetworkPolicyView, name: &str, problems: &mut Vec<String>) -> Self {
        let mut allow = Vec::new();
        for (index, wire) in wire.allow.iter().enumerate() {
            match Allowance::parse(wire) {
                Ok(allowance) => allow.push(allowance),
                Err(why) => problems.push(format!("what policy.allow[{index}] of network {name} allows is refused: {why}")),
            }
        }
        Self { allow }
    }
}

impl Allowance {
    fn parse(wire: &v1::AllowView) -> Result<Self, String> {
        let side = |all: bool, services: &[String]| Side { all, services: services.iter().cloned().collect() };
        let (mut from_ranges, mut from_ranges6) = (BTreeSet::new(), BTreeSet::new());
        for text in &wire.from_cidrs {
            match text.parse::<IpNet>() {
                Ok(IpNet::V4(net)) => {
                    from_ranges.insert(net.trunc());
                }
                Ok(IpNet::V6(net)) => {
                    from_ranges6.insert(net.trunc());
                }
                Err(_) => return Err(format!("{text:?} is no CIDR")),
            }
        }
        let spans = wire.ports.iter().map(Span::parse).collect::<Result<Vec<Span>, String>>()?;
        let spans = if spans.is_empty() { vec![EVERYTHING] } else { joined(spans) };
        let (from, to) = (side(wire.from_all, &wire.from_service_ids), side(wire.to_all, &wire.to_service_ids));
        Ok(Self { from, from_ranges, from_ranges6, to, spans })
    }
}

impl Span {
    fn parse(wire: &v1::PolicyPort) -> Result<Self, String> {
        let protocol = match wire.protocol() {
            v1::Protocol::Tcp => PROTOCOL_TCP,
            v1::Protocol::Udp => PROTOCOL_UDP,
            v1::Protocol::Unspecified => return Err("its ports have no protocol".to_owned()),
        };
        match (u16::try_from(wire.first), u16::try_from(wire.last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self::of(protocol, first, last)),
            _ => Err(format!("{}-{} are no ports", wire.first, wire.last)),
        }
    }

    fn of(protocol: u8, first: u16, last: u16) -> Self {
        let number = |port: u16| u32::from(protocol) << 16 | u32::from(port);
        Self { first: number(first), last: number(last) }
    }

    /// As boxes of protocols and ports: at most the rest of the first protocol, whole ones, and the beginning of the last.
    fn boxes(self) -> Vec<Row> {
        let parts = |number: u32| {
            let [_, protocol, high, low] = number.to_be_bytes();
            (protocol, u16::from_be_bytes([high, low]))
        };
        let mut boxes = Vec::new();
        let (mut first, last) = (self.first, self.last.min(EVERYTHING.last));
        while first <= last {
            let ((protocol, port), (last_protocol, last_port)) = (parts(first), parts(last));
            let until = if protocol == last_protocol {
                boxes.push(((protocol, protocol), (port, last_port)));
                last
            } else if port == 0 {
                let last_whole = if last_port == u16::MAX { last_protocol } else { last_protocol - 1 };
                boxes.push(((protocol, last_whole), (0, u16::MAX)));
                Self::of(last_whole, 0, u16::MAX).last
            } else {
                boxes.push(((protocol, protocol), (port, u16::MAX)));
                Self::of(protocol, 0, u16::MAX).last
            };
            first = until + 1;
        }
        boxes
    }
}

impl Passage {
    /// The protocols of IPv6 that it means: ICMPv6 has the place of ICMP there, and the other way round, so that no two passages that share
    /// nothing share something there.
    pub fn protocols6(&self) -> Vec<(u8, u8)> {
        let (first, last) = self.protocols;
        let around = |hole: u8, other: u8| {
            let mut parts = vec![(other, other)];
            parts.extend((first < hole).then(|| (first, hole - 1)));
            parts.extend((hole < last).then(|| (hole + 1, last)));
            parts
        };
        let holds = |number: u8| (first..=last).contains(&number);
        match (holds(PROTOCOL_ICMP), holds(PROTOCOL_ICMPV6)) {
            (true, true) | (false, false) => vec![(first, last)],
            (true, false) => around(PROTOCOL_ICMP, PROTOCOL_ICMPV6),
            (false, true) => around(PROTOCOL_ICMPV6, PROTOCOL_ICMP),
        }
    }
}

/// The same numbers in as few spans as they take, in order.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(before) if span.first <= before.last.saturating_add(1) => before.last = before.last.max(span.last),
            _ => joined.push(span),
        }
    }
    joined
}

/// What is in `spans` and in none of `others`, both joined.
fn without(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let mut rest = Vec::new();
    for span in spans {
        let mut first = span.first;
        for other in others.iter().filter(|other| other.last >= span.first && other.first <= span.last) {
            if first < other.first {
                rest.push(Span { first, last: other.first - 1 });
            }
            first = first.max(other.last + 1);
        }
        if first <= span.last {
            rest.push(Span { first, last: span.last });
        }
    }
    rest
}

/// One of a network, or everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    All,
    One(Ipv4Addr),
}

/// What may pass between those on the network, if it has a policy; an error says how many boxes that would be.
pub fn passages(network: &Network) -> Result<Vec<Passage>, usize> {
    let Some(policy) = &network.policy else { return Ok(Vec::new()) };
    let mut allowed: BTreeMap<(Who, Who), Vec<Span>> = BTreeMap::new();
    let mut pairs = 0;
    for Allowance { from, from_ranges: _, from_ranges6: _, to, spans } in &policy.allow {
        let (sources, targets) = (meant(network, from), meant(network, to));
        pairs += sources.len() * targets.len();
        if pairs > BOXES_MAX {
            return Err(pairs);
        }
        for source in &sources {
            for target in &targets {
                allowed.entry((*source, *target)).or_default().extend(spans);
            }
        }
    }
    for spans in allowed.values_mut() {
        // Who may speak at all may also ping, and be told what ICMP tells.
        spans.push(Span::of(PROTOCOL_ICMP, 0, u16::MAX));
        *spans = joined(std::mem::take(spans));
    }
    let mut passages = Vec::new();
    let addresses = |who: Who| match who {
        Who::All => (network.subnet.network(), network.subnet.broadcast()),
        Who::One(ip) => (ip, ip),
    };
    for ((source, target), spans) in &allowed {
        let wider = [(Who::All, Who::All), (Who::All, *target), (*source, Who::All)];
        let wider = wider.iter().filter(|pair| **pair != (*source, *target)).filter_map(|pair| allowed.get(pair)).flatten().copied();
        for span in without(spans, &joined(wider.collect())) {
            let (from, to) = (addresses(*source), addresses(*target));
            passages.extend(span.boxes().into_iter().map(|(protocols, ports)| Passage { from, to, protocols, ports }));
        }
    }
    if passages.len() > BOXES_MAX { Err(passages.len()) } else { Ok(passages) }
}

/// Everyone alone, if everyone is meant.
fn meant(network: &Network, side: &Side) -> Vec<Who> {
    if side.all {
        return vec![Who::All];
    }
    let of_side = network.endpoints.iter().filter(|(_, endpoint)| side.services.contains(endpoint.service_id.as_str()));
    of_side.map(|(ip, _)| Who::One(*ip)).collect()
}

/// What may come to this address of the network by published ports, if the network has a policy.
pub fn admissions(network: &Network, ip: Ipv4Addr) -> Vec<Passage> {
    let Some(policy) = &network.policy else { return Vec::new() };
    let to_it = allowances_to(network, policy, ip);
    let four = |allowance: &Allowance| -> Vec<Numbers> {
        let number = |ip: Ipv4Addr| u128::from(u32::from(ip));
        let ends = |range: &Ipv4Net| (number(range.network()), number(range.broadcast()));
        allowance.from_ranges.iter().map(ends).collect()
    };
    let address = |number: u128| u32::try_from(number).map_or(Ipv4Addr::BROADCAST, Ipv4Addr::from);
    let mut passages = Vec::new();
    for ((first, last), spans) in sources(&to_it, four) {
        let from = (address(first), address(last));
        let boxes = spans.into_iter().flat_map(Span::boxes);
        passages.extend(boxes.map(|(protocols, ports)| Passage { from, to: (ip, ip), protocols, ports }));
    }
    passages
}

/// The same of IPv6 to who has this address.
pub fn admissions6(network: &Network, ip: Ipv4Addr) -> Vec<Admission6> {
    let Some(policy) = &network.policy else { return Vec::new() };
    let six = |allowance: &Allowance| -> Vec<Numbers> {
        let ends = |range: &Ipv6Net| (u128::from(range.network()), u128::from(range.broadcast()));
        allowance.from_ranges6.iter().map(ends).collect()
    };
    let mut admissions = Vec::new();
    for ((first, last), spans) in sources(&allowances_to(network, policy, ip), six) {
        let from = (Ipv6Addr::from(first), Ipv6Addr::from(last));
        admissions.extend(spans.into_iter().flat_map(Span::boxes).map(|(protocols, ports)| Admission6 { from, protocols, ports }));
    }
    admissions
}

/// What a policy allows to who has this address.
fn allowances_to<'a>(network: &Network, policy: &'a Policy, ip: Ipv4Addr) -> Vec<&'a Allowance> {
    let service = network.endpoints.get(&ip).map(|endpoint| endpoint.service_id.as_str()).unwrap_or_default();
    policy.allow.iter().filter(|allowance| allowance.to.all || allowance.to.services.contains(service)).collect()
}

/// Addresses as numbers, from a first one to a last one.
type Numbers = (u128, u128);

/// Who may come by what, told apart where ranges overlap; `ranges` are those of an allowance.
fn sources(allowances: &[&Allowance], ranges: impl Fn(&Allowance) -> Vec<Numbers>) -> Vec<(Numbers, Vec<Span>)> {
    let known: Vec<(Vec<Numbers>, &Allowance)> = allowances.iter().map(|allowance| (ranges(allowance), *allowance)).collect();
    // Between two of these all addresses are in the same ranges.
    let edges = known.iter().flat_map(|(ranges, _)| ranges).flat_map(|(first, last)| [Some(*first), last.checked_add(1)]);
    let edges: Vec<u128> = edges.flatten().collect::<BTreeSet<u128>>().into_iter().collect();
    let mut sources: Vec<(Numbers, Vec<Span>)> = Vec::new();
    for (place, first) in edges.iter().copied().enumerate() {
        let last = edges.get(place + 1).map_or(u128::MAX, |next| next - 1);
        let holds = |ranges: &[Numbers]| ranges.iter().any(|(from, until)| *from <= first && first <= *until);
        let holding = known.iter().filter(|(ranges, _)| holds(ranges));
        let spans = joined(holding.flat_map(|(_, allowance)| &allowance.spans).copied().collect());
        match sources.last_mut() {
            _ if spans.is_empty() => {}
            Some(((_, before), same)) if *same == spans && *before + 1 == first => *before = last,
            _ => sources.push(((first, last), spans)),
        }
    }
    sources
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
