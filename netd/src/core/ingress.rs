//! How connections to published ports get from the node that they came to (their *entry*) to the node of the backend, and back the same way.
//!
//! ```text
//! client ─► host: rcl-up ═ up ─► router of the entry: backend chosen ─► ing ══ VXLAN 4095 ══ ing ─► router of the server ─► pod
//!        ◄─                 ◄─  source is the node's again           ◄─ ing ════════════════ ing ◄─ by the connection's mark  ◄─
//! ```
//!
//! The client's address is never changed, so what the pod answers would leave by its own node's way out. Therefore the connection is marked
//! with the other node's number, on both sides; the mark chooses a table whose one route leads over `ing` to that node. The device is in a
//! network of its own, apart from those of services: a client may be anybody.
//!
//! Connections of a host to itself (`127.0.0.1`, its own address) are not forwarded; netd takes them (`proxy`) and connects on from the router,
//! under an address that each node has for itself, so that replies find their node.
//!
//! Decides: names, addresses, marks and tables, all made of a node's number; which ports of the host are ours, and where the host's own
//! connections to them go. Never: anything while this node has no number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use super::links::{Link, LinkKind, SIX_MTU_MIN, Underlay, VXLAN_PORT, vtep_mac, vtep6};
use super::neighbours::Route;
use super::picture::{Attachments, Picture, Place};
use super::published::{Opening, Published};

/// The device between the nodes.
pub const INGRESS: &str = "ing";

/// Its VNI; those of networks begin above it.
pub const INGRESS_VNI: u32 = 4095;

/// The highest number of a node.
pub const NUMBER_MAX: u32 = 8191;

/// Where the nodes' own addresses on the device begin.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(169, 254, 192, 0);

/// All of them: hosts' own connections come from these, and nobody else's.
pub const OWN: Ipv4Net = Ipv4Net::new_assert(ADDRESSES, 19);

/// What a mark that names a node has in these bits of its.
pub const MARK: u32 = 0x0100_0000;
pub const MARK_BITS: u32 = 0xff00_0000;

/// After it, the tables of nodes by their numbers.
const TABLES: u32 = 100_000;

/// The same of IPv6, apart from those so that each table has one default route.
const TABLES6: u32 = 200_000;

/// The kernel's table of routes that all use.
const MAIN_TABLE: u32 = 254;

/// What has no node's mark is looked up at once; there may be as many rules as nodes.
const PREFERENCE_OF_OTHERS: u32 = 100;
const PREFERENCE: u32 = 1000;

/// A rule by which a packet's mark chooses a table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    pub preference: u32,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
}

impl Selector {
    /// It is one of IPv6.
    pub fn is_six(&self) -> bool {
        is_of_six(self.table)
    }
}

/// Whether it is a table of routes of IPv6.
pub fn is_of_six(table: u32) -> bool {
    table >= TABLES6
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mark {:#x}/{:#x} to table {} at {}", self.mark, self.mask, self.table, self.preference)
    }
}

/// Where the host's own connections to a published port go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddrV4,
    /// Whom the backend sees.
    pub source: Ipv4Addr,
    /// Of what is sent; 0 for a backend here.
    pub mark: u32,
}

/// A node's own address on the device.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ADDRESSES) + number)
}

/// The mark of connections with that node.
pub fn mark(number: u32) -> u32 {
    MARK | number
}

/// The table of the way to a node.
pub fn table(number: u32) -> u32 {
    TABLES + number
}

/// The same of IPv6.
pub fn table6(number: u32) -> u32 {
    TABLES6 + number
}

/// Whether ports are published here behind which tasks have IPv6, which then may come by every node and go to any.
pub fn has_six(picture: &Picture, underlay: &Underlay) -> bool {
    let can = underlay.six && underlay.overlay_mtu >= SIX_MTU_MIN;
    can && picture.number > 0 && picture.published.iter().any(Published::has_six)
}

/// The tasks here that are reached by IPv6, by their addresses of IPv4.
pub fn reached_by_six(picture: &Picture, underlay: &Underlay) -> BTreeSet<Ipv4Addr> {
    if !has_six(picture, underlay) {
        return BTreeSet::new();
    }
    let backends = picture.published.iter().flat_map(|published| &published.backends);
    backends.filter(|backend| backend.ip6.is_some() && backend.place == Place::Here).map(|backend| backend.ip).collect()
}

/// The ports that are to be reached by IPv6, too.
pub fn openings6(picture: &Picture, underlay: &Underlay) -> BTreeSet<Opening> {
    let published: &[Published] = if has_six(picture, underlay) { &picture.published } else { &[] };
    published.iter().filter(|published| published.has_six()).flat_map(Published::openings).map(|(opening, _)| opening).collect()
}

/// Of these those that nobody else has on this host.
pub fn open6(picture: &Picture, underlay: &Underlay) -> BTreeSet<Opening> {
    openings6(picture, underlay).into_iter().filter(|opening| !picture.taken.contains_key(opening)).collect()
}

/// The other nodes, with their numbers; none while this one has none.
pub fn others<'a>(picture: &'a Picture, underlay: &Underlay) -> impl Iterator<Item = (Ipv4Addr, u32)> + use<'a> {
    let (has_number, own) = (picture.number > 0, underlay.addr);
    picture.numbers.iter().map(|(node, number)| (*node, *number)).filter(move |(node, _)| has_number && *node != own)
}

/// The device.
pub fn link(picture: &Picture, underlay: &Underlay) -> Option<Link> {
    let kind = LinkKind::Vxlan { vni: INGRESS_VNI, local: underlay.addr, port: VXLAN_PORT, learning: false };
    let six = has_six(picture, underlay);
    (picture.number > 0).then(|| Link { kind, mac: vtep_mac(underlay.addr), mtu: underlay.overlay_mtu, up: true, six })
}

/// This node's address on the device.
pub fn own_address(picture: &Picture) -> Option<Ipv4Addr> {
    (picture.number > 0).then(|| address(picture.number))
}

/// The default routes of the nodes' tables, by table.
pub fn detours(picture: &Picture, underlay: &Underlay) -> BTreeMap<u32, Route> {
    let six = has_six(picture, underlay);
    let via = |gateway| Route::Via { link: INGRESS.to_owned(), gateway };
    let detours = |(node, number): (Ipv4Addr, u32)| {
        let six = six.then(|| (table6(number), via(vtep6(node).into())));
        [Some((table(number), via(node.into()))), six].into_iter().flatten()
    };
    others(picture, underlay).flat_map(detours).collect()
}

/// Which mark chooses which table.
pub fn selectors(picture: &Picture, underlay: &Underlay) -> BTreeSet<Selector> {
    let six = has_six(picture, underlay);
    let chosen = |(_, number): (Ipv4Addr, u32)| {
        let selector = move |table| Selector { preference: PREFERENCE, mark: mark(number), mask: u32::MAX, table };
        [Some(table(number)), six.then(|| table6(number))].into_iter().flatten().map(selector)
    };
    let mut selectors: BTreeSet<Selector> = others(picture, underlay).flat_map(chosen).collect();
    if !selectors.is_empty() {
        selectors.insert(Selector { preference: PREFERENCE_OF_OTHERS, mark: 0, mask: MARK_BITS, table: MAIN_TABLE });
    }
    selectors
}

/// The ports of this host that are to be ours.
pub fn openings(picture: &Picture) -> BTreeSet<Opening> {
    let published: &[Published] = if picture.number > 0 { &picture.published } else { &[] };
    published.iter().flat_map(Published::openings).map(|(opening, _)| opening).collect()
}

/// Those that are.
pub fn open(picture: &Picture) -> BTreeSet<Opening> {
    openings(picture).into_iter().filter(|opening| !picture.taken.contains_key(opening)).collect()
}

/// Where the host's own connections go, by port.
pub fn targets(picture: &Picture, attachments: &Attachments) -> BTreeMap<Opening, Vec<Target>> {
    let mut targets = BTreeMap::new();
    let Some(source) = own_address(picture) else { return targets };
    for published in &picture.published {
        let chosen = published.chosen(picture, attachments);
        for (opening, port) in published.openings().filter(|(opening, _)| !picture.taken.contains_key(opening)) {
            let target = |ip, place| {
                let mark = match place {
                    Place::Here => 0,
                    Place::Node(node) => mark(*picture.numbers.get(&node)?),
                };
                Some(Target { address: SocketAddrV4::new(ip, port), source, mark })
            };
            targets.insert(opening, chosen.iter().filter_map(|backend| target(backend.ip, backend.place)).collect());
        }
    }
    targets
}

/// What is wrong with published ports on this host, and who may mend it.
pub fn problems(picture: &Picture) -> Vec<String> {
    let service = |opening: &Opening| picture.published.iter().find(|published| published.covers(*opening));
    let problem = |(opening, by): (&Opening, &String)| {
        let name = &service(opening)?.service;
        Some(format!("{opening} is taken on this host by {by}; service {name} is not published here"))
    };
    picture.taken.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{numbered, published, t1_attached, underlay};
    use crate::core::uplink::Forwarding;

    #[test]
    fn each_other_node_has_a_mark_a_table_and_a_route_and_what_has_no_mark_is_spared() {
        let underlay = underlay(Forwarding::Netd);
        let (picture, _) = Picture::parse(&numbered(1, Vec::new()));
        let texts: Vec<String> = selectors(&picture, &underlay).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "mark 0x0/0xff000000 to table 254 at 100",
                "mark 0x1000002/0xffffffff to table 100002 at 1000",
                "mark 0x1000003/0xffffffff to table 100003 at 1000",
            ]
        );
        assert_eq!(
            detours(&picture, &underlay)[&100_002],
            Route::Via { link: "ing".into(), gateway: Ipv4Addr::new(10, 90, 0, 102).into() }
        );
        assert_eq!(own_address(&picture), Some(Ipv4Addr::new(169, 254, 192, 1)));
        assert!(OWN.contains(&address(1)) && OWN.broadcast() == address(NUMBER_MAX));
        assert_eq!((address(300), address(NUMBER_MAX)), (Ipv4Addr::new(169, 254, 193, 44), Ipv4Addr::new(169, 254, 223, 255)));
        let mut unnumbered = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
        unnumbered.nodes[0].number = 0;
        let (picture, problems) = Picture::parse(&unnumbered);
        assert_eq!(problems, ["this node has no number yet, so it publishes no ports; the managers give it one"]);
        assert!(selectors(&picture, &underlay).is_empty() && openings(&picture).is_empty() && link(&picture, &underlay).is_none());
    }

    #[test]
    fn by_ipv6_each_other_node_has_a_table_of_its_own_where_a_port_is_to_be_reached_by_it() {
        let underlay = underlay(Forwarding::Netd);
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
        assert!(!has_six(&Picture::parse(&wire).0, &underlay));
        wire.published[0].backends[0].ip6 = "fd00::1".into();
        let (picture, _) = Picture::parse(&wire);
        let via = Route::Via { link: "ing".into(), gateway: vtep6(Ipv4Addr::new(10, 90, 0, 102)).into() };
        assert_eq!(detours(&picture, &underlay)[&200_002], via);
        let six: Vec<(u32, u32)> =
            selectors(&picture, &underlay).iter().filter(|selector| selector.is_six()).map(|six| (six.mark, six.table)).collect();
        assert_eq!(six, [(0x0100_0002, 200_002), (0x0100_0003, 200_003)]);
        assert_eq!(open6(&picture, &underlay), open(&picture));
        assert!(link(&picture, &underlay).is_some_and(|link| link.six));
        let old = Underlay { six: false, ..underlay };
        assert!(open6(&picture, &old).is_empty() && link(&picture, &old).is_some_and(|link| !link.six));
    }

    #[test]
    fn the_hosts_own_connections_go_where_others_do_and_not_through_a_port_that_is_taken() {
        let (mut picture, _) = Picture::parse(&numbered(1, vec![published(v1::IngressPolicy::Spread)]));
        let opening = picture.published[0].opening(0);
        let seen: Vec<(String, u32)> =
            targets(&picture, &t1_attached())[&opening].iter().map(|target| (target.address.to_string(), target.mark)).collect();
        let far = 0x0100_0002;
        assert_eq!(seen, [("10.128.0.2:80".to_owned(), 0), ("10.128.0.3:80".to_owned(), far), ("10.128.0.4:80".to_owned(), far)]);
        picture.taken.insert(opening, "nginx (pid 812)".into());
        assert!(targets(&picture, &t1_attached()).is_empty() && open(&picture).is_empty());
        assert_eq!(problems(&picture), ["tcp port 8080 is taken on this host by nginx (pid 812); service web is not published here"]);
    }
}
