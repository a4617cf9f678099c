//! What the death of leaders does to what runs: a lab with containers on three hosts, whose leaders lose power one after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use rcluster_api::rest::EventJson;
use serde_json::Value;

use crate::lab::{Lab, wait_for};
use crate::progress;

const HOSTS: usize = 3;
const REPLICAS: usize = 30;
const SERVICE: &str = r#"
kind: Service
name: web
spec:
  replicas: 30
  containers:
  - image: rcluster/probe:demo
    args: [serve, --port, "8080"]
"#;
/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(60);
/// A new leader gives nodes 10 s to find it before it judges those that have not, and events take a moment.
const JUDGED: Duration = Duration::from_secs(12);

/// Kills so many leaders and prints what became of containers and nodes.
pub fn run(kills: usize) -> Result<()> {
    let lab = Lab::up(&format!("leaders-{}", std::process::id()), 3, HOSTS)?;
    lab.deploy(SERVICE)?;
    lab.wait_running("web", REPLICAS, DEADLINE)?;
    let before = lab.fingerprint("web")?;
    let mut judged = BTreeSet::new();
    for round in 0..kills {
        let leader = lab.cluster()?.leader;
        lab.host("kill", &[&leader])?;
        let next = lab.wait_leader(&leader, DEADLINE)?;
        lab.host("start", &[&leader])?;
        wait_for("all managers are reachable", DEADLINE, || {
            Ok(lab.cluster()?.managers.iter().all(|manager| manager.reachable && manager.voter).then_some(()))
        })?;
        // A leader that lost power before would have judged nobody: each has heard everyone, or has judged who was not heard.
        wait_for("all nodes have found the leader", DEADLINE, || Ok(are_heard(&lab)?.then_some(())))?;
        // Each time: only the latest events are kept.
        judged.extend(not_ready(&lab)?);
        progress(&format!("kill {} of {kills}: {leader}, then {next} led; {} nodes judged", round + 1, judged.len()));
    }
    std::thread::sleep(JUDGED);
    judged.extend(not_ready(&lab)?);
    let after = lab.fingerprint("web")?;
    print(&[
        ("leaders that lost power", kills, ""),
        ("containers", before.len(), ""),
        ("containers that were restarted or replaced", before.difference(&after).count(), "0"),
        ("times that a healthy node was judged suspect or down", judged.len(), "0"),
    ]);
    lab.down()
}

/// Whether the leader can ask all nodes something: each says what images it has.
fn are_heard(lab: &Lab) -> Result<bool> {
    let images: Vec<Value> = lab.json(&["image", "ls"])?;
    Ok(images.iter().any(|image| image["nodes"].as_array().is_some_and(|nodes| nodes.len() == HOSTS)))
}

/// Events that tell of a node that it is not ready.
fn not_ready(lab: &Lab) -> Result<impl Iterator<Item = String>> {
    let events: Vec<EventJson> = lab.json(&["events"])?;
    let judged = |event: &EventJson| event.kind == "node" && matches!(event.reason.as_str(), "Suspect" | "Down");
    Ok(events.into_iter().filter(judged).map(|event| event.id))
}

#[allow(clippy::print_stdout, reason = "the table is the product")]
fn print(rows: &[(&str, usize, &str)]) {
    println!("| three managers, three hosts with containers | | goal |\n|---|---|---|");
    for (name, count, goal) in rows {
        println!("| {name} | {count} | {goal} |");
    }
}
