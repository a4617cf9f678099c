//! Logs for a user: asks the agents of the tasks in question and merges what they send, as it comes.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{SelectAll, StreamExt};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::Task;
use rcluster_api::wire::v1::{self, manager_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::control::Answers;
use crate::core::state::State;
use crate::drive::Term;
use crate::store::Store;

/// What a user wants to read.
#[derive(Debug, Clone)]
enum Target {
    Service(rcluster_api::id::ServiceId),
    Task(TaskId),
}

/// The lines that `request` asks for.
pub fn stream(store: Store, term: Arc<Term>, request: v1::LogsRequest) -> Result<Answers<v1::LogLine>, ApiError> {
    let target = resolve(&store.state(), &request.target)?;
    let (sender, receiver) = mpsc::channel(256);
    let reader = Reader { store, term, request, target, asked: BTreeSet::new(), open: Vec::new(), sender };
    tokio::spawn(reader.run());
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn resolve(state: &State, name: &str) -> Result<Target, ApiError> {
    if let Some(service) = state.find_service(name) {
        return Ok(Target::Service(service.id.clone()));
    }
    let named = state.tasks().values().filter(|task| task.name == name || task.id.as_str() == name);
    named.max_by_key(|task| (task.is_live(), task.stamp.created_at_ms)).map(|task| Target::Task(task.id.clone())).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no service or task {name}"))
            .hint("`rclusterctl get services` and `rclusterctl ps` list them")
    })
}

/// One open request to one agent.
#[derive(Debug)]
struct Open {
    id: String,
    node: NodeId,
}

struct Reader {
    store: Store,
    term: Arc<Term>,
    request: v1::LogsRequest,
    target: Target,
    asked: BTreeSet<TaskId>,
    open: Vec<Open>,
    sender: mpsc::Sender<Result<v1::LogLine, Status>>,
}

impl Reader {
    async fn run(mut self) {
        let ended = self.term.ended.clone();
        let sender = self.sender.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = sender.closed() => {}
            () = self.follow() => {}
        }
        for open in std::mem::take(&mut self.open) {
            self.term.logs.close(&open.id);
            if let Some(outbox) = self.term.sessions.outbox(&open.node) {
                let cancel = manager_message::Kind::LogsCancel(v1::LogsCancel { request_id: open.id });
                // An agent whose outbox is full learns of the end when it next sends a chunk.
                drop(outbox.try_send(Ok(v1::ManagerMessage { kind: Some(cancel) })));
            }
        }
    }

    /// Asks for each task once, new ones as they come when following, until nothing more can come.
    async fn follow(&mut self) {
        let mut revisions = self.store.revisions();
        let mut lines = SelectAll::new();
        loop {
            revisions.borrow_and_update();
            for task in self.tasks() {
                if let Some(chunks) = self.ask(&task).await {
                    let (name, node) = (task.name.clone(), task.node.clone());
                    lines.push(ReceiverStream::new(chunks).map(move |chunk| (name.clone(), node.clone(), chunk)));
                }
            }
            loop {
                if lines.is_empty() && !self.request.follow {
                    return;
                }
                tokio::select! {
                    Some((task, node, chunk)) = lines.next() => self.pass_on(&task, &node, chunk).await,
                    changed = revisions.changed(), if self.request.follow => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                }
            }
        }
    }

    fn tasks(&self) -> Vec<Task> {
        let state = self.store.state();
        let mut tasks: Vec<Task> = match &self.target {
            Target::Service(id) => state.tasks_of_service(id).map(|task| (**task).clone()).collect(),
            Target::Task(id) => state.tasks().get(id).map(|task| (**task).clone()).into_iter().collect(),
        };
        tasks.retain(|task| task.node_id.is_some() && !self.asked.contains(&task.id));
        tasks.sort_by_key(|task| task.stamp.created_at_ms);
        tasks
    }

    /// Asks the task's node; a node that cannot be asked is told to the reader.
    async fn ask(&mut self, task: &Task) -> Option<mpsc::Receiver<v1::LogChunk>> {
        self.asked.insert(task.id.clone());
        let node = task.node_id.clone()?;
        let Some(outbox) = self.term.sessions.outbox(&node) else {
            self.problem(task, format!("node {} is not connected: the logs of {} cannot be had now", task.node, task.name)).await;
            return None;
        };
        let request = self.term.logs.open();
        let command = v1::LogsCommand {
            request_id: request.id.clone(),
            task_id: task.id.to_string(),
            follow: self.request.follow,
            tail: self.request.tail,
            since_ms: self.request.since_ms,
        };
        self.open.push(Open { id: request.id, node });
        let message = v1::ManagerMessage { kind: Some(manager_message::Kind::Logs(command)) };
        if outbox.send(Ok(message)).await.is_err() {
            self.problem(task, format!("node {} has just disconnected", task.node)).await;
            return None;
        }
        Some(request.chunks)
    }

    async fn problem(&self, task: &Task, problem: String) {
        let line = v1::LogLine { task: task.name.clone(), node: task.node.clone(), problem, ..v1::LogLine::default() };
        // A reader that has gone ends the whole request; see `run`.
        drop(self.sender.send(Ok(line)).await);
    }

    async fn pass_on(&mut self, task: &str, node: &str, chunk: v1::LogChunk) {
        let v1::LogChunk { request_id, entries, problem, end } = chunk;
        let line = |entry: v1::LogEntry| v1::LogLine {
            task: task.to_owned(),
            node: node.to_owned(),
            container: entry.container,
            stream: entry.stream,
            at_ns: entry.at_ns,
            text: entry.text,
            problem: String::new(),
        };
        let mut lines: Vec<v1::LogLine> = entries.into_iter().map(line).collect();
        if !problem.is_empty() {
            lines.push(v1::LogLine { task: task.to_owned(), node: node.to_owned(), problem, ..v1::LogLine::default() });
        }
        for line in lines {
            if self.sender.send(Ok(line)).await.is_err() {
                return;
            }
        }
        if end {
            self.term.logs.close(&request_id);
            self.open.retain(|open| open.id != request_id);
        }
    }
}
