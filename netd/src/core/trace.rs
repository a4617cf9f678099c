//! What becomes of a packet that a pod sends, step by step, in words.
//!
//! In: a picture, what the dataplane holds by it, what the pod sees of names; a name or an address. Out: the steps and a verdict. Goes the
//! way that the rules go (`rules::skeleton` has their order) over the same elements, for the first packet of a connection. Never: sends one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::dataplane::Dataplane;
use super::links::{Interface, LOOPBACK, RESOLVER};
use super::names::{self, Answer, Sight};
use super::neighbours::Route;
use super::picture::{Picture, Place};
use super::rules::elements::{Element, Field, Key, SetName, Value, decode, encode};
use super::rules::expressions::Verdict;
use super::uplink::UPLINK;

/// Endpoints of a service's address whose ways are followed; the rest are counted.
const FOLLOWED_MAX: usize = 8;

/// What a way is found by.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    pub picture: &'a Picture,
    pub dataplane: &'a Dataplane,
    /// What the pod sees.
    pub sight: &'a Sight,
}

/// The way of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub steps: Vec<String>,
    pub verdict: String,
}

/// The way of what the pod sends to `target`, a name or an address, which may end in a port; `None` if the pod is not here.
pub fn trace(ground: Ground<'_>, task_id: &str, target: &str) -> Option<Trace> {
    let pod = ground.dataplane.pods.get(task_id)?;
    let mut walk = Walk { ground, steps: Vec::new() };
    let verdict = walk.begin(pod, host(target));
    Some(Trace { steps: walk.steps, verdict })
}

/// The target without its port.
fn host(target: &str) -> &str {
    let with_port = target.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    with_port.map_or(target, |(host, _)| host)
}

struct Walk<'a> {
    ground: Ground<'a>,
    steps: Vec<String>,
}

impl Walk<'_> {
    fn say(&mut self, step: String) {
        self.steps.push(step);
    }

    fn begin(&mut self, pod: &BTreeMap<String, Interface>, host: &str) -> String {
        if pod.is_empty() {
            return "sent nowhere: the pod has no network".to_owned();
        }
        match host.parse() {
            Ok(ip) => self.by_address(pod, ip),
            Err(_) => self.by_name(pod, host),
        }
    }

    fn by_name(&mut self, pod: &BTreeMap<String, Interface>, host: &str) -> String {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let zones: Vec<&str> = self.ground.sight.iter().map(|network| network.zone()).collect();
        let zones = zones.join(", ");
        match names::lookup(self.ground.sight, &name, names::Kind::Address) {
            Answer::Addresses(ips) => {
                let words: Vec<String> = ips.iter().map(Ipv4Addr::to_string).collect();
                self.say(format!("{name} is {}, by {zones}", words.join(" ")));
                self.each(&ips, |walk, ip| walk.by_address(pod, ip))
            }
            Answer::NoData => format!("sent nowhere: {name} is a name of {zones}, and nobody serves under it"),
            Answer::NoSuchName => format!("sent nowhere: there is no name {name} in {zones}"),
            Answer::Foreign => format!("{name} is no name of ours: the host's resolvers are asked for it"),
            Answer::Refused => format!("sent nowhere: {name} is no name of ours, and others are not asked for a pod of internal networks"),
            Answer::Pointer(name) => format!("sent nowhere: {name}"),
        }
    }

    /// What becomes of packets to each of them, those that end alike together.
    fn each(&mut self, ips: &[Ipv4Addr], mut way: impl FnMut(&mut Self, Ipv4Addr) -> String) -> String {
        let mut verdicts: Vec<String> = Vec::new();
        for ip in ips.iter().take(FOLLOWED_MAX) {
            let verdict = way(self, *ip);
            if !verdicts.contains(&verdict) {
                verdicts.push(verdict);
            }
        }
        if ips.len() > FOLLOWED_MAX {
            verdicts.push(format!("{} more are not followed", ips.len() - FOLLOWED_MAX));
        }
        verdicts.join("; or ")
    }

    fn by_address(&mut self, pod: &BTreeMap<String, Interface>, ip: Ipv4Addr) -> String {
        if let Some((name, _)) = pod.iter().find(|(_, interface)| interface.ip == ip) {
            return format!("stays in the pod: {ip} is its own, on {name}");
        }
        let ways = pod.iter().flat_map(|(name, interface)| interface.routes.iter().map(move |route| (route, name, interface)));
        let widest = ways.filter(|(route, ..)| route.contains(&ip)).max_by_key(|(route, ..)| route.prefix_len());
        let Some((_, name, interface)) = widest else { return format!("sent nowhere: the pod has no route to {ip}") };
        if ip == RESOLVER {
            return format!("delivered to the resolver by {name}: it answers at port 53, and pings");
        }
        let Some(vni) = self.vni_of(&interface.link) else {
            return format!("refused: {name} is on no network that this node knows");
        };
        self.say(format!("{ip} is sent from {} by {name}, on network {}", interface.ip, self.network(vni)));
        if !self.holds(&Element::new(SetName::Sources, &[Value::Name(interface.link.clone()), Value::Address(interface.ip)], &[]).key) {
            return format!("dropped: {} is not known as the address of {name}", interface.ip);
        }
        match self.chosen(vni, ip) {
            Some((verdict, behind)) => {
                let words: Vec<String> = behind.iter().take(FOLLOWED_MAX).map(Ipv4Addr::to_string).collect();
                let more = if behind.len() > FOLLOWED_MAX { " …" } else { "" };
                self.say(format!("{ip} is {}: {verdict} chooses one of {}{more}", self.holder(ip), words.join(" ")));
                self.each(&behind, |walk, backend| walk.forward(vni, backend))
            }
            None => self.forward(vni, ip),
        }
    }

    /// As the chain `forward` does.
    fn forward(&mut self, vni: u32, ip: Ipv4Addr) -> String {
        let holder = self.holder(ip);
        if self.holds(&Element::new(SetName::Dead, &[Value::Address(ip)], &[]).key) {
            return format!("reset: {ip} is {holder}, whose node is down and does not answer");
        }
        let Some((to, route)) = self.route(ip) else { return format!("refused: there is no route to {ip}") };
        self.say(format!("{ip} is {holder}: route {to} {route}"));
        if self.holds(&Element::new(SetName::Entries, &[Value::Address(ip)], &[]).key) {
            return format!("refused: {ip} is a node, and pods do not reach nodes");
        }
        if self.holds(&Element::new(SetName::VipList, &[Value::Address(ip)], &[]).key) {
            return format!("refused: nobody takes connections to {holder} from network {}", self.network(vni));
        }
        if !self.holds(&Element::new(SetName::Exits, &[Value::Mark(vni), Value::Name(route.link().to_owned())], &[]).key) {
            return match route.link() {
                UPLINK => format!("refused: network {} is internal, and {ip} is outside", self.network(vni)),
                LOOPBACK => format!("refused: {ip} is {holder}"),
                _ => format!("refused: {ip} is {holder}, to which network {} does not lead", self.network(vni)),
            };
        }
        match route.link() {
            UPLINK => format!("sent out of the cluster, to {ip}, under the host's address"),
            _ => format!("delivered to {holder} at {ip}"),
        }
    }

    fn holds(&self, key: &Key) -> bool {
        self.ground.dataplane.elements.contains_key(key)
    }

    fn data(&self, key: &Key) -> Option<&[u8]> {
        self.ground.dataplane.elements.get(key).map(Vec::as_slice)
    }

    /// The network of what comes from a device.
    fn vni_of(&self, link: &str) -> Option<u32> {
        let key = Key { set: SetName::Members, bytes: encode(&[Value::Name(link.to_owned())]) };
        decode(&[Field::Mark], self.data(&key)?).into_iter().find_map(|value| match value {
            Some(Value::Mark(vni)) => Some(vni),
            _ => None,
        })
    }

    /// Where connections to a service's address go, and who takes them.
    fn chosen(&self, vni: u32, ip: Ipv4Addr) -> Option<(Verdict, Vec<Ipv4Addr>)> {
        let key = Key { set: SetName::Vips, bytes: encode(&[Value::Mark(vni), Value::Address(ip)]) };
        let verdict = Verdict::decode(self.data(&key)?)?;
        let first = Key { set: SetName::Backends, bytes: encode(&[Value::Address(ip)]) };
        let slots = self.ground.dataplane.elements.range(first.clone()..);
        let slots = slots.take_while(|(key, _)| key.set == first.set && key.bytes.starts_with(&first.bytes));
        let mut behind = Vec::new();
        for (_, data) in slots {
            for value in decode(&[Field::Address], data) {
                if let Some(Value::Address(backend)) = value
                    && !behind.contains(&backend)
                {
                    behind.push(backend);
                }
            }
        }
        Some((verdict, behind))
    }

    /// The narrowest one.
    fn route(&self, ip: Ipv4Addr) -> Option<(Ipv4Net, Route)> {
        let routes = self.ground.dataplane.routes.iter().filter(|(to, _)| to.contains(&ip));
        routes.max_by_key(|(to, _)| to.prefix_len()).map(|(to, route)| (*to, route.clone()))
    }

    fn network(&self, vni: u32) -> String {
        let network = self.ground.picture.networks.values().find(|network| network.vni == vni);
        network.map_or_else(|| vni.to_string(), |network| network.name.clone())
    }

    /// Who has an address.
    fn holder(&self, ip: Ipv4Addr) -> String {
        for network in self.ground.picture.networks.values() {
            if let Some(endpoint) = network.endpoints.get(&ip) {
                let place = match endpoint.place {
                    Place::Here => "here".to_owned(),
                    Place::Node(node) => format!("behind {node}"),
                };
                return format!("task {} {place}", endpoint.task);
            }
            if let Some(vip) = network.vips.get(&ip) {
                return format!("the address of service {}", vip.service);
            }
            if network.subnet.contains(&ip) {
                return format!("nobody's on network {}", network.name);
            }
        }
        "of no network of this node".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::dataplane::compile;
    use crate::core::links::Underlay;
    use crate::core::picture::{Attachment, Attachments, Membership};
    use crate::core::plan::tests::view;
    use crate::core::uplink::Forwarding;

    /// `front` and `back` with a service `web` on `front`, whose tasks are t1 here, t2 and t3; the pod t1 is on both.
    fn two_networks() -> v1::NetView {
        let mut view = view(1);
        view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
        view.services.push(v1::ServiceView {
            id: "web".into(),
            name: "web".into(),
            mode: v1::EndpointMode::Vip.into(),
            vips: vec![v1::VipView { network_id: "net-a".into(), ip: "10.128.0.8".into(), names: vec!["web".into()] }],
            ..Default::default()
        });
        view.networks[1].names.clear();
        view.networks[1].endpoints[0].names.clear();
        view
    }

    fn way(view: &v1::NetView, networks: &[(&str, [u8; 4])], target: &str) -> String {
        let networks = networks.iter().map(|(id, ip)| Membership { network_id: (*id).to_owned(), ip: Ipv4Addr::from(*ip) }).collect();
        let attachments = Attachments::from([("t1".to_owned(), Attachment { networks, ..Attachment::default() })]);
        let (picture, problems) = Picture::parse(view);
        assert_eq!(problems, Vec::<String>::new());
        let underlay = Underlay { addr: Ipv4Addr::new(10, 90, 0, 101), overlay_mtu: 1450, forwarding: Forwarding::Host };
        let dataplane = compile(&picture, &attachments, &underlay);
        let sights = names::sights(&names::networks(&picture, &attachments), &attachments);
        let ground = Ground { picture: &picture, dataplane: &dataplane, sight: &sights["t1"] };
        assert_eq!(trace(ground, "t9", target), None, "a pod that is not here");
        let Trace { steps, verdict } = trace(ground, "t1", target).unwrap();
        steps.into_iter().chain([format!("=> {verdict}")]).collect::<Vec<_>>().join("\n")
    }

    const BOTH: [(&str, [u8; 4]); 2] = [("net-a", [10, 128, 0, 2]), ("net-b", [10, 128, 1, 9])];

    #[test]
    fn a_services_name_leads_to_its_address_and_that_to_each_of_its_endpoints() {
        let expected = "web is 10.128.0.8, by front.internal, back.internal
10.128.0.8 is sent from 10.128.0.2 by eth0, on network front
10.128.0.8 is the address of service web: goto r3 chooses one of 10.128.0.2 10.128.0.3 10.128.0.4
10.128.0.2 is task web.t1 here: route 10.128.0.2/32 on LINK
10.128.0.3 is task web.t2 behind 10.90.0.102: route 10.128.0.3/32 via 10.90.0.102 on v4097
10.128.0.4 is task web.t3 behind 10.90.0.102: route 10.128.0.4/32 via 10.90.0.102 on v4097
=> delivered to task web.t1 here at 10.128.0.2; or delivered to task web.t2 behind 10.90.0.102 at 10.128.0.3; or delivered to task web.t3 \
                        behind 10.90.0.102 at 10.128.0.4";
        let expected = expected.replace("LINK", &crate::core::links::veth_name("t1", "net-a"));
        assert_eq!(way(&two_networks(), &BOTH, "Web:80"), expected);
    }

    #[test]
    fn an_address_is_reached_by_the_interface_that_leads_to_it() {
        assert_eq!(
            way(&two_networks(), &BOTH, "10.128.1.2"),
            "10.128.1.2 is sent from 10.128.1.9 by eth1, on network back
10.128.1.2 is task web.t4 behind 10.90.0.103: route 10.128.1.2/32 via 10.90.0.103 on v4098
=> delivered to task web.t4 behind 10.90.0.103 at 10.128.1.2"
        );
        assert_eq!(
            way(&two_networks(), &BOTH[..1], "10.128.1.2"),
            "10.128.1.2 is sent from 10.128.0.2 by eth0, on network front
10.128.1.2 is task web.t4 behind 10.90.0.103: route 10.128.1.2/32 via 10.90.0.103 on v4098
=> refused: 10.128.1.2 is task web.t4 behind 10.90.0.103, to which network front does not lead"
        );
        assert_eq!(way(&two_networks(), &BOTH, "10.128.1.9"), "=> stays in the pod: 10.128.1.9 is its own, on eth1");
        assert_eq!(
            way(&two_networks(), &BOTH, "169.254.53.53:53"),
            "=> delivered to the resolver by eth0: it answers at port 53, and pings"
        );
    }

    #[test]
    fn what_is_nobodys_and_what_is_outside() {
        let sent = |ip: &str| format!("{ip} is sent from 10.128.0.2 by eth0, on network front");
        let last = |view: &v1::NetView, target: &str| {
            let way = way(view, &BOTH[..1], target);
            let (steps, verdict) = way.rsplit_once('\n').unwrap_or(("", &way));
            assert!(target.parse::<Ipv4Addr>().is_err() || steps.starts_with(&sent(target)), "{steps}");
            verdict.to_owned()
        };
        let mut view = two_networks();
        assert_eq!(last(&view, "10.128.0.77"), "=> refused: 10.128.0.77 is nobody's on network front");
        assert_eq!(last(&view, "192.0.2.1"), "=> sent out of the cluster, to 192.0.2.1, under the host's address");
        assert_eq!(last(&view, "10.90.0.103"), "=> refused: 10.90.0.103 is a node, and pods do not reach nodes");
        assert_eq!(last(&view, "example.com"), "=> example.com is no name of ours: the host's resolvers are asked for it");
        assert_eq!(last(&view, "wep"), "=> sent nowhere: there is no name wep in front.internal");
        view.networks[0].internal = true;
        assert_eq!(last(&view, "192.0.2.1"), "=> refused: network front is internal, and 192.0.2.1 is outside");
        for endpoint in &mut view.networks[0].endpoints {
            endpoint.serving = false;
        }
        assert_eq!(last(&view, "10.128.0.8"), "=> refused: nobody takes connections to the address of service web from network front");
        assert_eq!(last(&view, "web.t3"), "=> sent nowhere: web.t3 is a name of front.internal, and nobody serves under it");
    }
}
