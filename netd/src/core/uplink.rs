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
//! Decides: the pair's ends, the addresses that are kept inside, from where the host takes VXLAN, and what is wrong with a
//! host that keeps packets from passing. Never: changes of tables that others made but for two rules in
//! `DOCKER-USER`, which is there for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::encryption::{self, Tunnel};
use super::ingress;
use super::links::{Link, LinkKind, Mac, Underlay};
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

/// Addresses of a link: ours, and those under which clouds tell secrets.
pub const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// What subnets are chosen from where the managers do not say.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 9);

const ROUTER_END_MAC: Mac = Mac([0x02, 0x72, 0, 0, 0, 2]);

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
    /// The host forwards packets.
    pub forwarding: bool,
    pub passage: Passage,
    /// The host's end of the uplink; `None` where there is none, or one that is not ours.
    pub end: Option<HostEnd>,
}

/// Our table on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostRules {
    /// Not there, or not as we make it.
    #[default]
    Other,
    /// What the host forwards between its other devices is its own business.
    Open,
    /// It forwards nothing but the uplink's packets.
    Guarded,
}

impl HostRules {
    /// What the kernel shows of the table.
    pub fn seen(outline: &Outline) -> Self {
        let is = |guarded| host::skeleton(guarded).outline() == *outline;
        match (is(false), is(true)) {
            (true, _) => Self::Open,
            (false, true) => Self::Guarded,
            (false, false) => Self::Other,
        }
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
    let Link { mtu, .. } = link(underlay);
    let (sealed, tunnels) = (encryption::sealed(picture), encryption::tunnels(picture, underlay));
    HostPlane {
        rules: rules(underlay),
        peers: senders(picture, underlay),
        fenced: !sealed.is_empty() || !tunnels.is_empty(),
        sealed,
        tunnels,
        ports: ingress::open(picture),
        forwarding: wants_forwarding(underlay),
        passage: Passage::Open,
        end: Some(HostEnd { mac: HOST_END_MAC, mtu, up: true, addressed: true }),
    }
}

fn rules(underlay: &Underlay) -> HostRules {
    match underlay.forwarding {
        Forwarding::Host | Forwarding::Administrator => HostRules::Open,
        Forwarding::Netd => HostRules::Guarded,
    }
}

fn wants_forwarding(underlay: &Underlay) -> bool {
    match underlay.forwarding {
        Forwarding::Host | Forwarding::Netd => true,
        Forwarding::Administrator => false,
    }
}

/// The router's end.
pub fn link(underlay: &Underlay) -> Link {
    Link { kind: LinkKind::Uplink, mac: ROUTER_END_MAC, mtu: underlay.overlay_mtu, up: true, six: false }
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
    if !host.forwarding && !wants_forwarding(underlay) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixtures::{underlay, view};

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
        let (open, guarded) = (host::skeleton(false).outline(), host::skeleton(true).outline());
        assert_eq!([HostRules::seen(&open), HostRules::seen(&guarded)], [HostRules::Open, HostRules::Guarded]);
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
