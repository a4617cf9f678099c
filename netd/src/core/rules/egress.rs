//! What leaves the cluster: packets of networks that are not `internal`, by the uplink, and never for a node.
//!
//! ```text
//! exits    VNI . up      that of a network that is not internal
//! entries  address       every node's, this one's too
//! ```
//!
//! Pods are not to reach what is only meant for hosts: managers, agents, sshd. At a node's address they reach published ports (`ingress`).

use std::net::Ipv4Addr;

use super::elements::{Element, Elements, Field, SetName, Value};
use super::expressions::{Expression, FIRST, Meta, equals};
use super::isolation::exit;
use super::{Data, Filling, Rule, Set};
use crate::core::links::Underlay;
use crate::core::picture::Picture;
use crate::core::uplink::{self, UPLINK};

pub static ENTRIES: Set = Set { name: "entries", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

/// The address of a node.
pub fn entry(node: Ipv4Addr) -> Element {
    Element::new(SetName::Entries, &[Value::Address(node)], &[])
}

/// The ways out, and what is not behind them.
pub fn elements(picture: &Picture, underlay: &Underlay) -> Elements {
    let open = picture.networks.values().filter(|network| !network.internal);
    let exits = open.map(|network| exit(network.vni, UPLINK));
    let entries = uplink::nodes(picture, underlay).into_iter().map(entry);
    exits.chain(entries).map(|element| (element.key, element.data)).collect()
}

/// The host knows one address of ours.
pub(super) fn leaving() -> Vec<Rule> {
    let by_uplink = vec![Expression::Meta { key: Meta::OutputName, into: FIRST }, equals(&[UPLINK.as_bytes(), &[0]].concat())];
    vec![Rule::new("oifname up masquerade random-fully", [by_uplink, vec![Expression::Masquerade]])]
}
