//! Tunnels: WireGuard devices in the host's namespace, made by rtnetlink, and given keys and peers by generic netlink.
//!
//! A device's private key is drawn here, given to the kernel and forgotten; what else there is to know of it the kernel is asked: the public key,
//! the peers. Its epoch stands in its alias, which also tells that it is ours.
//!
//! Attribute and command numbers are those of `linux/wireguard.h` and `linux/genetlink.h`; WireGuard's integers are in the host's order.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::linux::Linux;
use super::messages::{self, CREATE, Next, REPLACE};
use super::netlink::Netlink;
use super::nft::attributes::{Attributes, parse, split};
use super::observe::{self, Device};
use super::{KernelError, apply};
use crate::core::encryption::{self, DEVICES, PORTS, Peer, PublicKey, TUNNELLED, Tunnel, TunnelEnd};
use crate::core::plan::Op;
use crate::drive::in_full;

const NETLINK_GENERIC: isize = 16;

/// The family that knows the others.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;

const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED: u16 = 9;

const REMOVE_PEER: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;

const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;

const FAMILY_IPV4: u16 = 2;

/// A peer is sent something so often, at once first. Of two nodes the second to hear of the other so begins the handshake, which fails where the
/// first does and would be tried again after five seconds only; and a tunnel that was idle for long does not wait for one.
const KEEPALIVE_SECONDS: u16 = 60;

/// What the alias of a device of ours begins with; its epoch follows.
const ALIAS: &str = "rcluster epoch ";

const NO_WIREGUARD: &str = "this kernel has no WireGuard (CONFIG_WIREGUARD); load the module wireguard";

/// A socket to WireGuard, in the host's namespace.
pub struct Wireguard {
    netlink: Netlink,
    family: Option<u16>,
}

/// A device as WireGuard shows it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// `None` before it has a key.
    public: Option<PublicKey>,
    port: u16,
    peers: BTreeMap<PublicKey, Peer>,
}

impl Wireguard {
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { netlink: Netlink::open(NETLINK_GENERIC)?, family: None })
    }

    /// WireGuard's number, if the kernel has it; it loads the module if there is one.
    fn family(&mut self) -> Result<Option<u16>, KernelError> {
        if self.family.is_none() {
            let name = Attributes::new().text(FAMILY_NAME, "wireguard");
            match self.send("ask for WireGuard", (CONTROLLER, GET_FAMILY), NLM_F_ACK, &name) {
                Ok(answers) => self.family = answers.iter().find_map(|answer| family_id(answer)),
                Err(error) if error.errno().is_some_and(|errno| errno == Errno::EOPNOTSUPP || apply::is_absent(errno)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.family)
    }

    /// Why this kernel cannot encrypt.
    fn missing(&mut self) -> Option<String> {
        match self.family() {
            Ok(Some(_)) => None,
            Ok(None) => Some(NO_WIREGUARD.to_owned()),
            Err(error) => Some(format!("WireGuard could not be asked for: {}", in_full(&error))),
        }
    }

    /// `None` for a device that is not there.
    fn device(&mut self, name: &str) -> Result<Option<Seen>, KernelError> {
        let Some(family) = self.family()? else { return Ok(None) };
        let attributes = Attributes::new().text(DEVICE_NAME, name);
        match self.send(&format!("read tunnel {name}"), (family, GET_DEVICE), NLM_F_DUMP, &attributes) {
            Ok(answers) => Ok(Some(seen(answers.iter().map(Vec::as_slice)))),
            Err(error) if error.errno().is_some_and(apply::is_absent) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set(&mut self, what: &str, name: &str, attributes: impl FnOnce(Attributes) -> Attributes) -> Result<(), KernelError> {
        let Some(family) = self.family()? else { return Err(KernelError::Missing { why: NO_WIREGUARD.to_owned() }) };
        let attributes = attributes(Attributes::new().text(DEVICE_NAME, name));
        self.send(what, (family, SET_DEVICE), NLM_F_ACK, &attributes).map(drop)
    }

    /// What is answered, behind generic netlink's header.
    fn send(&mut self, what: &str, (family, command): (u16, u8), flags: u16, attributes: &Attributes) -> Result<Vec<Vec<u8>>, KernelError> {
        let sequence = self.netlink.next_sequence();
        self.netlink.send(&message((family, NLM_F_REQUEST | flags, sequence), command, &attributes.0))?;
        let answers = self.netlink.collect(what)?.into_iter();
        Ok(answers.map(|answer| answer.payload.get(4..).unwrap_or_default().to_vec()).collect())
    }
}

/// One message: netlink's header (family, flags, sequence number), generic netlink's (command, version 1), its attributes.
fn message((family, flags, sequence): (u16, u16, u32), command: u8, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(20 + attributes.len()).expect("a message is one peer's or one device's");
    let mut bytes = Vec::with_capacity(20 + attributes.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn family_id(answer: &[u8]) -> Option<u16> {
    parse(answer).get(&FAMILY_ID)?.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// A device by the messages of its dump; one with many peers takes several, and a peer may go on in the next.
fn seen<'a>(messages: impl Iterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen::default();
    for message in messages {
        for (kind, value) in split(message) {
            match kind {
                DEVICE_PUBLIC_KEY => seen.public = public_key(value),
                DEVICE_PORT => seen.port = value.first_chunk::<2>().map_or(0, |bytes| u16::from_ne_bytes(*bytes)),
                DEVICE_PEERS => {
                    for (_, peer) in split(value) {
                        add_peer(&mut seen.peers, peer);
                    }
                }
                _ => {}
            }
        }
    }
    seen
}

fn public_key(value: &[u8]) -> Option<PublicKey> {
    value.try_into().map(PublicKey).ok()
}

/// What is missing of a peer is unspecified, so that it is no peer that is wanted.
fn add_peer(peers: &mut BTreeMap<PublicKey, Peer>, value: &[u8]) {
    let attributes = parse(value);
    let Some(key) = attributes.get(&PEER_KEY).and_then(|bytes| public_key(bytes)) else { return };
    let unknown = Peer { endpoint: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), inside: Ipv4Addr::UNSPECIFIED };
    let peer = peers.entry(key).or_insert(unknown);
    if let Some(endpoint) = attributes.get(&PEER_ENDPOINT).and_then(|bytes| endpoint(bytes)) {
        peer.endpoint = endpoint;
    }
    let allowed = split(attributes.get(&PEER_ALLOWED).copied().unwrap_or_default());
    if let [(_, only)] = allowed.as_slice()
        && let Some(inside) = host_address(only)
    {
        peer.inside = inside;
    }
}

/// An address of the kernel's, with its family before it.
fn endpoint(bytes: &[u8]) -> Option<SocketAddrV4> {
    let [family0, family1, port0, port1, a, b, c, d] = *bytes.first_chunk::<8>()?;
    let is_ipv4 = u16::from_ne_bytes([family0, family1]) == FAMILY_IPV4;
    is_ipv4.then(|| SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([port0, port1])))
}

fn written(endpoint: SocketAddrV4) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&FAMILY_IPV4.to_ne_bytes());
    bytes[2..4].copy_from_slice(&endpoint.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&endpoint.ip().octets());
    bytes
}

/// The one address of a range that has no other.
fn host_address(allowed: &[u8]) -> Option<Ipv4Addr> {
    let attributes = parse(allowed);
    let octets = <[u8; 4]>::try_from(*attributes.get(&ALLOWED_ADDRESS)?).ok()?;
    (attributes.get(&ALLOWED_PREFIX)?.first() == Some(&32)).then(|| Ipv4Addr::from(octets))
}

fn peers(peer: Attributes) -> impl FnOnce(Attributes) -> Attributes {
    move |device| device.nested(DEVICE_PEERS, Attributes::new().nested(0, peer))
}

fn peer_set(key: PublicKey, peer: &Peer) -> Attributes {
    let allowed = Attributes::new()
        .bytes(ALLOWED_FAMILY, &FAMILY_IPV4.to_ne_bytes())
        .bytes(ALLOWED_ADDRESS, &peer.inside.octets())
        .bytes(ALLOWED_PREFIX, &[32]);
    Attributes::new()
        .bytes(PEER_KEY, &key.0)
        .bytes(PEER_FLAGS, &REPLACE_ALLOWED.to_ne_bytes())
        .bytes(PEER_ENDPOINT, &written(peer.endpoint))
        .bytes(PEER_KEEPALIVE, &KEEPALIVE_SECONDS.to_ne_bytes())
        .nested(PEER_ALLOWED, Attributes::new().nested(0, allowed))
}

fn peer_removed(key: PublicKey) -> Attributes {
    Attributes::new().bytes(PEER_KEY, &key.0).bytes(PEER_FLAGS, &REMOVE_PEER.to_ne_bytes())
}

/// The epoch of a device of ours.
fn epoch_of(device: &Device) -> Option<u64> {
    device.alias.strip_prefix(ALIAS).filter(|_| device.is_wireguard)?.parse().ok()
}

/// Why nothing can be encrypted here. Before there is a tunnel the ports of all are asked for: who has that of the next epoch would be
/// heard of a day later.
pub(super) fn missing(linux: &mut Linux) -> Option<String> {
    if let Some(why) = linux.wireguard.missing() {
        return Some(why);
    }
    for name in DEVICES {
        if matches!(apply::get_device(&mut linux.host, name), Ok(Some(device)) if epoch_of(&device).is_some()) {
            return None;
        }
    }
    let is_held = |port: &u16| {
        let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *port));
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    PORTS.into_iter().find(is_held).map(held)
}

/// Our tunnels, and whether the fence stands.
pub(super) fn observe(linux: &mut Linux) -> Result<(BTreeMap<String, Tunnel>, bool), KernelError> {
    let routes = observe::own_routes(&mut linux.host)?;
    let mut tunnels = BTreeMap::new();
    for name in DEVICES {
        let Some(device) = apply::get_device(&mut linux.host, name)? else { continue };
        let Some(epoch) = epoch_of(&device) else { continue };
        let Some(Seen { public: Some(_), port, peers }) = linux.wireguard.device(name)? else { continue };
        let address = observe::addresses(&mut linux.host)?.into_iter().find(|(index, _)| *index == device.index);
        let end = TunnelEnd {
            address: address.map_or(Ipv4Addr::UNSPECIFIED, |(_, ip)| ip),
            port,
            mtu: device.mtu,
            up: device.up,
            routed: routes.contains(&(encryption::subnet(epoch), Some(device.index))),
        };
        tunnels.insert(name.to_owned(), Tunnel { epoch, end, peers });
    }
    Ok((tunnels, routes.contains(&(TUNNELLED, None))))
}

/// The public keys of our tunnels that are up, by epoch.
pub(super) fn public_keys(linux: &mut Linux) -> Result<BTreeMap<u64, PublicKey>, KernelError> {
    let mut keys = BTreeMap::new();
    for name in DEVICES {
        let device = apply::get_device(&mut linux.host, name)?.filter(|device| device.up);
        let Some(epoch) = device.as_ref().and_then(epoch_of) else { continue };
        keys.extend(linux.wireguard.device(name)?.and_then(|seen| seen.public).map(|key| (epoch, key)));
    }
    Ok(keys)
}

/// Carries out an operation on tunnels; others are none of its business.
pub(super) fn carry_out(linux: &mut Linux, op: &Op) -> Result<(), KernelError> {
    let what = op.to_string();
    match op {
        Op::Fence => linux.host.request(&what, RouteNetlinkMessage::NewRoute(messages::blackhole(TUNNELLED)), REPLACE),
        Op::Unfence => match linux.host.request(&what, RouteNetlinkMessage::DelRoute(messages::blackhole(TUNNELLED)), 0) {
            Err(KernelError::Refused { errno, .. }) if apply::is_absent(errno) => Ok(()),
            other => other,
        },
        Op::AddTunnel { name, epoch } => add(linux, name, *epoch),
        Op::ConfigureTunnel { name, epoch, end } => configure(linux, name, *epoch, end),
        Op::SetTunnelPeer { name, key, peer } => linux.wireguard.set(&what, name, peers(peer_set(*key, peer))),
        Op::RemoveTunnelPeer { name, key } => match linux.wireguard.set(&what, name, peers(peer_removed(*key))) {
            Err(KernelError::Refused { errno, .. }) if apply::is_absent(errno) => Ok(()),
            other => other,
        },
        Op::RemoveTunnel { name } => remove(linux, name),
        _ => Ok(()),
    }
}

/// The alias comes last: a device that has it has its key.
fn add(linux: &mut Linux, name: &str, epoch: u64) -> Result<(), KernelError> {
    if let Some(why) = linux.wireguard.missing() {
        return Err(KernelError::Missing { why });
    }
    remove(linux, name)?;
    check_addresses(linux)?;
    let what = format!("add tunnel {name}");
    linux.host.request(&what, messages::new_wireguard(name), CREATE)?;
    let private: [u8; 32] = rand::random();
    linux.wireguard.set(&what, name, |device| device.bytes(DEVICE_PRIVATE_KEY, &private))?;
    let index = find(linux, name)?.index;
    linux.host.request(&what, messages::set_alias(index, &format!("{ALIAS}{epoch}")), 0)
}

/// Nobody else may have what is to be an address in a tunnel.
fn check_addresses(linux: &mut Linux) -> Result<(), KernelError> {
    let taken = observe::addresses(&mut linux.host)?.into_iter().filter(|(_, ip)| TUNNELLED.contains(ip));
    let taken: Vec<(u32, Ipv4Addr)> = taken.collect();
    if taken.is_empty() {
        return Ok(());
    }
    let devices = observe::devices(&mut linux.host)?;
    let other = taken.iter().find_map(|(index, ip)| {
        let device = devices.iter().find(|device| device.index == *index)?;
        (!DEVICES.contains(&device.name.as_str())).then(|| (ip, device.name.clone()))
    });
    match other {
        Some((ip, name)) => Err(KernelError::Missing {
            why: format!(
                "{ip} is an address of this host's device {name}; netd needs {TUNNELLED} for encrypted networks: give {name} another"
            ),
        }),
        None => Ok(()),
    }
}

fn configure(linux: &mut Linux, name: &str, epoch: u64, end: &TunnelEnd) -> Result<(), KernelError> {
    let what = format!("configure tunnel {name}");
    let index = find(linux, name)?.index;
    let set_port = linux.wireguard.set(&what, name, |device| device.bytes(DEVICE_PORT, &end.port.to_ne_bytes()));
    set_port.map_err(|error| explain(error, end.port))?;
    let up = linux.host.request(&what, messages::set_link(index, None, end.mtu, end.up), 0);
    up.map_err(|error| explain(error, end.port))?;
    let addresses = observe::addresses(&mut linux.host)?;
    for (_, stray) in addresses.into_iter().filter(|(of, ip)| *of == index && *ip != end.address) {
        linux.host.request(&what, RouteNetlinkMessage::DelAddress(messages::address(index, stray, stray)), 0)?;
    }
    linux.host.request(&what, messages::new_address(index, end.address), REPLACE)?;
    let route = messages::route(encryption::subnet(epoch).into(), Next::Device(index));
    linux.host.request(&what, RouteNetlinkMessage::NewRoute(route), REPLACE)
}

fn explain(error: KernelError, port: u16) -> KernelError {
    match error {
        KernelError::Refused { errno: Errno::EADDRINUSE, .. } => KernelError::Missing { why: held(port) },
        other => other,
    }
}

fn held(port: u16) -> String {
    format!("UDP port {port} is held by another program of this host; encrypted networks need it")
}

fn find(linux: &mut Linux, name: &str) -> Result<Device, KernelError> {
    let device = apply::get_device(&mut linux.host, name)?;
    device.ok_or_else(|| KernelError::Missing { why: format!("this host has no device {name}") })
}

/// One without an alias was left by a netd that was killed while it made it.
fn remove(linux: &mut Linux, name: &str) -> Result<(), KernelError> {
    let Some(device) = apply::get_device(&mut linux.host, name)? else { return Ok(()) };
    let is_ours = device.is_wireguard && (device.alias.is_empty() || epoch_of(&device).is_some());
    if !is_ours {
        return Err(KernelError::Missing { why: format!("this host has a device {name} that is not rcluster's; rename or remove it") });
    }
    match linux.host.request(&format!("remove device {name}"), messages::del_link(device.index), 0) {
        Err(KernelError::Refused { errno, .. }) if apply::is_absent(errno) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};
    use proptest::sample::Index;

    use super::*;

    const PEER: Peer = Peer { endpoint: SocketAddrV4::new(Ipv4Addr::new(10, 90, 0, 102), 51821), inside: Ipv4Addr::new(169, 254, 96, 2) };

    /// A device as the kernel shows it, with these peers.
    fn shown(keys: &[u8]) -> Vec<u8> {
        let list = keys.iter().fold(Attributes::new(), |list, key| list.nested(0, peer_set(PublicKey([*key; 32]), &PEER)));
        Attributes::new()
            .bytes(1, &7_u32.to_ne_bytes())
            .text(DEVICE_NAME, "rcl-wg1")
            .bytes(DEVICE_PRIVATE_KEY, &[5; 32])
            .bytes(DEVICE_PUBLIC_KEY, &[6; 32])
            .bytes(DEVICE_PORT, &51821_u16.to_ne_bytes())
            .nested(DEVICE_PEERS, list)
            .0
    }

    /// On a little-endian host.
    #[test]
    fn a_peer_is_set_with_these_bytes() {
        let attributes = peers(peer_set(PublicKey([0xab; 32]), &PEER))(Attributes::new().text(DEVICE_NAME, "rcl-wg1")).0;
        let message = message((0x1c, NLM_F_REQUEST | NLM_F_ACK, 9), SET_DEVICE, &attributes);
        let words: Vec<u32> = message.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect();
        let head = [0x9000_0000, 0x1c00_0500, 0x0900_0000, 0, 0x0101_0000, 0x0c00_0200, 0x7263_6c2d, 0x7767_3100];
        assert_eq!(words[..8], head);
        // The list, its one peer, the key.
        assert_eq!(words[8..11], [0x7000_0880, 0x6c00_0080, 0x2400_0100]);
        assert!(words[11..19].iter().all(|word| *word == 0xabab_abab));
        assert_eq!(
            words[19..],
            [
                0x0800_0300,
                0x0200_0000, // replace what it may send from
                0x1400_0400,
                0x0200_ca6d,
                0x0a5a_0066,
                0,
                0, // 10.90.0.102:51821
                0x0600_0500,
                0x3c00_0000, // every 60 s
                0x2000_0980,
                0x1c00_0080,
                0x0600_0100,
                0x0200_0000,
                0x0800_0200,
                0xa9fe_6002,
                0x0500_0300,
                0x2000_0000,
            ]
        );
    }

    #[test]
    fn a_device_is_read_as_it_is_written_over_several_messages() {
        let (first, second) = (shown(&[1, 2]), shown(&[3]));
        let read = seen([first.as_slice(), second.as_slice()].into_iter());
        let peers = [1, 2, 3].map(|key| (PublicKey([key; 32]), PEER));
        assert_eq!(read, Seen { public: Some(PublicKey([6; 32])), port: 51821, peers: peers.into() });
        assert!(!format!("{read:?}").contains("5, 5, 5"), "the private key, which the kernel tells too, is passed over");
    }

    #[test]
    fn a_peer_that_may_send_from_more_than_one_address_is_none_that_is_wanted() {
        let range = |prefix: u8| Attributes::new().bytes(1, &FAMILY_IPV4.to_ne_bytes()).bytes(2, &[169, 254, 96, 2]).bytes(3, &[prefix]);
        for (ranges, expected) in [
            (std::vec![range(32)], PEER.inside),
            (std::vec![range(31)], Ipv4Addr::UNSPECIFIED),
            (std::vec![range(32), range(32)], Ipv4Addr::UNSPECIFIED),
            (std::vec![], Ipv4Addr::UNSPECIFIED),
        ] {
            let list = ranges.into_iter().fold(Attributes::new(), |list, range| list.nested(0, range));
            let mut read = BTreeMap::new();
            add_peer(&mut read, &Attributes::new().bytes(PEER_KEY, &[1; 32]).nested(PEER_ALLOWED, list).0);
            assert_eq!(read[&PublicKey([1; 32])].inside, expected);
        }
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 2000, failure_persistence: None, ..Default::default() })]

        #[test]
        fn what_is_damaged_is_read_up_to_its_end(damages in vec((any::<Index>(), any::<u8>()), 0..8), cut in any::<Index>()) {
            let mut bytes = shown(&[1, 2, 3]);
            for (place, byte) in damages {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            prop_assert!(seen([bytes.as_slice()].into_iter()).peers.len() <= bytes.len() / 32);
            prop_assert!(family_id(&bytes).is_none() || bytes.len() >= 6);
            prop_assert!(endpoint(&bytes).is_none() || bytes.len() >= 8);
            prop_assert!(host_address(&bytes).is_none() || bytes.len() >= 13);
        }
    }
}
