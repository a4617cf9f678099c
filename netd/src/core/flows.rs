//! Which connections the kernel shall forget, because they lead to where nothing of theirs is any more.
//!
//! Connection tracking keeps what was chosen for a connection's first packet as long as packets come. A client that sends over UDP for ever
//! would never be sent to another endpoint, and one over TCP would hear nothing when its endpoint has gone.
//!
//! In: a picture, the pods here, the tracked flows. Out: those to forget: over UDP to an endpoint that does not serve, over TCP to one that is
//! not there at all (an endpoint that leaves ends its connections itself; on a node that is down they are reset by the rules, which takes
//! the flow). Forgotten, the next packet begins a connection to another endpoint: of UDP it goes on there, of TCP it is reset.
//! So it is with flows to published ports of nodes; over TCP those of a port that is not published any more live on.
//! Never: a flow that was sent neither to an address of a network in the picture nor to a published port.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::picture::{Attachments, Endpoint, Network, Picture};
use super::published::Opening;
use super::rules::balance::backends;
use super::uplink::ROUTER_IP;

/// What goes through a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// As IP numbers it.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => write!(f, "tcp"),
            Self::Udp => write!(f, "udp"),
        }
    }
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub transport: Transport,
    /// As the client sent its first packet.
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    /// Who answers; not the destination where that was translated.
    pub server: Ipv4Addr,
    /// The kernel's, so that no later flow between the same ends is meant.
    pub id: u32,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((source, source_port), (destination, port)) = (self.source, self.destination);
        write!(f, "{} {source}:{source_port} to {destination}:{port} at {}", self.transport, self.server)
    }
}

/// Whether there can be flows to forget.
pub fn any(picture: &Picture) -> bool {
    !picture.published.is_empty() || picture.networks.values().any(|network| !network.vips.is_empty())
}

/// The flows to forget.
pub fn stale(picture: &Picture, attachments: &Attachments, flows: Vec<Flow>) -> Vec<Flow> {
    let networks: Vec<(&Network, BTreeMap<&str, Vec<Ipv4Addr>>)> =
        picture.networks.values().map(|network| (network, backends(network, attachments))).collect();
    let is_stale = |flow: &Flow| {
        if is_at_node(picture, flow) {
            return lost_its_port(picture, attachments, flow);
        }
        let Some((network, backends)) = networks.iter().find(|(network, _)| network.subnet.contains(&flow.destination.0)) else {
            return false;
        };
        let vip = network.vips.get(&flow.destination.0);
        if vip.is_none() && flow.server == flow.destination.0 {
            // Straight to an endpoint.
            return false;
        }
        let service = vip.map(|vip| vip.service_id.as_str());
        let serves = service.and_then(|service| backends.get(service)).is_some_and(|backends| backends.contains(&flow.server));
        let of_service = |endpoint: &Endpoint| service.is_none_or(|service| endpoint.service_id == service);
        let is_there = network.endpoints.get(&flow.server).is_some_and(of_service);
        match flow.transport {
            Transport::Udp => !serves,
            Transport::Tcp => !is_there,
        }
    };
    flows.into_iter().filter(is_stale).collect()
}

/// Whether it was sent to a node's address and on from there.
fn is_at_node(picture: &Picture, flow: &Flow) -> bool {
    let to = flow.destination.0;
    flow.server != to && (to == ROUTER_IP || picture.nodes.contains(&to))
}

fn lost_its_port(picture: &Picture, attachments: &Attachments, flow: &Flow) -> bool {
    let opening = Opening { transport: flow.transport, port: flow.destination.1 };
    let published = picture.published.iter().find(|published| published.covers(opening));
    let backend = published.map(|published| published.backends.iter().find(|backend| backend.ip == flow.server));
    match (flow.transport, backend) {
        (Transport::Udp, Some(Some(backend))) => !backend.takes(picture, attachments),
        (Transport::Udp, Some(None) | None) | (Transport::Tcp, Some(None)) => true,
        (Transport::Tcp, Some(Some(_)) | None) => false,
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::plan::tests::view;
    use crate::core::published::tests as ports;

    /// A service `web` with the address 10.128.0.8, before t2 (10.128.0.3) and t3 (10.128.0.4).
    fn balanced() -> v1::NetView {
        let mut view = view(1);
        view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
        view.services.push(v1::ServiceView {
            id: "web".into(),
            name: "web".into(),
            mode: v1::EndpointMode::Vip.into(),
            vips: vec![v1::VipView { network_id: "net-a".into(), ip: "10.128.0.8".into(), names: vec!["web".into()] }],
            ..Default::default()
        });
        view
    }

    /// The flows of one client to `to` that are forgotten, as `transport last octet of the server`.
    fn forgotten(view: &v1::NetView, to: [u8; 4]) -> String {
        let flow = |transport, last: u8| Flow {
            transport,
            source: (Ipv4Addr::new(10, 128, 0, 9), 4000),
            destination: (to.into(), 80),
            server: Ipv4Addr::new(to[0], to[1], to[2], last),
            id: 7,
        };
        let flows = [2, 3, 4, 5, 8].into_iter().flat_map(|last| [flow(Transport::Tcp, last), flow(Transport::Udp, last)]).collect();
        let stale = stale(&Picture::parse(view).0, &Attachments::new(), flows);
        let words: Vec<String> = stale.iter().map(|flow| format!("{:?} {}", flow.transport, flow.server.octets()[3])).collect();
        words.join(", ")
    }

    #[test]
    fn flows_to_a_service_are_kept_while_their_endpoint_serves_and_those_of_tcp_while_it_is_there() {
        let mut view = balanced();
        // t1 is of this node and not attached; nobody has .5, and .8 is the service's own.
        assert_eq!(forgotten(&view, [10, 128, 0, 8]), "Udp 2, Tcp 5, Udp 5, Tcp 8, Udp 8");
        view.networks[0].endpoints[1].serving = false;
        assert_eq!(forgotten(&view, [10, 128, 0, 8]), "Udp 2, Udp 3, Tcp 5, Udp 5, Tcp 8, Udp 8");
        view.networks[0].endpoints.remove(1);
        assert_eq!(forgotten(&view, [10, 128, 0, 8]), "Udp 2, Tcp 3, Udp 3, Tcp 5, Udp 5, Tcp 8, Udp 8");
        // The service has no address any more: its streams go on, and .8 may be someone's that is not in the picture yet.
        view.services.clear();
        assert_eq!(forgotten(&view, [10, 128, 0, 8]), "Udp 2, Tcp 3, Udp 3, Udp 4, Tcp 5, Udp 5");
    }

    #[test]
    fn flows_by_a_published_port_are_kept_while_their_backend_is_there_and_over_udp_while_it_serves() {
        let port = |protocol: v1::Protocol, published: u32| {
            let mut view = ports::published(v1::IngressPolicy::Mesh);
            let port = &mut view.ports[0];
            (port.protocol, port.published) = (protocol.into(), published);
            view.backends[2].state = v1::EndpointState::Leaving.into();
            view
        };
        let view = ports::numbered(1, vec![port(v1::Protocol::Tcp, 80), port(v1::Protocol::Udp, 80), port(v1::Protocol::Tcp, 81)]);
        // t1, here, is attached; t2 at .3 leaves; nobody has .5. Also by the node's own address, as a pod comes.
        let forgotten = |view: &v1::NetView, to: Ipv4Addr| {
            let flow = |transport, last: u8| Flow {
                transport,
                source: (Ipv4Addr::new(203, 0, 113, 1), 4000),
                destination: (to, 80),
                server: Ipv4Addr::new(10, 128, 0, last),
                id: 7,
            };
            let flows = [2, 3, 4, 5].into_iter().flat_map(|last| [flow(Transport::Tcp, last), flow(Transport::Udp, last)]).collect();
            let stale = stale(&Picture::parse(view).0, &ports::attached(), flows);
            let words: Vec<String> = stale.iter().map(|flow| format!("{:?} {}", flow.transport, flow.server.octets()[3])).collect();
            words.join(", ")
        };
        for to in [ROUTER_IP, Ipv4Addr::new(10, 90, 0, 101)] {
            assert_eq!(forgotten(&view, to), "Udp 3, Tcp 5, Udp 5");
        }
        // A port that is published no more: what goes on over it does.
        let mut closed = view.clone();
        closed.published.retain(|published| published.ports[0].published == 81);
        assert_eq!(forgotten(&closed, ROUTER_IP), "Udp 2, Udp 3, Udp 4, Udp 5");
    }

    #[test]
    fn flows_that_are_nobodys_service_are_left_alone() {
        let view = balanced();
        assert_eq!(forgotten(&view, [10, 90, 0, 8]), "");
        let straight = Flow {
            transport: Transport::Udp,
            source: (Ipv4Addr::new(10, 128, 0, 9), 4000),
            destination: (Ipv4Addr::new(10, 128, 0, 77), 80),
            server: Ipv4Addr::new(10, 128, 0, 77),
            id: 7,
        };
        assert_eq!(straight.to_string(), "udp 10.128.0.9:4000 to 10.128.0.77:80 at 10.128.0.77");
        assert!(stale(&Picture::parse(&view).0, &Attachments::new(), vec![straight]).is_empty());
    }
}
