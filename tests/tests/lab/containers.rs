//! What a service may ask for its containers.

use std::time::Duration;

use rcluster_api::health::Health;
use rcluster_tests::lab::wait_for;

use crate::{Turn, web};

const SOON: Duration = Duration::from_secs(20);

/// The manifest with a check of each container's health.
fn checked(manifest: &str, check: &str) -> String {
    manifest.replace("    - image:", &format!("    - healthcheck: {check}\n      image:"))
}

#[test]
fn only_what_is_healthy_is_named_and_what_stays_unhealthy_is_replaced() {
    let turn = Turn::new("health", 1, 2);
    let lab = turn.lab();
    lab.deploy(&checked(&web("lab", "web", 2), "{http: {port: 8080, path: /health}, interval: 200ms}")).unwrap();
    let healthy = lab.wait_running("web", 2, SOON).unwrap();
    assert!(healthy.iter().all(|task| task.health == Health::Healthy), "deploy waits for health: {healthy:?}");
    assert_eq!(lab.resolve(&healthy[0], "web").unwrap().len(), 2);

    // Nothing listens there, and it has an hour to begin.
    let slow = checked(&web("lab", "slow", 1), "{tcp: {port: 81}, start_period: 1h, start_interval: 100ms}");
    lab.ctl(&["deploy", "--detach", &lab.write(slow.split_once("---\n").unwrap().1).unwrap()]).unwrap();
    let slow = lab.wait_running("slow", 1, SOON).unwrap();
    wait_for("its health is known", SOON, || Ok((lab.running("slow")?[0].health == Health::Starting).then_some(()))).unwrap();
    let unknown = lab.exec(&healthy[0], &["/probe", "resolve", "slow", "--count", "1"]).unwrap_or_else(|error| error.to_string());
    assert!(unknown.contains("NODATA"), "the name is there and has no address: {unknown}");

    let sick = checked(&web("lab", "sick", 1), "{http: {port: 8080, path: /nowhere}, interval: 100ms, retries: 2}");
    let refused = lab.deploy(sick.split_once("---\n").unwrap().1).unwrap_err().to_string();
    assert!(refused.contains("container sick is unhealthy: GET /nowhere: 404"), "{refused}");
    assert_eq!(lab.running("slow").unwrap()[0].id, slow[0].id);
    turn.finish();
}

#[test]
fn what_a_node_does_not_grant_is_said_before_anything_runs() {
    let turn = Turn::new("policy", 1, 1);
    let lab = turn.lab();
    let manifest = web("lab", "web", 1).replace("    - image:", "    - mounts: [{type: bind, source: /srv, target: /t}]\n      image:");
    lab.ctl(&["deploy", "--detach", &lab.write(&manifest).unwrap()]).unwrap();
    let expected = "0/1 nodes fit web.1: 1 does not allow /srv to be mounted";
    wait_for("the reason", SOON, || Ok(lab.all_tasks()?.iter().any(|task| task.message == expected).then_some(()))).unwrap();
    turn.finish();
}
