//! What a manager tells of itself.

use rcluster_api::identity::JoinToken;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use tonic::transport::Channel;

use crate::support::{self, Cluster, rest, token, until, user};

/// A manager's figures.
struct Figures(String);

impl Figures {
    async fn of(channel: &Channel, bearer: Option<&str>) -> Self {
        let (status, text) = rest(channel, "GET", "/metrics", bearer, "").await;
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            assert!(name.starts_with("rcluster_") && value.parse::<f64>().is_ok(), "{line:?}");
        }
        Self(text)
    }

    /// A figure by its whole name; 0 when it is not there.
    fn value(&self, name: &str) -> f64 {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }
}

#[tokio::test]
async fn figures_move_with_what_is_done() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    // It leads to the end: the figures that are compared are a leader's.
    let leader = cluster.lead_alone(&["m1", "m2", "m3"]).await;
    let addr = cluster.manager(&leader).addr.clone();
    let channel = support::connect(&[addr], &cluster.admin).await.unwrap();
    let before = Figures::of(&channel, None).await;
    let mut control = rcluster_api::wire::v1::control_client::ControlClient::new(channel.clone());
    for name in ["n1", "n2", "n3"] {
        let network = v1::NetworkSpec { name: name.to_owned(), ..v1::NetworkSpec::default() };
        let spec = v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 };
        control.apply(v1::ApplyRequest { specs: vec![spec] }).await.unwrap();
    }
    control.scale(v1::ScaleRequest { service: "none".to_owned(), replicas: 1 }).await.unwrap_err();
    let request = v1::WatchRequest { kinds: vec![v1::Kind::Network.into()], from_revision: 0 };
    let watch = control.watch(request).await.unwrap().into_inner();
    let after = Figures::of(&channel, None).await;
    let rose = |name: &str| after.value(name) - before.value(name);
    let calls = |method: &str, outcome: &str| rose(&format!("rcluster_api_requests_total{{method=\"{method}\",outcome=\"{outcome}\"}}"));
    assert_eq!((calls("Control/Apply", "ok"), calls("Control/Scale", "not_found"), calls("Control/Watch", "ok")), (3.0, 1.0, 1.0));
    assert_eq!(calls("GET /metrics", "ok"), 1.0, "the one before");
    assert_eq!(rose("rcluster_api_request_duration_seconds_count{method=\"Control/Apply\"}"), 3.0);
    assert!(rose("rcluster_api_request_duration_seconds_sum{method=\"Control/Apply\"}") > 0.0);
    assert_eq!(rose("rcluster_store_objects{kind=\"network\"}"), 3.0);
    assert_eq!(rose("rcluster_streams{kind=\"watch\"}"), 1.0);
    // Others may be written meanwhile: events, what managers are.
    let at_least_3 = [
        "rcluster_transactions_applied_total",
        "rcluster_proposal_duration_seconds_count",
        "rcluster_log_write_duration_seconds_count",
        "rcluster_log_sync_duration_seconds_count",
        "rcluster_store_revision",
    ];
    at_least_3.into_iter().for_each(|name| assert!(rose(name) >= 3.0, "{name} rose by {}", rose(name)));
    assert!(rose("rcluster_store_bytes{kind=\"network\"}") > 0.0 && rose("rcluster_log_written_bytes_total") > 100.0);
    assert_eq!((after.value("rcluster_raft_role{role=\"leader\"}"), after.value("rcluster_raft_role{role=\"follower\"}")), (1.0, 0.0));
    assert_eq!(after.value(&format!("rcluster_raft_leader{{manager=\"{leader}\"}}")), 1.0);
    assert!(after.value("rcluster_raft_term") > 0.0 && after.value("rcluster_process_resident_memory_bytes") > 1e6);
    assert!(after.value("rcluster_connections{part=\"user\"}") >= 1.0);
    until("the other managers are connected", || async {
        let now = Figures::of(&channel, None).await;
        (now.value("rcluster_connections{part=\"manager\"}") >= 2.0).then_some(())
    })
    .await;
    // What Raft's state was is known as of its last heartbeat.
    let indices = ["rcluster_raft_applied_index", "rcluster_raft_committed_index", "rcluster_raft_last_index"];
    until("the indices rise", || async {
        let now = Figures::of(&channel, None).await;
        indices.iter().all(|name| now.value(name) >= before.value(name) + 3.0).then_some(())
    })
    .await;
    drop(watch);
    let watches = || async { Figures::of(&channel, None).await.value("rcluster_streams{kind=\"watch\"}") };
    until("the watch is gone", || async { (watches().await < after.value("rcluster_streams{kind=\"watch\"}")).then_some(()) }).await;
    lag_of_one_that_is_gone(&mut cluster, &channel, &leader).await;
}

/// A manager that is gone lags; one that is there does not. Both are asked of the leader.
async fn lag_of_one_that_is_gone(cluster: &mut Cluster, channel: &Channel, leader: &str) {
    let followers: Vec<&str> = ["m1", "m2", "m3"].into_iter().filter(|name| *name != leader).collect();
    cluster.manager(followers[0]).kill();
    for name in ["n4", "n5", "n6"] {
        cluster.write(name).await;
    }
    let of = |figures: &Figures, name: &str| {
        let of = |metric: &str| figures.value(&format!("rcluster_raft_{metric}{{manager=\"{name}\"}}"));
        (of("lag_entries"), of("reachable"), of("last_write_microseconds"))
    };
    until("the lag is told, and what the last write of the other took", || async {
        let figures = Figures::of(channel, None).await;
        let (gone, there) = (of(&figures, followers[0]), of(&figures, followers[1]));
        (gone.0 >= 3.0 && gone.1 == 0.0 && there.0 == 0.0 && there.1 == 1.0 && there.2 > 0.0).then_some(())
    })
    .await;
    let addr = cluster.manager(followers[1]).addr.clone();
    let follower = support::connect(&[addr], &cluster.admin).await.unwrap();
    let figures = Figures::of(&follower, None).await;
    assert_eq!(figures.value("rcluster_raft_role{role=\"follower\"}"), 1.0);
    assert!(figures.value("rcluster_snapshots_total{deed=\"installed\"}") + figures.value("rcluster_transactions_applied_total") > 3.0);
}

#[tokio::test]
async fn figures_are_for_users_by_certificate_or_token() {
    let cluster = Cluster::found().await;
    let reader = token(&cluster, "rita", v1::UserRole::ReadOnly).await;
    let eve = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let nobody = Security::joining(&cluster.founded.agent_token.parse::<JoinToken>().unwrap()).unwrap();
    let channel = cluster.connect(&nobody).await.unwrap();
    let (status, body) = rest(&channel, "GET", "/metrics", None, "").await;
    assert!(status == 401 && body.contains("neither a certificate nor a token"), "{status} {body}");
    assert_eq!(rest(&channel, "GET", "/metrics", Some("rct_wrong"), "").await.0, 401);
    assert_eq!(rest(&channel, "GET", "/v1/nothing", Some(&reader), "").await.0, 404);
    let figures = Figures::of(&channel, Some(&reader)).await;
    let calls =
        |method: &str, outcome: &str| figures.value(&format!("rcluster_api_requests_total{{method=\"{method}\",outcome=\"{outcome}\"}}"));
    assert_eq!((calls("GET /metrics", "unauthenticated"), calls("other", "not_found")), (2.0, 1.0));
    // One whose handshake took too long for its client may be there for a moment more.
    until("one is connected without a certificate", || async {
        let now = Figures::of(&channel, Some(&reader)).await;
        (now.value("rcluster_connections{part=\"nobody\"}") == 1.0).then_some(())
    })
    .await;
    Figures::of(&cluster.connect(&eve).await.unwrap(), None).await;
}
