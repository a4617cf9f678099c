//! The Dispatcher service: the agents' sessions.
//!
//! A session is two loops. One reads what the agent says and tells the brain. The other waits for revisions and sends the node's view
//! and assignments when they have changed; the view goes first. It also tells which tasks nobody sends to any more, which follows from the
//! views that all sessions have heard confirmed. Both end with the session, and the session with the term.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::network::NodeNetwork;
use rcluster_api::object::{NodeDescription, TaskStatus};
use rcluster_api::wire::v1::dispatcher_server::Dispatcher;
use rcluster_api::wire::v1::{self, agent_message, manager_message, relay_output};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::auth;
use super::control::Answers;
use super::route::Router;
use crate::core::dispatch::netview::Networks;
use crate::core::dispatch::told::Told;
use crate::core::node::register::Registration;
use crate::core::state::State;
use crate::drive::{AgentEnd, Event, Term};

/// Metadata key of the leader's address in a refusal.
const LEADER_KEY: &str = "x-rcluster-leader";
/// How long an agent may take to say who it is.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait for a slow agent.
const OUTBOX_MAX: usize = 32;
/// Frames of a relay that wait for a slow agent.
const RELAY_FRAMES_MAX: usize = 8;
/// Silence of a manager after which an agent looks for another, in heartbeats.
const SESSION_TIMEOUT_BEATS: u64 = 2;

/// Answers agents while this manager leads.
#[derive(Debug, Clone)]
pub struct DispatcherService {
    router: Router,
    networks: Arc<Mutex<Option<Arc<Networks>>>>,
}

impl DispatcherService {
    /// A service that knows the leader by `router`.
    pub fn new(router: Router) -> Self {
        Self { router, networks: Arc::default() }
    }

    fn term(&self) -> Result<Arc<Term>, Status> {
        self.router.leadership.term().ok_or_else(|| {
            let mut status: Status = ApiError::new(ErrorCode::NotLeader, "this manager does not lead").hint("connect to the leader").into();
            let leader = self.router.store.role().borrow().leader.clone();
            if let Some(addr) = leader.and_then(|leader| leader.addr.parse().ok()) {
                status.metadata_mut().insert(LEADER_KEY, addr);
            }
            status
        })
    }

    /// The networks as of `state` or later, made once for all sessions.
    fn networks(&self, state: &State) -> Arc<Networks> {
        let mut cached = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let networks = Networks::at_least(cached.as_ref(), state);
        *cached = Some(networks.clone());
        networks
    }
}

/// Task reports from the wire; one that means nothing is left out and logged.
fn reports(node: &NodeId, wire: Vec<v1::TaskReport>) -> Vec<(TaskId, TaskStatus)> {
    let read = |report: v1::TaskReport| {
        let status = report.status.map(TaskStatus::try_from);
        match status {
            Some(Ok(status)) => Some((TaskId::from(report.task_id), status)),
            Some(Err(error)) => {
                warn!(%node, task = report.task_id, %error, "unreadable report");
                None
            }
            None => None,
        }
    };
    wire.into_iter().filter_map(read).collect()
}

async fn first_message(inbox: &mut Streaming<v1::AgentMessage>) -> Result<v1::Register, Status> {
    let refused = |message: &str| Status::from(ApiError::new(ErrorCode::Invalid, message));
    match tokio::time::timeout(REGISTER_TIMEOUT, inbox.message()).await {
        Err(_) => Err(refused("the agent did not register in time")),
        Ok(message) => match message?.and_then(|message| message.kind) {
            Some(agent_message::Kind::Register(register)) => Ok(register),
            _ => Err(refused("the first message of a session is Register")),
        },
    }
}

async fn register(term: &Term, register: v1::Register) -> Result<NodeId, Status> {
    let v1::Register { node_id, incarnation, description, tasks } = register;
    let node = NodeId::from(node_id);
    let description = description.ok_or_else(|| ApiError::new(ErrorCode::Invalid, "the agent did not describe its host"))?;
    let description = NodeDescription::try_from(description).map_err(ApiError::from)?;
    let reports = reports(&node, tasks);
    let known: BTreeSet<TaskId> = reports.iter().map(|(task, _)| task.clone()).collect();
    let registration = Box::new(Registration { id: node.clone(), incarnation, description, tasks: known });
    let (reply, answer) = oneshot::channel();
    let over = |_| Status::from(ApiError::new(ErrorCode::Unavailable, "this manager stopped leading"));
    term.events.send(Event::Register { registration, reports, from: reply }).await.map_err(|_| over(()))?;
    answer.await.map_err(|_| over(()))??;
    Ok(node)
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = Answers<v1::ManagerMessage>;

    async fn session(&self, request: Request<Streaming<v1::AgentMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let term = self.term()?;
        let agent = auth::agent(&request, &self.router.store.state())?;
        let mut inbox = request.into_inner();
        let first = first_message(&mut inbox).await?;
        if let Some(own) = agent.filter(|own| *own != first.node_id) {
            let why = format!("the agent of node {own} says that it is {}", first.node_id);
            return Err(ApiError::new(ErrorCode::Forbidden, why).into());
        }
        let name = first.description.as_ref().map(|description| description.name.clone()).unwrap_or_default();
        let node = register(&term, first).await?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let timing = term.timing;
        let welcome = v1::Welcome {
            term: term.number,
            heartbeat_ms: timing.heartbeat_ms,
            session_timeout_ms: timing.heartbeat_ms * SESSION_TIMEOUT_BEATS,
            managers: self.router.store.status().members.into_iter().map(|member| member.addr).collect(),
        };
        let welcomed = outbox.try_send(Ok(v1::ManagerMessage { kind: Some(manager_message::Kind::Welcome(welcome)) }));
        welcomed.map_err(|_| Status::from(ApiError::new(ErrorCode::Internal, "a new outbox is full")))?;
        term.sessions.add(&node, outbox.clone());
        let session = term.views.begin(&node);
        info!(node = name, id = %node, "session opened");
        let service = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = term.ended.cancelled() => {}
                () = listen(&term, &node, session, inbox, &outbox) => {}
                () = service.tell(&term, &node, session, &outbox) => {}
            }
            term.sessions.remove(&node, &outbox);
            term.views.end(&node, session);
            term.logs.close_session(&outbox);
            info!(node = name, "session closed");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn publish_logs(&self, request: Request<Streaming<v1::LogChunk>>) -> Result<Response<v1::PublishLogsResponse>, Status> {
        let term = self.term()?;
        let agent = auth::agent(&request, &self.router.store.state())?;
        let mut chunks = request.into_inner();
        let mut request_id = String::new();
        let ended = loop {
            let chunk = match chunks.message().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            };
            let Some(reader) = term.logs.reader(&chunk.request_id, agent.as_deref()) else { break Ok(()) };
            request_id.clone_from(&chunk.request_id);
            if reader.send(chunk).await.is_err() {
                break Ok(());
            }
        };
        term.logs.close(&request_id);
        ended?;
        Ok(Response::new(v1::PublishLogsResponse {}))
    }

    type RelayStream = Answers<v1::RelayInput>;

    async fn relay(&self, request: Request<Streaming<v1::RelayOutput>>) -> Result<Response<Self::RelayStream>, Status> {
        let term = self.term()?;
        let agent = auth::agent(&request, &self.router.store.state())?;
        let mut outputs = request.into_inner();
        let refused = |message: &str| Status::from(ApiError::new(ErrorCode::Invalid, message));
        let first = tokio::time::timeout(REGISTER_TIMEOUT, outputs.message()).await;
        let first = first.map_err(|_| refused("the relay's id was not said in time"))??.and_then(|output| output.kind);
        let Some(relay_output::Kind::RequestId(id)) = first else {
            return Err(refused("the first message of an agent's relay is request_id"));
        };
        let (inputs, messages) = mpsc::channel(RELAY_FRAMES_MAX);
        let gone = || Status::from(ApiError::new(ErrorCode::NotFound, "the user of this relay has gone"));
        term.relays.take(&id, agent.as_deref()).ok_or_else(gone)?.send(AgentEnd { inputs, outputs }).map_err(|_| gone())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// Tells the brain what the agent says, until it has nothing more to say or has been silent for so long that its node is down: a host that
/// lost its power closes no connection.
async fn listen(
    term: &Term,
    node: &NodeId,
    session: u64,
    mut inbox: Streaming<v1::AgentMessage>,
    outbox: &mpsc::Sender<Result<v1::ManagerMessage, Status>>,
) {
    let silence = Duration::from_millis(term.timing.down_ms);
    while let Ok(Ok(Some(message))) = tokio::time::timeout(silence, inbox.message()).await {
        if term.events.send(Event::Heard { node: node.clone(), at: term.began.elapsed() }).await.is_err() {
            return;
        }
        match message.kind {
            Some(agent_message::Kind::Heartbeat(beat)) => {
                term.views.acknowledged(node, session, (beat.view_term, beat.view_revision));
                let ack = manager_message::Kind::Ack(v1::HeartbeatAck { sequence: beat.sequence });
                if outbox.send(Ok(v1::ManagerMessage { kind: Some(ack) })).await.is_err() {
                    return;
                }
            }
            Some(agent_message::Kind::Status(status)) => {
                let reports = reports(node, status.tasks);
                if term.events.send(Event::Reports { node: node.clone(), reports }).await.is_err() {
                    return;
                }
            }
            Some(agent_message::Kind::Applied(applied)) => {
                debug!(%node, term = applied.term, revision = applied.revision, problems = applied.problems, "view in force");
                term.views.acknowledged(node, session, (applied.term, applied.revision));
            }
            Some(agent_message::Kind::Network(network)) => match NodeNetwork::try_from(network) {
                Ok(network) => {
                    if term.events.send(Event::Network { node: node.clone(), network }).await.is_err() {
                        return;
                    }
                }
                Err(error) => warn!(%node, %error, "unreadable word of a node's network"),
            },
            Some(agent_message::Kind::Register(_)) | None => warn!(%node, "unexpected message in a session"),
        }
    }
}

/// Whether the agent is there to be told.
async fn send(outbox: &mpsc::Sender<Result<v1::ManagerMessage, Status>>, messages: Vec<manager_message::Kind>) -> bool {
    for kind in messages {
        if outbox.send(Ok(v1::ManagerMessage { kind: Some(kind) })).await.is_err() {
            return false;
        }
    }
    true
}

impl DispatcherService {
    /// Sends the node its view, the secrets and configs of its tasks, its assignments, and which of its tasks need not wait any longer to
    /// stop, whenever they differ from what it was sent last.
    async fn tell(&self, term: &Term, node: &NodeId, session: u64, outbox: &mpsc::Sender<Result<v1::ManagerMessage, Status>>) {
        let (mut revisions, mut releases) = (self.router.store.revisions(), term.views.releases());
        let mut told = Told::default();
        loop {
            revisions.borrow_and_update();
            releases.borrow_and_update();
            let state = self.router.store.state();
            let networks = self.networks(&state);
            let view = told.view_news(&state, &networks, node, term.number);
            term.views.compared(node, session, &networks, told.view());
            if !send(outbox, view).await {
                return;
            }
            let mut messages = told.task_news(&state, node, term.number);
            messages.extend(told.release(term.views.released(node), term.number));
            if !send(outbox, messages).await {
                return;
            }
            let changed = tokio::select! {
                changed = revisions.changed() => changed,
                changed = releases.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}
