//! What hosts and clients do to managers, and what is said about it.

use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;

use crate::support::{Cluster, Manager, until};

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
async fn an_object_that_is_too_large_is_refused_with_the_limit() {
    let cluster = Cluster::found().await;
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let error = ApiError::from(control.apply(config("c", vec![0; 600 << 10])).await.unwrap_err());
    assert!(matches!(error.code, ErrorCode::Invalid | ErrorCode::TooLarge), "{error:?}");
    assert!(error.message.contains("512000") || error.message.contains("500"), "{error:?}");
    control.apply(config("c", vec![0; 500 << 10])).await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_its_watches_costs_little_and_holds_nobody_up() {
    const WATCHES: usize = 20;
    let cluster = Cluster::found().await;
    let mut writer = cluster.control(&cluster.admin).await.unwrap();
    let mut silent = cluster.control(&cluster.admin).await.unwrap();
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(silent.watch(v1::WatchRequest::default()).await.unwrap());
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
    drop(watches);
}
