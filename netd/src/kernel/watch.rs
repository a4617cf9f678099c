//! Hears of what others change in the router's and the host's namespaces, so that it is mended before the regular check.
//!
//! ```text
//! router   devices · neighbours, forwarding entries · addresses · routes · routing rules · forwarding · nf_tables
//! host     rcl-up, the tunnels, and their addresses of IPv4 · forwarding · our table, and the chains through which the uplink's packets pass ·
//!          routes, also of IPv6
//! ```
//!
//! What netd changes itself is told apart by the ports of its sockets, where the kernel says by whose request it happened. Where it does not (a
//! device that changes its MTU, a forwarding entry), netd looks once too often. What cannot be heard, because too much was said at once, is news.
//! In pods nothing is listened to. The host's routes may change all the time: that they do is told apart, and what becomes of ours among them the
//! regular check sees. Never: says what changed; who hears of it reads the kernel back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::KernelError;
use super::netlink::NETLINK_ROUTE;
use super::nft::NETLINK_NETFILTER;
use super::nft::attributes::parse;
use crate::core::encryption::DEVICE_START;
use crate::core::uplink::HOST_END;

/// Multicast groups of rtnetlink (`RTNLGRP_*`) and of nfnetlink (`NFNLGRP_*`).
const LINK: u32 = 1;
const NEIGH: u32 = 3;
const IPV4_IFADDR: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV4_RULE: u32 = 8;
const IPV6_IFADDR: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const IPV6_RULE: u32 = 19;
const IPV4_NETCONF: u32 = 24;
const IPV6_NETCONF: u32 = 25;
const NFTABLES: u32 = 7;

/// Types of messages (`RTM_*`; `NFT_MSG_NEWGEN` with its subsystem).
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const NEW_NETCONF: u16 = 80;
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Of a link (`IFLA_*`, `IFF_*`).
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const UP: u32 = 1;

const FAMILY_BRIDGE: u8 = 7;
const FAMILY_IPV6: u8 = 10;

/// What a neighbour is that was set by hand, or was and is not any more (`NUD_FAILED`, `NUD_NOARP`, `NUD_PERMANENT`); the others come and go
/// with traffic.
const BY_HAND: u16 = 0x20 | 0x40 | 0x80;

/// Who made a route (`RTPROT_KERNEL`, the sixth byte of what is said of one): it follows from an address or a device, of which is told as well.
/// Of IPv6 every device has one.
const BY_KERNEL: u8 = 2;

/// Attribute `NETCONFA_IFINDEX` with the value for all devices.
const OF_ALL_DEVICES: [u8; 8] = [8, 0, 1, 0, 0xff, 0xff, 0xff, 0xff];

/// What of the host's nf_tables is ours, or in the uplink's way.
const HOST_NAMES: [&[u8]; 3] = [b"rcluster_host\0", b"DOCKER-USER\0", b"FORWARD\0"];

const RECEIVE_BYTES: usize = 64 * 1024;

/// Datagrams that are read before the news of them are told.
const DATAGRAMS_MAX: usize = 10_000;

/// What may be otherwise than netd made it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// Devices of the router that are gone.
    pub gone: BTreeSet<String>,
    /// Something else.
    pub changed: bool,
    /// The host's routes are others, none of which is netd's.
    pub routes: bool,
}

impl News {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where something is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Router,
    RouterRules,
    Host,
    HostRules,
}

/// Listens in both namespaces.
pub struct Watch {
    ears: Vec<(Place, Socket)>,
    buffer: Vec<u8>,
    hearing: Hearing,
}

/// What was heard before, without which it cannot be told what is new.
#[derive(Debug, Default)]
struct Hearing {
    /// The ports of netd's own sockets.
    own: BTreeSet<u32>,
    /// The router's devices: up, MTU, hardware address.
    links: BTreeMap<u32, (bool, Vec<u8>, Vec<u8>)>,
}

/// The two sockets in the router's namespace, opened by a thread that is there.
pub(super) struct RouterEars(Vec<(Place, Socket)>);

impl RouterEars {
    pub(super) fn open() -> Result<Self, KernelError> {
        let router =
            listen(NETLINK_ROUTE, &[LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE])?;
        Ok(Self(vec![(Place::Router, router), (Place::RouterRules, listen(NETLINK_NETFILTER, &[NFTABLES])?)]))
    }
}

impl Watch {
    /// Listens in the calling thread's namespace, too; what is done by way of these ports is not news.
    pub(super) fn open(RouterEars(mut ears): RouterEars, own: BTreeSet<u32>) -> Result<Self, KernelError> {
        ears.push((Place::Host, listen(NETLINK_ROUTE, &[LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_NETCONF, IPV6_ROUTE, IPV6_NETCONF])?));
        ears.push((Place::HostRules, listen(NETLINK_NETFILTER, &[NFTABLES])?));
        Ok(Self { ears, buffer: Vec::with_capacity(RECEIVE_BYTES), hearing: Hearing { own, ..Hearing::default() } })
    }

    /// Waits until there is news.
    pub fn wait(&mut self) -> Result<News, KernelError> {
        loop {
            let mut ready: Vec<PollFd<'_>> = self.ears.iter().map(|(_, ear)| PollFd::new(ear.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(KernelError::Transfer { source: errno.into() }),
            }
            let mut news = News::default();
            for (place, ear) in &self.ears {
                for _ in 0..DATAGRAMS_MAX {
                    self.buffer.clear();
                    match ear.recv(&mut self.buffer, 0) {
                        Ok(_) => self.hearing.hear(*place, &self.buffer, &mut news),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                            news.changed = true;
                            news.routes |= *place == Place::Host;
                        }
                        Err(source) => return Err(KernelError::Transfer { source }),
                    }
                }
            }
            if !news.is_empty() {
                return Ok(news);
            }
        }
    }
}

/// A socket that hears these groups of the calling thread's namespace.
fn listen(protocol: isize, groups: &[u32]) -> Result<Socket, KernelError> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(socket)
    };
    open().map_err(|source| KernelError::Open { source })
}

impl Hearing {
    /// One datagram; what cannot be understood is news.
    fn hear(&mut self, place: Place, mut bytes: &[u8], news: &mut News) {
        while let Some(header) = bytes.first_chunk::<16>() {
            let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (len, port) = (number(0) as usize, number(12));
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(payload) = bytes.get(16..len) else {
                news.changed = true;
                return;
            };
            self.message(place, (kind, port), payload, news);
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn message(&mut self, place: Place, (kind, port): (u16, u32), payload: &[u8], news: &mut News) {
        let is_own = self.own.contains(&port);
        let is_news = match (place, kind) {
            (Place::Router, NEW_LINK) => self.link_is_news(payload) && !is_own,
            (Place::Router, DEL_LINK) => {
                if let (Some(name), false) = (self.lose_link(payload), is_own) {
                    news.gone.insert(name);
                }
                false
            }
            _ if is_own => false,
            (Place::Router, NEW_NEIGHBOUR) => {
                let state = payload.get(8..10).map_or(0, |state| u16::from_ne_bytes([state[0], state[1]]));
                payload.first() == Some(&FAMILY_BRIDGE) || state & BY_HAND != 0
            }
            // One that is removed by hand is said to have failed first.
            (Place::Router, DEL_NEIGHBOUR) => payload.first() == Some(&FAMILY_BRIDGE),
            (Place::Router, NEW_ROUTE | DEL_ROUTE) => payload.get(5) != Some(&BY_KERNEL),
            (Place::Router, _) => true,
            (Place::RouterRules, kind) => kind != NEW_GENERATION,
            (Place::Host, NEW_ROUTE | DEL_ROUTE) => {
                news.routes = true;
                false
            }
            (Place::Host, NEW_NETCONF) => {
                let is_of_all = holds(payload, &OF_ALL_DEVICES);
                // The host has other ways by IPv6 for it.
                news.routes |= is_of_all && payload.first() == Some(&FAMILY_IPV6);
                is_of_all
            }
            (Place::Host, _) => [HOST_END, DEVICE_START].iter().any(|name| holds(payload, name.as_bytes())),
            (Place::HostRules, kind) => kind != NEW_GENERATION && HOST_NAMES.iter().any(|name| holds(payload, name)),
        };
        news.changed |= is_news;
    }

    /// Whether a device is otherwise than it was when it was heard of last; it is told of, too, when its carrier comes and goes.
    fn link_is_news(&mut self, payload: &[u8]) -> bool {
        let Some((index, flags, attributes)) = link(payload) else { return true };
        let of = |kind: u16| attributes.get(&kind).map(|value| value.to_vec()).unwrap_or_default();
        let now = (flags & UP != 0, of(MTU), of(ADDRESS));
        self.links.insert(index, now.clone()).is_none_or(|before| before != now)
    }

    /// The name of a device that is gone.
    fn lose_link(&mut self, payload: &[u8]) -> Option<String> {
        let (index, _, attributes) = link(payload)?;
        self.links.remove(&index);
        let name = attributes.get(&NAME)?;
        Some(String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned())
    }
}

/// A link's index, flags and attributes.
type Link<'a> = (u32, u32, BTreeMap<u16, &'a [u8]>);

fn link(payload: &[u8]) -> Option<Link<'_>> {
    let (header, attributes) = payload.split_first_chunk::<16>()?;
    let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Some((number(4), number(8), parse(attributes)))
}

fn holds(payload: &[u8], part: &[u8]) -> bool {
    payload.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::super::nft::attributes::Attributes;
    use super::*;

    const OWN: u32 = 77;
    const OTHER: u32 = 99;

    fn message(kind: u16, port: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = [len.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &[0; 6], &port.to_ne_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn device(flags: u32, mtu: u32) -> Vec<u8> {
        let attributes = Attributes::new().text(NAME, "p0").bytes(MTU, &mtu.to_ne_bytes()).bytes(ADDRESS, &[2, 0, 0, 0, 0, 1]);
        let header = [[0_u8; 4].as_slice(), &5_u32.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]].concat();
        [header, attributes.0].concat()
    }

    fn neighbour(family: u8, state: u16) -> Vec<u8> {
        [[family, 0, 0, 0, 5, 0, 0, 0].as_slice(), &state.to_ne_bytes(), &[0; 2]].concat()
    }

    fn route(protocol: u8) -> Vec<u8> {
        vec![10, 8, 0, 0, 255, protocol, 0, 5, 0, 0, 0, 0]
    }

    fn hearing() -> Hearing {
        Hearing { own: BTreeSet::from([OWN]), ..Hearing::default() }
    }

    fn changed(hearing: &mut Hearing, place: Place, kind: u16, port: u32, payload: &[u8]) -> bool {
        let mut news = News::default();
        hearing.hear(place, &message(kind, port, payload), &mut news);
        news.changed
    }

    #[test]
    fn what_netd_does_itself_is_no_news_and_what_others_do_is() {
        for (place, kind, payload) in [
            (Place::Router, NEW_ROUTE, route(114)),
            (Place::Router, NEW_ROUTE, route(4)),
            (Place::Router, NEW_NEIGHBOUR, neighbour(2, 0x80)),
            (Place::Router, NEW_NEIGHBOUR, neighbour(2, 0x20)),
            (Place::Router, DEL_NEIGHBOUR, neighbour(FAMILY_BRIDGE, 0x80)),
            (Place::RouterRules, 10 << 8 | 14, vec![0; 8]),
            (Place::HostRules, 10 << 8 | 2, b"\x0b\0\x01\0rcluster_host\0".to_vec()),
            (Place::Host, 21, b"\x0b\0\x03\0rcl-up\0".to_vec()),
            (Place::Host, DEL_LINK, b"\x0c\0\x03\0rcl-wg1\0".to_vec()),
        ] {
            assert!(changed(&mut hearing(), place, kind, OTHER, &payload), "{place:?} {kind}");
            assert!(!changed(&mut hearing(), place, kind, OWN, &payload), "{place:?} {kind}");
        }
    }

    #[test]
    fn what_comes_and_goes_with_traffic_and_what_is_not_ours_is_no_news() {
        for (place, kind, payload) in [
            (Place::Router, NEW_NEIGHBOUR, neighbour(2, 0x02)),
            (Place::Router, NEW_NEIGHBOUR, neighbour(2, 0x04)),
            (Place::Router, DEL_NEIGHBOUR, neighbour(2, 0x80)),
            (Place::Router, NEW_ROUTE, route(BY_KERNEL)),
            (Place::Router, DEL_ROUTE, route(BY_KERNEL)),
            (Place::RouterRules, NEW_GENERATION, vec![0; 8]),
            (Place::Host, NEW_LINK, b"\x08\0\x03\0eth0\0".to_vec()),
            (Place::Host, NEW_NETCONF, vec![2, 0, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0]),
            (Place::HostRules, 10 << 8 | 6, b"\x0b\0\x01\0docker\0".to_vec()),
        ] {
            assert!(!changed(&mut hearing(), place, kind, OTHER, &payload), "{place:?} {kind}");
        }
    }

    #[test]
    fn the_hosts_routes_are_news_of_their_own() {
        for kind in [NEW_ROUTE, DEL_ROUTE] {
            let mut news = News::default();
            hearing().hear(Place::Host, &message(kind, OTHER, &[2; 12]), &mut news);
            assert_eq!(news, News { routes: true, ..News::default() });
            assert!(!news.is_empty());
        }
        // Whether the host forwards IPv6 decides on its ways by it; of IPv4 it does not.
        for (family, routes) in [(FAMILY_IPV6, true), (2, false)] {
            let mut news = News::default();
            let payload = [&[family, 0, 0, 0][..], &OF_ALL_DEVICES].concat();
            hearing().hear(Place::Host, &message(NEW_NETCONF, OTHER, &payload), &mut news);
            assert_eq!(news, News { changed: true, routes, ..News::default() });
        }
    }

    #[test]
    fn a_device_is_news_when_it_is_otherwise_and_not_when_its_carrier_comes() {
        let mut hearing = hearing();
        let mut told = |port, flags, mtu| changed(&mut hearing, Place::Router, NEW_LINK, port, &device(flags, mtu));
        assert!(!told(OWN, UP, 1450));
        // The kernel itself, of its carrier.
        assert!(!told(0, UP | 1 << 16, 1450));
        assert!(told(0, UP, 1000));
        assert!(told(OTHER, 0, 1000));
        assert!(!told(OTHER, 0, 1000));
    }

    #[test]
    fn a_device_that_is_gone_is_named() {
        let mut news = News::default();
        let mut hearing = hearing();
        hearing.hear(Place::Router, &message(DEL_LINK, OWN, &device(UP, 1450)), &mut news);
        assert!(news.is_empty());
        hearing.hear(Place::Router, &message(DEL_LINK, 0, &device(UP, 1450)), &mut news);
        assert_eq!(news, News { gone: BTreeSet::from(["p0".to_owned()]), ..News::default() });
    }

    #[test]
    fn what_cannot_be_understood_is_news() {
        let whole = message(24, OWN, &[2; 12]);
        let mut news = News::default();
        hearing().hear(Place::Router, &[whole.as_slice(), &whole[..whole.len() - 4]].concat(), &mut news);
        assert!(news.changed);
        // A length that is none.
        let mut news = News::default();
        hearing().hear(Place::Router, &[0; 16], &mut news);
        assert!(news.changed);
    }
}
