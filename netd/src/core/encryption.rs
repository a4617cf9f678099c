//! Encrypted networks: their VXLAN goes through WireGuard tunnels between nodes.
//!
//! ```text
//! v4097 ─ VXLAN to 169.254.64.2 ─► host's route ─► rcl-wg0 ═ UDP 51820, encrypted ═► rcl-wg0 ─► VXLAN's socket ─► v4097
//!                                    └─ no tunnel: blackhole, nothing leaves
//! ```
//!
//! The managers count epochs. For each a node has a tunnel device with a key of its own, whose private half only the kernel knows; even and
//! odd ones have a device each, so that two can be in use. In a tunnel a node's address is made of its number, the same in every second epoch.
//!
//! ```text
//! epoch 2 is asked for ──► every node makes rcl-wg0 anew and tells its key ──► a pair sends by it once the picture shows the keys of both
//!                          ──► who sends by 1 to nobody does not tell that key any more ──► who is told it by nobody removes rcl-wg1
//! ```
//!
//! Decides: which tunnels there are, with which peers; by which of them frames go to a node; which keys are told. In: what nodes have told,
//! the epoch, this node's address. Never: a way for a frame of an encrypted network but through a tunnel, private keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use rcluster_api::wire::v1;
use serde::{Deserialize, Serialize};

use super::ingress::NUMBER_MAX;
use super::links::{Underlay, VXLAN_OVERHEAD};
use super::picture::{Network, Picture};
use super::uplink::places;

/// The tunnels' devices on the host: of the even and of the odd epochs.
pub const DEVICES: [&str; 2] = ["rcl-wg0", "rcl-wg1"];

/// What their names begin with.
pub const DEVICE_START: &str = "rcl-wg";

/// The addresses in all tunnels; what is for them leaves the host in no other way.
pub const TUNNELLED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);

/// Those in the tunnels of even and of odd epochs.
const SUBNETS: [Ipv4Net; 2] =
    [Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 19), Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 96, 0), 19)];

/// The UDP ports of the same.
pub const PORTS: [u16; 2] = [51820, 51821];

/// What WireGuard over IPv4 takes from the underlay's MTU: outer IP and UDP headers, its own, and its authentication.
pub const OVERHEAD: u32 = 60;

/// The public half of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

/// What a node has told of its encryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// From 1 to 8191, its own.
    pub number: u32,
    /// By epoch.
    pub keys: BTreeMap<u64, Key>,
}

/// A node's key for an epoch, and the UDP port at which it takes what is encrypted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub public: PublicKey,
    pub port: u16,
}

/// A tunnel's device. Its own key is not a part of it: whichever it has is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub epoch: u64,
    pub end: TunnelEnd,
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// This node's end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Held as /32.
    pub address: Ipv4Addr,
    pub port: u16,
    pub mtu: u32,
    pub up: bool,
    /// The addresses of its epochs are routed to it.
    pub routed: bool,
}

/// Another node at a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// On the underlay.
    pub endpoint: SocketAddrV4,
    /// In the tunnel, the only one that it may send from.
    pub inside: Ipv4Addr,
}

impl TunnelEnd {
    /// As the kernel makes it.
    pub const BARE: Self = Self { address: Ipv4Addr::UNSPECIFIED, port: 0, mtu: 0, up: false, routed: false };
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for TunnelEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, mtu, up, routed: _ } = self;
        write!(f, "{address} port {port} mtu {mtu} {}", if *up { "up" } else { "down" })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.inside, self.endpoint)
    }
}

impl Member {
    fn parse(wire: &v1::NodeView) -> Result<Self, String> {
        let mut keys = BTreeMap::new();
        for v1::WireguardKey { epoch, key, port } in &wire.wireguard_keys {
            let public = key.as_slice().try_into().map(PublicKey);
            let public = public.map_err(|_| format!("its key for epoch {epoch} has {} bytes, and not 32", key.len()))?;
            let port = u16::try_from(*port).ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| format!("its key for epoch {epoch} has no port"))?;
            keys.insert(*epoch, Key { public, port });
        }
        Ok(Self { number: wire.number, keys })
    }
}

/// What nodes have told, by their underlay addresses; those without a number have no address in a tunnel.
pub fn members(nodes: &[v1::NodeView], problems: &mut Vec<String>) -> BTreeMap<Ipv4Addr, Member> {
    let mut members = BTreeMap::new();
    for node in nodes.iter().filter(|node| (1..=NUMBER_MAX).contains(&node.number)) {
        let Ok(addr) = node.addr.parse::<Ipv4Addr>() else { continue };
        match Member::parse(node) {
            Ok(member) => {
                members.insert(addr, member);
            }
            Err(why) => problems.push(format!("nothing encrypted is sent to node {}: {why}", node.id)),
        }
    }
    members
}

/// The device of an epoch's tunnel.
pub fn device(epoch: u64) -> &'static str {
    DEVICES[parity(epoch)]
}

/// The addresses in an epoch's tunnel.
pub fn subnet(epoch: u64) -> Ipv4Net {
    SUBNETS[parity(epoch)]
}

/// A node's address in an epoch's tunnel.
fn address(epoch: u64, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet(epoch).network()) | number)
}

fn parity(epoch: u64) -> usize {
    usize::from(epoch % 2 == 1)
}

/// The MTU of a network's devices.
pub fn mtu(network: Option<&Network>, underlay: &Underlay) -> u32 {
    let is_encrypted = network.is_some_and(|network| network.encrypted);
    underlay.overlay_mtu.saturating_sub(if is_encrypted { OVERHEAD } else { 0 })
}

/// The VNIs that no frame in clear may have.
pub fn sealed(picture: &Picture) -> BTreeSet<u32> {
    picture.networks.values().filter(|network| network.encrypted).map(|network| network.vni).collect()
}

/// The tunnels, by their devices' names: that of the epoch in force, and the one before as long as a peer tells a key of it.
pub fn tunnels(picture: &Picture, underlay: &Underlay) -> BTreeMap<String, Tunnel> {
    let own = picture.members.get(&underlay.addr).filter(|_| picture.key_epoch > 0 && !picture.cannot_encrypt);
    let Some(own) = own else { return BTreeMap::new() };
    let others = others(picture, underlay);
    let peers = |epoch: u64| -> BTreeMap<PublicKey, Peer> {
        let peer = |(addr, other): &(Ipv4Addr, &Member)| {
            let Key { public, port } = other.keys.get(&epoch)?;
            Some((*public, Peer { endpoint: SocketAddrV4::new(*addr, *port), inside: address(epoch, other.number) }))
        };
        others.iter().filter_map(peer).collect()
    };
    let tunnel = |epoch: u64| {
        let mtu = (underlay.overlay_mtu + VXLAN_OVERHEAD).saturating_sub(OVERHEAD);
        let end = TunnelEnd { address: address(epoch, own.number), port: PORTS[parity(epoch)], mtu, up: true, routed: true };
        (device(epoch).to_owned(), Tunnel { epoch, end, peers: peers(epoch) })
    };
    let epochs = in_force(picture);
    epochs.filter(|epoch| *epoch == picture.key_epoch || !peers(*epoch).is_empty()).map(tunnel).collect()
}

/// To which address frames for a node go on an encrypted network; `None` while the two have no key in common.
pub fn way_to(picture: &Picture, underlay: &Underlay, node: Ipv4Addr) -> Option<Ipv4Addr> {
    let epoch = common(picture, underlay, node)?;
    Some(address(epoch, picture.members.get(&node)?.number))
}

/// The addresses in tunnels from which frames come.
pub fn senders(picture: &Picture, underlay: &Underlay) -> BTreeSet<Ipv4Addr> {
    tunnels(picture, underlay).into_values().flat_map(|tunnel| tunnel.peers.into_values()).map(|peer| peer.inside).collect()
}

/// What is told of this node's keys, which are in `keys` by epoch: that of the epoch in force, and others as long as it sends by them.
pub fn told(picture: &Picture, underlay: &Underlay, keys: BTreeMap<u64, PublicKey>) -> Vec<v1::WireguardKey> {
    let in_use: BTreeSet<u64> = others(picture, underlay).iter().filter_map(|(addr, _)| common(picture, underlay, *addr)).collect();
    let told = keys.into_iter().filter(|(epoch, _)| *epoch == picture.key_epoch || in_use.contains(epoch));
    told.map(|(epoch, key)| v1::WireguardKey { epoch, key: key.0.to_vec(), port: PORTS[parity(epoch)].into() }).collect()
}

/// Whether the tunnel of the epoch in force is among those that the kernel holds.
pub fn is_ready(picture: &Picture, held: &BTreeMap<String, Tunnel>) -> bool {
    let tunnel = held.get(device(picture.key_epoch)).filter(|tunnel| tunnel.epoch == picture.key_epoch);
    picture.key_epoch > 0 && tunnel.is_some_and(|tunnel| tunnel.end.up)
}

/// The newest epoch for which both this node and another one have told a key.
fn common(picture: &Picture, underlay: &Underlay, node: Ipv4Addr) -> Option<u64> {
    let own = picture.members.get(&underlay.addr).filter(|_| !picture.cannot_encrypt)?;
    let other = picture.members.get(&node)?;
    in_force(picture).rev().find(|epoch| own.keys.contains_key(epoch) && other.keys.contains_key(epoch))
}

/// The epochs that have a tunnel to themselves.
fn in_force(picture: &Picture) -> impl DoubleEndedIterator<Item = u64> + use<> {
    (picture.key_epoch.saturating_sub(1)..=picture.key_epoch).filter(|epoch| *epoch > 0)
}

/// The other nodes with an endpoint on an encrypted network of this one.
fn others<'a>(picture: &'a Picture, underlay: &Underlay) -> Vec<(Ipv4Addr, &'a Member)> {
    let encrypted = picture.networks.values().filter(|network| network.encrypted);
    let nodes: BTreeSet<Ipv4Addr> = places(encrypted, underlay.addr).collect();
    nodes.into_iter().filter_map(|node| Some((node, picture.members.get(&node)?))).collect()
}

#[cfg(test)]
#[path = "encryption_tests.rs"]
mod tests;
