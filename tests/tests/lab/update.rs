//! Replacing tasks under load.

use std::time::{Duration, Instant};

use rcluster_api::rest::TaskJson;
use rcluster_tests::lab::{Lab, Streamed, Watched, wait_for};

use crate::{Turn, balanced, number, web};

const SOON: Duration = Duration::from_secs(60);

/// How long one update follows the other, where RCLUSTER_UPDATE_SECONDS does not say; five minutes are `rcluster-bench net`'s.
const UPDATE_SECONDS: u64 = 30;

/// All clients together, at least.
const REQUESTS_PER_SECOND: u64 = 100;

/// The network, a service's name and how many replicas: a manifest.
pub type Manifest = fn(&str, &str, usize) -> String;

/// The server, which ends at once on SIGTERM, sent to only while it serves; its tasks are replaced when `generation` changes.
pub fn server(manifest: Manifest, generation: u32) -> String {
    let check = "{http: {port: 8080, path: /health}, interval: 200ms}";
    let container = format!("    - healthcheck: {check}\n      env: {{GENERATION: \"{generation}\"}}\n      image:");
    manifest("lab", "web", 3).replace("    - image:", &container)
}

/// As many as that, whatever is asked for.
const FOUR: Manifest = |network, service, _| balanced(network, service, 4);

/// A manifest without its network.
fn service(manifest: &str) -> &str {
    manifest.split_once("---\n").expect("a network and a service").1
}

/// Once these run, and none of those before.
fn replaced(lab: &Lab, before: &[TaskJson]) -> Vec<TaskJson> {
    wait_for("all are replaced", SOON, || {
        let running = lab.running("web")?;
        let is_new = |task: &TaskJson| before.iter().all(|old| old.id != task.id);
        Ok((running.len() == before.len() && running.iter().all(is_new)).then_some(running))
    })
    .unwrap()
}

fn know_all(lab: &Lab, clients: &[TaskJson], replicas: usize) {
    for client in clients {
        wait_for("each client's node knows all of them", SOON, || Ok((lab.resolve(client, "tasks.web")?.len() == replicas).then_some(())))
            .unwrap();
    }
}

#[test]
fn rolling_update_of_three_replicas_fails_no_request() {
    let turn = Turn::new("update", 1, 3);
    let lab = turn.lab();
    lab.deploy(&format!("{}---\n{}", server(web, 1), service(&web("lab", "client", 3)))).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    let clients = lab.wait_running("client", 3, SOON).unwrap();
    know_all(lab, &clients, 3);
    // Each request asks for the name anew.
    let ask = ["/probe", "watch", "http://web:8080/", "--interval-ms", "5", "--timeout-ms", "2000"];
    let watching: Vec<_> = clients.iter().map(|client| lab.background(client, &ask).unwrap()).collect();
    for generation in 2..=4 {
        lab.deploy(&server(web, generation)).unwrap();
    }
    replaced(lab, &before);
    for watched in watching {
        let watched: Watched = watched.finish().unwrap();
        assert_eq!(watched.failures, 0, "{watched:?}");
        assert!(watched.requests > 200, "{watched:?}");
    }
    turn.finish();
}

#[test]
fn rolling_updates_behind_one_address_fail_no_request_and_break_no_stream_beside() {
    let turn = Turn::new("viproll", 1, 3);
    let lab = turn.lab();
    let (steady, client) = (balanced("lab", "steady", 1), web("lab", "client", 3));
    lab.deploy(&format!("{}---\n{}---\n{}", server(FOUR, 1), service(&steady), service(&client))).unwrap();
    let mut now = lab.wait_running("web", 4, SOON).unwrap();
    let clients = lab.wait_running("client", 3, SOON).unwrap();
    know_all(lab, &clients, 4);
    // No connection is used twice.
    let ask = ["/probe", "watch", "http://web:8080/", "--interval-ms", "5", "--timeout-ms", "2000"];
    let watching: Vec<_> = clients.iter().map(|client| lab.background(client, &ask).unwrap()).collect();
    let stream = lab.background(&clients[0], &["/probe", "stream", "steady:8080", "--interval-ms", "10"]).unwrap();
    let (begun, load) = (Instant::now(), Duration::from_secs(number("RCLUSTER_UPDATE_SECONDS").unwrap_or(UPDATE_SECONDS)));
    let mut generation = 1;
    while begun.elapsed() < load || generation < 3 {
        generation += 1;
        lab.deploy(&server(FOUR, generation)).unwrap();
        now = replaced(lab, &now);
    }
    let seconds = begun.elapsed().as_secs();
    let streamed: Streamed = stream.finish().unwrap();
    assert!(!streamed.broken && streamed.echoed > 10, "{streamed:?} in {seconds} s");
    let watched: Vec<Watched> = watching.into_iter().map(|watched| watched.finish().unwrap()).collect();
    assert!(watched.iter().all(|watched| watched.failures == 0), "{watched:?} in {generation} generations and {seconds} s");
    let requests: u64 = watched.iter().map(|watched| watched.requests).sum();
    assert!(requests > REQUESTS_PER_SECOND * seconds, "{watched:?} in {seconds} s");
    turn.finish();
}
