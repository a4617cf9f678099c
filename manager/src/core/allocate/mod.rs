//! Numbers and addresses: a VNI and a subnet for each network, an address on each of its networks for each task and each service, a number for
//! each node, and the epoch of the keys by which nodes encrypt.
//!
//! In: pools, networks, services and tasks, what nodes say of their hosts' routes, the time. Out: networks with VNI and subnet, tasks and
//! services with addresses, the cluster with how far the search for either has come and with the epoch. An address belongs to its task until
//! the task has ended and no lost node can still hold it, and rests after that; static ones (`ip`) belong to their service. Never: gives one
//! address to two, changes one that was given, or reads an agent's clock.

mod holders;
mod ipam;
pub mod keys;
mod nodes;
mod six;
mod vip;
mod vni;

pub use ipam::{is_given_out, overlap, subnets as subnet_count};

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rcluster_api::cluster::Cluster;
use rcluster_api::id::NetworkId;
use rcluster_api::network::{AddressPool, rested_ms};
use rcluster_api::object::{Network, Node, Object, RestingVip, Service, Task};
use rcluster_api::task::TaskState;

use super::plan::{ChangeSet, Ctx, Dirty};
use super::state::{Draft, State};
use holders::Holders;

/// For so long an address rests at least, where [`rcluster_api::network::REST_MS`] leaves none free.
pub const REST_LEAST_MS: u64 = 5_000;

/// Looks at every node and network without numbers, every task without addresses, and every service.
pub fn pass(draft: &Draft, _dirty: &Dirty, ctx: &mut Ctx) -> ChangeSet {
    let mut changes = ChangeSet::default();
    let state = draft.state();
    let (nodes, counted) = nodes::numbered(state);
    let (mut networks, searched) = numbered(state);
    let cluster = match (searched, counted) {
        (Some(searched), Some(counted)) => Some(Cluster { node_numbers_made: counted.node_numbers_made, ..searched }),
        (searched, counted) => searched.or(counted),
    };
    let cluster = keys::turned(state, cluster, ctx.now_ms, &mut changes);
    changes.puts.extend(cluster.map(|cluster| Object::Cluster(Box::new(cluster))));
    for node in nodes {
        if changes.is_full() {
            break;
        }
        changes.puts.push(Object::Node(node));
    }
    let mut waiting: Vec<&Task> = state.unassigned().filter(|task| task.status.state == TaskState::New || is_waiting(task)).collect();
    waiting.sort_by(|a, b| (a.stamp.created_at_ms, &a.service, a.slot, &a.id).cmp(&(b.stamp.created_at_ms, &b.service, b.slot, &b.id)));
    let mut gathered = None;
    for task in waiting {
        if changes.is_full() {
            break;
        }
        let holders = gathered.get_or_insert_with(|| Holders::new(state, ctx.now_ms));
        let allocated = match holders.addresses(task, &mut networks) {
            Ok(addresses) => Task { networks: addresses, ..with_status(task, TaskState::Pending, String::new()) },
            Err(lack) => with_status(task, TaskState::Pending, lack.said(&task.status.message)),
        };
        if allocated != *task {
            changes.puts.push(Object::Task(Box::new(allocated)));
        }
    }
    vip::pass(state, ctx.now_ms, &mut gathered, &mut networks, &mut changes);
    if let Some(at_ms) = gathered.and_then(|holders| holders.free_at_ms()) {
        changes.wake_at(at_ms);
    }
    let moved = networks.into_values().filter(|network| state.networks().get(&network.id).is_none_or(|old| **old != *network));
    changes.puts.extend(moved.map(Object::Network));
    changes
}

/// Whether a pending task still lacks an address.
fn is_waiting(task: &Task) -> bool {
    task.status.state == TaskState::Pending && task.networks.len() < task.template.networks.len()
}

/// The task in a state, with the reason; the time of the state moves only when the state does.
fn with_status(task: &Task, state: TaskState, message: String) -> Task {
    let mut task = task.clone();
    task.status.state = state;
    task.status.message = message;
    task
}

/// Every network, numbered where numbers are free; the tasks of one without them say so, and it is tried again with every plan. And the
/// cluster, if the search has gone on.
fn numbered(state: &State) -> (BTreeMap<NetworkId, Network>, Option<Cluster>) {
    let mut networks: BTreeMap<NetworkId, Network> =
        state.networks().iter().map(|(id, network)| (id.clone(), (**network).clone())).collect();
    let unnumbered: Vec<NetworkId> = networks.values().filter(|network| network.vni.is_none()).map(|network| network.id.clone()).collect();
    if unnumbered.is_empty() {
        return (networks, None);
    }
    let mut vnis: BTreeSet<u32> = networks.values().filter_map(|network| network.vni).collect();
    let mut vni_cursor = state.cluster().map_or(0, |cluster| cluster.vni_cursor);
    let mut pools = pools(state);
    let mut taken = taken(state);
    let own6 = six::of_cluster(state.cluster_id());
    let mut taken6: BTreeSet<Ipv6Net> = networks.values().filter_map(|network| network.subnet6.or(network.spec.subnet6)).collect();
    for id in unnumbered {
        let Some(network) = networks.get_mut(&id) else { continue };
        let Some(vni) = vni::next(vni_cursor, &vnis) else { continue };
        let subnet = match network.spec.subnet {
            Some(asked) => asked,
            None => match ipam::subnet(&pools, &taken) {
                Some((chosen, after)) => {
                    pools = after;
                    chosen
                }
                None => continue,
            },
        };
        if network.spec.ipv6 {
            network.subnet6 = network.spec.subnet6.or_else(|| six::subnet(own6, vni, &taken6));
            taken6.extend(network.subnet6);
        }
        network.vni = Some(vni);
        network.subnet = Some(subnet);
        vni_cursor = vni;
        vnis.insert(vni);
        taken.push(subnet);
    }
    let moved = state.cluster().filter(|cluster| cluster.vni_cursor != vni_cursor || cluster.pools != pools);
    (networks, moved.map(|cluster| Cluster { vni_cursor, pools, ..(**cluster).clone() }))
}

/// Has all searches go on where a cluster that went on after `state` has hardly come: `numbers` further, or half of all that there are. The
/// networks that are to be written for it.
pub fn left_out(state: &State, cluster: &mut Cluster, numbers: u32) -> Vec<Network> {
    let vnis = state.networks().values().filter_map(|network| network.vni).collect();
    cluster.vni_cursor = vni::ahead(cluster.vni_cursor, &vnis, numbers);
    cluster.node_numbers_made = nodes::ahead(cluster.node_numbers_made, numbers);
    cluster.pools = pools(state).into_iter().map(|pool| ipam::pool_ahead(pool, numbers)).collect();
    let ahead = |network: &Network| {
        let ip_cursor = ipam::ahead(network.subnet?, network.ip_cursor);
        Some(Network { ip_cursor, ..network.clone() })
    };
    state.networks().values().filter_map(|network| ahead(network)).collect()
}

/// What subnets are chosen from.
pub fn pools(state: &State) -> Vec<AddressPool> {
    match state.cluster().map(|cluster| &cluster.pools) {
        Some(pools) if !pools.is_empty() => pools.clone(),
        _ => vec![ipam::first_pool(&subnets(state).map(|(_, subnet)| subnet).collect::<Vec<_>>())],
    }
}

/// The subnets that networks have or have asked for, by the networks' names.
pub fn subnets(state: &State) -> impl Iterator<Item = (&str, Ipv4Net)> {
    state.networks().values().filter_map(|network| Some((network.spec.name.as_str(), network.subnet.or(network.spec.subnet)?)))
}

/// What no chosen subnet may touch: other networks, nodes and what their hosts reach by routes of their own.
fn taken(state: &State) -> Vec<Ipv4Net> {
    let nodes = state.nodes().values().filter_map(|node| addr(node)).map(Ipv4Net::from);
    let routes = state.nodes().values().flat_map(|node| routes(node));
    // Most nodes have the same routes.
    let taken: BTreeSet<Ipv4Net> = subnets(state).map(|(_, subnet)| subnet).chain(nodes).chain(routes).collect();
    taken.into_iter().collect()
}

/// A node's address.
fn addr(node: &Node) -> Option<Ipv4Addr> {
    node.description.addr.parse().ok()
}

/// The host's own routes that its netd has told of.
pub fn routes(node: &Node) -> impl Iterator<Item = Ipv4Net> {
    let routes = node.description.network.iter().flat_map(|network| &network.routes);
    routes.filter_map(|route| match route {
        // All that is not said otherwise: every subnet is within it.
        IpNet::V4(route) if route.prefix_len() > 0 => Some(*route),
        IpNet::V4(_) | IpNet::V6(_) => None,
    })
}

/// What a range that was asked for touches of nodes and must not, in words that follow the range.
pub fn collision(state: &State, subnet: Ipv4Net) -> Option<String> {
    let holds = |node: &Node| addr(node).filter(|addr| subnet.contains(addr));
    let crosses = |node: &Node| routes(node).find(|route| overlap(route, &subnet));
    state.nodes().values().find_map(|node| match (holds(node), crosses(node)) {
        (Some(addr), _) => Some(format!("holds the address {addr} of node {}", node.name())),
        (None, Some(route)) => Some(format!("overlaps route {route} of node {}", node.name())),
        (None, None) => None,
    })
}

/// The network that an address is in, which then cannot be a node's.
pub fn network_of(state: &State, addr: Ipv4Addr) -> Option<(&str, Ipv4Net)> {
    subnets(state).find(|(_, subnet)| subnet.contains(&addr))
}

/// A network whose subnet shares an address with a range.
pub fn network_across(state: &State, range: Ipv4Net) -> Option<(&str, Ipv4Net)> {
    subnets(state).find(|(_, subnet)| overlap(subnet, &range))
}

/// The pools, each with how many of its subnets are free.
pub fn pools_free(state: &State) -> Vec<(AddressPool, u32)> {
    let taken = taken(state);
    let free = |pool: &AddressPool| ipam::subnets(pool) - ipam::subnets_taken(pool, &taken);
    pools(state).into_iter().map(|pool| (pool, free(&pool))).collect()
}

/// Those of some networks' subnets that a host's own routes cross: (route, network, subnet).
pub fn crossed<'a>(subnets: &[(&'a str, Ipv4Net)], node: &Node) -> impl Iterator<Item = (Ipv4Net, &'a str, Ipv4Net)> {
    let crosses =
        move |(name, subnet): &(&'a str, Ipv4Net)| routes(node).find(|route| overlap(route, subnet)).map(|route| (route, *name, *subnet));
    subnets.iter().filter_map(crosses)
}

/// Why no subnet can be chosen; `None` when one can. `asked`: subnets that networks of the same request ask for.
pub fn no_subnet(state: &State, asked: &[Ipv4Net]) -> Option<String> {
    let (pools, mut taken) = (pools(state), taken(state));
    taken.extend(asked);
    if ipam::subnet(&pools, &taken).is_some() {
        return None;
    }
    let crossing = |pool: &AddressPool| {
        let first = state.nodes().values().find_map(|node| Some((node, routes(node).find(|route| overlap(route, &pool.cidr))?)));
        first.map_or_else(String::new, |(node, route)| format!(", beside route {route} of node {}", node.name()))
    };
    let said = pools.iter().map(|pool| format!("{}{}", usage(pool, &taken), crossing(pool)));
    Some(said.collect::<Vec<_>>().join("; "))
}

/// "pool 10.128.0.0/9 has 3 of 32768 subnets free".
fn usage(pool: &AddressPool, taken: &[Ipv4Net]) -> String {
    let count = ipam::subnets(pool);
    format!("pool {} has {} of {count} subnets free", pool.cidr, count - ipam::subnets_taken(pool, taken))
}

/// Who has an address of a network: a service's virtual address, its own too, or a task, but none of the service `except`.
pub fn holder(state: &State, network: &NetworkId, ip: Ipv4Addr, except: &str) -> Option<String> {
    let mut tasks = state.tasks().values().filter(|task| task.service != except && holds_addresses(task));
    let task = tasks.find(|task| task.networks.iter().any(|attached| attached.network_id == *network && attached.ip == ip));
    let has_it = |service: &Service| service.vips.iter().any(|vip| vip.network_id == *network && vip.ip == ip);
    let service = state.services().values().find(|service| has_it(service));
    task.map(|task| task.name.clone()).or_else(|| service.map(|service| service.spec.name.clone()))
}

/// Whether a task's addresses are its own: not ended, or lost with a node that may still run it.
pub fn holds_addresses(task: &Task) -> bool {
    !task.status.state.is_terminal() || task.may_run()
}

/// Until when the addresses of an ended task rest, by the managers' time of its last write; `None`: it had none on a node, or has them still.
pub fn rests_until_ms(task: &Task) -> Option<u64> {
    let had_them = !task.networks.is_empty() && task.node_id.is_some();
    (had_them && !holds_addresses(task)).then(|| rested_ms(task.stamp.updated_at_ms))
}

/// Until when an address that a service has given up rests.
fn vip_rests_until_ms(resting: &RestingVip) -> u64 {
    rested_ms(resting.since_ms)
}

/// A service goes: its virtual addresses rest, on networks that are put to what is `staged`, or are there already.
pub fn give_up_vips(state: &State, service: &Service, staged: &mut Vec<Object>, now_ms: u64) {
    vip::given_up(state, service, staged, now_ms);
}
