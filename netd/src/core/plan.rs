//! From what the kernel holds to what it shall hold: an ordered list of operations.
//!
//! In: the wanted and the observed `Dataplane`. Out: a `Plan` in two halves; between them DNS changes over, so that a name never
//! leads where no path is yet, and a path outlives the name that leads to it.
//!
//! ```text
//! add     rules ─► resolver ─► forwarding ─► host ─► tunnels ─► pods ─► devices ─► neighbours, forwarding entries ─► routes ─► elements ─► ports
//! (DNS)
//! remove  ports ─► elements ─► routes ─► neighbours, forwarding entries ─► devices, pods ─► tunnels ─► host
//! ```
//!
//! Rules stand before the first packet can be forwarded and before the first device exists; loaded anew, they come with their elements at
//! once, for what is under way. What is already right is never touched: a plan over a dataplane that is as wanted is empty. Never: looks at the
//! kernel.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::dataplane::Dataplane;
use super::encryption::{Peer, PublicKey, TUNNELLED, TunnelEnd};
use super::ingress::{INGRESS, Selector};
use super::links::{Interface, Link, LinkKind, Mac, Pod};
use super::neighbours::{Forward, Route};
use super::published::Opening;
use super::rules::elements::{Element, Key, Spanned};
use super::uplink::{Forwards6, Guards, HOST_END, HostEnd, HostRules, Passage, UPLINK};

/// One deed. Each can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Replaces our table whole; its sets have the elements whose additions follow.
    LoadRules,
    PrepareResolver,
    EnableForwarding,
    /// Brings the kernel's own rules of routing back, and removes those that are neither its nor ours.
    PlainLookup,
    /// Replaces our table on the host whole; its sets have what is added next.
    LoadHostRules {
        guards: Guards,
    },
    /// The host takes VXLAN from this node.
    AddPeer {
        node: Ipv4Addr,
    },
    /// The host neither takes nor sends frames of this network in clear.
    SealNetwork {
        vni: u32,
    },
    /// What is for an address in a tunnel goes nowhere when there is none.
    Fence,
    /// With a new key, of which the private half is nobody's but the kernel's.
    AddTunnel {
        name: String,
        epoch: u64,
    },
    /// Address, port, MTU, state and route.
    ConfigureTunnel {
        name: String,
        epoch: u64,
        end: TunnelEnd,
    },
    SetTunnelPeer {
        name: String,
        key: PublicKey,
        peer: Peer,
    },
    EnableHostForwarding,
    /// The same of IPv6; where it is to hear, devices that take routers' advertisements go on doing so.
    EnableHostForwarding6 {
        hearing: bool,
    },
    /// Lets the uplink's packets through iptables' chain FORWARD.
    OpenPassage,
    /// The same of ip6tables.
    OpenPassage6,
    AddPod {
        task: String,
    },
    AddVxlan {
        name: String,
        link: Link,
    },
    /// Both ends at once; the host's is configured next.
    AddUplink {
        link: Link,
    },
    /// Both ends at once, with their hardware addresses; the pod's is configured next.
    AddVeth {
        name: String,
        link: Link,
        task: String,
        interface: String,
        end: Interface,
    },
    /// Sets MTU, state and whether it has IPv6, and the hardware address where it is another: the kernel forgets a device's neighbours when
    /// it is set, also to what it was.
    MendLink {
        name: String,
        link: Link,
        readdress: bool,
    },
    /// Addresses, gateway, routes, hardware address, MTU and state of a pod's interface.
    ConfigurePod {
        task: String,
        interface: String,
        end: Interface,
    },
    /// Hardware address, MTU and state of the host's end, and the addresses of both.
    ConfigureUplink {
        end: HostEnd,
    },
    /// The one address of the device of published ports, and that it takes packets whatever way would lead back.
    ConfigureIngress {
        ip: Ipv4Addr,
    },
    SetNeighbour {
        link: String,
        ip: IpAddr,
        mac: Mac,
    },
    SetForward(Forward),
    SetRoute {
        to: IpNet,
        route: Route,
    },
    /// The default route of a table.
    SetDetour {
        table: u32,
        route: Route,
    },
    AddSelector(Selector),
    AddElement(Element),
    /// The host sends what comes to this port on into the router.
    OpenPort(Opening),
    ClosePort(Opening),
    /// The same of IPv6.
    OpenPort6(Opening),
    ClosePort6(Opening),
    RemoveElement(Element),
    RemoveSelector(Selector),
    RemoveDetour {
        table: u32,
        route: Route,
    },
    RemoveRoute {
        to: IpNet,
        route: Route,
    },
    RemoveNeighbour {
        link: String,
        ip: IpAddr,
    },
    RemoveForward(Forward),
    RemoveLink {
        name: String,
    },
    RemovePod {
        task: String,
    },
    RemoveTunnelPeer {
        name: String,
        key: PublicKey,
    },
    RemoveTunnel {
        name: String,
    },
    Unfence,
    RemovePeer {
        node: Ipv4Addr,
    },
    UnsealNetwork {
        vni: u32,
    },
}

/// Operations in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Before DNS changes over.
    pub add: Vec<Op>,
    /// After it.
    pub remove: Vec<Op>,
}

impl Op {
    /// Whether its success decides on that of the pod with these devices.
    pub fn concerns(&self, task_id: &str, links: &[String]) -> bool {
        let of_links = |link: &String| links.contains(link);
        match self {
            Self::LoadRules | Self::PrepareResolver | Self::EnableForwarding | Self::PlainLookup => true,
            // A pod without a way out, not heard by a peer or not published yet, still has its networks.
            Self::LoadHostRules { .. }
            | Self::AddPeer { .. }
            | Self::RemovePeer { .. }
            | Self::SealNetwork { .. }
            | Self::UnsealNetwork { .. }
            | Self::Fence
            | Self::Unfence
            | Self::AddTunnel { .. }
            | Self::ConfigureTunnel { .. }
            | Self::SetTunnelPeer { .. }
            | Self::RemoveTunnelPeer { .. }
            | Self::RemoveTunnel { .. }
            | Self::EnableHostForwarding
            | Self::EnableHostForwarding6 { .. }
            | Self::OpenPassage
            | Self::OpenPassage6
            | Self::AddUplink { .. }
            | Self::ConfigureUplink { .. }
            | Self::ConfigureIngress { .. }
            | Self::SetDetour { .. }
            | Self::RemoveDetour { .. }
            | Self::AddSelector(_)
            | Self::RemoveSelector(_)
            | Self::OpenPort(_)
            | Self::ClosePort(_)
            | Self::OpenPort6(_)
            | Self::ClosePort6(_) => false,
            Self::AddPod { task } | Self::RemovePod { task } | Self::ConfigurePod { task, .. } | Self::AddVeth { task, .. } => {
                task == task_id
            }
            Self::AddVxlan { name, .. } | Self::MendLink { name, .. } | Self::RemoveLink { name } => of_links(name),
            Self::SetNeighbour { link, .. } | Self::RemoveNeighbour { link, .. } => of_links(link),
            Self::SetForward(forward) | Self::RemoveForward(forward) => of_links(&forward.link),
            Self::SetRoute { route, .. } | Self::RemoveRoute { route, .. } => links.iter().any(|link| link == route.link()),
            Self::AddElement(element) | Self::RemoveElement(element) => element.link().is_some_and(|link| of_links(&link)),
        }
    }
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// How to get from `observed` to `wanted`.
pub fn plan(wanted: &Dataplane, observed: &Dataplane) -> Plan {
    let mut now = observed.clone();
    let mut add = Vec::new();
    for phase in [foundations, on_host, new_tunnels, new_pods, new_links, mended, new_paths, new_elements, new_ports] {
        let ops = phase(wanted, &now);
        step(&mut now, &mut add, ops);
    }
    let mut remove = Vec::new();
    for phase in [old_ports, old_elements, old_routes, old_neighbours, old_links, old_tunnels, old_peers] {
        let ops = phase(wanted, &now);
        step(&mut now, &mut remove, ops);
    }
    Plan { add, remove }
}

/// How to get from `held`, which is as `before` wants it, to what `after` wants, as far as these two differ: what else they say need not be so,
/// and what else is held is not looked at. They differ in nothing that is the same for every picture, and in nothing on the host.
pub fn plan_part(before: &Dataplane, after: &Dataplane, held: &Dataplane) -> Plan {
    let (elements, held_elements) = part(&before.elements, &after.elements, &held.elements);
    let (links, held_links) = part(&before.links, &after.links, &held.links);
    let (neighbours, held_neighbours) = part(&before.neighbours, &after.neighbours, &held.neighbours);
    let (routes, held_routes) = part(&before.routes, &after.routes, &held.routes);
    let (pods, held_pods) = part(&before.pods, &after.pods, &held.pods);
    let forwards = |of: &Dataplane| {
        let differing = before.forwards.symmetric_difference(&after.forwards);
        differing.filter(|forward| of.forwards.contains(*forward)).cloned().collect()
    };
    let wanted = Dataplane { elements, links, neighbours, routes, pods, forwards: forwards(after), ..Dataplane::default() };
    let now = Dataplane {
        elements: held_elements,
        links: held_links,
        neighbours: held_neighbours,
        routes: held_routes,
        pods: held_pods,
        forwards: forwards(held),
        ..Dataplane::default()
    };
    plan(&wanted, &now)
}

/// What `after` and `held` have where `before` and `after` differ.
fn part<K: Ord + Clone, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    held: &BTreeMap<K, V>,
) -> (BTreeMap<K, V>, BTreeMap<K, V>) {
    let keys: Vec<&K> = differences(after, before)
        .map(|difference| match difference {
            Difference::Missing(key, _) | Difference::Altered { key, .. } | Difference::Stray(key, _) => key,
        })
        .collect();
    let of = |map: &BTreeMap<K, V>| keys.iter().filter_map(|key| Some(((*key).clone(), map.get(*key)?.clone()))).collect();
    (of(after), of(held))
}

fn step(now: &mut Dataplane, plan: &mut Vec<Op>, ops: Vec<Op>) {
    now.absorb_all(&ops);
    plan.extend(ops);
}

fn foundations(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let mut ops = Vec::new();
    if wanted.rules != now.rules {
        ops.push(Op::LoadRules);
        // With them: what is under way is not to meet rules without elements.
        ops.extend(wanted.elements.iter().map(|(key, data)| Op::AddElement(element(key, data))));
    }
    if wanted.resolver && !now.resolver {
        ops.push(Op::PrepareResolver);
    }
    if wanted.forwarding && !now.forwarding {
        ops.push(Op::EnableForwarding);
    }
    if wanted.plain_lookup && !now.plain_lookup {
        ops.push(Op::PlainLookup);
    }
    ops
}

/// Rules before forwarding: what the host is not to forward is never forwarded.
fn on_host(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let (wanted, now) = (&wanted.host, &now.host);
    let mut ops = Vec::new();
    let anew = wanted.rules != now.rules;
    if anew && let HostRules::Ours(guards) = wanted.rules {
        ops.push(Op::LoadHostRules { guards });
    }
    // Before anyone is heard: rules that were loaded anew take nothing yet.
    let unsealed = wanted.sealed.iter().filter(|vni| anew || !now.sealed.contains(*vni));
    ops.extend(unsealed.map(|vni| Op::SealNetwork { vni: *vni }));
    let new_peers = wanted.peers.iter().filter(|node| anew || !now.peers.contains(*node));
    ops.extend(new_peers.map(|node| Op::AddPeer { node: *node }));
    if anew && let Some(end) = now.end.filter(|end| end.up && end.addressed) {
        // They led somewhere before; those of IPv6 only where the pair carried it.
        ops.extend(wanted.ports.iter().copied().map(Op::OpenPort));
        ops.extend(wanted.ports6.iter().filter(|_| end.six).copied().map(Op::OpenPort6));
    }
    if wanted.forwarding && !now.forwarding {
        ops.push(Op::EnableHostForwarding);
    }
    if wanted.forwarding6 > now.forwarding6 {
        ops.push(Op::EnableHostForwarding6 { hearing: wanted.forwarding6 == Forwards6::Hearing });
    }
    if (wanted.passage, now.passage) == (Passage::Open, Passage::Docker) {
        ops.push(Op::OpenPassage);
    }
    if wanted.end.is_some_and(|end| end.six) && now.passage6 == Passage::Docker {
        ops.push(Op::OpenPassage6);
    }
    ops
}

/// Once it is decided where what comes by them goes.
fn new_ports(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let ports = wanted.host.ports.difference(&now.host.ports).copied().map(Op::OpenPort);
    ports.chain(wanted.host.ports6.difference(&now.host.ports6).copied().map(Op::OpenPort6)).collect()
}

fn old_ports(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let ports = now.host.ports.difference(&wanted.host.ports).copied().map(Op::ClosePort);
    ports.chain(now.host.ports6.difference(&wanted.host.ports6).copied().map(Op::ClosePort6)).collect()
}

fn old_peers(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let peers = now.host.peers.difference(&wanted.host.peers).map(|node| Op::RemovePeer { node: *node });
    peers.chain(now.host.sealed.difference(&wanted.host.sealed).map(|vni| Op::UnsealNetwork { vni: *vni })).collect()
}

/// A device of another epoch has another epoch's key: it is made anew.
fn new_tunnels(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let (wanted, now) = (&wanted.host, &now.host);
    let mut ops = Vec::new();
    if wanted.fenced && !now.fenced {
        ops.push(Op::Fence);
    }
    for (name, tunnel) in &wanted.tunnels {
        let seen = now.tunnels.get(name);
        let held = seen.filter(|held| held.epoch == tunnel.epoch);
        if seen.is_some() && held.is_none() {
            ops.push(Op::RemoveTunnel { name: name.clone() });
        }
        if held.is_none() {
            ops.push(Op::AddTunnel { name: name.clone(), epoch: tunnel.epoch });
        }
        if held.is_none_or(|held| held.end != tunnel.end) {
            ops.push(Op::ConfigureTunnel { name: name.clone(), epoch: tunnel.epoch, end: tunnel.end });
        }
        let new = tunnel.peers.iter().filter(|(key, peer)| held.and_then(|held| held.peers.get(*key)) != Some(*peer));
        ops.extend(new.map(|(key, peer)| Op::SetTunnelPeer { name: name.clone(), key: *key, peer: *peer }));
    }
    ops
}

fn old_tunnels(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let (wanted, now) = (&wanted.host, &now.host);
    let mut ops = Vec::new();
    for (name, held) in &now.tunnels {
        match wanted.tunnels.get(name) {
            Some(tunnel) => {
                let old = held.peers.keys().filter(|key| !tunnel.peers.contains_key(*key));
                ops.extend(old.map(|key| Op::RemoveTunnelPeer { name: name.clone(), key: *key }));
            }
            None => ops.push(Op::RemoveTunnel { name: name.clone() }),
        }
    }
    if now.fenced && !wanted.fenced {
        ops.push(Op::Unfence);
    }
    ops
}

/// A pod whose pin is lost but whose devices live on still has its namespace, held by its processes; a second one would split it.
fn new_pods(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let lost = |(task, pod): &(&String, &Pod)| {
        !now.pods.contains_key(*task) && !pod.values().any(|interface| now.links.contains_key(&interface.link))
    };
    wanted.pods.iter().filter(lost).map(|(task, _)| Op::AddPod { task: task.clone() }).collect()
}

/// A veth whose other end is seen where it does not belong, in another pod or under another name, or not on the host, is made anew.
fn new_links(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let (due, seen) = (wanted.ends(), now.ends());
    let cut = |name: &str| name == UPLINK && now.host.end.is_none();
    let misplaced = |name: &str| cut(name) || due.get(name).zip(seen.get(name)).is_some_and(|(due, seen)| !due.is_where(seen));
    let mut ops = Vec::new();
    for (name, link) in &wanted.links {
        match now.links.get(name) {
            Some(observed) if observed.kind == link.kind && !misplaced(name) => continue,
            Some(_) => ops.push(Op::RemoveLink { name: name.clone() }),
            None => {}
        }
        match link.kind {
            LinkKind::Vxlan { .. } => ops.push(Op::AddVxlan { name: name.clone(), link: link.clone() }),
            LinkKind::Uplink => ops.push(Op::AddUplink { link: link.clone() }),
            LinkKind::Veth => {
                if let Some(end) = due.get(name.as_str()) {
                    ops.push(Op::AddVeth {
                        name: name.clone(),
                        link: link.clone(),
                        task: end.task.to_owned(),
                        interface: end.name.to_owned(),
                        end: end.interface.clone(),
                    });
                }
            }
        }
    }
    ops
}

fn mended(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let mut ops = Vec::new();
    for (name, link) in &wanted.links {
        match now.links.get(name) {
            Some(observed) if observed != link => {
                ops.push(Op::MendLink { name: name.clone(), link: link.clone(), readdress: observed.mac != link.mac });
            }
            _ => {}
        }
    }
    for (task, pod) in &wanted.pods {
        let Some(observed) = now.pods.get(task) else { continue };
        for (interface, end) in pod {
            if observed.get(interface) != Some(end) {
                ops.push(Op::ConfigurePod { task: task.clone(), interface: interface.clone(), end: end.clone() });
            }
        }
    }
    match (wanted.host.end, now.host.end) {
        (Some(end), Some(observed)) if end != observed => ops.push(Op::ConfigureUplink { end }),
        _ => {}
    }
    let ingress = wanted.ingress.filter(|ip| now.ingress != Some(*ip));
    ops.extend(ingress.map(|ip| Op::ConfigureIngress { ip }));
    ops
}

fn new_paths(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let mut ops = Vec::new();
    for ((link, ip), mac) in &wanted.neighbours {
        if now.neighbours.get(&(link.clone(), *ip)) != Some(mac) {
            ops.push(Op::SetNeighbour { link: link.clone(), ip: *ip, mac: *mac });
        }
    }
    ops.extend(wanted.forwards.difference(&now.forwards).cloned().map(Op::SetForward));
    for (to, route) in &wanted.routes {
        if now.routes.get(to) != Some(route) {
            ops.push(Op::SetRoute { to: *to, route: route.clone() });
        }
    }
    for (table, route) in &wanted.detours {
        if now.detours.get(table) != Some(route) {
            ops.push(Op::SetDetour { table: *table, route: route.clone() });
        }
    }
    ops.extend(wanted.selectors.difference(&now.selectors).copied().map(Op::AddSelector));
    ops
}

/// Elements whose data are others now go first, in the same transaction; so do those that span some of what new ones span, for the kernel
/// takes none beside them.
fn new_elements(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let (mut ops, mut new, mut strays) = (Vec::new(), Vec::new(), Vec::new());
    for difference in differences(&wanted.elements, &now.elements) {
        match difference {
            Difference::Missing(key, data) => new.push(element(key, data)),
            Difference::Altered { key, due, seen } => {
                ops.push(Op::RemoveElement(element(key, seen)));
                new.push(element(key, due));
            }
            Difference::Stray(key, data) => strays.push((key, data)),
        }
    }
    let spanned = Spanned::new(new.iter().map(|element| &element.key));
    let in_the_way = strays.into_iter().filter(|(key, _)| spanned.meets(key));
    ops.extend(in_the_way.map(|(key, data)| Op::RemoveElement(element(key, data))));
    ops.extend(new.into_iter().map(Op::AddElement));
    ops
}

fn old_elements(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let strays = differences(&wanted.elements, &now.elements).filter_map(|difference| match difference {
        Difference::Stray(key, data) => Some(Op::RemoveElement(element(key, data))),
        Difference::Missing(..) | Difference::Altered { .. } => None,
    });
    strays.collect()
}

fn element(key: &Key, data: &[u8]) -> Element {
    Element { key: key.clone(), data: data.to_vec() }
}

/// How two maps differ at a key.
#[derive(Debug)]
enum Difference<'a, K, V> {
    /// Only the wanted one has it.
    Missing(&'a K, &'a V),
    /// Both have it, with different values.
    Altered { key: &'a K, due: &'a V, seen: &'a V },
    /// Only the other one has it.
    Stray(&'a K, &'a V),
}

/// The differences in the order of the keys, by one walk over both maps.
fn differences<'a, K: Ord, V: PartialEq>(
    wanted: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = Difference<'a, K, V>> {
    let (mut wanted, mut now) = (wanted.iter().peekable(), now.iter().peekable());
    iter::from_fn(move || {
        loop {
            let order = match (wanted.peek(), now.peek()) {
                (Some((due, _)), Some((seen, _))) => due.cmp(seen),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return None,
            };
            match order {
                Ordering::Less => return wanted.next().map(|(key, due)| Difference::Missing(key, due)),
                Ordering::Greater => return now.next().map(|(key, seen)| Difference::Stray(key, seen)),
                Ordering::Equal => {
                    let ((key, due), (_, seen)) = wanted.next().zip(now.next())?;
                    if due != seen {
                        return Some(Difference::Altered { key, due, seen });
                    }
                }
            }
        }
    })
}

fn old_routes(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let mut ops: Vec<Op> = now.selectors.difference(&wanted.selectors).copied().map(Op::RemoveSelector).collect();
    let detours = now.detours.iter().filter(|(table, _)| !wanted.detours.contains_key(table));
    ops.extend(detours.map(|(table, route)| Op::RemoveDetour { table: *table, route: route.clone() }));
    let old = now.routes.iter().filter(|(to, _)| !wanted.routes.contains_key(to));
    ops.extend(old.map(|(to, route)| Op::RemoveRoute { to: *to, route: route.clone() }));
    ops
}

fn old_neighbours(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let old = now.neighbours.keys().filter(|key| !wanted.neighbours.contains_key(key));
    let mut ops: Vec<Op> = old.map(|(link, ip)| Op::RemoveNeighbour { link: link.clone(), ip: *ip }).collect();
    ops.extend(now.forwards.difference(&wanted.forwards).cloned().map(Op::RemoveForward));
    ops
}

/// A pod's namespace takes its devices along, in one batch of the kernel's; only devices that no such namespace will take are
/// removed one by one, which costs the kernel an RCU wait each.
fn old_links(wanted: &Dataplane, now: &Dataplane) -> Vec<Op> {
    let mut ops = Vec::new();
    let old_pods: Vec<&String> = now.pods.keys().filter(|task| !wanted.pods.contains_key(*task)).collect();
    let ends = now.ends();
    for name in now.links.keys().filter(|name| !wanted.links.contains_key(*name)) {
        let taken_along = ends.get(name.as_str()).is_some_and(|end| !wanted.pods.contains_key(end.task));
        if !taken_along {
            ops.push(Op::RemoveLink { name: name.clone() });
        }
    }
    ops.extend(old_pods.into_iter().map(|task| Op::RemovePod { task: task.clone() }));
    ops
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadRules => write!(f, "load rules"),
            Self::PrepareResolver => write!(f, "prepare resolver"),
            Self::EnableForwarding => write!(f, "enable forwarding"),
            Self::PlainLookup => write!(f, "mend the rules of routing"),
            Self::LoadHostRules { .. } => write!(f, "load the host's rules"),
            Self::AddPeer { node } => write!(f, "add peer {node}"),
            Self::SealNetwork { vni } => write!(f, "seal network {vni}"),
            Self::Fence => write!(f, "fence {TUNNELLED}"),
            Self::AddTunnel { name, epoch } => write!(f, "add tunnel {name} of epoch {epoch}"),
            Self::ConfigureTunnel { name, end, .. } => write!(f, "configure tunnel {name} {end}"),
            Self::SetTunnelPeer { name, key, peer } => write!(f, "set peer {key} of {name} is {peer}"),
            Self::EnableHostForwarding => write!(f, "enable the host's forwarding"),
            Self::EnableHostForwarding6 { .. } => write!(f, "enable the host's forwarding of IPv6"),
            Self::OpenPassage => write!(f, "open the passage through iptables"),
            Self::OpenPassage6 => write!(f, "open the passage through ip6tables"),
            Self::AddPod { task } => write!(f, "add pod {task}"),
            Self::AddVxlan { name, link } => write!(f, "add vxlan {name} {link}"),
            Self::AddUplink { link } => write!(f, "add uplink {UPLINK} {link} to {HOST_END}"),
            Self::AddVeth { name, link, task, interface, .. } => write!(f, "add veth {name} {link} to {task}/{interface}"),
            Self::MendLink { name, link, .. } => write!(f, "mend device {name} {link}"),
            Self::ConfigurePod { task, interface, end } => write!(f, "configure {task}/{interface} {}", end.ip),
            Self::ConfigureUplink { end } => write!(f, "configure {HOST_END} mac {} mtu {}", end.mac, end.mtu),
            Self::ConfigureIngress { ip } => write!(f, "configure {INGRESS} {ip}"),
            Self::SetDetour { table, route } => write!(f, "set route of table {table} {route}"),
            Self::RemoveDetour { table, route } => write!(f, "remove route of table {table} {route}"),
            Self::AddSelector(selector) => write!(f, "add rule {selector}"),
            Self::RemoveSelector(selector) => write!(f, "remove rule {selector}"),
            Self::OpenPort(opening) => write!(f, "open {opening}"),
            Self::ClosePort(opening) => write!(f, "close {opening}"),
            Self::OpenPort6(opening) => write!(f, "open {opening} of IPv6"),
            Self::ClosePort6(opening) => write!(f, "close {opening} of IPv6"),
            Self::SetNeighbour { link, ip, mac } => write!(f, "set neighbour {ip} is {mac} on {link}"),
            Self::SetForward(forward) => write!(f, "set forward {forward}"),
            Self::SetRoute { to, route } => write!(f, "set route {to} {route}"),
            Self::AddElement(element) => write!(f, "add element {element}"),
            Self::RemoveElement(element) => write!(f, "remove element {element}"),
            Self::RemoveRoute { to, route } => write!(f, "remove route {to} {route}"),
            Self::RemoveNeighbour { link, ip } => write!(f, "remove neighbour {ip} on {link}"),
            Self::RemoveForward(forward) => write!(f, "remove forward {forward}"),
            Self::RemoveLink { name } => write!(f, "remove device {name}"),
            Self::RemovePod { task } => write!(f, "remove pod {task}"),
            Self::RemoveTunnelPeer { name, key } => write!(f, "remove peer {key} of {name}"),
            Self::RemoveTunnel { name } => write!(f, "remove tunnel {name}"),
            Self::Unfence => write!(f, "remove fence {TUNNELLED}"),
            Self::RemovePeer { node } => write!(f, "remove peer {node}"),
            Self::UnsealNetwork { vni } => write!(f, "unseal network {vni}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for op in &self.add {
            writeln!(f, "{op}")?;
        }
        writeln!(f, "-- dns")?;
        for op in &self.remove {
            writeln!(f, "{op}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "plan_property_tests.rs"]
mod property_tests;
