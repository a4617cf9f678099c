//! Which connections the kernel shall forget, because they lead to where nothing of theirs is any more.
//!
//! Connection tracking keeps what was chosen for a connection's first packet as long as packets come. A client that sends over UDP for ever
//! would never be sent to another endpoint, and one over TCP would hear nothing when its endpoint has gone.
//!
//! In: a picture, the pods here, the tracked flows. Out: those to forget: over UDP to an endpoint that does not serve, over TCP to one that is
//! not there at all (an endpoint that leaves ends its connections itself; on a node that is down they are reset by the rules, which takes
//! the flow). Forgotten, the next packet begins a connection to another endpoint: of UDP it goes on there, of TCP it is reset.
//! Of an address that has lost its task every flow is forgotten, or its next task would have what was let through for the one before.
//! So it is with flows to published ports of nodes; over TCP those of a port that is not published any more live on.
//! On the host: over UDP those to a port of its own that do not go where that port leads by now.
//! Never: a flow of other addresses that was sent neither to an address of a network in the picture nor to a published port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::picture::{Attachment, Attachments, Endpoint, Membership, Network, Picture};
use super::published::{Backend, Opening, Published};
use super::rules::balance::backends;
use super::uplink::{ROUTER_IP, ROUTER_IP6};

/// What IP carries, as it numbers it.
pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

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
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
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
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    /// Who answers, and to whom; not the destination and the source where those were translated. No other flow of the router's
    /// over the same transport has the same two.
    pub reply: ((IpAddr, u16), (IpAddr, u16)),
    /// The kernel's, which it may give to a later flow from the same source to the same destination.
    pub id: u32,
}

impl Flow {
    /// Who answers.
    pub fn server(&self) -> IpAddr {
        self.reply.0.0
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (SocketAddr::from(self.source), SocketAddr::from(self.destination));
        write!(f, "{} {source} to {destination} at {}", self.transport, self.server())
    }
}

/// Whether there can be flows to forget.
pub fn any(picture: &Picture) -> bool {
    !picture.published.is_empty() || picture.networks.values().any(|network| !network.vips.is_empty())
}

/// Whether the pod may have flows of others that are to go on elsewhere when it leaves.
pub fn serves(picture: &Picture, pod: &Attachment) -> bool {
    pod.networks.iter().any(|Membership { network_id, ip }| {
        picture.networks.get(network_id).is_some_and(|network| !network.vips.is_empty() && network.endpoints.contains_key(ip))
            || picture.published.iter().any(|published| published.backends.iter().any(|backend| backend.ip == *ip))
    })
}

/// Addresses of both families that had a task by the old picture, and have none or another one by the new one; but those of pods here.
pub fn gone(old: &Picture, new: &Picture, attachments: &Attachments) -> BTreeSet<IpAddr> {
    let mut gone = BTreeSet::new();
    for (id, network) in &old.networks {
        let endpoints = new.networks.get(id).map(|network| &network.endpoints);
        for (ip, endpoint) in &network.endpoints {
            let is_its = endpoints.and_then(|endpoints| endpoints.get(ip)).is_some_and(|now| now.task_id == endpoint.task_id);
            let is_here =
                || attachments.get(endpoint.task_id.as_str()).is_some_and(|pod| pod.networks.iter().any(|membership| membership.ip == *ip));
            if !is_its && !is_here() {
                gone.extend(network.addresses(*ip));
            }
        }
    }
    gone
}

/// Whether a service's address or a published port leads to something no more, by the new picture, to which it led by the old one.
pub fn strands(old: &Picture, new: &Picture) -> bool {
    let network = |(id, network): (&String, &Network)| {
        let Some(now) = new.networks.get(id) else { return true };
        let is_lost = |(ip, endpoint): (&Ipv4Addr, &Endpoint)| {
            let goes_on = |now: &Endpoint| now.service_id == endpoint.service_id && (now.serving || !endpoint.serving);
            !now.endpoints.get(ip).is_some_and(goes_on)
        };
        network.vips.iter().any(|(ip, vip)| now.vips.get(ip).is_none_or(|now| now.service_id != vip.service_id))
            || network.endpoints.iter().any(is_lost)
    };
    let published = |published: &Published| {
        let Some(now) = new.published.iter().find(|now| now.opening(0) == published.opening(0) && now.count == published.count) else {
            return true;
        };
        let goes_on = |was: &Backend| now.backends.iter().any(|now| now.ip == was.ip && (now.serving || !was.serving));
        now.backends != published.backends && !published.backends.iter().all(goes_on)
    };
    old.networks.iter().filter(|(_, network)| !network.vips.is_empty()).any(network)
        || old.published.iter().any(published)
        || old.numbers.keys().any(|node| !new.numbers.contains_key(node))
}

/// Whether a flow is to be forgotten; all those of addresses that are `gone` are.
pub fn stale<'a>(picture: &'a Picture, attachments: &'a Attachments, gone: &'a BTreeSet<IpAddr>) -> impl Fn(&Flow) -> bool + use<'a> {
    let networks: Vec<(&Network, BTreeMap<&str, Vec<Ipv4Addr>>)> =
        picture.networks.values().map(|network| (network, backends(network, attachments))).collect();
    move |flow: &Flow| {
        if [flow.source.0, flow.destination.0, flow.server()].iter().any(|ip| gone.contains(ip)) {
            return true;
        }
        if is_at_node(picture, flow) {
            return lost_its_port(picture, attachments, flow);
        }
        // Of IPv6 by the addresses of IPv4 of the same ones.
        let place = networks.iter().find_map(|(network, backends)| Some((network, backends, network.ip4(flow.destination.0)?)));
        let Some((network, backends, to)) = place else { return false };
        let Some(server) = network.ip4(flow.server()) else { return true };
        let vip = network.vips.get(&to);
        if vip.is_none() && server == to {
            // Straight to an endpoint.
            return false;
        }
        let service = vip.map(|vip| vip.service_id.as_str());
        let serves = service.and_then(|service| backends.get(service)).is_some_and(|backends| backends.contains(&server));
        let of_service = |endpoint: &Endpoint| service.is_none_or(|service| endpoint.service_id == service);
        let is_there = network.endpoints.get(&server).is_some_and(of_service);
        match flow.transport {
            Transport::Udp => !serves,
            Transport::Tcp => !is_there,
        }
    }
}

/// Whether a flow of the host from elsewhere to itself does not go where the host's rules would send it now: tracked before a port was opened, or
/// closed. As long as its client sends, such a flow stays as it began. `open` are the ports that lead into the router, `open6` those that do of IPv6.
pub fn misled(open: &BTreeSet<Opening>, open6: &BTreeSet<Opening>, flow: &Flow) -> bool {
    let open = if flow.destination.0.is_ipv6() { open6 } else { open };
    let is_open = open.contains(&Opening { transport: flow.transport, port: flow.destination.1 });
    // One that goes elsewhere the administrator sends there.
    let is_elsewhere =
        if is_open { flow.server() == flow.destination.0 } else { flow.server() == ROUTER_IP || flow.server() == ROUTER_IP6 };
    flow.transport == Transport::Udp && is_elsewhere
}

/// Whether it was sent to a node's address and on from there.
fn is_at_node(picture: &Picture, flow: &Flow) -> bool {
    let is_node = match flow.destination.0 {
        IpAddr::V4(to) => to == ROUTER_IP || picture.nodes.contains(&to),
        IpAddr::V6(to) => to == ROUTER_IP6,
    };
    is_node && flow.server() != flow.destination.0
}

fn lost_its_port(picture: &Picture, attachments: &Attachments, flow: &Flow) -> bool {
    let opening = Opening { transport: flow.transport, port: flow.destination.1 };
    let published = picture.published.iter().find(|published| published.covers(opening));
    let is_its = |backend: &&Backend| flow.server() == backend.ip || backend.ip6.is_some_and(|ip6| flow.server() == ip6);
    let backend = published.map(|published| published.backends.iter().find(is_its));
    match (flow.transport, backend) {
        (Transport::Udp, Some(Some(backend))) => !backend.takes(picture, attachments),
        (Transport::Udp, Some(None) | None) | (Transport::Tcp, Some(None)) => true,
        (Transport::Tcp, Some(Some(_)) | None) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rcluster_api::network::address6;
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{balanced, endpoint, flow, numbered, published, t1_attached};

    const CLIENT: [u8; 4] = [203, 0, 113, 1];
    const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

    fn forgotten_of(picture: &Picture, attachments: &Attachments, gone: &BTreeSet<IpAddr>, mut flows: Vec<Flow>) -> Vec<Flow> {
        flows.retain(stale(picture, attachments, gone));
        flows
    }

    /// The flows of one client to `to` that are forgotten, as `transport last octet of the server`.
    fn forgotten(view: &v1::NetView, to: [u8; 4]) -> String {
        forgotten_at(view, to, IpAddr::V4)
    }

    /// The same, everyone having the address that `at` makes of his.
    fn forgotten_at(view: &v1::NetView, to: [u8; 4], at: impl Fn(Ipv4Addr) -> IpAddr) -> String {
        let to_server = |last: u8| at([to[0], to[1], to[2], last].into());
        let flow = |transport, last: u8| flow(transport, at([10, 128, 0, 9].into()), (at(to.into()), 80), to_server(last));
        let flows = [2, 3, 4, 5, 8].into_iter().flat_map(|last| [flow(Transport::Tcp, last), flow(Transport::Udp, last)]).collect();
        let stale = forgotten_of(&Picture::parse(view).0, &Attachments::new(), &BTreeSet::new(), flows);
        let words: Vec<String> = stale.iter().map(|flow| format!("{:?} {}", flow.transport, last(flow.server()))).collect();
        words.join(", ")
    }

    #[test]
    fn flows_to_a_service_are_kept_while_their_endpoint_serves_and_those_of_tcp_while_it_is_there() {
        let mut view = balanced(1);
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

    fn last(ip: IpAddr) -> u8 {
        match ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        }
    }

    #[test]
    fn flows_of_ipv6_to_a_service_are_kept_as_long_as_those_of_ipv4() {
        let mut view = balanced(1);
        let at = |ip: Ipv4Addr| address6("fd00:1::/64".parse().unwrap(), ip).into();
        assert_eq!(forgotten_at(&view, [10, 128, 0, 8], at), "", "nobody of ours has such addresses");
        view.networks[0].subnet6 = "fd00:1::/64".into();
        assert_eq!(forgotten_at(&view, [10, 128, 0, 8], at), "Udp 2, Tcp 5, Udp 5, Tcp 8, Udp 8");
        view.networks[0].endpoints.remove(1);
        assert_eq!(forgotten_at(&view, [10, 128, 0, 8], at), "Udp 2, Tcp 3, Udp 3, Tcp 5, Udp 5, Tcp 8, Udp 8");
    }

    #[test]
    fn flows_by_a_published_port_are_kept_while_their_backend_is_there_and_over_udp_while_it_serves() {
        let port = |protocol: v1::Protocol, number: u32| {
            let mut view = published(v1::IngressPolicy::Mesh);
            let port = &mut view.ports[0];
            (port.protocol, port.published) = (protocol.into(), number);
            view.backends[2].state = v1::EndpointState::Leaving.into();
            view
        };
        let view = numbered(1, vec![port(v1::Protocol::Tcp, 80), port(v1::Protocol::Udp, 80), port(v1::Protocol::Tcp, 81)]);
        // t1, here, is attached; t2 at .3 leaves; nobody has .5. Also by the node's own address, as a pod comes.
        let forgotten = |view: &v1::NetView, to: Ipv4Addr| {
            let flow = |transport, last: u8| flow(transport, CLIENT, (to.octets(), 80), [10, 128, 0, last]);
            let flows = [2, 3, 4, 5].into_iter().flat_map(|last| [flow(Transport::Tcp, last), flow(Transport::Udp, last)]).collect();
            let stale = forgotten_of(&Picture::parse(view).0, &t1_attached(), &BTreeSet::new(), flows);
            let words: Vec<String> = stale.iter().map(|flow| format!("{:?} {}", flow.transport, last(flow.server()))).collect();
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
    fn flows_on_the_host_are_forgotten_when_their_port_leads_elsewhere_by_now() {
        let host = [10, 90, 0, 101];
        let other = [172, 17, 0, 2];
        let mut flows = Vec::new();
        for transport in [Transport::Udp, Transport::Tcp] {
            for port in [53, 54] {
                flows.extend([host, ROUTER_IP.octets(), other].map(|server| flow(transport, CLIENT, (host, port), server)));
            }
        }
        let open = BTreeSet::from([Opening { transport: Transport::Udp, port: 53 }, Opening { transport: Transport::Tcp, port: 53 }]);
        let texts: Vec<String> = flows.iter().filter(|flow| misled(&open, &BTreeSet::new(), flow)).map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["udp 203.0.113.1:4000 to 10.90.0.101:53 at 10.90.0.101", "udp 203.0.113.1:4000 to 10.90.0.101:54 at 169.254.54.2"]
        );
    }

    #[test]
    fn flows_of_ipv6_on_the_host_go_by_the_ports_that_are_open_by_it() {
        let host: Ipv6Addr = "2001:db8::101".parse().unwrap();
        let open = |port| BTreeSet::from([Opening { transport: Transport::Udp, port }]);
        // Of IPv4 it is the other port.
        let is_misled = |port, server: Ipv6Addr| misled(&open(54), &open(53), &flow(Transport::Udp, CLIENT6, (host, port), server));
        assert!(is_misled(53, host) && is_misled(54, ROUTER_IP6));
        assert!(!is_misled(54, host) && !is_misled(53, ROUTER_IP6));
    }

    #[test]
    fn flows_of_ipv6_by_a_published_port_are_kept_while_their_backend_serves() {
        let mut view = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
        view.published[0].ports[0].protocol = v1::Protocol::Udp.into();
        for backend in &mut view.published[0].backends {
            backend.ip6 = backend.task_id.replace('t', "fd00::");
        }
        // t2 leaves; nobody has fd00::9.
        view.published[0].backends[2].state = v1::EndpointState::Leaving.into();
        let (picture, attachments, gone) = (Picture::parse(&view).0, t1_attached(), BTreeSet::new());
        let is_stale = stale(&picture, &attachments, &gone);
        let to = |last: u16| flow(Transport::Udp, CLIENT6, (ROUTER_IP6, 8080), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        assert_eq!([1, 2, 3, 9].map(|last| is_stale(&to(last))), [false, true, false, true]);
    }

    #[test]
    fn flows_that_are_nobodys_service_are_left_alone() {
        let view = balanced(1);
        assert_eq!(forgotten(&view, [10, 90, 0, 8]), "");
        let straight = flow(Transport::Udp, [10, 128, 0, 9], ([10, 128, 0, 77], 80), [10, 128, 0, 77]);
        assert_eq!(straight.to_string(), "udp 10.128.0.9:4000 to 10.128.0.77:80 at 10.128.0.77");
        let forgotten = |gone: &[Ipv4Addr]| {
            forgotten_of(
                &Picture::parse(&view).0,
                &Attachments::new(),
                &gone.iter().copied().map(IpAddr::from).collect(),
                vec![straight.clone()],
            )
            .len()
        };
        assert_eq!(forgotten(&[Ipv4Addr::new(10, 128, 0, 78)]), 0);
        // But not to become its next holder's, or that of whoever is given its client's address.
        assert_eq!([77, 9].map(|last| forgotten(&[Ipv4Addr::new(10, 128, 0, last)])), [1, 1]);
    }

    #[test]
    fn an_address_is_gone_when_its_task_is_and_flows_are_stranded_when_somebody_serves_no_more() {
        let old = balanced(1);
        let parsed = |view: &v1::NetView| Picture::parse(view).0;
        let after = |alter: &dyn Fn(&mut v1::NetView)| {
            let mut new = old.clone();
            alter(&mut new);
            let (old, new) = (parsed(&old), parsed(&new));
            let gone: Vec<u8> = gone(&old, &new, &Attachments::new()).iter().map(|ip| last(*ip)).collect();
            (gone, strands(&old, &new))
        };
        assert_eq!(after(&|_| ()), (vec![], false));
        assert_eq!(after(&|new| new.networks[0].endpoints[1].task_id = "t9".into()), (vec![3], false));
        assert_eq!(after(&|new| drop(new.networks[0].endpoints.remove(2))), (vec![4], true));
        let mut with_six = old.clone();
        with_six.networks[0].subnet6 = "fd00:1::/64".into();
        let mut without = with_six.clone();
        without.networks[0].endpoints.remove(2);
        let both: Vec<String> = gone(&parsed(&with_six), &parsed(&without), &Attachments::new()).iter().map(ToString::to_string).collect();
        assert_eq!(both, ["10.128.0.4", "fd00:1::a80:4"]);
        assert_eq!(after(&|new| new.networks[0].endpoints[1].serving = false), (vec![], true));
        assert_eq!(after(&|new| new.services.clear()), (vec![], true));
        let more = |new: &mut v1::NetView| new.networks[0].endpoints.push(endpoint("t5", "n2", "10.128.0.5"));
        assert_eq!(after(&more), (vec![], false), "what comes strands nothing");

        let two = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
        let mut fewer = two.clone();
        fewer.published[0].backends.pop();
        assert!(strands(&parsed(&two), &parsed(&fewer)) && !strands(&parsed(&fewer), &parsed(&two)));
    }
}
