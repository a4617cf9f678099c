//! A netd that does nothing: attaches pods to no namespace, obeys every view, keeps what it was asked.

use std::path::Path;

use rcluster_api::wire::v1::netd_server::{Netd, NetdServer};
use rcluster_api::wire::v1::{
    ApplyViewResponse, AttachRequest, AttachResponse, DetachRequest, DetachResponse, DumpRequest, DumpResponse, LeaveRequest,
    LeaveResponse, NetEntry, NetView, NetdStatusRequest, NetdStatusResponse, NodeNetwork, TraceRequest, TraceResponse,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

pub struct FakeNetd {
    /// Of pods, in their order, in words.
    pub asked: watch::Sender<Vec<String>>,
    /// What it says of the host's network.
    pub network: watch::Sender<Option<NodeNetwork>>,
    /// So many pods are to be attached and wait for the answer.
    pub attaching: watch::Sender<usize>,
    /// Whether they are answered.
    pub answers: watch::Sender<bool>,
    server: JoinHandle<()>,
}

struct Service {
    asked: watch::Sender<Vec<String>>,
    network: watch::Sender<Option<NodeNetwork>>,
    attaching: watch::Sender<usize>,
    answers: watch::Sender<bool>,
    /// Term and revision of the last view.
    view: watch::Sender<(u64, u64)>,
}

impl FakeNetd {
    /// Listens where an agent with this run directory expects it.
    pub fn listen(run: &Path) -> Self {
        let listener = UnixListener::bind(run.join("netd.sock")).expect("bind");
        let (asked, network) = (watch::Sender::new(Vec::new()), watch::Sender::new(None));
        let (attaching, answers) = (watch::Sender::new(0), watch::Sender::new(true));
        let service = Service {
            asked: asked.clone(),
            network: network.clone(),
            attaching: attaching.clone(),
            answers: answers.clone(),
            view: watch::Sender::new((0, 0)),
        };
        let service = NetdServer::new(service);
        let server = tokio::spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("serve");
        });
        Self { asked, network, attaching, answers, server }
    }

    pub fn asked(&self) -> String {
        self.asked.borrow().join(", ")
    }
}

impl Drop for FakeNetd {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Service {
    fn note(&self, asked: String) {
        self.asked.send_modify(|all| all.push(asked));
    }
}

#[tonic::async_trait]
impl Netd for Service {
    async fn apply_view(&self, request: Request<NetView>) -> Result<Response<ApplyViewResponse>, Status> {
        let NetView { term, revision, .. } = request.into_inner();
        self.view.send_replace((term, revision));
        Ok(Response::new(ApplyViewResponse { term, revision, problems: Vec::new() }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let AttachRequest { dns, .. } = request.into_inner();
        self.note(if dns.is_empty() { "attach".into() } else { format!("attach asking {}", dns.join(" ")) });
        self.attaching.send_modify(|attaching| *attaching += 1);
        self.answers.subscribe().wait_for(|answers| *answers).await.expect("the sender is here");
        self.attaching.send_modify(|attaching| *attaching -= 1);
        let (dns, search) = ("169.254.53.53".into(), vec!["front.internal".into()]);
        Ok(Response::new(AttachResponse { dns, search, ..AttachResponse::default() }))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        self.note("leave".into());
        Ok(Response::new(LeaveResponse {}))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        self.note(format!("detach after {} ms", request.into_inner().linger_ms));
        Ok(Response::new(DetachResponse {}))
    }

    async fn status(&self, _: Request<NetdStatusRequest>) -> Result<Response<NetdStatusResponse>, Status> {
        let (term, revision) = *self.view.borrow();
        let network = self.network.borrow().clone();
        Ok(Response::new(NetdStatusResponse { term, revision, network, ..NetdStatusResponse::default() }))
    }

    /// Very many routes, and nothing is held.
    async fn dump(&self, _: Request<DumpRequest>) -> Result<Response<DumpResponse>, Status> {
        self.note("dump".into());
        let (term, revision) = *self.view.borrow();
        let route = |number: u32| NetEntry { kind: "route".into(), text: format!("{number}"), value: String::new() };
        Ok(Response::new(DumpResponse { term, revision, wanted: (0..12_000).map(route).collect(), ..DumpResponse::default() }))
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Result<Response<TraceResponse>, Status> {
        let TraceRequest { task_id, target, protocol } = request.into_inner();
        Ok(Response::new(TraceResponse { steps: vec![target], verdict: format!("delivered for {task_id}"), protocol }))
    }
}
