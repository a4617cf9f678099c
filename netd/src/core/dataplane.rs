//! The whole dataplane of a node as one value: what a picture calls for (`compile`), and in the same form what the kernel was seen to
//! hold, so that both can be compared.
//!
//! An observed dataplane holds only what is ours: routes of our protocol number, permanent neighbours and forwarding entries on our
//! devices, our table, our pins. `Dataplane::absorb` is what an operation does to it; the kernel's part in it (devices take their
//! routes along, a namespace takes its devices along) is modelled here once, for the plan and for the simulated kernel of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::links::{self, Interface, Link, Pod, Underlay};
use super::neighbours::{self, Forward, Neighbours, Paths, Route};
use super::picture::{Attachments, Picture};
use super::plan::Op;
use super::rules::{self, Element, Outline};

/// Devices, paths, rules and pods of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dataplane {
    /// The router namespace's loopback is up and holds the resolver's address.
    pub resolver: bool,
    /// Packets are forwarded in the router namespace, and only by routes that lead back to their source.
    pub forwarding: bool,
    pub rules: Outline,
    pub elements: BTreeSet<Element>,
    /// In the router namespace.
    pub links: BTreeMap<String, Link>,
    pub neighbours: Neighbours,
    pub forwards: BTreeSet<Forward>,
    pub routes: BTreeMap<Ipv4Net, Route>,
    /// By task id.
    pub pods: BTreeMap<String, Pod>,
}

/// The dataplane that the picture and the pods here call for.
pub fn compile(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Dataplane {
    let Paths { routes, neighbours, forwards } = neighbours::paths(picture, attachments, underlay);
    Dataplane {
        resolver: true,
        forwarding: true,
        rules: rules::skeleton().outline(),
        elements: rules::elements(picture, attachments),
        links: links::links(picture, attachments, underlay),
        neighbours,
        forwards,
        routes,
        pods: links::pods(picture, attachments, underlay),
    }
}

impl Dataplane {
    /// The pod and interface whose other end is `link`.
    pub fn interface_behind(&self, link: &str) -> Option<(&str, &str, &Interface)> {
        self.pods.iter().find_map(|(task, pod)| {
            pod.iter().find(|(_, interface)| interface.link == link).map(|(name, interface)| (task.as_str(), name.as_str(), interface))
        })
    }

    /// Where each veth's other end is: in which pod, under which name.
    pub fn places(&self) -> BTreeMap<&str, (&str, &str)> {
        let ends = |(task, pod)| {
            let pod: &Pod = pod;
            let task: &String = task;
            pod.iter().map(move |(name, interface)| (interface.link.as_str(), (task.as_str(), name.as_str())))
        };
        self.pods.iter().flat_map(ends).collect()
    }

    /// What an operation leaves behind when it succeeds.
    pub fn absorb(&mut self, op: &Op) {
        match op {
            Op::LoadRules => {
                self.rules = rules::skeleton().outline();
                self.elements.clear();
            }
            Op::PrepareResolver => self.resolver = true,
            Op::EnableForwarding => self.forwarding = true,
            Op::AddPod { task } => {
                self.pods.entry(task.clone()).or_default();
            }
            Op::AddVxlan { name, link } => {
                self.links.insert(name.clone(), link.clone());
            }
            Op::AddVeth { name, link, task, interface, end } => {
                self.links.insert(name.clone(), link.clone());
                let bare = Interface { routes: Vec::new(), ip: Ipv4Addr::UNSPECIFIED, ..end.clone() };
                self.pods.entry(task.clone()).or_default().insert(interface.clone(), bare);
            }
            Op::MendLink { name, link } => {
                self.links.insert(name.clone(), link.clone());
            }
            Op::ConfigurePod { task, interface, end } => {
                self.pods.entry(task.clone()).or_default().insert(interface.clone(), end.clone());
            }
            Op::SetNeighbour { link, ip, mac } => {
                self.neighbours.insert((link.clone(), *ip), *mac);
            }
            Op::SetForward(forward) => {
                self.forwards.insert(forward.clone());
            }
            Op::SetRoute { to, route } => {
                self.routes.insert(*to, route.clone());
            }
            Op::AddElement(element) => {
                self.elements.insert(element.clone());
            }
            Op::RemoveElement(element) => {
                self.elements.remove(element);
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
            Op::RemoveLink { name } => self.lose_link(name),
            Op::RemovePod { task } => {
                for interface in self.pods.remove(task).unwrap_or_default().into_values() {
                    self.lose_link(&interface.link);
                }
            }
        }
    }

    fn lose_link(&mut self, name: &str) {
        self.links.remove(name);
        self.routes.retain(|_, route| route.link() != name);
        self.neighbours.retain(|(link, _), _| link != name);
        self.forwards.retain(|forward| forward.link != name);
        for pod in self.pods.values_mut() {
            pod.retain(|_, interface| interface.link != name);
        }
    }
}
