//! Numbers and addresses: a VNI and a subnet for each network, an address on each of its networks for each task.
//!
//! In: networks and tasks. Out: networks with VNI and subnet, tasks with addresses. An address belongs to its task until the task has
//! ended and no lost node can still hold it; the search goes on from where the last one ended, so that a freed address rests.
//! Never: gives one address to two tasks, or changes one that was given.

mod ipam;
mod vni;

pub use ipam::{overlap, subnet};

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::id::NetworkId;
use rcluster_api::object::{Network, Object, Task, TaskNetwork};
use rcluster_api::task::TaskState;

use super::plan::{ChangeSet, Ctx, Dirty};
use super::state::{Draft, State};

/// Looks at every network without numbers and every task without addresses.
pub fn pass(draft: &Draft, _dirty: &Dirty, _ctx: &mut Ctx) -> ChangeSet {
    let mut changes = ChangeSet::default();
    let mut networks = numbered(draft.state());
    let mut pools = Pools { state: draft.state(), used: BTreeMap::new() };
    let mut waiting: Vec<&Task> =
        draft.state().unassigned().filter(|task| task.status.state == TaskState::New || is_waiting(task)).collect();
    waiting.sort_by(|a, b| (a.stamp.created_at_ms, &a.service, a.slot, &a.id).cmp(&(b.stamp.created_at_ms, &b.service, b.slot, &b.id)));
    for task in waiting {
        if changes.is_full() {
            break;
        }
        let allocated = match addresses(task, &mut networks, &mut pools) {
            Ok(addresses) => Task { networks: addresses, ..with_status(task, TaskState::Pending, String::new()) },
            Err(why) => with_status(task, TaskState::Pending, why),
        };
        if allocated != *task {
            changes.puts.push(Object::Task(Box::new(allocated)));
        }
    }
    let moved = networks.into_values().filter(|network| draft.state().networks().get(&network.id).is_none_or(|old| **old != *network));
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

/// Every network, numbered where numbers are free; the tasks of one without them say so, and it is tried again with every plan.
fn numbered(state: &State) -> BTreeMap<NetworkId, Network> {
    let mut networks: BTreeMap<NetworkId, Network> =
        state.networks().iter().map(|(id, network)| (id.clone(), (**network).clone())).collect();
    let unnumbered: Vec<NetworkId> = networks.values().filter(|network| network.vni.is_none()).map(|network| network.id.clone()).collect();
    for id in unnumbered {
        let vni = vni::next(networks.values());
        let subnet = ipam::subnet(networks.values(), networks.get(&id).and_then(|network| network.spec.subnet));
        if let (Some(network), Some(vni), Some(subnet)) = (networks.get_mut(&id), vni, subnet) {
            network.vni = Some(vni);
            network.subnet = Some(subnet);
        }
    }
    networks
}

/// The addresses in use on each network, gathered when first asked for.
struct Pools<'a> {
    state: &'a State,
    used: BTreeMap<NetworkId, BTreeSet<u32>>,
}

impl Pools<'_> {
    fn used(&mut self, network: &NetworkId) -> &mut BTreeSet<u32> {
        let state = self.state;
        self.used.entry(network.clone()).or_insert_with(|| {
            let holders = state.tasks().values().filter(|task| holds_addresses(task));
            holders
                .flat_map(|task| &task.networks)
                .filter(|attached| attached.network_id == *network)
                .map(|attached| u32::from(attached.ip))
                .collect()
        })
    }
}

/// Whether a task's addresses are its own: not ended, or lost with a node that may still run it.
pub fn holds_addresses(task: &Task) -> bool {
    !task.status.state.is_terminal() || task.may_run()
}

/// An address on each network that the template names, or why there is none.
fn addresses(task: &Task, networks: &mut BTreeMap<NetworkId, Network>, pools: &mut Pools<'_>) -> Result<Vec<TaskNetwork>, String> {
    let mut taken = Vec::new();
    for attachment in &task.template.networks {
        let network = networks
            .values_mut()
            .find(|network| network.spec.name == attachment.network)
            .ok_or_else(|| format!("network {} does not exist", attachment.network))?;
        let subnet = network.subnet.ok_or_else(|| format!("network {} has no subnet: none is free", attachment.network))?;
        let used = pools.used(&network.id);
        let Some((ip, cursor)) = ipam::address(subnet, network.ip_cursor, used) else {
            return Err(format!("network {} has no free address: {} of {} in use", attachment.network, used.len(), ipam::size(subnet)));
        };
        taken.push((network.id.clone(), ip, cursor, attachment));
    }
    let mut addresses = Vec::new();
    for (id, ip, cursor, attachment) in taken {
        pools.used(&id).insert(u32::from(ip));
        if let Some(network) = networks.get_mut(&id) {
            network.ip_cursor = cursor;
        }
        let aliases = attachment.aliases.clone();
        addresses.push(TaskNetwork { network_id: id, network: attachment.network.clone(), ip, aliases });
    }
    Ok(addresses)
}
