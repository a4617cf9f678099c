//! A service's face on its networks (how its name is answered, at which ports it is reached), and what nodes and the cluster say of theirs.
//!
//! Parsed once: a range of ports lies within 1 to 65535, and what belongs to published ports cannot be said of others.

mod node;
mod policy;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::node::{HeldPort, NodeNetwork, WireguardKey};
pub use self::policy::{Allow, NetworkPolicy, Peer, PolicyPort};

/// Longest that a CIDR is as text, in bytes.
const CIDR_BYTES: usize = 40;

/// The bits of the prefix of a network's IPv6 addresses: of those behind, the last 32 are the IPv4 address, and the others zero.
pub const PREFIX6: u8 = 64;

/// Who has an IPv4 address of a network has this IPv6 address of it too.
pub fn address6(subnet6: Ipv6Net, ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet6.network().to_bits() | u128::from(ip.to_bits()))
}

/// The IPv4 address of who has an IPv6 address, if the network has such a one.
pub fn address4(subnet6: Ipv6Net, ip6: Ipv6Addr) -> Option<Ipv4Addr> {
    let ip = u32::try_from(ip6.to_bits() & u128::from(u64::MAX)).ok().map(Ipv4Addr::from_bits)?;
    (address6(subnet6, ip) == ip6).then_some(ip)
}

/// What a service's name stands for in DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address, balanced over the tasks.
    #[default]
    Vip,
    /// The tasks' addresses.
    Dnsrr,
}

/// Which task of a service a connection comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// Any.
    #[default]
    None,
    /// The one that the client's address came to before, as long as it is there.
    Client,
}

/// Reads what is written as text; what is wrong with it is told where it stands.
struct Text<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = String>> serde::de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// The same of what may also be written as a number.
struct Number<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = String>> serde::de::Visitor<'_> for Number<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// How long an address is not given to another task when its task has ended: nodes that are slow to hear of it, and clients that remember
/// it, are past it by then.
pub const REST_MS: u64 = 60_000;
/// Ends of rest are met at whole seconds, so that a plan takes many together.
const REST_STEP_MS: u64 = 1000;

/// When an address that was given up at a time has rested; both in milliseconds since 1970.
pub fn rested_ms(since_ms: u64) -> u64 {
    since_ms.saturating_add(REST_MS).div_ceil(REST_STEP_MS).saturating_mul(REST_STEP_MS)
}

/// The pods' resolver and gateway, the same on every node: it cannot be asked for what it asks others.
const OWN_RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// The address of a resolver that a node may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResolverAddress(IpAddr);

impl ResolverAddress {
    /// The address itself.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for ResolverAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl FromStr for ResolverAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip = text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && *ip != OWN_RESOLVER);
        ip.map(Self).ok_or_else(|| format!("{text:?} is no address of a resolver"))
    }
}

impl Serialize for ResolverAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResolverAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("the address of a resolver", PhantomData))
    }
}

/// Where a name leads that containers know without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    Ip(IpAddr),
    /// Written `host-gateway`: the router of the node on which they run.
    Gateway,
}

impl HostAddress {
    /// The address itself.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Ip(ip) => ip,
            Self::Gateway => OWN_RESOLVER.into(),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => fmt::Display::fmt(ip, formatter),
            Self::Gateway => formatter.write_str("host-gateway"),
        }
    }
}

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<IpAddr>()) {
            ("host-gateway", _) => Ok(Self::Gateway),
            (_, Ok(ip)) => Ok(Self::Ip(ip)),
            (_, Err(_)) => Err(format!("{text:?} is no address: write an IP, or host-gateway")),
        }
    }
}

impl Serialize for HostAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("an IP address, or host-gateway", PhantomData))
    }
}

/// What goes through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl Protocol {
    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| format!("{text:?} is neither tcp nor udp"))
    }
}

/// Ports in a row, one at least; written `80` or `8000-8009`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// `count` ports from `first` on; `None` when one of them is none, or there is none.
    pub fn new(first: u16, count: u16) -> Option<Self> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        (first > 0).then_some(Self { first, last })
    }

    /// All from `first` to `last`; `None` when one of them is none, or there is none.
    pub fn between(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many there are.
    pub fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// Each of them.
    pub fn all(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    fn counted(self) -> String {
        if self.count() == 1 { format!("{self} is 1 port") } else { format!("{self} are {} ports", self.count()) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(formatter, "{first}") } else { write!(formatter, "{first}-{last}") }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            let port = text.parse::<u16>().ok().filter(|port| *port > 0);
            port.ok_or_else(|| format!("{text:?} is not a port: write a number from 1 to 65535"))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if last < first {
            return Err(format!("{text} is no range of ports: write {last}-{first}"));
        }
        Ok(Self { first, last })
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last { serializer.serialize_u16(self.first) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Number("a port such as 80, or a range such as 8000-8009", PhantomData))
    }
}

/// Which tasks a node sends to what comes to one of its published ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IngressPolicy {
    /// Its own; all when it has none.
    #[default]
    Mesh,
    /// All.
    Spread,
    /// Its own.
    Local,
}

/// Where a published port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishMode {
    /// At every node.
    Ingress(IngressPolicy),
    /// At the nodes that have a task of the service, for that task.
    Host,
}

/// How ports are reached from outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// At the nodes; as many as there are in the containers.
    pub ports: Ports,
    pub mode: PublishMode,
    /// Whose addresses may; none: everyone's.
    pub allow_from: Vec<IpNet>,
}

/// Ports of a service; written `[PUBLISHED:]TARGET[/udp]`, or with all that can be said of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// In DNS, of SRV records; empty: none.
    pub name: String,
    pub protocol: Protocol,
    /// At which the containers listen.
    pub target: Ports,
    pub published: Option<Published>,
}

impl Port {
    /// Bytes of its texts.
    pub fn text_bytes(&self) -> usize {
        self.name.len() + self.published.as_ref().map_or(0, |published| published.allow_from.len() * CIDR_BYTES)
    }

    /// The nodes' ports at which it is reached from outside, and whether it is so at the nodes of the service's tasks alone.
    pub fn node_ports(&self) -> impl Iterator<Item = (NodePort, bool)> {
        let Self { name: _, protocol, target: _, published } = self;
        published.iter().flat_map(move |Published { ports, mode, allow_from: _ }| {
            let of_tasks = *mode == PublishMode::Host;
            ports.all().map(move |number| (NodePort { protocol: *protocol, number }, of_tasks))
        })
    }
}

/// A port of the nodes; written `tcp port 80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePort {
    pub protocol: Protocol,
    pub number: u16,
}

impl fmt::Display for NodePort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} port {}", self.protocol.as_str(), self.number)
    }
}

/// Which services publish which ports of the nodes.
#[derive(Debug, Default)]
pub struct Publishers<'a> {
    /// With whether it is so at the nodes of their tasks alone.
    by_port: BTreeMap<NodePort, (&'a str, bool)>,
}

impl<'a> Publishers<'a> {
    /// Takes a service's ports in.
    pub fn add(&mut self, service: &'a str, ports: &[Port]) {
        self.by_port.extend(ports.iter().flat_map(Port::node_ports).map(|(port, of_tasks)| (port, (service, of_tasks))));
    }

    /// The first of these ports that one of the services has: its place, the port and the service. Of two that both open a port at the nodes
    /// of their tasks alone, neither has it: those nodes can be different ones.
    pub fn clash(&self, ports: &[Port]) -> Option<(usize, NodePort, &'a str)> {
        let mut asked = ports.iter().enumerate().flat_map(|(place, port)| port.node_ports().map(move |asked| (place, asked)));
        asked.find_map(|(place, (port, of_tasks))| {
            let (service, theirs) = self.by_port.get(&port)?;
            (!(of_tasks && *theirs)).then_some((place, port, *service))
        })
    }
}

/// What is before the protocol, and the protocol that is meant.
fn split_protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.split_once('/') {
        Some((ports, word)) => Ok((ports, word.parse()?)),
        None => Ok((text, Protocol::default())),
    }
}

/// Refuses published ports that are more or fewer than those in the containers.
fn same_count(published: Ports, target: Ports) -> Result<(), String> {
    if published.count() == target.count() { Ok(()) } else { Err(format!("{} and {}", published.counted(), target.counted())) }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = split_protocol(text)?;
        let Some((published, target)) = ports.split_once(':') else {
            return Ok(Self { name: String::new(), protocol, target: ports.parse()?, published: None });
        };
        let (published, target) = (published.parse::<Ports>()?, target.parse::<Ports>()?);
        same_count(published, target)?;
        let published = Published { ports: published, mode: PublishMode::Ingress(IngressPolicy::default()), allow_from: Vec::new() };
        Ok(Self { name: String::new(), protocol, target, published: Some(published) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeWord {
    Ingress,
    Host,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongPort {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    target: Ports,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published: Option<Ports>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<ModeWord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<IngressPolicy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow_from: Vec<IpNet>,
}

impl TryFrom<LongPort> for Port {
    type Error = String;

    fn try_from(long: LongPort) -> Result<Self, String> {
        let LongPort { name, target, published, protocol, mode, policy, allow_from } = long;
        let Some(ports) = published else {
            let stray = [("mode", mode.is_some()), ("policy", policy.is_some()), ("allow_from", !allow_from.is_empty())];
            return match stray.into_iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(format!("{key} belongs to a published port: add published, or remove it")),
                None => Ok(Self { name, protocol, target, published: None }),
            };
        };
        same_count(ports, target)?;
        let mode = match (mode, policy) {
            (None | Some(ModeWord::Ingress), policy) => PublishMode::Ingress(policy.unwrap_or_default()),
            (Some(ModeWord::Host), None) => PublishMode::Host,
            (Some(ModeWord::Host), Some(_)) => return Err("policy belongs to mode: ingress: remove it".to_owned()),
        };
        Ok(Self { name, protocol, target, published: Some(Published { ports, mode, allow_from }) })
    }
}

impl From<Port> for LongPort {
    fn from(port: Port) -> Self {
        let Port { name, protocol, target, published } = port;
        let Some(Published { ports, mode, allow_from }) = published else {
            return Self { name, target, published: None, protocol, mode: None, policy: None, allow_from: Vec::new() };
        };
        let (mode, policy) = match mode {
            PublishMode::Ingress(policy) => (ModeWord::Ingress, Some(policy)),
            PublishMode::Host => (ModeWord::Host, None),
        };
        Self { name, target, published: Some(ports), protocol, mode: Some(mode), policy, allow_from }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.published {
            Some(Published { ports, mode: PublishMode::Ingress(IngressPolicy::Mesh), allow_from })
                if self.name.is_empty() && allow_from.is_empty() =>
            {
                let protocol = if self.protocol == Protocol::default() { "" } else { "/udp" };
                serializer.collect_str(&format_args!("{ports}:{}{protocol}", self.target))
            }
            _ => LongPort::from(self.clone()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Port;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("PUBLISHED:TARGET such as 8080:80, or {target: PORT, …}")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Port, A::Error> {
                let long = LongPort::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                long.try_into().map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Addresses that networks' subnets are chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    pub cidr: Ipv4Net,
    /// Length of the prefix of the subnets chosen from it.
    pub prefix: u8,
    /// Number of the subnet in the pool after which the next is sought, so that a freed one rests.
    pub cursor: u32,
}

impl AddressPool {
    /// Length of the prefix where no other is asked for.
    pub const PREFIX: u8 = 24;
    /// Lengths that can be asked for.
    pub const PREFIXES: RangeInclusive<u8> = 16..=29;
}

/// How many addresses tasks and services can have in a subnet: not the first two, nor the last.
pub fn subnet_size(subnet: Ipv4Net) -> u32 {
    (u32::from(subnet.broadcast()) - u32::from(subnet.network())).saturating_sub(2)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_come_back_as_they_are_written() {
        for (written, printed) in [
            (json!("8080:80"), json!("8080:80")),
            (json!("53:5353/udp"), json!("53:5353/udp")),
            (json!("8000-8002:80-82/tcp"), json!("8000-8002:80-82")),
            (json!({"target": 80, "published": "8080"}), json!("8080:80")),
            (json!({"name": "http", "target": 80}), json!({"name": "http", "target": 80, "protocol": "tcp"})),
            (
                json!({"target": "80-81", "published": "90-91", "mode": "host", "protocol": "udp"}),
                json!({"target": "80-81", "published": "90-91", "mode": "host", "protocol": "udp"}),
            ),
            (
                json!({"target": 80, "published": 80, "policy": "local", "allow_from": ["10.0.0.0/8", "fd00::/8"]}),
                json!({"target": 80, "published": 80, "protocol": "tcp", "mode": "ingress", "policy": "local",
                    "allow_from": ["10.0.0.0/8", "fd00::/8"]}),
            ),
        ] {
            let port: Port = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(&port).unwrap(), printed, "{written}");
            assert_eq!(serde_json::from_value::<Port>(printed).unwrap(), port, "{written}");
        }
    }

    #[test]
    fn a_port_of_the_nodes_is_one_services_unless_the_nodes_of_tasks_alone_open_it() {
        let ports = |written: &str| serde_json::from_str::<Vec<Port>>(written).unwrap();
        let (web, dns) = (ports(r#"["8080:80"]"#), ports(r#"["53:53/udp", {"target": 80, "published": 81, "mode": "host"}]"#));
        let mut publishers = Publishers::default();
        publishers.add("web", &web);
        publishers.add("dns", &dns);
        for (asked, expected) in [
            (r#"["8081:80", "8079-8081:79-81"]"#, Some("1: tcp port 8080 of web")),
            (r#"["8080:80/udp", "53:53"]"#, None),
            (r#"[{"target": 80, "published": 8080, "mode": "host"}]"#, Some("0: tcp port 8080 of web")),
            (r#"["81:80"]"#, Some("0: tcp port 81 of dns")),
            (r#"[{"target": 80, "published": 81, "mode": "host"}, {"name": "http", "target": 53}]"#, None),
        ] {
            let clash = publishers.clash(&ports(asked)).map(|(place, port, service)| format!("{place}: {port} of {service}"));
            assert_eq!(clash.as_deref(), expected, "{asked}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused_with_what_is_wrong() {
        for (written, why) in [
            (json!("0:80"), "\"0\" is not a port: write a number from 1 to 65535"),
            (json!("80:65536"), "\"65536\" is not a port: write a number from 1 to 65535"),
            (json!(0), "\"0\" is not a port: write a number from 1 to 65535"),
            (json!("82-80:80-82"), "82-80 is no range of ports: write 80-82"),
            (json!("8000-8002:80-81"), "8000-8002 are 3 ports and 80-81 are 2 ports"),
            (json!({"target": "80-81", "published": 90}), "90 is 1 port and 80-81 are 2 ports"),
            (json!("80:80/sctp"), "\"sctp\" is neither tcp nor udp"),
            (json!({"target": 80, "published": 80, "mode": "host", "policy": "local"}), "policy belongs to mode: ingress: remove it"),
            (json!({"target": 80, "mode": "host"}), "mode belongs to a published port: add published, or remove it"),
        ] {
            assert_eq!(serde_json::from_value::<Port>(written.clone()).unwrap_err().to_string(), why, "{written}");
        }
    }
}
