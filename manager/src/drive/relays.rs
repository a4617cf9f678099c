//! Brings together users who want to talk to a container and the agents that have it: a user's request has an id, the agent that answers
//! says it first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcluster_api::id::{NodeId, random_id};
use rcluster_api::wire::v1::{RelayInput, RelayOutput};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

/// The agent's side of a relay.
#[derive(Debug)]
pub struct AgentEnd {
    /// What goes to the agent; the call ends when it is dropped.
    pub inputs: mpsc::Sender<Result<RelayInput, Status>>,
    pub outputs: Streaming<RelayOutput>,
}

/// The requests of this leader that no agent has answered yet.
#[derive(Debug, Clone, Default)]
pub struct RelayBroker {
    waiting: Arc<Mutex<BTreeMap<String, Waiting>>>,
}

/// A request that was sent to a node's agent.
#[derive(Debug)]
struct Waiting {
    node: NodeId,
    user: oneshot::Sender<AgentEnd>,
}

/// One request: its id, and the agent's side once it is there. Forgotten when dropped.
#[derive(Debug)]
pub struct RelayRequest {
    pub id: String,
    pub agent: oneshot::Receiver<AgentEnd>,
    broker: RelayBroker,
}

impl RelayBroker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request to a node's agent.
    pub fn open(&self, node: NodeId) -> RelayRequest {
        let (user, agent) = oneshot::channel();
        let id = random_id(&mut rand::rng());
        self.lock().insert(id.clone(), Waiting { node, user });
        RelayRequest { id, agent, broker: self.clone() }
    }

    /// Where the agent's side of a request goes, once; `None` when its user has gone, or it was sent to another than `agent`.
    pub fn take(&self, id: &str, agent: Option<&str>) -> Option<oneshot::Sender<AgentEnd>> {
        let mut waiting = self.lock();
        waiting.get(id).filter(|request| agent.is_none_or(|agent| request.node.as_str() == agent))?;
        waiting.remove(id).map(|request| request.user).filter(|user| !user.is_closed())
    }
}

impl Drop for RelayRequest {
    fn drop(&mut self) {
        drop(self.broker.lock().remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_the_agent_that_was_asked_alone_and_once() {
        let broker = RelayBroker::default();
        let request = broker.open("n1".into());
        assert!(broker.take(&request.id, Some("n2")).is_none());
        assert!(broker.take(&request.id, Some("n1")).is_some(), "another's word takes nothing from it");
        assert!(broker.take(&request.id, Some("n1")).is_none());
        // Without TLS nobody knows whose agent it is.
        let request = broker.open("n1".into());
        assert!(broker.take(&request.id, None).is_some());
    }
}
