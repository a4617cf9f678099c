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

#[test]
fn a_leader_that_was_replaced_unheard_refuses_nothing_and_calls_nothing_unchanged() {
    let mut cluster = Managers::found(3, Clocks::Shared).unwrap();
    let old = cluster.leader().unwrap();
    let mut asked = control(&cluster, old);
    cluster.handle().block_on(asked.apply(network("net", "first"))).unwrap();
    // It stands still, another leads and changes what it knows; then it goes on, and nobody tells it.
    cluster.signal(old, Signal::SIGSTOP).unwrap();
    cluster.wire().isolate(old).unwrap();
    let new = cluster.leader_besides(&[old]).unwrap();
    let mut at_new = control(&cluster, new);
    cluster.handle().block_on(at_new.apply(network("other", ""))).unwrap();
    cluster.handle().block_on(at_new.apply(network("net", "second"))).unwrap();
    // By what it has, the network is as the first asks, and there is none of the second's name.
    let unchanged = cluster.handle().spawn({
        let mut asked = asked.clone();
        async move { tokio::time::timeout(PATIENCE, asked.apply(network("net", "first"))).await }
    });
    let missing = cluster.handle().spawn(async move { tokio::time::timeout(PATIENCE, asked.remove(removal("other"))).await });
    cluster.signal(old, Signal::SIGCONT).unwrap();
    let (unchanged, missing) = cluster.handle().block_on(async { (unchanged.await.unwrap(), missing.await.unwrap()) });
    let unchanged = ApiError::from(unchanged.expect("it answers").expect_err("it cannot know"));
    let missing = ApiError::from(missing.expect("it answers").expect_err("it cannot know"));
    for answer in [unchanged, missing] {
        let said = answer.message.contains("stopped leading before it could answer; the request was not carried out");
        assert!(answer.code == ErrorCode::Unavailable && said, "{answer:?}");
    }
    // The same is answered once it has heard.
    cluster.wire().heal().unwrap();
    cluster.wait_whole().unwrap();
    let mut at_old = control(&cluster, old);
    cluster.handle().block_on(at_old.remove(removal("other"))).unwrap();
}
