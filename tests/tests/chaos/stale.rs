//! A leader that was replaced and has not heard of it: what it answers must not rest on what it has, which is old.

use std::time::Duration;

use nix::sys::signal::Signal;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_tests::managers::{Clocks, Managers};
use tonic::transport::{Channel, Endpoint};

/// How long an answer may take: a leader that was cut off hears itself that it is none any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// It leads for a moment only once it goes on. On a busy machine a question may come after that, and then it shows nothing.
const ATTEMPTS: usize = 5;

fn network(name: &str, label: &str) -> v1::ApplyRequest {
    let labels = [("a".to_owned(), label.to_owned())].into();
    let spec = v1::NetworkSpec { name: name.to_owned(), labels, ..v1::NetworkSpec::default() };
    v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Network(spec)), expected_version: 0 }] }
}

fn removal(name: &str) -> v1::RemoveRequest {
    v1::RemoveRequest { refs: vec![v1::Ref { kind: v1::Kind::Network.into(), name: name.to_owned() }] }
}

/// A connection that stays while the other end stands still.
fn control(cluster: &Managers, host: usize) -> ControlClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.addrs()[host])).unwrap();
    ControlClient::new(cluster.handle().block_on(cluster.admin().connect(endpoint)).unwrap())
}

/// Asks a leader that was replaced; whether it still took itself for the leader.
fn asked_in_time(cluster: &mut Managers, attempt: usize) -> bool {
    let (changed, made) = (format!("changed{attempt}"), format!("made{attempt}"));
    let old = cluster.leader().unwrap();
    let mut asked = control(cluster, old);
    cluster.handle().block_on(asked.apply(network(&changed, "first"))).unwrap();
    // It stands still, another leads and changes what it knows; then it goes on, and nobody tells it.
    cluster.signal(old, Signal::SIGSTOP).unwrap();
    cluster.wire().isolate(old).unwrap();
    let new = cluster.leader_besides(&[old]).unwrap();
    let mut at_new = control(cluster, new);
    cluster.handle().block_on(at_new.apply(network(&made, ""))).unwrap();
    cluster.handle().block_on(at_new.apply(network(&changed, "second"))).unwrap();
    // By what it has, the network is as the first asks, and there is none of the second's name.
    let unchanged = cluster.handle().spawn({
        let (mut asked, request) = (asked.clone(), network(&changed, "first"));
        async move { tokio::time::timeout(PATIENCE, asked.apply(request)).await.map(|answer| answer.map(drop)) }
    });
    let missing = cluster.handle().spawn({
        let request = removal(&made);
        async move { tokio::time::timeout(PATIENCE, asked.remove(request)).await.map(|answer| answer.map(drop)) }
    });
    cluster.signal(old, Signal::SIGCONT).unwrap();
    let answers = cluster.handle().block_on(async { [unchanged.await.unwrap(), missing.await.unwrap()] });
    let answers = answers.map(|answer| ApiError::from(answer.expect("it answers").expect_err("it cannot know")));
    // Of one that leads no more, another reason why there is nobody who could answer.
    assert!(answers.iter().all(|answer| answer.code == ErrorCode::Unavailable), "{answers:?}");
    let over = "stopped leading before it could answer; the request was not carried out";
    let is_in_time = answers.iter().all(|answer| answer.message.contains(over));
    if !is_in_time {
        super::tell(&format!("attempt {attempt} came too late: {answers:?}"));
    }
    cluster.wire().heal().unwrap();
    cluster.wait_whole().unwrap();
    // The same is answered once it has heard.
    let mut at_old = control(cluster, old);
    cluster.handle().block_on(at_old.remove(removal(&made))).unwrap();
    is_in_time
}

#[test]
fn a_leader_that_was_replaced_unheard_refuses_nothing_and_calls_nothing_unchanged() {
    let mut cluster = Managers::found(3, Clocks::Shared).unwrap();
    assert!((0..ATTEMPTS).any(|attempt| asked_in_time(&mut cluster, attempt)), "no attempt came in time");
}
