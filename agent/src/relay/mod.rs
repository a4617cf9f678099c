//! The node's end of the conversations that users have with containers, and with the node about its images and its network.
//!
//! Each has a connection of its own to the leader: who does not read what a container writes makes that container wait, and nobody
//! else. It ends with the session in which it was asked for, and what was begun for it in the container ends with it.

mod attach;
mod copy;
mod exec;
mod image;
mod net;
mod pause;
mod pieces;
mod stats;
mod terminal;

pub mod leftover;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcluster_api::client::{endpoint, root_cause};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{TaskId, is_id};
use rcluster_api::object::Task;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::{self, relay_open, relay_output};
use rcluster_base::ledger;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info};

use crate::core::task::{ContainerRecord, Phase, Process, Record};
use crate::exec::{Tools, process};
use crate::image::root::Root;
use crate::place::{ContainerPlaces, read_message};

/// So many are served at once; one more is refused.
pub const RELAYS_MAX: usize = 64;
/// Frames that wait for a slow connection.
const FRAMES_MAX: usize = 8;
/// Largest piece of data in a frame.
const DATA_BYTES_MAX: usize = 32 << 10;
/// How long the leader may take for a connection and its first answer.
const CONNECT: Duration = Duration::from_secs(3);

/// The relays of one session; they end with it.
#[derive(Debug)]
pub struct Relays {
    /// The leader's.
    address: String,
    tools: Arc<Tools>,
    running: JoinSet<()>,
}

impl Relays {
    pub fn new(address: String, tools: Arc<Tools>) -> Self {
        Self { address, tools, running: JoinSet::new() }
    }

    /// Serves a request.
    pub fn begin(&mut self, command: v1::RelayCommand) {
        while self.running.try_join_next().is_some() {}
        let full = self.running.len() >= RELAYS_MAX;
        let (address, tools) = (self.address.clone(), Arc::clone(&self.tools));
        self.running.spawn(async move {
            let id = command.request_id.clone();
            let mut line = match timeout(CONNECT, connect(&tools, &address, &id)).await {
                Ok(Ok(line)) => line,
                Ok(Err(why)) => return debug!(id, why, "no relay"),
                Err(_) => return debug!(id, "no relay: the leader does not answer"),
            };
            let served = if full {
                let message = format!("node {} already serves {RELAYS_MAX} relays", tools.node);
                Err(ApiError::new(ErrorCode::Conflict, message).hint("try again when some have ended"))
            } else {
                serve(&tools, command, &mut line).await
            };
            if let Err(error) = served {
                info!(id, %error, "relay");
                let ApiError { code, message, hint, field: _ } = error;
                let problem = v1::RelayProblem { code: code.as_str().to_owned(), message, hint };
                // A leader that has gone needs no reason.
                let _ = line.say(relay_output::Kind::Problem(problem)).await;
            }
            line.finish().await;
        });
    }
}

/// The two ends of a relay's connection.
pub struct Line {
    pub id: String,
    outputs: mpsc::Sender<v1::RelayOutput>,
    inputs: Streaming<v1::RelayInput>,
}

/// The user, or the leader, has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

async fn connect(tools: &Tools, address: &str, id: &str) -> Result<Line, String> {
    let endpoint = endpoint(address).map_err(|error| error.to_string())?;
    let channel = tools.security.connect(endpoint).await.map_err(|error| root_cause(&error))?;
    let (outputs, messages) = mpsc::channel(FRAMES_MAX);
    let first = v1::RelayOutput { kind: Some(relay_output::Kind::RequestId(id.to_owned())) };
    outputs.try_send(first).map_err(|error| error.to_string())?;
    let answer = DispatcherClient::new(channel).relay(ReceiverStream::new(messages)).await;
    let inputs = answer.map_err(|status| status.message().to_owned())?.into_inner();
    Ok(Line { id: id.to_owned(), outputs, inputs })
}

impl Line {
    /// Says something; waits while the user does not read.
    pub async fn say(&self, kind: relay_output::Kind) -> Result<(), Gone> {
        self.outputs.send(v1::RelayOutput { kind: Some(kind) }).await.map_err(|_| Gone)
    }

    /// What the user says next.
    pub async fn hear(&mut self) -> Result<v1::relay_input::Kind, Gone> {
        loop {
            match self.inputs.message().await {
                Ok(Some(v1::RelayInput { kind: Some(kind) })) => return Ok(kind),
                Ok(Some(v1::RelayInput { kind: None })) => debug!(id = self.id, "a frame of a kind this agent does not know"),
                Ok(None) | Err(_) => return Err(Gone),
            }
        }
    }

    /// Both ends apart, for those who hear and speak at once.
    pub fn split(&mut self) -> (Speaker, &mut Self) {
        (Speaker(self.outputs.clone()), self)
    }

    /// Nothing more will be said; returns once the leader has taken all of it, or has gone.
    async fn finish(self) {
        let Self { id: _, outputs, mut inputs } = self;
        drop(outputs);
        // Dropped before, the connection could go with frames still unsent.
        while let Ok(Some(_)) = inputs.message().await {}
    }
}

/// The speaking end alone.
#[derive(Debug, Clone)]
pub struct Speaker(mpsc::Sender<v1::RelayOutput>);

impl Speaker {
    /// Says something; waits while the user does not read.
    pub async fn say(&self, kind: relay_output::Kind) -> Result<(), Gone> {
        self.0.send(v1::RelayOutput { kind: Some(kind) }).await.map_err(|_| Gone)
    }

    /// The same from a thread that may block.
    pub fn say_blocking(&self, kind: relay_output::Kind) -> Result<(), Gone> {
        self.0.blocking_send(v1::RelayOutput { kind: Some(kind) }).map_err(|_| Gone)
    }

    /// Returns once nobody listens any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// The container that is talked to.
#[derive(Debug, Clone)]
pub struct Target {
    pub task: Arc<Task>,
    pub record: Record,
    pub container: ContainerRecord,
    pub process: Process,
    pub place: ContainerPlaces,
}

impl Target {
    /// The container's root directory as its own processes see it.
    pub fn root(&self) -> Result<Root, ApiError> {
        let opened = Root::open(&PathBuf::from(format!("/proc/{}/root", self.process.pid)));
        // Looked at after it was opened: else the number could have gone to another process before.
        let same = process::look(self.process.pid).is_ok_and(|found| found == Some(self.process));
        match opened {
            Ok(root) if same => Ok(root),
            Ok(_) | Err(_) => {
                let message = format!("container {} has just ended", self.container.name);
                Err(ApiError::new(ErrorCode::Conflict, message).hint("rclusterctl ps -a says what became of its task"))
            }
        }
    }
}

async fn serve(tools: &Arc<Tools>, command: v1::RelayCommand, line: &mut Line) -> Result<(), ApiError> {
    let v1::RelayCommand { request_id: _, task_id, open, view } = command;
    let v1::RelayOpen { target, container, kind } = open.ok_or_else(|| invalid("the relay says nothing of what it is for"))?;
    debug!(id = line.id, task = task_id, "relay");
    let target = || find(tools, &task_id, &target, &container);
    match kind {
        Some(relay_open::Kind::Image(asked)) => image::serve(tools, asked, line).await,
        Some(relay_open::Kind::NetDump(asked)) => net::dump(tools, asked, view, line).await,
        Some(relay_open::Kind::NetTrace(asked)) => net::trace(tools, &task_id, asked, line).await,
        Some(relay_open::Kind::Exec(exec)) => exec::run(tools, &target()?, exec, line).await,
        Some(relay_open::Kind::Attach(v1::RelayAttach {})) => attach::attach(tools, &target()?, line).await,
        Some(relay_open::Kind::Stats(asked)) => stats::stats(tools, &target()?, asked, line).await,
        Some(relay_open::Kind::Top(v1::RelayTop {})) => stats::top(tools, &target()?, line).await,
        Some(relay_open::Kind::Pause(asked)) => pause::pause(tools, &target()?, asked, line).await,
        Some(relay_open::Kind::CopyFrom(asked)) => copy::copy_from(tools, &target()?, asked, line).await,
        Some(relay_open::Kind::CopyTo(asked)) => copy::copy_to(tools, &target()?, asked, line).await,
        None => Err(invalid("this agent does not know what the relay is for: is it older than rclusterctl?")),
    }
}

fn find(tools: &Tools, task_id: &str, called: &str, wanted: &str) -> Result<Target, ApiError> {
    if !is_id(task_id) {
        return Err(invalid(&format!("{task_id:?} is not the id of a task")));
    }
    let places = tools.places.of_task(&TaskId::from(task_id));
    let record: Option<Record> = ledger::read(&places.record_file()).map_err(|error| internal("read the task's record", &error))?;
    let record = record.ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("node {} has no task {called}", tools.node)).hint("rclusterctl ps -a shows where it is")
    })?;
    let found = if wanted.is_empty() { record.containers.first() } else { record.containers.iter().find(|c| c.name == wanted) };
    let container = found.cloned().ok_or_else(|| {
        let names: Vec<&str> = record.containers.iter().map(|container| container.name.as_str()).collect();
        ApiError::new(ErrorCode::NotFound, format!("task {called} has no container {wanted:?}"))
            .hint(format!("its containers: {}", names.join(", ")))
    })?;
    let process = container.process.filter(|_| container.phase == Phase::Started).ok_or_else(|| {
        ApiError::new(ErrorCode::Conflict, format!("container {} of task {called} does not run", container.name))
            .hint("rclusterctl ps -a shows what became of it")
    })?;
    let place = places.of_container(&container.name);
    let broken = |error: anyhow::Error| internal("read the task", error.as_ref());
    let task = read_message::<v1::Task>(&places.task_file()).map_err(broken)?.ok_or_else(|| invalid("the task has just been removed"))?;
    let task = Arc::new(Task::try_from(task).map_err(|error| internal("read the task", &error))?);
    Ok(Target { task, record, container, process, place })
}

fn opened(tools: &Tools, target: &Target) -> relay_output::Kind {
    relay_output::Kind::Opened(v1::RelayOpened {
        task: String::new(),
        node: tools.node.clone(),
        container: target.container.name.clone(),
        containers: target.record.containers.iter().map(|container| container.name.clone()).collect(),
        stdin: false,
        tty: false,
    })
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

fn internal(what: &str, error: &dyn std::error::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("{what}: {}", chain(error)))
}

/// An error with what led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    message
}
