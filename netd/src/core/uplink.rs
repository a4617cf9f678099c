//! The way out of the cluster: one veth pair between the router namespace and the host's, and what the host needs for it.
//!
//! ```text
//! pod ──► router: up 169.254.54.2 ═ veth ═ rcl-up 169.254.54.1 :host ──► the host's own routes
//!           source becomes 169.254.54.2      source becomes the host's
//! ```
//!
//! The host knows one address of ours, whatever networks there are: its routes never meet those of the overlay. Subnets are routed to the
//! router's loopback, so that an address that nobody holds is refused there. What subnets are chosen from is not sent out either, but where
//! the host has a way of its own to it: it may be in use outside, and who comes from there to a published port is answered.
//!
//! By IPv6 the same, over fd5c:7263::54:2 and fd5c:7263::54:1, where a network with IPv6 is to lead out and the host has ways there. The router has
//! routes of its own for these ways alone: to what the host does not reach there is none, and pods hear so at once. Nobody is looked for on the
//! pair: both ends know each other's hardware address.
//!
//! Decides: the pair's ends, the addresses that are kept inside, from where the host takes VXLAN, and what is wrong with a
//! host that keeps packets from passing. Never: changes of tables that others made but for two rules in
//! `DOCKER-USER`, which is there for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::encryption::{self, Tunnel};
use super::ingress;
use super::links::{Link, LinkKind, Mac, SIX_MTU_MIN, Underlay};
use super::picture::{Network, Picture};
use super::published::Opening;
use super::rules::{Outline, host};

/// The pair's end in the router namespace.
pub const UPLINK: &str = "up";

/// The pair's end on the host.
pub const HOST_END: &str = "rcl-up";

/// The router's address on the pair; whatever leaves the cluster has it as its source until the host puts its own.
pub const ROUTER_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 54, 2);

/// The host's address on the pair.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 54, 1);

/// What no one else may use on the host.
pub const RESERVED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 54, 0), 30);

/// The router's address of IPv6 on the pair, and the host's.
pub const ROUTER_IP6: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x7263, 0, 0, 0, 0, 0x54, 2);
pub const HOST_IP6: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x7263, 0, 0, 0, 0, 0x54, 1);

/// What no one else may use of IPv6 on the host.
pub const RESERVED6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd5c, 0x7263, 0, 0, 0, 0, 0x54, 0), 126);

/// All of IPv6 that is netd's own on every node, and never outside.
pub const OWN6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd5c, 0x7263, 0, 0, 0, 0, 0, 0), 32);

/// Under which clouds tell hosts secrets by IPv6: of Amazon, Google and Oracle.
const CLOUDS6: [Ipv6Net; 3] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 32),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0, 0), 32),
];

/// What a cluster's networks have in common, where they do not ask for prefixes of their own (RFC 4193).
const CLUSTER_PREFIX6: u8 = 48;

/// Addresses of a link: ours, and those under which clouds tell secrets.
pub const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// What subnets are chosen from where the managers do not say.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 9);

/// By this the host finds the router's end.
pub const ROUTER_END_MAC: Mac = Mac([0x02, 0x72, 0, 0, 0, 2]);

/// By this the host's end is known to be ours.
pub const HOST_END_MAC: Mac = Mac([0x02, 0x72, 0, 0, 0, 3]);

/// Who has the host forward packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// It did before netd came; it is kept so.
    Host,
    /// It did not: netd has it do so, for packets of the uplink alone.
    Netd,
    /// Nobody, unless the administrator does.
    Administrator,
}

/// What is netd's on the host, apart from the sockets of VXLAN devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPlane {
    pub rules: HostRules,
    /// Addresses that VXLAN is taken from, nodes' on the underlay and in tunnels.
    pub peers: BTreeSet<Ipv4Addr>,
    /// VNIs whose frames are neither taken nor sent in clear.
    pub sealed: BTreeSet<u32>,
    /// What is for an address in a tunnel goes nowhere when there is none.
    pub fenced: bool,
    /// By their devices' names.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Ports by which connections from elsewhere go on into the router.
    pub ports: BTreeSet<Opening>,
    /// Those by which connections of IPv6 do, too.
    pub ports6: BTreeSet<Opening>,
    /// The host forwards packets.
    pub forwarding: bool,
    pub forwarding6: Forwards6,
    pub passage: Passage,
    /// Of ip6tables.
    pub passage6: Passage,
    /// The host's end of the uplink; `None` where there is none, or one that is not ours.
    pub end: Option<HostEnd>,
}

/// Whether the host forwards packets of IPv6; each is more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Forwards6 {
    #[default]
    No,
    /// But a device that is set to take routers' advertisements ignores them for it.
    Deaf,
    Hearing,
}

/// Our table on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostRules {
    /// Not there, or not as we make it.
    #[default]
    Other,
    Ours(Guards),
}

/// Of which family of addresses the host forwards nothing but the uplink's packets; of the others what it forwards between its other devices is its
/// own business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guards {
    pub four: bool,
    pub six: bool,
}

impl Guards {
    /// All there are.
    const ALL: [Self; 4] = [
        Self { four: false, six: false },
        Self { four: true, six: false },
        Self { four: false, six: true },
        Self { four: true, six: true },
    ];
}

impl HostRules {
    /// What the kernel shows of the table.
    pub fn seen(outline: &Outline) -> Self {
        let shown = Guards::ALL.into_iter().find(|guards| host::skeleton(*guards).outline() == *outline);
        shown.map_or(Self::Other, Self::Ours)
    }
}

/// The host's end of the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEnd {
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// Both ends have their addresses.
    pub addressed: bool,
    /// Of IPv6 too, and the host knows the router's end by it.
    pub six: bool,
}

/// Whether iptables' chain FORWARD lets packets of the uplink through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    #[default]
    Open,
    /// It drops what it is not told of; Docker's chain for the administrator's rules is there.
    Docker,
    /// It drops what it is not told of.
    Shut,
}

/// What the picture calls for on the host.
pub fn host_plane(picture: &Picture, underlay: &Underlay) -> HostPlane {
    let six = carries6(picture, underlay);
    let Link { mtu, .. } = link(picture, underlay);
    let (sealed, tunnels) = (encryption::sealed(picture), encryption::tunnels(picture, underlay));
    HostPlane {
        rules: HostRules::Ours(guards(underlay, six)),
        peers: senders(picture, underlay),
        fenced: !sealed.is_empty() || !tunnels.is_empty(),
        sealed,
        tunnels,
        ports: ingress::open(picture),
        ports6: if six { ingress::open6(picture, underlay) } else { BTreeSet::new() },
        forwarding: is_wanted(underlay.forwarding),
        forwarding6: if six { forwards6(underlay) } else { Forwards6::No },
        passage: Passage::Open,
        passage6: Passage::Open,
        end: Some(HostEnd { mac: HOST_END_MAC, mtu, up: true, addressed: true, six }),
    }
}

/// Whether IPv6 passes: a network is to lead out, or a published port is to be reached by it, and the host has a way.
pub fn carries6(picture: &Picture, underlay: &Underlay) -> bool {
    has_way6(picture, underlay) && wants6(picture, underlay)
}

fn wants6(picture: &Picture, underlay: &Underlay) -> bool {
    picture.networks.values().any(is_outward6) || ingress::has_six(picture, underlay)
}

/// Whether the host has ways by IPv6, and the pair carries it.
pub fn has_way6(picture: &Picture, underlay: &Underlay) -> bool {
    !picture.beyond6.is_empty() && underlay.overlay_mtu >= SIX_MTU_MIN
}

/// Whether it has IPv6 and is to lead out.
fn is_outward6(network: &Network) -> bool {
    network.subnet6.is_some() && !network.internal
}

/// A host that netd has made forward goes on doing so, also when nothing of IPv6 is to pass any more.
fn guards(underlay: &Underlay, six: bool) -> Guards {
    Guards { four: is_guarded(underlay.forwarding), six: (six || underlay.turned_on6) && is_guarded(underlay.forwarding6) }
}

fn is_guarded(forwarding: Forwarding) -> bool {
    match forwarding {
        Forwarding::Host | Forwarding::Administrator => false,
        Forwarding::Netd => true,
    }
}

/// Which devices of a host take advertisements that forwarded before is its own business.
fn forwards6(underlay: &Underlay) -> Forwards6 {
    match underlay.forwarding6 {
        Forwarding::Host => Forwards6::Deaf,
        Forwarding::Netd => Forwards6::Hearing,
        Forwarding::Administrator => Forwards6::No,
    }
}

/// Whether netd is to see that the host forwards.
pub fn is_wanted(forwarding: Forwarding) -> bool {
    match forwarding {
        Forwarding::Host | Forwarding::Netd => true,
        Forwarding::Administrator => false,
    }
}

/// The router's end.
pub fn link(picture: &Picture, underlay: &Underlay) -> Link {
    let six = carries6(picture, underlay);
    Link { kind: LinkKind::Uplink, mac: ROUTER_END_MAC, mtu: underlay.overlay_mtu, up: true, six }
}

/// The addresses from which something may be sent here: of the other nodes of its networks, of those that are encrypted none but in tunnels, and
/// of the nodes that may send on what comes to a published port.
fn senders(picture: &Picture, underlay: &Underlay) -> BTreeSet<Ipv4Addr> {
    let in_clear = places(picture.networks.values().filter(|network| !network.encrypted), underlay.addr);
    in_clear.chain(encryption::senders(picture, underlay)).chain(entries(picture, underlay)).collect()
}

/// The same nodes by their addresses on the underlay, however they send.
pub fn peers(picture: &Picture, underlay: &Underlay) -> BTreeSet<Ipv4Addr> {
    places(picture.networks.values(), underlay.addr).chain(entries(picture, underlay)).collect()
}

/// The nodes that may send on what comes to a published port.
fn entries(picture: &Picture, underlay: &Underlay) -> impl Iterator<Item = Ipv4Addr> {
    ingress::others(picture, underlay).map(|(node, _)| node)
}

/// The other nodes than this `own` one that have an endpoint on one of the networks.
pub(super) fn places<'a>(networks: impl Iterator<Item = &'a Network>, own: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
    let endpoints = networks.flat_map(|network| network.endpoints.values());
    endpoints.filter_map(|endpoint| endpoint.place.node()).filter(move |node| *node != own)
}

/// Every node's address that is known here, this one's too.
pub fn nodes(picture: &Picture, underlay: &Underlay) -> BTreeSet<Ipv4Addr> {
    picture.nodes.iter().copied().chain(places(picture.networks.values(), underlay.addr)).chain([underlay.addr]).collect()
}

/// What subnets are chosen from, and addresses of links.
fn reserved(picture: &Picture) -> BTreeSet<Ipv4Net> {
    let mut reserved = picture.pools.clone();
    if reserved.is_empty() {
        reserved.insert(POOL);
    }
    reserved.insert(LINK_LOCAL);
    reserved
}

/// What pods are not to reach by the uplink, from a first address to a last one; no two meet.
pub fn shut(picture: &Picture) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let ends = |net: &Ipv4Net| (u32::from(net.network()), u32::from(net.broadcast()));
    let reserved: Vec<Ipv4Net> = reserved(picture).into_iter().collect();
    let mut shut: Vec<(u32, u32)> = Ipv4Net::aggregate(&reserved).iter().map(ends).collect();
    for (first, last) in picture.beyond.iter().map(ends) {
        let without = |(begin, end): (u32, u32)| {
            let below = first.checked_sub(1).map(|below| (begin, end.min(below)));
            let above = last.checked_add(1).map(|above| (begin.max(above), end));
            below.into_iter().chain(above).filter(|(begin, end)| begin <= end)
        };
        shut = shut.into_iter().flat_map(without).collect();
    }
    shut.into_iter().map(|(first, last)| (first.into(), last.into())).collect()
}

/// What pods are not to reach by the uplink of IPv6, wherever the host has ways to: netd's own, what clouds tell hosts, and networks.
fn shut6(picture: &Picture) -> BTreeSet<Ipv6Net> {
    [OWN6].into_iter().chain(CLOUDS6).chain(picture.networks.values().filter_map(|network| network.subnet6)).collect()
}

/// Of IPv6 what is not outside: the same, and the rest of the cluster's range.
pub fn inside6(picture: &Picture) -> BTreeSet<Ipv6Net> {
    let mut inside = shut6(picture);
    inside.extend(picture.networks.values().filter_map(|network| network.subnet6.and_then(range6)));
    inside
}

/// The cluster's range that a network's prefix was chosen from; one that is not a unique local one was from none.
pub fn range6(subnet6: Ipv6Net) -> Option<Ipv6Net> {
    let is_own = subnet6.network().is_unique_local();
    Ipv6Net::new(subnet6.network(), CLUSTER_PREFIX6).ok().filter(|_| is_own).map(|range| range.trunc())
}

/// Where pods get by the host of IPv6.
pub fn ways6(picture: &Picture) -> impl Iterator<Item = Ipv6Net> {
    let shut = shut6(picture);
    picture.beyond6.iter().copied().filter(move |way| !shut.iter().any(|net| net.contains(way)))
}

/// Of what others are not to be asked: addresses of networks, whoever holds them, and those of links.
pub fn inside(picture: &Picture) -> BTreeSet<Ipv4Net> {
    let mut inside = reserved(picture);
    let elsewhere: Vec<Ipv4Net> =
        picture.networks.values().map(|network| network.subnet).filter(|subnet| !covered(*subnet, &inside)).collect();
    inside.extend(elsewhere);
    inside
}

fn covered(subnet: Ipv4Net, by: &BTreeSet<Ipv4Net>) -> bool {
    by.iter().any(|net| net.contains(&subnet))
}

/// What keeps pods from reaching the outside, and how to mend it, where netd may not.
pub fn conditions(host: &HostPlane, underlay: &Underlay) -> Vec<String> {
    let mut conditions = Vec::new();
    if !host.forwarding && !is_wanted(underlay.forwarding) {
        conditions.push(
            "this host does not forward packets, so pods reach nothing outside the cluster, and nobody there reaches published ports by this node: \
             set the sysctl net.ipv4.ip_forward to 1, or start rcluster-netd without --no-forwarding"
                .to_owned(),
        );
    }
    if host.passage == Passage::Shut {
        conditions.push(format!(
            "this host's firewall drops what is forwarded (chain FORWARD of table ip filter), so pods reach nothing outside the cluster, and nobody \
             there reaches published ports by this node: iptables -I FORWARD -i {HOST_END} -j ACCEPT; iptables -I FORWARD -o {HOST_END} -j ACCEPT"
        ));
    }
    conditions
}

/// The same of IPv6, where it is to pass; `withheld`: the host has ways that it may not be made to forward to.
pub fn conditions6(picture: &Picture, host: &HostPlane, underlay: &Underlay, withheld: bool) -> Vec<String> {
    let mut conditions = Vec::new();
    if withheld && wants6(picture, underlay) {
        conditions.push(
            "this host does not forward IPv6, so pods reach nothing outside the cluster by it, and nobody there reaches published ports: \
             set the sysctl net.ipv6.conf.all.forwarding to 1 (first accept_ra to 2 on each device that learns its routes from routers), or start \
             rcluster-netd without --no-forwarding"
                .to_owned(),
        );
    }
    if host.passage6 == Passage::Shut && host.end.is_some_and(|end| end.six) {
        conditions.push(format!(
            "this host's firewall drops what is forwarded of IPv6 (chain FORWARD of table ip6 filter), so pods reach nothing outside the cluster \
             by it, and nobody there reaches published ports: ip6tables -I FORWARD -i {HOST_END} -j ACCEPT; ip6tables -I FORWARD -o {HOST_END} -j ACCEPT"
        ));
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixtures::{underlay, view};

    /// `front` has IPv6, and the host these ways.
    fn six(ways: &[&str]) -> Picture {
        let mut wire = view(1);
        wire.networks[0].subnet6 = "fd12:3456:789a:1::/64".into();
        let mut picture = Picture::parse(&wire).0;
        picture.beyond6 = ways.iter().map(|way| way.parse().unwrap()).collect();
        picture
    }

    #[test]
    fn pods_get_out_by_ipv6_where_a_network_is_to_lead_there_and_the_host_has_a_way() {
        let underlay = underlay(Forwarding::Netd);
        let led = |picture: &Picture, underlay: &Underlay| {
            let plane = host_plane(picture, underlay);
            let end = plane.end.is_some_and(|end| end.six);
            assert_eq!(plane.forwarding6, if end { Forwards6::Hearing } else { Forwards6::No });
            assert_eq!(plane.rules, HostRules::Ours(Guards { four: true, six: end }));
            assert_eq!(link(picture, underlay).six, end);
            end
        };
        assert!(led(&six(&["::/0"]), &underlay));
        assert!(!led(&six(&[]), &underlay));
        assert!(!led(&six(&["::/0"]), &Underlay { overlay_mtu: 1279, ..underlay }), "too small for it");
        let mut internal = six(&["::/0"]);
        internal.networks.values_mut().for_each(|network| network.internal = true);
        assert!(!led(&internal, &underlay));
        let plane = host_plane(&internal, &Underlay { turned_on6: true, ..underlay });
        assert_eq!(plane.rules, HostRules::Ours(Guards { four: true, six: true }), "it forwards still");
        let plane = host_plane(&six(&["::/0"]), &Underlay { forwarding6: Forwarding::Host, ..underlay });
        assert_eq!(plane.forwarding6, Forwards6::Deaf, "what it hears is not netd's business");
        assert_eq!(plane.rules, HostRules::Ours(Guards { four: true, six: false }));
    }

    #[test]
    fn nothing_inside_is_a_way_out_by_ipv6() {
        let picture = six(&["::/0", "fd00:ec2::254/128", "fd12:3456:789a:1::/64", "fd12:3456:789a:2::/64"]);
        assert_eq!(ways6(&picture).map(|way| way.to_string()).collect::<Vec<_>>(), ["::/0", "fd12:3456:789a:2::/64"]);
        let inside: Vec<String> = inside6(&picture).iter().map(ToString::to_string).collect();
        assert_eq!(
            inside,
            ["fd00:c1::/32", "fd00:ec2::/32", "fd12:3456:789a::/48", "fd12:3456:789a:1::/64", "fd20:ce::/32", "fd5c:7263::/32"]
        );
    }

    #[test]
    fn a_host_that_keeps_packets_of_ipv6_from_passing_is_told_of_where_pods_have_it() {
        let picture = six(&["::/0"]);
        let plane = host_plane(&picture, &underlay(Forwarding::Host));
        let told = |picture: &Picture, host: &HostPlane, withheld| conditions6(picture, host, &underlay(Forwarding::Host), withheld).len();
        assert_eq!((told(&picture, &plane, false), told(&picture, &plane, true)), (0, 1));
        assert_eq!(told(&Picture::parse(&view(1)).0, &plane, true), 0, "nobody has IPv6");
        let shut = HostPlane { passage6: Passage::Shut, ..plane };
        assert_eq!(told(&picture, &shut, false), 1);
        let end = shut.end.map(|end| HostEnd { six: false, ..end });
        assert_eq!(told(&picture, &HostPlane { end, ..shut }, false), 0, "nobody gets out by it");
    }

    #[test]
    fn what_is_inside_is_the_pools_or_the_one_of_old_and_subnets_that_are_in_neither() {
        let texts = |picture: &Picture| inside(picture).iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut wire = view(1);
        wire.networks[1].subnet = "192.168.7.0/24".into();
        wire.networks[1].endpoints.clear();
        assert_eq!(texts(&Picture::parse(&wire).0), ["10.128.0.0/9", "169.254.0.0/16", "192.168.7.0/24"]);
        wire.pools = vec!["192.168.0.0/16".into(), "10.128.0.0/20".into()];
        assert_eq!(texts(&Picture::parse(&wire).0), ["10.128.0.0/20", "169.254.0.0/16", "192.168.0.0/16"]);
    }

    #[test]
    fn what_subnets_are_chosen_from_is_shut_but_where_the_host_has_a_way_of_its_own() {
        let mut picture = Picture::parse(&view(1)).0;
        let texts = |picture: &Picture| shut(picture).iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>();
        assert_eq!(texts(&picture), ["10.128.0.0-10.255.255.255", "169.254.0.0-169.254.255.255"]);
        picture.beyond = ["10.128.0.0/20", "10.200.0.0/16", "172.16.0.0/12"].map(|net| net.parse().unwrap()).to_vec();
        assert_eq!(texts(&picture), ["10.128.16.0-10.199.255.255", "10.201.0.0-10.255.255.255", "169.254.0.0-169.254.255.255"]);
        picture.pools = ["10.200.0.0/24", "10.128.0.0/9", "255.255.255.0/24", "0.0.0.0/24"].map(|net| net.parse().unwrap()).into();
        picture.beyond = ["10.0.0.0/8", "255.255.255.255/32", "0.0.0.0/32"].map(|net| net.parse().unwrap()).to_vec();
        assert_eq!(texts(&picture), ["0.0.0.1-0.0.0.255", "169.254.0.0-169.254.255.255", "255.255.255.0-255.255.255.254"]);
    }

    #[test]
    fn the_hosts_rules_are_told_from_each_other_and_from_those_of_others() {
        for guards in Guards::ALL {
            assert_eq!(HostRules::seen(&host::skeleton(guards).outline()), HostRules::Ours(guards));
        }
        let open = host::skeleton(Guards::default()).outline();
        assert_eq!(HostRules::seen(&Outline { rules: Vec::new(), ..open }), HostRules::Other);
        assert_eq!(HostRules::seen(&Outline::default()), HostRules::Other);
    }

    #[test]
    fn vxlan_is_taken_from_nodes_that_share_a_network_and_nobody_else() {
        let mut wire = view(1);
        wire.networks.truncate(1);
        let (picture, _) = Picture::parse(&wire);
        let plane = host_plane(&picture, &underlay(Forwarding::Host));
        assert_eq!(plane.peers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.90.0.102"]);
        let known = nodes(&picture, &underlay(Forwarding::Host));
        assert_eq!(known.iter().map(|node| node.octets()[3]).collect::<Vec<_>>(), [101, 102, 103]);
    }

    #[test]
    fn a_host_that_keeps_packets_from_passing_is_told_of() {
        let told = |forwarding, host: &HostPlane| conditions(host, &underlay(forwarding)).len();
        let (picture, _) = Picture::parse(&view(1));
        let plane = host_plane(&picture, &underlay(Forwarding::Netd));
        assert_eq!(told(Forwarding::Netd, &plane), 0);
        let still = HostPlane { forwarding: false, ..plane.clone() };
        assert_eq!((told(Forwarding::Administrator, &still), told(Forwarding::Netd, &still)), (1, 0));
        assert_eq!(told(Forwarding::Administrator, &HostPlane { passage: Passage::Shut, ..still.clone() }), 2);
        assert_eq!(told(Forwarding::Netd, &HostPlane { passage: Passage::Docker, ..plane }), 0);
    }
}
