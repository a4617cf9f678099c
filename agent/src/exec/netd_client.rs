//! Speaks with netd over its unix socket: attaches pods, and keeps netd at the latest network view, also after netd restarted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use rcluster_api::id::TaskId;
use rcluster_api::wire::v1::netd_client::NetdClient;
use rcluster_api::wire::v1::{AttachRequest, AttachResponse, DetachRequest, NetView, NetdStatusRequest};
use rcluster_base::backoff::Backoff;
use rcluster_base::ledger;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::place::Places;

/// Why netd did not do it.
#[derive(Debug, Error)]
pub enum NetdError {
    #[error("netd does not answer at {socket}: {why}; is rcluster-netd running?", socket = socket.display())]
    Unreachable { socket: PathBuf, why: String },
    #[error("netd: {why}")]
    Refused { why: String },
}

/// Which network view: a later one is greater.
pub type Mark = (u64, u64);

/// The connection, made and made again when it is needed.
#[derive(Debug)]
pub struct Netd {
    socket: PathBuf,
    client: NetdClient<Channel>,
    view: watch::Sender<Option<Arc<NetView>>>,
    /// What netd is known to hold; (0, 0) when nothing is known.
    applied: watch::Sender<Mark>,
    /// Keeps the latest view for an agent that is started anew.
    kept: PathBuf,
}

const APPLY: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(5);
/// How long attaching waits for a netd that is restarting.
const ATTACH: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);
const VIEW_BYTES_MAX: usize = 64 << 20;

/// The mark of a view.
pub fn mark(view: &NetView) -> Mark {
    (view.term, view.revision)
}

impl Netd {
    /// Reaches netd at the socket, which need not be there yet; goes on with the view that an agent before this one had.
    pub fn new(places: &Places) -> anyhow::Result<Self> {
        let (socket, kept) = (places.netd_socket(), places.view_file());
        let view = crate::place::read_message::<NetView>(&kept)?.map(Arc::new);
        let path = socket.clone();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://netd").connect_with_connector_lazy(connect);
        let client = NetdClient::new(channel).max_encoding_message_size(VIEW_BYTES_MAX);
        Ok(Self { socket, client, view: watch::Sender::new(view), applied: watch::Sender::new((0, 0)), kept })
    }

    /// Takes a view for netd, unless it is older than the last; only the latest is ever sent.
    pub fn set_view(&self, view: NetView) -> bool {
        let newer = |last: &Option<Arc<NetView>>| last.as_ref().is_none_or(|last| mark(last) < mark(&view));
        if !newer(&self.view.borrow()) {
            return false;
        }
        self.view.send_replace(Some(Arc::new(view)));
        true
    }

    /// What netd is known to hold.
    pub fn applied(&self) -> Mark {
        *self.applied.borrow()
    }

    /// Whether netd holds the latest view; waits for it no longer than `patience`.
    pub async fn is_current(&self, patience: Duration) -> bool {
        let wanted = self.view.borrow().as_deref().map(mark);
        let Some(wanted) = wanted else { return true };
        let mut applied = self.applied.subscribe();
        timeout(patience, applied.wait_for(|applied| *applied >= wanted)).await.is_ok_and(|seen| seen.is_ok())
    }

    /// Keeps netd at the latest view for as long as it is polled.
    pub async fn drive(&self) {
        let mut views = self.view.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut complained = false;
        let mut kept = self.view.borrow().as_deref().map_or((0, 0), mark);
        loop {
            let view = views.borrow_and_update().clone();
            if let Some(view) = view.as_deref().filter(|view| mark(view) > kept) {
                kept = mark(view);
                if let Err(error) = ledger::write_bytes(&self.kept, &view.encode_to_vec()) {
                    warn!(%error, "the network view is not kept for a restart of the agent");
                }
            }
            let done = match view.filter(|view| mark(view) > self.applied()) {
                Some(view) => self.apply(&view).await,
                None => {
                    tokio::select! {
                        // The sender lives as long as self.
                        _ = views.changed() => Ok(()),
                        () = sleep(LOOK) => self.look().await,
                    }
                }
            };
            match done {
                Ok(()) => {
                    if std::mem::take(&mut complained) {
                        info!("netd answers again");
                    }
                    backoff.reset();
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!(%error, "the network view is kept until netd takes it");
                    }
                    // It may come back empty.
                    self.applied.send_replace((0, 0));
                    sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// Makes or finds the pod's network namespace; waits a while for a netd that is restarting.
    pub async fn attach(&self, request: &AttachRequest) -> Result<AttachResponse, NetdError> {
        let deadline = Instant::now() + ATTACH;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let mut client = self.client.clone();
            let answer = timeout_at(deadline, client.attach(request.clone())).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if may_pass(&status) && Instant::now() < deadline => sleep(backoff.delay()).await,
                Err(status) => return Err(self.error(&status)),
            }
        }
    }

    /// Removes the pod's network namespace and interfaces; nothing there is no error.
    pub async fn detach(&self, task: &TaskId) -> Result<(), NetdError> {
        let request = DetachRequest { task_id: task.to_string() };
        let mut client = self.client.clone();
        let answer = timeout(CALL, client.detach(request)).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))).map(drop).map_err(|status| self.error(&status))
    }

    async fn apply(&self, view: &NetView) -> Result<(), NetdError> {
        let mut client = self.client.clone();
        let answer = timeout(APPLY, client.apply_view(view.clone())).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        let answer = answer.map_err(|status| self.error(&status))?.into_inner();
        for problem in &answer.problems {
            warn!(term = view.term, revision = view.revision, problem, "netd could not do all of the network view");
        }
        self.applied.send_replace(mark(view).max((answer.term, answer.revision)));
        Ok(())
    }

    /// Finds out whether netd still holds what it was given.
    async fn look(&self) -> Result<(), NetdError> {
        if self.view.borrow().is_none() {
            return Ok(());
        }
        let mut client = self.client.clone();
        let answer = timeout(CALL, client.status(NetdStatusRequest {})).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        let answer = answer.map_err(|status| self.error(&status))?.into_inner();
        if (answer.term, answer.revision) < self.applied() {
            info!(term = answer.term, revision = answer.revision, "netd restarted with an older network view; it gets the last again");
            self.applied.send_replace((answer.term, answer.revision));
        }
        Ok(())
    }

    fn error(&self, status: &Status) -> NetdError {
        if may_pass(status) {
            NetdError::Unreachable { socket: self.socket.clone(), why: status.message().to_owned() }
        } else {
            NetdError::Refused { why: status.message().to_owned() }
        }
    }
}

/// Whether the next try may meet another answer.
fn may_pass(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
