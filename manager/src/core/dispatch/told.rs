//! What one node is to be sent in its session: what differs from what it was sent last.
//!
//! In: the state, the networks of it, the term. Out: messages, in the order in which they must arrive. Never: an assignment before the
//! network view and the data that its tasks need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::cluster::Cluster;
use rcluster_api::id::{DataId, NodeId, TaskId};
use rcluster_api::wire::v1::{self, manager_message::Kind};

use super::assignments::{assigned_data, assignments, used_data};
use super::leave::Mark;
use super::netview::Networks;
use crate::core::state::State;

/// What a node was sent in one session.
#[derive(Debug, Default)]
pub struct Told {
    view: Option<v1::NetView>,
    set: Option<Digest>,
    data: BTreeMap<DataId, u64>,
    cluster: Option<Arc<Cluster>>,
    released: BTreeSet<TaskId>,
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
        if self.view.as_ref().is_none_or(|told| !shows_the_same(told, &view)) {
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

    /// The view that the node was sent last.
    pub fn view(&self) -> Option<Mark> {
        self.view.as_ref().map(|view| (view.term, view.revision))
    }

    /// That these tasks of the node need not wait any longer, as far as it has not been told. To be sent after the assignments that stop them.
    pub fn release(&mut self, released: BTreeSet<TaskId>, term: u64) -> Option<Kind> {
        let news: Vec<String> = released.difference(&self.released).map(ToString::to_string).collect();
        self.released = released;
        (!news.is_empty()).then_some(Kind::Released(v1::Released { term, task_ids: news }))
    }
}

/// Whether two pictures for a node differ in nothing but where they are from.
fn shows_the_same(one: &v1::NetView, other: &v1::NetView) -> bool {
    let v1::NetView { term: _, revision: _, node_id: _, nodes, networks, services, published, pools, key_epoch } = one;
    *nodes == other.nodes
        && *networks == other.networks
        && *services == other.services
        && *published == other.published
        && *pools == other.pools
        && *key_epoch == other.key_epoch
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
