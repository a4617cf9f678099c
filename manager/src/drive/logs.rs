//! Brings together those who read logs and the agents that have them: a reader's request has an id, an agent's chunks carry it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rcluster_api::id::random_id;
use rcluster_api::wire::v1::LogChunk;
use tokio::sync::mpsc;

/// Chunks that wait for a slow reader; the agent then waits too.
const CHUNKS_MAX: usize = 64;

/// The open requests of this leader.
#[derive(Debug, Default)]
pub struct LogBroker {
    readers: Mutex<BTreeMap<String, mpsc::Sender<LogChunk>>>,
}

/// One request: its id, and the chunks that come for it.
#[derive(Debug)]
pub struct LogRequest {
    pub id: String,
    pub chunks: mpsc::Receiver<LogChunk>,
}

impl LogBroker {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::Sender<LogChunk>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request.
    pub fn open(&self) -> LogRequest {
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let id = random_id(&mut rand::rng());
        self.lock().insert(id.clone(), sender);
        LogRequest { id, chunks }
    }

    /// Where chunks of a request go; `None` when its reader has gone.
    pub fn reader(&self, id: &str) -> Option<mpsc::Sender<LogChunk>> {
        self.lock().get(id).filter(|reader| !reader.is_closed()).cloned()
    }

    /// The request is over.
    pub fn close(&self, id: &str) {
        self.lock().remove(id);
    }
}
