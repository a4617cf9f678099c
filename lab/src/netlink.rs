//! The few rtnetlink messages that a wire needs, one at a time, each acknowledged.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::LabError;

/// Routes to own addresses (linux/rtnetlink.h, RT_TABLE_LOCAL).
const LOCAL_TABLE: u8 = 255;
const BLACKHOLE_PRIORITY: u32 = 100;
const RECEIVE_BYTES: usize = 64 * 1024;

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, LabError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| LabError::Netlink { what: "open a socket".to_owned(), source })?;
        Ok(Self { socket, sequence: 0 })
    }

    fn request(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), LabError> {
        let failed = |source| LabError::Netlink { what: what.to_owned(), source };
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;
        loop {
            let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
            self.socket.recv(&mut buffer, 0).map_err(failed)?;
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer).map_err(|error| failed(io::Error::other(error.to_string())))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(failed(error.to_io())),
                };
            }
        }
    }

    /// A veth pair: `name` here, `peer` here or in the network namespace of a process; both down.
    pub fn add_veth(&mut self, name: &str, peer: &str, peer_of: Option<u32>) -> Result<(), LabError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.extend(peer_of.map(LinkAttribute::NetNsPid));
        self.add_link(name, InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(other)))
    }

    /// A VXLAN device that nobody uses: to see whether the kernel can.
    pub fn add_vxlan(&mut self, name: &str) -> Result<(), LabError> {
        self.add_link(name, InfoKind::Vxlan, InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(4789)]))
    }

    fn add_link(&mut self, name: &str, kind: InfoKind, data: InfoData) -> Result<(), LabError> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
        self.request(&format!("make link {name}"), RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Brings a device up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        link.header.change_mask = LinkFlags::Up;
        self.request(&format!("set link {index}"), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Removes a device.
    pub fn delete_link(&mut self, index: u32) -> Result<(), LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.request(&format!("remove link {index}"), RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Gives a device a /32.
    pub fn add_address(&mut self, index: u32, ip: Ipv4Addr) -> Result<(), LabError> {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.prefix_len = 32;
        address.header.index = index;
        address.attributes.push(AddressAttribute::Local(IpAddr::V4(ip)));
        address.attributes.push(AddressAttribute::Address(IpAddr::V4(ip)));
        self.request(&format!("give {ip}"), RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// A route to a subnet (32: one address) by a device, with the address that the sender is to have.
    pub fn add_link_route(&mut self, to: Ipv4Addr, prefix_length: u8, index: u32, source: Ipv4Addr) -> Result<(), LabError> {
        let mut route = route(Some((to, prefix_length)), index);
        route.header.scope = RouteScope::Link;
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        self.request(&format!("route to {to}"), RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route to one address by a device.
    pub fn remove_link_route(&mut self, to: Ipv4Addr, index: u32) -> Result<(), LabError> {
        let mut route = route(Some((to, 32)), index);
        route.header.scope = RouteScope::Link;
        self.request(&format!("remove the route to {to}"), RouteNetlinkMessage::DelRoute(route), 0)
    }

    /// Everything else by a gateway that is on the device without a subnet.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr, index: u32, source: Ipv4Addr) -> Result<(), LabError> {
        let mut route = route(None, index);
        route.header.flags = RouteFlags::Onlink;
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        self.request("the default route", RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// A neighbour that needs no asking.
    pub fn add_neighbour(&mut self, ip: Ipv4Addr, mac: [u8; 6], index: u32) -> Result<(), LabError> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
        neighbour.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.request(&format!("make neighbour {ip}"), RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Swallows, or no longer swallows, what comes in by a device for a subnet (32: one address).
    pub fn blackhole(&mut self, from_device: &str, to: Ipv4Addr, prefix_length: u8, on: bool) -> Result<(), LabError> {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        rule.header.dst_len = prefix_length;
        rule.header.action = RuleAction::Blackhole;
        rule.attributes.push(RuleAttribute::Iifname(from_device.to_owned()));
        rule.attributes.push(RuleAttribute::Destination(IpAddr::V4(to)));
        rule.attributes.push(RuleAttribute::Priority(BLACKHOLE_PRIORITY));
        self.change_rule(&format!("blackhole from {from_device} to {to}"), rule, on)
    }

    /// Makes blackholes come before what is for this namespace itself; as a namespace is born, nothing comes before that.
    pub fn blackholes_first(&mut self) -> Result<(), LabError> {
        for (priority, on) in [(BLACKHOLE_PRIORITY + 1, true), (0, false)] {
            let mut rule = RuleMessage::default();
            rule.header.family = AddressFamily::Inet;
            rule.header.action = RuleAction::ToTable;
            rule.header.table = LOCAL_TABLE;
            rule.attributes.push(RuleAttribute::Priority(priority));
            self.change_rule("the rule for own addresses", rule, on)?;
        }
        Ok(())
    }

    fn change_rule(&mut self, what: &str, rule: RuleMessage, on: bool) -> Result<(), LabError> {
        if on {
            self.request(what, RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
        } else {
            self.request(what, RouteNetlinkMessage::DelRule(rule), 0)
        }
    }
}

fn route(to: Option<(Ipv4Addr, u8)>, index: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(index));
    if let Some((to, prefix_length)) = to {
        route.header.destination_prefix_length = prefix_length;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    }
    route
}
