//! The kernel's state of ours, read by dumps and put into `core`'s form. What is not ours is not in it: other routing protocols'
//! routes, neighbours that the kernel found by itself, devices of other names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::messages::{self, PROTOCOL};
use super::netlink::Netlink;
use super::{KernelError, netns};
use crate::core::ingress::{INGRESS, Selector};
use crate::core::links::{GATEWAY6, Interface, LOOPBACK, Link, LinkKind, Mac, Pod, RESOLVER, ROUTER6, is_ours};
use crate::core::neighbours::{Forward, Neighbours, Route};
use crate::core::uplink::UPLINK;

/// A device as the kernel shows it.
pub struct Device {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Sends what it is given: the kernel has taken its carrier in.
    pub carries: bool,
    /// The index of a veth's other end.
    pub peer: u32,
    /// The other end is in another namespace.
    pub peer_is_outside: bool,
    pub vxlan: Option<LinkKind>,
    pub is_veth: bool,
    pub is_wireguard: bool,
    /// What people are told of it.
    pub alias: String,
}

/// All devices of the socket's namespace.
pub fn devices(netlink: &mut Netlink) -> Result<Vec<Device>, KernelError> {
    let messages = netlink.dump("list devices", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewLink(link) = message { Some(device(&link)) } else { None })
        .collect())
}

/// One device's message.
pub fn device(message: &LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carries: false,
        peer: 0,
        peer_is_outside: false,
        vxlan: None,
        is_veth: false,
        is_wireguard: false,
        alias: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(bytes) => device.mac = mac(bytes),
            LinkAttribute::IfAlias(alias) => device.alias.clone_from(alias),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::OperState(state) => device.carries = *state == State::Up,
            LinkAttribute::Link(index) => device.peer = *index,
            LinkAttribute::LinkNetNsId(_) => device.peer_is_outside = true,
            LinkAttribute::LinkInfo(infos) => {
                device.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                device.is_wireguard = infos.contains(&LinkInfo::Kind(InfoKind::Wireguard));
                device.vxlan =
                    infos.iter().find_map(|info| if let LinkInfo::Data(InfoData::Vxlan(data)) = info { Some(vxlan(data)) } else { None });
            }
            _ => {}
        }
    }
    device
}

fn vxlan(data: &[InfoVxlan]) -> LinkKind {
    let mut kind = (0, Ipv4Addr::UNSPECIFIED, 0, false);
    for info in data {
        match info {
            InfoVxlan::Id(vni) => kind.0 = *vni,
            InfoVxlan::Local(local) => kind.1 = *local,
            InfoVxlan::Port(port) => kind.2 = *port,
            InfoVxlan::Learning(learning) => kind.3 = *learning,
            _ => {}
        }
    }
    LinkKind::Vxlan { vni: kind.0, local: kind.1, port: kind.2, learning: kind.3 }
}

/// Our devices among those of the router namespace; `six` are the names of those that have IPv6.
pub fn links(devices: &[Device], six: &BTreeSet<String>) -> BTreeMap<String, Link> {
    let ours = devices.iter().filter(|device| is_ours(&device.name));
    ours.filter_map(|device| {
        let veth = if device.name == UPLINK { LinkKind::Uplink } else { LinkKind::Veth };
        let kind = device.vxlan.or(device.is_veth.then_some(veth))?;
        let six = six.contains(&device.name);
        Some((device.name.clone(), Link { kind, mac: device.mac?, mtu: device.mtu, up: device.up, six }))
    })
    .collect()
}

/// Every IPv4 address of the socket's namespace, with its device's index.
pub fn addresses(netlink: &mut Netlink) -> Result<Vec<(u32, Ipv4Addr)>, KernelError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let messages = netlink.dump("list addresses", &RouteNetlinkMessage::GetAddress(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewAddress(address) = message { address_of(&address) } else { None })
        .collect())
}

fn address_of(message: &AddressMessage) -> Option<(u32, Ipv4Addr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some((message.header.index, *ip)),
        _ => None,
    })
}

/// Every IPv6 address of the socket's namespace, but for those of links, with its device's index.
pub fn addresses6(netlink: &mut Netlink) -> Result<Vec<(u32, Ipv6Addr)>, KernelError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    let messages = netlink.dump("list addresses of IPv6", &RouteNetlinkMessage::GetAddress(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewAddress(address) = message { address6_of(&address) } else { None })
        .collect())
}

fn address6_of(message: &AddressMessage) -> Option<(u32, Ipv6Addr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(ip6)) if !ip6.is_unicast_link_local() => Some((message.header.index, *ip6)),
        _ => None,
    })
}

/// Whether the router's loopback is up and holds the resolver's address, and where the kernel has IPv6 (`six`) the router's.
pub fn resolver(netlink: &mut Netlink, devices: &[Device], six: bool) -> Result<bool, KernelError> {
    let up = devices.iter().any(|device| device.name == "lo" && device.up);
    Ok(up
        && addresses(netlink)?.iter().any(|(_, ip)| *ip == RESOLVER)
        && (!six || addresses6(netlink)?.iter().any(|(_, ip6)| *ip6 == ROUTER6)))
}

/// Permanent neighbours on the named devices.
pub fn neighbours(netlink: &mut Netlink, names: &BTreeMap<u32, String>) -> Result<Neighbours, KernelError> {
    let mut messages = entries(netlink, "list neighbours", AddressFamily::Inet)?;
    messages.extend(entries(netlink, "list neighbours of IPv6", AddressFamily::Inet6)?);
    Ok(messages.iter().filter_map(|message| neighbour_of(message, names)).collect())
}

fn neighbour_of(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<((String, IpAddr), Mac)> {
    let name = names.get(&message.header.ifindex).filter(|_| message.header.state == NeighbourState::Permanent)?;
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(((name.clone(), ip), link_layer_address(message)?))
}

/// Forwarding entries of the named devices; one without a node's address cannot be ours, nor of use, and is not shown.
pub fn forwards(netlink: &mut Netlink, names: &BTreeMap<u32, String>) -> Result<BTreeSet<Forward>, KernelError> {
    let messages = entries(netlink, "list forwarding entries", AddressFamily::Bridge)?;
    Ok(messages.iter().filter_map(|message| forward_of(message, names)).collect())
}

fn forward_of(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Forward> {
    let link = names.get(&message.header.ifindex)?.clone();
    let node = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(address) => destination(address),
        _ => None,
    })?;
    Some(Forward { link, mac: link_layer_address(message)?, node })
}

fn entries(netlink: &mut Netlink, what: &str, family: AddressFamily) -> Result<Vec<NeighbourMessage>, KernelError> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    let messages = netlink.dump(what, &RouteNetlinkMessage::GetNeighbour(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewNeighbour(entry) = message { Some(entry) } else { None })
        .collect())
}

fn destination(address: &NeighbourAddress) -> Option<Ipv4Addr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(*ip),
        NeighbourAddress::Other(bytes) => bytes.as_slice().try_into().map(|octets: [u8; 4]| Ipv4Addr::from(octets)).ok(),
        _ => None,
    }
}

fn link_layer_address(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}

/// Our routes in the main table.
pub fn routes(netlink: &mut Netlink, names: &BTreeMap<u32, String>) -> Result<BTreeMap<IpNet, Route>, KernelError> {
    Ok(all_routes(netlink, names)?.main)
}

/// Our routes.
#[derive(Debug, Default)]
pub struct Routes {
    /// In the main table.
    pub main: BTreeMap<IpNet, Route>,
    /// The default ones of other tables, by table.
    pub detours: BTreeMap<u32, Route>,
}

/// Our routes in the main table, and the default ones of ours in other tables.
pub fn all_routes(netlink: &mut Netlink, names: &BTreeMap<u32, String>) -> Result<Routes, KernelError> {
    let dump = |family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        RouteNetlinkMessage::GetRoute(message)
    };
    let mut routes = Routes::default();
    let mut messages = netlink.dump("list routes", &dump(AddressFamily::Inet))?;
    messages.extend(netlink.dump("list routes of IPv6", &dump(AddressFamily::Inet6))?);
    for message in messages {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        let Some((to, route)) = route_of(&message, names) else { continue };
        if message.header.table == RouteHeader::RT_TABLE_MAIN {
            routes.main.insert(to, route);
        } else if to.prefix_len() == 0 {
            routes.detours.insert(table_of(&message), route);
        }
    }
    Ok(routes)
}

fn table_of(message: &RouteMessage) -> u32 {
    let table = |attribute: &RouteAttribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None };
    message.attributes.iter().find_map(table).unwrap_or(u32::from(message.header.table))
}

/// The kernel's own rules of routing: at which preferences, and which tables.
const OWN_RULES: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];

/// The rules of routing.
#[derive(Debug)]
pub struct Lookup {
    /// Ours, by which marks choose tables.
    pub selectors: BTreeSet<Selector>,
    /// Of the kernel's own those that are not there.
    pub missing: Vec<(u32, u32)>,
    /// Neither the kernel's nor ours.
    pub foreign: Vec<RuleMessage>,
}

impl Lookup {
    /// Whether the kernel's own are there, and besides ours no others.
    pub fn is_plain(&self) -> bool {
        self.missing.is_empty() && self.foreign.is_empty()
    }
}

/// Those of the socket's namespace; of IPv6 ours alone.
pub fn lookup(netlink: &mut Netlink) -> Result<Lookup, KernelError> {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    let mut lookup = Lookup { selectors: BTreeSet::new(), missing: OWN_RULES.to_vec(), foreign: Vec::new() };
    for message in netlink.dump("list rules of routing", &RouteNetlinkMessage::GetRule(message))? {
        let RouteNetlinkMessage::NewRule(rule) = message else { continue };
        match (selector_of(&rule), own_rule(&rule)) {
            (Some(selector), _) => {
                lookup.selectors.insert(selector);
            }
            (None, Some(own)) => lookup.missing.retain(|missing| *missing != own),
            (None, None) => lookup.foreign.push(rule),
        }
    }
    if !netns::has_six() {
        return Ok(lookup);
    }
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet6;
    for message in netlink.dump("list rules of routing of IPv6", &RouteNetlinkMessage::GetRule(message))? {
        let RouteNetlinkMessage::NewRule(rule) = message else { continue };
        lookup.selectors.extend(selector_of(&rule));
    }
    Ok(lookup)
}

/// The preference and the table of a rule of the kernel's own.
fn own_rule(message: &RuleMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    let mut rule = (0, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(preference) => rule.0 = *preference,
            RuleAttribute::Table(table) => rule.1 = *table,
            // What newer kernels tell of every rule is no condition.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::Other(_) => {}
            _ => return None,
        }
    }
    let is_for_all = header.action == RuleAction::ToTable && (header.src_len, header.dst_len, header.tos) == (0, 0, 0);
    (is_for_all && OWN_RULES.contains(&rule)).then_some(rule)
}

fn selector_of(message: &RuleMessage) -> Option<Selector> {
    let mut selector = Selector { preference: 0, mark: 0, mask: 0, table: u32::from(message.header.table) };
    let mut is_ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(preference) => selector.preference = *preference,
            RuleAttribute::FwMark(mark) => selector.mark = *mark,
            RuleAttribute::FwMask(mask) => selector.mask = *mask,
            RuleAttribute::Table(table) => selector.table = *table,
            RuleAttribute::Protocol(protocol) => is_ours = *protocol == RouteProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    is_ours.then_some(selector)
}

/// The address of the device of published ports, if it has one and no other.
pub fn ingress(netlink: &mut Netlink, devices: &[Device]) -> Result<Option<Ipv4Addr>, KernelError> {
    let Some(device) = devices.iter().find(|device| device.name == INGRESS) else { return Ok(None) };
    let held = addresses(netlink)?.into_iter().filter(|(index, _)| *index == device.index);
    let held: Vec<Ipv4Addr> = held.map(|(_, ip)| ip).collect();
    Ok(if let [ip] = held[..] { Some(ip) } else { None })
}

/// Every destination that the socket's namespace has a way to, in whichever table; its own addresses are none.
pub fn host_routes(netlink: &mut Netlink) -> Result<Vec<Ipv4Net>, KernelError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let messages = netlink.dump("list the host's routes", &RouteNetlinkMessage::GetRoute(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewRoute(route) = message { destination_of(&route) } else { None })
        .collect())
}

/// The same of IPv6.
pub fn host_routes6(netlink: &mut Netlink) -> Result<Vec<Ipv6Net>, KernelError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    let messages = netlink.dump("list the host's routes of IPv6", &RouteNetlinkMessage::GetRoute(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewRoute(route) = message { destination6_of(&route) } else { None })
        .collect())
}

/// Where routes of ours in the main table lead, by the device's index; `None`: nowhere.
pub fn own_routes(netlink: &mut Netlink) -> Result<BTreeSet<(Ipv4Net, Option<u32>)>, KernelError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let messages = netlink.dump("list routes of ours", &RouteNetlinkMessage::GetRoute(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let RouteNetlinkMessage::NewRoute(route) = message { own_route(&route) } else { None })
        .collect())
}

fn own_route(message: &RouteMessage) -> Option<(Ipv4Net, Option<u32>)> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let device = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    Some((Ipv4Net::new(to?, header.destination_prefix_length).ok()?, device))
}

fn destination_of(message: &RouteMessage) -> Option<Ipv4Net> {
    let header = &message.header;
    let is_ours = header.protocol == RouteProtocol::Other(PROTOCOL);
    if header.address_family != AddressFamily::Inet || header.kind != RouteType::Unicast || is_ours {
        return None;
    }
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    Ipv4Net::new(to.unwrap_or(Ipv4Addr::UNSPECIFIED), header.destination_prefix_length).ok()
}

fn destination6_of(message: &RouteMessage) -> Option<Ipv6Net> {
    let header = &message.header;
    let is_ours = header.protocol == RouteProtocol::Other(PROTOCOL);
    if header.address_family != AddressFamily::Inet6 || header.kind != RouteType::Unicast || is_ours {
        return None;
    }
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(*ip),
        _ => None,
    });
    Ipv6Net::new(to.unwrap_or(Ipv6Addr::UNSPECIFIED), header.destination_prefix_length).ok()
}

fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<(IpNet, Route)> {
    let header = &message.header;
    if header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let is_six = header.address_family == AddressFamily::Inet6;
    let mut to = if is_six { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut link = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = IpAddr::V4(*ip),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = IpAddr::V6(*ip),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            // The index stands for a device that went away since the devices were listed.
            RouteAttribute::Oif(index) => link = Some(names.get(index).cloned().unwrap_or_else(|| index.to_string())),
            _ => {}
        }
    }
    let to = IpNet::new(to, header.destination_prefix_length).ok()?;
    let route = match (link, gateway) {
        (Some(link), Some(gateway)) if header.kind == RouteType::Unicast => Route::Via { link, gateway },
        (Some(link), None) if header.kind == messages::kind(is_six, link == LOOPBACK) => Route::Link { link },
        _ => Route::Otherwise,
    };
    Some((to, route))
}

/// `eth0`, `eth1`, …: what netd calls a pod's interfaces.
fn is_pod_interface(name: &str) -> bool {
    name.strip_prefix("eth").is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A pod's interfaces, seen from inside its namespace; `outside` are the router's devices by index.
pub fn pod(netlink: &mut Netlink, outside: &BTreeMap<u32, String>) -> Result<Pod, KernelError> {
    // The pod may have veths of its own, whose other ends' indexes are those of its own namespace, and interfaces of its own naming.
    let is_ours = |device: &Device| device.is_veth && device.peer_is_outside && is_pod_interface(&device.name);
    let devices: Vec<Device> = devices(netlink)?.into_iter().filter(is_ours).collect();
    let names: BTreeMap<u32, String> = devices.iter().map(|device| (device.index, device.name.clone())).collect();
    let (addresses, addresses6) = (addresses(netlink)?, addresses6(netlink)?);
    let gateways = neighbours(netlink, &names)?;
    let routes = routes(netlink, &names)?;
    let interface = |device: Device| {
        let leads = |gateway: &IpAddr| *gateway == RESOLVER || *gateway == GATEWAY6;
        let mine = |route: &Route| matches!(route, Route::Via { link, gateway } if *link == device.name && leads(gateway));
        // Of IPv6 the same one, where it is known at all.
        let gateway = |ip: IpAddr| gateways.get(&(device.name.clone(), ip)).copied();
        let ip6 = addresses6.iter().find(|(index, _)| *index == device.index).map(|(_, ip6)| *ip6);
        let knows_both = ip6.is_none() || gateway(GATEWAY6.into()) == gateway(RESOLVER.into());
        let interface = Interface {
            link: outside.get(&device.peer)?.clone(),
            mac: device.mac?,
            mtu: device.mtu,
            up: device.up,
            ip: addresses.iter().find(|(index, _)| *index == device.index).map_or(Ipv4Addr::UNSPECIFIED, |(_, ip)| *ip),
            ip6,
            routes: routes.iter().filter(|(_, route)| mine(route)).map(|(to, _)| *to).collect(),
            gateway: gateway(RESOLVER.into()).filter(|_| knows_both).unwrap_or(Mac([0; 6])),
        };
        Some((device.name, interface))
    };
    Ok(devices.into_iter().filter_map(interface).collect())
}

/// The names of the pins in a directory, except `router`.
pub fn pins(directory: &Path) -> Result<BTreeSet<String>, KernelError> {
    let failed = |source: io::Error| KernelError::Namespace { path: directory.to_path_buf(), source };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.insert(name);
        }
    }
    names.remove(super::linux::ROUTER);
    Ok(names)
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().map(Mac).ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use netlink_packet_core::{Emitable, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla, Parseable};
    use proptest::prelude::{any, prop_assert, proptest};
    use proptest::sample::Index;

    use super::*;
    use crate::kernel::damage::{any_damages, config, damaged};
    use crate::kernel::messages::{self, Next};
    use crate::kernel::netlink::{answers, parse};

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 102);

    const DEVICE: u32 = 3;

    /// Of each kind what is asked for and so what is shown; all in one datagram last.
    fn datagrams() -> Vec<Vec<u8>> {
        let (mac, nowhere): (Mac, RawFd) = (Mac([2, 0x76, 10, 90, 0, 102]), 9);
        let gateway = Next::Gateway { device: DEVICE, address: NODE.into(), source: Some(RESOLVER) };
        let gateway6 = Next::Gateway { device: DEVICE, address: GATEWAY6.into(), source: None };
        let messages = [
            messages::new_vxlan("v4096", nowhere, 4096, NODE, 4789, mac, 1450),
            messages::new_veth(("p0123456789ab", mac), ("eth0", mac), nowhere, 1450),
            messages::set_link(DEVICE, Some(mac), 1450, true),
            messages::new_address(DEVICE, NODE),
            RouteNetlinkMessage::NewNeighbour(messages::neighbour(DEVICE, NODE.into(), Some(mac))),
            RouteNetlinkMessage::NewNeighbour(messages::neighbour(DEVICE, GATEWAY6.into(), Some(mac))),
            RouteNetlinkMessage::NewNeighbour(messages::forward(DEVICE, mac, NODE)),
            RouteNetlinkMessage::NewRoute(messages::route(Ipv4Net::from(NODE).into(), gateway)),
            RouteNetlinkMessage::NewRoute(messages::route(Ipv4Net::default().into(), Next::Device(DEVICE))),
            RouteNetlinkMessage::NewRoute(messages::route(IpNet::from(IpAddr::from(ROUTER6)), gateway6)),
            RouteNetlinkMessage::NewAddress(messages::address6(DEVICE, ROUTER6)),
        ];
        let mut datagrams: Vec<Vec<u8>> = messages.into_iter().map(datagram).collect();
        datagrams.push(datagrams.concat());
        datagrams
    }

    fn datagram(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len().next_multiple_of(4)];
        packet.serialize(&mut bytes);
        bytes
    }

    /// How many messages, and how many things of ours are read of them, by all who read.
    fn read(datagram: &[u8]) -> (usize, usize) {
        let names = BTreeMap::from([(DEVICE, "v4096".to_owned())]);
        let Ok(answers) = answers(datagram) else { return (0, 0) };
        let things = answers.iter().filter_map(|answer| parse(answer).ok()).map(|message| match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::SetLink(link) => usize::from(!device(&link).name.is_empty()),
            RouteNetlinkMessage::NewAddress(address) => {
                usize::from(address_of(&address).is_some()) + usize::from(address6_of(&address).is_some())
            }
            RouteNetlinkMessage::NewNeighbour(entry) => {
                usize::from(neighbour_of(&entry, &names).is_some()) + usize::from(forward_of(&entry, &names).is_some())
            }
            RouteNetlinkMessage::NewRoute(route) => {
                let leads = destination_of(&route).is_some() || destination6_of(&route).is_some();
                usize::from(route_of(&route, &names).is_some()) + usize::from(leads)
            }
            _ => 0,
        });
        (answers.len(), things.sum())
    }

    #[test]
    fn what_is_not_damaged_is_read() {
        // All but the one that sets a device, which it does not name.
        let things: Vec<usize> = datagrams().iter().map(|datagram| read(datagram).1).collect();
        assert!(things[..2].iter().chain(&things[3..]).all(|count| *count > 0), "{things:?}");
        assert_eq!(read(datagrams().last().unwrap()).0, datagrams().len() - 1);
    }

    proptest! {
        #![proptest_config(config(4000))]

        #[test]
        fn what_is_damaged_is_read_up_to_its_end(place in any::<Index>(), damages in any_damages()) {
            let datagrams = datagrams();
            let bytes = damaged(datagrams[place.index(datagrams.len())].clone(), &damages);
            let (messages, things) = read(&bytes);
            prop_assert!(messages <= bytes.len() / 16 && things <= 2 * messages, "{} messages, {} things", messages, things);
        }
    }

    #[test]
    fn a_forwarding_entry_is_read_as_it_is_written() {
        let node = Ipv4Addr::new(10, 90, 0, 102);
        let message = messages::forward(3, Mac([2, 0, 0, 0, 0, 1]), node);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let read = NeighbourMessage::parse(&bytes[..]).unwrap();
        let address = read.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(address) => destination(address),
            other => {
                assert_ne!(other.kind(), 1);
                None
            }
        });
        assert_eq!(address, Some(node));
    }

    #[test]
    fn a_rule_of_routing_is_read_as_it_is_written() {
        let selector = Selector { preference: 1000, mark: 0x0100_0007, mask: u32::MAX, table: 100_007 };
        let message = messages::selector(&selector);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut read = RuleMessage::parse(&bytes[..]).unwrap();
        assert_eq!(selector_of(&read), Some(selector));
        read.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(selector_of(&read), None, "another's");
        assert_eq!(own_rule(&read), None, "it asks for a mark");
        for (preference, table) in OWN_RULES {
            let own = messages::own_rule(preference, table);
            let mut bytes = vec![0; own.buffer_len()];
            own.emit(&mut bytes);
            let mut read = RuleMessage::parse(&bytes[..]).unwrap();
            assert_eq!(own_rule(&read), Some((preference, table)));
            read.header.action = RuleAction::Blackhole;
            assert_eq!(own_rule(&read), None);
        }
    }
}
