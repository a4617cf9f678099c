//! Streams that stand while their users go, and connections whose certificates expire or whose authority is dropped.

use std::time::Duration;

use rcluster_api::backup;
use rcluster_api::client;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::object::Object;
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_manager::ca;
use rcluster_manager::core::state::decode_snapshot;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::agents::Agent;
use crate::support::{self, Cluster, until, user};

/// Longest wait for the end of a stream.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long credentials are valid whose end is waited for: enough to begin with them, on a busy machine too.
const BRIEF: Duration = Duration::from_secs(20);

/// How a stream ends, whatever it says before.
async fn end<T>(stream: &mut Streaming<T>) -> ApiError {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends without a word"),
                Err(status) => return ApiError::from(status),
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends")
}

async fn watch(channel: &Channel) -> Streaming<v1::WatchResponse> {
    let request = v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision: 0 };
    ControlClient::new(channel.clone()).watch(request).await.unwrap().into_inner()
}

async fn follow(channel: &Channel) -> Streaming<v1::LogLine> {
    let request = v1::LogsRequest { target: "web".to_owned(), follow: true, ..v1::LogsRequest::default() };
    ControlClient::new(channel.clone()).logs(request).await.unwrap().into_inner()
}

/// A service of which nothing runs: there is no node.
async fn service(cluster: &Cluster) {
    let spec = serde_json::json!({ "replicas": 1, "containers": [{ "image": "none" }] });
    let web = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
    let spec = v1::Spec { kind: Some(Spec::Service(web).into()), expected_version: 0 };
    let control = cluster.control(&cluster.admin).await;
    control.unwrap().apply(v1::ApplyRequest { specs: vec![spec] }).await.unwrap();
}

/// An agent that takes a relay, and says nothing in it.
pub struct SilentAgent {
    id: String,
    /// Ends with the session.
    pub session: JoinHandle<()>,
}

impl SilentAgent {
    /// Its session is with the leader.
    pub async fn start(cluster: &Cluster, leader: &str, name: &str) -> Self {
        let agent = Agent::join(cluster, leader, name).await;
        let (outbox, answers) = agent.session(Vec::new()).await.unwrap();
        let Agent { id, channel, .. } = agent;
        let session = tokio::spawn(async move {
            tokio::select! {
                () = beat(outbox) => {}
                () = take_relays(channel, answers) => {}
            }
        });
        Self { id, session }
    }
}

async fn beat(outbox: mpsc::Sender<v1::AgentMessage>) {
    for sequence in 0.. {
        let beat = v1::agent_message::Kind::Heartbeat(v1::Heartbeat { sequence, ..v1::Heartbeat::default() });
        if outbox.send(v1::AgentMessage { kind: Some(beat) }).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn take_relays(channel: Channel, mut messages: Streaming<v1::ManagerMessage>) {
    let mut taken = Vec::new();
    while let Ok(Some(message)) = messages.message().await {
        let Some(v1::manager_message::Kind::Relay(command)) = message.kind else { continue };
        let (outputs, answers) = mpsc::channel(1);
        let id = v1::relay_output::Kind::RequestId(command.request_id);
        outputs.send(v1::RelayOutput { kind: Some(id) }).await.unwrap();
        let inputs = DispatcherClient::new(channel.clone()).relay(ReceiverStream::new(answers)).await.unwrap().into_inner();
        taken.push((outputs, inputs));
    }
}

/// A conversation with the node, in which nobody says anything.
pub async fn relay(channel: &Channel, node: &str) -> Result<(mpsc::Sender<v1::RelayInput>, Streaming<v1::RelayOutput>), Status> {
    let prune = v1::image_request::Kind::Prune(v1::ImagePrune::default());
    let image = v1::relay_open::Kind::Image(v1::ImageRequest { kind: Some(prune) });
    let open = v1::RelayOpen { target: node.to_owned(), kind: Some(image), ..v1::RelayOpen::default() };
    let (inputs, messages) = mpsc::channel(1);
    inputs.send(v1::RelayInput { kind: Some(v1::relay_input::Kind::Open(open)) }).await.unwrap();
    let outputs = ControlClient::new(channel.clone()).relay(ReceiverStream::new(messages)).await?.into_inner();
    Ok((inputs, outputs))
}

/// Two managers: where the one is that leads to the end, and where the other.
async fn two(cluster: &mut Cluster) -> [String; 2] {
    let names = cluster.join_without_vote().await;
    names.map(|name| cluster.manager(&name).addr.clone())
}

#[tokio::test]
async fn streams_of_a_user_that_is_removed_end_and_say_so() {
    let mut cluster = Cluster::found().await;
    let addrs = two(&mut cluster).await;
    service(&cluster).await;
    let agent = SilentAgent::start(&cluster, &addrs[0], "n1").await;
    let eve = user(&cluster, "eve", v1::UserRole::Deploy).await;
    let (mut watches, mut logs, mut relays) = (Vec::new(), Vec::new(), Vec::new());
    for addr in &addrs {
        let channel = support::connect(std::slice::from_ref(addr), &eve).await.unwrap();
        watches.push(watch(&channel).await);
        logs.push(follow(&channel).await);
        relays.push(relay(&channel, &agent.id).await.unwrap());
    }
    let of_another = support::connect(&addrs, &cluster.admin).await.unwrap();
    let mut of_another = watch(&of_another).await;
    let user = v1::Ref { kind: v1::Kind::User.into(), name: "eve".to_owned() };
    cluster.control(&cluster.admin).await.unwrap().remove(v1::RemoveRequest { refs: vec![user] }).await.unwrap();
    let mut ends = Vec::new();
    for stream in &mut watches {
        ends.push(end(stream).await);
    }
    for stream in &mut logs {
        ends.push(end(stream).await);
    }
    for (_, stream) in &mut relays {
        ends.push(end(stream).await);
    }
    for error in ends {
        assert!(error.code == ErrorCode::Unauthenticated && error.message.contains("was it removed?"), "{error}");
    }
    cluster.write("n1").await;
    let told = async { while of_another.message().await.unwrap().unwrap().puts.is_empty() {} };
    tokio::time::timeout(PATIENCE, told).await.expect("who was not removed is told on");
}

/// Writes one config again and again, until told to end.
async fn flood(channel: Channel, ended: tokio::sync::watch::Receiver<bool>) {
    let data = v1::DataSpec { kind: v1::DataKind::Config.into(), name: "c".to_owned(), ..v1::DataSpec::default() };
    for number in 0_u64.. {
        let data = v1::DataSpec { payload: Some(v1::Payload { bytes: number.to_be_bytes().to_vec() }), ..data.clone() };
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
        // However it ends: there are to be many of them.
        let _ = ControlClient::new(channel.clone()).apply(v1::ApplyRequest { specs }).await;
        if *ended.borrow() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_heard_however_much_users_ask() {
    let cluster = Cluster::found().await;
    let leader = cluster.addrs().remove(0);
    let mut channels = Vec::new();
    for name in ["ann", "bob", "eve"] {
        let user = user(&cluster, name, v1::UserRole::Deploy).await;
        channels.push(cluster.connect(&user).await.unwrap());
    }
    let mut seen = Vec::new();
    // This process, with the agent in it, may stand still for a while; behind the users an agent would be missed each time.
    for name in ["n1", "n2", "n3", "n4"] {
        let _agent = SilentAgent::start(&cluster, &leader, name).await;
        let (end, ended) = tokio::sync::watch::channel(false);
        let mut floods = Vec::new();
        for channel in &channels {
            floods.extend((0..900).map(|_| tokio::spawn(flood(channel.clone(), ended.clone()))));
        }
        // Twice as long as a node is silent that is down.
        tokio::time::sleep(Duration::from_secs(6)).await;
        end.send_replace(true);
        for flood in floods {
            flood.await.unwrap();
        }
        let events = cluster.list(&cluster.admin, v1::Kind::Event).await.unwrap();
        let judged = events.into_iter().filter_map(|object| match Object::try_from(object).unwrap() {
            Object::Event(event) if event.object == name => Some(event.reason),
            _ => None,
        });
        let judged: Vec<String> = judged.collect();
        let times = |reason: &str| judged.iter().filter(|judged| *judged == reason).count();
        if times("Suspect") <= 2 && times("Down") == 0 {
            return;
        }
        seen.push(judged);
    }
    panic!("{seen:?}");
}

/// Credentials of a user that are valid for so long, as its managers might have issued them.
async fn short_lived(cluster: &Cluster, user: &Security, ttl: Duration) -> Security {
    let mut chunks = cluster.control(&cluster.admin).await.unwrap().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes.extend(chunk.data);
    }
    let state = decode_snapshot(backup::decode(&bytes).unwrap().data).unwrap();
    let identity = user.credentials().unwrap().certificate().unwrap().identity;
    let request = SigningRequest::new().unwrap();
    let issued = ca::issue(&state.cluster().unwrap().authorities, &identity, &[], &request.request, ttl).unwrap();
    Security::new(Credentials::new(issued, request.key)).unwrap()
}

#[tokio::test]
async fn streams_and_connections_end_with_the_certificate() {
    let mut cluster = Cluster::found().await;
    let addrs = two(&mut cluster).await;
    service(&cluster).await;
    let eve = user(&cluster, "eve", v1::UserRole::Deploy).await;
    let brief = short_lived(&cluster, &eve, BRIEF).await;
    let mut streams = Vec::new();
    for addr in &addrs {
        let channel = support::connect(std::slice::from_ref(addr), &brief).await.unwrap();
        streams.push((watch(&channel).await, follow(&channel).await, channel));
    }
    for (watch, logs, channel) in &mut streams {
        for error in [end(watch).await, end(logs).await] {
            assert!(
                error.code == ErrorCode::Unauthenticated && error.message.contains("the certificate of user eve has expired"),
                "{error}"
            );
        }
        // The connection takes no more, and another is not made with it.
        let request = v1::ListRequest { kind: v1::Kind::Network.into(), ..v1::ListRequest::default() };
        let mut control = ControlClient::new(channel.clone());
        until("the connection is worth nothing", || {
            let (mut control, request) = (control.clone(), request.clone());
            async move { control.list(request).await.err() }
        })
        .await;
        assert!(control.list(request).await.is_err());
    }
    // The user's other certificate is as good as before.
    cluster.list(&eve, v1::Kind::Network).await.unwrap();
}

/// The user's certificate, renewed; used where the managers are as far themselves.
async fn renewed(addrs: &[String], user: &Security) -> Security {
    let renewed = client::renew(support::connect(addrs, user).await.unwrap()).await.unwrap();
    // Whoever trusts the new authority alone speaks with no manager that has a certificate of the one before.
    let alone = Security::new(Credentials { authorities: renewed.authorities[..1].to_vec(), ..renewed }).unwrap();
    for addr in addrs {
        until("the manager has a certificate of the new authority", || async {
            client::connect(std::slice::from_ref(addr), &alone).await.ok()
        })
        .await;
    }
    alone
}

#[tokio::test]
async fn streams_and_connections_end_with_the_authority() {
    let mut cluster = Cluster::found().await;
    let addrs = two(&mut cluster).await;
    service(&cluster).await;
    let agent = SilentAgent::start(&cluster, &addrs[0], "n1").await;
    let eve = user(&cluster, "eve", v1::UserRole::Deploy).await;
    let mut streams = Vec::new();
    for addr in &addrs {
        let channel = support::connect(std::slice::from_ref(addr), &eve).await.unwrap();
        let relay = relay(&channel, &agent.id).await.unwrap();
        streams.push((watch(&channel).await, follow(&channel).await, relay, channel));
    }
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    control.rotate_authority(v1::RotateAuthorityRequest {}).await.unwrap();
    cluster.admin = renewed(&addrs, &cluster.admin).await;
    let in_time = renewed(&addrs, &eve).await;
    let mut going_on = Vec::new();
    for addr in &addrs {
        going_on.push(watch(&support::connect(std::slice::from_ref(addr), &in_time).await.unwrap()).await);
    }
    // By a connection of the old certificate: it is answered before that is cut.
    control.drop_authorities(v1::DropAuthoritiesRequest {}).await.unwrap();
    // Nor is the old certificate exchanged for a good one, however soon.
    assert!(client::renew(streams[0].3.clone()).await.is_err());
    for (watch, logs, (_, relay), channel) in &mut streams {
        for error in [end(watch).await, end(logs).await, end(relay).await] {
            let says_why = error.message.contains("the authority of the certificate of user eve was dropped");
            assert!(error.code == ErrorCode::Unauthenticated && says_why && error.hint.contains("rclusterctl user create"), "{error}");
        }
        let request = v1::ListRequest { kind: v1::Kind::Network.into(), ..v1::ListRequest::default() };
        let mut control = ControlClient::new(channel.clone());
        until("the connection is worth nothing", || {
            let (mut control, request) = (control.clone(), request.clone());
            async move { control.list(request).await.err() }
        })
        .await;
        assert!(control.list(request).await.is_err());
    }
    cluster.write("n1").await;
    for stream in &mut going_on {
        let told = async { while stream.message().await.unwrap().unwrap().puts.is_empty() {} };
        tokio::time::timeout(PATIENCE, told).await.expect("who has renewed in time is told on");
    }
}

#[tokio::test]
async fn a_stream_ends_when_the_token_has_expired() {
    let cluster = Cluster::found().await;
    let brief = v1::CreateUserRequest {
        name: "tim".to_owned(),
        role: v1::UserRole::ReadOnly.into(),
        ttl_ms: u64::try_from(BRIEF.as_millis()).unwrap(),
        ..v1::CreateUserRequest::default()
    };
    let token = cluster.control(&cluster.admin).await.unwrap().create_user(brief).await.unwrap().into_inner().token;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    let mut request = Request::new(v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision: 0 });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut stream = ControlClient::new(channel).watch(request).await.unwrap().into_inner();
    let error = end(&mut stream).await;
    assert!(error.code == ErrorCode::Unauthenticated && error.message.contains("the credentials of user tim have expired"), "{error}");
}
