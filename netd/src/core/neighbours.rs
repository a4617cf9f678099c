//! How packets leave the router namespace: routes, static neighbours, and the VXLAN devices' forwarding entries.
//!
//! A remote endpoint costs one route: its /32 via its node's underlay address, on the network's VXLAN device. That next hop is only a
//! handle (the underlay itself is not routed in this namespace): a static neighbour turns it into the node's hardware address, and a
//! static forwarding entry sends that to the node. Both are per (network, node), so an endpoint that comes or goes never touches them
//! while others of its node remain. A pod here costs a route and a neighbour on its veth.
//!
//! Of IPv6 an endpoint costs another route, its /128, and a node another neighbour per network: by a link-local address that is made of the node's,
//! with the same hardware address, so that the forwarding entry serves both.
//!
//! Addresses of networks that nobody holds are routed to the loopback, where they never get: on the way the rules reject the packet, and
//! the sender hears so at once. A `prohibit` route would say the same, but to each sender only once a second: its answers are rationed by
//! a limit that cannot be set for one namespace (`net.ipv4.route.error_cost`). Everything else goes by the uplink, if the rules let it: also
//! what subnets may be chosen from, for a client outside may have an address of it, and routes are asked where packets may come from.
//! Of IPv6 endpoints and pods are routed, and where pods get out by it what the host has ways to; then what is inside and nobody's is routed to the
//! loopback, which the kernel takes for unreachable.
//!
//! Packets of connections to published ports that have a backend on another node go there by a table of their own (`ingress`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::encryption;
use super::ingress::{self, INGRESS, Selector};
use super::links::{GATEWAY6, LOOPBACK, Mac, Underlay, pod_mac, veth_name, vtep_mac, vtep6, vxlan_name};
use super::picture::{Attachments, Picture, Place};
use super::uplink::{self, HOST_END_MAC, HOST_IP, UPLINK};

/// Where a destination goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Straight onto a device.
    Link { link: String },
    /// Via a next hop on a device.
    Via { link: String, gateway: IpAddr },
    /// As none of ours does: found, and never wanted.
    Otherwise,
}

/// A forwarding entry of a VXLAN device: frames to `mac` go to the node at `node`, on the underlay or in a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    pub link: String,
    pub mac: Mac,
    pub node: Ipv4Addr,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} on {}", self.mac, self.node, self.link)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { link } => write!(f, "on {link}"),
            Self::Via { link, gateway } => write!(f, "via {gateway} on {link}"),
            Self::Otherwise => write!(f, "of another kind"),
        }
    }
}

/// Static neighbours by (device, address).
pub type Neighbours = BTreeMap<(String, IpAddr), Mac>;

impl Route {
    /// The device it needs; empty for one of another kind, whose device is not known.
    pub fn link(&self) -> &str {
        match self {
            Self::Link { link } | Self::Via { link, .. } => link,
            Self::Otherwise => "",
        }
    }
}

/// Routes, neighbours and forwarding entries together, and which packets go by which routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    pub routes: BTreeMap<IpNet, Route>,
    pub neighbours: Neighbours,
    pub forwards: BTreeSet<Forward>,
    /// The default routes of other tables, by table.
    pub detours: BTreeMap<u32, Route>,
    pub selectors: BTreeSet<Selector>,
}

/// The paths to every endpoint of the picture and every pod here. An address that is attached here is here, whatever the picture
/// says; [`held_twice`] names such addresses.
pub fn paths(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Paths {
    let mut paths =
        Paths { detours: ingress::detours(picture, underlay), selectors: ingress::selectors(picture, underlay), ..Paths::default() };
    let ingress_six = ingress::has_six(picture, underlay);
    for (node, _) in ingress::others(picture, underlay) {
        if ingress_six {
            paths.neighbours.insert((INGRESS.to_owned(), vtep6(node).into()), vtep_mac(node));
        }
        paths.neighbours.insert((INGRESS.to_owned(), node.into()), vtep_mac(node));
        paths.forwards.insert(Forward { link: INGRESS.to_owned(), mac: vtep_mac(node), node });
    }
    paths.routes.insert(Ipv4Net::default().into(), Route::Via { link: UPLINK.to_owned(), gateway: HOST_IP.into() });
    if uplink::carries6(picture, underlay) {
        paths.neighbours.insert((UPLINK.to_owned(), GATEWAY6.into()), HOST_END_MAC);
        let out = Route::Via { link: UPLINK.to_owned(), gateway: GATEWAY6.into() };
        let nobodys = Route::Link { link: LOOPBACK.to_owned() };
        paths.routes.extend(uplink::inside6(picture).into_iter().map(|net| (IpNet::from(net), nobodys.clone())));
        paths.routes.extend(uplink::ways6(picture).map(|way| (IpNet::from(way), out.clone())));
    }
    for network in picture.networks.values() {
        paths.routes.insert(network.subnet.into(), Route::Link { link: LOOPBACK.to_owned() });
        let link = vxlan_name(network.vni);
        for (ip, endpoint) in &network.endpoints {
            let Place::Node(node) = endpoint.place else { continue };
            if node == underlay.addr {
                continue;
            }
            paths.routes.insert(IpNet::from(IpAddr::from(*ip)), Route::Via { link: link.clone(), gateway: node.into() });
            paths.neighbours.insert((link.clone(), node.into()), vtep_mac(node));
            if let Some(ip6) = network.ip6(*ip) {
                paths.routes.insert(IpNet::from(IpAddr::from(ip6)), Route::Via { link: link.clone(), gateway: vtep6(node).into() });
                paths.neighbours.insert((link.clone(), vtep6(node).into()), vtep_mac(node));
            }
            // Without an entry the device drops what is for that node.
            let to = if network.encrypted { encryption::way_to(picture, underlay, node) } else { Some(node) };
            paths.forwards.extend(to.map(|to| Forward { link: link.clone(), mac: vtep_mac(node), node: to }));
        }
    }
    for (task_id, attachment) in attachments {
        for membership in &attachment.networks {
            let link = veth_name(task_id, &membership.network_id);
            let ip6 = picture.networks.get(&membership.network_id).and_then(|network| network.ip6(membership.ip));
            for ip in [Some(IpAddr::from(membership.ip)), ip6.map(IpAddr::from)].into_iter().flatten() {
                paths.neighbours.insert((link.clone(), ip), pod_mac(membership.ip));
                paths.routes.insert(IpNet::from(ip), Route::Link { link: link.clone() });
            }
        }
    }
    paths
}

/// Addresses of pods here that the picture places on another node.
pub fn held_twice(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Vec<String> {
    let mut problems = Vec::new();
    for (task_id, attachment) in attachments {
        for membership in &attachment.networks {
            let endpoint = picture.networks.get(&membership.network_id).and_then(|network| network.endpoints.get(&membership.ip));
            match endpoint.map(|endpoint| (endpoint.place, &endpoint.task_id)) {
                Some((Place::Node(node), holder)) if node != underlay.addr => problems.push(format!(
                    "{} is attached here by task {task_id}, but the picture gives it to task {holder} behind {node}; the pod here keeps it",
                    membership.ip
                )),
                Some(_) | None => {}
            }
        }
    }
    problems
}
