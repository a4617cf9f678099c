//! The few rtnetlink messages that a wire needs, one at a time, each acknowledged.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::LabError;

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

    /// A veth pair: `name` here, `peer` in the network namespace of process `pid`; both down.
    pub fn add_veth(&mut self, name: &str, peer: &str, pid: i32) -> Result<(), LabError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::NetNsPid(u32::try_from(pid).unwrap_or_default()));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let data = InfoData::Veth(InfoVeth::Peer(other));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
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

    /// A route to one address by a device, with the address that the sender is to have.
    pub fn add_host_route(&mut self, to: Ipv4Addr, index: u32, source: Ipv4Addr) -> Result<(), LabError> {
        let mut route = route(Some(to), index);
        route.header.scope = RouteScope::Link;
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        self.request(&format!("route to {to}"), RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Everything else by a gateway that is on the device without a subnet.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr, index: u32, source: Ipv4Addr) -> Result<(), LabError> {
        let mut route = route(None, index);
        route.header.flags = RouteFlags::Onlink;
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        self.request("the default route", RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Swallows, or no longer swallows, what comes in by a device for an address.
    pub fn blackhole(&mut self, from_device: &str, to: Ipv4Addr, on: bool) -> Result<(), LabError> {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        rule.header.dst_len = 32;
        rule.header.action = RuleAction::Blackhole;
        rule.attributes.push(RuleAttribute::Iifname(from_device.to_owned()));
        rule.attributes.push(RuleAttribute::Destination(IpAddr::V4(to)));
        rule.attributes.push(RuleAttribute::Priority(100));
        let what = format!("blackhole from {from_device} to {to}");
        if on {
            self.request(&what, RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
        } else {
            self.request(&what, RouteNetlinkMessage::DelRule(rule), 0)
        }
    }
}

fn route(to: Option<Ipv4Addr>, index: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(index));
    if let Some(to) = to {
        route.header.destination_prefix_length = 32;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    }
    route
}
