//! The rules on the host: who may send it VXLAN, and what may come and go by the uplink. They stand before those of others and only ever
//! refuse what concerns us, or are final for this table alone: what they accept still meets the host's own rules.
//!
//! ```text
//! nodes      address           from where VXLAN is taken
//! encrypted  VNI               of which VXLAN is neither taken nor sent but through a tunnel
//! ports      protocol . port   published ones: what comes for them from elsewhere goes on into the router, its sender unchanged
//! ports6     protocol . port   those for which what comes by IPv6 does
//! ```
//!
//! VXLAN is not tracked: its connections would be one per peer and network and say nothing, and a full table would cost the overlay.

use super::elements::Field;
use super::expressions::{
    End, Expression, FIRST, Family, Header, Meta, Rejection, accept, device, drop, equals, established, family, protocol, source_address,
    source_address6, to_port,
};
use super::{Chain, Data, Filling, Hook, Policy, Rule, Set, Skeleton, Table, TableFamily};
use crate::core::encryption::DEVICE_START;
use crate::core::flows::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::core::links::VXLAN_PORT;
use crate::core::uplink::{Guards, HOST_END, ROUTER_IP, ROUTER_IP6};

/// Our table on the host.
pub const TABLE: Table = Table { family: TableFamily::Inet, name: "rcluster_host" };

/// The table of iptables in which forwarding is filtered.
pub const FILTER: Table = Table { family: TableFamily::Ipv4, name: "filter" };

/// The same of ip6tables.
pub const FILTER6: Table = Table { family: TableFamily::Ipv6, name: "filter" };

/// Through it Docker sends what is forwarded before its own rules; the administrator's belong there.
pub const DOCKER_USER: &str = "DOCKER-USER";

pub static NODES: Set = Set { name: "nodes", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

/// A VNI as it stands in a header: three bytes, in a register of four.
pub static ENCRYPTED: Set = Set { name: "encrypted", key: &[Field::Number], data: Data::None, filling: Filling::Keys };

pub static PORTS: Set = Set { name: "ports", key: &[Field::Protocol, Field::Port], data: Data::None, filling: Filling::Keys };

pub static PORTS6: Set = Set { name: "ports6", key: &[Field::Protocol, Field::Port], data: Data::None, filling: Filling::Keys };

const BEFORE_TRACKING: i32 = -300;

const DESTINATION_NAT: i32 = -100;

/// Before the `filter` of others.
const EARLY_FILTER: i32 = -10;

const SOURCE_NAT: i32 = 100;

/// The kernel's word for an address of the host itself (`RTN_LOCAL`).
const LOCAL_ADDRESS: u32 = 2;

/// The table's sets and chains; guarded where netd has the host forward packets, which then are none but those of the uplink.
pub fn skeleton(guards: Guards) -> Skeleton {
    let guard = [guards.four.then(guard), guards.six.then(guard6)].into_iter().flatten();
    let forward = [forwarded(), past_tunnels()].into_iter().chain(guard).flatten().collect();
    Skeleton {
        table: TABLE,
        sets: vec![&NODES, &ENCRYPTED, &PORTS, &PORTS6],
        chains: vec![
            Chain::filter("pre", Hook::Prerouting, BEFORE_TRACKING, Policy::Accept, overlay()),
            Chain::filter("out", Hook::Output, BEFORE_TRACKING, Policy::Accept, vec![untracked("udp dport 4789 notrack", vec![])]),
            Chain::filter("sealed", Hook::Output, EARLY_FILTER, Policy::Accept, vec![sent_in_clear()]),
            Chain::nat("ports", Hook::Prerouting, DESTINATION_NAT, published()),
            Chain::filter("frames", Hook::Input, BEFORE_TRACKING, Policy::Accept, [frames(), by_tunnels()].concat()),
            Chain::filter("in", Hook::Input, EARLY_FILTER, Policy::Accept, arriving()),
            Chain::filter("fwd", Hook::Forward, EARLY_FILTER, Policy::Accept, forward),
            Chain::nat("masq", Hook::Postrouting, SOURCE_NAT, leaving()),
        ],
    }
}

/// What lets the uplink's packets through where iptables would drop them.
pub fn passage() -> Chain {
    let rules = vec![
        Rule::new("rcluster: iifname rcl-up accept", [from_uplink(), accept()]),
        Rule::new("rcluster: oifname rcl-up accept", [to_uplink(true), accept()]),
    ];
    Chain { name: DOCKER_USER.to_owned(), base: None, rules }
}

/// Nobody tracks frames for this host.
fn overlay() -> Vec<Rule> {
    vec![untracked("fib daddr type local udp dport 4789 notrack", for_this_host())]
}

/// Frames are taken from nodes alone: what is inside of them is believed to come from a pod. To whichever address they were sent: the kernel
/// takes them at all of the host's, and those for everybody on a link.
fn frames() -> Vec<Rule> {
    let stranger = vec![source_address(FIRST), Expression::Lookup { set: &NODES, key: FIRST, into: None, present: false }];
    vec![Rule::new("udp dport 4789 ip saddr != @nodes drop", [family(Family::Ipv4), vxlan(), stranger, drop()])]
}

fn untracked(text: &str, condition: Vec<Expression>) -> Rule {
    Rule::new(text, [condition, vxlan(), vec![Expression::Untrack]])
}

/// Who is on the wire does not speak for a pod of an encrypted network, to whichever address. By a tunnel nothing comes but VXLAN: the host's
/// firewall may trust that it knows by which devices its services are reached.
fn by_tunnels() -> Vec<Rule> {
    let in_clear = [vxlan(), of_encrypted(), tunnel(Meta::InputName, false), drop()];
    vec![
        Rule::new("udp dport 4789 @th,96,24 @encrypted iifname != rcl-wg* drop", in_clear),
        Rule::new("iifname rcl-wg* udp dport 4789 accept", [tunnel(Meta::InputName, true), vxlan(), accept()]),
        Rule::new("iifname rcl-wg* drop", [tunnel(Meta::InputName, true), drop()]),
    ]
}

/// Nor is anything forwarded from or to another node by one.
fn past_tunnels() -> Vec<Rule> {
    vec![
        Rule::new("iifname rcl-wg* drop", [tunnel(Meta::InputName, true), drop()]),
        Rule::new("oifname rcl-wg* drop", [tunnel(Meta::OutputName, true), drop()]),
    ]
}

/// Nothing of an encrypted network is sent in clear, whatever forwarding entries and routes there are.
fn sent_in_clear() -> Rule {
    Rule::new(
        "udp dport 4789 @th,96,24 @encrypted oifname != rcl-wg* drop",
        [vxlan(), of_encrypted(), tunnel(Meta::OutputName, false), drop()],
    )
}

fn of_encrypted() -> Vec<Expression> {
    vec![
        // Behind UDP's header of 8 bytes and VXLAN's flags.
        Expression::Payload { header: Header::Transport, offset: 12, len: 3, into: FIRST },
        Expression::Lookup { set: &ENCRYPTED, key: FIRST, into: None, present: true },
    ]
}

/// Whether the device is, or is not, a tunnel's.
fn tunnel(key: Meta, is: bool) -> Vec<Expression> {
    let start = DEVICE_START.as_bytes().to_vec();
    vec![Expression::Meta { key, into: FIRST }, Expression::Compare { register: FIRST, equal: is, value: start }]
}

/// The key of a network in `ENCRYPTED`.
pub fn encrypted_key(vni: u32) -> [u8; 4] {
    let [_, a, b, c] = vni.to_be_bytes();
    [a, b, c, 0]
}

/// The network of a key of `ENCRYPTED`.
pub fn encrypted_vni(key: &[u8]) -> Option<u32> {
    key.first_chunk::<3>().map(|[a, b, c]| u32::from_be_bytes([0, *a, *b, *c]))
}

/// Pods reach nothing of the host; TCP hears so by a reset, which is not rationed as ICMP is.
fn arriving() -> Vec<Rule> {
    vec![
        Rule::new("iifname rcl-up ct state established,related accept", [from_uplink(), established(), accept()]),
        Rule::new(
            "iifname rcl-up meta l4proto tcp reject with tcp reset",
            [from_uplink(), protocol(PROTOCOL_TCP), reject(Rejection::Reset)],
        ),
        Rule::new("iifname rcl-up reject with icmpx admin-prohibited", [from_uplink(), reject(Rejection::AdminProhibited)]),
    ]
}

/// Nor what is told on a link to whoever asks from this host, as clouds do; nor nodes' VXLAN, which would take a pod's frames for this node's.
/// Who came to a published port from such a place is answered. What has another source than the router's escaped its translation.
fn forwarded() -> Vec<Rule> {
    let to_link_local = vec![Expression::Payload { header: Header::Network, offset: 16, len: 2, into: FIRST }, equals(&[169, 254])];
    vec![
        Rule::new("iifname rcl-up ip saddr != 169.254.54.2 drop", [from_uplink(), family(Family::Ipv4), from_router(false), drop()]),
        Rule::new("iifname rcl-up ip6 saddr != fd5c:7263::54:2 drop", [from_uplink(), family(Family::Ipv6), from_router6(false), drop()]),
        Rule::new("iifname rcl-up ct state established,related accept", [from_uplink(), established(), accept()]),
        Rule::new(
            "iifname rcl-up udp dport 4789 reject with icmpx admin-prohibited",
            [from_uplink(), vxlan(), reject(Rejection::AdminProhibited)],
        ),
        Rule::new(
            "iifname rcl-up ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited",
            [from_uplink(), family(Family::Ipv4), to_link_local, reject(Rejection::AdminProhibited)],
        ),
    ]
}

/// A host that forwards for the uplink's sake alone is no router between its other networks.
fn guard() -> Vec<Rule> {
    vec![Rule::new(
        "meta nfproto ipv4 iifname != rcl-up oifname != rcl-up drop",
        [family(Family::Ipv4), device(Meta::InputName, HOST_END, false), to_uplink(false), drop()],
    )]
}

fn guard6() -> Vec<Rule> {
    vec![Rule::new(
        "meta nfproto ipv6 iifname != rcl-up oifname != rcl-up drop",
        [family(Family::Ipv6), device(Meta::InputName, HOST_END, false), to_uplink(false), drop()],
    )]
}

/// The host's own connections do not come by here: netd takes them at the port itself.
fn published() -> Vec<Rule> {
    let on = vec![
        Expression::Lookup { set: &PORTS, key: FIRST, into: None, present: true },
        Expression::Load { into: FIRST, value: ROUTER_IP.octets().to_vec() },
        Expression::Translate { end: End::Destination, family: Family::Ipv4, address: FIRST, port: None },
    ];
    let on6 = vec![
        Expression::Lookup { set: &PORTS6, key: FIRST, into: None, present: true },
        Expression::Load { into: FIRST, value: ROUTER_IP6.octets().to_vec() },
        Expression::Translate { end: End::Destination, family: Family::Ipv6, address: FIRST, port: None },
    ];
    // Who asks for an address of the link is nobody to whom the router could answer.
    let not_of_link = vec![
        Expression::Payload { header: Header::Network, offset: 24, len: 2, into: FIRST },
        Expression::Compare { register: FIRST, equal: false, value: vec![0xfe, 0x80] },
    ];
    vec![
        Rule::new(
            "iifname != rcl-up fib daddr type local meta l4proto . th dport @ports dnat ip to 169.254.54.2",
            [device(Meta::InputName, HOST_END, false), family(Family::Ipv4), for_this_host(), to_port(FIRST), on],
        ),
        Rule::new(
            "iifname != rcl-up ip6 daddr != fe80::/16 fib daddr type local meta l4proto . th dport @ports6 dnat ip6 to fd5c:7263::54:2",
            [device(Meta::InputName, HOST_END, false), family(Family::Ipv6), not_of_link, for_this_host(), to_port(FIRST), on6],
        ),
    ]
}

fn leaving() -> Vec<Rule> {
    vec![
        Rule::new(
            "ip saddr 169.254.54.2 oifname != rcl-up masquerade random-fully",
            [family(Family::Ipv4), from_router(true), to_uplink(false), vec![Expression::Masquerade]],
        ),
        Rule::new(
            "ip6 saddr fd5c:7263::54:2 oifname != rcl-up masquerade random-fully",
            [family(Family::Ipv6), from_router6(true), to_uplink(false), vec![Expression::Masquerade]],
        ),
    ]
}

fn from_uplink() -> Vec<Expression> {
    device(Meta::InputName, HOST_END, true)
}

fn to_uplink(is: bool) -> Vec<Expression> {
    device(Meta::OutputName, HOST_END, is)
}

fn from_router(is: bool) -> Vec<Expression> {
    vec![source_address(FIRST), Expression::Compare { register: FIRST, equal: is, value: ROUTER_IP.octets().to_vec() }]
}

fn from_router6(is: bool) -> Vec<Expression> {
    vec![source_address6(FIRST), Expression::Compare { register: FIRST, equal: is, value: ROUTER_IP6.octets().to_vec() }]
}

fn for_this_host() -> Vec<Expression> {
    vec![Expression::DestinationType { into: FIRST }, equals(&LOCAL_ADDRESS.to_ne_bytes())]
}

fn vxlan() -> Vec<Expression> {
    let mut expressions = protocol(PROTOCOL_UDP);
    expressions.push(Expression::Payload { header: Header::Transport, offset: 2, len: 2, into: FIRST });
    expressions.push(equals(&VXLAN_PORT.to_be_bytes()));
    expressions
}

fn reject(how: Rejection) -> Vec<Expression> {
    vec![Expression::Reject(how)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_table_reads_like_this() {
        assert_eq!(
            skeleton(Guards { four: true, six: true }).to_string(),
            "table inet rcluster_host
  set nodes [Address] -> None
  set encrypted [Number] -> None
  set ports [Protocol, Port] -> None
  set ports6 [Protocol, Port] -> None
  chain pre hook Prerouting priority -300 policy Accept
    fib daddr type local udp dport 4789 notrack
  chain out hook Output priority -300 policy Accept
    udp dport 4789 notrack
  chain sealed hook Output priority -10 policy Accept
    udp dport 4789 @th,96,24 @encrypted oifname != rcl-wg* drop
  chain ports nat hook Prerouting priority -100 policy Accept
    iifname != rcl-up fib daddr type local meta l4proto . th dport @ports dnat ip to 169.254.54.2
    iifname != rcl-up ip6 daddr != fe80::/16 fib daddr type local meta l4proto . th dport @ports6 dnat ip6 to fd5c:7263::54:2
  chain frames hook Input priority -300 policy Accept
    udp dport 4789 ip saddr != @nodes drop
    udp dport 4789 @th,96,24 @encrypted iifname != rcl-wg* drop
    iifname rcl-wg* udp dport 4789 accept
    iifname rcl-wg* drop
  chain in hook Input priority -10 policy Accept
    iifname rcl-up ct state established,related accept
    iifname rcl-up meta l4proto tcp reject with tcp reset
    iifname rcl-up reject with icmpx admin-prohibited
  chain fwd hook Forward priority -10 policy Accept
    iifname rcl-up ip saddr != 169.254.54.2 drop
    iifname rcl-up ip6 saddr != fd5c:7263::54:2 drop
    iifname rcl-up ct state established,related accept
    iifname rcl-up udp dport 4789 reject with icmpx admin-prohibited
    iifname rcl-up ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
    iifname rcl-wg* drop
    oifname rcl-wg* drop
    meta nfproto ipv4 iifname != rcl-up oifname != rcl-up drop
    meta nfproto ipv6 iifname != rcl-up oifname != rcl-up drop
  chain masq nat hook Postrouting priority 100 policy Accept
    ip saddr 169.254.54.2 oifname != rcl-up masquerade random-fully
    ip6 saddr fd5c:7263::54:2 oifname != rcl-up masquerade random-fully
"
        );
    }

    #[test]
    fn a_host_that_forwarded_before_goes_on_doing_so() {
        let refused = |four, six| {
            let rules = skeleton(Guards { four, six }).outline().rules;
            let refusals = rules.iter().filter(|rule| rule.contains("oifname != rcl-up drop"));
            refusals.map(|rule| rule.contains("ipv4")).collect::<Vec<_>>()
        };
        assert_eq!([refused(false, false), refused(true, false), refused(false, true)], [vec![], vec![true], vec![false]]);
    }
}
