//! Sends what containers wrote to the manager that asked for it.

pub mod read;

use std::collections::BTreeMap;
use std::time::Duration;

use rcluster_api::id::{TaskId, is_id};
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::{LogChunk, LogEntry, LogsCommand};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, warn};

use crate::core::owner::Statuses;
use crate::place::Places;
use read::{Reader, Selection};

/// The requests of one session; they end with it.
#[derive(Debug)]
pub struct Readers {
    client: DispatcherClient<Channel>,
    places: Places,
    node: String,
    statuses: watch::Receiver<Statuses>,
    running: BTreeMap<String, AbortHandle>,
    tasks: JoinSet<()>,
}

/// So many requests are served at once; one more is answered with a refusal.
const READERS_MAX: usize = 64;
const CHUNKS_MAX: usize = 4;
/// How soon a reader that follows sees a new line.
const LOOK: Duration = Duration::from_millis(50);

impl Readers {
    pub fn new(client: DispatcherClient<Channel>, places: Places, node: String, statuses: watch::Receiver<Statuses>) -> Self {
        Self { client, places, node, statuses, running: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Serves a request; one with the id of an earlier takes its place.
    pub fn begin(&mut self, command: LogsCommand) {
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, handle| !handle.is_finished());
        self.cancel(&command.request_id);
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let request_id = command.request_id.clone();
        let pump = Pump {
            request_id: command.request_id.clone(),
            refusal: (self.running.len() >= READERS_MAX)
                .then(|| format!("node {} already serves {READERS_MAX} readers of logs; try again when some have gone", self.node)),
            node: self.node.clone(),
            places: self.places.clone(),
            statuses: self.statuses.clone(),
            sender,
        };
        let mut client = self.client.clone();
        let handle = self.tasks.spawn(async move {
            // The pump ends the stream of chunks, or finds it closed by the answer, which comes when the reader has gone.
            let ((), answer) = tokio::join!(pump.run(command), client.publish_logs(ReceiverStream::new(chunks)));
            if let Err(status) = answer {
                debug!(%status, "logs");
            }
        });
        self.running.insert(request_id, handle);
    }

    /// Nobody reads any more.
    pub fn cancel(&mut self, request_id: &str) {
        if let Some(handle) = self.running.remove(request_id) {
            handle.abort();
        }
    }
}

struct Pump {
    request_id: String,
    refusal: Option<String>,
    node: String,
    places: Places,
    statuses: watch::Receiver<Statuses>,
    sender: mpsc::Sender<LogChunk>,
}

impl Pump {
    async fn run(self, command: LogsCommand) {
        let problem = match &self.refusal {
            Some(refusal) => Some(refusal.clone()),
            None => self.pump(&command).await.err(),
        };
        if let Some(problem) = &problem {
            warn!(task = command.task_id, problem, "logs");
        }
        let last = LogChunk { problem: problem.unwrap_or_default(), end: true, ..self.chunk(Vec::new()) };
        // Refused when nobody reads any more; then nobody misses the end.
        drop(self.sender.send(last).await);
    }

    /// Sends lines until all are sent and, when following, the task has ended. The error is a sentence for the reader.
    async fn pump(&self, command: &LogsCommand) -> Result<(), String> {
        if !is_id(&command.task_id) {
            return Err(format!("{:?} is not the id of a task", command.task_id));
        }
        let task = TaskId::from(command.task_id.as_str());
        let dir = self.places.of_task(&task).logs;
        let selection = Selection { tail: usize::try_from(command.tail).unwrap_or(usize::MAX), since_ms: command.since_ms };
        while !dir.exists() {
            if !command.follow || self.has_ended(&task) {
                return Err(format!("node {} has no logs of this task", self.node));
            }
            sleep(LOOK).await;
        }
        let mut reader = Reader::new(dir, selection);
        loop {
            // Asked before reading: what was written before the end is then read in any case.
            let last = !command.follow || self.has_ended(&task);
            let read = spawn_blocking(move || {
                let lines = reader.read();
                (reader, lines)
            });
            let lines;
            (reader, lines) = read.await.map_err(|error| error.to_string())?;
            let lines = lines.map_err(|error| format!("node {}: read logs: {error}", self.node))?;
            if lines.is_empty() && last {
                let rest = reader.rest();
                if !rest.is_empty() && self.sender.send(self.chunk(rest)).await.is_err() {
                    return Ok(());
                }
                return reader.complaint().map_or(Ok(()), |complaint| Err(format!("node {}: {complaint}", self.node)));
            }
            if lines.is_empty() {
                sleep(LOOK).await;
            } else if self.sender.send(self.chunk(lines)).await.is_err() {
                return Ok(());
            }
            if self.sender.is_closed() {
                return Ok(());
            }
        }
    }

    fn has_ended(&self, task: &TaskId) -> bool {
        self.statuses.borrow().get(task).is_none_or(|status| status.state.is_terminal())
    }

    fn chunk(&self, entries: Vec<LogEntry>) -> LogChunk {
        LogChunk { request_id: self.request_id.clone(), entries, problem: String::new(), end: false }
    }
}
