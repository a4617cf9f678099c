//! Replacing tasks under load.

use std::time::Duration;

use rcluster_tests::lab::wait_for;
use serde::Deserialize;

use crate::{Turn, balanced, web};

const SOON: Duration = Duration::from_secs(60);

/// What `probe watch` says at its end.
#[derive(Debug, Deserialize)]
struct Watched {
    requests: u64,
    failures: u64,
}

/// The network, a service's name and how many replicas: a manifest.
pub type Manifest = fn(&str, &str, usize) -> String;

/// The server, which ends at once on SIGTERM, sent to only while it serves; its tasks are replaced when `generation` changes.
pub fn server(manifest: Manifest, generation: u32) -> String {
    let check = "{http: {port: 8080, path: /health}, interval: 200ms}";
    let container = format!("    - healthcheck: {check}\n      env: {{GENERATION: \"{generation}\"}}\n      image:");
    manifest("lab", "web", 3).replace("    - image:", &container)
}

#[test]
fn rolling_update_of_three_replicas_fails_no_request() {
    updated("update", web);
}

#[test]
fn rolling_update_behind_one_address_fails_no_request() {
    updated("viproll", balanced);
}

fn updated(name: &str, manifest: Manifest) {
    let turn = Turn::new(name, 1, 3);
    let lab = turn.lab();
    let client = web("lab", "client", 3);
    lab.deploy(&format!("{}---\n{}", server(manifest, 1), client.split_once("---\n").unwrap().1)).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    let clients = lab.wait_running("client", 3, SOON).unwrap();
    for client in &clients {
        wait_for("each client's node knows all three", SOON, || Ok((lab.resolve(client, "tasks.web")?.len() == 3).then_some(()))).unwrap();
    }
    // Each request asks for the name anew.
    let ask = ["/probe", "watch", "http://web:8080/", "--interval-ms", "5", "--timeout-ms", "2000"];
    let watching: Vec<_> = clients.iter().map(|client| lab.background(client, &ask).unwrap()).collect();
    for generation in 2..=4 {
        lab.deploy(&server(manifest, generation)).unwrap();
    }
    let after = lab.wait_running("web", 3, SOON).unwrap();
    assert!(after.iter().all(|task| before.iter().all(|old| old.id != task.id)), "all were replaced");
    for watched in watching {
        let watched: Watched = watched.finish().unwrap();
        assert_eq!(watched.failures, 0, "{watched:?}");
        assert!(watched.requests > 200, "{watched:?}");
    }
    turn.finish();
}
