//! Conversations of users with containers, and with nodes about their images and networks: finds the task or the node, has its agent
//! answer, passes the frames of both sides on.
//!
//! ```text
//! user ──inputs──► leader ──► agent        a few frames are held each way: who does not read makes the other wait
//! user ◄────────── leader ◄──outputs── agent
//! ```
//!
//! The conversation ends with the first of: the agent has said all, the user has gone or may no longer, the agent has gone, the task no
//! longer runs, the node is gone, this manager no longer leads.

use std::sync::Arc;
use std::time::Duration;

use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::{Node, NodeState, Task};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1::{self, image_request, manager_message, relay_input, relay_open, relay_output};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::audit::Call;
use super::auth;
use super::control::Answers;
use super::holder::Holder;
use super::network;
use super::route::{Route, Router, control, forward};
use crate::core::state::State;
use crate::drive::{AgentEnd, RelayRequest, Term};
use crate::meter::There;
use crate::store::Store;

/// Frames held each way. A frame is at most a message, and both sides send small ones.
const FRAMES_MAX: usize = 8;
/// How long a user may take to say what is wanted.
const OPEN: Duration = Duration::from_secs(5);
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a user may take to be told why it ends.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long after its task's end an agent may go on to pass on the rest.
const REST: Duration = Duration::from_secs(5);

/// Passes on what the user sends and what the agent answers, here or through the leader.
pub async fn stream(router: &Router, request: Request<Streaming<v1::RelayInput>>) -> Result<Answers<v1::RelayOutput>, Status> {
    let mut call = Call::begin(router, &request, "Control/Relay", |_| String::new());
    let answered = answer(router, request, &mut call.what).await;
    // What needs no more than to be allowed to look is told of when it was refused.
    match &answered {
        Ok((_, UserRole::ReadOnly)) => call.end_untold(),
        Ok((_, UserRole::Deploy | UserRole::Admin)) | Err(_) => call.end(&answered),
    }
    answered.map(|(answers, _)| answers)
}

/// Says which role the conversation needs, and in `what` what it is for, as far as that was said.
async fn answer(
    router: &Router,
    request: Request<Streaming<v1::RelayInput>>,
    what: &mut String,
) -> Result<(Answers<v1::RelayOutput>, UserRole), Status> {
    auth::admit(&request)?;
    let (metadata, extensions, mut inputs) = request.into_parts();
    let open = opening(&mut inputs).await?;
    *what = named(&open);
    let (role, _) = needed(&open);
    let asked = Request::from_parts(metadata, extensions, ());
    let answers = match router.route(&asked).await? {
        Route::There(leader) => {
            let first = v1::RelayInput { kind: Some(relay_input::Kind::Open(open)) };
            // A user's connection that breaks ends the answer too, and with it this call: the error itself need not be passed on.
            let inputs = tokio_stream::once(first).chain(inputs.map_while(Result::ok));
            let answer = control(leader.channel).relay(forward(asked.map(|()| inputs))).await?;
            Box::pin(answer.into_inner())
        }
        Route::Here(term) => {
            let state = router.fresh().await?;
            begin(router, term, &state, &asked, open, inputs).await?
        }
    };
    Ok((answers, role))
}

/// Has the agent answer.
async fn begin(
    router: &Router,
    term: Arc<Term>,
    state: &State,
    asked: &Request<()>,
    open: v1::RelayOpen,
    inputs: Streaming<v1::RelayInput>,
) -> Result<Answers<v1::RelayOutput>, Status> {
    let (role, deed) = needed(&open);
    auth::known(asked, state)?.needs(role, deed)?;
    let holder = Holder::new(&router.store, asked, role, deed)?;
    let partner = match &open.kind {
        Some(relay_open::Kind::Image(_) | relay_open::Kind::NetDump(_)) => Partner::Node(find_node(state, &open.target)?),
        _ => Partner::Task(Box::new(find_task(state, &open.target)?)),
    };
    let node = partner.node_id()?;
    let outbox = term.sessions.outbox(node).ok_or_else(|| {
        ApiError::new(ErrorCode::Conflict, format!("{} is not connected to the leader", partner.place()))
            .hint(format!("wait until it is back, or look at it: rclusterctl node inspect {}", partner.node()))
    })?;
    let request = term.relays.open(node.clone());
    let task_id = partner.task_id().map(ToString::to_string).unwrap_or_default();
    let view = match (&open.kind, &partner) {
        (Some(relay_open::Kind::NetDump(_)), Partner::Node(node)) => Some(network::of_node(state, node, term.number)),
        _ => None,
    };
    let command = v1::RelayCommand { request_id: request.id.clone(), task_id, open: Some(open), view };
    let message = v1::ManagerMessage { kind: Some(manager_message::Kind::Relay(command)) };
    let sent = timeout(ANSWER, outbox.send(Ok(message))).await;
    if !matches!(sent, Ok(Ok(()))) {
        return Err(partner.silent().into());
    }
    // A clone that is kept would keep the agent's session open.
    drop(outbox);
    let (sender, outputs) = mpsc::channel(FRAMES_MAX);
    let (store, _there) = (router.store.clone(), router.figures.relays.there());
    tokio::spawn(Relay { store, term, partner, sender, _there }.run(request, inputs, holder));
    Ok(Box::pin(ReceiverStream::new(outputs)))
}

/// What a conversation is for, as audit events call it: not which command, as its arguments may be secret.
fn named(open: &v1::RelayOpen) -> String {
    use image_request::Kind as Image;
    let deed = match &open.kind {
        Some(relay_open::Kind::Exec(_)) => "exec in",
        Some(relay_open::Kind::Attach(_)) => "attach to",
        Some(relay_open::Kind::CopyFrom(_)) => "copy from",
        Some(relay_open::Kind::CopyTo(_)) => "copy to",
        Some(relay_open::Kind::Stats(_)) => "statistics of",
        Some(relay_open::Kind::Top(_)) => "processes of",
        Some(relay_open::Kind::Pause(pause)) => {
            if pause.resume {
                "unpause"
            } else {
                "pause"
            }
        }
        Some(relay_open::Kind::Image(v1::ImageRequest { kind })) => match kind {
            Some(Image::Pull(_)) => "pull an image on",
            Some(Image::Load(_)) => "load images on",
            Some(Image::Save(_)) => "save images of",
            Some(Image::Rm(_)) => "remove an image on",
            Some(Image::Tag(_)) => "tag an image on",
            Some(Image::Prune(_)) => "prune images on",
            Some(Image::Ls(_) | Image::History(_) | Image::Inspect(_)) | None => "look at images of",
        },
        Some(relay_open::Kind::NetDump(_)) => "look at the network of",
        Some(relay_open::Kind::NetTrace(_)) => "trace packets of",
        None => "nothing with",
    };
    format!("{deed} {}", open.target)
}

/// Which role a conversation needs, and what it is called.
fn needed(open: &v1::RelayOpen) -> (UserRole, &'static str) {
    use image_request::Kind as Image;
    match &open.kind {
        Some(relay_open::Kind::Stats(_) | relay_open::Kind::Top(_)) => (UserRole::ReadOnly, "seeing a container's figures"),
        Some(relay_open::Kind::Image(v1::ImageRequest { kind: Some(Image::Ls(_) | Image::History(_) | Image::Inspect(_)) })) => {
            (UserRole::ReadOnly, "listing images")
        }
        Some(relay_open::Kind::Image(_)) => (UserRole::Deploy, "changing images"),
        Some(relay_open::Kind::NetDump(_) | relay_open::Kind::NetTrace(_)) => (UserRole::ReadOnly, "looking at a node's network"),
        Some(
            relay_open::Kind::Exec(_)
            | relay_open::Kind::Attach(_)
            | relay_open::Kind::Pause(_)
            | relay_open::Kind::CopyFrom(_)
            | relay_open::Kind::CopyTo(_),
        )
        | None => (UserRole::Deploy, "working in a container"),
    }
}

async fn opening(inputs: &mut Streaming<v1::RelayInput>) -> Result<v1::RelayOpen, Status> {
    let refused = |why: &str| Status::from(ApiError::new(ErrorCode::Invalid, why));
    match timeout(OPEN, inputs.message()).await {
        Err(_) => Err(refused("the relay was not opened in time")),
        Ok(message) => match message?.and_then(|input| input.kind) {
            Some(relay_input::Kind::Open(open)) => Ok(open),
            _ => Err(refused("the first message of a relay is open")),
        },
    }
}

/// The node of that name or id.
pub fn find_node(state: &State, target: &str) -> Result<Arc<Node>, ApiError> {
    state
        .find_node(target)
        .cloned()
        .ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no node {target}")).hint("rclusterctl get nodes lists them"))
}

/// The task that `target` names and that runs; one of a service's when it names a service.
fn find_task(state: &State, target: &str) -> Result<Task, ApiError> {
    let runs = |task: &Task| task.status.state == TaskState::Running && task.is_wanted();
    if let Some(service) = state.find_service(target) {
        let tasks = state.tasks_of_service(&service.id);
        return tasks.filter(|task| runs(task)).min_by_key(|task| task.slot).map(|task| Task::clone(task)).ok_or_else(|| {
            ApiError::new(ErrorCode::Conflict, format!("no task of service {target} runs"))
                .hint(format!("rclusterctl ps {target} shows its tasks and what they wait for"))
        });
    }
    let named = state.tasks().values().filter(|task| task.name == target || task.id.as_str() == target);
    let task = named.max_by_key(|task| (runs(task), task.is_live(), task.stamp.created_at_ms)).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no service or task {target}")).hint("rclusterctl ps lists the tasks")
    })?;
    if task.status.state == TaskState::Running { Ok(Task::clone(task)) } else { Err(not_running(task)) }
}

fn not_running(task: &Task) -> ApiError {
    let message = format!("task {} is {}, not running", task.name, task.status.state);
    ApiError::new(ErrorCode::Conflict, message).hint("rclusterctl ps -a shows all tasks; rclusterctl logs what they wrote")
}

/// Who the user talks with.
enum Partner {
    Task(Box<Task>),
    Node(Arc<Node>),
}

impl Partner {
    fn node_id(&self) -> Result<&NodeId, ApiError> {
        match self {
            Self::Task(task) => task.node_id.as_ref().ok_or_else(|| not_running(task)),
            Self::Node(node) => Ok(&node.id),
        }
    }

    fn task_id(&self) -> Option<&TaskId> {
        match self {
            Self::Task(task) => Some(&task.id),
            Self::Node(_) => None,
        }
    }

    /// The node's name.
    fn node(&self) -> &str {
        match self {
            Self::Task(task) => &task.node,
            Self::Node(node) => node.name(),
        }
    }

    /// The node as an error speaks of it.
    fn place(&self) -> String {
        match self {
            Self::Task(task) => format!("node {}, on which {} runs,", task.node, task.name),
            Self::Node(node) => format!("node {} ({})", node.name(), node.state.as_str()),
        }
    }

    fn silent(&self) -> ApiError {
        let message = format!("node {} does not answer: the agent there has not opened the relay in time", self.node());
        ApiError::new(ErrorCode::Conflict, message).hint("rclusterctl get nodes shows which nodes are heard")
    }
}

struct Relay {
    store: Store,
    term: Arc<Term>,
    partner: Partner,
    sender: mpsc::Sender<Result<v1::RelayOutput, Status>>,
    _there: There,
}

impl Relay {
    async fn run(self, request: RelayRequest, inputs: Streaming<v1::RelayInput>, holder: Holder) {
        let ended = self.term.ended.clone();
        let problem = tokio::select! {
            () = ended.cancelled() => {
                let why = "this manager stopped leading, which ended the relay";
                Err(ApiError::new(ErrorCode::Unavailable, why).hint("what ran for it in the container has been ended; try again"))
            }
            () = self.sender.closed() => Ok(()),
            why = self.partner_over() => Err(why),
            why = holder.over() => Err(why),
            done = self.converse(request, inputs) => done,
        };
        if let Err(problem) = problem {
            // A user who has gone misses nothing.
            drop(self.sender.send_timeout(Err(problem.into()), LAST_WORD).await);
        }
    }

    async fn converse(&self, mut request: RelayRequest, inputs: Streaming<v1::RelayInput>) -> Result<(), ApiError> {
        let AgentEnd { inputs: to_agent, outputs } = match timeout(ANSWER, &mut request.agent).await {
            Ok(Ok(agent)) => agent,
            Ok(Err(_)) | Err(_) => return Err(self.partner.silent()),
        };
        tokio::select! {
            () = pass_on(inputs, &to_agent) => Ok(()),
            done = self.pass_back(outputs) => done,
        }
    }

    /// Ends when the agent has said all.
    async fn pass_back(&self, mut outputs: Streaming<v1::RelayOutput>) -> Result<(), ApiError> {
        loop {
            let output = outputs.message().await.map_err(|status| self.broken(&status))?;
            match output.map(|output| output.kind) {
                None => return Ok(()),
                Some(Some(relay_output::Kind::Problem(v1::RelayProblem { code, message, hint }))) => {
                    let code = ErrorCode::from_name(&code).unwrap_or(ErrorCode::Internal);
                    return Err(ApiError::new(code, message).hint(hint));
                }
                Some(Some(relay_output::Kind::RequestId(_)) | None) => {}
                Some(Some(kind)) => {
                    let kind = match kind {
                        // An agent need not know by what name a task was asked for.
                        relay_output::Kind::Opened(opened) => {
                            let task = match &self.partner {
                                Partner::Task(task) => task.name.clone(),
                                Partner::Node(_) => String::new(),
                            };
                            relay_output::Kind::Opened(v1::RelayOpened { task, ..opened })
                        }
                        other => other,
                    };
                    if self.sender.send(Ok(v1::RelayOutput { kind: Some(kind) })).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn broken(&self, status: &Status) -> ApiError {
        let message = format!("the connection to node {} broke: {}", self.partner.node(), status.message());
        ApiError::new(ErrorCode::Conflict, message).hint(match &self.partner {
            Partner::Task(task) => format!("rclusterctl ps {} shows whether the task still runs; then try again", task.service),
            Partner::Node(node) => format!("rclusterctl node inspect {} shows how it is; then try again", node.name()),
        })
    }

    /// Returns when the task has not been running for a while, or the node is down, with the reason to end.
    async fn partner_over(&self) -> ApiError {
        let mut revisions = self.store.revisions();
        loop {
            revisions.borrow_and_update();
            if let Some(why) = self.over() {
                sleep(REST).await;
                return why;
            }
            if revisions.changed().await.is_err() {
                return ApiError::new(ErrorCode::Unavailable, "this manager ends").hint("try again");
            }
        }
    }

    fn over(&self) -> Option<ApiError> {
        let state = self.store.state();
        match &self.partner {
            Partner::Task(task) => {
                let now = state.tasks().get(&task.id).map(|task| task.status.state);
                let word = now.map_or("gone", TaskState::as_str);
                (now != Some(TaskState::Running)).then(|| {
                    ApiError::new(ErrorCode::Conflict, format!("task {} is {word}, which ended the relay", task.name))
                        .hint("rclusterctl ps -a says why")
                })
            }
            Partner::Node(node) => {
                let now = state.nodes().get(&node.id).map(|node| node.state);
                let word = now.map_or("gone", NodeState::as_str);
                matches!(now, None | Some(NodeState::Down)).then(|| {
                    ApiError::new(ErrorCode::Conflict, format!("node {} is {word}, which ended the relay", node.name()))
                        .hint("what had begun there ends with the node; try again when it is back")
                })
            }
        }
    }
}

/// Sends the user's frames to the agent; returns when the user has gone.
async fn pass_on(mut inputs: Streaming<v1::RelayInput>, to_agent: &mpsc::Sender<Result<v1::RelayInput, Status>>) {
    while let Ok(input) = inputs.message().await {
        let half_closed = input.is_none();
        let input = input.unwrap_or(v1::RelayInput { kind: Some(relay_input::Kind::CloseInput(v1::RelayCloseInput {})) });
        if to_agent.send(Ok(input)).await.is_err() || half_closed {
            // The answers say how it ends.
            return std::future::pending().await;
        }
    }
}
