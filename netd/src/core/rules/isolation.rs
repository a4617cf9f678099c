//! Who may speak with whom: a pod under its own address alone, with its own networks and the resolver.
//!
//! ```text
//! sources  device . address          the one source address that may come in from a pod's veth
//! sources6 device . address          the same of IPv6; of a pod on a network without IPv6 none
//! prefixes6 device . prefix          whose IPv6 may come in from other nodes by a network's device; by the way out it may not
//! members  device → VNI              which network a packet comes from
//! exits    VNI . device              where a packet of that network may leave
//! flood    device                    who asks the resolver too much; the kernel fills it
//! ```
//!
//! The mark that `members` sets is cleared before the packet leaves, so the host's own marks never meet it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::balance::{DEAD, DEAD6, refuse};
use super::elements::{Element, Elements, Field, SetName, Value};
use super::expressions::{
    Expression, FIRST, Family, Header, Limit, Meta, Rejection, accept, accept_unmarked, destination_address, device, drop, equals,
    established, family, input_begins, invalid, not_to_one_of, not_to_one_of6, protocol, source_address, source_address6, source_prefix6,
};
use super::{Data, Filling, Rule, Set};
use crate::core::flows::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::core::links::{LOOPBACK, RESOLVER, veth_name, vxlan_name};
use crate::core::picture::{Attachments, Picture};
use crate::core::uplink::UPLINK;

pub static SOURCES: Set = Set { name: "sources", key: &[Field::Name, Field::Address], data: Data::None, filling: Filling::Keys };

pub static SOURCES6: Set = Set { name: "sources6", key: &[Field::Name, Field::Address6], data: Data::None, filling: Filling::Keys };

pub static PREFIXES6: Set = Set { name: "prefixes6", key: &[Field::Name, Field::Prefix6], data: Data::None, filling: Filling::Keys };

pub static MEMBERS: Set = Set { name: "members", key: &[Field::Name], data: Data::Fields(&[Field::Mark]), filling: Filling::Keys };

pub static EXITS: Set = Set { name: "exits", key: &[Field::Mark, Field::Name], data: Data::None, filling: Filling::Keys };

pub static FLOOD: Set = Set { name: "flood", key: &[Field::Name], data: Data::None, filling: Filling::Learned { timeout_ms: 10_000 } };

/// Questions over UDP from one device. What is beyond them may have of what all may have together; the rest is dropped before the resolver
/// sees it.
const QUESTIONS: Limit = Limit { per_second: 20_000, burst: 5_000 };
const SPARE_QUESTIONS: Limit = Limit { per_second: 80_000, burst: 20_000 };

/// The address that may come in by a device.
pub fn source(link: &str, ip: Ipv4Addr) -> Element {
    Element::new(SetName::Sources, &[Value::Name(link.to_owned()), Value::Address(ip)], &[])
}

/// The same of IPv6.
fn source6(link: &str, ip6: Ipv6Addr) -> Element {
    Element::new(SetName::Sources6, &[Value::Name(link.to_owned()), Value::Address6(ip6)], &[])
}

/// A network's addresses by a VXLAN device, by which they may come in, or by the uplink: routes back to their sources are not asked for, as they are
/// with IPv4.
fn prefix6(link: &str, subnet6: Ipv6Net) -> Element {
    Element::new(SetName::Prefixes6, &[Value::Name(link.to_owned()), Value::Prefix6(subnet6)], &[])
}

/// The network of what comes in by a device.
pub fn member(link: &str, vni: u32) -> Element {
    Element::new(SetName::Members, &[Value::Name(link.to_owned())], &[Value::Mark(vni)])
}

/// A device by which a network's packets may leave.
pub fn exit(vni: u32, link: &str) -> Element {
    Element::new(SetName::Exits, &[Value::Mark(vni), Value::Name(link.to_owned())], &[])
}

/// Packets may pass between the devices of one network, and from a pod only under its own address.
pub fn elements(picture: &Picture, attachments: &Attachments) -> Elements {
    let mut elements = Elements::new();
    let mut add = |element: Element| elements.insert(element.key, element.data);
    for network in picture.networks.values() {
        let link = vxlan_name(network.vni);
        add(member(&link, network.vni));
        add(exit(network.vni, &link));
        if let Some(subnet6) = network.subnet6 {
            add(prefix6(&link, subnet6));
            add(prefix6(UPLINK, subnet6));
        }
    }
    for (task_id, attachment) in attachments {
        for membership in &attachment.networks {
            let link = veth_name(task_id, &membership.network_id);
            add(source(&link, membership.ip));
            if let Some(network) = picture.networks.get(&membership.network_id) {
                add(member(&link, network.vni));
                add(exit(network.vni, &link));
                if let Some(ip6) = network.ip6(membership.ip) {
                    add(source6(&link, ip6));
                }
            }
        }
    }
    elements
}

/// Of everything that comes in, before connections are looked up.
pub(super) fn incoming() -> Vec<Rule> {
    vec![
        Rule::new(
            "meta nfproto ipv6 iifname p* iifname . ip6 saddr != @sources6 drop",
            [family(Family::Ipv6), from_pod(), not_its_source6(), drop()],
        ),
        Rule::new(
            "meta nfproto ipv6 iifname v* iifname . ip6 saddr & ffff:ffff:ffff:ffff:: != @prefixes6 drop",
            [family(Family::Ipv6), input_begins(b"v"), prefixed(false), drop()],
        ),
        Rule::new("iifname p* iifname . ip saddr != @sources drop", [from_pod(), family(Family::Ipv4), not_its_source(), drop()]),
        Rule::new("ip daddr resolver udp dport 53 notrack", [for_resolver(), port(PROTOCOL_UDP, 2), vec![Expression::Untrack]]),
    ]
}

/// Of what begins a connection and comes from another node: its pods, under addresses that are behind that node. Who sends from here was
/// compared with more than the way back, and of a connection that is known all is known.
pub(super) fn from_nodes() -> Vec<Rule> {
    let no_way_back = vec![Expression::WayBack { into: FIRST }, equals(&0_u32.to_ne_bytes())];
    vec![Rule::new(
        "meta nfproto ipv4 iifname v* fib saddr . iif oif missing drop",
        [family(Family::Ipv4), input_begins(b"v"), no_way_back, drop()],
    )]
}

/// Of what the resolver sends.
pub(super) fn answers() -> Vec<Rule> {
    vec![Rule::new("ip saddr resolver udp sport 53 notrack", [from_resolver(), port(PROTOCOL_UDP, 0), vec![Expression::Untrack]])]
}

/// Of connections that were let through once, if they do not go to a node that is down: what most packets are, so it comes first.
pub(super) fn known() -> Vec<Rule> {
    vec![
        Rule::new(
            "ct state established,related meta nfproto ipv4 ip daddr != @dead meta mark set 0 accept",
            [established(), family(Family::Ipv4), not_to_one_of(&DEAD), accept_unmarked()],
        ),
        Rule::new(
            "ct state established,related meta nfproto ipv6 ip6 daddr != @dead6 meta mark set 0 accept",
            [established(), family(Family::Ipv6), not_to_one_of6(&DEAD6), accept_unmarked()],
        ),
    ]
}

/// Of what belongs to no connection: it would pass untranslated, under an address that nobody expects it from.
pub(super) fn strayed() -> Vec<Rule> {
    vec![Rule::new("ct state invalid drop", [invalid(), drop()])]
}

/// Of what begins a connection and comes from outside: nobody there has an address of a network. Of IPv4 the kernel itself asks the uplink for
/// the way back; of IPv6 it does not, and the ways outside hold every prefix.
pub(super) fn from_outside() -> Vec<Rule> {
    vec![Rule::new(
        "iifname up meta nfproto ipv6 iifname . ip6 saddr & ffff:ffff:ffff:ffff:: @prefixes6 drop",
        [device(Meta::InputName, UPLINK, true), family(Family::Ipv6), prefixed(true), drop()],
    )]
}

/// Tells the network of what is forwarded.
pub(super) fn marked() -> Vec<Rule> {
    vec![Rule::new("meta mark set iifname map @members", [mark_by_input()])]
}

/// Lets through what stays in its network, and refuses the rest.
pub(super) fn passing() -> Vec<Rule> {
    vec![
        Rule::new("meta mark . oifname @exits meta mark set 0 accept", [same_network(), accept_unmarked()]),
        Rule::new("meta nfproto ipv6 goto refuse", [family(Family::Ipv6), refuse()]),
        Rule::new("reject with icmpx admin-prohibited", [vec![Expression::Reject(Rejection::AdminProhibited)]]),
    ]
}

/// Of what is for the router itself: questions to the resolver, and pings.
pub(super) fn arriving() -> Vec<Rule> {
    vec![
        Rule::new("iifname lo accept", [device(Meta::InputName, LOOPBACK, true), accept()]),
        Rule::new("ct state established,related accept", [established(), accept()]),
        Rule::new(
            "ip daddr resolver udp dport 53 iifname p* update @flood { iifname limit rate over 20000/second burst 5000 packets } \
             limit rate over 80000/second burst 20000 packets drop",
            [for_resolver(), port(PROTOCOL_UDP, 2), from_pod(), too_many_questions(), drop()],
        ),
        Rule::new("iifname p* ip daddr resolver udp dport 53 accept", [from_pod(), for_resolver(), port(PROTOCOL_UDP, 2), accept()]),
        Rule::new("iifname p* ip daddr resolver tcp dport 53 accept", [from_pod(), for_resolver(), port(PROTOCOL_TCP, 2), accept()]),
        Rule::new("iifname p* icmp type echo-request accept", [from_pod(), echo_request(), accept()]),
        Rule::new("iifname p* reject with icmpx admin-prohibited", [from_pod(), vec![Expression::Reject(Rejection::AdminProhibited)]]),
    ]
}

fn from_pod() -> Vec<Expression> {
    input_begins(b"p")
}

fn not_its_source() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        source_address(FIRST.after(4)),
        Expression::Lookup { set: &SOURCES, key: FIRST, into: None, present: false },
    ]
}

fn not_its_source6() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        source_address6(FIRST.after(4)),
        Expression::Lookup { set: &SOURCES6, key: FIRST, into: None, present: false },
    ]
}

/// Whether the sender is, or is not, of a prefix that its device has.
fn prefixed(is: bool) -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        source_prefix6(FIRST.after(4)),
        Expression::Lookup { set: &PREFIXES6, key: FIRST, into: None, present: is },
    ]
}

fn from_resolver() -> Vec<Expression> {
    [family(Family::Ipv4), vec![source_address(FIRST), equals(&RESOLVER.octets())]].concat()
}

fn for_resolver() -> Vec<Expression> {
    [family(Family::Ipv4), vec![destination_address(FIRST), equals(&RESOLVER.octets())]].concat()
}

/// The resolver's; `offset`: 0 for the source port, 2 for the destination.
fn port(number: u8, offset: u32) -> Vec<Expression> {
    let mut expressions = protocol(number);
    expressions.push(Expression::Payload { header: Header::Transport, offset, len: 2, into: FIRST });
    expressions.push(equals(&53_u16.to_be_bytes()));
    expressions
}

fn too_many_questions() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Update { set: &FLOOD, key: FIRST, over: QUESTIONS },
        Expression::Over(SPARE_QUESTIONS),
    ]
}

fn echo_request() -> Vec<Expression> {
    let mut expressions = family(Family::Ipv4);
    expressions.extend(protocol(PROTOCOL_ICMP));
    expressions.push(Expression::Payload { header: Header::Transport, offset: 0, len: 1, into: FIRST });
    expressions.push(equals(&[8]));
    expressions
}

fn mark_by_input() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Lookup { set: &MEMBERS, key: FIRST, into: Some(FIRST), present: true },
        Expression::SetMark { from: FIRST },
    ]
}

fn same_network() -> Vec<Expression> {
    vec![
        Expression::Meta { key: Meta::Mark, into: FIRST },
        Expression::Meta { key: Meta::OutputName, into: FIRST.after(1) },
        Expression::Lookup { set: &EXITS, key: FIRST, into: None, present: true },
    ]
}
