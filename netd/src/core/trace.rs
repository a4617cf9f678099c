//! What becomes of a packet that a pod sends, step by step, in words.
//!
//! In: a picture, what the dataplane holds by it, what the pod sees of names; a name or an address. Out: the steps and a verdict. Goes the
//! way that the rules go (`rules::skeleton` has their order) over the same elements, for the first packet of a connection over TCP or UDP if
//! the target has a port, else for a ping. What another node's rules say of it there, by their elements, is not seen here. Never: sends one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::dataplane::Dataplane;
use super::flows::{PROTOCOL_ICMP, Transport};
use super::links::{Interface, LOOPBACK, RESOLVER, vtep_mac};
use super::names::{self, Answer, Sight};
use super::neighbours::Route;
use super::picture::{Picture, Place};
use super::rules::elements::{Field, Key, SetName, Spanned, Value, decode, encode};
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

/// The way of what the pod sends to the target; `None` if the pod is not here.
pub fn trace(ground: Ground<'_>, task_id: &str, target: Target<'_>) -> Option<Trace> {
    let pod = ground.dataplane.pods.get(task_id)?;
    let Target { host, aim } = target;
    let mut walk = Walk { ground, aim, is_six: false, steps: Vec::new() };
    let verdict = walk.begin(pod, host);
    Some(Trace { steps: walk.steps, verdict })
}

/// A name or an address, and what is sent there.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    host: &'a str,
    aim: Aim,
}

impl<'a> Target<'a> {
    /// Of a name or an address, which may end in a port: to that it is sent over `transport`, or TCP. Without a port it is a ping.
    pub fn parse(text: &'a str, transport: Option<Transport>) -> Result<Self, String> {
        // What has more colons is no name; an address of IPv6 before a port is in brackets.
        let halves = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        match (halves.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))), transport) {
            (Some((host, port)), _) => Ok(Self { host, aim: Aim { transport: Some(transport.unwrap_or(Transport::Tcp)), port } }),
            (None, None) => Ok(Self { host: text, aim: Aim::PING }),
            (None, Some(transport)) => Err(format!("a trace over {transport} needs a port, and {text:?} has none: write NAME:PORT")),
        }
    }
}

/// What of a packet does not depend on its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Aim {
    /// `None`: a ping.
    transport: Option<Transport>,
    port: u16,
}

impl Aim {
    /// Who may be pinged may be so whatever stands where others have ports.
    const PING: Self = Self { transport: None, port: 0 };

    /// As IP numbers it.
    fn protocol(self) -> u8 {
        self.transport.map_or(PROTOCOL_ICMP, Transport::number)
    }

    /// As keys of sets have it.
    fn key(self) -> [Value; 2] {
        [Value::Protocol(self.protocol()), Value::Port(self.port)]
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            None => write!(f, "pings"),
            Some(transport) => write!(f, "{transport} port {}", self.port),
        }
    }
}

/// How the rules refuse what is not over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// By the chain `refuse`, as who has no such port.
    Port,
    /// As by a firewall.
    Prohibited,
}

/// A packet as it comes from a pod.
#[derive(Debug, Clone, Copy)]
struct Packet {
    vni: u32,
    source: Ipv4Addr,
    aim: Aim,
}

struct Walk<'a> {
    ground: Ground<'a>,
    aim: Aim,
    /// Sent over IPv6.
    is_six: bool,
    steps: Vec<String>,
}

impl Walk<'_> {
    fn say(&mut self, step: String) {
        self.steps.push(step);
    }

    fn refused(&self, refusal: Refusal, why: impl fmt::Display) -> String {
        match (self.aim.transport, refusal) {
            (None | Some(Transport::Tcp), _) => format!("refused: {why}"),
            // Over IPv6 the rules go to `refuse` here too.
            (Some(Transport::Udp), Refusal::Prohibited) if !self.is_six => {
                format!("refused, as ICMP administratively prohibited: {why}")
            }
            (Some(Transport::Udp), Refusal::Port | Refusal::Prohibited) => format!("refused, as ICMP port unreachable: {why}"),
        }
    }

    /// What becomes of what is sent to an endpoint whose node is down.
    fn dead(&self, ip: Ipv4Addr, holder: &str) -> String {
        let end = match self.aim.transport {
            Some(Transport::Tcp) => "reset",
            Some(Transport::Udp) | None => "refused, as ICMP host unreachable",
        };
        format!("{end}: {ip} is {holder}, whose node is down and does not answer")
    }

    fn begin(&mut self, pod: &BTreeMap<String, Interface>, host: &str) -> String {
        if pod.is_empty() {
            return "sent nowhere: the pod has no network".to_owned();
        }
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(IpAddr::V4(ip)) => self.by_address(pod, ip),
            Ok(IpAddr::V6(ip6)) => self.by_address6(pod, ip6),
            Err(_) => self.by_name(pod, host),
        }
    }

    /// Everyone's IPv6 address goes where the IPv4 address does that it follows from, by sets and routes that are made alike.
    fn by_address6(&mut self, pod: &BTreeMap<String, Interface>, ip6: Ipv6Addr) -> String {
        let Some((name, interface)) = interface_to(pod, ip6.into()) else {
            return format!("sent nowhere: the pod has no route to {ip6}");
        };
        self.is_six = true;
        let ip = self.ground.picture.networks.values().find_map(|network| network.ip4(ip6.into()));
        match ip {
            Some(ip) => {
                self.say(format!("{ip6} goes as {ip} does, which is the same one's"));
                self.by_address(pod, ip)
            }
            None => self.outside6(name, interface, ip6),
        }
    }

    /// As the router's routes and the chain `forward` do with what is of no network.
    fn outside6(&mut self, name: &str, interface: &Interface, ip6: Ipv6Addr) -> String {
        let Some(vni) = self.vni_of(&interface.link) else {
            return format!("refused: {name} is on no network that this node knows");
        };
        self.say(format!("{ip6} is sent by {name}, on network {}", self.network(vni)));
        let Some((to, route)) = self.route(ip6.into()).filter(|(_, route)| route.link() == UPLINK) else {
            return self.refused(Refusal::Port, format!("this node has no way to {ip6}"));
        };
        self.say(format!("{ip6} is of no network of this node: route {to} {route}"));
        if self.holds(SetName::Entries6, &[Value::Address6(ip6)]) {
            return self.refused(Refusal::Port, format!("{ip6} is a node, of which pods reach nothing by IPv6"));
        }
        if !self.holds(SetName::Exits, &[Value::Mark(vni), Value::Name(UPLINK.to_owned())]) {
            return self.refused(Refusal::Port, format!("network {} is internal, and {ip6} is outside", self.network(vni)));
        }
        format!("sent out of the cluster, to {ip6}, under the host's address")
    }

    fn by_name(&mut self, pod: &BTreeMap<String, Interface>, host: &str) -> String {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let zones: Vec<&str> = self.ground.sight.networks.iter().map(|network| network.zone()).collect();
        let zones = zones.join(", ");
        match names::lookup(self.ground.sight, &name, names::Kind::Address) {
            Answer::Addresses(ips) => {
                let words: Vec<String> = ips.iter().map(Ipv4Addr::to_string).collect();
                self.say(format!("{name} is {}, by {zones}", words.join(" ")));
                self.each(&ips, |walk, ip| walk.by_address(pod, ip))
            }
            Answer::NoData => format!("sent nowhere: {name} is a name of {zones}, and nobody serves under it"),
            Answer::NoSuchName => format!("sent nowhere: there is no name {name} in {zones}"),
            Answer::Foreign => format!("{name} is no name of ours: the pod's own resolvers are asked for it, or the host's"),
            Answer::Refused => format!("sent nowhere: {name} is no name of ours, and others are not asked for a pod of internal networks"),
            // What is asked for is addresses.
            Answer::Pointer(_) | Answer::Ports(_) | Answer::Addresses6(_) => format!("sent nowhere: {name} has no addresses"),
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
        let Some((name, interface)) = interface_to(pod, ip.into()) else {
            return format!("sent nowhere: the pod has no route to {ip}");
        };
        if ip == RESOLVER {
            return format!("delivered to the resolver by {name}: it answers at port 53, and pings");
        }
        let Some(vni) = self.vni_of(&interface.link) else {
            return format!("refused: {name} is on no network that this node knows");
        };
        self.say(format!("{ip} is sent from {} by {name}, on network {}", interface.ip, self.network(vni)));
        if !self.holds(SetName::Sources, &[Value::Name(interface.link.clone()), Value::Address(interface.ip)]) {
            return format!("dropped: {} is not known as the address of {name}", interface.ip);
        }
        let packet = Packet { vni, source: interface.ip, aim: self.aim };
        if self.holds(SetName::Entries, &[Value::Address(ip)]) {
            return self.at_node(packet, ip);
        }
        match self.chosen(vni, ip) {
            Some((verdict, behind)) => {
                let what = self.holder(ip);
                self.say_choice(ip, &what, &verdict, &behind);
                self.each(&behind, |walk, backend| walk.forward(packet, backend))
            }
            None => self.forward(packet, ip),
        }
    }

    fn say_choice(&mut self, ip: Ipv4Addr, what: &str, verdict: &Verdict, behind: &[Ipv4Addr]) {
        let words: Vec<String> = behind.iter().take(FOLLOWED_MAX).map(Ipv4Addr::to_string).collect();
        let more = if behind.len() > FOLLOWED_MAX { " …" } else { "" };
        self.say(format!("{ip} is {what}: {verdict} chooses one of {}{more}", words.join(" ")));
    }

    /// As the chains `tracked`, `balance` and `forward` do with what is sent to a node's address.
    fn at_node(&mut self, packet: Packet, ip: Ipv4Addr) -> String {
        let Packet { vni, source, aim } = packet;
        let client = [&aim.key()[..], &[Value::Address(source)]].concat();
        if self.holds(SetName::Guarded, &aim.key()) && !self.spans(SetName::Allowed, &client) {
            return self.refused(Refusal::Port, format!("{source} is not among the clients that {aim} is published for"));
        }
        let Some((verdict, behind)) = self.published(aim) else {
            return self.refused(Refusal::Port, format!("{ip} is a node, and pods reach nothing of nodes but published ports"));
        };
        let backends: Vec<Ipv4Addr> = behind.keys().copied().collect();
        self.say_choice(ip, &format!("a node with a published {aim}"), &verdict, &backends);
        if !self.holds(SetName::Outward, &[Value::Mark(vni)]) {
            return self.refused(Refusal::Port, format!("network {} is internal, and {ip} is outside", self.network(vni)));
        }
        self.each(&backends, |walk, backend| {
            let port = behind.get(&backend).copied().unwrap_or(aim.port);
            walk.by_port(Packet { aim: Aim { port, ..aim }, ..packet }, backend)
        })
    }

    /// What becomes of what is sent on to a backend of a published port.
    fn by_port(&mut self, packet: Packet, ip: Ipv4Addr) -> String {
        let Packet { vni: _, source, aim } = packet;
        let holder = self.holder(ip);
        if self.holds(SetName::Dead, &[Value::Address(ip)]) {
            return self.dead(ip, &holder);
        }
        let key = [&[Value::Address(ip)][..], &aim.key(), &[Value::Address(source)]].concat();
        if self.holds(SetName::Shielded, &[Value::Address(ip)]) && !self.spans(SetName::AllowIn, &key) {
            let why = format!("by its network's policy {source} does not come to {aim} of {holder} by a published port");
            return self.refused(Refusal::Port, why);
        }
        match self.home(ip) {
            Some((table, route)) => self.say(format!("{ip} is {holder}: route of table {table} {route}")),
            None => match self.route(ip.into()) {
                Some((to, route)) => self.say(format!("{ip} is {holder}: route {to} {route}")),
                None => return format!("refused: there is no route to {ip}"),
            },
        }
        format!("delivered to {holder} at {ip}, {aim}")
    }

    /// As the chain `forward` does.
    fn forward(&mut self, packet: Packet, ip: Ipv4Addr) -> String {
        let Packet { vni, source, aim } = packet;
        let holder = self.holder(ip);
        if self.holds(SetName::Dead, &[Value::Address(ip)]) {
            return self.dead(ip, &holder);
        }
        let Some((to, route)) = self.route(ip.into()) else { return format!("refused: there is no route to {ip}") };
        self.say(format!("{ip} is {holder}: route {to} {route}"));
        if self.holds(SetName::VipList, &[Value::Address(ip)]) {
            return self.refused(Refusal::Port, format!("nobody takes connections to {holder} from network {}", self.network(vni)));
        }
        let key = [&[Value::Address(source), Value::Address(ip)][..], &aim.key()].concat();
        if self.holds(SetName::Policed, &[Value::Mark(vni)]) && route.link() != UPLINK && !self.spans(SetName::Allow, &key) {
            let why = format!("by the policy of network {} {source} does not speak with {holder} by {aim}", self.network(vni));
            return self.refused(Refusal::Prohibited, why);
        }
        if route.link() == UPLINK && self.spans(SetName::Inside, &[Value::Protocol(aim.protocol()), Value::Address(ip)]) {
            let why = format!("{ip} is {holder}, and of what networks' addresses are chosen from, or of a link");
            return self.refused(Refusal::Prohibited, why);
        }
        if !self.holds(SetName::Exits, &[Value::Mark(vni), Value::Name(route.link().to_owned())]) {
            let why = match route.link() {
                UPLINK => format!("network {} is internal, and {ip} is outside", self.network(vni)),
                LOOPBACK => format!("{ip} is {holder}"),
                _ => format!("{ip} is {holder}, to which network {} does not lead", self.network(vni)),
            };
            return self.refused(Refusal::Prohibited, why);
        }
        if route.link() == UPLINK {
            return format!("sent out of the cluster, to {ip}, under the host's address");
        }
        if let Route::Via { link, gateway: IpAddr::V4(gateway) } = &route
            && self.ground.dataplane.host.sealed.contains(&vni)
        {
            let forwards = &self.ground.dataplane.forwards;
            match forwards.iter().find(|forward| forward.link == *link && forward.mac == vtep_mac(*gateway)) {
                Some(forward) => self.say(format!("network {} is encrypted: by the tunnel to {}", self.network(vni), forward.node)),
                None => return format!("dropped: network {} is encrypted, and there is no tunnel to {gateway}", self.network(vni)),
            }
        }
        format!("delivered to {holder} at {ip}")
    }

    fn holds(&self, set: SetName, key: &[Value]) -> bool {
        self.data(set, key).is_some()
    }

    fn data(&self, set: SetName, key: &[Value]) -> Option<&[u8]> {
        self.ground.dataplane.elements.get(&Key { set, bytes: encode(key) }).map(Vec::as_slice)
    }

    /// Whether a set of intervals has one that the key is in.
    fn spans(&self, set: SetName, key: &[Value]) -> bool {
        let keys = self.ground.dataplane.elements.keys().filter(|key| key.set == set);
        Spanned::new(keys).meets(&Key { set, bytes: [encode(key), encode(key)].concat() })
    }

    /// The data of the elements of a map whose keys begin so.
    fn all(&self, set: SetName, begin: &[Value], fields: &[Field]) -> Vec<Vec<Value>> {
        let first = Key { set, bytes: encode(begin) };
        let elements = self.ground.dataplane.elements.range(first.clone()..);
        let elements = elements.take_while(|(key, _)| key.set == first.set && key.bytes.starts_with(&first.bytes));
        elements.map(|(_, data)| decode(fields, data).into_iter().flatten().collect()).collect()
    }

    /// A mark that a map has for a key.
    fn mark(&self, set: SetName, key: &[Value]) -> Option<u32> {
        decode(&[Field::Mark], self.data(set, key)?).into_iter().find_map(|value| match value {
            Some(Value::Mark(mark)) => Some(mark),
            _ => None,
        })
    }

    /// The network of what comes from a device.
    fn vni_of(&self, link: &str) -> Option<u32> {
        self.mark(SetName::Members, &[Value::Name(link.to_owned())])
    }

    /// Where connections to a service's address go, and who takes them.
    fn chosen(&self, vni: u32, ip: Ipv4Addr) -> Option<(Verdict, Vec<Ipv4Addr>)> {
        let verdict = Verdict::decode(self.data(SetName::Vips, &[Value::Mark(vni), Value::Address(ip)])?)?;
        let mut behind = Vec::new();
        for data in self.all(SetName::Backends, &[Value::Address(ip)], &[Field::Address]) {
            if let [Value::Address(backend)] = data[..]
                && !behind.contains(&backend)
            {
                behind.push(backend);
            }
        }
        Some((verdict, behind))
    }

    /// Where connections to a published port go, and who takes them at which ports.
    fn published(&self, aim: Aim) -> Option<(Verdict, BTreeMap<Ipv4Addr, u16>)> {
        let verdict = Verdict::decode(self.data(SetName::Ports, &aim.key())?)?;
        let all = self.all(SetName::Behind, &aim.key(), &[Field::Address, Field::Port]);
        let backend = |data: Vec<Value>| match data[..] {
            [Value::Address(ip), Value::Port(port)] => Some((ip, port)),
            _ => None,
        };
        Some((verdict, all.into_iter().filter_map(backend).collect()))
    }

    /// The table and the route by which a published port's backend on another node is reached.
    fn home(&self, ip: Ipv4Addr) -> Option<(u32, Route)> {
        let mark = self.mark(SetName::Homes, &[Value::Address(ip)])?;
        let mut selectors = self.ground.dataplane.selectors.iter().filter(|selector| !selector.is_six());
        let selector = selectors.find(|selector| mark & selector.mask == selector.mark)?;
        let route = self.ground.dataplane.detours.get(&selector.table)?;
        Some((selector.table, route.clone()))
    }

    /// The narrowest one.
    fn route(&self, ip: IpAddr) -> Option<(IpNet, Route)> {
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
                let task = if endpoint.task.is_empty() { "that has ended" } else { endpoint.task.as_str() };
                return format!("task {task} {}", place_in_words(endpoint.place));
            }
            if let Some(vip) = network.vips.get(&ip) {
                return format!("the address of service {}", vip.service);
            }
            if network.subnet.contains(&ip) {
                return format!("nobody's on network {}", network.name);
            }
        }
        for published in &self.ground.picture.published {
            if let Some(backend) = published.backends.iter().find(|backend| backend.ip == ip) {
                return format!("a task of service {} {}", published.service, place_in_words(backend.place));
            }
        }
        "of no network of this node".to_owned()
    }
}

/// That of a pod by whose route an address is reached, the narrowest one, and its name.
fn interface_to(pod: &BTreeMap<String, Interface>, ip: IpAddr) -> Option<(&String, &Interface)> {
    let ways = pod.iter().flat_map(|(name, interface)| interface.routes.iter().map(move |route| (route, name, interface)));
    let narrowest = ways.filter(|(route, ..)| route.contains(&ip)).max_by_key(|(route, ..)| route.prefix_len());
    narrowest.map(|(_, name, interface)| (name, interface))
}

fn place_in_words(place: Place) -> String {
    match place {
        Place::Here => "here".to_owned(),
        Place::Node(node) => format!("behind {node}"),
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
