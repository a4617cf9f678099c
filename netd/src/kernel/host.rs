//! The host's side of the uplink: its end of the pair, our table in its namespace, its forwarding, and the way through iptables.
//!
//! netd's threads are in the host's namespace; what is done here is done there, unless it says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::linux::{Linux, enable_six, of_device};
use super::messages::{self, CREATE, REPLACE};
use super::netlink::Netlink;
use super::nft::{self, Change};
use super::observe::Device;
use super::{HostSix, KernelError, apply, netns, observe, wireguard};
use crate::core::flows::Transport;
use crate::core::links::{Link, Mac};
use crate::core::plan::Op;
use crate::core::published::Opening;
use crate::core::rules::elements::{Value, decode, encode};
use crate::core::rules::host::{
    DOCKER_USER, ENCRYPTED, FILTER, FILTER6, NODES, PORTS, PORTS6, TABLE, encrypted_key, encrypted_vni, passage, skeleton,
};
use crate::core::rules::{ChainKind, Hook, Policy, Set, Table, chain_line};
use crate::core::uplink::{
    Forwarding, Forwards6, HOST_END, HOST_END_MAC, HOST_IP, HOST_IP6, HostEnd, HostPlane, HostRules, OWN6, Passage, RESERVED, RESERVED6,
    ROUTER_END_MAC, ROUTER_IP, ROUTER_IP6, UPLINK,
};

const IP_FORWARD: &str = "ipv4/ip_forward";

/// The one by which the kernel asks whether it forwards what came by whichever device.
const FORWARDING6: &str = "ipv6/conf/all/forwarding";

/// That it was netd who set it.
const FORWARDING6_FILE: &str = "netd.forwarding6";

/// Settings of IPv6 by device, and of `all` and `default`.
const DEVICES6: &str = "/proc/sys/net/ipv6/conf";

/// Whether a device takes routers' advertisements: no, unless the host forwards, always.
const ACCEPT_RA: &str = "accept_ra";
const UNLESS_FORWARDING: &str = "1";
const ALWAYS: &str = "2";

/// The calling thread's namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Who has the host forward packets, as it is now. That it is netd is remembered in the run directory, which goes with a reboot as the
/// setting does.
pub fn forwarding(run_dir: &Path, leave_it: bool) -> Result<Forwarding, KernelError> {
    let path = run_dir.join("netd.forwarding");
    if leave_it {
        return Ok(Forwarding::Administrator);
    }
    if path.exists() {
        return Ok(Forwarding::Netd);
    }
    if netns::sysctl(IP_FORWARD)? == "1" {
        return Ok(Forwarding::Host);
    }
    File::create(&path).map_err(|source| KernelError::Sysctl { path, source })?;
    Ok(Forwarding::Netd)
}

/// The same of IPv6. It is remembered when netd turns it on, which is when pods are to get out by it.
pub fn forwarding6(run_dir: &Path, leave_it: bool) -> Result<Forwarding, KernelError> {
    if leave_it || !netns::has_six() {
        return Ok(Forwarding::Administrator);
    }
    Ok(if !turned_on6(run_dir) && forwards6()? { Forwarding::Host } else { Forwarding::Netd })
}

/// Whether netd has had the host forward IPv6 since it booted.
pub fn turned_on6(run_dir: &Path) -> bool {
    run_dir.join(FORWARDING6_FILE).exists()
}

fn forwards6() -> Result<bool, KernelError> {
    Ok(netns::sysctl(FORWARDING6)? != "0")
}

/// Whether the uplink's addresses are free.
pub(super) fn check(host: &mut Netlink) -> Result<(), KernelError> {
    let devices = observe::devices(host)?;
    let taken = observe::addresses(host)?.into_iter().filter(|(_, ip)| RESERVED.contains(ip));
    let mut taken: Vec<(u32, IpAddr, String)> = taken.map(|(index, ip)| (index, ip.into(), RESERVED.to_string())).collect();
    if netns::has_six() {
        let taken6 = observe::addresses6(host)?.into_iter().filter(|(_, ip6)| RESERVED6.contains(ip6));
        taken.extend(taken6.map(|(index, ip6)| (index, ip6.into(), RESERVED6.to_string())));
    }
    for (index, ip, reserved) in taken {
        let name = devices.iter().find(|device| device.index == index).map_or("", |device| device.name.as_str());
        if name != HOST_END {
            return Err(KernelError::Missing {
                why: format!(
                    "{ip} is an address of this host's device {name}; netd needs {reserved} between the host and pods: give {name} another"
                ),
            });
        }
    }
    Ok(())
}

/// What the host has of IPv6.
pub(super) fn six(linux: &mut Linux) -> Result<HostSix, KernelError> {
    if !netns::has_six() {
        return Ok(HostSix::default());
    }
    let is_its = |ip6: &Ipv6Addr| !ip6.is_loopback() && !OWN6.contains(ip6);
    let addresses: BTreeSet<Ipv6Addr> = observe::addresses6(&mut linux.host)?.into_iter().map(|(_, ip6)| ip6).filter(is_its).collect();
    let routes = if addresses.is_empty() { Vec::new() } else { observe::host_routes6(&mut linux.host)? };
    Ok(HostSix { addresses, routes, forwards: forwards6()? })
}

/// What is ours on the host; `router` are the devices of the router namespace.
pub(super) fn observe(linux: &mut Linux, router: &[Device]) -> Result<HostPlane, KernelError> {
    let (tunnels, fenced) = wireguard::observe(linux)?;
    let netlink = &mut linux.host_rules;
    let rules = HostRules::seen(&nft::outline(netlink, TABLE)?);
    let peers = nft::read_in(netlink, TABLE, &NODES)?;
    let sealed = nft::read_in(netlink, TABLE, &ENCRYPTED)?;
    let ports = nft::read_in(netlink, TABLE, &PORTS)?;
    let ports6 = nft::read_in(netlink, TABLE, &PORTS6)?;
    Ok(HostPlane {
        rules,
        peers: peers.iter().filter_map(|(key, _)| key.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))).collect(),
        sealed: sealed.iter().filter_map(|(key, _)| encrypted_vni(key)).collect(),
        fenced,
        tunnels,
        ports: ports.iter().filter_map(|(key, _)| opening(key)).collect(),
        ports6: ports6.iter().filter_map(|(key, _)| opening(key)).collect(),
        forwarding: netns::sysctl(IP_FORWARD)? == "1",
        forwarding6: observe_forwarding6()?,
        passage: observe_passage(netlink, FILTER)?,
        passage6: observe_passage(netlink, FILTER6)?,
        end: observe_end(linux, router)?,
    })
}

/// What can be seen of it: a legacy iptables is not nf_tables' and shows nothing.
fn observe_passage(netlink: &mut Netlink, filter: Table) -> Result<Passage, KernelError> {
    let chains = nft::chains(netlink, filter)?;
    let dropping = chain_line("FORWARD", Some((ChainKind::Filter.word(), Hook::Forward as u32, 0, Policy::Drop as u32)));
    Ok(if !chains.contains(&dropping) || nft::mentions(netlink, filter, HOST_END.as_bytes())? {
        Passage::Open
    } else if chains.contains(DOCKER_USER) {
        Passage::Docker
    } else {
        Passage::Shut
    })
}

fn observe_forwarding6() -> Result<Forwards6, KernelError> {
    Ok(if !netns::has_six() || !forwards6()? {
        Forwards6::No
    } else if deaf()?.is_empty() {
        Forwards6::Hearing
    } else {
        Forwards6::Deaf
    })
}

/// The devices, and `default` for those to come, that take routers' advertisements unless the host forwards.
fn deaf() -> Result<Vec<String>, KernelError> {
    let failed = |source| KernelError::Sysctl { path: PathBuf::from(DEVICES6), source };
    let mut deaf = Vec::new();
    for entry in fs::read_dir(DEVICES6).map_err(failed)? {
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        // A device may have gone meanwhile.
        if name != "all" && netns::sysctl(&of_device(&name, ACCEPT_RA)).is_ok_and(|value| value == UNLESS_FORWARDING) {
            deaf.push(name);
        }
    }
    Ok(deaf)
}

fn observe_end(linux: &mut Linux, router: &[Device]) -> Result<Option<HostEnd>, KernelError> {
    let Some(other) = router.iter().find(|device| device.name == UPLINK) else { return Ok(None) };
    let Some(device) = apply::get_device(&mut linux.host, HOST_END)?.filter(|device| are_pair(device, other)) else { return Ok(None) };
    let here = observe::addresses(&mut linux.host)?.contains(&(device.index, HOST_IP));
    let there = observe::addresses(&mut linux.router)?.contains(&(other.index, ROUTER_IP));
    let mac = device.mac.unwrap_or(Mac([0; 6]));
    let six = netns::has_six() && has_six(linux, device.index, other.index)?;
    Ok(Some(HostEnd { mac, mtu: device.mtu, up: device.up, addressed: here && there, six }))
}

/// Whether both ends have their addresses of IPv6, and the host knows the router's.
fn has_six(linux: &mut Linux, here: u32, there: u32) -> Result<bool, KernelError> {
    if !observe::addresses6(&mut linux.router)?.contains(&(there, ROUTER_IP6))
        || !observe::addresses6(&mut linux.host)?.contains(&(here, HOST_IP6))
    {
        return Ok(false);
    }
    let names = BTreeMap::from([(here, HOST_END.to_owned())]);
    let known = observe::neighbours(&mut linux.host, &names)?;
    Ok(known.get(&(HOST_END.to_owned(), IpAddr::V6(ROUTER_IP6))) == Some(&ROUTER_END_MAC))
}

fn are_pair(one: &Device, other: &Device) -> bool {
    one.is_veth && one.peer_is_outside && (one.peer, other.peer) == (other.index, one.index)
}

/// `None` for one of which there are no published ones.
fn opening(key: &[u8]) -> Option<Opening> {
    let [Some(Value::Protocol(protocol)), Some(Value::Port(port))] = decode(PORTS.key, key)[..] else { return None };
    let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|transport| transport.number() == protocol)?;
    Some(Opening { transport, port })
}

/// Peers, encrypted networks and ports that come and go, in one transaction; with the rules, where they are loaded anew.
pub(super) fn change_elements(linux: &mut Linux, ops: &[Op]) -> Result<(), KernelError> {
    let peer = |node: &Ipv4Addr| (&NODES, node.octets().to_vec());
    let network = |vni: u32| (&ENCRYPTED, encrypted_key(vni).to_vec());
    let at = |opening: &Opening| encode(&[Value::Protocol(opening.transport.number()), Value::Port(opening.port)]);
    let keys = ops.iter().filter_map(|op| match op {
        Op::AddPeer { node } => Some((true, peer(node))),
        Op::RemovePeer { node } => Some((false, peer(node))),
        Op::SealNetwork { vni } => Some((true, network(*vni))),
        Op::UnsealNetwork { vni } => Some((false, network(*vni))),
        Op::OpenPort(opening) => Some((true, (&PORTS, at(opening)))),
        Op::ClosePort(opening) => Some((false, (&PORTS, at(opening)))),
        Op::OpenPort6(opening) => Some((true, (&PORTS6, at(opening)))),
        Op::ClosePort6(opening) => Some((false, (&PORTS6, at(opening)))),
        _ => None,
    });
    let keys: Vec<(bool, (&'static Set, Vec<u8>))> = keys.collect();
    let changes: Vec<Change<'_>> = keys.iter().map(|(add, (set, key))| Change { add: *add, set, key, data: &[] }).collect();
    match ops.first() {
        Some(Op::LoadHostRules { guards }) => nft::load_with(&mut linux.host_rules, &skeleton(*guards), &changes),
        _ => nft::change_in(&mut linux.host_rules, TABLE, &changes),
    }
}

pub(super) fn enable_forwarding() -> Result<(), KernelError> {
    netns::set_sysctl(IP_FORWARD, "1", false)
}

/// Devices first: the kernel forgets the routes that one learned which does not hear any more.
pub(super) fn enable_forwarding6(linux: &Linux, hearing: bool) -> Result<(), KernelError> {
    if hearing {
        let path = linux.pins.with_file_name(FORWARDING6_FILE);
        File::create(&path).map_err(|source| KernelError::Sysctl { path, source })?;
        for device in deaf()? {
            netns::set_sysctl(&of_device(&device, ACCEPT_RA), ALWAYS, true)?;
        }
    }
    netns::set_sysctl(FORWARDING6, "1", false)
}

/// In that table of iptables or ip6tables.
pub(super) fn open_passage(linux: &mut Linux, filter: Table) -> Result<(), KernelError> {
    nft::insert(&mut linux.host_rules, filter, &passage())
}

/// The pair: the router's end up, the host's still down.
pub(super) fn add_uplink(linux: &mut Linux, link: &Link) -> Result<(), KernelError> {
    let path = PathBuf::from(OWN_NAMESPACE);
    let host = File::open(&path).map_err(|source| KernelError::Namespace { path, source })?;
    let message = messages::new_veth((UPLINK, link.mac), (HOST_END, HOST_END_MAC), host.as_raw_fd(), link.mtu);
    let what = format!("add uplink {UPLINK} to {HOST_END}");
    match linux.router.request(&what, message.clone(), CREATE) {
        Err(KernelError::Refused { errno: Errno::EEXIST, .. }) => {
            remove_remains(linux)?;
            linux.router.request(&what, message, CREATE)?;
        }
        other => other?,
    }
    apply::learn(linux, UPLINK)?;
    if link.six { linux.set_six(UPLINK, true) } else { Ok(()) }
}

/// An end without its other one, or one that leads to a router namespace that is gone.
fn remove_remains(linux: &mut Linux) -> Result<(), KernelError> {
    apply::remove_link(linux, UPLINK)?;
    let Some(device) = apply::get_device(&mut linux.host, HOST_END)? else { return Ok(()) };
    if !device.is_veth || device.mac != Some(HOST_END_MAC) {
        return Err(KernelError::Missing { why: format!("this host has a device {HOST_END} that is not rcluster's; rename or remove it") });
    }
    match linux.host.request(&format!("remove device {HOST_END}"), messages::del_link(device.index), 0) {
        Err(KernelError::Refused { errno, .. }) if apply::is_absent(errno) => Ok(()),
        other => other,
    }
}

/// The host's end, and the addresses of both.
pub(super) fn configure_uplink(linux: &mut Linux, end: &HostEnd) -> Result<(), KernelError> {
    let ends = apply::get_device(&mut linux.host, HOST_END)?.zip(apply::get_device(&mut linux.router, UPLINK)?);
    let Some((here, there)) = ends.filter(|(here, there)| are_pair(here, there)).map(|(here, there)| (here.index, there.index)) else {
        return Err(KernelError::Missing { why: format!("the uplink from {UPLINK} to {HOST_END} is not there") });
    };
    let address = |index, ip, peer| RouteNetlinkMessage::NewAddress(messages::address(index, ip, peer));
    linux.host.request(&format!("configure device {HOST_END}"), messages::set_link(here, Some(end.mac), end.mtu, end.up), 0)?;
    linux.host.request(&format!("give {HOST_END} its address"), address(here, HOST_IP, ROUTER_IP), REPLACE)?;
    linux.tighten_uplink()?;
    linux.router.request(&format!("give {UPLINK} its address"), address(there, ROUTER_IP, HOST_IP), REPLACE)?;
    if netns::has_six() {
        configure_six(linux, end.six, here, there)?;
    }
    apply::await_carrier(linux, UPLINK);
    Ok(())
}

/// What both ends have of IPv6. The host's is given its address and its neighbour last: they go when its hardware address or its state is set.
fn configure_six(linux: &mut Linux, six: bool, here: u32, there: u32) -> Result<(), KernelError> {
    let own = messages::address6_among(here, HOST_IP6, RESERVED6.prefix_len());
    if !six {
        let has_own = observe::addresses6(&mut linux.host)?.contains(&(here, HOST_IP6));
        let message = RouteNetlinkMessage::DelAddress(own);
        return if has_own { linux.host.request(&format!("take {HOST_IP6} from {HOST_END}"), message, 0) } else { Ok(()) };
    }
    enable_six(HOST_END)?;
    let new = RouteNetlinkMessage::NewAddress;
    linux.host.request(&format!("give {HOST_END} its address of IPv6"), new(own), REPLACE)?;
    let neighbour = RouteNetlinkMessage::NewNeighbour(messages::neighbour(here, ROUTER_IP6.into(), Some(ROUTER_END_MAC)));
    linux.host.request(&format!("tell {HOST_END} of {UPLINK}"), neighbour, REPLACE)?;
    linux.router.request(&format!("give {UPLINK} its address of IPv6"), new(messages::address6(there, ROUTER_IP6)), REPLACE)
}
