//! The managers' picture of what this node must reach, parsed once into a checked form, and the pods attached here.
//!
//! In: the wire's `NetView`. Out: a `Picture` in which every address lies in its network, every remote endpoint has its node's
//! underlay address, no address belongs to both an endpoint and a service, and no two networks share a VNI or overlap; what does not fit is
//! left out and named in `problems`, so that one bad entry never freezes the rest. Never: looks at the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use compact_str::CompactString;
use ipnet::{Ipv4Net, Ipv6Net};
use rcluster_api::network::{PREFIX6, address4, address6};
use rcluster_api::wire::v1;
use serde::{Deserialize, Serialize};

use super::encryption::{self, Member};
use super::ingress::{INGRESS_VNI, NUMBER_MAX};
use super::policy::Policy;
use super::published::{Backend, Opening, Published};

/// The highest VNI that a VXLAN header can carry.
const VNI_MAX: u32 = (1 << 24) - 1;

/// What this node must reach. The higher (`term`, `revision`) wins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Picture {
    pub term: u64,
    pub revision: u64,
    pub node_id: String,
    /// By network id.
    pub networks: BTreeMap<String, Network>,
    /// Addresses of nodes, those without an endpoint here too.
    #[serde(default)]
    pub nodes: BTreeSet<Ipv4Addr>,
    /// All that nodes have told of their own addresses of IPv6.
    #[serde(default)]
    pub nodes6: BTreeSet<Ipv6Addr>,
    /// What networks' subnets are chosen from; empty if the managers do not say.
    #[serde(default)]
    pub pools: BTreeSet<Ipv4Net>,
    /// Underlay addresses of nodes that are down by the managers' word and do not answer this one either.
    #[serde(default)]
    pub silent: BTreeSet<Ipv4Addr>,
    /// This node's; 0: it has none yet, and publishes nothing.
    #[serde(default)]
    pub number: u32,
    /// The other nodes' by their addresses.
    #[serde(default)]
    pub numbers: BTreeMap<Ipv4Addr, u32>,
    /// No two have a port in common.
    #[serde(default)]
    pub published: Vec<Published>,
    /// Ports that others have on this host, and who has them: of those that are published, or have been.
    #[serde(skip)]
    pub taken: BTreeMap<Opening, String>,
    /// Where the host itself has ways to, other than its default route.
    #[serde(skip)]
    pub beyond: Vec<Ipv4Net>,
    /// Where pods may get by the host of IPv6, its default route too.
    #[serde(skip)]
    pub beyond6: Vec<Ipv6Net>,
    /// Nodes' names by underlay address, lower case.
    #[serde(default)]
    pub node_names: BTreeMap<Ipv4Addr, String>,
    /// This node's name, lower case.
    #[serde(default)]
    pub node: String,
    /// By service id; those on a network of the picture.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// The newest epoch of keys; 0: no network is encrypted.
    #[serde(default)]
    pub key_epoch: u64,
    /// What nodes have told of their encryption, by their underlay addresses.
    #[serde(default)]
    pub members: BTreeMap<Ipv4Addr, Member>,
    /// This node does not encrypt, whatever the managers ask.
    #[serde(default)]
    pub cannot_encrypt: bool,
}

/// How a service is called, and its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Lower case.
    pub name: String,
    /// Lower case; empty if it is in none.
    pub stack: String,
    /// Those that have a name, in the service's order.
    pub ports: Vec<NamedPort>,
}

/// A port that DNS knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// Lower case.
    pub name: String,
    pub udp: bool,
    /// In the containers; of a range the first.
    pub target: u16,
}

/// One network that has, or is about to have, a pod on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    pub vni: u32,
    pub subnet: Ipv4Net,
    /// In which everyone has the same address once more; `None`: no IPv6.
    #[serde(default)]
    pub subnet6: Option<Ipv6Net>,
    pub internal: bool,
    /// Every name that exists on the network, lower case.
    pub names: BTreeSet<String>,
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    /// Services' virtual addresses.
    #[serde(default)]
    pub vips: BTreeMap<Ipv4Addr, Vip>,
    /// None: all may speak with all.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// No longer in the managers' picture; kept as last seen because a pod here is still attached to it.
    #[serde(default)]
    pub leaving: bool,
    /// Its frames leave this node through tunnels only.
    #[serde(default)]
    pub encrypted: bool,
}

/// One address on a network. There may be very many: ids and most names stand in it, not in memory of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub task_id: CompactString,
    /// The task's name.
    pub task: CompactString,
    pub place: Place,
    /// Answered by DNS; otherwise only routed.
    pub serving: bool,
    /// Its node is down by the managers' word.
    #[serde(default)]
    pub dead: bool,
    /// Lower case, in order, each once.
    pub names: Vec<CompactString>,
    /// Empty in pictures of managers that did not tell.
    #[serde(default)]
    pub service_id: CompactString,
}

/// A service's virtual address: connections to it go to the service's serving endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    pub service_id: String,
    /// The service's name.
    pub service: String,
    pub choice: Choice,
    /// Those for which it is the one answer, lower case.
    pub names: BTreeSet<String>,
}

/// Which endpoint a connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// Any.
    Random,
    /// The one that its client's address had before, as long as it serves.
    ByClient,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// On this node; reached when its pod is attached.
    Here,
    /// Behind the node with this underlay address.
    Node(Ipv4Addr),
}

/// A pod's networks, in the order in which they were asked for: the first one gives the default route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    pub networks: Vec<Membership>,
    /// Resolvers of its own, which are asked for foreign names; none: the host's.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// It ends: whatever the picture says, nobody here is to begin anything with it.
    #[serde(default)]
    pub left: bool,
    /// It is detached, and stays plumbed for so many ticks more; anew after a restart.
    #[serde(default)]
    pub lingers: Option<u32>,
}

/// One network of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub network_id: String,
    pub ip: Ipv4Addr,
}

/// By task id.
pub type Attachments = BTreeMap<String, Attachment>;

impl Place {
    /// Where the node with this id is, seen from the node `here`; `None` for one whose address was already complained about.
    pub fn parse(node_id: &str, here: &str, nodes: &BTreeMap<&str, Option<Ipv4Addr>>) -> Result<Option<Self>, String> {
        if node_id == here {
            return Ok(Some(Self::Here));
        }
        match nodes.get(node_id) {
            Some(addr) => Ok(addr.map(Self::Node)),
            None => Err(format!("its node {node_id} is not in the picture")),
        }
    }

    /// The underlay address of another node.
    pub fn node(self) -> Option<Ipv4Addr> {
        match self {
            Self::Here => None,
            Self::Node(node) => Some(node),
        }
    }
}

impl Attachment {
    /// The ids of its networks.
    pub fn network_ids(&self) -> BTreeSet<&str> {
        self.networks.iter().map(|membership| membership.network_id.as_str()).collect()
    }

    /// Whether connections may begin to this address of it.
    pub fn takes(&self, ip: Ipv4Addr) -> bool {
        !self.left && self.networks.iter().any(|membership| membership.ip == ip)
    }
}

impl Picture {
    /// Parses the wire's picture; the second value says what had to be left out and why.
    pub fn parse(view: &v1::NetView) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let nodes: BTreeMap<&str, Option<Ipv4Addr>> = view
            .nodes
            .iter()
            .map(|node| {
                let addr = node.addr.parse().ok();
                if addr.is_none() {
                    problems
                        .push(format!("node {} has the address {:?}, which is not IPv4; its endpoints are left out", node.id, node.addr));
                }
                (node.id.as_str(), addr)
            })
            .collect();
        let mut picture = Self {
            term: view.term,
            revision: view.revision,
            node_id: view.node_id.clone(),
            nodes: nodes.values().flatten().copied().collect(),
            services: view.services.iter().map(|service| (service.id.clone(), Service::parse(service))).collect(),
            key_epoch: view.key_epoch,
            members: encryption::members(&view.nodes, &mut problems),
            ..Self::default()
        };
        for node in &view.nodes {
            let name = node.name.to_ascii_lowercase();
            if node.id == view.node_id {
                picture.node.clone_from(&name);
            }
            if let Some(Some(addr)) = nodes.get(node.id.as_str()) {
                picture.node_names.insert(*addr, name);
            }
            for text in &node.addresses6 {
                match text.parse::<Ipv6Addr>() {
                    Ok(ip6) => {
                        picture.nodes6.insert(ip6);
                    }
                    Err(_) => problems.push(format!("the address {text:?} of node {} is not IPv6; pods may reach the node by it", node.id)),
                }
            }
        }
        for pool in &view.pools {
            match pool.parse::<Ipv4Net>() {
                Ok(net) => {
                    picture.pools.insert(net.trunc());
                }
                Err(_) => problems.push(format!("the pool {pool:?} is not an IPv4 CIDR; pods may send out what is for its addresses")),
            }
        }
        for wire in &view.networks {
            match Network::parse(wire, &view.node_id, &nodes, &mut problems) {
                Ok(network) => match picture.clash(&wire.id, &network) {
                    Some(why) => problems.push(format!("network {} ({}) is left out: {why}", wire.name, wire.id)),
                    None => {
                        picture.networks.insert(wire.id.clone(), network);
                    }
                },
                Err(why) => problems.push(format!("network {} ({}) is left out: {why}", wire.name, wire.id)),
            }
        }
        for service in view.services.iter().filter(|service| service.mode() == v1::EndpointMode::Vip) {
            picture.add_vips(service, &mut problems);
        }
        picture.add_numbers(view, &nodes, &mut problems);
        picture.add_published(view, &nodes, &mut problems);
        (picture, problems)
    }

    /// Tells the nodes by their numbers.
    fn add_numbers(&mut self, view: &v1::NetView, nodes: &BTreeMap<&str, Option<Ipv4Addr>>, problems: &mut Vec<String>) {
        let mut given = BTreeSet::new();
        for node in view.nodes.iter().filter(|node| node.number > 0) {
            let Some(addr) = nodes.get(node.id.as_str()).copied().flatten() else { continue };
            let wrong = if node.number > NUMBER_MAX {
                format!("is more than {NUMBER_MAX}")
            } else if !given.insert(node.number) {
                "another node has too".to_owned()
            } else if node.id == view.node_id {
                self.number = node.number;
                continue;
            } else {
                self.numbers.insert(addr, node.number);
                continue;
            };
            problems.push(format!("node {} has the number {}, which {wrong}; published ports do not lead there", node.id, node.number));
        }
    }

    fn add_published(&mut self, view: &v1::NetView, nodes: &BTreeMap<&str, Option<Ipv4Addr>>, problems: &mut Vec<String>) {
        let names: BTreeMap<&str, &str> = view.services.iter().map(|service| (service.id.as_str(), service.name.as_str())).collect();
        let ports = view.published.iter().flat_map(|wire| wire.ports.iter().map(move |port| (wire, port)));
        for (wire, port) in ports {
            let service = names.get(wire.service_id.as_str()).copied().unwrap_or(&wire.service_id);
            match Published::parse(wire, port, &view.node_id, nodes, service, problems) {
                Ok(Some(published)) => match self.published.iter().find(|other| other.meets(&published)) {
                    Some(other) => problems.push(format!(
                        "a port of service {service} is left out: {} meet{} {} of service {}",
                        published.in_words(),
                        if published.count == 1 { "s" } else { "" },
                        other.in_words(),
                        other.service
                    )),
                    None => self.published.push(published),
                },
                Ok(None) => {}
                Err(why) => problems.push(format!("a port of service {service} is left out: {why}")),
            }
        }
        if self.number == 0 && !self.published.is_empty() {
            problems.push("this node has no number yet, so it publishes no ports; the managers give it one".to_owned());
        }
    }

    /// Gives a service its addresses on those of its networks that are in the picture.
    fn add_vips(&mut self, service: &v1::ServiceView, problems: &mut Vec<String>) {
        for wire in &service.vips {
            let Some(network) = self.networks.get_mut(&wire.network_id) else { continue };
            if let Err(why) = network.add_vip(service, wire) {
                problems.push(format!("service {} has no address on network {}: {why}", service.name, network.name));
            }
        }
    }

    /// Of the published ports those behind which a pod here on these networks may be.
    pub fn published_on(&self, networks: &BTreeSet<&str>) -> impl Iterator<Item = &Published> {
        let subnets: Vec<Ipv4Net> = networks.iter().filter_map(|id| self.networks.get(*id)).map(|network| network.subnet).collect();
        let is_on = move |backend: &Backend| backend.place == Place::Here && subnets.iter().any(|subnet| subnet.contains(&backend.ip));
        self.published.iter().filter(move |published| published.backends.iter().any(&is_on))
    }

    /// The picture with these networks alone, and with the published ports behind which there may be pods on them.
    pub fn part(&self, networks: &BTreeSet<&str>) -> Self {
        let Self {
            term,
            revision,
            node_id,
            node,
            networks: all,
            nodes,
            nodes6,
            node_names,
            pools,
            silent,
            services,
            number,
            numbers,
            published: _,
            taken,
            beyond,
            beyond6,
            key_epoch,
            members,
            cannot_encrypt,
        } = self;
        let kept = all.iter().filter(|(id, _)| networks.contains(id.as_str())).map(|(id, network)| (id.clone(), network.clone()));
        Self {
            term: *term,
            revision: *revision,
            node_id: node_id.clone(),
            node: node.clone(),
            networks: kept.collect(),
            nodes: nodes.clone(),
            nodes6: nodes6.clone(),
            node_names: node_names.clone(),
            pools: pools.clone(),
            silent: silent.clone(),
            services: services.clone(),
            number: *number,
            numbers: numbers.clone(),
            published: self.published_on(networks).cloned().collect(),
            taken: taken.clone(),
            beyond: beyond.clone(),
            beyond6: beyond6.clone(),
            key_epoch: *key_epoch,
            members: members.clone(),
            cannot_encrypt: *cannot_encrypt,
        }
    }

    /// The name of the node where something is, if it is known.
    pub fn node_name(&self, place: Place) -> Option<&str> {
        let name = match place {
            Place::Here => Some(&self.node),
            Place::Node(addr) => self.node_names.get(&addr),
        };
        name.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The picture's place in the order of pictures.
    pub fn version(&self) -> (u64, u64) {
        (self.term, self.revision)
    }

    /// Underlay addresses of nodes that are down by the managers' word.
    pub fn dead_nodes(&self) -> BTreeSet<Ipv4Addr> {
        let endpoints = self.networks.values().flat_map(|network| network.endpoints.values());
        let endpoints = endpoints.filter(|endpoint| endpoint.dead).map(|endpoint| endpoint.place);
        let backends = self.published.iter().flat_map(|published| &published.backends);
        let backends = backends.filter(|backend| backend.dead).map(|backend| backend.place);
        endpoints.chain(backends).filter_map(Place::node).collect()
    }

    /// Keeps from `old`, whose place it takes, what no picture brings: of networks that still have a pod here, of nodes, of this host.
    pub fn inherit(&mut self, old: &Picture, attachments: &Attachments) {
        self.retain_attached(old, attachments);
        self.retain_silent(old);
        self.taken.clone_from(&old.taken);
        self.beyond.clone_from(&old.beyond);
        self.beyond6.clone_from(&old.beyond6);
        self.cannot_encrypt = old.cannot_encrypt;
    }

    /// Keeps from `old` which of the nodes that are down have been asked in vain.
    pub fn retain_silent(&mut self, old: &Picture) {
        self.silent = self.dead_nodes().intersection(&old.silent).copied().collect();
    }

    /// Keeps from `old` the networks that are not in this picture but still have a pod here.
    fn retain_attached(&mut self, old: &Picture, attachments: &Attachments) {
        for membership in attachments.values().flat_map(|attachment| &attachment.networks) {
            if self.networks.contains_key(&membership.network_id) {
                continue;
            }
            let Some(network) = old.networks.get(&membership.network_id) else { continue };
            if self.clash(&membership.network_id, network).is_none() {
                self.retain_words(old, network);
                self.retain_keys(old, network);
                self.networks.insert(membership.network_id.clone(), Network { leaving: true, ..network.clone() });
            }
        }
    }

    /// Keeps from `old` what the names on one of its networks are made of.
    fn retain_words(&mut self, old: &Picture, network: &Network) {
        for endpoint in network.endpoints.values() {
            if let Some(service) = old.services.get(endpoint.service_id.as_str()) {
                self.services.entry(endpoint.service_id.to_string()).or_insert_with(|| service.clone());
            }
            if let Place::Node(addr) = endpoint.place
                && let Some(name) = old.node_names.get(&addr)
            {
                self.node_names.entry(addr).or_insert_with(|| name.clone());
            }
        }
    }

    /// Keeps from `old` by which keys is sent on one of its networks: the managers tell those of nodes no more that this one does not meet.
    fn retain_keys(&mut self, old: &Picture, network: &Network) {
        for endpoint in network.endpoints.values().filter(|_| network.encrypted) {
            let Place::Node(addr) = endpoint.place else { continue };
            let Some(known) = old.members.get(&addr) else { continue };
            let member = self.members.entry(addr).or_insert_with(|| known.clone());
            if member.keys.is_empty() {
                member.keys.clone_from(&known.keys);
            }
        }
    }

    /// Drops the networks that are not in the managers' picture and have no pod here any more.
    pub fn release_detached(&mut self, attachments: &Attachments) {
        let held: BTreeSet<&str> =
            attachments.values().flat_map(|attachment| &attachment.networks).map(|m| m.network_id.as_str()).collect();
        self.networks.retain(|id, network| !network.leaving || held.contains(id.as_str()));
    }

    fn clash(&self, id: &str, network: &Network) -> Option<String> {
        self.networks.iter().find_map(|(other_id, other)| {
            if other_id == id {
                Some("its id is in the picture twice".to_owned())
            } else if other.vni == network.vni {
                Some(format!("its VNI {} is also that of {}", network.vni, other.name))
            } else if other.subnet.contains(&network.subnet) || network.subnet.contains(&other.subnet) {
                Some(format!("its subnet {} overlaps {} of {}", network.subnet, other.subnet, other.name))
            } else if network.subnet6.is_some() && other.subnet6 == network.subnet6 {
                Some(format!("its IPv6 prefix is also that of {}", other.name))
            } else {
                None
            }
        })
    }
}

impl Service {
    fn parse(wire: &v1::ServiceView) -> Self {
        let port = |port: &v1::Port| {
            let target = u16::try_from(port.target).ok().filter(|target| *target > 0 && !port.name.is_empty())?;
            Some(NamedPort { name: port.name.to_ascii_lowercase(), udp: port.protocol() == v1::Protocol::Udp, target })
        };
        Self {
            name: wire.name.to_ascii_lowercase(),
            stack: wire.stack.to_ascii_lowercase(),
            ports: wire.ports.iter().filter_map(port).collect(),
        }
    }
}

impl Network {
    /// The IPv6 address of who has this one.
    pub fn ip6(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet6| address6(subnet6, ip))
    }

    /// All addresses of who has this one.
    pub fn addresses(&self, ip: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::from(ip)), self.ip6(ip).map(IpAddr::from)].into_iter().flatten()
    }

    /// The IPv4 address of who has this one, if it is one of the network.
    pub fn ip4(&self, ip: IpAddr) -> Option<Ipv4Addr> {
        let ip = match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(ip6) => self.subnet6.and_then(|subnet6| address4(subnet6, ip6)),
        };
        ip.filter(|ip| self.subnet.contains(ip))
    }

    fn parse(
        wire: &v1::NetworkView,
        here: &str,
        nodes: &BTreeMap<&str, Option<Ipv4Addr>>,
        problems: &mut Vec<String>,
    ) -> Result<Self, String> {
        if wire.id.is_empty() {
            return Err("it has no id".to_owned());
        }
        if wire.vni == 0 || wire.vni > VNI_MAX {
            return Err(format!("its VNI {} is not between 1 and {VNI_MAX}", wire.vni));
        }
        if wire.vni == INGRESS_VNI {
            return Err(format!("its VNI {INGRESS_VNI} is that of published ports"));
        }
        let subnet: Ipv4Net = wire.subnet.parse().map_err(|_| format!("its subnet {:?} is not an IPv4 CIDR", wire.subnet))?;
        let six = |text: &str| text.parse::<Ipv6Net>().ok().filter(|net| net.prefix_len() == PREFIX6);
        let subnet6 = match wire.subnet6.as_str() {
            "" => None,
            text => Some(six(text).ok_or_else(|| format!("its IPv6 prefix {text:?} is no /{PREFIX6}"))?.trunc()),
        };
        let mut network = Self {
            name: wire.name.to_ascii_lowercase(),
            vni: wire.vni,
            subnet: subnet.trunc(),
            subnet6,
            internal: wire.internal,
            names: wire.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            endpoints: BTreeMap::new(),
            vips: BTreeMap::new(),
            policy: wire.policy.as_ref().map(|policy| Policy::parse(policy, &wire.name, problems)),
            leaving: false,
            encrypted: wire.encrypted,
        };
        for endpoint in &wire.endpoints {
            match network.endpoint(endpoint, here, nodes) {
                Ok(Some((ip, parsed))) => {
                    network.endpoints.insert(ip, parsed);
                }
                Ok(None) => {}
                Err(why) => problems.push(format!("endpoint {} on network {} is left out: {why}", endpoint.task_id, wire.name)),
            }
        }
        Ok(network)
    }

    /// `Ok(None)` for an endpoint on a node whose address was already complained about.
    fn endpoint(
        &self,
        wire: &v1::EndpointView,
        here: &str,
        nodes: &BTreeMap<&str, Option<Ipv4Addr>>,
    ) -> Result<Option<(Ipv4Addr, Endpoint)>, String> {
        let ip: Ipv4Addr = wire.ip.parse().map_err(|_| format!("its address {:?} is not IPv4", wire.ip))?;
        if !self.subnet.contains(&ip) {
            return Err(format!("its address {ip} is not in {}", self.subnet));
        }
        if let Some(holder) = self.endpoints.get(&ip) {
            return Err(format!("its address {ip} is held by {}", holder.task_id));
        }
        let Some(place) = Place::parse(&wire.node_id, here, nodes)? else { return Ok(None) };
        let lower = |text: &String| CompactString::from(text.to_ascii_lowercase());
        let mut names: Vec<CompactString> = wire.names.iter().map(lower).collect();
        names.sort_unstable();
        names.dedup();
        let endpoint = Endpoint {
            task_id: wire.task_id.as_str().into(),
            task: lower(&wire.task),
            place,
            serving: wire.serving,
            dead: wire.state() == v1::EndpointState::Dead,
            names,
            service_id: wire.service_id.as_str().into(),
        };
        Ok(Some((ip, endpoint)))
    }

    /// After the endpoints, whose addresses are theirs.
    fn add_vip(&mut self, service: &v1::ServiceView, wire: &v1::VipView) -> Result<(), String> {
        if service.id.is_empty() {
            return Err("the service has no id".to_owned());
        }
        let ip: Ipv4Addr = wire.ip.parse().map_err(|_| format!("{:?} is not IPv4", wire.ip))?;
        if !self.subnet.contains(&ip) {
            return Err(format!("{ip} is not in {}", self.subnet));
        }
        if let Some(holder) = self.endpoints.get(&ip) {
            return Err(format!("{ip} is held by task {}", holder.task_id));
        }
        if let Some(holder) = self.vips.get(&ip) {
            return Err(format!("{ip} is held by service {}", holder.service));
        }
        let vip = Vip {
            service_id: service.id.clone(),
            service: service.name.to_ascii_lowercase(),
            choice: match service.affinity() {
                v1::Affinity::Unspecified => Choice::Random,
                v1::Affinity::Client => Choice::ByClient,
            },
            names: wire.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        };
        self.vips.insert(ip, vip);
        Ok(())
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
