//! Speaks with netd over its unix socket: attaches pods, and keeps netd at the latest network view, also after netd restarted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use rcluster_api::id::TaskId;
use rcluster_api::wire::v1::netd_client::NetdClient;
use rcluster_api::wire::v1::{
    AttachRequest, AttachResponse, DetachRequest, DumpRequest, DumpResponse, LeaveRequest, NetView, NetdStatusRequest, NetdStatusResponse,
    NodeNetwork, TraceRequest, TraceResponse,
};
use rcluster_base::backoff::Backoff;
use rcluster_base::ledger;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{SemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tracing::{info, warn};

use super::gate::Gate;
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

/// What netd is known to hold; the default when nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    pub mark: Mark,
    /// How much of that view could not be done.
    pub problems: u32,
}

/// The connection, made and made again when it is needed.
#[derive(Debug)]
pub struct Netd {
    socket: PathBuf,
    client: NetdClient<Channel>,
    view: watch::Sender<Option<Arc<NetView>>>,
    /// What netd is known to hold.
    applied: watch::Sender<Applied>,
    /// What netd has last said of the host's network.
    network: watch::Sender<Option<NodeNetwork>>,
    /// Keeps the latest view for an agent that is started anew.
    kept: PathBuf,
    /// For pods that come.
    coming: Gate,
    /// For pods that go: they do not wait for those that come.
    going: Gate,
}

const APPLY: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(5);
/// So many pods come, and go, at once: netd does one after the other, and what else it is asked waits among them.
const AT_ONCE: usize = 16;
/// How long attaching waits for a netd that is restarting.
const ATTACH: Duration = Duration::from_secs(10);
/// How often netd is asked what it holds, and what it says of the host's network: it tells nothing by itself.
const LOOK: Duration = Duration::from_secs(1);
/// How long a session's begin waits for what netd says of the host's network; it is told later otherwise.
const NETWORK: Duration = Duration::from_millis(300);
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
        let client = NetdClient::new(channel).max_encoding_message_size(VIEW_BYTES_MAX).max_decoding_message_size(VIEW_BYTES_MAX);
        let (view, applied, network) = (watch::Sender::new(view), watch::Sender::default(), watch::Sender::new(None));
        let (coming, going) = (Gate::new(AT_ONCE), Gate::new(AT_ONCE));
        Ok(Self { socket, client, view, applied, network, kept, coming, going })
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

    /// The view that netd is known to hold; (0, 0) when nothing is known.
    pub fn applied(&self) -> Mark {
        self.applied.borrow().mark
    }

    /// Tells when that changes; it also goes back, when netd was started anew.
    pub fn watch_applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    fn set_applied(&self, applied: Applied) {
        self.applied.send_if_modified(|before| std::mem::replace(before, applied) != applied);
    }

    /// What netd has last said of the host's network; `None` before it has.
    pub fn network(&self) -> Option<NodeNetwork> {
        self.network.borrow().clone()
    }

    /// The same, asked of it now; of a netd that does not answer it is what it said before.
    pub async fn ask_network(&self) -> Option<NodeNetwork> {
        // One that is not there is waited for, and complained of, by who needs it.
        drop(timeout(NETWORK, self.status()).await);
        self.network()
    }

    /// Whether netd holds the latest view; waits for it no longer than `patience`.
    pub async fn is_current(&self, patience: Duration) -> bool {
        let wanted = self.view.borrow().as_deref().map(mark);
        let Some(wanted) = wanted else { return true };
        let mut applied = self.applied.subscribe();
        timeout(patience, applied.wait_for(|applied| applied.mark >= wanted)).await.is_ok_and(|seen| seen.is_ok())
    }

    /// Keeps netd at the latest view for as long as it is polled.
    pub async fn drive(&self) {
        let mut views = self.view.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut complained = false;
        let mut kept = self.view.borrow().as_deref().map_or((0, 0), mark);
        let mut looked = Instant::now();
        loop {
            let view = views.borrow_and_update().clone();
            if let Some(view) = view.as_deref().filter(|view| mark(view) > kept) {
                kept = mark(view);
                if let Err(error) = ledger::write_fleeting_bytes(&self.kept, &view.encode_to_vec()) {
                    warn!(%error, "the network view is not kept for a restart of the agent");
                }
            }
            let mut done = match view.filter(|view| mark(view) > self.applied()) {
                Some(view) => self.apply(&view).await,
                None => {
                    tokio::select! {
                        // The sender lives as long as self.
                        _ = views.changed() => Ok(()),
                        () = sleep_until(looked + LOOK) => Ok(()),
                    }
                }
            };
            // Also while one view follows the other: it tells of the host, too.
            if done.is_ok() && looked.elapsed() >= LOOK {
                done = self.look().await;
                looked = Instant::now();
            }
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
                    self.set_applied(Applied::default());
                    sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// Makes or finds the pod's network namespace; waits a while for a netd that is restarting, and for as long as it is busy with other pods.
    pub async fn attach(&self, request: &AttachRequest) -> Result<AttachResponse, NetdError> {
        self.attach_within(ATTACH, request).await
    }

    async fn attach_within(&self, patience: Duration, request: &AttachRequest) -> Result<AttachResponse, NetdError> {
        let mut left = patience;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        // What it said last when it could not: that tells more than that time is up.
        let mut said = None;
        loop {
            let turn = self.turn(&self.coming, patience).await?;
            let asked = Instant::now();
            let mut client = self.client.clone();
            let answer = timeout(left, client.attach(request.clone())).await;
            drop(turn);
            match answer {
                Ok(Err(status)) if may_pass(&status) => said = Some(status),
                Ok(answer) => {
                    self.coming.note_answer();
                    return answer.map(Response::into_inner).map_err(|status| self.error(&status));
                }
                Err(_) => {}
            }
            let delay = backoff.delay();
            left = left.saturating_sub(asked.elapsed() + delay);
            if left.is_zero() {
                return Err(self.error(&said.unwrap_or_else(unanswered)));
            }
            sleep(delay).await;
        }
    }

    /// Takes the task out of this node's DNS, whatever the view says.
    pub async fn leave(&self, task: &TaskId) -> Result<(), NetdError> {
        let request = LeaveRequest { task_id: task.to_string() };
        let mut client = self.client.clone();
        self.within(CALL, client.leave(request)).await.map(drop)
    }

    /// Gives the pod's network namespace and interfaces back, which netd removes after `linger`; nothing there is no error.
    pub async fn detach(&self, task: &TaskId, linger: Duration) -> Result<(), NetdError> {
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        let request = DetachRequest { task_id: task.to_string(), linger_ms };
        let _turn = self.turn(&self.going, CALL).await?;
        let mut client = self.client.clone();
        let answer = self.within(CALL, client.detach(request)).await;
        if !matches!(answer, Err(NetdError::Unreachable { .. })) {
            self.going.note_answer();
        }
        answer.map(drop)
    }

    /// What netd holds and is to hold.
    pub async fn dump(&self, request: DumpRequest) -> Result<DumpResponse, NetdError> {
        let mut client = self.client.clone();
        self.within(APPLY, client.dump(request)).await
    }

    /// What becomes of a pod's packets.
    pub async fn trace(&self, request: TraceRequest) -> Result<TraceResponse, NetdError> {
        let mut client = self.client.clone();
        self.within(CALL, client.trace(request)).await
    }

    async fn apply(&self, view: &NetView) -> Result<(), NetdError> {
        let mut client = self.client.clone();
        let answer = self.within(APPLY, client.apply_view(view.clone())).await?;
        for problem in &answer.problems {
            warn!(term = view.term, revision = view.revision, problem, "netd could not do all of the network view");
        }
        let problems = u32::try_from(answer.problems.len()).unwrap_or(u32::MAX);
        self.set_applied(Applied { mark: mark(view).max((answer.term, answer.revision)), problems });
        Ok(())
    }

    /// Finds out whether netd still holds what it was given.
    async fn look(&self) -> Result<(), NetdError> {
        if self.view.borrow().is_none() {
            return Ok(());
        }
        let answer = self.status().await?;
        if (answer.term, answer.revision) < self.applied() {
            info!(term = answer.term, revision = answer.revision, "netd restarted with an older network view; it gets the last again");
            self.set_applied(Applied { mark: (answer.term, answer.revision), problems: 0 });
        }
        Ok(())
    }

    async fn status(&self) -> Result<NetdStatusResponse, NetdError> {
        let mut client = self.client.clone();
        let answer = self.within(CALL, client.status(NetdStatusRequest {})).await?;
        // A netd of before does not say.
        if answer.network.is_some() {
            self.network.send_replace(answer.network.clone());
        }
        Ok(answer)
    }

    async fn turn<'a>(&self, gate: &'a Gate, patience: Duration) -> Result<SemaphorePermit<'a>, NetdError> {
        gate.turn(patience).await.ok_or_else(|| self.error(&unanswered()))
    }

    /// The answer to a call, which is waited for no longer than this.
    async fn within<T>(&self, patience: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, NetdError> {
        let answer = timeout(patience, call).await.unwrap_or_else(|_| Err(unanswered()));
        answer.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    fn error(&self, status: &Status) -> NetdError {
        if may_pass(status) {
            NetdError::Unreachable { socket: self.socket.clone(), why: status.message().to_owned() }
        } else {
            NetdError::Refused { why: status.message().to_owned() }
        }
    }
}

fn unanswered() -> Status {
    Status::deadline_exceeded("no answer in time")
}

/// Whether the next try may meet another answer.
fn may_pass(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waited_in_vain_is_told_what_was_said_last_and_not_that_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let netd = Netd::new(&Places { state: dir.path().join("state"), run: dir.path().join("run") }).unwrap();
        let waited = netd.attach_within(Duration::from_millis(500), &AttachRequest::default()).await;
        let Err(NetdError::Unreachable { why, .. }) = &waited else { panic!("nobody is there: {waited:?}") };
        assert_ne!(why, unanswered().message());
    }
}
