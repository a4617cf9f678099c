//! Devices: their names, their hardware addresses, and which of them a picture and the pods here call for.
//!
//! In the router namespace stand one VXLAN device per network, one end of a veth per (pod, network), whose other end is the pod's `ethN`,
//! one of the veth to the host (`uplink`), and the VXLAN device of published ports (`ingress`).
//! All names and hardware addresses are functions of what they stand for, so that a restarted netd finds its devices again and every
//! node knows its peers' addresses without asking.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::encryption;
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

/// The router's IPv6 address, on its loopback too: what it says by ICMPv6 comes from here, and connections of pods to themselves.
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x7263, 0, 0, 0, 0, 0, 0x53);

/// Pods' gateway by IPv6, and on the uplink the router's. Nobody holds it: who sends by it knows the hardware address that belongs to it.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x53);

/// A device with a smaller MTU has no IPv6.
pub const SIX_MTU_MIN: u32 = 1280;

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
    /// Takes and sends IPv6.
    pub six: bool,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// Neither learning nor flooding: what is not in its forwarding table is not sent.
    Vxlan {
        vni: u32,
        /// The source of what it sends; unspecified: that of the route by which it leaves.
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
    /// Held as /128, on a network with IPv6.
    pub ip6: Option<Ipv6Addr>,
    /// Destinations routed through this interface.
    pub routes: Vec<IpNet>,
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
    /// The same of IPv6.
    pub forwarding6: Forwarding,
    /// netd has had the host forward IPv6 since it booted.
    pub turned_on6: bool,
    /// The kernel has IPv6.
    pub six: bool,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            LinkKind::Vxlan { vni, local, port, .. } => write!(f, "vni {vni} from {local} port {port} ")?,
            LinkKind::Veth | LinkKind::Uplink => {}
        }
        write!(f, "mac {} mtu {} {}{}", self.mac, self.mtu, if self.up { "up" } else { "down" }, if self.six { " ipv6" } else { "" })
    }
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

/// By which routes of IPv6 name a node: on a VXLAN device, a neighbour with the node's hardware address.
pub fn vtep6(node_addr: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80_u128 << 112 | u128::from(node_addr.to_bits()))
}

/// The hardware address of a pod's interface, made of its address.
pub fn pod_mac(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    Mac([0x02, 0x70, a, b, c, d])
}

/// The devices of the router namespace: a VXLAN device per network, a veth per (pod, network), the uplink, and the way to other nodes' pods.
pub fn links(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> BTreeMap<String, Link> {
    let vxlans = picture.networks.values().map(|network| {
        // One source for all would be none of the tunnel's.
        let local = if network.encrypted { Ipv4Addr::UNSPECIFIED } else { underlay.addr };
        let kind = LinkKind::Vxlan { vni: network.vni, local, port: VXLAN_PORT, learning: false };
        let (mtu, six) = (encryption::mtu(Some(network), underlay), network.subnet6.is_some());
        (vxlan_name(network.vni), Link { kind, mac: vtep_mac(underlay.addr), mtu, up: true, six })
    });
    let veths = attachments.iter().flat_map(|(task_id, attachment)| {
        attachment.networks.iter().map(move |membership| {
            let network = picture.networks.get(&membership.network_id);
            let (mtu, six) = (encryption::mtu(network, underlay), network.is_some_and(|network| network.subnet6.is_some()));
            (veth_name(task_id, &membership.network_id), Link { kind: LinkKind::Veth, mac: ROUTER_MAC, mtu, up: true, six })
        })
    });
    let ingress = ingress::link(picture, underlay).map(|link| (INGRESS.to_owned(), link));
    vxlans.chain(veths).chain([(UPLINK.to_owned(), uplink::link(picture, underlay))]).chain(ingress).collect()
}

/// The pods: the first network that is not internal is behind the default route, each other one behind a route of its own. Of IPv6 each network
/// is, and the default route is there only while this host has ways outside: without it a program that tries an address there hears at once from
/// its own kernel that it has no way, and takes one of IPv4. A pod behind a published port has one in any case, to answer who comes by another node.
pub fn pods(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> BTreeMap<String, Pod> {
    let leads_out = |membership: &Membership| picture.networks.get(&membership.network_id).is_some_and(|network| !network.internal);
    let has_six = |membership: &Membership| picture.networks.get(&membership.network_id).is_some_and(|network| network.subnet6.is_some());
    let reached = ingress::reached_by_six(picture, underlay);
    let pod = |task_id: &String, memberships: &[Membership]| -> Pod {
        // Refusals, too, come by the default route: a pod without a way out has one all the same.
        let default = memberships.iter().position(leads_out).unwrap_or(0);
        let first_six = memberships.iter().position(has_six);
        let default6 = memberships.iter().position(|membership| leads_out(membership) && has_six(membership));
        let default6 = default6.filter(|_| uplink::has_way6(picture, underlay));
        let default6 =
            default6.or_else(|| memberships.iter().position(|membership| has_six(membership) && reached.contains(&membership.ip)));
        let interface = |(index, membership): (usize, &Membership)| {
            let network = picture.networks.get(&membership.network_id);
            let mut routes: Vec<IpNet> = match network {
                _ if index == default => vec![Ipv4Net::default().into()],
                Some(network) => vec![network.subnet.into()],
                None => Vec::new(),
            };
            if let Some(subnet6) = network.and_then(|network| network.subnet6) {
                // The router speaks for a pod that calls itself.
                routes.push(subnet6.into());
                routes.extend((first_six == Some(index)).then(|| IpNet::from(Ipv6Net::from(ROUTER6))));
                routes.extend((default6 == Some(index)).then(|| IpNet::from(Ipv6Net::default())));
                routes.sort_unstable();
            }
            let interface = Interface {
                link: veth_name(task_id, &membership.network_id),
                mac: pod_mac(membership.ip),
                mtu: encryption::mtu(network, underlay),
                up: true,
                ip: membership.ip,
                ip6: network.and_then(|network| network.ip6(membership.ip)),
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
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{attached, numbered, published, t1_attached, underlay, view};

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
    fn a_pods_ipv6_leads_outside_while_the_host_has_a_way_and_by_its_first_network_that_may() {
        let mut wire = view(1);
        (wire.networks[0].subnet6, wire.networks[1].subnet6) = ("fd00:1::/64".into(), "fd00:2::/64".into());
        let attachments = attached("t1", &[("net-a", [10, 128, 0, 2]), ("net-b", [10, 128, 1, 9])]);
        let mut defaults = |ways: &[&str], front: bool, back: bool| {
            (wire.networks[0].internal, wire.networks[1].internal) = (front, back);
            let mut picture = Picture::parse(&wire).0;
            picture.beyond6 = ways.iter().map(|way| way.parse().unwrap()).collect();
            let pods = pods(&picture, &attachments, &underlay(Forwarding::Host));
            let has_default = |interface: &Interface| interface.routes.contains(&IpNet::from(Ipv6Net::default()));
            pods["t1"].values().map(has_default).collect::<Vec<_>>()
        };
        assert_eq!(defaults(&["::/0"], false, false), [true, false]);
        assert_eq!(defaults(&["2001:db8::/32"], true, false), [false, true], "the router knows what of it there is");
        assert_eq!(defaults(&["::/0"], true, true), [false, false]);
        assert_eq!(defaults(&[], false, false), [false, false]);
    }

    #[test]
    fn a_pod_that_is_reached_by_ipv6_has_a_way_for_its_answers_wherever_it_is() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
        (wire.networks[0].subnet6, wire.networks[0].internal) = ("fd00:1::/64".into(), true);
        let has_default = |wire: &v1::NetView| {
            let pods = pods(&Picture::parse(wire).0, &t1_attached(), &underlay(Forwarding::Host));
            pods["t1"]["eth0"].routes.contains(&IpNet::from(Ipv6Net::default()))
        };
        assert!(!has_default(&wire));
        wire.published[0].backends[1].ip6 = "fd00:1::a80:2".into();
        assert!(has_default(&wire));
    }

    #[test]
    fn a_pods_ipv6_leads_to_its_networks_with_ipv6_and_nowhere_else() {
        let mut wire = view(1);
        let attachments = attached("t1", &[("net-a", [10, 128, 0, 2]), ("net-b", [10, 128, 1, 9])]);
        let underlay = underlay(Forwarding::Host);
        let mut six = |front: &str, back: &str| {
            (wire.networks[0].subnet6, wire.networks[1].subnet6) = (front.to_owned(), back.to_owned());
            let (picture, problems) = Picture::parse(&wire);
            assert!(problems.is_empty(), "{problems:?}");
            let pods = pods(&picture, &attachments, &underlay);
            let texts = |interface: &Interface| {
                let routes = interface.routes.iter().filter(|route| matches!(route, IpNet::V6(_))).map(ToString::to_string);
                let ip6 = interface.ip6.map(|ip6| ip6.to_string());
                ip6.into_iter().chain(routes).collect::<Vec<_>>().join(" ")
            };
            pods["t1"].values().map(texts).collect::<Vec<_>>()
        };
        assert_eq!(six("", ""), ["", ""]);
        assert_eq!(six("", "fd00:2::/64"), ["", "fd00:2::a80:109 fd00:2::/64 fd5c:7263::53/128"]);
        assert_eq!(six("fd00:1::/64", "fd00:2::/64"), ["fd00:1::a80:2 fd00:1::/64 fd5c:7263::53/128", "fd00:2::a80:109 fd00:2::/64"]);
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_speak_of_their_holder() {
        assert_eq!(vtep_mac(Ipv4Addr::new(10, 90, 0, 101)).to_string(), "02:76:0a:5a:00:65");
        assert_eq!(pod_mac(Ipv4Addr::new(10, 128, 0, 2)).to_string(), "02:70:0a:80:00:02");
    }
}
