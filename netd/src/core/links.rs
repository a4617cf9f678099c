//! Devices: their names, their hardware addresses, and which of them a picture and the pods here call for.
//!
//! In the router namespace stand one VXLAN device per network, one end of a veth per (pod, network), whose other end is the pod's `ethN`,
//! one of the veth to the host (`uplink`), and the VXLAN device of published ports (`ingress`).
//! All names and hardware addresses are functions of what they stand for, so that a restarted netd finds its devices again and every
//! node knows its peers' addresses without asking.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ingress::{self, INGRESS};
use super::picture::{Attachments, Membership, Picture};
use super::uplink::{self, Forwarding, UPLINK};

/// The UDP port of the overlay (IANA's for VXLAN).
pub const VXLAN_PORT: u16 = 4789;

/// What VXLAN over IPv4 takes from the underlay's MTU: outer IP, UDP and VXLAN headers and the inner Ethernet header.
pub const VXLAN_OVERHEAD: u32 = 50;

/// Pods' gateway and resolver: on the router namespace's loopback, the same on every node. Not in 169.254.169.0/24, where clouds put
/// their metadata.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// The loopback's name in every namespace.
pub const LOOPBACK: &str = "lo";

/// The hardware address of every veth's end in the router namespace; each is alone with its pod, so they may be alike, and a pod's
/// static neighbour stays right when its veth is made anew.
pub const ROUTER_MAC: Mac = Mac([0x02, 0x72, 0, 0, 0, 1]);

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A device in the router namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub kind: LinkKind,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// Neither learning nor flooding: what is not in its forwarding table is not sent.
    Vxlan {
        vni: u32,
        local: Ipv4Addr,
        port: u16,
        learning: bool,
    },
    Veth,
    /// The router's end of the veth to the host.
    Uplink,
}

/// A pod's end of a veth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The other end, in the router namespace.
    pub link: String,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// Held as /32; the whole world is behind the gateway.
    pub ip: Ipv4Addr,
    /// Destinations routed through this interface.
    pub routes: Vec<Ipv4Net>,
    /// The gateway's hardware address, set by hand.
    pub gateway: Mac,
}

/// A pod's interfaces by name (`eth0`, …).
pub type Pod = BTreeMap<String, Interface>;

/// What the node itself brings: its underlay address, the MTU of the overlay over it, and who has it forward packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    pub addr: Ipv4Addr,
    pub overlay_mtu: u32,
    pub forwarding: Forwarding,
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The VXLAN device of a network.
pub fn vxlan_name(vni: u32) -> String {
    format!("v{vni}")
}

/// The router's end of the veth between a pod and a network: `p` and 48 bits of FNV-1a over both ids.
pub fn veth_name(task_id: &str, network_id: &str) -> String {
    let hash = fnv1a(task_id.bytes().chain([0]).chain(network_id.bytes()));
    format!("p{:012x}", hash >> 16)
}

/// FNV-1a, which is the same in every version of netd.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Whether a device of this name in the router namespace is one of ours.
pub fn is_ours(name: &str) -> bool {
    match name.split_at_checked(1) {
        Some(("v", vni)) => !vni.is_empty() && vni.bytes().all(|byte| byte.is_ascii_digit()),
        Some(("p", hash)) => hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
        _ => name == UPLINK || name == INGRESS,
    }
}

/// The hardware address of a node's VXLAN devices. It is made of the node's underlay address, which is unique by nature, rather than
/// of a hash of its id, which two nodes could share.
pub fn vtep_mac(node_addr: Ipv4Addr) -> Mac {
    let [a, b, c, d] = node_addr.octets();
    Mac([0x02, 0x76, a, b, c, d])
}

/// The hardware address of a pod's interface, made of its address.
pub fn pod_mac(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    Mac([0x02, 0x70, a, b, c, d])
}

/// The devices of the router namespace: a VXLAN device per network, a veth per (pod, network), the uplink, and the way to other nodes' pods.
pub fn links(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> BTreeMap<String, Link> {
    let mtu = underlay.overlay_mtu;
    let vxlans = picture.networks.values().map(|network| {
        let kind = LinkKind::Vxlan { vni: network.vni, local: underlay.addr, port: VXLAN_PORT, learning: false };
        (vxlan_name(network.vni), Link { kind, mac: vtep_mac(underlay.addr), mtu, up: true })
    });
    let veths = attachments.iter().flat_map(|(task_id, attachment)| {
        attachment.networks.iter().map(move |membership| {
            (veth_name(task_id, &membership.network_id), Link { kind: LinkKind::Veth, mac: ROUTER_MAC, mtu, up: true })
        })
    });
    let ingress = ingress::link(picture, underlay).map(|link| (INGRESS.to_owned(), link));
    vxlans.chain(veths).chain([(UPLINK.to_owned(), uplink::link(underlay))]).chain(ingress).collect()
}

/// The pods: the first network that is not internal is behind the default route, each other one behind a route of its own.
pub fn pods(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> BTreeMap<String, Pod> {
    let leads_out = |membership: &Membership| picture.networks.get(&membership.network_id).is_some_and(|network| !network.internal);
    let pod = |task_id: &String, memberships: &[Membership]| -> Pod {
        // Refusals, too, come by the default route: a pod without a way out has one all the same.
        let default = memberships.iter().position(leads_out).unwrap_or(0);
        let interface = |(index, membership): (usize, &Membership)| {
            let routes = match picture.networks.get(&membership.network_id) {
                _ if index == default => vec![Ipv4Net::default()],
                Some(network) => vec![network.subnet],
                None => Vec::new(),
            };
            let interface = Interface {
                link: veth_name(task_id, &membership.network_id),
                mac: pod_mac(membership.ip),
                mtu: underlay.overlay_mtu,
                up: true,
                ip: membership.ip,
                routes,
                gateway: ROUTER_MAC,
            };
            (format!("eth{index}"), interface)
        };
        memberships.iter().enumerate().map(interface).collect()
    };
    attachments.iter().map(|(task_id, attachment)| (task_id.clone(), pod(task_id, &attachment.networks))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixtures::{attached, underlay, view};

    #[test]
    fn names_fit_the_kernel_and_are_told_from_others() {
        let veth = veth_name("0198c7f2-1111-7000-8000-000000000001", "net");
        assert!(veth.len() <= 15 && is_ours(&veth), "{veth}");
        assert_ne!(veth, veth_name("0198c7f2-1111-7000-8000-000000000001n", "et"));
        assert!(is_ours(&vxlan_name(16_777_215)));
        assert!(is_ours(UPLINK) && is_ours(INGRESS));
        for other in ["lo", "v", "vx1", "eth0", "p1", "veth0", "pxyzxyzxyzxyz", "up0", "ing0"] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn a_pods_default_route_is_by_its_first_network_that_is_not_internal() {
        let mut wire = view(1);
        let attachments = attached("t1", &[("net-a", [10, 128, 0, 2]), ("net-b", [10, 128, 1, 9])]);
        let underlay = underlay(Forwarding::Host);
        let mut routes = |front: bool, back: bool| {
            (wire.networks[0].internal, wire.networks[1].internal) = (front, back);
            let pods = pods(&Picture::parse(&wire).0, &attachments, &underlay);
            let texts = |interface: &Interface| interface.routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            pods["t1"].values().map(texts).collect::<Vec<_>>()
        };
        assert_eq!(routes(false, false), ["0.0.0.0/0", "10.128.1.0/24"]);
        assert_eq!(routes(true, false), ["10.128.0.0/24", "0.0.0.0/0"]);
        assert_eq!(routes(true, true), ["0.0.0.0/0", "10.128.1.0/24"]);
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_speak_of_their_holder() {
        assert_eq!(vtep_mac(Ipv4Addr::new(10, 90, 0, 101)).to_string(), "02:76:0a:5a:00:65");
        assert_eq!(pod_mac(Ipv4Addr::new(10, 128, 0, 2)).to_string(), "02:70:0a:80:00:02");
    }
}
