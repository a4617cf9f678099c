//! What hosts and clients do to managers, and what is said about it.

use std::collections::BTreeMap;
use std::time::Duration;

use rcluster_api::client;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Cluster, Manager, rest, start, until};

/// Longest wait for what a manager does after half a minute, and for one message.
const PATIENCE: Duration = Duration::from_secs(90);
const ABOUT_THE_CLOCK: &str = "is the clock of one of the two hosts wrong?";

fn config(name: &str, bytes: Vec<u8>) -> v1::ApplyRequest {
    let payload = Some(v1::Payload { bytes });
    let data = v1::DataSpec { kind: v1::DataKind::Config.into(), name: name.to_owned(), payload, ..v1::DataSpec::default() };
    v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }] }
}

/// Resident memory, bytes.
fn memory(manager: &Manager) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", manager.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_clock_that_is_almost_an_hour_ahead_is_forgiven() {
    let mut cluster = Cluster::found_at("+55m").await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
}

#[tokio::test]
async fn a_clock_that_is_further_ahead_is_named() {
    let mut cluster = Cluster::found_at("+3h").await;
    let error = cluster.status().await.unwrap_err().to_string();
    assert!(error.contains("its certificate is not valid yet") && error.contains(ABOUT_THE_CLOCK), "{error}");
    // Who joins finds the same; it is told where its administrator looks, and tried again, as clocks can be set.
    cluster.join("m2");
    until("it is told", || async { cluster.managers[1].log().contains(ABOUT_THE_CLOCK).then_some(()) }).await;
}

#[tokio::test]
async fn a_clock_that_is_an_hour_behind_is_forgiven() {
    let mut cluster = Cluster::found().await;
    cluster.join_with_clock("-60m", "m2");
    cluster.settled(&["m1", "m2"]).await;
    cluster.write("a").await;
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused_with_the_limit_and_what_to_do() {
    let cluster = Cluster::found().await;
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let mut refused = async |request: v1::ApplyRequest, message: &str, hint: &str| {
        let error = ApiError::from(control.apply(request).await.unwrap_err());
        assert_eq!((error.code, error.message.as_str(), error.hint.as_str()), (ErrorCode::TooLarge, message, hint));
    };
    let message = "config c has 614400 bytes, more than the limit of 512000";
    refused(config("c", vec![0; 600 << 10]), message, "split it, or keep it on a volume or in the image").await;
    let labels = [("a".to_owned(), "x".repeat(300 << 10))].into();
    let network = v1::NetworkSpec { name: "n".to_owned(), labels, ..v1::NetworkSpec::default() };
    let network = v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 };
    let message = "the labels of network n have 307201 bytes, more than the limit of 262144";
    refused(v1::ApplyRequest { specs: vec![network] }, message, "keep what is long in configs").await;
    // Each of these fits, and all at once do not.
    let specs = (0..20).flat_map(|number| config(&format!("c{number}"), vec![7; 500 << 10]).specs).collect();
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let error = ApiError::from(control.apply(v1::ApplyRequest { specs }).await.unwrap_err());
    let said = error.message.starts_with("the change needs 10") && error.message.ends_with(" bytes in the log, the limit is 8388608");
    assert!(error.code == ErrorCode::TooLarge && said && error.hint == "deploy or scale in smaller steps", "{error:?}");
    assert_eq!(cluster.list(&cluster.admin, v1::Kind::Config).await.unwrap().len(), 0);
    control.apply(config("c", vec![0; 500 << 10])).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_told_from_one_of_ours_and_changes_nothing() {
    for (flags, why) in
        [(&["--insecure"][..], "does the address belong to another cluster?"), (&[][..], "its certificate is of another cluster")]
    {
        let (mut ours, mut other) = (Cluster::found_with(flags).await, Cluster::found_with(flags).await);
        for name in ["m2", "m3"] {
            ours.join(name);
        }
        ours.settled(&["m1", "m2", "m3"]).await;
        other.write("theirs").await;
        // Another cluster's only manager has the address of ours from now on, and both are managers with the Raft id 1.
        let (dir, addr) = (ours.manager("m1").dir.clone(), ours.manager("m1").addr.clone());
        ours.manager("m1").kill();
        other.manager("m1").kill();
        let stranger = start("m1", &other.manager("m1").dir.clone(), &addr, flags);
        // Whoever leads speaks with it.
        until("it is said who is there", || async { ours.managers.iter().any(|manager| manager.log().contains(why)).then_some(()) }).await;
        let others = [ours.manager("m2").addr.clone(), ours.manager("m3").addr.clone()];
        until("ours go on", || async {
            let status = client::control(&others, &ours.admin).await.ok()?.cluster(v1::ClusterRequest {}).await.ok()?.into_inner();
            ["m2", "m3"].contains(&status.leader.as_str()).then_some(())
        })
        .await;
        drop(stranger);
        ours.managers.push(start("m1", &dir, &addr, flags));
        ours.settled(&["m1", "m2", "m3"]).await;
        assert_eq!(ours.networks().await, 0, "{flags:?}");
    }
}

#[tokio::test]
async fn a_host_with_a_wrong_token_ends_with_where_to_get_the_right_one() {
    let mut cluster = Cluster::found().await;
    let own = std::mem::take(&mut cluster.founded.manager_token);
    let other = Cluster::found().await.founded.manager_token;
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    control.join_token(v1::JoinTokenRequest { manager: true, rotate: true }).await.unwrap();
    for (name, token, why) in [
        ("old", own, "it is of another cluster, or was rotated (print the one that is: rclusterctl cluster token manager)"),
        ("other", other, "the join token is for another cluster"),
        ("agent", cluster.founded.agent_token.clone(), "the join token is for agents: `rclusterctl cluster token manager` prints the one"),
        ("typo", "rcluster1-manager-nonsense".to_owned(), "not a join token"),
    ] {
        cluster.founded.manager_token = token;
        cluster.join(name);
        let manager = cluster.manager(name);
        assert_eq!(manager.end().await, 1);
        assert!(manager.log().contains(why), "{name}: {}", manager.log());
        cluster.managers.pop();
    }
    assert_eq!(cluster.status().await.unwrap().managers.len(), 1);
}

#[tokio::test]
async fn managers_that_were_off_for_longer_than_their_certificates_are_valid_come_up_and_expired_users_are_told() {
    let mut cluster = Cluster::found_at("-100d").await;
    cluster.join_with_clock("-100d", "m2");
    until("m2 votes", || async { cluster.managers[0].log().contains("voters=[1, 2]").then_some(()) }).await;
    for name in ["m1", "m2"] {
        let manager = cluster.manager(name);
        manager.kill();
        std::fs::remove_file(manager.dir.with_extension("log")).unwrap();
        *manager = start(name, &manager.dir.clone(), &manager.addr.clone(), &[]);
    }
    // Neither has a quorum without the other, and each has made itself a new certificate.
    until("one of them leads", || async { cluster.managers.iter().any(|manager| manager.log().contains("leading")).then_some(()) }).await;
    let error = cluster.status().await.unwrap_err().to_string();
    assert!(error.contains("has expired (is this host's clock wrong?") && error.contains("rclusterctl user create"), "{error}");
}

/// What one is told who watches networks that have numbers.
#[derive(Debug, Default)]
struct Told {
    /// Everything through this.
    revision: u64,
    /// The ends of their long numbers, by name.
    networks: BTreeMap<String, usize>,
}

impl Told {
    fn hear(&mut self, message: v1::WatchResponse) {
        assert_eq!(message.after, self.revision, "a gap");
        for put in message.puts {
            if let Some(v1::object::Kind::Network(network)) = put.kind {
                let spec = network.spec.unwrap();
                let label = &spec.labels["a"];
                self.networks.insert(spec.name, label[label.len() - 3..].parse().unwrap());
            }
        }
        if !message.partial {
            self.revision = message.revision;
        }
    }

    /// Reads on, and says how the watch ends.
    async fn read_on(&mut self, watch: &mut Streaming<v1::WatchResponse>) -> ApiError {
        loop {
            match tokio::time::timeout(PATIENCE, watch.message()).await.expect("it ends or goes on") {
                Ok(Some(message)) => self.hear(message),
                Ok(None) => panic!("it ends without a word"),
                Err(status) => return ApiError::from(status),
            }
        }
    }
}

/// A connection that is kept when the manager stands still for some seconds.
async fn steady(cluster: &Cluster) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.managers[0].addr)).unwrap();
    until("a connection", || async { cluster.admin.connect(endpoint.clone()).await.ok() }).await
}

#[tokio::test]
async fn a_client_that_never_reads_its_watches_costs_little_holds_nobody_up_and_is_told() {
    const WATCHES: usize = 20;
    let cluster = Cluster::found().await;
    let mut writer = cluster.control(&cluster.admin).await.unwrap();
    let mut silent = ControlClient::new(steady(&cluster).await);
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(silent.watch(v1::WatchRequest::default()).await.unwrap().into_inner());
    }
    // Labels are in what a watch tells, unlike contents.
    let large = |number: usize| {
        let labels = [("a".to_owned(), format!("{number:060000}"))].into();
        let network = v1::NetworkSpec { name: format!("n{}", number % 10), labels, ..v1::NetworkSpec::default() };
        v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 }] }
    };
    for number in 0..20 {
        writer.apply(large(number)).await.unwrap();
    }
    let before = memory(&cluster.managers[0]);
    for number in 20..420 {
        tokio::time::timeout(Duration::from_secs(30), writer.apply(large(number))).await.expect("others are served").unwrap();
    }
    // Each has been told of 24 MB. What waits for it is a few messages; the log and a snapshot of it take the rest.
    let after = memory(&cluster.managers[0]);
    assert!(after < before + (150 << 20), "{} MiB became {} MiB", before >> 20, after >> 20);
    let given_up = async {
        let channel = steady(&cluster).await;
        while !rest(&channel, "GET", "/metrics", None, "").await.1.contains("rcluster_streams{kind=\"watch\"} 0\n") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("the manager gives them up");
    // They share a connection: none is read to its end while the others are not read.
    let read = watches.into_iter().map(|mut watch| async move {
        let mut told = Told::default();
        let error = told.read_on(&mut watch).await;
        (told, error)
    });
    let mut read = futures::future::join_all(read).await;
    for (told, error) in &read {
        let hint = format!("go on from revision {}", told.revision);
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Unavailable, "the watch was not read for 30 s"));
        assert_eq!(error.hint, hint);
    }
    let (mut told, _) = read.swap_remove(0);
    let newest: BTreeMap<String, usize> = (410..420).map(|number| (format!("n{}", number % 10), number)).collect();
    assert_ne!(told.networks, newest, "it was told of everything");
    let request = v1::WatchRequest { kinds: Vec::new(), from_revision: told.revision };
    let mut watch = silent.watch(request).await.unwrap().into_inner();
    while told.networks != newest {
        let message = tokio::time::timeout(PATIENCE, watch.message()).await.expect("it goes on");
        told.hear(message.unwrap().unwrap());
    }
}
