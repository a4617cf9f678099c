//! What callers may ask for at most.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::raft_client::RaftClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::{self, Cluster, rest, rest_with, start, token, until, user};

/// One manager with these limits.
async fn limited(flags: &[&str]) -> Cluster {
    start_again(Cluster::found().await, flags)
}

fn start_again(mut cluster: Cluster, flags: &[&str]) -> Cluster {
    let (dir, addr) = (cluster.manager("m1").dir.clone(), cluster.manager("m1").addr.clone());
    cluster.manager("m1").kill();
    cluster.managers = vec![start("m1", &dir, &addr, flags)];
    cluster
}

async fn list(control: &mut ControlClient<Channel>) -> Result<(), Status> {
    control.list(v1::ListRequest { kind: v1::Kind::Network.into(), ..v1::ListRequest::default() }).await.map(drop)
}

#[tokio::test]
async fn a_flood_is_refused_and_another_is_answered_meanwhile() {
    let cluster = limited(&["--requests-per-second", "20"]).await;
    cluster.write("n1").await;
    let (flo, ann) = (user(&cluster, "flo", v1::UserRole::Deploy).await, user(&cluster, "ann", v1::UserRole::Deploy).await);
    let (over, refused, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = Vec::new();
    for _ in 0..4 {
        let mut control = cluster.control(&flo).await.unwrap();
        let (over, refused, answered) = (over.clone(), refused.clone(), answered.clone());
        flood.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                match list(&mut control).await {
                    Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                    Err(status) => {
                        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        }));
    }
    until("the flood is refused", || async { (refused.load(Ordering::Relaxed) > 100).then_some(()) }).await;
    assert!(answered.load(Ordering::Relaxed) >= 20, "a burst is answered");
    // One who asks for less than the limit is answered each time.
    let mut control = cluster.control(&ann).await.unwrap();
    for _ in 0..10 {
        list(&mut control).await.unwrap();
    }
    let network = v1::NetworkSpec { name: "n2".to_owned(), ..v1::NetworkSpec::default() };
    let spec = v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 };
    control.apply(v1::ApplyRequest { specs: vec![spec] }).await.unwrap();
    over.store(true, Ordering::Relaxed);
    for one in flood {
        one.await.unwrap();
    }
    waits_as_it_is_told(&cluster, &flo).await;
}

fn wait_ms(status: &Status) -> u64 {
    status.metadata().get("retry-after-ms").unwrap().to_str().unwrap().parse().unwrap()
}

/// Who waits for as long as the refusal says is answered; by REST, which says it in seconds too.
async fn waits_as_it_is_told(cluster: &Cluster, flo: &Security) {
    let mut control = cluster.control(flo).await.unwrap();
    let status = until("a burst is refused", || async {
        let at_once = futures::future::join_all((0..200).map(|_| {
            let mut control = control.clone();
            async move { list(&mut control).await }
        }));
        at_once.await.into_iter().find_map(Result::err)
    })
    .await;
    assert!((1..=1000).contains(&wait_ms(&status)), "{status}");
    let error = ApiError::from(status);
    assert_eq!(error.code, ErrorCode::TooMany);
    assert!(error.message.contains("more than 20 requests a second") && error.hint.starts_with("try again in "), "{error}");
    // Nobody else of flo's asks any more: what is told now holds.
    if let Err(status) = list(&mut control).await {
        tokio::time::sleep(Duration::from_millis(wait_ms(&status))).await;
        list(&mut control).await.unwrap();
    }
    let bearer = token(cluster, "rita", v1::UserRole::ReadOnly).await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    let bearer = format!("Bearer {bearer}");
    let headers = [("authorization", bearer.as_str())];
    let ask = || rest_with(&channel, "GET", "/v1/networks", &headers, "");
    let at_once = || async { futures::future::join_all((0..200).map(|_| ask())).await.into_iter().find(|(status, _)| *status != 200) };
    let (status, body) = until("a burst is refused", at_once).await;
    assert!(status == 429 && body.contains("too_many"), "{status} {body}");
    // Whose token it is counts, not the connection.
    let error = rest_with(&channel, "GET", "/v1/networks", &[("authorization", "Bearer rct_wrong")], "").await;
    assert_eq!(error.0, 401, "{}", error.1);
}

#[tokio::test]
async fn streams_and_connections_are_limited_for_each_caller() {
    let cluster = limited(&["--streams-per-caller", "2", "--connections-per-caller", "3"]).await;
    cluster.write("n1").await;
    let (flo, ann) = (user(&cluster, "flo", v1::UserRole::ReadOnly).await, user(&cluster, "ann", v1::UserRole::ReadOnly).await);
    let channel = cluster.connect(&flo).await.unwrap();
    let watch = || async {
        let request = v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision: 0 };
        ControlClient::new(channel.clone()).watch(request).await.map(tonic::Response::into_inner)
    };
    let held = (watch().await.unwrap(), watch().await.unwrap());
    let error = ApiError::from(watch().await.unwrap_err());
    assert!(error.code == ErrorCode::TooMany && error.message.contains("2 streams open"), "{error}");
    list(&mut ControlClient::new(channel.clone())).await.unwrap();
    cluster.list(&ann, v1::Kind::Network).await.unwrap();
    drop(held);
    until("there is room again", || async { watch().await.ok() }).await;
    let more = [cluster.connect(&flo).await.unwrap(), cluster.connect(&flo).await.unwrap()];
    for one in &more {
        // Who asks for nothing is hung up on.
        list(&mut ControlClient::new(one.clone())).await.unwrap();
    }
    let one_more = cluster.connect(&flo).await.unwrap();
    let error = ApiError::from(list(&mut ControlClient::new(one_more)).await.unwrap_err());
    assert!(error.code == ErrorCode::TooMany && error.message.contains("3 connections"), "{error}");
    cluster.list(&ann, v1::Kind::Network).await.unwrap();
    drop(more);
    until("a connection is taken again", || async { cluster.list(&flo, v1::Kind::Network).await.ok() }).await;
}

#[tokio::test]
async fn connections_without_a_certificate_shut_out_nobody_who_has_one() {
    let cluster = limited(&["--connections-per-caller", "6"]).await;
    cluster.write("n1").await;
    let ann = user(&cluster, "ann", v1::UserRole::ReadOnly).await;
    let token = cluster.founded.agent_token.parse::<JoinToken>().unwrap();
    let agent = support::join(&cluster.addrs(), &token, "n1", "").await.unwrap();
    let agent = Security::new(agent.credentials.unwrap()).unwrap();
    let nobody = Security::joining(&token).unwrap();
    let standing = Mutex::new(Vec::new());
    until("as many stand as may", || async {
        let channel = cluster.connect(&nobody).await.unwrap();
        if rest(&channel, "GET", "/healthz", None, "").await.0 == 200 {
            standing.lock().unwrap().push(channel);
        }
        (standing.lock().unwrap().len() == 6).then_some(())
    })
    .await;
    let (status, body) = rest(&cluster.connect(&nobody).await.unwrap(), "GET", "/healthz", None, "").await;
    assert!(status == 429 && body.contains("6 connections"), "{status} {body}");
    cluster.list(&ann, v1::Kind::Network).await.unwrap();
    let error = cluster.list(&agent, v1::Kind::Network).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Forbidden, "an agent is heard: {error}");
    for channel in standing.into_inner().unwrap() {
        assert_eq!(rest(&channel, "GET", "/healthz", None, "").await.0, 200);
    }
}

/// How many of 200 calls at once are refused because there are too many.
async fn refused<F: Future<Output = Result<(), Status>>>(call: impl Fn() -> F) -> usize {
    let answers = futures::future::join_all((0..200).map(|_| call())).await;
    answers.into_iter().filter(|answer| answer.as_ref().is_err_and(|status| status.code() == tonic::Code::ResourceExhausted)).count()
}

async fn batch(channel: &Channel) -> Result<(), Status> {
    let batch = futures::stream::iter([v1::RaftBatch::default()]);
    RaftClient::new(channel.clone()).send(batch).await.map(drop)
}

async fn session(channel: &Channel) -> Result<(), Status> {
    let message = futures::stream::iter([v1::AgentMessage::default()]);
    DispatcherClient::new(channel.clone()).session(message).await.map(drop)
}

#[tokio::test]
async fn what_agents_and_managers_ask_is_counted_when_a_user_asks_it() {
    let cluster = limited(&["--requests-per-second", "20"]).await;
    cluster.write("n1").await;
    let flo = user(&cluster, "flo", v1::UserRole::ReadOnly).await;
    let flo = cluster.connect(&flo).await.unwrap();
    assert!(refused(|| batch(&flo)).await > 0);
    assert!(refused(|| session(&flo)).await > 0);
    let token = cluster.founded.agent_token.parse::<JoinToken>().unwrap();
    let agent = support::join(&cluster.addrs(), &token, "n1", "").await.unwrap();
    let agent = cluster.connect(&Security::new(agent.credentials.unwrap()).unwrap()).await.unwrap();
    assert_eq!((refused(|| batch(&agent)).await, refused(|| session(&agent)).await), (0, 0));
}

#[tokio::test]
async fn without_tls_what_agents_and_managers_ask_is_not_counted() {
    let cluster = start_again(Cluster::found_with(&["--insecure"]).await, &["--insecure", "--requests-per-second", "20"]);
    cluster.write("n1").await;
    let anyone = cluster.connect(&cluster.admin).await.unwrap();
    assert!(refused(|| async { list(&mut ControlClient::new(anyone.clone())).await }).await > 0);
    assert_eq!((refused(|| batch(&anyone)).await, refused(|| session(&anyone)).await), (0, 0));
}

/// How long a manager waits for a handshake, and for a request's headers.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HEADERS: Duration = Duration::from_secs(10);
/// And when it has hung up, on a busy machine too. Without a limit of ours the library's for headers is half a minute.
const SURELY: Duration = Duration::from_secs(25);

/// What a manager says to one who says this and no more, until it hangs up; not before it has waited for so long.
async fn hung_up(addr: &str, said: &[u8], waits: Duration) -> Vec<u8> {
    let said_so = String::from_utf8_lossy(said);
    let began = Instant::now();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(SURELY, stream.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "{said_so:?}: the manager waits on");
    assert!(began.elapsed() >= waits, "{said_so:?}: it hung up after {:?}", began.elapsed());
    heard
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_is_hung_up_on() {
    let (with_tls, plain) = tokio::join!(Cluster::found(), Cluster::found_with(&["--insecure"]));
    let (with_tls, plain) = (&with_tls.managers[0].addr, &plain.managers[0].addr);
    // The beginning of a TLS record: it has 512 bytes, and the first is one of a greeting.
    let half_a_greeting = [0x16_u8, 3, 1, 2, 0, 1];
    let half = "GET /healthz HTTP/1.1\r\nHost: mana";
    let and_another = format!("GET /healthz HTTP/1.1\r\nHost: manager\r\n\r\n{half}");
    let (.., answered) = tokio::join!(
        hung_up(with_tls, b"", HANDSHAKE),
        hung_up(with_tls, &half_a_greeting, HANDSHAKE),
        hung_up(plain, b"", HEADERS),
        hung_up(plain, b"PRI * HTTP/2.0\r\n", HEADERS),
        hung_up(plain, half.as_bytes(), HEADERS),
        hung_up(plain, and_another.as_bytes(), HEADERS),
    );
    assert!(answered.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answered));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_with_the_limit_and_what_to_do() {
    let cluster = Cluster::found().await;
    let control = cluster.control(&cluster.admin).await.unwrap();
    let payload = Some(v1::Payload { bytes: vec![0; MESSAGE_BYTES_MAX] });
    let data = v1::DataSpec { kind: v1::DataKind::Config.into(), name: "c".to_owned(), payload, ..v1::DataSpec::default() };
    let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
    let request = v1::ApplyRequest { specs };
    let error = until("the manager answers", || async {
        let error = ApiError::from(control.clone().apply(request.clone()).await.unwrap_err());
        (error.code != ErrorCode::Unavailable).then_some(error)
    })
    .await;
    assert_eq!((error.code, error.hint.as_str()), (ErrorCode::TooLarge, "send, or ask for, less at once"), "{error}");
    let said = error.message.starts_with("the message is too large: 671") && error.message.ends_with("the limit is: 67108864 bytes");
    assert!(said, "{error}");
    // It is served on, by the same connection.
    until("another call is answered", || async { list(&mut control.clone()).await.ok() }).await;
}
