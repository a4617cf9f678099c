//! All of a node's network as text, an entry for each thing, in one form for what is wanted and for what is held: who compares the two
//! need not know what any of it is.
//!
//! In: dataplanes, what pods see of names, pictures and pods. Out: entries, each alone of its kind by its text, with what it is like as its
//! value. What is new in a dataplane does not compile until it is here; new sets and new rules are here by themselves. Never: compares.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::dataplane::Dataplane;
use super::encryption::{TUNNELLED, Tunnel};
use super::flows::Flow;
use super::ingress::INGRESS;
use super::links::{Interface, LOOPBACK, Link, LinkKind, RESOLVER};
use super::names::Sight;
use super::picture::{Attachments, Picture, Place};
use super::rules::Outline;
use super::rules::elements::in_words;
use super::uplink::{Forwards6, Guards, HOST_END, HostEnd, HostPlane, HostRules, Passage};

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// In the router namespace, and how that is set.
    Device,
    /// A pod's namespace, or an interface in it.
    Pod,
    Neighbour,
    Forward,
    Route,
    /// Of packets to tables of routes.
    Selector,
    Element,
    Rule,
    /// What is ours on the host.
    Host,
    /// An address with the task that has it here.
    Endpoint,
    /// What DNS answers, and to whom.
    Name,
    /// A tracked connection that leads nowhere any more.
    Flow,
}

impl Kind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Pod => "pod",
            Self::Neighbour => "neighbour",
            Self::Forward => "forward",
            Self::Route => "route",
            Self::Selector => "selector",
            Self::Element => "element",
            Self::Rule => "rule",
            Self::Host => "host",
            Self::Endpoint => "endpoint",
            Self::Name => "name",
            Self::Flow => "flow",
        }
    }
}

/// One thing of a node's network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub kind: Kind,
    /// Which one.
    pub text: String,
    /// What it is like; empty where being there is all.
    pub value: String,
}

impl Entry {
    fn new(kind: Kind, text: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind, text: text.into(), value: value.into() }
    }
}

/// What a dataplane is made of.
pub fn dataplane(dataplane: &Dataplane) -> Vec<Entry> {
    let Dataplane {
        resolver,
        forwarding,
        plain_lookup,
        rules,
        elements,
        links,
        neighbours,
        forwards,
        routes,
        detours,
        selectors,
        ingress,
        pods,
        host,
    } = dataplane;
    let mut entries = Vec::new();
    if *resolver {
        entries.push(Entry::new(Kind::Device, LOOPBACK, format!("up with {RESOLVER}")));
    }
    if *forwarding {
        entries.push(Entry::new(Kind::Device, "all", "forwarding, strict about what comes by the uplink"));
    }
    entries.extend(links.iter().map(|(name, link)| Entry::new(Kind::Device, name, device(link))));
    entries.extend(ingress.map(|ip| Entry::new(Kind::Device, format!("{INGRESS}, its address"), format!("{ip}, for any source"))));
    for (task, pod) in pods {
        entries.push(Entry::new(Kind::Pod, task, ""));
        entries.extend(pod.iter().map(|(name, end)| Entry::new(Kind::Pod, format!("{task}/{name}"), interface(end))));
    }
    entries.extend(neighbours.iter().map(|((link, ip), mac)| Entry::new(Kind::Neighbour, format!("{ip} on {link}"), mac.to_string())));
    entries.extend(forwards.iter().map(|forward| Entry::new(Kind::Forward, forward.to_string(), "")));
    entries.extend(routes.iter().map(|(to, route)| Entry::new(Kind::Route, to.to_string(), route.to_string())));
    entries.extend(detours.iter().map(|(table, route)| Entry::new(Kind::Route, format!("of table {table}"), route.to_string())));
    entries.extend(selectors.iter().map(|selector| Entry::new(Kind::Selector, selector.to_string(), "")));
    if *plain_lookup {
        entries.push(Entry::new(Kind::Selector, "the kernel's own", "alone besides ours"));
    }
    entries.extend(elements.iter().map(|(key, data)| {
        let set = key.set.set();
        let words = in_words(set, &key.bytes, data);
        let (key, value) = words.split_once(" : ").unwrap_or((words.as_str(), ""));
        Entry::new(Kind::Element, format!("{} {{ {key} }}", set.name), value)
    }));
    entries.extend(table(rules));
    entries.extend(on_host(host));
    entries
}

fn device(link: &Link) -> String {
    let (kind, learning) = match link.kind {
        LinkKind::Vxlan { learning, .. } => ("vxlan", learning),
        LinkKind::Veth => ("veth", false),
        LinkKind::Uplink => ("uplink", false),
    };
    format!("{kind} {link}{}", if learning { " learning" } else { "" })
}

fn interface(end: &Interface) -> String {
    let Interface { link, mac, mtu, up, ip, ip6, routes, gateway } = end;
    let routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
    let state = if *up { "up" } else { "down" };
    let ip6 = ip6.map(|ip6| format!(" {ip6}")).unwrap_or_default();
    format!("{ip}{ip6} to {} by {gateway}, at {link} mac {mac} mtu {mtu} {state}", routes.join(" "))
}

/// In the order of the rules, which is part of what they say.
fn table(rules: &Outline) -> Vec<Entry> {
    let Outline { sets, chains, rules } = rules;
    let sets = sets.iter().map(|set| Entry::new(Kind::Rule, format!("set {set}"), ""));
    let chains = chains.iter().map(|chain| Entry::new(Kind::Rule, format!("chain {chain}"), ""));
    sets.chain(chains).chain(rules.iter().map(|rule| Entry::new(Kind::Rule, rule, ""))).collect()
}

fn on_host(host: &HostPlane) -> Vec<Entry> {
    let HostPlane { rules, peers, sealed, fenced, tunnels, ports, ports6, forwarding, forwarding6, passage, passage6, end } = host;
    let rules = match rules {
        HostRules::Other => "others than netd's",
        HostRules::Ours(Guards { four: false, six: false }) => "for the uplink",
        HostRules::Ours(Guards { four: true, six: false }) => "for the uplink, and nothing else is forwarded",
        HostRules::Ours(Guards { four: false, six: true }) => "for the uplink, and nothing else of IPv6 is forwarded",
        HostRules::Ours(Guards { four: true, six: true }) => "for the uplink, and nothing else is forwarded, nor of IPv6",
    };
    let words = |passage: &Passage| match passage {
        Passage::Open => "open",
        Passage::Docker | Passage::Shut => "shut",
    };
    let mut entries = vec![Entry::new(Kind::Host, "rules", rules), Entry::new(Kind::Host, "way through iptables", words(passage))];
    if *forwarding {
        entries.push(Entry::new(Kind::Host, "forwarding", ""));
    }
    match forwarding6 {
        Forwards6::No => {}
        Forwards6::Deaf => entries.push(Entry::new(Kind::Host, "forwarding of IPv6", "")),
        Forwards6::Hearing => entries.push(Entry::new(Kind::Host, "forwarding of IPv6", "routers are heard")),
    }
    if end.is_some_and(|end| end.six) {
        entries.push(Entry::new(Kind::Host, "way through ip6tables", words(passage6)));
    }
    entries.extend(peers.iter().map(|peer| Entry::new(Kind::Host, format!("peer {peer}"), "")));
    entries.extend(ports.iter().map(|opening| Entry::new(Kind::Host, opening.to_string(), "")));
    entries.extend(ports6.iter().map(|opening| Entry::new(Kind::Host, format!("{opening} of IPv6"), "")));
    entries.extend(sealed.iter().map(|vni| Entry::new(Kind::Host, format!("network {vni}"), "not in clear")));
    if *fenced {
        entries.push(Entry::new(Kind::Host, format!("route {TUNNELLED}"), "nowhere"));
    }
    for (name, tunnel) in tunnels {
        let Tunnel { epoch, end, peers } = tunnel;
        let routed = if end.routed { "" } else { ", without its route" };
        entries.push(Entry::new(Kind::Host, format!("tunnel {name}"), format!("of epoch {epoch}, {end}{routed}")));
        entries.extend(peers.iter().map(|(key, peer)| Entry::new(Kind::Host, format!("peer {key} of {name}"), peer.to_string())));
    }
    if let Some(HostEnd { mac, mtu, up, addressed, six }) = end {
        let (state, addresses) = (if *up { "up" } else { "down" }, if *addressed { "with" } else { "without" });
        let six = if *six { ", and of IPv6" } else { "" };
        entries.push(Entry::new(Kind::Host, HOST_END, format!("mac {mac} mtu {mtu} {state}, {addresses} addresses{six}")));
    }
    entries
}

/// What pods, by task id, are answered, and who is asked for them where that is not us: resolvers of their own, if they have any.
pub fn zone<'a>(askers: impl IntoIterator<Item = (&'a str, &'a Sight, &'a [SocketAddr])>) -> Vec<Entry> {
    let mut entries = BTreeSet::new();
    let mut told = BTreeSet::new();
    for (pod, Sight { networks, inside }, resolvers) in askers {
        let zones: Vec<&str> = networks.iter().map(|network| network.zone()).collect();
        entries.insert(Entry::new(Kind::Name, format!("search of {pod}"), zones.join(" ")));
        if !resolvers.is_empty() {
            let resolvers: Vec<String> = resolvers.iter().map(SocketAddr::to_string).collect();
            entries.insert(Entry::new(Kind::Name, format!("resolvers of {pod}"), resolvers.join(" ")));
        }
        let kept: Vec<String> = inside.iter().map(Ipv4Net::to_string).collect();
        entries.insert(Entry::new(Kind::Name, "addresses of which others are not asked", kept.join(" ")));
        for network in networks.iter().filter(|network| told.insert(Arc::as_ptr(network))) {
            entries.extend(network.answers().map(|(name, answer)| Entry::new(Kind::Name, name, answer)));
        }
    }
    entries.into_iter().collect()
}

/// The addresses that a picture places here: those that serve, and of the others those whose pods are attached.
pub fn endpoints_wanted(picture: &Picture, attachments: &Attachments) -> Vec<Entry> {
    let is_attached = |task: &str| attachments.get(task).is_some_and(|pod| pod.lingers.is_none());
    let mut entries = Vec::new();
    for network in picture.networks.values().filter(|network| !network.leaving) {
        let here = network.endpoints.iter().filter(|(_, endpoint)| endpoint.place == Place::Here);
        for (ip, endpoint) in here.filter(|(_, endpoint)| endpoint.serving || is_attached(&endpoint.task_id)) {
            entries.push(Entry::new(Kind::Endpoint, format!("{ip} on {}", network.name), endpoint.task_id.as_str()));
        }
    }
    entries
}

/// The addresses of the pods here.
pub fn endpoints_held(picture: &Picture, attachments: &Attachments) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (task, pod) in attachments.iter().filter(|(_, pod)| pod.lingers.is_none()) {
        for membership in &pod.networks {
            let id = &membership.network_id;
            let network = picture.networks.get(id).map_or(id, |network| &network.name);
            entries.push(Entry::new(Kind::Endpoint, format!("{} on {network}", membership.ip), task));
        }
    }
    entries
}

/// Connections that lead nowhere any more.
pub fn flows(stale: &[Flow]) -> Vec<Entry> {
    stale.iter().map(|flow| Entry::new(Kind::Flow, flow.to_string(), "")).collect()
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::dataplane::compile;
    use crate::core::fixtures::{balanced, encrypted, numbered, published, t1_attached, underlay};
    use crate::core::names;
    use crate::core::uplink::{Forwarding, inside};

    /// One network with a service's address, t1 here and t2 behind n2.
    fn small() -> (Picture, Attachments) {
        let mut wire = balanced(1);
        wire.networks.truncate(1);
        wire.networks[0].endpoints.truncate(2);
        let http = v1::Port { name: "http".into(), protocol: v1::Protocol::Tcp.into(), target: 80, ..Default::default() };
        wire.services[0].ports.push(http);
        (Picture::parse(&wire).0, t1_attached())
    }

    fn lines(entries: &[Entry]) -> Vec<String> {
        let line = |Entry { kind, text, value }: &Entry| match value.as_str() {
            "" => format!("{} {text}", kind.word()),
            value => format!("{} {text} | {value}", kind.word()),
        };
        entries.iter().map(line).collect()
    }

    #[test]
    fn everything_of_a_dataplane_has_a_line() {
        let (picture, attachments) = small();
        let mut plane = compile(&picture, &attachments, &underlay(Forwarding::Host));
        // Rules have texts of their own.
        plane.rules.sets.retain(|set| set.starts_with("vips"));
        plane.rules.chains.retain(|chain| chain.starts_with("leave"));
        plane.rules.rules.retain(|rule| rule.starts_with("source: iifname p* iifname"));
        let link = crate::core::links::veth_name("t1", "net-a");
        let expected = format!(
            "device lo | up with 169.254.53.53
device all | forwarding, strict about what comes by the uplink
device {link} | veth mac 02:72:00:00:00:01 mtu 1450 up
device up | uplink mac 02:72:00:00:00:02 mtu 1450 up
device v4097 | vxlan vni 4097 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
pod t1
pod t1/eth0 | 10.128.0.2 to 0.0.0.0/0 by 02:72:00:00:00:01, at {link} mac 02:70:0a:80:00:02 mtu 1450 up
neighbour 10.128.0.2 on {link} | 02:70:0a:80:00:02
neighbour 10.90.0.102 on v4097 | 02:76:0a:5a:00:66
forward 02:76:0a:5a:00:66 to 10.90.0.102 on v4097
route 0.0.0.0/0 | via 169.254.54.1 on up
route 10.128.0.0/24 | on lo
route 10.128.0.2/32 | on {link}
route 10.128.0.3/32 | via 10.90.0.102 on v4097
selector the kernel's own | alone besides ours
rule set vips key 8 data 0 flags 8
rule set vips6 key 20 data 0 flags 8
rule chain leave nat hook 4 priority 100 policy 1
rule source: iifname p* iifname . ip saddr != @sources drop
host rules | for the uplink
host way through iptables | open
host forwarding
host peer 10.90.0.102
host rcl-up | mac 02:72:00:00:00:03 mtu 1450 up, with addresses"
        );
        let (elements, others): (Vec<Entry>, Vec<Entry>) = dataplane(&plane).into_iter().partition(|entry| entry.kind == Kind::Element);
        assert_eq!(lines(&others).join("\n"), expected);
        let elements = lines(&elements);
        for line in [
            format!("element sources {{ {link} . 10.128.0.2 }}"),
            format!("element members {{ {link} }} | 4097"),
            "element backends { 10.128.0.8 . 1 } | 10.128.0.3".to_owned(),
            "element vips { 4097 . 10.128.0.8 } | goto r2".to_owned(),
            "element hairpin { 10.128.0.2 . 10.128.0.2 }".to_owned(),
        ] {
            assert!(elements.contains(&line), "{line} is not among {elements:#?}");
        }
    }

    #[test]
    fn everything_that_published_ports_take_has_a_line() {
        let (picture, _) = Picture::parse(&numbered(1, vec![published(v1::IngressPolicy::Spread)]));
        let all = lines(&dataplane(&compile(&picture, &t1_attached(), &underlay(Forwarding::Host))));
        for line in [
            "device ing | vxlan vni 4095 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up",
            "device ing, its address | 169.254.192.1, for any source",
            "neighbour 10.90.0.102 on ing | 02:76:0a:5a:00:66",
            "forward 02:76:0a:5a:00:66 to 10.90.0.102 on ing",
            "route of table 100002 | via 10.90.0.102 on ing",
            "selector mark 0x1000002/0xffffffff to table 100002 at 1000",
            "element behind { 6 . 8080 . 0 } | 10.128.0.2 . 80",
            "host tcp port 8080",
        ] {
            assert!(all.iter().any(|found| found == line), "{line} is not among {all:#?}");
        }
    }

    #[test]
    fn everything_of_an_encrypted_network_has_a_line() {
        let mut plane = compile(&Picture::parse(&encrypted("net-b")).0, &Attachments::new(), &underlay(Forwarding::Host));
        let all = lines(&dataplane(&plane));
        for line in [
            "device v4098 | vxlan vni 4098 from 0.0.0.0 port 4789 mac 02:76:0a:5a:00:65 mtu 1390 up",
            "forward 02:76:0a:5a:00:67 to 169.254.96.3 on v4098",
            "host network 4098 | not in clear",
            "host peer 169.254.96.3",
            "host peer 31313131 of rcl-wg1 | 169.254.96.3 at 10.90.0.103:51821",
            "host route 169.254.64.0/18 | nowhere",
            "host tunnel rcl-wg1 | of epoch 1, 169.254.96.1 port 51821 mtu 1440 up",
        ] {
            assert!(all.iter().any(|found| found == line), "{line} is not among {all:#?}");
        }
        plane.host.tunnels.values_mut().for_each(|tunnel| tunnel.end.routed = false);
        let line = "host tunnel rcl-wg1 | of epoch 1, 169.254.96.1 port 51821 mtu 1440 up, without its route";
        assert!(lines(&dataplane(&plane)).iter().any(|found| found == line));
    }

    #[test]
    fn names_are_told_once_with_what_they_are_answered_with() {
        let (picture, attachments) = small();
        let names = names::networks(&picture, &attachments);
        let sights = names::sights(&names, &attachments, inside(&picture));
        let own: [SocketAddr; 1] = ["192.0.2.53:53".parse().unwrap()];
        let twice = sights.iter().chain(&sights).map(|(task, sight)| (task.as_str(), sight, &own[..]));
        assert_eq!(
            lines(&zone(twice)),
            [
                "name 10.128.0.2 | web.t1.front.internal",
                "name 10.128.0.3 | web.t2.front.internal",
                "name 10.128.0.8 | web.front.internal",
                "name _http._tcp.web.front.internal | 10.128.0.2:80 10.128.0.3:80",
                "name addresses of which others are not asked | 10.128.0.0/9 169.254.0.0/16",
                "name resolvers of t1 | 192.0.2.53:53",
                "name search of t1 | front.internal",
                "name t1.web.front.internal | 10.128.0.2",
                "name t2.web.front.internal | 10.128.0.3",
                "name web.front.internal | 10.128.0.8",
                "name web.n1.node.front.internal | 10.128.0.2",
                "name web.n2.node.front.internal | 10.128.0.3",
                "name web.t1.front.internal | 10.128.0.2",
                "name web.t2.front.internal | 10.128.0.3",
            ]
        );
    }

    #[test]
    fn an_endpoint_that_serves_is_to_be_attached_and_one_that_lingers_is_nobodys() {
        let (picture, mut attachments) = small();
        let both = |attachments: &Attachments| {
            [endpoints_wanted(&picture, attachments), endpoints_held(&picture, attachments)].map(|entries| lines(&entries).join(", "))
        };
        assert_eq!(both(&attachments), ["endpoint 10.128.0.2 on front | t1", "endpoint 10.128.0.2 on front | t1"]);
        attachments.values_mut().for_each(|pod| pod.lingers = Some(1));
        assert_eq!(both(&attachments), ["endpoint 10.128.0.2 on front | t1", ""]);
    }
}
