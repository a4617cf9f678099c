//! The whole dataplane of a node as one value: what a picture calls for (`compile`), and in the same form what the kernel was seen to
//! hold, so that both can be compared.
//!
//! An observed dataplane holds only what is ours: routes of our protocol number, permanent neighbours and forwarding entries on our
//! devices, our table, our pins. `Dataplane::absorb` is what an operation does to it; the kernel's part in it (devices take their
//! routes along, a namespace takes its devices along) is modelled here once, for the plan and for the simulated kernel of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::encryption::{Tunnel, TunnelEnd};
use super::ingress::{self, INGRESS, Selector};
use super::links::{self, Interface, Link, Mac, Pod, Underlay};
use super::neighbours::{self, Forward, Neighbours, Paths, Route};
use super::picture::{Attachment, Attachments, Picture, Place};
use super::plan::Op;
use super::rules::elements::Elements;
use super::rules::{Outline, skeleton};
use super::uplink::{self, Forwards6, HOST_END_MAC, HostEnd, HostPlane, HostRules, Passage, UPLINK};

/// Devices, paths, rules and pods of a node, and what is ours on its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dataplane {
    /// The router namespace's loopback is up and holds the resolver's address, and the router's of IPv6 where the kernel has that.
    pub resolver: bool,
    /// Packets are forwarded in the router namespace, and what comes by the uplink has its way back there.
    pub forwarding: bool,
    /// The kernel's own rules of routing are there, and besides ours no others.
    pub plain_lookup: bool,
    pub rules: Outline,
    pub elements: Elements,
    /// In the router namespace.
    pub links: BTreeMap<String, Link>,
    pub neighbours: Neighbours,
    pub forwards: BTreeSet<Forward>,
    pub routes: BTreeMap<IpNet, Route>,
    /// The default routes of other tables than the main one, by table.
    pub detours: BTreeMap<u32, Route>,
    /// Which packets go by other tables.
    pub selectors: BTreeSet<Selector>,
    /// The one address of the device of published ports, which takes packets whatever way would lead back.
    pub ingress: Option<Ipv4Addr>,
    /// By task id.
    pub pods: BTreeMap<String, Pod>,
    pub host: HostPlane,
}

/// A veth's other end.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The pod.
    pub task: &'a str,
    /// What the interface is called there.
    pub name: &'a str,
    pub interface: &'a Interface,
}

impl End<'_> {
    /// Whether both are in the same pod, under the same name.
    pub fn is_where(&self, other: &Self) -> bool {
        (self.task, self.name) == (other.task, other.name)
    }
}

/// The dataplane that the picture and the pods here call for.
pub fn compile(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Dataplane {
    let rules = skeleton::outline().clone();
    Dataplane { resolver: true, forwarding: true, plain_lookup: true, rules, ..varying(picture, attachments, underlay) }
}

/// The same where only these networks are known, the pods on them, and those behind the same published ports as a pod on them. By itself it is
/// wrong: of a pod with other networks, too, it does not know those. But what one pod on these networks, coming, leaving or going, changes of
/// the dataplane it changes of this.
pub fn compile_part(picture: &Picture, attachments: &Attachments, underlay: &Underlay, networks: &BTreeSet<&str>) -> Dataplane {
    let part = picture.part(networks);
    let is_on = |pod: &Attachment| pod.networks.iter().any(|membership| networks.contains(membership.network_id.as_str()));
    // Where a published port leads depends on all who are behind it, on whichever networks they are.
    let backends = part.published.iter().flat_map(|published| &published.backends);
    let behind: BTreeSet<&str> = backends.filter(|backend| backend.place == Place::Here).map(|backend| backend.task_id.as_str()).collect();
    let is_known = |task_id: &str, pod: &Attachment| pod.networks.is_empty() || is_on(pod) || behind.contains(task_id);
    let pods = attachments.iter().filter(|(task_id, pod)| is_known(task_id, pod)).map(|(task_id, pod)| (task_id.clone(), pod.clone()));
    varying(&part, &pods.collect(), underlay)
}

/// All but what is the same for every picture.
fn varying(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Dataplane {
    let Paths { routes, neighbours, forwards, detours, selectors } = neighbours::paths(picture, attachments, underlay);
    Dataplane {
        elements: skeleton::elements(picture, attachments, underlay),
        links: links::links(picture, attachments, underlay),
        neighbours,
        forwards,
        routes,
        detours,
        selectors,
        ingress: ingress::own_address(picture),
        pods: links::pods(picture, attachments, underlay),
        host: uplink::host_plane(picture, underlay),
        ..Dataplane::default()
    }
}

impl Dataplane {
    /// Where each veth's other end is, and what it is like.
    pub fn ends(&self) -> BTreeMap<&str, End<'_>> {
        let of_pod = |(task, pod)| {
            let pod: &Pod = pod;
            let task: &String = task;
            pod.iter().map(move |(name, interface)| (interface.link.as_str(), End { task, name, interface }))
        };
        self.pods.iter().flat_map(of_pod).collect()
    }

    /// What operations leave behind, one after the other, when they succeed. Devices that are lost one after the other are lost in
    /// one go, which is one walk over the routes and the pods.
    pub fn absorb_all<'a>(&mut self, ops: impl IntoIterator<Item = &'a Op>) {
        let mut lost = BTreeSet::new();
        for op in ops {
            match op {
                Op::RemoveLink { name } => {
                    lost.insert(name.clone());
                }
                Op::RemovePod { task } => lost.extend(self.remove_pod(task)),
                other => {
                    self.lose_links(&mem::take(&mut lost));
                    self.absorb(other);
                }
            }
        }
        self.lose_links(&lost);
    }

    /// What an operation leaves behind when it succeeds.
    pub fn absorb(&mut self, op: &Op) {
        match op {
            Op::LoadRules => {
                self.rules.clone_from(skeleton::outline());
                self.elements.clear();
            }
            Op::PrepareResolver => self.resolver = true,
            Op::EnableForwarding => self.forwarding = true,
            Op::PlainLookup => self.plain_lookup = true,
            Op::LoadHostRules { guards } => {
                self.host.rules = HostRules::Ours(*guards);
                self.host.peers.clear();
                self.host.ports.clear();
                self.host.ports6.clear();
                self.host.sealed.clear();
            }
            Op::SealNetwork { vni } => {
                self.host.sealed.insert(*vni);
            }
            Op::AddPeer { node } => {
                self.host.peers.insert(*node);
            }
            Op::OpenPort(opening) => {
                self.host.ports.insert(*opening);
            }
            Op::ClosePort(opening) => {
                self.host.ports.remove(opening);
            }
            Op::OpenPort6(opening) => {
                self.host.ports6.insert(*opening);
            }
            Op::ClosePort6(opening) => {
                self.host.ports6.remove(opening);
            }
            Op::EnableHostForwarding => self.host.forwarding = true,
            Op::EnableHostForwarding6 { hearing } => {
                self.host.forwarding6 = if *hearing { Forwards6::Hearing } else { Forwards6::Deaf };
            }
            Op::OpenPassage => self.host.passage = Passage::Open,
            Op::OpenPassage6 => self.host.passage6 = Passage::Open,
            Op::Fence => self.host.fenced = true,
            Op::Unfence => self.host.fenced = false,
            Op::AddTunnel { name, epoch } => {
                let tunnel = Tunnel { epoch: *epoch, end: TunnelEnd::BARE, peers: BTreeMap::new() };
                self.host.tunnels.insert(name.clone(), tunnel);
            }
            Op::ConfigureTunnel { name, end, .. } => {
                if let Some(tunnel) = self.host.tunnels.get_mut(name) {
                    tunnel.end = *end;
                }
            }
            Op::SetTunnelPeer { name, key, peer } => {
                if let Some(tunnel) = self.host.tunnels.get_mut(name) {
                    tunnel.peers.insert(*key, *peer);
                }
            }
            Op::RemoveTunnelPeer { name, key } => {
                if let Some(tunnel) = self.host.tunnels.get_mut(name) {
                    tunnel.peers.remove(key);
                }
            }
            Op::RemoveTunnel { name } => {
                self.host.tunnels.remove(name);
            }
            Op::AddPod { task } => {
                self.pods.entry(task.clone()).or_default();
            }
            Op::AddVxlan { name, link } => {
                self.links.insert(name.clone(), link.clone());
            }
            Op::AddUplink { link } => {
                self.links.insert(UPLINK.to_owned(), link.clone());
                self.host.end = Some(HostEnd { mac: HOST_END_MAC, mtu: link.mtu, up: false, addressed: false, six: false });
            }
            Op::AddVeth { name, link, task, interface, end } => {
                self.links.insert(name.clone(), link.clone());
                let bare = Interface { routes: Vec::new(), ip: Ipv4Addr::UNSPECIFIED, ip6: None, ..end.clone() };
                self.pods.entry(task.clone()).or_default().insert(interface.clone(), bare);
            }
            Op::MendLink { name, link, readdress } => {
                if *readdress {
                    self.lose_neighbours(name);
                }
                self.links.insert(name.clone(), link.clone());
            }
            Op::ConfigurePod { task, interface, end } => {
                self.pods.entry(task.clone()).or_default().insert(interface.clone(), end.clone());
            }
            Op::ConfigureUplink { end } => self.host.end = Some(*end),
            Op::ConfigureIngress { ip } => self.ingress = Some(*ip),
            Op::SetNeighbour { link, ip, mac } => {
                self.neighbours.insert((link.clone(), *ip), *mac);
            }
            Op::SetForward(forward) => {
                self.forwards.insert(forward.clone());
            }
            Op::SetRoute { to, route } => {
                self.routes.insert(*to, route.clone());
            }
            Op::SetDetour { table, route } => {
                self.detours.insert(*table, route.clone());
            }
            Op::AddSelector(selector) => {
                self.selectors.insert(*selector);
            }
            Op::RemoveDetour { table, .. } => {
                self.detours.remove(table);
            }
            Op::RemoveSelector(selector) => {
                self.selectors.remove(selector);
            }
            Op::AddElement(element) => {
                self.elements.insert(element.key.clone(), element.data.clone());
            }
            Op::RemoveElement(element) => {
                self.elements.remove(&element.key);
            }
            Op::RemoveRoute { to, route } => {
                if self.routes.get(to) == Some(route) {
                    self.routes.remove(to);
                }
            }
            Op::RemoveNeighbour { link, ip } => {
                self.neighbours.remove(&(link.clone(), *ip));
            }
            Op::RemoveForward(forward) => {
                self.forwards.remove(forward);
            }
            Op::RemovePeer { node } => {
                self.host.peers.remove(node);
            }
            Op::UnsealNetwork { vni } => {
                self.host.sealed.remove(vni);
            }
            Op::RemoveLink { name } => self.lose_links(&BTreeSet::from([name.clone()])),
            Op::RemovePod { task } => {
                let lost = self.remove_pod(task);
                self.lose_links(&lost);
            }
        }
    }

    /// The devices that go with it.
    fn remove_pod(&mut self, task: &str) -> BTreeSet<String> {
        self.pods.remove(task).unwrap_or_default().into_values().map(|interface| interface.link).collect()
    }

    fn lose_neighbours(&mut self, link: &str) {
        let (first, last) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        let of_link = (link.to_owned(), first)..=(link.to_owned(), last);
        let neighbours: Vec<_> = self.neighbours.range(of_link).map(|(key, _)| key.clone()).collect();
        for key in neighbours {
            self.neighbours.remove(&key);
        }
    }

    fn lose_links(&mut self, lost: &BTreeSet<String>) {
        if lost.is_empty() {
            return;
        }
        for name in lost {
            self.links.remove(name);
            self.lose_neighbours(name);
            let first = Forward { link: name.clone(), mac: Mac([0; 6]), node: Ipv4Addr::UNSPECIFIED };
            let forwards: Vec<_> = self.forwards.range(first..).take_while(|forward| forward.link == *name).cloned().collect();
            for forward in forwards {
                self.forwards.remove(&forward);
            }
        }
        if lost.contains(UPLINK) {
            self.host.end = None;
        }
        if lost.contains(INGRESS) {
            self.ingress = None;
        }
        self.routes.retain(|_, route| !lost.contains(route.link()));
        self.detours.retain(|_, route| !lost.contains(route.link()));
        for pod in self.pods.values_mut() {
            pod.retain(|_, interface| !lost.contains(&interface.link));
        }
    }
}
