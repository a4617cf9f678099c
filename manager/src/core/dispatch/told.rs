//! What one node is to be sent in its session: what differs from what it was sent last.
//!
//! In: the state, the networks of it, the term. Out: messages, in the order in which they must arrive. Never: an assignment before the
//! network view and the data that its tasks need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::cluster::Cluster;
use rcluster_api::id::{DataId, NodeId, TaskId};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, manager_message::Kind};

use super::assignments::{assigned_data, assigned_tasks, assignments, kept_tasks, used_data};
use super::leave::Mark;
use super::netview::{Networks, Sight};
use crate::core::state::State;

/// What a node was sent in one session.
#[derive(Debug, Default)]
pub struct Told {
    /// The last view, and what was seen in it.
    view: Option<(Mark, Sight)>,
    set: Option<Digest>,
    data: BTreeMap<DataId, u64>,
    cluster: Option<Arc<Cluster>>,
    released: BTreeSet<TaskId>,
}

impl Told {
    /// What the node has not been sent yet; from now on it counts as sent.
    pub fn news(&mut self, state: &State, networks: &Networks, node: &NodeId, term: u64) -> Vec<Kind> {
        let mut messages = self.view_news(state, networks, node, term);
        messages.extend(self.task_news(state, node, term));
        messages
    }

    /// Of it what must not wait for the rest to be made: whom the node trusts, and its view. Goes first.
    pub fn view_news(&mut self, state: &State, networks: &Networks, node: &NodeId, term: u64) -> Vec<Kind> {
        let mut messages = Vec::new();
        if let Some(cluster) = state.cluster()
            && self.cluster.as_ref().is_none_or(|told| told.authorities != cluster.authorities)
        {
            let authorities = cluster.authorities.iter().map(|authority| authority.certificate.0.clone()).collect();
            messages.push(Kind::Trust(v1::Trust { authorities }));
            self.cluster = Some(cluster.clone());
        }
        let sight = networks.sight(node);
        let mark = match &self.view {
            Some((mark, told)) if told.shows_the_same(&sight) => *mark,
            _ => {
                messages.push(Kind::View(sight.view(term, networks.revision())));
                (term, networks.revision())
            }
        };
        self.view = Some((mark, sight));
        messages
    }

    /// Of it the node's tasks and what they need. Goes after the view.
    pub fn task_news(&mut self, state: &State, node: &NodeId, term: u64) -> Vec<Kind> {
        let mut messages = Vec::new();
        let used = used_data(state, node);
        // What no task of the set uses is dropped by the agent.
        self.data.retain(|id, _| used.contains_key(id));
        for data in used.into_values() {
            if self.data.insert(data.id.clone(), data.stamp.version) != Some(data.stamp.version) {
                messages.push(Kind::Data(assigned_data(&data)));
            }
        }
        let digest = Digest::of(state, node);
        if self.set.as_ref() != Some(&digest) {
            messages.push(Kind::Assignments(assignments(state, node, term)));
            self.set = Some(digest);
        }
        messages
    }

    /// The view that the node was sent last.
    pub fn view(&self) -> Option<Mark> {
        self.view.as_ref().map(|(mark, _)| *mark)
    }

    /// That these tasks of the node need not wait any longer, as far as it has not been told. To be sent after the assignments that stop them.
    pub fn release(&mut self, released: BTreeSet<TaskId>, term: u64) -> Option<Kind> {
        let news: Vec<String> = released.difference(&self.released).map(ToString::to_string).collect();
        self.released = released;
        (!news.is_empty()).then_some(Kind::Released(v1::Released { term, task_ids: news }))
    }
}

/// What of a set an agent acts on: a task's status is the agent's own word and need not be told back to it.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    tasks: Vec<(TaskId, TaskState)>,
    kept: Vec<TaskId>,
}

impl Digest {
    fn of(state: &State, node: &NodeId) -> Self {
        Self {
            tasks: assigned_tasks(state, node).map(|task| (task.id.clone(), task.desired_state)).collect(),
            kept: kept_tasks(state, node).map(|task| task.id.clone()).collect(),
        }
    }
}
