//! The host's side of the uplink: its end of the pair, our table in its namespace, its forwarding, and the way through iptables.
//!
//! netd's threads are in the host's namespace; what is done here is done there, unless it says otherwise.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::linux::Linux;
use super::messages::{self, CREATE, REPLACE};
use super::netlink::Netlink;
use super::nft::{self, Change};
use super::observe::Device;
use super::{KernelError, apply, netns, observe};
use crate::core::flows::Transport;
use crate::core::links::{Link, Mac};
use crate::core::plan::Op;
use crate::core::published::Opening;
use crate::core::rules::elements::{Value, decode, encode};
use crate::core::rules::host::{DOCKER_USER, FILTER, NODES, PORTS, TABLE, passage, skeleton};
use crate::core::rules::{ChainKind, Hook, Policy, Set, chain_line};
use crate::core::uplink::{
    Forwarding, HOST_END, HOST_END_MAC, HOST_IP, HostEnd, HostPlane, HostRules, Passage, RESERVED, ROUTER_IP, UPLINK,
};

const IP_FORWARD: &str = "ipv4/ip_forward";

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

/// Whether the uplink's addresses are free.
pub(super) fn check(host: &mut Netlink) -> Result<(), KernelError> {
    let devices = observe::devices(host)?;
    let taken = observe::addresses(host)?.into_iter().filter(|(_, ip)| RESERVED.contains(ip));
    for (index, ip) in taken {
        let name = devices.iter().find(|device| device.index == index).map_or("", |device| device.name.as_str());
        if name != HOST_END {
            return Err(KernelError::Missing {
                why: format!(
                    "{ip} is an address of this host's device {name}; netd needs {RESERVED} between the host and pods: give {name} another"
                ),
            });
        }
    }
    Ok(())
}

/// What is ours on the host; `router` are the devices of the router namespace.
pub(super) fn observe(linux: &mut Linux, router: &[Device]) -> Result<HostPlane, KernelError> {
    let netlink = &mut linux.host_rules;
    let rules = HostRules::seen(&nft::outline(netlink, TABLE)?);
    let peers = nft::read_in(netlink, TABLE, &NODES)?;
    let ports = nft::read_in(netlink, TABLE, &PORTS)?;
    Ok(HostPlane {
        rules,
        peers: peers.iter().filter_map(|(key, _)| key.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))).collect(),
        ports: ports.iter().filter_map(|(key, _)| opening(key)).collect(),
        forwarding: netns::sysctl(IP_FORWARD)? == "1",
        passage: observe_passage(netlink)?,
        end: observe_end(linux, router)?,
    })
}

/// What can be seen of it: a legacy iptables is not nf_tables' and shows nothing.
fn observe_passage(netlink: &mut Netlink) -> Result<Passage, KernelError> {
    let chains = nft::chains(netlink, FILTER)?;
    let dropping = chain_line("FORWARD", Some((ChainKind::Filter.word(), Hook::Forward as u32, 0, Policy::Drop as u32)));
    Ok(if !chains.contains(&dropping) || nft::mentions(netlink, FILTER, HOST_END.as_bytes())? {
        Passage::Open
    } else if chains.contains(DOCKER_USER) {
        Passage::Docker
    } else {
        Passage::Shut
    })
}

fn observe_end(linux: &mut Linux, router: &[Device]) -> Result<Option<HostEnd>, KernelError> {
    let Some(other) = router.iter().find(|device| device.name == UPLINK) else { return Ok(None) };
    let Some(device) = apply::get_device(&mut linux.host, HOST_END)?.filter(|device| are_pair(device, other)) else { return Ok(None) };
    let here = observe::addresses(&mut linux.host)?.contains(&(device.index, HOST_IP));
    let there = observe::addresses(&mut linux.router)?.contains(&(other.index, ROUTER_IP));
    let mac = device.mac.unwrap_or(Mac([0; 6]));
    Ok(Some(HostEnd { mac, mtu: device.mtu, up: device.up, addressed: here && there }))
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

/// Peers and ports that come and go, in one transaction; with the rules, where they are loaded anew.
pub(super) fn change_elements(linux: &mut Linux, ops: &[Op]) -> Result<(), KernelError> {
    let peer = |node: &Ipv4Addr| (&NODES, node.octets().to_vec());
    let port = |opening: &Opening| (&PORTS, encode(&[Value::Protocol(opening.transport.number()), Value::Port(opening.port)]));
    let keys = ops.iter().filter_map(|op| match op {
        Op::AddPeer { node } => Some((true, peer(node))),
        Op::RemovePeer { node } => Some((false, peer(node))),
        Op::OpenPort(opening) => Some((true, port(opening))),
        Op::ClosePort(opening) => Some((false, port(opening))),
        _ => None,
    });
    let keys: Vec<(bool, (&'static Set, Vec<u8>))> = keys.collect();
    let changes: Vec<Change<'_>> = keys.iter().map(|(add, (set, key))| Change { add: *add, set, key, data: &[] }).collect();
    match ops.first() {
        Some(Op::LoadHostRules { guarded }) => nft::load_with(&mut linux.host_rules, &skeleton(*guarded), &changes),
        _ => nft::change_in(&mut linux.host_rules, TABLE, &changes),
    }
}

pub(super) fn enable_forwarding() -> Result<(), KernelError> {
    netns::set_sysctl(IP_FORWARD, "1", false)
}

pub(super) fn open_passage(linux: &mut Linux) -> Result<(), KernelError> {
    nft::insert(&mut linux.host_rules, FILTER, &passage())
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
    apply::learn(linux, UPLINK)
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
    linux.router.request(&format!("give {UPLINK} its address"), address(there, ROUTER_IP, HOST_IP), REPLACE)?;
    apply::await_carrier(linux, UPLINK);
    Ok(())
}
