//! Ports of nodes behind which tasks of services are.
//!
//! In: the wire's `PublishedView`s. Out: `Published`, with ports that are ports and backends whose nodes are known; what does not fit is named.
//! Decides: which backends take connections that begin at this node. Never: sends to a backend that does not serve by the picture, or to one
//! whose node has no number and so could not be answered through here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use rcluster_api::wire::v1;
use serde::{Deserialize, Serialize};

use super::flows::Transport;
use super::picture::{Attachments, Picture, Place};

/// A port of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    pub transport: Transport,
    pub port: u16,
}

/// A range of published ports with what is behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub service_id: String,
    /// The service's name; its id where the picture does not have the name.
    pub service: String,
    pub transport: Transport,
    /// The first one at the node.
    pub first: u16,
    /// The first one in the pods.
    pub target: u16,
    /// At least one.
    pub count: u16,
    pub policy: Policy,
    /// Clients that may connect; `None`: all.
    pub allow_from: Option<Vec<Ipv4Net>>,
    /// And those of IPv6, where it is not everyone.
    #[serde(default)]
    pub allow_from6: Vec<Ipv6Net>,
    /// In the order of their tasks' ids.
    pub backends: Vec<Backend>,
}

/// Which backends a node sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Its own, all when it has none.
    Mesh,
    /// All.
    Spread,
    /// Its own.
    Local,
}

/// A task behind a published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub task_id: String,
    pub ip: Ipv4Addr,
    /// On a network with IPv6.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    pub place: Place,
    pub serving: bool,
    /// Its node is down by the managers' word.
    pub dead: bool,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.transport, self.port)
    }
}

impl Backend {
    /// Whether connections that begin at this node may go to it.
    pub fn takes(&self, picture: &Picture, attachments: &Attachments) -> bool {
        self.serving
            && match self.place {
                Place::Here => attachments.get(&self.task_id).is_some_and(|pod| pod.takes(self.ip)),
                Place::Node(node) => picture.numbers.contains_key(&node),
            }
    }
}

impl Published {
    /// One of the ports of the wire, which the service of this name has; `None` for one that is in DNS alone. `nodes` are the nodes' addresses
    /// by their ids; backends that are left out are named in `problems`.
    pub fn parse(
        wire: &v1::PublishedView,
        port: &v1::Port,
        here: &str,
        nodes: &BTreeMap<&str, Option<Ipv4Addr>>,
        service: &str,
        problems: &mut Vec<String>,
    ) -> Result<Option<Self>, String> {
        let policy = match (port.mode(), port.policy()) {
            (v1::PublishMode::Unspecified, _) => return Ok(None),
            (v1::PublishMode::Host, _) | (v1::PublishMode::Ingress, v1::IngressPolicy::Local) => Policy::Local,
            (v1::PublishMode::Ingress, v1::IngressPolicy::Spread) => Policy::Spread,
            (v1::PublishMode::Ingress, v1::IngressPolicy::Mesh | v1::IngressPolicy::Unspecified) => Policy::Mesh,
        };
        let transport = match port.protocol() {
            v1::Protocol::Tcp | v1::Protocol::Unspecified => Transport::Tcp,
            v1::Protocol::Udp => Transport::Udp,
        };
        let count = port.count.max(1);
        let mut published = Self {
            service_id: wire.service_id.clone(),
            service: service.to_owned(),
            transport,
            first: first_of(port.published, count)?,
            target: first_of(port.target, count)?,
            count: u16::try_from(count).map_err(|_| format!("{count} ports are more than there are"))?,
            policy,
            allow_from: None,
            allow_from6: Vec::new(),
            backends: Vec::new(),
        };
        if !port.allow_from.is_empty() {
            // Each family is asked for its own: with ranges of the other alone nobody comes by it.
            let six: Vec<Ipv6Net> = port.allow_from.iter().filter_map(|text| text.parse().ok()).collect();
            published.allow_from6 = Ipv6Net::aggregate(&six);
            let known = port.allow_from.iter().filter(|text| text.parse::<Ipv6Net>().is_err());
            let nets: Result<Vec<Ipv4Net>, String> =
                known.map(|text| text.parse::<Ipv4Net>().map_err(|_| format!("its allow_from {text:?} is not a CIDR"))).collect();
            published.allow_from = Some(Ipv4Net::aggregate(&nets?));
        }
        for backend in &wire.backends {
            match parse_backend(backend, here, nodes) {
                Ok(Some(backend)) => published.backends.push(backend),
                Ok(None) => {}
                Err(why) => problems.push(format!("task {} is left out behind {}: {why}", backend.task_id, published.in_words())),
            }
        }
        published.backends.sort_unstable_by(|one, other| one.task_id.cmp(&other.task_id));
        Ok(Some(published))
    }

    /// The port of this place in the range.
    pub fn opening(&self, offset: u16) -> Opening {
        Opening { transport: self.transport, port: self.first + offset }
    }

    /// The ports at the node, each with the one in the pods.
    pub fn openings(&self) -> impl Iterator<Item = (Opening, u16)> {
        (0..self.count).map(move |offset| (self.opening(offset), self.target + offset))
    }

    /// Whether a task behind it has IPv6.
    pub fn has_six(&self) -> bool {
        self.backends.iter().any(|backend| backend.ip6.is_some())
    }

    /// The ports at the node.
    pub fn in_words(&self) -> String {
        match self.count {
            1 => self.opening(0).to_string(),
            count => format!("{} ports {}-{}", self.transport, self.first, self.opening(count - 1).port),
        }
    }

    /// Whether it is one of these ports.
    pub fn covers(&self, opening: Opening) -> bool {
        self.transport == opening.transport && opening.port >= self.first && opening.port - self.first < self.count
    }

    /// Whether they have a port in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.covers(other.opening(0)) || other.covers(self.opening(0))
    }

    /// Who takes connections that begin at this node.
    pub fn chosen(&self, picture: &Picture, attachments: &Attachments) -> Vec<&Backend> {
        let all: Vec<&Backend> = self.backends.iter().filter(|backend| backend.takes(picture, attachments)).collect();
        let here: Vec<&Backend> = all.iter().copied().filter(|backend| backend.place == Place::Here).collect();
        match self.policy {
            Policy::Spread => all,
            Policy::Mesh if here.is_empty() => all,
            Policy::Mesh | Policy::Local => here,
        }
    }
}

/// The first port of a range that lies within 1 to 65535.
fn first_of(first: u32, count: u32) -> Result<u16, String> {
    let last = first.checked_add(count - 1).and_then(|last| u16::try_from(last).ok());
    match (u16::try_from(first), last) {
        (Ok(first), Some(_)) if first > 0 => Ok(first),
        _ if count == 1 => Err(format!("{first} is no port")),
        _ => Err(format!("{count} ports from {first} on are not ports")),
    }
}

/// `Ok(None)` for one on a node whose address was already complained about.
fn parse_backend(wire: &v1::BackendView, here: &str, nodes: &BTreeMap<&str, Option<Ipv4Addr>>) -> Result<Option<Backend>, String> {
    let ip: Ipv4Addr = wire.ip.parse().map_err(|_| format!("its address {:?} is not IPv4", wire.ip))?;
    let ip6 = match wire.ip6.as_str() {
        "" => None,
        text => Some(text.parse::<Ipv6Addr>().map_err(|_| format!("its address {text:?} is not IPv6"))?),
    };
    let Some(place) = Place::parse(&wire.node_id, here, nodes)? else { return Ok(None) };
    let state = wire.state();
    let (serving, dead) = (state == v1::EndpointState::Serving, state == v1::EndpointState::Dead);
    Ok(Some(Backend { task_id: wire.task_id.clone(), ip, ip6, place, serving, dead }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixtures::{numbered, published, t1_attached};

    #[test]
    fn each_policy_has_its_backends() {
        use v1::IngressPolicy::{Local, Mesh, Spread};
        let chosen = |policy, attachments: &Attachments| {
            let (picture, problems) = Picture::parse(&numbered(1, vec![published(policy)]));
            assert_eq!(problems, Vec::<String>::new());
            let chosen = picture.published[0].chosen(&picture, attachments);
            chosen.iter().map(|backend| backend.task_id.as_str()).collect::<Vec<_>>().join(" ")
        };
        let nobody = Attachments::new();
        assert_eq!([Mesh, Spread, Local].map(|policy| chosen(policy, &t1_attached())), ["t1", "t1 t2 t3", "t1"]);
        assert_eq!([Mesh, Spread, Local].map(|policy| chosen(policy, &nobody)), ["t2 t3", "t2 t3", ""]);
    }

    #[test]
    fn all_ports_of_a_service_have_the_backends_that_it_is_told_with() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
        let port = v1::Port { published: 8081, policy: v1::IngressPolicy::Local.into(), ..wire.published[0].ports[0].clone() };
        wire.published[0].ports.push(port);
        let (picture, problems) = Picture::parse(&wire);
        assert_eq!(problems, Vec::<String>::new());
        let told: Vec<_> =
            picture.published.iter().map(|one| (one.first, one.chosen(&picture, &t1_attached()).len(), one.backends.len())).collect();
        assert_eq!(told, [(8080, 3, 3), (8081, 1, 3)]);
    }

    #[test]
    fn a_backend_whose_node_has_no_number_or_that_does_not_serve_gets_nothing() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
        wire.nodes[1].number = 0;
        let count = |wire: &v1::NetView| {
            let (picture, _) = Picture::parse(wire);
            picture.published[0].chosen(&picture, &t1_attached()).len()
        };
        assert_eq!(count(&wire), 1);
        wire.published[0].backends[1].state = v1::EndpointState::Leaving.into();
        assert_eq!(count(&wire), 0);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_named() {
        let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh); 5]);
        let port = |wire: &mut v1::NetView, index: usize, change: fn(&mut v1::Port)| {
            wire.published[index].service_id = format!("s{index}");
            change(&mut wire.published[index].ports[0]);
        };
        port(&mut wire, 1, |port| (port.published, port.count) = (8079, 2));
        port(&mut wire, 2, |port| (port.published, port.count) = (65_535, 2));
        port(&mut wire, 3, |port| (port.published, port.allow_from) = (9, vec!["here".into()]));
        port(&mut wire, 4, |port| port.target = 0);
        wire.published[0].backends[0].node_id = "n9".into();
        wire.services.push(v1::ServiceView { id: "web".into(), name: "shop".into(), ..Default::default() });
        wire.nodes[2].number = 1;
        wire.nodes.push(v1::NodeView { id: "n4".into(), addr: "10.90.0.104".into(), number: 9000, ..Default::default() });
        let (picture, problems) = Picture::parse(&wire);
        assert_eq!(
            problems,
            [
                "node n3 has the number 1, which another node has too; published ports do not lead there",
                "node n4 has the number 9000, which is more than 8191; published ports do not lead there",
                "task t3 is left out behind tcp port 8080: its node n9 is not in the picture",
                "a port of service s1 is left out: tcp ports 8079-8080 meet tcp port 8080 of service shop",
                "a port of service s2 is left out: 2 ports from 65535 on are not ports",
                "a port of service s3 is left out: its allow_from \"here\" is not a CIDR",
                "a port of service s4 is left out: 0 is no port",
            ]
        );
        assert_eq!((picture.published.len(), picture.number, picture.numbers.len()), (1, 1, 1));
    }

    #[test]
    fn ranges_meet_where_they_share_a_port() {
        let (picture, _) = Picture::parse(&numbered(1, vec![published(v1::IngressPolicy::Mesh)]));
        let at = |first, count| Published { first, count, ..picture.published[0].clone() };
        let meets = |one: (u16, u16), other: (u16, u16)| at(one.0, one.1).meets(&at(other.0, other.1));
        assert!(meets((10, 5), (14, 1)) && meets((14, 1), (10, 5)) && meets((10, 5), (8, 3)));
        assert!(!meets((10, 5), (15, 1)) && !meets((10, 5), (8, 2)));
        let udp = Published { transport: Transport::Udp, ..at(10, 5) };
        assert!(!udp.meets(&at(10, 5)));
        assert_eq!(at(65_535, 1).openings().count(), 1);
    }
}
