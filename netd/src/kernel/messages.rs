//! Netlink messages for the things that `core` knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::core::ingress::{Selector, is_of_six};
use crate::core::links::Mac;

/// Marks routes, rules and neighbours as ours: no routing daemon's number.
pub const PROTOCOL: u8 = 114;

/// Make it, or replace what is there.
pub const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Make it; an error if it is there.
pub const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

const LOOPBACK_INDEX: u32 = 1;

/// A route as the kernel needs it.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    Device(u32),
    Gateway {
        device: u32,
        address: IpAddr,
        source: Option<Ipv4Addr>,
    },
    /// Wherever it leads: one that is removed.
    Any,
}

/// A VXLAN device that is made in the socket's namespace, where its UDP socket stays, and put into the namespace of `into`.
pub fn new_vxlan(name: &str, into: RawFd, vni: u32, local: Ipv4Addr, port: u16, mac: Mac, mtu: u32) -> RouteNetlinkMessage {
    let mut data = vec![
        InfoVxlan::Id(vni),
        InfoVxlan::Port(port),
        InfoVxlan::Learning(false),
        // Lets receivers trust the inner checksum, and so merge packets, where their hardware does not know VXLAN.
        InfoVxlan::UDPCsum(true),
    ];
    data.extend((!local.is_unspecified()).then_some(InfoVxlan::Local(local)));
    let mut message = new_link(name, mac, mtu);
    message.attributes.push(LinkAttribute::NetNsFd(into));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]));
    RouteNetlinkMessage::NewLink(message)
}

/// A veth pair: one end in the socket's namespace, up; the other, `peer`, in that of `into`, still down, for the kernel refuses to bring an
/// end up (ENOTCONN) before it knows the other.
pub fn new_veth((name, mac): (&str, Mac), (peer, peer_mac): (&str, Mac), into: RawFd, mtu: u32) -> RouteNetlinkMessage {
    let mut other = new_link(peer, peer_mac, mtu);
    other.header.flags = LinkFlags::empty();
    other.header.change_mask = LinkFlags::empty();
    other.attributes.push(LinkAttribute::NetNsFd(into));
    let mut message = new_link(name, mac, mtu);
    let data = InfoData::Veth(InfoVeth::Peer(other));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
    RouteNetlinkMessage::NewLink(message)
}

/// A WireGuard device, still down.
pub fn new_wireguard(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    RouteNetlinkMessage::NewLink(message)
}

/// What people are told of a device.
pub fn set_alias(index: u32, alias: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    RouteNetlinkMessage::SetLink(message)
}

/// A device that no kernel makes, for its hardware address has a wrong length: the error tells whether the kernel knows the kind.
pub fn probe_link(kind: InfoKind) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Address(vec![2, 0, 0]));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    RouteNetlinkMessage::NewLink(message)
}

fn new_link(name: &str, mac: Mac, mtu: u32) -> LinkMessage {
    let mut message = up(LinkMessage::default(), true);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message
}

fn up(mut message: LinkMessage, up: bool) -> LinkMessage {
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Hardware address, MTU and state of a device.
pub fn set_link(index: u32, mac: Option<Mac>, mtu: u32, is_up: bool) -> RouteNetlinkMessage {
    let mut message = up(LinkMessage::default(), is_up);
    message.header.index = index;
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    RouteNetlinkMessage::SetLink(message)
}

/// The loopback, up.
pub fn loopback_up() -> RouteNetlinkMessage {
    let mut message = up(LinkMessage::default(), true);
    message.header.index = LOOPBACK_INDEX;
    RouteNetlinkMessage::SetLink(message)
}

/// Asks for one device by name.
pub fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

/// Removes a device.
pub fn del_link(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// An address on the loopback.
pub fn loopback_address(ip: Ipv4Addr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(address(LOOPBACK_INDEX, ip, ip))
}

/// The same of IPv6.
pub fn loopback_address6(ip6: Ipv6Addr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(address6(LOOPBACK_INDEX, ip6))
}

/// A /128 on a device.
pub fn address6(index: u32, ip6: Ipv6Addr) -> AddressMessage {
    address6_among(index, ip6, 128)
}

/// An address on a device that leads to all that begin so. Nobody else has it, so nobody is asked for it.
pub fn address6_among(index: u32, ip6: Ipv6Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = prefix_len;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(IpAddr::V6(ip6)));
    message
}

/// A /32 on a device.
pub fn new_address(index: u32, ip: Ipv4Addr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(address(index, ip, ip))
}

/// A device's own address, and the one behind it that is reached without a gateway; the same twice for a /32.
pub fn address(index: u32, ip: Ipv4Addr, peer: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(ip)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(peer)));
    message
}

/// A permanent neighbour of ours.
pub fn neighbour(index: u32, ip: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    if let Some(mac) = mac {
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    }
    message
}

/// A permanent forwarding entry of a VXLAN device.
pub fn forward(index: u32, mac: Mac, node: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    // As raw bytes: the crate would parse a bridge entry's address by the bridge's family.
    message.attributes.push(NeighbourAttribute::Other(DefaultNla::new(1, node.octets().to_vec())));
    message
}

/// The default route of a table other than the main one.
pub fn detour(table: u32, next: Next) -> RouteMessage {
    let is_six = match next {
        Next::Gateway { address, .. } => address.is_ipv6(),
        Next::Device(_) | Next::Any => is_of_six(table),
    };
    let all = if is_six { IpNet::from(Ipv6Net::default()) } else { IpNet::from(Ipv4Net::default()) };
    let mut message = route(all, next);
    // The header's field is too narrow.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// A rule of ours by which a mark chooses a table.
pub fn selector(selector: &Selector) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if selector.is_six() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Priority(selector.preference),
        RuleAttribute::FwMark(selector.mark),
        RuleAttribute::FwMask(selector.mask),
        RuleAttribute::Table(selector.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ]);
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// A rule as the kernel makes it in a new namespace.
pub fn own_rule(preference: u32, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Priority(preference),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ]);
    message
}

/// A route of ours in the main table. A gateway of IPv6 is to be a link-local address, which every device can have for a neighbour. One of IPv6 to
/// the loopback says that what it leads to cannot be reached.
pub fn route(to: IpNet, next: Next) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(to.network())));
    }
    match next {
        Next::Device(device) => {
            message.header.scope = RouteScope::Link;
            message.header.kind = kind(to.addr().is_ipv6(), device == LOOPBACK_INDEX);
            message.attributes.push(RouteAttribute::Oif(device));
        }
        Next::Any => {
            message.header.scope = RouteScope::NoWhere;
            message.header.kind = RouteType::Unspec;
        }
        Next::Gateway { device, address, source } => {
            if address.is_ipv4() {
                message.header.flags = RouteFlags::Onlink;
            }
            message.attributes.push(RouteAttribute::Oif(device));
            message.attributes.push(RouteAttribute::Gateway(route_address(address)));
            message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(RouteAddress::Inet(source))));
        }
    }
    message
}

/// How a route of ours without a gateway leads.
pub fn kind(is_six: bool, to_loopback: bool) -> RouteType {
    if is_six && to_loopback { RouteType::Unreachable } else { RouteType::Unicast }
}

/// A route of ours in the main table by which nothing is sent.
pub fn blackhole(to: Ipv4Net) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::BlackHole;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to.network())));
    message
}
