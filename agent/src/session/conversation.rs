//! One session with one manager, from Register to its end.
//!
//! ```text
//! agent                          manager
//!   │ Register (all statuses) ──►│
//!   │◄── Welcome                 │
//!   │◄── NetView, Assignments    │  whenever they change
//!   │ Heartbeat ────────────────►│  every heartbeat_ms
//!   │◄── HeartbeatAck            │  none for session_timeout_ms: the session is lost
//!   │ StatusReport ─────────────►│  what changed, at once
//!   │ ViewApplied ──────────────►│  which view netd holds: at first, and whenever that changes or a view comes that is not newer
//!   │◄── Released                │  tasks that need not wait any longer to stop
//!   │ NodeNetwork ──────────────►│  when netd says another one, with a beat
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use rcluster_api::client::root_cause;
use rcluster_api::data::Payload;
use rcluster_api::id::TaskId;
use rcluster_api::object::TaskStatus;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::{
    AgentMessage, Heartbeat, ManagerMessage, NodeDescription, NodeNetwork, Register, StatusReport, TaskReport, Trust, ViewApplied,
    agent_message, manager_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::Session;
use crate::core::beat::{Beats, news};
use crate::core::owner::Statuses;
use crate::credentials;
use crate::exec::netd_client::Applied;
use crate::logs::Readers;
use crate::relay::Relays;

/// How a session, or the attempt at one, went.
pub struct Talk {
    /// The managers' addresses, if a session came about.
    pub welcome: Option<Vec<String>>,
    pub end: End,
}

/// Why it ended.
pub enum End {
    Redirected { leader: String },
    Refused { why: String },
    Lost { why: String },
}

const CONNECT: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(2);
const LEADER: &str = "x-rcluster-leader";
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const OUTBOUND_MAX: usize = 32;
/// Used until the manager has said.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Holds a session with the manager at `address` until it ends.
pub async fn converse(session: &mut Session, address: &str) -> Talk {
    match begin(session, address).await {
        Ok(conversation) => conversation.hold(session).await,
        Err(end) => Talk { welcome: None, end },
    }
}

struct Conversation {
    address: String,
    outbound: mpsc::Sender<AgentMessage>,
    inbound: Streaming<ManagerMessage>,
    readers: Readers,
    relays: Relays,
    /// What the manager has been told.
    told: Statuses,
    applied: watch::Receiver<Applied>,
    /// The manager is to be told which view netd holds.
    is_unconfirmed: bool,
    network: Option<NodeNetwork>,
    welcome: Option<Vec<String>>,
    heartbeat: Interval,
    /// Origin of the beats' monotonic time.
    began: Instant,
    beats: Beats,
}

async fn begin(session: &mut Session, address: &str) -> Result<Conversation, End> {
    let lost = |why: String| End::Lost { why };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| lost(error.to_string()))?;
    let channel: Channel = timeout(CONNECT, session.tools.security.connect(endpoint))
        .await
        .map_err(|_| lost(format!("no connection within {} ms", CONNECT.as_millis())))?
        .map_err(|error| lost(root_cause(&error)))?;
    let mut client =
        DispatcherClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
    let network = session.tools.netd.ask_network().await;
    let description = NodeDescription { network: network.clone(), ..session.description.clone().into() };
    let told = session.statuses.borrow_and_update().clone();
    let register = Register {
        node_id: session.node_id.to_string(),
        incarnation: session.incarnation,
        description: Some(description),
        tasks: told.iter().map(report).collect(),
    };
    let first = AgentMessage { kind: Some(agent_message::Kind::Register(register)) };
    outbound.try_send(first).map_err(|_| lost("the first message found no room".into()))?;
    let answer = timeout(ANSWER, client.session(ReceiverStream::new(messages))).await;
    let inbound = answer.map_err(|_| lost(format!("no answer within {} s", ANSWER.as_secs())))?.map_err(|status| end_of(&status))?;
    Ok(Conversation {
        address: address.to_owned(),
        outbound,
        inbound: inbound.into_inner(),
        readers: Readers::new(client, session.tools.places.clone(), session.tools.node.clone(), session.statuses.clone()),
        relays: Relays::new(address.to_owned(), Arc::clone(&session.tools)),
        told,
        applied: session.tools.netd.watch_applied(),
        is_unconfirmed: true,
        network,
        welcome: None,
        heartbeat: beats(HEARTBEAT),
        began: Instant::now(),
        beats: Beats::new(Duration::ZERO),
    })
}

impl Conversation {
    async fn hold(mut self, session: &mut Session) -> Talk {
        let mut dirty = false;
        let end = loop {
            let deadline = self.began + self.beats.deadline();
            tokio::select! {
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => self.handle(session, message),
                    Ok(None) => break End::Lost { why: "the manager closed the session".into() },
                    Err(status) => break end_of(&status),
                },
                _ = self.heartbeat.tick(), if self.welcome.is_some() => {
                    self.beat(session);
                    self.tell_network(session);
                },
                // The sender lives as long as the owner of all tasks.
                changed = session.statuses.changed(), if !dirty => dirty = changed.is_ok(),
                permit = self.outbound.clone().reserve_owned(), if dirty && self.welcome.is_some() => {
                    dirty = false;
                    let Ok(permit) = permit else { break End::Lost { why: "the manager does not read any more".into() } };
                    let tasks = self.news(session);
                    if !tasks.is_empty() {
                        permit.send(AgentMessage { kind: Some(agent_message::Kind::Status(StatusReport { tasks })) });
                    }
                },
                // The sender lives as long as the process.
                changed = self.applied.changed(), if !self.is_unconfirmed => self.is_unconfirmed = changed.is_ok(),
                permit = self.outbound.clone().reserve_owned(), if self.is_unconfirmed && self.welcome.is_some() => {
                    let Ok(permit) = permit else { break End::Lost { why: "the manager does not read any more".into() } };
                    permit.send(self.confirmation());
                },
                () = sleep_until(deadline) => break End::Lost { why: format!("no heartbeat answered for {} ms", self.beats.timeout().as_millis()) },
            }
        };
        Talk { welcome: self.welcome, end }
    }

    /// Which view netd holds.
    fn confirmation(&mut self) -> AgentMessage {
        self.is_unconfirmed = false;
        let Applied { mark: (term, revision), problems } = *self.applied.borrow_and_update();
        AgentMessage { kind: Some(agent_message::Kind::Applied(ViewApplied { term, revision, problems })) }
    }

    fn handle(&mut self, session: &Session, message: ManagerMessage) {
        match message.kind {
            Some(manager_message::Kind::Welcome(welcome)) => {
                info!(manager = self.address, term = welcome.term, "session");
                self.heartbeat = beats(Duration::from_millis(welcome.heartbeat_ms.max(10)));
                self.beats.welcomed(Duration::from_millis(welcome.session_timeout_ms), self.began.elapsed());
                self.welcome = Some(welcome.managers);
            }
            Some(manager_message::Kind::Ack(ack)) => self.beats.answered(ack.sequence),
            Some(manager_message::Kind::View(view)) => {
                if view.node_id != session.node_id.as_str() && !view.node_id.is_empty() {
                    warn!(node = view.node_id, "refuses a network view that is for another node");
                } else if !session.tools.netd.set_view(view) {
                    debug!("the network view is not newer than the last");
                    // The manager waits for it all the same.
                    self.is_unconfirmed = true;
                }
            }
            Some(manager_message::Kind::Trust(Trust { authorities })) => {
                let authorities = authorities.into_iter().map(Payload).collect();
                drop(session.trust.send_replace(credentials::Trust { leader: self.address.clone(), authorities }));
            }
            Some(manager_message::Kind::Data(data)) => session.tools.data.take(data),
            Some(manager_message::Kind::Assignments(assignments)) => {
                session.tools.data.keep(assignments.tasks.iter().filter_map(|task| task.template.as_ref()));
                let ids: BTreeSet<&str> =
                    assignments.tasks.iter().filter_map(|task| task.meta.as_ref()).map(|meta| meta.id.as_str()).collect();
                session.tools.released.send_if_modified(|released| {
                    released.retain(|id| ids.contains(id.as_str()));
                    // Nobody waits for one to be forgotten.
                    false
                });
                drop(session.assignments.send_replace(Some(assignments)));
            }
            Some(manager_message::Kind::Logs(command)) => self.readers.begin(command),
            Some(manager_message::Kind::LogsCancel(cancel)) => self.readers.cancel(&cancel.request_id),
            Some(manager_message::Kind::Relay(command)) => self.relays.begin(command),
            Some(manager_message::Kind::Released(released)) => {
                let ids = released.task_ids.into_iter().map(TaskId::from);
                session.tools.released.send_modify(|released| released.extend(ids));
            }
            None => debug!("a message of a kind this agent does not know"),
        }
    }

    /// Without room for it the beat is left out: the manager does not read, and the deadline sees to that.
    fn beat(&mut self, session: &Session) {
        let Ok(permit) = self.outbound.try_reserve() else { return };
        let sequence = self.beats.send(self.began.elapsed());
        let (view_term, view_revision) = session.tools.netd.applied();
        let beat = Heartbeat { sequence, view_revision, view_term };
        permit.send(AgentMessage { kind: Some(agent_message::Kind::Heartbeat(beat)) });
    }

    /// What netd says of the host's network, when it is another than was told; without room for it with the next beat.
    fn tell_network(&mut self, session: &Session) {
        let network = session.tools.netd.network();
        if network == self.network {
            return;
        }
        let Ok(permit) = self.outbound.try_reserve() else { return };
        permit.send(AgentMessage { kind: network.clone().map(agent_message::Kind::Network) });
        self.network = network;
    }

    /// What the manager has not been told yet.
    fn news(&mut self, session: &mut Session) -> Vec<TaskReport> {
        let statuses = session.statuses.borrow_and_update();
        news(&mut self.told, &statuses).iter().map(|(id, status)| report((id, status))).collect()
    }
}

fn report((id, status): (&TaskId, &TaskStatus)) -> TaskReport {
    TaskReport { task_id: id.to_string(), status: Some(status.clone().into()) }
}

fn beats(period: Duration) -> Interval {
    let mut beats = interval(period);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

fn end_of(status: &Status) -> End {
    // The message alone does not say more than that the transport failed, the cause of that does.
    let cause = status.source().map_or_else(String::new, |source| format!(": {}", root_cause(source)));
    let why = format!("{:?}: {}{cause}", status.code(), status.message());
    let leader = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()).filter(|leader| !leader.is_empty());
    match (status.code(), leader) {
        (Code::FailedPrecondition | Code::Unavailable, Some(leader)) => End::Redirected { leader: leader.to_owned() },
        (Code::AlreadyExists | Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated, _) => End::Refused { why },
        _ => End::Lost { why },
    }
}
