//! Logs for a user: asks the agents of the tasks in question and merges what they send, as it comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, SelectAll, StreamExt};
use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::Task;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, manager_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::control::Answers;
use super::holder::Holder;
use super::route::Router;
use crate::core::state::State;
use crate::drive::{LogRequest, Term};
use crate::meter::There;
use crate::store::Store;

/// What a user wants to read.
#[derive(Debug, Clone)]
enum Target {
    Service(rcluster_api::id::ServiceId),
    Task(TaskId),
}

/// The lines that `request` asks for.
pub fn stream(router: &Router, term: Arc<Term>, request: Request<v1::LogsRequest>) -> Result<Answers<v1::LogLine>, ApiError> {
    let holder = Holder::new(&router.store, &request, UserRole::ReadOnly, "reading logs")?;
    let request = request.into_inner();
    let target = resolve(&router.store.state(), &request.target)?;
    let (sender, receiver) = mpsc::channel(256);
    let (store, _there) = (router.store.clone(), router.figures.logs.there());
    let reader = Reader { store, term, request, target, asked: BTreeMap::new(), open: Vec::new(), sender, _there };
    tokio::spawn(reader.run(holder));
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

/// How far a task's logs were read.
#[derive(Debug, Default)]
struct Progress {
    /// A request is open; when there is none, and the task goes on, it is asked for again.
    is_open: bool,
    /// The user was told that the logs cannot be had now, and not yet that they can.
    is_told: bool,
    /// The time of the last line of each container.
    last_ns: BTreeMap<String, u64>,
    /// The same when it was last asked for: what an answer repeats is left out.
    asked_after_ns: BTreeMap<String, u64>,
}

/// What comes from an agent for a task.
enum Said {
    Chunk(v1::LogChunk),
    /// No more, and the last chunk was not there: the agent has gone.
    Gone,
}

/// How long a reader may take to be told why there is no more.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How soon a task that is followed is asked for again after its node has gone.
const ASK_AGAIN: Duration = Duration::from_secs(1);

struct Reader {
    store: Store,
    term: Arc<Term>,
    request: v1::LogsRequest,
    target: Target,
    asked: BTreeMap<TaskId, Progress>,
    open: Vec<Open>,
    sender: mpsc::Sender<Result<v1::LogLine, Status>>,
    _there: There,
}

impl Reader {
    async fn run(mut self, holder: Holder) {
        let ended = self.term.ended.clone();
        let sender = self.sender.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = sender.closed() => {}
            why = holder.over() => {
                // The last word, for a reader who is there.
                drop(sender.send_timeout(Err(why.into()), LAST_WORD).await);
            }
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

    /// Asks for each task, new ones as they come when following, and again when its node has come back, until nothing more can come.
    async fn follow(&mut self) {
        let mut revisions = self.store.revisions();
        let mut chunks = SelectAll::new();
        loop {
            revisions.borrow_and_update();
            for task in self.tasks() {
                if let Some(request) = self.ask(&task).await {
                    let (id, task) = (request.id, Arc::new(task));
                    let said = ReceiverStream::new(request.chunks).map(Said::Chunk).chain(stream::once(async { Said::Gone }));
                    chunks.push(said.map(move |said| (id.clone(), Arc::clone(&task), said)).boxed());
                }
            }
            let ask_again = tokio::time::sleep(ASK_AGAIN);
            tokio::pin!(ask_again);
            loop {
                if chunks.is_empty() && !self.request.follow {
                    return;
                }
                tokio::select! {
                    // None: the last of them is over, which is only now seen.
                    next = chunks.next(), if !chunks.is_empty() => {
                        if let Some((id, task, said)) = next {
                            self.take(&id, &task, said).await;
                        }
                    }
                    changed = revisions.changed(), if self.request.follow => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = &mut ask_again, if self.asked.values().any(|progress| !progress.is_open) && self.request.follow => break,
                }
            }
        }
    }

    /// The tasks to ask for now: their agents know them, and no request for them is open.
    fn tasks(&self) -> Vec<Task> {
        let state = self.store.state();
        let mut tasks: Vec<Task> = match &self.target {
            Target::Service(id) => state.tasks_of_service(id).map(|task| (**task).clone()).collect(),
            Target::Task(id) => state.tasks().get(id).map(|task| (**task).clone()).into_iter().collect(),
        };
        tasks.retain(|task| {
            let is_due = match self.asked.get(&task.id) {
                None => true,
                Some(progress) => self.request.follow && !progress.is_open && !task.status.state.is_terminal(),
            };
            is_due && task.node_id.is_some() && task.status.state >= TaskState::Accepted
        });
        tasks.sort_by_key(|task| task.stamp.created_at_ms);
        tasks
    }

    /// Asks the task's node; a node that cannot be asked is told to the reader, once.
    async fn ask(&mut self, task: &Task) -> Option<LogRequest> {
        let node = task.node_id.clone()?;
        let progress = self.asked.entry(task.id.clone()).or_default();
        let is_first = progress.last_ns.is_empty();
        let since_ms = progress.last_ns.values().min().map_or(self.request.since_ms, |last| last / 1_000_000);
        let Some(outbox) = self.term.sessions.outbox(&node) else {
            self.problem(task, format!("node {} is not connected: the logs of {} cannot be had now", task.node, task.name)).await;
            return None;
        };
        let Some(request) = self.term.logs.open(&node, &outbox, &self.term.sessions) else {
            self.problem(task, format!("node {} has just disconnected", task.node)).await;
            return None;
        };
        let command = v1::LogsCommand {
            request_id: request.id.clone(),
            task_id: task.id.to_string(),
            follow: self.request.follow,
            tail: if is_first { self.request.tail } else { 0 },
            since_ms,
        };
        let message = v1::ManagerMessage { kind: Some(manager_message::Kind::Logs(command)) };
        if outbox.send(Ok(message)).await.is_err() {
            self.term.logs.close(&request.id);
            self.problem(task, format!("node {} has just disconnected", task.node)).await;
            return None;
        }
        self.open.push(Open { id: request.id.clone(), node });
        if let Some(progress) = self.asked.get_mut(&task.id) {
            progress.is_open = true;
            progress.asked_after_ns.clone_from(&progress.last_ns);
        }
        Some(request)
    }

    /// Tells why the logs of a task cannot be had, unless that was told last.
    async fn problem(&mut self, task: &Task, problem: String) {
        let progress = self.asked.entry(task.id.clone()).or_default();
        if std::mem::replace(&mut progress.is_told, true) {
            return;
        }
        let line = v1::LogLine { task: task.name.clone(), node: task.node.clone(), problem, ..v1::LogLine::default() };
        // A reader that has gone ends the whole request; see `run`.
        drop(self.sender.send(Ok(line)).await);
    }

    async fn take(&mut self, id: &str, task: &Task, said: Said) {
        let is_open = self.open.iter().any(|open| open.id == id);
        let over = match said {
            Said::Chunk(chunk) => {
                let v1::LogChunk { request_id: _, entries, problem, end } = chunk;
                self.pass_on(task, entries).await;
                if !problem.is_empty() {
                    self.problem(task, problem).await;
                }
                end
            }
            Said::Gone => {
                if is_open {
                    let problem = format!("node {} has disconnected: the logs of {} are not complete", task.node, task.name);
                    self.problem(task, problem).await;
                }
                true
            }
        };
        if over && is_open {
            self.term.logs.close(id);
            self.open.retain(|open| open.id != id);
            if let Some(progress) = self.asked.get_mut(&task.id) {
                progress.is_open = false;
            }
        }
    }

    /// Passes lines on, those that were not before.
    async fn pass_on(&mut self, task: &Task, entries: Vec<v1::LogEntry>) {
        let Some(progress) = self.asked.get_mut(&task.id) else { return };
        progress.is_told &= entries.is_empty();
        let mut lines = Vec::with_capacity(entries.len());
        for entry in entries {
            if progress.asked_after_ns.get(&entry.container).is_some_and(|last| entry.at_ns <= *last) {
                continue;
            }
            let last = progress.last_ns.entry(entry.container.clone()).or_default();
            *last = entry.at_ns.max(*last);
            lines.push(v1::LogLine {
                task: task.name.clone(),
                node: task.node.clone(),
                container: entry.container,
                stream: entry.stream,
                at_ns: entry.at_ns,
                text: entry.text,
                problem: String::new(),
            });
        }
        for line in lines {
            if self.sender.send(Ok(line)).await.is_err() {
                return;
            }
        }
    }
}
