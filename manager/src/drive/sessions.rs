//! The agents that are connected to this leader, so that a message can be sent to a node.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rcluster_api::id::NodeId;
use rcluster_api::wire::v1::ManagerMessage;
use tokio::sync::mpsc;
use tonic::Status;

/// What goes to an agent.
pub type Outbox = mpsc::Sender<Result<ManagerMessage, Status>>;

/// One outbox for each connected node; a node's newer session takes the place of its older one.
#[derive(Debug, Default)]
pub struct Sessions {
    outboxes: Mutex<BTreeMap<NodeId, Outbox>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Outbox>> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has opened a session.
    pub fn add(&self, node: &NodeId, outbox: Outbox) {
        self.lock().insert(node.clone(), outbox);
    }

    /// A session has ended; a newer one of the same node stays.
    pub fn remove(&self, node: &NodeId, outbox: &Outbox) {
        let mut outboxes = self.lock();
        if outboxes.get(node).is_some_and(|current| current.same_channel(outbox)) {
            outboxes.remove(node);
        }
    }

    /// The way to a node, if it is connected.
    pub fn outbox(&self, node: &NodeId) -> Option<Outbox> {
        self.lock().get(node).cloned()
    }

    /// Whether this is the node's session still.
    pub fn stands(&self, node: &NodeId, outbox: &Outbox) -> bool {
        self.lock().get(node).is_some_and(|current| current.same_channel(outbox))
    }

    /// How many nodes are connected.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no node is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
