//! The epoch of the keys by which nodes encrypt what they send to each other: each node makes a pair of keys for an epoch and tells the public
//! half. While a network is encrypted it rises once a day, but never before every node that takes part has a key of the newest: a pair of
//! nodes always has one in common.

use rcluster_api::cluster::Cluster;
use rcluster_api::object::{Node, NodeState};

use crate::core::plan::ChangeSet;
use crate::core::state::State;

/// How long keys are the newest.
pub const EPOCH_MS: u64 = 24 * 60 * 60 * 1000;

/// The epoch in force; 0 while no network is encrypted.
pub fn epoch(state: &State) -> u64 {
    if is_any_encrypted(state) { state.cluster().map_or(0, |cluster| cluster.key_epoch) } else { 0 }
}

/// The cluster with the next epoch, if it is due; otherwise `cluster`, which is what the plan writes of it already. Asks to be woken.
pub(super) fn turned(state: &State, cluster: Option<Cluster>, now_ms: u64, changes: &mut ChangeSet) -> Option<Cluster> {
    let Some(current) = state.cluster().filter(|_| is_any_encrypted(state)) else { return cluster };
    // A clock that was set back does not keep keys in force for longer.
    let age_ms = now_ms.abs_diff(current.key_epoch_at_ms);
    if current.key_epoch > 0 && age_ms < EPOCH_MS {
        changes.wake_at(now_ms.saturating_add(EPOCH_MS - age_ms));
        return cluster;
    }
    if state.nodes().values().any(|node| lags(node, current.key_epoch)) {
        return cluster;
    }
    changes.wake_at(now_ms.saturating_add(EPOCH_MS));
    let turned = cluster.unwrap_or_else(|| (**current).clone());
    Some(Cluster { key_epoch: current.key_epoch + 1, key_epoch_at_ms: now_ms, ..turned })
}

/// Whether a node encrypts, but not by a key of the epoch yet. One that is down holds nobody up.
fn lags(node: &Node, epoch: u64) -> bool {
    let keys = node.description.network.iter().flat_map(|network| &network.wireguard_keys);
    let newest = keys.map(|key| key.epoch).max();
    node.state != NodeState::Down && newest.is_some_and(|newest| newest < epoch)
}

fn is_any_encrypted(state: &State) -> bool {
    state.networks().values().any(|network| network.spec.encrypted)
}
