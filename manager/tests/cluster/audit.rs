//! Audit events: who did what, and who was refused, as the managers' logs tell it.

use std::time::Duration;

use rcluster_api::identity::JoinToken;
use rcluster_api::seal::{Key, UnlockKey};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use serde_json::Value;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::{self, Cluster, Manager, rest, token, until, user};

/// The events in a manager's log.
pub fn events(manager: &Manager) -> Vec<Value> {
    let log = manager.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").map(|line| line["fields"].clone()).collect()
}

fn told(manager: &Manager) -> Vec<[String; 4]> {
    // Before there was a leader, the first may have been refused and sent again.
    all(manager).into_iter().filter(|event| event[3] != "unavailable").collect()
}

/// Who, what by which method, on what, and the outcome.
fn all(manager: &Manager) -> Vec<[String; 4]> {
    let field = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    events(manager).into_iter().map(|event| ["who", "method", "what", "outcome"].map(|name| field(&event, name))).collect()
}

#[tokio::test]
async fn changes_and_refusals_are_told_of_and_no_secret_is() {
    let mut cluster = Cluster::found().await;
    cluster.write("n1").await;
    let eve = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let bearer = token(&cluster, "rita", v1::UserRole::Deploy).await;
    cluster.try_write(&eve, "n2").await.unwrap_err();
    cluster.list(&eve, v1::Kind::Network).await.unwrap();
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    assert_eq!(rest(&channel, "PUT", "/v1/secrets/s1", Some(&bearer), r#"{"data": "c2VjcmV0LWJ5dGVz"}"#).await.0, 200);
    assert_eq!(rest(&channel, "GET", "/v1/services", Some("rct_wrong"), "").await.0, 401);
    assert_eq!(rest(&channel, "GET", "/v1/services", Some(&bearer), "").await.0, 200);
    ControlClient::new(channel.clone()).scale(v1::ScaleRequest { service: "web".to_owned(), replicas: 3 }).await.unwrap_err();
    let joined = support::join(&cluster.addrs(), &cluster.founded.agent_token.parse().unwrap(), "n1", "").await.unwrap();
    let agent = Security::new(joined.credentials.unwrap()).unwrap();
    cluster.list(&agent, v1::Kind::Network).await.unwrap_err();
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let shown = control.join_token(v1::JoinTokenRequest { manager: true, rotate: false }).await.unwrap().into_inner().token;
    let lock = v1::AutolockRequest { action: v1::AutolockAction::On.into() };
    let key = control.autolock(lock).await.unwrap().into_inner().unlock_key.unwrap();
    control.rotate_authority(v1::RotateAuthorityRequest {}).await.unwrap();
    drop(control.backup(v1::BackupRequest {}).await.unwrap());
    let remove = v1::Ref { kind: v1::Kind::User.into(), name: "eve".to_owned() };
    control.remove(v1::RemoveRequest { refs: vec![remove] }).await.unwrap();
    let agent_name = format!("agent {}", joined.id);
    let expected = [
        ["user admin", "Control/Apply", "network n1", "ok"],
        ["user admin", "Control/CreateUser", "user eve: read-only, by certificate", "ok"],
        ["user admin", "Control/CreateUser", "user rita: deploy, by token", "ok"],
        ["user eve", "Control/Apply", "network n2", "permission_denied"],
        ["user rita", "Control/Apply", "secret s1", "ok"],
        ["an unknown token", "GET /v1/services", "", "unauthenticated"],
        ["nobody", "Control/Scale", "", "unauthenticated"],
        ["nobody", "Admission/Join", "agent n1", "ok"],
        [&agent_name, "Control/List", "", "permission_denied"],
        ["user admin", "Control/JoinToken", "token for managers: shown", "ok"],
        ["user admin", "Control/Autolock", "on", "ok"],
        ["user admin", "Control/RotateAuthority", "", "ok"],
        ["user admin", "Control/Backup", "", "ok"],
        ["user admin", "Control/Remove", "user eve", "ok"],
    ];
    let manager = cluster.manager("m1");
    until("all is told of", || async { (told(manager).len() >= expected.len()).then_some(()) }).await;
    // The managers renew their own certificates when the authority changes, whenever they come to it.
    let told: Vec<_> = told(manager).into_iter().filter(|event| event[1] != "Admission/Renew").collect();
    assert_eq!(told, expected.map(|event| event.map(str::to_owned)));
    assert!(
        events(manager).iter().all(|event| event["manager"] == "m1" && event["from"].as_str().is_some_and(|from| from.starts_with("127.")))
    );
    let log = manager.log();
    let key = UnlockKey(Key::from_bytes(&key.bytes).unwrap()).to_string();
    for secret in ["secret-bytes", "c2VjcmV0LWJ5dGVz", &bearer, "rct_wrong", &shown, &cluster.founded.agent_token, &key] {
        assert!(!log.contains(secret), "{secret}");
    }
}

fn network(name: &str) -> v1::ApplyRequest {
    let network = v1::NetworkSpec { name: name.to_owned(), ..v1::NetworkSpec::default() };
    v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 }] }
}

#[tokio::test]
async fn what_is_passed_on_is_told_of_by_both_managers() {
    let mut cluster = Cluster::found().await;
    let [leader, follower] = cluster.join_without_vote().await;
    let addr = cluster.manager(&follower).addr.clone();
    let mut control = support::control(&[addr], &cluster.admin).await.unwrap();
    control.apply(network("n1")).await.unwrap();
    let find = |manager: &Manager| events(manager).into_iter().find(|event| event["method"] == "Control/Apply" && event["outcome"] == "ok");
    let at_leader = until("the leader tells", || async { find(cluster.managers.iter().find(|one| one.name == leader).unwrap()) }).await;
    let at_follower = until("the other tells", || async { find(cluster.managers.iter().find(|one| one.name == follower).unwrap()) }).await;
    for (event, through) in [(&at_leader, Some(format!("manager {follower}"))), (&at_follower, None)] {
        assert_eq!((event["who"].as_str(), event["what"].as_str()), (Some("user admin"), Some("network n1")));
        assert_eq!(event["through"].as_str().map(str::to_owned), through);
    }
    assert_eq!(at_leader["from"], at_follower["from"]);
}

#[tokio::test]
async fn a_change_whose_caller_goes_away_is_told_of_and_counted() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    let admin = support::connect(&[cluster.manager("m1").addr.clone()], &cluster.admin).await.unwrap();
    // Without a majority an answer takes its time.
    cluster.manager("m2").kill();
    let left = ["user admin", "Control/Apply", "network n1", "cancelled"].map(str::to_owned);
    until("it is told of", || async {
        drop(timeout(Duration::from_millis(100), ControlClient::new(admin.clone()).apply(network("n1"))).await);
        all(&cluster.managers[0]).contains(&left).then_some(())
    })
    .await;
    let counted = r#"rcluster_api_requests_total{method="Control/Apply",outcome="cancelled"}"#;
    until("it is counted", || async { rest(&admin, "GET", "/metrics", None, "").await.1.contains(counted).then_some(()) }).await;
}

/// Asks to run a command in a task that is not there.
async fn exec(channel: &Channel) -> Status {
    let command = v1::RelayExec { args: vec!["secret-argument".to_owned()], ..v1::RelayExec::default() };
    let open = v1::RelayOpen { target: "web.1".to_owned(), kind: Some(v1::relay_open::Kind::Exec(command)), ..v1::RelayOpen::default() };
    let input = v1::RelayInput { kind: Some(v1::relay_input::Kind::Open(open)) };
    ControlClient::new(channel.clone()).relay(futures::stream::iter([input])).await.unwrap_err()
}

#[tokio::test]
async fn a_conversation_is_told_of_by_both_managers_and_where_there_is_no_leader() {
    let mut cluster = Cluster::found().await;
    let [leader, follower] = cluster.join_without_vote().await;
    let admin = support::connect(&[cluster.manager(&follower).addr.clone()], &cluster.admin).await.unwrap();
    let find = |manager: &Manager, outcome: &str| {
        let event = ["user admin", "Control/Relay", "exec in web.1", outcome].map(str::to_owned);
        all(manager).contains(&event).then_some(())
    };
    let status = exec(&admin).await;
    assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
    for name in ["m1", "m2"] {
        let manager: &Manager = cluster.manager(name);
        until("both tell", || async { find(manager, "not_found") }).await;
    }
    cluster.manager(&leader).kill();
    let manager: &Manager = cluster.manager(&follower);
    until("a refusal for want of a leader is told of", || async {
        exec(&admin).await;
        find(manager, "unavailable")
    })
    .await;
    assert!(!manager.log().contains("secret-argument"));
}
