//! Published ports: which backend a connection goes to, how it gets to another node's, and how its replies come back.
//!
//! ```text
//! ports    protocol . port → chain             by how many slots the port's backends are found
//! behind   protocol . port . slot → backend    its address and its port
//! guarded  protocol . port                     not everyone may connect
//! allowed  protocol . port . clients           but these
//! homes    backend → mark                      of its node, if that is another one
//! peers    hardware address → mark             of the node whose device has it
//! zones    hardware address → zone             of connection tracking, of the same node
//! served   backend . protocol . port           what other nodes may send on to here
//! outward  VNI                                 of networks whose pods may use nodes' ports
//! …6       the same of IPv6                    of ports behind which tasks have it; pods do not use nodes' ports by it
//! ```
//!
//! In: a picture's published ports, the nodes' numbers, the pods here. Out: elements. The node that a connection comes to, or that a pod is on
//! which connects to a node's address, chooses. The connection keeps the mark of its backend's node there, so that it goes on when the port is
//! published no more; on the backend's node it has that of the node it came by, so that replies go back that way. Never: changes a client's
//! address; but that of a pod which comes back to itself (`balance`). One client may come by two nodes from one port: what comes by each node is
//! tracked in a zone of its own, on the way there, and where both come to one pod the kernel gives the later one another port.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::balance::{BACKENDS_MAX, numbers_of_slots, refuse, slots};
use super::egress::{ENTRIES, entry};
use super::elements::{Element, Elements, Field, Key, SetName, Value, encode};
use super::expressions::{
    Conntrack, End, Expression, FIRST, Family, Header, Meta, Register, Verdict, accept, accept_unmarked, bits, destination_address,
    destination_address6, device, drop, equals, family, input_begins, of_connection, source_address, source_address6, source_in, to_one_of,
    to_port, unmark,
};
use super::{Chain, Data, Filling, Rule, Set};
use crate::core::ingress::{self, INGRESS, MARK, MARK_BITS};
use crate::core::links::{Underlay, vtep_mac};
use crate::core::picture::{Attachments, Picture, Place};
use crate::core::published::{Opening, Published};
use crate::core::uplink::{ROUTER_IP, ROUTER_IP6, UPLINK};

pub static PORTS: Set = Set { name: "ports", key: &[Field::Protocol, Field::Port], data: Data::Verdict, filling: Filling::Keys };

pub static BEHIND: Set = Set {
    name: "behind",
    key: &[Field::Protocol, Field::Port, Field::Number],
    data: Data::Fields(&[Field::Address, Field::Port]),
    filling: Filling::Keys,
};

pub static PORTS6: Set = Set { name: "ports6", key: &[Field::Protocol, Field::Port], data: Data::Verdict, filling: Filling::Keys };

pub static BEHIND6: Set = Set {
    name: "behind6",
    key: &[Field::Protocol, Field::Port, Field::Number],
    data: Data::Fields(&[Field::Address6, Field::Port]),
    filling: Filling::Keys,
};

pub static ALLOWED6: Set =
    Set { name: "allowed6", key: &[Field::Protocol, Field::Port, Field::Address6], data: Data::None, filling: Filling::Intervals };

pub static HOMES6: Set = Set { name: "homes6", key: &[Field::Address6], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

pub static SERVED6: Set =
    Set { name: "served6", key: &[Field::Address6, Field::Protocol, Field::Port], data: Data::None, filling: Filling::Keys };

pub static GUARDED: Set = Set { name: "guarded", key: &[Field::Protocol, Field::Port], data: Data::None, filling: Filling::Keys };

pub static ALLOWED: Set =
    Set { name: "allowed", key: &[Field::Protocol, Field::Port, Field::Address], data: Data::None, filling: Filling::Intervals };

pub static HOMES: Set = Set { name: "homes", key: &[Field::Address], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

pub static PEERS: Set = Set { name: "peers", key: &[Field::HardwareAddress], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

pub static ZONES: Set = Set { name: "zones", key: &[Field::HardwareAddress], data: Data::Fields(&[Field::Zone]), filling: Filling::Keys };

pub static SERVED: Set =
    Set { name: "served", key: &[Field::Address, Field::Protocol, Field::Port], data: Data::None, filling: Filling::Keys };

pub static OUTWARD: Set = Set { name: "outward", key: &[Field::Mark], data: Data::None, filling: Filling::Keys };

/// A connection's first packet, until it is answered (`NF_CT_STATE_BIT`).
const STATE_NEW: u32 = 8;

/// Its destination was translated (`IPS_DST_NAT`).
const STATUS_TRANSLATED: u32 = 0x20;

/// Directions of packets (`IP_CT_DIR_*`).
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;

/// Published ports of which not every backend can be used.
pub fn left_out(picture: &Picture, attachments: &Attachments) -> Vec<String> {
    let mut problems = Vec::new();
    for published in &picture.published {
        let count = published.chosen(picture, attachments).len();
        if count > BACKENDS_MAX {
            problems.push(format!(
                "service {} has {count} tasks behind {}; {BACKENDS_MAX} of them are used",
                published.service,
                published.in_words()
            ));
        }
    }
    problems
}

/// Who takes connections to which port, and who may connect.
pub fn elements(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Elements {
    if picture.number == 0 {
        return Elements::new();
    }
    let mut elements = vec![entry(ROUTER_IP)];
    let open = picture.networks.values().filter(|network| !network.internal);
    elements.extend(open.map(|network| Element::new(SetName::Outward, &[Value::Mark(network.vni)], &[])));
    let peer =
        |(node, number)| Element::new(SetName::Peers, &[Value::HardwareAddress(vtep_mac(node))], &[Value::Mark(ingress::mark(number))]);
    elements.extend(ingress::others(picture, underlay).map(peer));
    let zone = |(node, number): (Ipv4Addr, u32)| {
        let zone = u16::try_from(number).ok().map(Value::Zone)?;
        Some(Element::new(SetName::Zones, &[Value::HardwareAddress(vtep_mac(node))], &[zone]))
    };
    elements.extend(ingress::others(picture, underlay).filter_map(zone));
    for published in &picture.published {
        elements.extend(backends(published, picture));
        elements.extend(ports(published, picture, attachments));
        elements.extend(backends6(published, picture));
        elements.extend(ports6(published, picture, attachments));
    }
    elements.into_iter().map(|element| (element.key, element.data)).collect()
}

/// Where the backends are, whether they take connections or not: those that there are go on.
fn backends(published: &Published, picture: &Picture) -> Vec<Element> {
    let mut elements = Vec::new();
    for backend in &published.backends {
        let address = Value::Address(backend.ip);
        match backend.place {
            Place::Here => elements.extend(published.openings().map(|(opening, port)| {
                let key = [address.clone(), Value::Protocol(opening.transport.number()), Value::Port(port)];
                Element::new(SetName::Served, &key, &[])
            })),
            Place::Node(node) => {
                if backend.dead && picture.silent.contains(&node) {
                    elements.push(Element::new(SetName::Dead, std::slice::from_ref(&address), &[]));
                }
                let mark = picture.numbers.get(&node).map(|number| Value::Mark(ingress::mark(*number)));
                elements.extend(mark.map(|mark| Element::new(SetName::Homes, &[address], &[mark])));
            }
        }
    }
    elements
}

/// The ports themselves; not those that others have on this host.
fn ports(published: &Published, picture: &Picture, attachments: &Attachments) -> Vec<Element> {
    let chosen = published.chosen(picture, attachments);
    let chosen = &chosen[..chosen.len().min(BACKENDS_MAX)];
    let at = |opening: Opening| [Value::Protocol(opening.transport.number()), Value::Port(opening.port)];
    let mut elements = Vec::new();
    for (opening, port) in published.openings().filter(|(opening, _)| !picture.taken.contains_key(opening)) {
        if let Some(clients) = &published.allow_from {
            elements.push(Element::new(SetName::Guarded, &at(opening), &[]));
            elements.extend(clients.iter().map(|net| {
                let first = [&at(opening)[..], &[Value::Address(net.network())]].concat();
                let last = [&at(opening)[..], &[Value::Address(net.broadcast())]].concat();
                Element::new(SetName::Allowed, &[first, last].concat(), &[])
            }));
        }
        if chosen.is_empty() {
            continue;
        }
        let slots = slots(chosen.len());
        let key = Key { set: SetName::Ports, bytes: encode(&at(opening)) };
        elements.push(Element { key, data: Verdict::Goto(draws(slots)).encode() });
        for (slot, backend) in (0..slots).zip(chosen.iter().cycle()) {
            let key = [&at(opening)[..], &[Value::Number(slot)]].concat();
            elements.push(Element::new(SetName::Behind, &key, &[Value::Address(backend.ip), Value::Port(port)]));
        }
    }
    let here = chosen.iter().filter(|backend| backend.place == Place::Here);
    elements.extend(here.map(|backend| Element::new(SetName::Hairpin, &[Value::Address(backend.ip), Value::Address(backend.ip)], &[])));
    elements
}

/// The same of IPv6.
fn backends6(published: &Published, picture: &Picture) -> Vec<Element> {
    let mut elements = Vec::new();
    for (backend, ip6) in published.backends.iter().filter_map(|backend| Some((backend, backend.ip6?))) {
        let address = Value::Address6(ip6);
        match backend.place {
            Place::Here => elements.extend(published.openings().map(|(opening, port)| {
                let key = [address.clone(), Value::Protocol(opening.transport.number()), Value::Port(port)];
                Element::new(SetName::Served6, &key, &[])
            })),
            Place::Node(node) => {
                if backend.dead && picture.silent.contains(&node) {
                    elements.push(Element::new(SetName::Dead6, std::slice::from_ref(&address), &[]));
                }
                let mark = picture.numbers.get(&node).map(|number| Value::Mark(ingress::mark(*number)));
                elements.extend(mark.map(|mark| Element::new(SetName::Homes6, &[address], &[mark])));
            }
        }
    }
    elements
}

/// Of the same backends those that have IPv6.
fn ports6(published: &Published, picture: &Picture, attachments: &Attachments) -> Vec<Element> {
    let chosen = published.chosen(picture, attachments).into_iter().filter_map(|backend| backend.ip6).take(BACKENDS_MAX);
    let chosen: Vec<Ipv6Addr> = chosen.collect();
    let at = |opening: Opening| [Value::Protocol(opening.transport.number()), Value::Port(opening.port)];
    let mut elements = Vec::new();
    for (opening, port) in published.openings().filter(|(opening, _)| !picture.taken.contains_key(opening)) {
        elements.extend(published.allow_from6.iter().map(|net| {
            let first = [&at(opening)[..], &[Value::Address6(net.network())]].concat();
            let last = [&at(opening)[..], &[Value::Address6(net.broadcast())]].concat();
            Element::new(SetName::Allowed6, &[first, last].concat(), &[])
        }));
        if chosen.is_empty() {
            continue;
        }
        let slots = slots(chosen.len());
        let key = Key { set: SetName::Ports6, bytes: encode(&at(opening)) };
        elements.push(Element { key, data: Verdict::Goto(draws6(slots)).encode() });
        for (slot, ip6) in (0..slots).zip(chosen.iter().cycle()) {
            let key = [&at(opening)[..], &[Value::Number(slot)]].concat();
            elements.push(Element::new(SetName::Behind6, &key, &[Value::Address6(*ip6), Value::Port(port)]));
        }
    }
    elements
}

fn draws(slots: u32) -> String {
    format!("p{slots}")
}

fn draws6(slots: u32) -> String {
    format!("p{slots}_6")
}

/// Of what comes from another node, before connections are looked up.
pub(super) fn apart() -> Vec<Rule> {
    let by_sender = vec![
        Expression::Payload { header: Header::Link, offset: 6, len: 6, into: FIRST },
        Expression::Lookup { set: &ZONES, key: FIRST, into: Some(FIRST), present: true },
        Expression::SetZone { from: FIRST },
    ];
    vec![Rule::new("iifname ing ct original zone set ether saddr map @zones", [from_nodes(), by_sender])]
}

/// Of most packets there is no more to say: their connection is known, and comes or goes by no other node.
pub(super) fn plain() -> Vec<Rule> {
    let unmarked = vec![Expression::Conntrack { key: Conntrack::Mark, into: FIRST }, equals(&0_u32.to_ne_bytes())];
    vec![Rule::new("ct state established ct mark 0 accept", [of_connection(), unmarked, accept()])]
}

/// Of what comes from another node, and of what goes back there.
pub(super) fn between_nodes() -> Vec<Rule> {
    let by_sender = vec![
        Expression::Payload { header: Header::Link, offset: 6, len: 6, into: FIRST },
        Expression::Lookup { set: &PEERS, key: FIRST, into: Some(FIRST), present: true },
        Expression::SetConnectionMark { from: FIRST },
    ];
    vec![
        Rule::new("iifname ing ct state new ct mark set ether saddr map @peers", [from_nodes(), new(), by_sender]),
        Rule::new(
            "iifname p* ct direction reply ct mark & 0xff000000 == 0x1000000 meta mark set ct mark",
            [input_begins(b"p"), direction(REPLY), has_node(), mark_by_connection()],
        ),
    ]
}

/// Of what a node's port is asked for by someone who may not.
pub(super) fn guarding() -> Vec<Rule> {
    let is_guarded = vec![Expression::Lookup { set: &GUARDED, key: FIRST, into: None, present: true }];
    let from_others = vec![source_address(FIRST.after(2)), Expression::Lookup { set: &ALLOWED, key: FIRST, into: None, present: false }];
    let from_others6 = vec![source_address6(FIRST.after(2)), Expression::Lookup { set: &ALLOWED6, key: FIRST, into: None, present: false }];
    vec![
        Rule::new(
            "ct state new ip daddr @entries meta l4proto . th dport @guarded meta l4proto . th dport . ip saddr != @allowed goto refuse",
            [new(), family(Family::Ipv4), to_one_of(&ENTRIES), to_port(FIRST), is_guarded.clone(), from_others, refuse()],
        ),
        Rule::new(
            "iifname up ct state new meta nfproto ipv6 meta l4proto . th dport @guarded meta l4proto . th dport . ip6 saddr != @allowed6 \
             goto refuse",
            [from_outside(), new(), family(Family::Ipv6), to_port(FIRST), is_guarded, from_others6, refuse()],
        ),
    ]
}

/// Of connections that begin, before they are routed.
pub(super) fn balancing() -> Vec<Rule> {
    let by_port = vec![Expression::Lookup { set: &PORTS, key: FIRST, into: Some(Register::VERDICT), present: true }];
    let text = "ip daddr @entries meta l4proto . th dport vmap @ports";
    let by_port6 = vec![Expression::Lookup { set: &PORTS6, key: FIRST, into: Some(Register::VERDICT), present: true }];
    let for_router = vec![destination_address6(FIRST), equals(&ROUTER_IP6.octets())];
    let text6 = "iifname up ip6 daddr fd5c:7263::54:2 meta l4proto . th dport vmap @ports6";
    vec![
        Rule::new(text, [family(Family::Ipv4), to_one_of(&ENTRIES), to_port(FIRST), by_port]),
        Rule::new(text6, [from_outside(), family(Family::Ipv6), for_router, to_port(FIRST), by_port6]),
    ]
}

/// The chains to which ports lead.
pub(super) fn choosing() -> Vec<Chain> {
    let number = FIRST.after(2);
    let to = |words: &str, slot: Expression| {
        let to_backend = vec![
            slot,
            Expression::Lookup { set: &BEHIND, key: FIRST, into: Some(FIRST), present: true },
            Expression::Translate { end: End::Destination, family: Family::Ipv4, address: FIRST, port: Some(FIRST.after(1)) },
        ];
        Rule::new(&format!("dnat to meta l4proto . th dport . {words} map @behind"), [to_port(FIRST), to_backend])
    };
    let draw = |slots: u32| {
        let drawn = to(&format!("numgen random mod {slots}"), Expression::Random { below: slots, into: number });
        let first = to("0", Expression::Load { into: number, value: 0_u32.to_ne_bytes().to_vec() });
        Chain::aside(&draws(slots), vec![drawn, first])
    };
    numbers_of_slots().map(draw).chain(choosing6()).collect()
}

fn choosing6() -> impl Iterator<Item = Chain> {
    let number = FIRST.after(2);
    let to = move |words: &str, slot: Expression| {
        let to_backend = vec![
            slot,
            Expression::Lookup { set: &BEHIND6, key: FIRST, into: Some(FIRST), present: true },
            Expression::Translate { end: End::Destination, family: Family::Ipv6, address: FIRST, port: Some(FIRST.after(4)) },
        ];
        Rule::new(&format!("dnat to meta l4proto . th dport . {words} map @behind6"), [to_port(FIRST), to_backend])
    };
    numbers_of_slots().map(move |slots| {
        let drawn = to(&format!("numgen random mod {slots}"), Expression::Random { below: slots, into: number });
        let first = to("0", Expression::Load { into: number, value: 0_u32.to_ne_bytes().to_vec() });
        Chain::aside(&draws6(slots), vec![drawn, first])
    })
}

/// Of what has its backend by now: by the destination that it had first, for to a service's own address the same backends have another way.
pub(super) fn toward() -> Vec<Rule> {
    let home = vec![
        destination_address(FIRST),
        Expression::Lookup { set: &HOMES, key: FIRST, into: Some(FIRST), present: true },
        Expression::SetConnectionMark { from: FIRST },
    ];
    let home6 = vec![
        destination_address6(FIRST),
        Expression::Lookup { set: &HOMES6, key: FIRST, into: Some(FIRST), present: true },
        Expression::SetConnectionMark { from: FIRST },
    ];
    vec![
        Rule::new("ct state new ct original ip daddr @entries ct mark set ip daddr map @homes", [new(), for_node(), home]),
        Rule::new(
            "ct direction original ct mark & 0xff000000 == 0x1000000 ct original ip daddr @entries meta mark set ct mark",
            [direction(ORIGINAL), has_node(), for_node(), mark_by_connection()],
        ),
        Rule::new("ct state new ct original ip6 daddr fd5c:7263::54:2 ct mark set ip6 daddr map @homes6", [new(), for_node6(), home6]),
        Rule::new(
            "ct direction original ct mark & 0xff000000 == 0x1000000 ct original ip6 daddr fd5c:7263::54:2 meta mark set ct mark",
            [direction(ORIGINAL), has_node(), for_node6(), mark_by_connection()],
        ),
    ]
}

/// Of connections that begin and come from other nodes, or from outside.
pub(super) fn forwarded() -> Vec<Rule> {
    let known = vec![Expression::Lookup { set: &SERVED, key: FIRST, into: None, present: true }];
    let is_served = [vec![destination_address(FIRST)], to_port(FIRST.after(1)), known].concat();
    let known6 = vec![Expression::Lookup { set: &SERVED6, key: FIRST, into: None, present: true }];
    let is_served6 = [vec![destination_address6(FIRST)], to_port(FIRST.after(4)), known6].concat();
    vec![
        Rule::new(
            "iifname ing ct mark & 0xff000000 == 0x1000000 ip daddr . meta l4proto . th dport @served meta mark set 0 accept",
            [from_nodes(), family(Family::Ipv4), has_node(), is_served, accept_unmarked()],
        ),
        Rule::new(
            "iifname ing ct mark & 0xff000000 == 0x1000000 ip6 daddr . meta l4proto . th dport @served6 meta mark set 0 accept",
            [from_nodes(), family(Family::Ipv6), has_node(), is_served6, accept_unmarked()],
        ),
        Rule::new("iifname ing drop", [from_nodes(), drop()]),
        // They would pass for a host's own, which no policy judges.
        Rule::new("iifname up ip saddr 169.254.192.0/19 drop", [from_outside(), source_in(ingress::OWN, true), drop()]),
        Rule::new("iifname up ct status & 0x20 != 0 meta mark set 0 accept", [from_outside(), translated(), accept_unmarked()]),
        Rule::new("iifname up drop", [from_outside(), drop()]),
    ]
}

/// Of pods' connections to nodes: they reach published ports, and nothing else of any node.
pub(super) fn by_node() -> Vec<Rule> {
    let may = vec![
        Expression::Meta { key: Meta::Mark, into: FIRST },
        Expression::Lookup { set: &OUTWARD, key: FIRST, into: None, present: true },
    ];
    vec![
        Rule::new(
            "ct original ip daddr @entries ct status & 0x20 != 0 meta mark @outward meta mark set 0 accept",
            [for_node(), translated(), may, accept_unmarked()],
        ),
        Rule::new("ct original ip daddr @entries goto refuse", [for_node(), refuse()]),
    ]
}

/// Of what came to a port behind which nobody is.
pub(super) fn refused() -> Vec<Rule> {
    vec![Rule::new("iifname up goto refuse", [from_outside(), refuse()])]
}

/// Of what the router itself sends, once it is routed: netd's own connections to other nodes' pods, on behalf of the host.
pub(super) fn sent() -> Vec<Rule> {
    vec![Rule::new("meta mark set 0", [unmark()])]
}

fn from_nodes() -> Vec<Expression> {
    device(Meta::InputName, INGRESS, true)
}

fn from_outside() -> Vec<Expression> {
    device(Meta::InputName, UPLINK, true)
}

fn new() -> Vec<Expression> {
    bits(Conntrack::State, STATE_NEW)
}

fn translated() -> Vec<Expression> {
    bits(Conntrack::Status, STATUS_TRANSLATED)
}

fn direction(direction: u8) -> Vec<Expression> {
    vec![Expression::Conntrack { key: Conntrack::Direction, into: FIRST }, equals(&[direction])]
}

/// Whether the connection has the mark of a node.
fn has_node() -> Vec<Expression> {
    vec![
        Expression::Conntrack { key: Conntrack::Mark, into: FIRST },
        Expression::Mask { register: FIRST, mask: MARK_BITS },
        equals(&MARK.to_ne_bytes()),
    ]
}

fn mark_by_connection() -> Vec<Expression> {
    vec![Expression::Conntrack { key: Conntrack::Mark, into: FIRST }, Expression::SetMark { from: FIRST }]
}

/// Whether the connection's first packet came to a port of this node by IPv6.
fn for_node6() -> Vec<Expression> {
    vec![Expression::Conntrack { key: Conntrack::OriginalDestination6, into: FIRST }, equals(&ROUTER_IP6.octets())]
}

/// Whether the connection's first packet was sent to a node.
fn for_node() -> Vec<Expression> {
    vec![
        Expression::Conntrack { key: Conntrack::OriginalDestination, into: FIRST },
        Expression::Lookup { set: &ENTRIES, key: FIRST, into: None, present: true },
    ]
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{numbered, published, t1_attached, underlay};
    use crate::core::uplink::Forwarding;

    /// The elements of this feature, as text.
    fn shown(picture: &Picture) -> Vec<String> {
        let elements = elements(picture, &t1_attached(), &underlay(Forwarding::Netd));
        elements.into_iter().map(|(key, data)| Element { key, data }.to_string()).collect()
    }

    #[test]
    fn by_ipv6_a_port_leads_to_the_same_backends_as_far_as_they_have_it() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
        wire.published[0].ports[0].allow_from = vec!["2001:db8::/32".into(), "192.0.2.0/24".into()];
        let six = |line: &String| line.split(' ').next().is_some_and(|set| set.ends_with('6'));
        let shown = |wire: &v1::NetView| shown(&Picture::parse(wire).0).into_iter().filter(six).collect::<Vec<_>>();
        let allowed = "allowed6 { 6 . 8080 . 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff }";
        assert_eq!(shown(&wire), [allowed]);
        for backend in &mut wire.published[0].backends[1..] {
            backend.ip6 = format!("fd00::{}", backend.task_id.replace('t', ""));
        }
        assert_eq!(
            shown(&wire),
            [
                "homes6 { fd00::2 : 16777218 }".to_owned(),
                "served6 { fd00::1 . 6 . 80 }".to_owned(),
                allowed.to_owned(),
                "behind6 { 6 . 8080 . 0 : fd00::1 . 80 }".to_owned(),
                "behind6 { 6 . 8080 . 1 : fd00::2 . 80 }".to_owned(),
                "ports6 { 6 . 8080 : goto p2_6 }".to_owned(),
            ]
        );
    }

    #[test]
    fn a_port_leads_to_its_backends_and_each_of_them_has_its_way() {
        let (picture, _) = Picture::parse(&numbered(1, vec![published(v1::IngressPolicy::Spread)]));
        assert_eq!(
            shown(&picture),
            [
                "entries { 169.254.54.2 }",
                "hairpin { 10.128.0.2 . 10.128.0.2 }",
                "outward { 4097 }",
                "outward { 4098 }",
                "peers { 02:76:0a:5a:00:66 : 16777218 }",
                "peers { 02:76:0a:5a:00:67 : 16777219 }",
                "zones { 02:76:0a:5a:00:66 : 2 }",
                "zones { 02:76:0a:5a:00:67 : 3 }",
                "homes { 10.128.0.3 : 16777218 }",
                "homes { 10.128.0.4 : 16777218 }",
                "served { 10.128.0.2 . 6 . 80 }",
                "behind { 6 . 8080 . 0 : 10.128.0.2 . 80 }",
                "behind { 6 . 8080 . 1 : 10.128.0.3 . 80 }",
                "behind { 6 . 8080 . 2 : 10.128.0.4 . 80 }",
                "ports { 6 . 8080 : goto p3 }",
            ]
        );
    }

    #[test]
    fn a_port_that_another_program_has_leads_nowhere_and_its_backends_are_served_for_other_nodes() {
        let (mut picture, _) = Picture::parse(&numbered(1, vec![published(v1::IngressPolicy::Local)]));
        let local: Vec<String> = shown(&picture).into_iter().filter(|line| line.starts_with("behind")).collect();
        assert_eq!(local, ["behind { 6 . 8080 . 0 : 10.128.0.2 . 80 }"]);
        picture.taken.insert(picture.published[0].opening(0), "nginx".into());
        let shown = shown(&picture);
        assert!(!shown.iter().any(|line| line.starts_with("ports") || line.starts_with("behind")), "{shown:?}");
        assert!(shown.contains(&"served { 10.128.0.2 . 6 . 80 }".to_owned()));
    }

    #[test]
    fn clients_are_told_in_intervals_that_do_not_meet() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
        let port = &mut wire.published[0].ports[0];
        port.allow_from = ["10.1.0.0/16", "10.0.0.0/8", "203.0.113.7/32", "fd00::/8"].map(str::to_owned).to_vec();
        (port.published, port.target, port.count) = (53, 5300, 2);
        port.protocol = v1::Protocol::Udp.into();
        let (picture, problems) = Picture::parse(&wire);
        assert_eq!(problems, Vec::<String>::new());
        let guards: Vec<String> =
            shown(&picture).into_iter().filter(|line| line.starts_with("guarded") || line.starts_with("allowed")).collect();
        assert_eq!(
            guards,
            [
                "guarded { 17 . 53 }",
                "guarded { 17 . 54 }",
                "allowed { 17 . 53 . 10.0.0.0-10.255.255.255 }",
                "allowed { 17 . 53 . 203.0.113.7 }",
                "allowed { 17 . 54 . 10.0.0.0-10.255.255.255 }",
                "allowed { 17 . 54 . 203.0.113.7 }",
                "allowed6 { 17 . 53 . fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff }",
                "allowed6 { 17 . 54 . fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff }",
            ]
        );
    }

    #[test]
    fn backends_of_a_node_that_is_down_and_silent_are_dead() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
        wire.networks.clear();
        for backend in wire.published[0].backends.iter_mut().filter(|backend| backend.node_id == "n2") {
            backend.state = v1::EndpointState::Dead.into();
        }
        let (mut picture, _) = Picture::parse(&wire);
        let node = Ipv4Addr::new(10, 90, 0, 102);
        assert_eq!(picture.dead_nodes().into_iter().collect::<Vec<_>>(), [node]);
        let dead = |picture: &Picture| shown(picture).into_iter().filter(|line| line.starts_with("dead")).collect::<Vec<_>>();
        assert_eq!(dead(&picture), Vec::<String>::new());
        picture.silent.insert(node);
        assert_eq!(dead(&picture), ["dead { 10.128.0.3 }", "dead { 10.128.0.4 }"]);
    }
}
