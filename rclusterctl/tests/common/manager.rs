//! A manager that is alone and keeps its objects in memory: what Control promises, with tasks that run as soon as they are made, unless
//! their image is "broken", whose tasks fail, or "slow", whose tasks stay pending.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread;

use rcluster_api::backup::Header;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::network::NodeNetwork;
use rcluster_api::object::{
    Availability, Event, Kind, Network, Node, NodeDescription, NodeState, Object, Service, Stamp, Task, TaskNetwork, TaskStatus,
};
use rcluster_api::spec::Spec;
use rcluster_api::task::TaskState;
use rcluster_api::wire::convert;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_server::{Control, ControlServer};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(Kind, String), Object>,
}

#[derive(Clone)]
pub struct Manager {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

/// Starts it on a thread that ends with the test; its address.
pub fn start() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let manager = Manager { state: Arc::default(), changed: watch::Sender::new(0) };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(ControlServer::new(manager)).serve_with_incoming(incoming).await.unwrap();
        });
    });
    addr
}

fn stamp(revision: u64) -> Stamp {
    Stamp { version: revision, created_at_ms: 1_795_255_200_000, updated_at_ms: 1_795_255_200_000 }
}

impl State {
    fn put(&mut self, object: Object) {
        self.objects.insert((object.kind(), object.id().to_owned()), object);
    }

    fn named(&self, kind: Kind, name: &str) -> Vec<Object> {
        let is_named = |object: &&Object| {
            object.id() == name
                || match object {
                    Object::Service(service) => service.spec.name == name,
                    Object::Network(network) => network.spec.name == name,
                    Object::Task(task) => task.name == name,
                    Object::Node(node) => node.name() == name,
                    Object::Data(data) => data.spec.name == name,
                    Object::User(user) => user.name == name,
                    Object::Event(_) | Object::Manager(_) | Object::Cluster(_) => false,
                }
        };
        self.objects.values().filter(|object| object.kind() == kind).filter(|object| name.is_empty() || is_named(object)).cloned().collect()
    }

    fn apply(&mut self, spec: Spec, expected_version: u64) -> Result<v1::Applied, ApiError> {
        let kind = if matches!(spec, Spec::Service(_)) { Kind::Service } else { Kind::Network };
        let before = self.named(kind, spec.name()).pop();
        let version = before.as_ref().map_or(0, |object| object.stamp().version);
        if expected_version != 0 && expected_version != version {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{} has version {version}", spec.name())));
        }
        let name = spec.name().to_owned();
        let id = format!("{}-{name}", kind.as_str());
        let answer = |version, outcome: v1::Outcome| v1::Applied {
            kind: v1::Kind::from(kind).into(),
            name: name.clone(),
            id: id.clone(),
            version,
            outcome: outcome.into(),
        };
        let outcome = if before.is_some() { v1::Outcome::Updated } else { v1::Outcome::Created };
        match spec {
            Spec::Network(spec) => {
                if before.is_some() {
                    return Ok(answer(version, v1::Outcome::Unchanged));
                }
                let subnet = Some("10.128.0.0/24".parse().unwrap());
                let network = Network::new(id.as_str().into(), spec);
                self.put(Object::Network(Network { stamp: stamp(self.revision), vni: Some(100), subnet, ..network }));
            }
            Spec::Data(spec) => return Err(ApiError::new(ErrorCode::Internal, format!("no test makes {}", spec.name))),
            Spec::Service(spec) => {
                let old = match &before {
                    Some(Object::Service(service)) if service.spec == spec => return Ok(answer(version, v1::Outcome::Unchanged)),
                    Some(Object::Service(service)) => Some(service.clone()),
                    _ => None,
                };
                let same_template = old.as_ref().is_some_and(|old| old.spec.template() == spec.template());
                let spec_version = if same_template { old.map_or(0, |old| old.spec_version) } else { self.revision };
                let service =
                    Service { id: id.as_str().into(), stamp: stamp(self.revision), spec, spec_version, removing: false, vips: Vec::new() };
                self.make_tasks(&service);
                self.put(Object::Service(service));
            }
        }
        Ok(answer(self.revision, outcome))
    }

    fn make_tasks(&mut self, service: &Service) {
        let name = &service.spec.name;
        let wanted = service.spec.replicas();
        self.objects.retain(|_, object| match object {
            Object::Task(task) => task.service != *name || (task.slot <= wanted && task.spec_version == service.spec_version),
            _ => true,
        });
        for slot in 1..=wanted {
            if !self.named(Kind::Task, &format!("{name}.{slot}")).is_empty() {
                continue;
            }
            let (states, message): (&[TaskState], &str) = match service.spec.containers[0].image.as_str() {
                "broken" => (&[TaskState::Failed, TaskState::Failed, TaskState::Failed, TaskState::Pending], "exit code 3"),
                "slow" => (&[TaskState::Pending], "0/3 nodes fit"),
                _ => (&[TaskState::Running], ""),
            };
            for (attempt, state) in states.iter().enumerate() {
                self.put(task(service, slot, attempt, *state, message, self.revision));
            }
        }
        let event = Event {
            id: format!("event-{}", self.revision).as_str().into(),
            stamp: stamp(self.revision),
            kind: "service".to_owned(),
            object_id: service.id.to_string(),
            object: name.clone(),
            reason: "Changed".to_owned(),
            message: format!("{wanted} tasks are wanted"),
        };
        self.put(Object::Event(event));
    }
}

fn task(service: &Service, slot: u32, attempt: usize, state: TaskState, message: &str, revision: u64) -> Object {
    let name = &service.spec.name;
    let ip = format!("10.128.0.{}", slot + 1).parse().unwrap();
    let networks = service.spec.networks.iter().map(|on| TaskNetwork {
        network_id: format!("network-{}", on.network).as_str().into(),
        network: on.network.clone(),
        ip,
        ip6: None,
        aliases: Vec::new(),
    });
    Object::Task(Box::new(Task {
        id: format!("task-{name}-{slot}-{attempt}").as_str().into(),
        stamp: stamp(revision + 1),
        service_id: service.id.clone(),
        service: name.clone(),
        stack: service.spec.stack.clone(),
        slot,
        name: format!("{name}.{slot}"),
        template: service.spec.template(),
        spec_version: service.spec_version,
        desired_state: TaskState::Running,
        restarts: 0,
        restarts_in_window: 0,
        window_start_ms: 0,
        start_after_ms: 0,
        node_id: Some("n1".into()),
        node: "n1".to_owned(),
        networks: networks.collect(),
        status: TaskStatus { state, message: message.to_owned(), since_ms: 1_795_255_200_000, containers: Vec::new(), ending: false },
        leave_ms: 0,
    }))
}

/// n1 and n2; n2's netd has something to say.
fn nodes(name: &str) -> Vec<Object> {
    let node = |name: &str, conditions: &[&str]| {
        let conditions = conditions.iter().map(|condition| (*condition).to_owned()).collect();
        let network = Some(NodeNetwork { mtu: 1450, conditions, ..NodeNetwork::default() });
        Object::Node(Node {
            id: name.into(),
            stamp: stamp(1),
            description: NodeDescription { name: name.to_owned(), network, ..NodeDescription::default() },
            availability: Availability::Active,
            labels: BTreeMap::new(),
            state: NodeState::Ready,
            message: String::new(),
            since_ms: 0,
            incarnation: 1,
            number: 1,
        })
    };
    let nodes = [node("n1", &[]), node("n2", &["the path to n1 is narrow"])];
    nodes.into_iter().filter(|node| name.is_empty() || node.id() == name).collect()
}

/// What a node's netd says: n2 lacks a route.
fn dump(node: &str) -> Vec<Result<v1::RelayOutput, Status>> {
    use v1::relay_output::Kind;
    let entry =
        |kind: &str, text: &str, value: &str| v1::NetEntry { kind: kind.to_owned(), text: text.to_owned(), value: value.to_owned() };
    let route = entry("route", "10.128.0.7/32", "via 10.90.0.102 on v100");
    let held = [vec![entry("pod", "t1", "")], if node == "n2" { Vec::new() } else { vec![route.clone()] }].concat();
    let parts = [
        v1::DumpResponse { term: 1, revision: 7, wanted: vec![route, entry("pod", "t1", "")], ..Default::default() },
        v1::DumpResponse { term: 1, revision: 7, held, ..Default::default() },
    ];
    let kinds = parts.map(Kind::NetDump).into_iter().chain([Kind::Exit(v1::RelayExit { code: 0 })]);
    kinds.map(|kind| Ok(v1::RelayOutput { kind: Some(kind) })).collect()
}

impl Manager {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, ApiError>) -> Result<(u64, T), Status> {
        let mut state = self.state.lock().unwrap();
        state.revision += 2;
        let answer = change(&mut state)?;
        self.changed.send_replace(state.revision);
        Ok((state.revision, answer))
    }
}

#[tonic::async_trait]
impl Control for Manager {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let (revision, applied) = self.change(|state| {
            let apply = |spec: v1::Spec| state.apply(spec.kind.unwrap().try_into()?, spec.expected_version);
            request.into_inner().specs.into_iter().map(apply).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(Response::new(v1::ApplyResponse { revision, applied }))
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        let (revision, ()) = self.change(|state| {
            for reference in request.into_inner().refs {
                let kind = convert::kind(reference.kind)?;
                let gone = state.named(kind, &reference.name);
                state.objects.retain(|_, object| {
                    !gone.contains(object)
                        && !matches!(object, Object::Task(task) if kind == Kind::Service && task.service == reference.name)
                });
            }
            Ok(())
        })?;
        Ok(Response::new(v1::RemoveResponse { revision }))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        let v1::ScaleRequest { service, replicas } = request.into_inner();
        let (revision, replicas_before) = self.change(|state| {
            let Some(Object::Service(found)) = state.named(Kind::Service, &service).pop() else {
                return Err(ApiError::new(ErrorCode::NotFound, format!("there is no service {service}")));
            };
            let mut spec = found.spec.clone();
            spec.replicas = Some(replicas);
            state.apply(Spec::Service(spec), 0)?;
            Ok(found.spec.replicas())
        })?;
        Ok(Response::new(v1::ScaleResponse { revision, replicas_before }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let v1::ListRequest { kind, name, service: _, stack: _ } = request.into_inner();
        let state = self.state.lock().unwrap();
        let kind = convert::kind(kind).map_err(ApiError::from)?;
        let nodes = if kind == Kind::Node { nodes(&name) } else { Vec::new() };
        let objects = state.named(kind, &name).into_iter().chain(nodes).map(Into::into).collect();
        // A minute after all that has happened.
        Ok(Response::new(v1::ListResponse { revision: state.revision, objects, now_ms: 1_795_255_260_000 }))
    }

    type WatchStream = Answer<v1::WatchResponse>;

    /// Every message has all that there is.
    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let kinds: Vec<Kind> = request.into_inner().kinds.into_iter().map(|kind| convert::kind(kind).unwrap()).collect();
        let state = Arc::clone(&self.state);
        let stream = tokio_stream::wrappers::WatchStream::new(self.changed.subscribe()).map(move |_| {
            let state = state.lock().unwrap();
            let puts = state.objects.values().filter(|object| kinds.contains(&object.kind())).cloned().map(Into::into).collect();
            Ok(v1::WatchResponse { revision: state.revision, puts, synced: true, ..v1::WatchResponse::default() })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Result<Response<v1::UpdateNodeResponse>, Status> {
        Err(ApiError::new(ErrorCode::NotFound, format!("there is no node {}", request.into_inner().node)).into())
    }

    type LogsStream = Answer<v1::LogLine>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let line = v1::LogLine {
            task: "web.1".to_owned(),
            node: "n1".to_owned(),
            container: "web".to_owned(),
            stream: "stderr".to_owned(),
            at_ns: 1_795_255_200_000_000_000,
            text: format!("a line of {}", request.into_inner().target),
            problem: String::new(),
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(line)))))
    }

    type RelayStream = Answer<v1::RelayOutput>;

    /// A container that answers with what it was asked, and ends with code 7.
    async fn relay(&self, request: Request<tonic::Streaming<v1::RelayInput>>) -> Result<Response<Self::RelayStream>, Status> {
        use v1::{relay_input, relay_open, relay_output};
        let Some(relay_input::Kind::Open(open)) = request.into_inner().message().await?.and_then(|input| input.kind) else {
            return Err(ApiError::new(ErrorCode::Invalid, "open first").into());
        };
        if let Some(relay_open::Kind::NetDump(_)) = open.kind {
            return Ok(Response::new(Box::pin(tokio_stream::iter(dump(&open.target)))));
        }
        if open.target != "web.1" {
            let error = ApiError::new(ErrorCode::Conflict, format!("task {} is failed, not running", open.target));
            return Err(error.hint("rclusterctl ps -a shows all tasks").into());
        }
        let opened = v1::RelayOpened {
            task: open.target,
            node: "n1".to_owned(),
            container: "web".to_owned(),
            containers: vec!["web".to_owned()],
            stdin: false,
            tty: false,
        };
        if let Some(relay_open::Kind::NetTrace(asked)) = &open.kind {
            let verdict = format!("delivered to {} over {}", asked.target, asked.protocol().as_str_name());
            // Of what is at this port it answers as one does that does not know of protocols.
            let protocol = if asked.target.ends_with(":1") { 0 } else { asked.protocol };
            let trace = v1::TraceResponse { steps: vec!["a step".to_owned()], verdict, protocol };
            let kinds = [relay_output::Kind::Opened(opened), relay_output::Kind::NetTrace(trace)];
            return Ok(Response::new(Box::pin(tokio_stream::iter(kinds.map(|kind| Ok(v1::RelayOutput { kind: Some(kind) }))))));
        }
        let Some(relay_open::Kind::Exec(exec)) = open.kind else { return Err(ApiError::new(ErrorCode::Invalid, "exec only").into()) };
        let kinds = [
            relay_output::Kind::Opened(opened),
            relay_output::Kind::Stdout(format!("{exec:?}\n").into_bytes()),
            relay_output::Kind::Exit(v1::RelayExit { code: 7 }),
        ];
        let outputs = kinds.map(|kind| Ok(v1::RelayOutput { kind: Some(kind) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(outputs))))
    }

    async fn cluster(&self, _: Request<v1::ClusterRequest>) -> Result<Response<v1::ClusterResponse>, Status> {
        let manager = v1::ManagerStatus {
            id: 1,
            name: "m1".to_owned(),
            addr: "127.0.0.1:7443".to_owned(),
            role: "leader".to_owned(),
            reachable: true,
            matched: 9,
            voter: true,
            object_id: String::new(),
            write_us: 1500,
        };
        Ok(Response::new(v1::ClusterResponse {
            leader: "m1".to_owned(),
            term: 2,
            committed: 9,
            applied: 9,
            revision: 7,
            managers: vec![manager],
            answered_by: "m1".to_owned(),
            cluster_id: "c1".to_owned(),
            store: "raft".to_owned(),
        }))
    }

    async fn update_manager(&self, request: Request<v1::UpdateManagerRequest>) -> Result<Response<v1::UpdateManagerResponse>, Status> {
        let v1::UpdateManagerRequest { manager, .. } = request.into_inner();
        match manager.as_str() {
            "m1" => Ok(Response::new(v1::UpdateManagerResponse { revision: 8 })),
            other => Err(ApiError::new(ErrorCode::NotFound, format!("there is no manager {other}")).into()),
        }
    }

    async fn join_token(&self, request: Request<v1::JoinTokenRequest>) -> Result<Response<v1::JoinTokenResponse>, Status> {
        let token = format!("{:?}", request.into_inner());
        Ok(Response::new(v1::JoinTokenResponse { token, managers: vec!["127.0.0.1:7443".to_owned()] }))
    }

    async fn create_user(&self, request: Request<v1::CreateUserRequest>) -> Result<Response<v1::CreateUserResponse>, Status> {
        let token = format!("token of {}", request.into_inner().name);
        Ok(Response::new(v1::CreateUserResponse { id: "u1".to_owned(), token, credentials: None }))
    }

    async fn drop_authorities(&self, _: Request<v1::DropAuthoritiesRequest>) -> Result<Response<v1::DropAuthoritiesResponse>, Status> {
        Ok(Response::new(v1::DropAuthoritiesResponse { revision: 1 }))
    }

    /// Always the same key; none when it is turned off.
    async fn autolock(&self, request: Request<v1::AutolockRequest>) -> Result<Response<v1::AutolockResponse>, Status> {
        let off = request.into_inner().action() == v1::AutolockAction::Off;
        Ok(Response::new(v1::AutolockResponse { unlock_key: (!off).then(|| v1::Payload { bytes: vec![7; 32] }) }))
    }

    async fn rotate_authority(&self, _: Request<v1::RotateAuthorityRequest>) -> Result<Response<v1::RotateAuthorityResponse>, Status> {
        Ok(Response::new(v1::RotateAuthorityResponse { digest: "sha256:0".to_owned() }))
    }

    /// Whose web.3 has 10.128.0.7, on n2.
    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<v1::NetView>, Status> {
        let endpoint =
            v1::EndpointView { task: "web.3".to_owned(), node_id: "n2".to_owned(), ip: "10.128.0.7".to_owned(), ..Default::default() };
        Ok(Response::new(v1::NetView {
            node_id: request.into_inner().node,
            nodes: vec![v1::NodeView { id: "n2".to_owned(), name: "n2".to_owned(), addr: "10.90.0.102".to_owned(), ..Default::default() }],
            networks: vec![v1::NetworkView { endpoints: vec![endpoint], ..Default::default() }],
            ..Default::default()
        }))
    }

    /// The first pool and those that are asked for.
    async fn update_pools(&self, request: Request<v1::UpdatePoolsRequest>) -> Result<Response<v1::UpdatePoolsResponse>, Status> {
        let first = v1::AddressPool { cidr: "10.128.0.0/9".to_owned(), prefix: 24, cursor: 0 };
        let pools = [first].into_iter().chain(request.into_inner().add);
        let pools = pools.map(|pool| v1::PoolStatus { cidr: pool.cidr, prefix: pool.prefix, subnets: 16, free: 3 }).collect();
        Ok(Response::new(v1::UpdatePoolsResponse { revision: 1, pools }))
    }

    type BackupStream = Answer<v1::BackupChunk>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let header = Header {
            cluster_id: "c1".to_owned(),
            revision: 7,
            term: 1,
            made_at_ms: 0,
            manager: "m1".to_owned(),
            version: "0".to_owned(),
            data_bytes: 0,
            seal: String::new(),
        };
        let bytes = rcluster_api::backup::encode(&header, b"");
        let pieces: Vec<_> = bytes.chunks(100).map(|piece| Ok(v1::BackupChunk { data: piece.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}
