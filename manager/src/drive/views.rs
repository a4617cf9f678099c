//! What the nodes have confirmed of their views in this term: shared by the agents' sessions, which wait for what follows from it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcluster_api::id::{NodeId, TaskId};
use tokio::sync::watch;

use crate::core::dispatch::leave::{Leave, Mark};
use crate::core::dispatch::netview::Networks;

/// The leader's memory of it.
#[derive(Debug, Default)]
pub struct Views {
    inner: Mutex<Inner>,
    /// Rises when more tasks are released.
    releases: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    leave: Leave,
    /// That were begun.
    sessions: u64,
}

impl Views {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has opened a session; its number.
    pub fn begin(&self, node: &NodeId) -> u64 {
        let mut inner = self.lock();
        inner.sessions += 1;
        let session = inner.sessions;
        inner.leave.begin(node, session);
        session
    }

    /// A session has ended.
    pub fn end(&self, node: &NodeId, session: u64) {
        self.lock().leave.end(node, session);
    }

    /// What the node is to see of these networks is in the view `sent`, which goes out or has gone out in the session.
    pub fn compared(&self, node: &NodeId, session: u64, networks: &Arc<Networks>, sent: Option<Mark>) {
        let more = self.lock().leave.compared(node, session, networks, sent);
        self.tell(more);
    }

    /// The node's netd holds this view.
    pub fn acknowledged(&self, node: &NodeId, session: u64, mark: Mark) {
        let more = self.lock().leave.acknowledged(node, session, mark);
        self.tell(more);
    }

    fn tell(&self, more: bool) {
        if more {
            self.releases.send_modify(|releases| *releases += 1);
        }
    }

    /// The tasks of the node to which nobody sends any more.
    pub fn released(&self, node: &NodeId) -> BTreeSet<TaskId> {
        self.lock().leave.released(node)
    }

    /// Tells when more tasks are released.
    pub fn releases(&self) -> watch::Receiver<u64> {
        self.releases.subscribe()
    }
}
