//! Brings together users who want to talk to a container and the agents that have it: a user's request has an id, the agent that answers
//! says it first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcluster_api::id::random_id;
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
    waiting: Arc<Mutex<BTreeMap<String, oneshot::Sender<AgentEnd>>>>,
}

/// One request: its id, and the agent's side once it is there. Forgotten when dropped.
#[derive(Debug)]
pub struct RelayRequest {
    pub id: String,
    pub agent: oneshot::Receiver<AgentEnd>,
    broker: RelayBroker,
}

impl RelayBroker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, oneshot::Sender<AgentEnd>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request.
    pub fn open(&self) -> RelayRequest {
        let (sender, agent) = oneshot::channel();
        let id = random_id(&mut rand::rng());
        self.lock().insert(id.clone(), sender);
        RelayRequest { id, agent, broker: self.clone() }
    }

    /// Where the agent's side of a request goes, once; `None` when its user has gone.
    pub fn take(&self, id: &str) -> Option<oneshot::Sender<AgentEnd>> {
        self.lock().remove(id).filter(|request| !request.is_closed())
    }
}

impl Drop for RelayRequest {
    fn drop(&mut self) {
        drop(self.broker.lock().remove(&self.id));
    }
}
