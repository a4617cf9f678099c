//! What one node is to be sent in its session: what differs from what it was sent last.
//!
//! In: the state, the networks of it, the term. Out: messages, in the order in which they must arrive. Never: an assignment before the
//! network view and the data that its tasks need.

use std::collections::BTreeMap;
use std::sync::Arc;

use rcluster_api::cluster::Cluster;
use rcluster_api::id::{DataId, NodeId};
use rcluster_api::wire::v1::{self, manager_message::Kind};

use super::assignments::{assigned_data, assignments, used_data};
use super::netview::Networks;
use crate::core::state::State;

/// What a node was sent in one session.
#[derive(Debug, Default)]
pub struct Told {
    view: Option<v1::NetView>,
    set: Option<Digest>,
    data: BTreeMap<DataId, u64>,
    cluster: Option<Arc<Cluster>>,
}

impl Told {
    /// What the node has not been sent yet; from now on it counts as sent.
    pub fn news(&mut self, state: &State, networks: &Networks, node: &NodeId, term: u64) -> Vec<Kind> {
        let mut messages = Vec::new();
        if let Some(cluster) = state.cluster()
            && self.cluster.as_ref().is_none_or(|told| told.authorities != cluster.authorities)
        {
            let authorities = cluster.authorities.iter().map(|authority| authority.certificate.0.clone()).collect();
            messages.push(Kind::Trust(v1::Trust { authorities }));
            self.cluster = Some(cluster.clone());
        }
        let view = networks.view(node, term);
        if self.view.as_ref().is_none_or(|told| told.nodes != view.nodes || told.networks != view.networks) {
            messages.push(Kind::View(view.clone()));
            self.view = Some(view);
        }
        let used = used_data(state, node);
        // What no task of the set uses is dropped by the agent.
        self.data.retain(|id, _| used.contains_key(id));
        for data in used.into_values() {
            if self.data.insert(data.id.clone(), data.stamp.version) != Some(data.stamp.version) {
                messages.push(Kind::Data(assigned_data(&data)));
            }
        }
        let set = assignments(state, node, term);
        let digest = Digest::of(&set);
        if self.set.as_ref() != Some(&digest) {
            messages.push(Kind::Assignments(set));
            self.set = Some(digest);
        }
        messages
    }
}

/// What of a set an agent acts on: a task's status is the agent's own word and need not be told back to it.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    tasks: Vec<(String, i32)>,
    kept: Vec<String>,
}

impl Digest {
    fn of(set: &v1::Assignments) -> Self {
        let id = |task: &v1::Task| task.meta.as_ref().map(|meta| meta.id.clone()).unwrap_or_default();
        Self { tasks: set.tasks.iter().map(|task| (id(task), task.desired_state)).collect(), kept: set.kept_tasks.clone() }
    }
}
