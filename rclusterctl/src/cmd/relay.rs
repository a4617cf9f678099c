//! A conversation with a container, or with a node about its images or its network, by way of the managers.

use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::Kind;
use rcluster_api::wire::v1::{self, relay_input, relay_open, relay_output};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::error::CliError;
use crate::output;
use crate::session::Session;

/// Frames that wait for a slow connection.
const FRAMES_MAX: usize = 8;

/// How long who goes waits for what was sent to get there.
const LEAVE: Duration = Duration::from_secs(1);

/// An open conversation.
pub struct Relay {
    target: String,
    /// What to do when it breaks off.
    hint: &'static str,
    inputs: mpsc::Sender<v1::RelayInput>,
    outputs: Streaming<v1::RelayOutput>,
}

/// The sending end alone.
#[derive(Debug, Clone)]
pub struct Inputs(pub(super) mpsc::Sender<v1::RelayInput>);

impl Relay {
    /// Opens a conversation with a container of `target`: a task, or a service of which one task is taken.
    pub async fn open(session: &mut Session, target: &str, container: &str, kind: relay_open::Kind) -> Result<Self, CliError> {
        // What is opened must not be opened twice: that there is a leader is found out before, by a call that may be repeated.
        if let Err(error @ CliError::Unreachable { .. }) = session.list(Kind::Service, target, "").await {
            return Err(error);
        }
        let hint = "rclusterctl ps -a shows what became of the task";
        Self::begin(session, target, container, kind, hint).await
    }

    /// Asks something of a node itself, and waits until the node answers. That there is a leader is known: it has just named the node.
    pub async fn ask(session: &mut Session, node: &str, kind: relay_open::Kind) -> Result<Self, CliError> {
        Self::begin(session, node, "", kind, "rclusterctl get nodes shows whether it is heard; then try again").await
    }

    async fn begin(
        session: &mut Session,
        target: &str,
        container: &str,
        kind: relay_open::Kind,
        hint: &'static str,
    ) -> Result<Self, CliError> {
        let open = v1::RelayOpen { target: target.to_owned(), container: container.to_owned(), kind: Some(kind) };
        let (inputs, outputs) = session
            .once(|mut client| {
                let (inputs, messages) = mpsc::channel(FRAMES_MAX);
                let first = v1::RelayInput { kind: Some(relay_input::Kind::Open(open.clone())) };
                async move {
                    inputs.try_send(first).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
                    let outputs = client.relay(ReceiverStream::new(messages)).await?.into_inner();
                    Ok((inputs, outputs))
                }
            })
            .await?;
        Ok(Self { target: target.to_owned(), hint, inputs, outputs })
    }

    /// The sending end.
    pub fn inputs(&self) -> Inputs {
        Inputs(self.inputs.clone())
    }

    /// What the container's side says next; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<relay_output::Kind>, CliError> {
        loop {
            match self.outputs.message().await {
                Ok(Some(v1::RelayOutput { kind: Some(kind) })) => return Ok(Some(kind)),
                // Of a kind that is newer than this program.
                Ok(Some(v1::RelayOutput { kind: None })) => {}
                Ok(None) => return Ok(None),
                Err(status) => return Err(self.broken(ApiError::from(status))),
            }
        }
    }

    /// Waits until what was asked for has begun, and says which task was taken when a service was named.
    pub async fn opened(&mut self) -> Result<v1::RelayOpened, CliError> {
        match self.next().await? {
            Some(relay_output::Kind::Opened(opened)) => {
                if self.target != opened.task && rest_is_slot(&self.target, &opened.task) {
                    output::talk(&format!("{} on {}", opened.task, opened.node))?;
                }
                Ok(opened)
            }
            _ => Err(self.ended()),
        }
    }

    /// Goes; what was sent before gets there, unless that takes too long.
    pub async fn leave(self) {
        let Self { target: _, hint: _, inputs, mut outputs } = self;
        drop(inputs);
        drop(timeout(LEAVE, async { while let Ok(Some(_)) = outputs.message().await {} }).await);
    }

    /// The error of a conversation that ended before it was over.
    pub fn ended(&self) -> CliError {
        CliError::refused(format!("the conversation with {} ended before it was over", self.target), self.hint)
    }

    /// Errors with a hint come from the managers or the agent; others from the connection.
    fn broken(&self, error: ApiError) -> CliError {
        if matches!(error.code, ErrorCode::Unavailable | ErrorCode::NotLeader | ErrorCode::Internal) && error.hint.is_empty() {
            return CliError::Unreachable {
                message: format!("the connection with {} broke: {}", self.target, error.message),
                hint: "the node ends what ran for it; look with rclusterctl ps and cluster status, then try again".to_owned(),
            };
        }
        error.into()
    }
}

/// Whether `task` is a task of service `target`, and not the task of that id.
fn rest_is_slot(target: &str, task: &str) -> bool {
    task.strip_prefix(target).is_some_and(|rest| rest.starts_with('.'))
}

impl Inputs {
    /// Sends a frame; waits while the other side does not read. An error means that nobody listens any more: the answers say why.
    pub async fn send(&self, kind: relay_input::Kind) -> Result<(), ()> {
        self.0.send(v1::RelayInput { kind: Some(kind) }).await.map_err(drop)
    }

    /// The same from a thread that may block.
    pub fn send_blocking(&self, kind: relay_input::Kind) -> Result<(), ()> {
        self.0.blocking_send(v1::RelayInput { kind: Some(kind) }).map_err(drop)
    }
}
