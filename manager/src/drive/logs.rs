//! Brings together those who read logs and the agents that have them: a reader's request has an id, an agent's chunks carry it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rcluster_api::id::{NodeId, random_id};
use rcluster_api::wire::v1::{LogChunk, ManagerMessage};
use tokio::sync::mpsc;
use tonic::Status;

use super::sessions::{Outbox, Sessions};

/// Chunks that wait for a slow reader; the agent then waits too.
const CHUNKS_MAX: usize = 64;

/// The open requests of this leader.
#[derive(Debug, Default)]
pub struct LogBroker {
    readers: Mutex<BTreeMap<String, Asked>>,
}

/// A request to an agent, and where its chunks go.
#[derive(Debug)]
struct Asked {
    node: NodeId,
    /// The agent's session that it was sent by.
    session: mpsc::WeakSender<Result<ManagerMessage, Status>>,
    reader: mpsc::Sender<LogChunk>,
}

/// One request: its id, and the chunks that come for it.
#[derive(Debug)]
pub struct LogRequest {
    pub id: String,
    pub chunks: mpsc::Receiver<LogChunk>,
}

impl LogBroker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Asked>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request to a node's agent, to be sent by this session of it. `None`: the session is over. It leaves `sessions` before its
    /// requests are closed ([`Self::close_session`]), so that one that is opened too late for that is not left open.
    pub fn open(&self, node: &NodeId, session: &Outbox, sessions: &Sessions) -> Option<LogRequest> {
        let (reader, chunks) = mpsc::channel(CHUNKS_MAX);
        let id = random_id(&mut rand::rng());
        self.lock().insert(id.clone(), Asked { node: node.clone(), session: session.downgrade(), reader });
        if sessions.stands(node, session) {
            return Some(LogRequest { id, chunks });
        }
        self.close(&id);
        None
    }

    /// Where chunks of a request go; `None` when its reader has gone, or it was sent to another than `agent`.
    pub fn reader(&self, id: &str, agent: Option<&str>) -> Option<mpsc::Sender<LogChunk>> {
        let requests = self.lock();
        let asked = requests.get(id).filter(|asked| agent.is_none_or(|agent| asked.node.as_str() == agent));
        asked.map(|asked| &asked.reader).filter(|reader| !reader.is_closed()).cloned()
    }

    /// The request is over: its reader sees the end of the chunks.
    pub fn close(&self, id: &str) {
        self.lock().remove(id);
    }

    /// All requests that were sent by a session are over: an agent answers them in that session only. Those of the same node's next
    /// session, which may have begun already, stay.
    pub fn close_session(&self, session: &Outbox) {
        self.lock().retain(|_, asked| asked.session.upgrade().is_some_and(|other| !other.same_channel(session)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::error::TryRecvError;

    use super::*;

    /// Another session of n1.
    fn session(sessions: &Sessions) -> Outbox {
        let (session, _messages) = mpsc::channel(1);
        sessions.add(&"n1".into(), session.clone());
        session
    }

    #[test]
    fn lines_are_taken_from_the_agent_that_was_asked_alone() {
        let (broker, sessions) = (LogBroker::default(), Sessions::default());
        let mut request = broker.open(&"n1".into(), &session(&sessions), &sessions).unwrap();
        assert!(broker.reader(&request.id, Some("n2")).is_none());
        let chunk = LogChunk { problem: "none".to_owned(), ..LogChunk::default() };
        broker.reader(&request.id, Some("n1")).unwrap().try_send(chunk.clone()).unwrap();
        assert_eq!(request.chunks.try_recv().unwrap(), chunk);
        // Without TLS nobody knows whose agent it is.
        assert!(broker.reader(&request.id, None).is_some());
        broker.close(&request.id);
        assert!(broker.reader(&request.id, Some("n1")).is_none());
    }

    /// The end of a connection may be noticed when the agent is back by another.
    #[test]
    fn a_session_that_ends_takes_nothing_from_the_next_of_the_same_node() {
        let (broker, sessions, node) = (LogBroker::default(), Sessions::default(), NodeId::from("n1"));
        let old = session(&sessions);
        let mut before = broker.open(&node, &old, &sessions).unwrap();
        let new = session(&sessions);
        let after = broker.open(&node, &new, &sessions).unwrap();
        sessions.remove(&node, &old);
        broker.close_session(&old);
        assert_eq!(before.chunks.try_recv(), Err(TryRecvError::Disconnected), "its reader sees the end");
        assert!(broker.reader(&before.id, Some("n1")).is_none());
        assert!(broker.reader(&after.id, Some("n1")).is_some(), "that of the next session goes on");
        // Who has found the old one before it was over finds out.
        assert!(broker.open(&node, &old, &sessions).is_none());
        assert_eq!(broker.lock().len(), 1, "nothing is left of it");
        sessions.remove(&node, &new);
        broker.close_session(&new);
        assert!(broker.reader(&after.id, Some("n1")).is_none());
    }
}
