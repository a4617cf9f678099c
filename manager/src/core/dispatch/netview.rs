//! What one node must reach: the networks that have a task on it, with every endpoint and every name.
//!
//! An endpoint is routed from the moment its task has a node, and answered by DNS only while the task runs, is wanted, and its node is
//! not down. It leaves the answers in the same commit that asks the task to stop, or that tells that it will end by itself, and stays routed for
//! a moment after the end, for its node delivers what the task had left to be sent. Beside them stand the services on those networks with their
//! virtual addresses, and the ports that the node is to open.
//!
//! Views are made for each revision, from those of an earlier one: a network whose tasks, services and nodes are the same is the same value,
//! which all nodes share. That two nodes, or two revisions, see the same is mostly told by that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use rcluster_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use rcluster_api::network::{Allow, Peer, Port, PublishMode};
use rcluster_api::object::{Network, Node, NodeState, Service, ServiceVip, Task, TaskNetwork};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;

use crate::core::allocate::{self, keys};
use crate::core::state::State;

/// A task that is to stop and may still run.
#[derive(Debug)]
pub struct Leaving {
    pub node: NodeId,
    networks: Vec<NetworkId>,
    /// Every node takes connections for it.
    by_all: bool,
}

/// How long an ended task's address stays routed, by the managers' stamps: until something has changed so long after its end. Longer than any
/// pod lingers.
const ROUTED_AFTER_MS: u64 = 10_000;

/// All networks of the cluster as the nodes see them; made once for a revision and shared between nodes.
#[derive(Debug)]
pub struct Networks {
    revision: u64,
    ground: Arc<Ground>,
    made: BTreeMap<NetworkId, Made>,
    common: Arc<Common>,
    by_node: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    /// Tasks that are to stop and may still run.
    leaving: BTreeMap<TaskId, Leaving>,
    /// Services with a port that every node opens, in these networks or in any that they were made from: some node may go by those still.
    by_all: BTreeSet<ServiceId>,
}

/// What follows from networks, services and nodes alone: it stays for as long as these tables do, whatever becomes of tasks.
#[derive(Debug)]
struct Ground {
    networks: OrdMap<NetworkId, Arc<Network>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    bare: BTreeMap<NetworkId, Arc<Bare>>,
    service_views: Arc<Vec<(BTreeSet<NetworkId>, v1::ServiceView)>>,
    node_views: Arc<Vec<v1::NodeView>>,
    /// Nodes that are not down.
    up: BTreeSet<NodeId>,
}

/// A network without its tasks.
#[derive(Debug, PartialEq)]
struct Bare {
    /// All but the endpoints.
    view: v1::NetworkView,
    /// Services' addresses.
    vips: BTreeSet<Ipv4Addr>,
}

/// A network's view, and what it was made of.
#[derive(Debug)]
struct Made {
    bare: Arc<Bare>,
    members: Vec<Member>,
    view: Arc<v1::NetworkView>,
    /// Those with a task on it that may run.
    nodes: BTreeSet<NodeId>,
}

/// A task on a network.
#[derive(Debug, Clone)]
struct Member {
    task: Arc<Task>,
    node_is_up: bool,
    /// It has ended, and its address rests.
    has_ended: bool,
}

/// What nodes see beside networks; each part is the same value as long as it is alike, so that one that changes has none of the others compared.
#[derive(Debug)]
struct Common {
    nodes: Arc<Vec<v1::NodeView>>,
    /// Each with the networks that it is on.
    services: Arc<Vec<(BTreeSet<NetworkId>, v1::ServiceView)>>,
    published: Arc<Vec<Opening>>,
    pools: Arc<Vec<String>>,
    key_epoch: u64,
}

/// Published ports of a service.
#[derive(Debug)]
struct Opening {
    /// A node opens them for its own tasks only.
    own_only: bool,
    view: Arc<v1::PublishedView>,
}

/// What one node sees, shared with the others as far as they see the same.
#[derive(Debug)]
pub struct Sight {
    node: NodeId,
    networks: Vec<(NetworkId, Arc<v1::NetworkView>)>,
    common: Arc<Common>,
}

impl Networks {
    /// The networks as of `state`.
    pub fn new(state: &State) -> Self {
        Self::after(None, state)
    }

    /// The networks as of `state`: `known` ones if they are of that revision or a later one, for who has read the state just now may be behind
    /// another.
    pub fn at_least(known: Option<&Arc<Self>>, state: &State) -> Arc<Self> {
        match known {
            Some(known) if known.revision >= state.revision() => known.clone(),
            _ => Arc::new(Self::after(known.map(AsRef::as_ref), state)),
        }
    }

    /// The same, made from those of another revision as far as they are alike.
    pub fn after(known: Option<&Self>, state: &State) -> Self {
        let ground = Ground::after(known.map(|known| &known.ground), state);
        let up = &ground.up;
        let mut by_node: BTreeMap<NodeId, BTreeSet<NetworkId>> = BTreeMap::new();
        let mut leaving = BTreeMap::new();
        let is_there = |id: &&ServiceId| state.services().contains_key(*id) || state.tasks_of_service(id).next().is_some();
        let before = known.into_iter().flat_map(|known| &known.by_all).filter(is_there).cloned();
        let ingress = state.services().values().filter(|service| has_ingress(service)).map(|service| service.id.clone());
        let by_all: BTreeSet<ServiceId> = before.chain(ingress).collect();
        let mut backends: BTreeMap<ServiceId, Vec<v1::BackendView>> = BTreeMap::new();
        let mut members: BTreeMap<&NetworkId, Vec<Member>> = BTreeMap::new();
        let newest_ms = state.tasks().values().map(|task| task.stamp.updated_at_ms).max().unwrap_or_default();
        for task in state.tasks().values() {
            let Some(node) = &task.node_id else { continue };
            let member = |has_ended| Member { task: task.clone(), node_is_up: up.contains(node), has_ended };
            if !(task.may_run() && task.status.state >= TaskState::Assigned) {
                let ended_just_now = task.stamp.updated_at_ms.saturating_add(ROUTED_AFTER_MS) > newest_ms;
                if task.status.state.is_terminal() && ended_just_now && state.nodes().contains_key(node) {
                    for attached in &task.networks {
                        members.entry(&attached.network_id).or_default().push(member(true));
                    }
                }
                continue;
            }
            let endpoint_state = endpoint_state(task, up.contains(node), false);
            let service = state.services().get(&task.service_id);
            if !task.is_wanted() {
                let networks = task.networks.iter().map(|attached| attached.network_id.clone()).collect();
                let by_all = by_all.contains(&task.service_id);
                leaving.insert(task.id.clone(), Leaving { node: node.clone(), networks, by_all });
            }
            // From outside a task is reached by its first network.
            if let Some(first) = task.networks.first()
                && service.is_some_and(|service| publishes(service))
            {
                backends.entry(task.service_id.clone()).or_default().push(backend(task, node, first, endpoint_state));
            }
            for attached in &task.networks {
                members.entry(&attached.network_id).or_default().push(member(false));
            }
        }
        let mut made = BTreeMap::new();
        for (id, bare) in &ground.bare {
            let members = members.remove(id).unwrap_or_default();
            let network = Made::after(known.and_then(|known| known.made.get(id)), id, bare.clone(), members);
            for node in &network.nodes {
                by_node.entry(node.clone()).or_default().insert(id.clone());
            }
            made.insert(id.clone(), network);
        }
        let published = state.services().values().flat_map(|service| {
            let backends = backends.remove(&service.id).unwrap_or_default();
            published(service, &backends)
        });
        let published = Opening::after(known.map(|known| &known.common.published), published);
        let pools: Vec<String> = allocate::pools(state).iter().map(|pool| pool.cidr.to_string()).collect();
        let common = Arc::new(Common {
            nodes: ground.node_views.clone(),
            services: ground.service_views.clone(),
            published,
            pools: kept(known.map(|known| &known.common.pools), pools),
            key_epoch: keys::epoch(state),
        });
        Self { revision: state.revision(), ground, made, common, by_node, leaving, by_all }
    }

    /// The revision that they are of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The tasks that are to stop and may still run.
    pub fn leaving(&self) -> &BTreeMap<TaskId, Leaving> {
        &self.leaving
    }

    /// The nodes that could send to a task that is to stop: those with a task on one of its networks, its own among them, or all when it is, or
    /// was, reached by a port that every node opens; without those that are down. In a round that ends with `last`.
    pub fn senders(&self, leaving: &Leaving, last: Option<&NodeId>) -> impl Iterator<Item = &NodeId> {
        let after = self.ground.up.range::<NodeId, _>((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        let until = last.map(|last| self.ground.up.range::<NodeId, _>((Bound::Unbounded, Bound::Included(last))));
        after.chain(until.into_iter().flatten()).filter(move |node| self.could_send(node, leaving))
    }

    /// Whether the node is one of them.
    pub fn is_sender(&self, node: &NodeId, leaving: &Leaving) -> bool {
        self.ground.up.contains(node) && self.could_send(node, leaving)
    }

    fn could_send(&self, node: &NodeId, leaving: &Leaving) -> bool {
        let own = || self.by_node.get(node);
        leaving.by_all || own().is_some_and(|own| leaving.networks.iter().any(|network| own.contains(network)))
    }

    /// The part that concerns one node.
    pub fn sight(&self, node: &NodeId) -> Sight {
        let own = self.by_node.get(node).into_iter().flatten();
        let networks = own.filter_map(|id| Some((id.clone(), self.made.get(id)?.view.clone())));
        Sight { node: node.clone(), networks: networks.collect(), common: self.common.clone() }
    }

    /// The same as it is sent, told by the leader of `term`.
    pub fn view(&self, node: &NodeId, term: u64) -> v1::NetView {
        self.sight(node).view(term, self.revision)
    }
}

impl Sight {
    /// As it is sent by the leader of `term`.
    pub fn view(&self, term: u64, revision: u64) -> v1::NetView {
        let networks = self.networks().map(|network| (**network).clone()).collect();
        v1::NetView { term, revision, networks, ..self.beside() }
    }

    /// The networks that it sees.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<v1::NetworkView>> {
        self.networks.iter().map(|(_, network)| network)
    }

    /// Whether both see the same. What is shared is not compared.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        self.networks.len() == other.networks.len()
            && self.networks().zip(other.networks()).all(|(one, other)| Arc::ptr_eq(one, other) || one == other)
            && self.shows_the_same_beside(other)
    }

    /// The same of what they see beside the networks, which they see alike.
    fn shows_the_same_beside(&self, other: &Self) -> bool {
        let (one, another) = (&self.common, &other.common);
        self.node == other.node
            && one.key_epoch == another.key_epoch
            && (Arc::ptr_eq(&one.nodes, &another.nodes) || self.nodes() == other.nodes())
            && (Arc::ptr_eq(&one.services, &another.services) || self.services() == other.services())
            && (Arc::ptr_eq(&one.published, &another.published) || self.opens_the_same(other))
            && (Arc::ptr_eq(&one.pools, &another.pools) || one.pools == another.pools)
    }

    fn opens_the_same(&self, other: &Self) -> bool {
        let alike =
            |(one, another): (&Opening, &Opening)| Arc::ptr_eq(&one.view, &another.view) || self.opened(one) == other.opened(another);
        self.openings().count() == other.openings().count() && self.openings().zip(other.openings()).all(alike)
    }

    /// What it sees beside the networks.
    fn beside(&self) -> v1::NetView {
        v1::NetView {
            node_id: self.node.to_string(),
            nodes: self.nodes(),
            services: self.services(),
            published: self.openings().map(|opening| self.opened(opening)).collect(),
            pools: self.common.pools.to_vec(),
            key_epoch: self.common.key_epoch,
            ..Default::default()
        }
    }

    /// The services on its networks, with the addresses that they have there.
    fn services(&self) -> Vec<v1::ServiceView> {
        let own: BTreeSet<NetworkId> = self.networks.iter().map(|(id, _)| id.clone()).collect();
        let services = self.common.services.iter().filter(|(joined, _)| !joined.is_disjoint(&own));
        services.map(|(_, service)| on_networks(service, &own)).collect()
    }

    /// The ports that it opens.
    fn openings(&self) -> impl Iterator<Item = &Opening> {
        let is_own = move |backend: &v1::BackendView| backend.node_id == self.node.as_str();
        self.common.published.iter().filter(move |opening| !opening.own_only || opening.view.backends.iter().any(is_own))
    }

    /// The ports as it opens them.
    fn opened(&self, opening: &Opening) -> v1::PublishedView {
        let mut view = (*opening.view).clone();
        if opening.own_only {
            view.backends.retain(|backend| backend.node_id == self.node.as_str());
        }
        view
    }

    /// The node itself and those whose tasks it sees; of all others only what their packets are known by, for no pod is to reach a node, and every
    /// node may send on what came to a port: that one of them was started anew, or has another key, is no news here.
    fn nodes(&self) -> Vec<v1::NodeView> {
        let endpoints = self.networks().flat_map(|network| &network.endpoints);
        let met: BTreeSet<&str> = endpoints.map(|endpoint| endpoint.node_id.as_str()).chain([self.node.as_str()]).collect();
        let told = |node: &v1::NodeView| {
            let mut node = node.clone();
            if self.common.key_epoch == 0 {
                node.wireguard_keys.clear();
            }
            if !met.contains(node.id.as_str()) {
                (node.name, node.incarnation, node.wireguard_keys) = (String::new(), 0, Vec::new());
            }
            node
        };
        self.common.nodes.iter().map(told).collect()
    }
}

/// The known value where it is the same.
fn kept<T: PartialEq>(known: Option<&Arc<T>>, now: T) -> Arc<T> {
    known.filter(|known| ***known == now).cloned().unwrap_or_else(|| Arc::new(now))
}

impl Opening {
    /// All that are published, in the places of those known as far as they are alike.
    fn after(known: Option<&Arc<Vec<Self>>>, published: impl Iterator<Item = (bool, v1::PublishedView)>) -> Arc<Vec<Self>> {
        let openings = || known.into_iter().flat_map(|known| known.iter());
        let by_service: BTreeMap<(&str, bool), &Arc<v1::PublishedView>> =
            openings().map(|opening| ((opening.view.service_id.as_str(), opening.own_only), &opening.view)).collect();
        let now = published.map(|(own_only, view)| {
            let known = by_service.get(&(view.service_id.as_str(), own_only)).copied();
            Self { own_only, view: kept(known, view) }
        });
        let now: Vec<Self> = now.collect();
        let same = now.len() == openings().count() && now.iter().zip(openings()).all(|(one, other)| Arc::ptr_eq(&one.view, &other.view));
        known.filter(|_| same).cloned().unwrap_or_else(|| Arc::new(now))
    }
}

impl Ground {
    /// What follows from the tables of `state`; the known one where they are the same, and its parts where they are alike.
    fn after(known: Option<&Arc<Self>>, state: &State) -> Arc<Self> {
        let (networks, services, nodes) = (state.networks(), state.services(), state.nodes());
        let is_of_them =
            |known: &&Arc<Self>| known.networks.ptr_eq(networks) && known.services.ptr_eq(services) && known.nodes.ptr_eq(nodes);
        if let Some(known) = known.filter(is_of_them) {
            return known.clone();
        }
        let node_view = |node: &Node| v1::NodeView {
            id: node.id.to_string(),
            name: node.name().to_owned(),
            addr: node.description.addr.clone(),
            incarnation: node.incarnation,
            number: node.number,
            wireguard_keys: wireguard_keys(node),
            addresses6: node.description.network.iter().flat_map(|network| &network.addresses6).map(ToString::to_string).collect(),
        };
        let node_views: Vec<v1::NodeView> = nodes.values().map(|node| node_view(node)).collect();
        let up = nodes.values().filter(|node| node.state != NodeState::Down).map(|node| node.id.clone()).collect();
        let bare = |network: &Network| Some(Bare { view: empty_view(state, network)?, vips: BTreeSet::new() });
        let mut all: BTreeMap<NetworkId, Bare> = networks.iter().filter_map(|(id, network)| Some((id.clone(), bare(network)?))).collect();
        let mut service_views = Vec::new();
        for service in services.values() {
            let mut joined = BTreeSet::new();
            for attachment in &service.spec.networks {
                let Some(network) = state.find_network(&attachment.network) else { continue };
                let Some(Bare { view, vips: _ }) = all.get_mut(&network.id) else { continue };
                joined.insert(network.id.clone());
                view.names.extend(service_names(&service.spec.name, &service.spec.stack));
                view.names.extend(attachment.aliases.iter().map(|alias| alias.to_lowercase()));
            }
            for vip in &service.vips {
                if let Some(bare) = all.get_mut(&vip.network_id) {
                    bare.vips.insert(vip.ip);
                }
            }
            service_views.push((joined, service_view(service)));
        }
        for Bare { view, vips: _ } in all.values_mut() {
            view.names.sort();
            view.names.dedup();
        }
        let bare = all.into_iter().map(|(id, bare)| {
            let bare = kept(known.and_then(|known| known.bare.get(&id)), bare);
            (id, bare)
        });
        Arc::new(Self {
            networks: networks.clone(),
            services: services.clone(),
            nodes: nodes.clone(),
            bare: bare.collect(),
            service_views: kept(known.map(|known| &known.service_views), service_views),
            node_views: kept(known.map(|known| &known.node_views), node_views),
            up,
        })
    }
}

impl Made {
    /// The network's view, from an earlier one as far as that was made of the same.
    fn after(known: Option<&Self>, id: &NetworkId, bare: Arc<Bare>, members: Vec<Member>) -> Self {
        let alike = |known: &&Self| Arc::ptr_eq(&known.bare, &bare) && are_the_same(&known.members, &members);
        if let Some(known) = known.filter(alike) {
            return Self { bare, members, view: known.view.clone(), nodes: known.nodes.clone() };
        }
        let may_run = || members.iter().filter(|member| !member.has_ended);
        let nodes = may_run().filter_map(|member| member.task.node_id.clone()).collect();
        let held: BTreeSet<Ipv4Addr> = may_run().filter_map(|member| Some(member.on(id)?.ip)).chain(bare.vips.iter().copied()).collect();
        // Of several that have had an address, who had it last.
        let mut rest: BTreeMap<Ipv4Addr, &Member> = BTreeMap::new();
        for member in members.iter().filter(|member| member.has_ended) {
            let Some(ip) = member.on(id).map(|attached| attached.ip).filter(|ip| !held.contains(ip)) else { continue };
            let last = rest.entry(ip).or_insert(member);
            if last.task.stamp.updated_at_ms < member.task.stamp.updated_at_ms {
                *last = member;
            }
        }
        let endpoints = may_run().chain(rest.into_values()).filter_map(|member| member.endpoint(id)).collect();
        let view = v1::NetworkView { endpoints, ..bare.view.clone() };
        // A task may have changed in what no node sees.
        let view = known.filter(|known| *known.view == view).map_or_else(|| Arc::new(view), |known| known.view.clone());
        Self { bare, members, view, nodes }
    }
}

fn are_the_same(known: &[Member], members: &[Member]) -> bool {
    let same = |(one, other): (&Member, &Member)| {
        Arc::ptr_eq(&one.task, &other.task) && (one.node_is_up, one.has_ended) == (other.node_is_up, other.has_ended)
    };
    known.len() == members.len() && known.iter().zip(members).all(same)
}

impl Member {
    /// Its address on a network.
    fn on(&self, network: &NetworkId) -> Option<&TaskNetwork> {
        self.task.networks.iter().find(|attached| attached.network_id == *network)
    }

    /// What is told of it on a network. One that has ended has no name any more.
    fn endpoint(&self, network: &NetworkId) -> Option<v1::EndpointView> {
        let state = endpoint_state(&self.task, self.node_is_up, self.has_ended);
        let endpoint = endpoint(&self.task, self.task.node_id.as_ref()?, self.on(network)?, state);
        Some(if self.has_ended { v1::EndpointView { names: Vec::new(), task: String::new(), ..endpoint } } else { endpoint })
    }
}

/// The service with the virtual addresses that it has on these networks.
fn on_networks(service: &v1::ServiceView, networks: &BTreeSet<NetworkId>) -> v1::ServiceView {
    let mut service = service.clone();
    service.vips.retain(|vip| networks.contains(&NetworkId::from(vip.network_id.as_str())));
    service
}

/// A network without endpoints; `None` before it has its numbers.
fn empty_view(state: &State, network: &Network) -> Option<v1::NetworkView> {
    Some(v1::NetworkView {
        id: network.id.to_string(),
        name: network.spec.name.clone(),
        vni: network.vni?,
        subnet: network.subnet?.to_string(),
        internal: network.spec.internal,
        names: Vec::new(),
        endpoints: Vec::new(),
        subnet6: network.subnet6.map(|subnet6| subnet6.to_string()).unwrap_or_default(),
        encrypted: network.spec.encrypted,
        policy: policy_view(state, network),
    })
}

/// The network's policy with the ids of the services that its names stand for now; a name that stands for none of the network's matches
/// nobody.
fn policy_view(state: &State, network: &Network) -> Option<v1::NetworkPolicyView> {
    let policy = network.spec.policy.as_ref()?;
    let ids = |peers: &[Peer]| {
        let id = |peer: &Peer| match peer {
            Peer::Service(name) => {
                let service = state.find_service(name).filter(|service| service.spec.name == *name)?;
                service.spec.networks.iter().any(|attachment| attachment.network == network.spec.name).then(|| service.id.to_string())
            }
            Peer::All | Peer::Range(_) => None,
        };
        peers.iter().filter_map(id).collect::<Vec<String>>()
    };
    let range = |peer: &Peer| if let Peer::Range(cidr) = peer { Some(cidr.to_string()) } else { None };
    let allow = policy.allow.iter().map(|Allow { from, to, ports }| v1::AllowView {
        from_service_ids: ids(from),
        from_all: from.contains(&Peer::All),
        from_cidrs: from.iter().filter_map(range).collect(),
        to_service_ids: ids(to),
        to_all: to.contains(&Peer::All),
        ports: ports.iter().copied().map(Into::into).collect(),
    });
    Some(v1::NetworkPolicyView { allow: allow.collect() })
}

/// By which others encrypt what they send to a node.
fn wireguard_keys(node: &Node) -> Vec<v1::WireguardKey> {
    let keys = node.description.network.iter().flat_map(|network| &network.wireguard_keys);
    keys.copied().map(Into::into).collect()
}

/// The names that stand for all tasks of a service.
fn service_names(service: &str, stack: &str) -> Vec<String> {
    let mut names = vec![service.to_owned(), format!("tasks.{service}")];
    if !stack.is_empty() {
        names.push(format!("{service}.{stack}"));
        names.push(format!("tasks.{service}.{stack}"));
    }
    names
}

fn service_view(service: &Service) -> v1::ServiceView {
    let Service { id, spec, vips, stamp: _, spec_version: _, removing: _ } = service;
    let vip = |vip: &ServiceVip| {
        let on_it = spec.networks.iter().filter(|attachment| attachment.network == vip.network);
        let mut names = vec![spec.name.clone()];
        if !spec.stack.is_empty() {
            names.push(format!("{}.{}", spec.name, spec.stack));
        }
        names.extend(on_it.flat_map(|attachment| &attachment.aliases).map(|alias| alias.to_lowercase()));
        v1::VipView { network_id: vip.network_id.to_string(), ip: vip.ip.to_string(), names }
    };
    v1::ServiceView {
        id: id.to_string(),
        name: spec.name.clone(),
        stack: spec.stack.clone(),
        mode: v1::EndpointMode::from(spec.endpoint_mode).into(),
        affinity: v1::Affinity::from(spec.affinity).into(),
        vips: vips.iter().map(vip).collect(),
        ports: spec.ports.iter().cloned().map(Into::into).collect(),
    }
}

fn publishes(service: &Service) -> bool {
    service.spec.ports.iter().any(|port| port.published.is_some())
}

fn has_ingress(service: &Service) -> bool {
    let is_ingress = |port: &Port| port.published.as_ref().is_some_and(|published| published.mode != PublishMode::Host);
    service.spec.ports.iter().any(is_ingress)
}

/// A service's published ports, those of every node and those that a node opens for its own tasks only: however many they are, the backends
/// are told once for each of the two.
fn published(service: &Service, backends: &[v1::BackendView]) -> Vec<(bool, v1::PublishedView)> {
    let view = |own_only: bool| {
        let is_of = |port: &&Port| port.published.as_ref().is_some_and(|published| (published.mode == PublishMode::Host) == own_only);
        let ports: Vec<v1::Port> = service.spec.ports.iter().filter(is_of).cloned().map(Into::into).collect();
        if ports.is_empty() {
            return None;
        }
        Some((own_only, v1::PublishedView { service_id: service.id.to_string(), ports, backends: backends.to_vec() }))
    };
    [false, true].into_iter().filter_map(view).collect()
}

/// What may be sent to a task.
fn endpoint_state(task: &Task, node_is_up: bool, has_ended: bool) -> v1::EndpointState {
    if !node_is_up {
        v1::EndpointState::Dead
    } else if has_ended || !task.is_wanted() || task.status.ending {
        v1::EndpointState::Leaving
    } else if task.serves() {
        v1::EndpointState::Serving
    } else {
        v1::EndpointState::Routed
    }
}

fn backend(task: &Task, node: &NodeId, attached: &TaskNetwork, state: v1::EndpointState) -> v1::BackendView {
    v1::BackendView {
        task_id: task.id.to_string(),
        node_id: node.to_string(),
        ip: attached.ip.to_string(),
        state: state.into(),
        ip6: attached.ip6.map(|ip6| ip6.to_string()).unwrap_or_default(),
    }
}

fn endpoint(task: &Task, node: &NodeId, attached: &TaskNetwork, state: v1::EndpointState) -> v1::EndpointView {
    let mut names = service_names(&task.service, &task.stack);
    if task.slot > 0 {
        names.push(format!("{}.{}", task.slot, task.service));
    }
    names.push(task.name.clone());
    names.push(task.id.to_string());
    names.extend(attached.aliases.iter().map(|alias| alias.to_lowercase()));
    v1::EndpointView {
        task_id: task.id.to_string(),
        node_id: node.to_string(),
        ip: attached.ip.to_string(),
        serving: state == v1::EndpointState::Serving,
        names,
        task: task.name.clone(),
        state: state.into(),
        service_id: task.service_id.to_string(),
    }
}
