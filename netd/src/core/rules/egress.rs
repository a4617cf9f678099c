//! What leaves the cluster: packets of networks that are not `internal`, by the uplink, and never for a node or an address that is kept inside.
//!
//! ```text
//! exits    VNI . up      that of a network that is not internal
//! entries  address       every node's, this one's too
//! entries6 address       of IPv6, those that nodes have told
//! inside   protocol . address   any protocol, and the addresses that are not sent out; both span
//! ```
//!
//! Pods are not to reach what is only meant for hosts: managers, agents, sshd. At a node's address they reach published ports (`ingress`).

use std::net::Ipv4Addr;

use super::balance::refuse;
use super::elements::{Element, Elements, Field, SetName, Value};
use super::expressions::{Expression, FIRST, Family, Meta, Rejection, destination_address, device, family, to_one_of6};
use super::isolation::exit;
use super::{Data, Filling, Rule, Set};
use crate::core::links::Underlay;
use crate::core::picture::Picture;
use crate::core::uplink::{self, UPLINK};

pub static ENTRIES: Set = Set { name: "entries", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

pub static ENTRIES6: Set = Set { name: "entries6", key: &[Field::Address6], data: Data::None, filling: Filling::Keys };

/// By the protocol, too, which makes no difference: sets of spans of one field have another form.
pub static INSIDE: Set = Set { name: "inside", key: &[Field::Protocol, Field::Address], data: Data::None, filling: Filling::Intervals };

/// The address of a node.
pub fn entry(node: Ipv4Addr) -> Element {
    Element::new(SetName::Entries, &[Value::Address(node)], &[])
}

/// The ways out, and what is not behind them.
pub fn elements(picture: &Picture, underlay: &Underlay) -> Elements {
    let open = picture.networks.values().filter(|network| !network.internal);
    let exits = open.map(|network| exit(network.vni, UPLINK));
    let entries = uplink::nodes(picture, underlay).into_iter().map(entry);
    let entries6 = picture.nodes6.iter().map(|node| Element::new(SetName::Entries6, &[Value::Address6(*node)], &[]));
    let inside = uplink::shut(picture).into_iter().map(|(first, last)| {
        let key = [Value::Protocol(0), Value::Address(first), Value::Protocol(u8::MAX), Value::Address(last)];
        Element::new(SetName::Inside, &key, &[])
    });
    exits.chain(entries).chain(entries6).chain(inside).map(|element| (element.key, element.data)).collect()
}

/// Of what would leave for an address that is kept inside.
pub(super) fn staying() -> Vec<Rule> {
    let is_inside = vec![
        Expression::Meta { key: Meta::Protocol, into: FIRST },
        destination_address(FIRST.after(1)),
        Expression::Lookup { set: &INSIDE, key: FIRST, into: None, present: true },
    ];
    vec![
        Rule::new(
            "oifname up meta l4proto . ip daddr @inside reject with icmpx admin-prohibited",
            [by_uplink(), family(Family::Ipv4), is_inside, vec![Expression::Reject(Rejection::AdminProhibited)]],
        ),
        Rule::new("oifname up ip6 daddr @entries6 goto refuse", [by_uplink(), family(Family::Ipv6), to_one_of6(&ENTRIES6), refuse()]),
    ]
}

/// The host knows one address of ours.
pub(super) fn leaving() -> Vec<Rule> {
    vec![Rule::new("oifname up masquerade random-fully", [by_uplink(), vec![Expression::Masquerade]])]
}

fn by_uplink() -> Vec<Expression> {
    device(Meta::OutputName, UPLINK, true)
}
