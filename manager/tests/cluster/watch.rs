//! Watches that go on where they were: with another manager, after a restart, by REST.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use tonic::Streaming;
use tower::{Service, ServiceExt};

use crate::support::{self, Cluster, start, token, until, user};

/// Waits for one message for so long.
const PATIENCE: Duration = Duration::from_secs(20);

async fn watch(cluster: &Cluster, addr: &str, from_revision: u64) -> Result<Streaming<v1::WatchResponse>, ApiError> {
    let request = v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision };
    Ok(support::control(&[addr.to_owned()], &cluster.admin).await?.watch(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<v1::WatchResponse>) -> Result<v1::WatchResponse, ApiError> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message comes in time");
    Ok(message?.expect("the stream goes on"))
}

/// One that keeps what it is told, wherever it is told so.
#[derive(Debug, Default)]
struct Reader {
    revision: u64,
    /// Names by id.
    networks: BTreeMap<String, String>,
}

impl Reader {
    async fn read(&mut self, cluster: &Cluster, addr: &str, wanted: &str) {
        let mut stream = until("a watch is open", || async { watch(cluster, addr, self.revision).await.ok() }).await;
        while !self.networks.values().any(|name| name == wanted) {
            let message = next(&mut stream).await.unwrap();
            assert_eq!(message.after, self.revision, "a gap");
            for put in message.puts {
                let Some(v1::object::Kind::Network(network)) = put.kind else { panic!("another kind") };
                self.networks.insert(network.meta.unwrap().id, network.spec.unwrap().name);
            }
            message.deletes.iter().for_each(|gone| drop(self.networks.remove(&gone.name)));
            self.revision = message.revision;
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_from_its_revision_with_any_manager_and_after_a_restart() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    let mut reader = Reader::default();
    let mut expected = Vec::new();
    for (name, manager) in [("n1", "m1"), ("n2", "m2"), ("n3", "m3")] {
        cluster.write(name).await;
        expected.push(name.to_owned());
        let addr = cluster.manager(manager).addr.clone();
        reader.read(&cluster, &addr, name).await;
        assert_eq!(reader.networks.values().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(), expected);
    }
    // The leader goes; what is written meanwhile is told by one that was not asked before, and by the old one when it is back.
    let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
    cluster.manager(&leader).kill();
    cluster.write("n4").await;
    let other = if leader == "m1" { "m2" } else { "m1" };
    let addr = cluster.manager(other).addr.clone();
    reader.read(&cluster, &addr, "n4").await;
    let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
    cluster.write("n5").await;
    cluster.managers.push(start(&leader, &dir, &addr, &[]));
    reader.read(&cluster, &addr, "n5").await;
    assert_eq!(reader.networks.len(), 5);
    let refused = watch(&cluster, &addr, reader.revision + 1_000_000).await.unwrap_err();
    assert!(refused.code == ErrorCode::Invalid && refused.message.contains("is not there yet: the newest is"), "{refused}");
}

#[tokio::test]
async fn what_a_manager_does_not_keep_is_refused_as_compacted() {
    let mut cluster = Cluster::found().await;
    cluster.write("n1").await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    let addr = cluster.manager("m1").addr.clone();
    // The tables that a cluster begins with are a snapshot, of revision 1.
    let mut stream = watch(&cluster, &addr, 1).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().puts.len(), 1);
    let status = cluster.status().await.unwrap();
    // A snapshot takes the place of all revisions before it: it is what a manager that joins begins with.
    let joined = cluster.manager("m2").addr.clone();
    let refused = watch(&cluster, &joined, 1).await.unwrap_err();
    assert!(refused.code == ErrorCode::Compacted && refused.hint.contains("revision 0"), "{refused} {status:?}");
    let mut whole = watch(&cluster, &joined, 0).await.unwrap();
    let first = next(&mut whole).await.unwrap();
    assert!(first.synced && first.puts.len() == 1, "{first:?}");
}

#[tokio::test]
async fn a_watch_ends_when_its_user_is_removed() {
    let cluster = Cluster::found().await;
    let eve = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let request = v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision: 0 };
    let mut stream = cluster.control(&eve).await.unwrap().watch(request).await.unwrap().into_inner();
    assert!(next(&mut stream).await.unwrap().synced);
    let refs = vec![v1::Ref { kind: v1::Kind::User.into(), name: "eve".to_owned() }];
    cluster.control(&cluster.admin).await.unwrap().remove(v1::RemoveRequest { refs }).await.unwrap();
    let ended = next(&mut stream).await.unwrap_err();
    assert!(ended.code == ErrorCode::Unauthenticated && ended.message.contains("was it removed?"), "{ended}");
}

#[tokio::test]
async fn rest_watches_in_lines_of_json() {
    let cluster = Cluster::found().await;
    cluster.write("n1").await;
    let reader = token(&cluster, "rita", v1::UserRole::ReadOnly).await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    let get = |path: &str| {
        let request = http::Request::builder().uri(format!("http://manager{path}")).header("authorization", format!("Bearer {reader}"));
        let (request, mut channel) = (request.body(tonic::body::Body::empty()).unwrap(), channel.clone());
        async move { channel.ready().await.unwrap().call(request).await.unwrap() }
    };
    let answer = get("/v1/watch?kind=network").await;
    assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()), (200, "application/x-ndjson"));
    let mut body = http_body_util::BodyExt::into_data_stream(answer.into_body());
    let mut line = async || -> serde_json::Value {
        let bytes = tokio::time::timeout(PATIENCE, body.next()).await.expect("a line comes in time").unwrap().unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let first = line().await;
    assert_eq!((&first["synced"], &first["put"][0]["object"]["name"]), (&true.into(), &"n1".into()), "{first}");
    cluster.write("n2").await;
    let second = line().await;
    assert_eq!((&second["after"], &second["put"][0]["object"]["name"]), (&first["revision"], &"n2".into()), "{second}");
    for (path, said) in [
        ("/v1/watch?kind=manager", "there is no kind \\\"manager\\\" to watch"),
        ("/v1/watch?from=x", "x is not a revision"),
        ("/v1/watch?since=1", "there is no such parameter"),
    ] {
        let answer = get(path).await;
        let status = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(status == 422 && body.contains(said), "{status} {body}");
    }
}
