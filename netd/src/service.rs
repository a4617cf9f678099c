//! The unix socket: calls become commands to the dataplane's owner, and its answers become answers. Never blocks the runtime; a full
//! queue makes callers wait.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rcluster_api::wire::v1;
use rcluster_api::wire::v1::netd_server::Netd;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use crate::drive::{Attached, Command, Refusal};

/// The kernel does its deferred work within a second.
const CARRIER_TRIES_MAX: u32 = 500;

/// Asked again and again and not listened for: on kernels since 6.8 the question itself has the work done, and the first is the last. An ear
/// in the router's namespace would serve older ones alone, and would have to be asked beside all the same, for it may miss what it is told.
const CARRIER_TRY_EVERY: Duration = Duration::from_millis(2);

/// Answers gRPC calls by asking the owner.
#[derive(Debug, Clone)]
pub struct Service {
    commands: mpsc::Sender<Command>,
}

impl Service {
    /// A service in front of the owner that reads `commands`.
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Status> {
        let gone = || Status::unavailable("netd is shutting down");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Until these devices send what they are given; one that stays silent is left to the traffic to find out. Others are served meanwhile.
    async fn await_carrier(&self, mut links: Vec<String>) -> Result<(), Status> {
        let mut tries = interval(CARRIER_TRY_EVERY);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..CARRIER_TRIES_MAX {
            if links.is_empty() {
                break;
            }
            tries.tick().await;
            links = self.ask(|reply| Command::WithoutCarrier { links, reply }).await?;
        }
        Ok(())
    }
}

/// Listens at `path`, for the owner's user only. A file there is one that a dead netd left: the caller holds the run directory's lock.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let aside = path.with_extension("sock.new");
    for stale in [&aside, path] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) | Ok(()) => {}
        }
    }
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

#[tonic::async_trait]
impl Netd for Service {
    async fn apply_view(&self, request: Request<v1::NetView>) -> Result<Response<v1::ApplyViewResponse>, Status> {
        let view = request.into_inner();
        Ok(Response::new(self.ask(|reply| Command::ApplyView { view, reply }).await??))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let Attached { response, without_carrier } = self.ask(|reply| Command::Attach { request, reply }).await??;
        self.await_carrier(without_carrier).await?;
        Ok(Response::new(response))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let task_id = request.into_inner().task_id;
        self.ask(|reply| Command::Leave { task_id, reply }).await??;
        Ok(Response::new(v1::LeaveResponse {}))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        let v1::DetachRequest { task_id, linger_ms } = request.into_inner();
        self.ask(|reply| Command::Detach { task_id, linger_ms, reply }).await??;
        Ok(Response::new(v1::DetachResponse {}))
    }

    async fn status(&self, _: Request<v1::NetdStatusRequest>) -> Result<Response<v1::NetdStatusResponse>, Status> {
        Ok(Response::new(self.ask(|reply| Command::Status { reply }).await?))
    }

    async fn dump(&self, request: Request<v1::DumpRequest>) -> Result<Response<v1::DumpResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.ask(|reply| Command::Dump { request, reply }).await??))
    }

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<v1::TraceResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.ask(|reply| Command::Trace { request, reply }).await??))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(why) => Self::invalid_argument(why),
            Refusal::NotYet(why) => Self::unavailable(why),
            Refusal::Conflict(why) => Self::failed_precondition(why),
            Refusal::Failed(why) => Self::internal(why),
        }
    }
}
