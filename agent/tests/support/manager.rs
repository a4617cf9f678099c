//! A manager's side of the session: welcomes, acknowledges, sends what the test sets, keeps what the agent reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use rcluster_api::wire::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use rcluster_api::wire::v1::{
    AgentMessage, Assignments, HeartbeatAck, ImageRequest, LogChunk, LogsCommand, ManagerMessage, NetView, NodeNetwork,
    PublishLogsResponse, Register, RelayCommand, RelayExec, RelayInput, RelayOpen, RelayOutput, Released, Task, TaskReport, TaskState,
    TaskStatus, Welcome, agent_message, image_request, manager_message, relay_open, relay_output,
};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What a test waits for at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What has been seen of the agent.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub registrations: Vec<Register>,
    pub statuses: BTreeMap<String, TaskStatus>,
    /// Every report in its order: task and state.
    pub history: Vec<(String, TaskState)>,
    pub heartbeats: u64,
    /// Each view, by term and revision, of which it was told that netd holds it.
    pub applied: Vec<(u64, u64)>,
    /// What it has told of its host's network since it registered.
    pub networks: Vec<NodeNetwork>,
    pub chunks: Vec<LogChunk>,
    /// What was said in relays.
    pub relayed: Vec<relay_output::Kind>,
}

pub struct Manager {
    pub address: SocketAddr,
    pub seen: watch::Sender<Seen>,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    seen: watch::Sender<Seen>,
    assignments: watch::Sender<Assignments>,
    commands: broadcast::Sender<ManagerMessage>,
    /// Where the leader is, if not here.
    leader: Option<String>,
    /// Heartbeats stay without an answer.
    deaf: watch::Sender<bool>,
    refuse: Option<String>,
}

impl Manager {
    pub async fn leader() -> Self {
        Self::new(None, None).await
    }

    pub async fn follower(leader: SocketAddr) -> Self {
        Self::new(Some(leader.to_string()), None).await
    }

    pub async fn refusing(why: &str) -> Self {
        Self::new(None, Some(why.to_owned())).await
    }

    async fn new(leader: Option<String>, refuse: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let seen = watch::Sender::new(Seen::default());
        let shared = Arc::new(Shared {
            seen: seen.clone(),
            assignments: watch::Sender::new(Assignments { term: 1, revision: 1, ..Assignments::default() }),
            commands: broadcast::channel(16).0,
            leader,
            deaf: watch::Sender::new(false),
            refuse,
        });
        let service = DispatcherServer::new(Service(Arc::clone(&shared)));
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("serve");
        });
        Self { address, seen, shared, server }
    }

    /// Sends the whole set anew.
    pub fn assign(&self, tasks: Vec<Task>) {
        self.shared.assignments.send_modify(|assignments| {
            assignments.revision += 1;
            assignments.tasks = tasks;
        });
    }

    pub fn keep_logs(&self, tasks: Vec<Task>, kept: Vec<String>) {
        self.shared.assignments.send_modify(|assignments| {
            assignments.revision += 1;
            (assignments.tasks, assignments.kept_tasks) = (tasks, kept);
        });
    }

    /// Sends a set with a mark of its own.
    pub fn assign_at(&self, term: u64, revision: u64, tasks: Vec<Task>) {
        self.shared.assignments.send_replace(Assignments { term, revision, tasks, kept_tasks: Vec::new() });
    }

    pub fn set_deaf(&self, deaf: bool) {
        self.shared.deaf.send_replace(deaf);
    }

    pub fn logs(&self, command: LogsCommand) {
        let message = ManagerMessage { kind: Some(manager_message::Kind::Logs(command)) };
        self.shared.commands.send(message).expect("a session");
    }

    /// Sends a network view.
    pub fn view(&self, view: NetView) {
        self.shared.commands.send(ManagerMessage { kind: Some(manager_message::Kind::View(view)) }).expect("a session");
    }

    /// Nobody sends to the task any more.
    pub fn release(&self, task: &str) {
        let released = Released { term: 1, task_ids: vec![task.into()] };
        self.shared.commands.send(ManagerMessage { kind: Some(manager_message::Kind::Released(released)) }).expect("a session");
    }

    /// Asks something of the node's images.
    pub fn ask_images(&self, ask: image_request::Kind) {
        self.relay("", relay_open::Kind::Image(ImageRequest { kind: Some(ask) }));
    }

    /// Has a command run in a task's container.
    pub fn exec(&self, task: &str, args: &[&str]) {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.relay(task, relay_open::Kind::Exec(RelayExec { args, ..RelayExec::default() }));
    }

    /// Asks something of a task, or of the node itself.
    pub fn relay(&self, task: &str, kind: relay_open::Kind) {
        let open = RelayOpen { target: "n1".into(), container: String::new(), kind: Some(kind) };
        let command = RelayCommand { request_id: "0123456789relay".into(), task_id: task.into(), open: Some(open), view: None };
        let message = ManagerMessage { kind: Some(manager_message::Kind::Relay(command)) };
        self.shared.commands.send(message).expect("a session");
    }

    /// The power of this manager is cut.
    pub fn stop(&self) {
        self.server.abort();
    }

    /// Waits until what was seen of the agent fits.
    pub async fn until<T>(&self, what: &str, mut fits: impl FnMut(&Seen) -> Option<T>) -> T {
        let mut found = None;
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(
            PATIENCE,
            seen.wait_for(|seen| {
                found = fits(seen);
                found.is_some()
            }),
        )
        .await;
        match (waited.is_ok(), found) {
            (true, Some(found)) => found,
            _ => panic!("not seen in time: {what}; seen: {:#?}", self.seen.borrow()),
        }
    }

    /// Waits until the task is reported in this state or a later one; gives its status.
    pub async fn reported(&self, task: &str, state: TaskState) -> TaskStatus {
        self.until(&format!("{task} {state:?}"), |seen| seen.statuses.get(task).filter(|status| status.state() >= state).cloned()).await
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service(Arc<Shared>);

impl Shared {
    fn report(&self, tasks: Vec<TaskReport>) {
        self.seen.send_modify(|seen| {
            for report in tasks {
                let status = report.status.expect("a status");
                if seen.statuses.get(&report.task_id).is_none_or(|before| before.state < status.state) {
                    seen.history.push((report.task_id.clone(), status.state()));
                }
                seen.statuses.insert(report.task_id, status);
            }
        });
    }
}

#[tonic::async_trait]
impl Dispatcher for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(leader) = &self.0.leader {
            let mut status = Status::failed_precondition("not the leader");
            status.metadata_mut().insert("x-rcluster-leader", leader.parse().expect("an address"));
            return Err(status);
        }
        if let Some(why) = &self.0.refuse {
            return Err(Status::already_exists(why.clone()));
        }
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|message| message.kind);
        let Some(agent_message::Kind::Register(register)) = first else { return Err(Status::invalid_argument("register first")) };
        let shared = Arc::clone(&self.0);
        shared.report(register.tasks.clone());
        shared.seen.send_modify(|seen| seen.registrations.push(register));
        let (sender, stream) = mpsc::channel(16);
        let welcome = Welcome { term: 1, heartbeat_ms: 50, session_timeout_ms: 5000, managers: Vec::new() };
        tokio::spawn(async move {
            let mut assignments = shared.assignments.subscribe();
            let mut commands = shared.commands.subscribe();
            assignments.mark_changed();
            let mut next = Some(manager_message::Kind::Welcome(welcome));
            loop {
                if let Some(kind) = next.take()
                    && sender.send(Ok(ManagerMessage { kind: Some(kind) })).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    message = inbound.message() => match message {
                        Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Heartbeat(heartbeat)) })) => {
                            shared.seen.send_modify(|seen| seen.heartbeats += 1);
                            if !*shared.deaf.borrow() {
                                next = Some(manager_message::Kind::Ack(HeartbeatAck { sequence: heartbeat.sequence }));
                            }
                        }
                        Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Status(report)) })) => shared.report(report.tasks),
                        Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Applied(applied)) })) => {
                            shared.seen.send_modify(|seen| seen.applied.push((applied.term, applied.revision)));
                        }
                        Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Network(network)) })) => {
                            shared.seen.send_modify(|seen| seen.networks.push(network));
                        }
                        _ => return,
                    },
                    _ = assignments.changed() => {
                        next = Some(manager_message::Kind::Assignments(assignments.borrow_and_update().clone()));
                    }
                    command = commands.recv() => next = command.ok().and_then(|message| message.kind),
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type RelayStream = Pin<Box<dyn Stream<Item = Result<RelayInput, Status>> + Send>>;

    async fn relay(&self, request: Request<Streaming<RelayOutput>>) -> Result<Response<Self::RelayStream>, Status> {
        let mut outputs = request.into_inner();
        let shared = Arc::clone(&self.0);
        let (user, inputs) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(RelayOutput { kind: Some(kind) })) = outputs.message().await {
                shared.seen.send_modify(|seen| seen.relayed.push(kind));
            }
            // The user stays for as long as the agent speaks.
            drop(user);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(inputs))))
    }

    async fn publish_logs(&self, request: Request<Streaming<LogChunk>>) -> Result<Response<PublishLogsResponse>, Status> {
        let mut chunks = request.into_inner();
        while let Some(chunk) = chunks.message().await? {
            self.0.seen.send_modify(|seen| seen.chunks.push(chunk));
        }
        Ok(Response::new(PublishLogsResponse {}))
    }
}
