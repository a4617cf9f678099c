//! What a network's policy lets pass: connections that begin between its pods, and those that come to its pods by published ports.
//!
//! ```text
//! policed   VNI                                        of networks that have a policy
//! allow     address . address . protocol . port        from whom, to whom; all of them spans
//! allow6    the same of IPv6, with ICMPv6 for ICMP
//! shielded  address                                    of pods here on networks that have a policy
//! allow_in  address . protocol . port . address        to whom, and from whom outside; all but the first spans
//! shielded6, allow_in6                                 the same of IPv6
//! ```
//!
//! In: networks' policies, endpoints, the pods here. Out: elements. Both nodes of a connection judge it, each by its own picture, after a
//! service's address has become an endpoint's; who comes by a published port is judged where the endpoint is, under its own address. What
//! leaves the cluster is not judged here: that is `internal`'s; nor what a host itself connects to. Never: a rule per service; a judgement
//! of what has been let through once.
//!
//! What a policy allows is added before its network is `policed`, and the other way round when it goes; the kernel does either in one
//! transaction, so that no half of a policy is ever in force. Rules that are loaded anew know no network at all until all elements are there.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use rcluster_api::network::address6;

use super::balance::refuse;
use super::egress::ENTRIES;
use super::elements::{Element, Elements, Field, Key, SetName, Value, encode};
use super::expressions::{
    Conntrack, Expression, FIRST, Family, Meta, Rejection, Verdict, destination_address, destination_address6, device, family,
    input_begins, source_address, source_address6, source_in, to_one_of, to_one_of6, to_port,
};
use super::{Data, Filling, Rule, Set};
use crate::core::ingress::{INGRESS, OWN};
use crate::core::picture::{Attachments, Picture};
use crate::core::policy::{Admission6, Passage, admissions, admissions6, passages};
use crate::core::uplink::UPLINK;

pub static POLICED: Set = Set { name: "policed", key: &[Field::Mark], data: Data::None, filling: Filling::Keys };

pub static ALLOW: Set = Set {
    name: "allow",
    key: &[Field::Address, Field::Address, Field::Protocol, Field::Port],
    data: Data::None,
    filling: Filling::Intervals,
};

pub static ALLOW6: Set = Set {
    name: "allow6",
    key: &[Field::Address6, Field::Address6, Field::Protocol, Field::Port],
    data: Data::None,
    filling: Filling::Intervals,
};

pub static SHIELDED: Set = Set { name: "shielded", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

pub static ALLOW_IN: Set = Set {
    name: "allow_in",
    key: &[Field::Address, Field::Protocol, Field::Port, Field::Address],
    data: Data::None,
    filling: Filling::Intervals,
};

pub static SHIELDED6: Set = Set { name: "shielded6", key: &[Field::Address6], data: Data::None, filling: Filling::Keys };

pub static ALLOW_IN6: Set = Set {
    name: "allow_in6",
    key: &[Field::Address6, Field::Protocol, Field::Port, Field::Address6],
    data: Data::None,
    filling: Filling::Intervals,
};

/// The chain that judges what stays in its network.
pub(super) const POLICY: &str = "policy";

/// The chain that judges what comes by published ports.
pub(super) const ADMIT: &str = "admit";

/// Who may speak with whom.
pub fn elements(picture: &Picture, attachments: &Attachments) -> Elements {
    let mut elements = Elements::new();
    let mut add = |element: Element| elements.insert(element.key, element.data);
    for network in picture.networks.values().filter(|network| network.policy.is_some()) {
        add(Element::new(SetName::Policed, &[Value::Mark(network.vni)], &[]));
        for passage in passages(network).unwrap_or_default() {
            add(allowed(&passage));
            if let Some(subnet6) = network.subnet6 {
                for protocols in passage.protocols6() {
                    add(allowed6(&passage, protocols, subnet6));
                }
            }
        }
    }
    for membership in attachments.values().flat_map(|attachment| &attachment.networks) {
        let network = picture.networks.get(&membership.network_id);
        let Some(network) = network.filter(|network| network.policy.is_some()) else { continue };
        add(Element::new(SetName::Shielded, &[Value::Address(membership.ip)], &[]));
        for passage in admissions(network, membership.ip) {
            add(admitted(&passage));
        }
        let Some(ip6) = network.ip6(membership.ip) else { continue };
        add(Element::new(SetName::Shielded6, &[Value::Address6(ip6)], &[]));
        for admission in admissions6(network, membership.ip) {
            add(admitted6(ip6, &admission));
        }
    }
    elements
}

/// Networks of which nothing passes, because their policies say too much.
pub fn too_large(picture: &Picture) -> Vec<String> {
    let problem = |(name, count): (&str, usize)| {
        format!("the policy of network {name} makes {count} pairs or more, too many for a node: nothing may speak there")
    };
    let networks = picture.networks.values();
    networks.filter_map(|network| passages(network).err().map(|count| (network.name.as_str(), count))).map(problem).collect()
}

fn allowed(passage: &Passage) -> Element {
    let Passage { from, to, protocols, ports } = *passage;
    let first = [Value::Address(from.0), Value::Address(to.0), Value::Protocol(protocols.0), Value::Port(ports.0)];
    let last = [Value::Address(from.1), Value::Address(to.1), Value::Protocol(protocols.1), Value::Port(ports.1)];
    spanning(SetName::Allow, &first, &last)
}

/// The same of IPv6: who has an address there has it in the same order.
fn allowed6(passage: &Passage, protocols: (u8, u8), subnet6: Ipv6Net) -> Element {
    let Passage { from, to, protocols: _, ports } = *passage;
    let address = |ip: Ipv4Addr| Value::Address6(address6(subnet6, ip));
    let first = [address(from.0), address(to.0), Value::Protocol(protocols.0), Value::Port(ports.0)];
    let last = [address(from.1), address(to.1), Value::Protocol(protocols.1), Value::Port(ports.1)];
    spanning(SetName::Allow6, &first, &last)
}

fn admitted(passage: &Passage) -> Element {
    let Passage { from, to, protocols, ports } = *passage;
    let first = [Value::Address(to.0), Value::Protocol(protocols.0), Value::Port(ports.0), Value::Address(from.0)];
    let last = [Value::Address(to.1), Value::Protocol(protocols.1), Value::Port(ports.1), Value::Address(from.1)];
    spanning(SetName::AllowIn, &first, &last)
}

fn admitted6(to: Ipv6Addr, admission: &Admission6) -> Element {
    let Admission6 { from, protocols, ports } = *admission;
    let first = [Value::Address6(to), Value::Protocol(protocols.0), Value::Port(ports.0), Value::Address6(from.0)];
    let last = [Value::Address6(to), Value::Protocol(protocols.1), Value::Port(ports.1), Value::Address6(from.1)];
    spanning(SetName::AllowIn6, &first, &last)
}

fn spanning(set: SetName, first: &[Value], last: &[Value]) -> Element {
    let bytes = [encode(first), encode(last)].concat();
    Element { key: Key { set, bytes }, data: Vec::new() }
}

/// Of what begins to come to pods here by published ports, whichever node it came to first.
pub(super) fn shielding() -> Vec<Rule> {
    let to_shielded = || [family(Family::Ipv4), to_one_of(&SHIELDED)].concat();
    let to_shielded6 = || [family(Family::Ipv6), to_one_of6(&SHIELDED6)].concat();
    let by_port = vec![
        Expression::Conntrack { key: Conntrack::OriginalDestination, into: FIRST },
        Expression::Lookup { set: &ENTRIES, key: FIRST, into: None, present: true },
    ];
    vec![
        Rule::new("iifname up ip daddr @shielded jump admit", [device(Meta::InputName, UPLINK, true), to_shielded(), jump(ADMIT)]),
        // Hosts' own connections are not judged: those to a pod on the host itself are not forwarded at all.
        Rule::new(
            "iifname ing ip saddr != 169.254.192.0/19 ip daddr @shielded jump admit",
            [device(Meta::InputName, INGRESS, true), source_in(OWN, false), to_shielded(), jump(ADMIT)],
        ),
        // A pod that used the address of its own node.
        Rule::new(
            "iifname p* ip daddr @shielded ct original ip daddr @entries jump admit",
            [input_begins(b"p"), to_shielded(), by_port, jump(ADMIT)],
        ),
        Rule::new("iifname up ip6 daddr @shielded6 jump admit", [device(Meta::InputName, UPLINK, true), to_shielded6(), jump(ADMIT)]),
        // A host's own connections by its addresses of IPv6 go on by IPv4.
        Rule::new("iifname ing ip6 daddr @shielded6 jump admit", [device(Meta::InputName, INGRESS, true), to_shielded6(), jump(ADMIT)]),
    ]
}

/// Who may come by published ports.
pub(super) fn admitting() -> Vec<Rule> {
    let by_sender = vec![source_address(FIRST.after(3)), Expression::Lookup { set: &ALLOW_IN, key: FIRST, into: None, present: true }];
    let known = [vec![destination_address(FIRST)], to_port(FIRST.after(1)), by_sender].concat();
    let text = "ip daddr . meta l4proto . th dport . ip saddr @allow_in return";
    let by_sender6 = vec![source_address6(FIRST.after(6)), Expression::Lookup { set: &ALLOW_IN6, key: FIRST, into: None, present: true }];
    let known6 = [vec![destination_address6(FIRST)], to_port(FIRST.after(4)), by_sender6].concat();
    let text6 = "ip6 daddr . meta l4proto . th dport . ip6 saddr @allow_in6 return";
    vec![Rule::new(text, [family(Family::Ipv4), known, back()]), Rule::new(text6, [family(Family::Ipv6), known6, back()]), refused()]
}

/// Of what is forwarded in a network that has a policy.
pub(super) fn judged() -> Vec<Rule> {
    let policed = vec![
        Expression::Meta { key: Meta::Mark, into: FIRST },
        Expression::Lookup { set: &POLICED, key: FIRST, into: None, present: true },
    ];
    vec![Rule::new("meta mark @policed jump policy", [policed, jump(POLICY)])]
}

/// Who may speak with whom.
pub(super) fn judging() -> Vec<Rule> {
    let between = vec![source_address(FIRST), destination_address(FIRST.after(1))];
    let allowed = vec![Expression::Lookup { set: &ALLOW, key: FIRST, into: None, present: true }];
    let known = [between, to_port(FIRST.after(2)), allowed].concat();
    let text = "ip saddr . ip daddr . meta l4proto . th dport @allow return";
    let between6 = vec![source_address6(FIRST), destination_address6(FIRST.after(4))];
    let allowed6 = vec![Expression::Lookup { set: &ALLOW6, key: FIRST, into: None, present: true }];
    let known6 = [between6, to_port(FIRST.after(8)), allowed6].concat();
    let text6 = "ip6 saddr . ip6 daddr . meta l4proto . th dport @allow6 return";
    let prohibited = vec![Expression::Reject(Rejection::AdminProhibited)];
    vec![
        Rule::new("oifname up return", [device(Meta::OutputName, UPLINK, true), back()]),
        Rule::new(text, [family(Family::Ipv4), known, back()]),
        Rule::new(text6, [family(Family::Ipv6), known6, back()]),
        // Of ICMPv6 who connects would hear a second later.
        Rule::new("meta nfproto ipv6 goto refuse", [family(Family::Ipv6), refuse()]),
        Rule::new("iifname p* reject with icmpx admin-prohibited", [input_begins(b"p"), prohibited]),
        // One of another node, whose router has the same addresses as this one and would not believe ICMP from them.
        refused(),
    ]
}

fn jump(chain: &str) -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Jump(chain.to_owned()))]
}

fn back() -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Return)]
}

fn refused() -> Rule {
    Rule::new("goto refuse", [refuse()])
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{t1_attached, view};

    /// The elements of this feature, as text; `web` is the pod t1 here and t2 elsewhere, `db` is t3 elsewhere.
    fn shown(allow: Vec<v1::AllowView>) -> Vec<String> {
        let mut wire = view(1);
        for (endpoint, service) in wire.networks[0].endpoints.iter_mut().zip(["web", "web", "db"]) {
            endpoint.service_id = service.into();
        }
        wire.networks[0].policy = Some(v1::NetworkPolicyView { allow });
        let elements = elements(&Picture::parse(&wire).0, &t1_attached());
        elements.into_iter().map(|(key, data)| Element { key, data }.to_string()).collect()
    }

    #[test]
    fn a_policy_is_who_may_speak_with_whom_and_that_nobody_else_may() {
        assert_eq!(shown(Vec::new()), ["shielded { 10.128.0.2 }", "policed { 4097 }"]);
        let port = v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 89 };
        let services = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let allow = v1::AllowView {
            from_service_ids: services(&["web"]),
            from_cidrs: vec!["192.0.2.0/24".into()],
            to_service_ids: services(&["db", "web"]),
            ports: vec![port],
            ..v1::AllowView::default()
        };
        assert_eq!(
            shown(vec![allow]),
            [
                "allow { 10.128.0.2 . 10.128.0.2 . 1 . 0-65535 }",
                "allow { 10.128.0.2 . 10.128.0.2 . 6 . 80-89 }",
                "allow { 10.128.0.2 . 10.128.0.3 . 1 . 0-65535 }",
                "allow { 10.128.0.2 . 10.128.0.3 . 6 . 80-89 }",
                "allow { 10.128.0.2 . 10.128.0.4 . 1 . 0-65535 }",
                "allow { 10.128.0.2 . 10.128.0.4 . 6 . 80-89 }",
                "allow { 10.128.0.3 . 10.128.0.2 . 1 . 0-65535 }",
                "allow { 10.128.0.3 . 10.128.0.2 . 6 . 80-89 }",
                "allow { 10.128.0.3 . 10.128.0.3 . 1 . 0-65535 }",
                "allow { 10.128.0.3 . 10.128.0.3 . 6 . 80-89 }",
                "allow { 10.128.0.3 . 10.128.0.4 . 1 . 0-65535 }",
                "allow { 10.128.0.3 . 10.128.0.4 . 6 . 80-89 }",
                "allow_in { 10.128.0.2 . 6 . 80-89 . 192.0.2.0-192.0.2.255 }",
                "shielded { 10.128.0.2 }",
                "policed { 4097 }",
            ]
        );
    }

    #[test]
    fn who_comes_by_ipv6_is_judged_by_ranges_of_it() {
        let mut wire = view(1);
        wire.networks[0].subnet6 = "fd00:1::/64".into();
        let ranges = ["2001:db8::/32", "2001:db8:1::/48", "192.0.2.0/24"].map(str::to_owned).to_vec();
        let port = v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 80 };
        let allow = v1::AllowView { from_cidrs: ranges, to_all: true, ports: vec![port], ..v1::AllowView::default() };
        wire.networks[0].policy = Some(v1::NetworkPolicyView { allow: vec![allow] });
        let elements = elements(&Picture::parse(&wire).0, &t1_attached());
        let six = elements.into_iter().map(|(key, data)| Element { key, data }.to_string());
        let six: Vec<String> = six.filter(|line| line.starts_with("allow_in6") || line.starts_with("shielded6")).collect();
        let range = "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(six, [format!("allow_in6 {{ fd00:1::a80:2 . 6 . 80 . {range} }}"), "shielded6 { fd00:1::a80:2 }".to_owned()]);
    }

    #[test]
    fn where_there_is_no_policy_there_is_nothing() {
        let picture = Picture::parse(&view(1)).0;
        assert!(elements(&picture, &Attachments::new()).is_empty() && too_large(&picture).is_empty());
    }
}
