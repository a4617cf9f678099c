//! What is left of a cluster when all its managers are lost, and a backup is there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcluster_api::object::NodeState;
use rcluster_tests::lab::{Lab, wait_for};

use crate::{Turn, web};

const SOON: Duration = Duration::from_secs(60);

fn state_dir(lab: &Lab, host: &str) -> PathBuf {
    Path::new("/var/lib/rcluster/labs").join(lab.name()).join(host).join("manager")
}

/// Whether a process of a lab's host is there.
fn runs(lab: &Lab, host: &str, pid: u32) -> bool {
    lab.host("exec", &[host, "--", "/bin/sh", "-c", &format!("test -d /proc/{pid}")]).is_ok()
}

#[test]
fn all_managers_are_lost_and_a_backup_brings_the_cluster_back_around_its_running_containers() {
    let turn = Turn::new("disaster", 3, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 4)).unwrap();
    lab.wait_running("web", 4, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    let file = Path::new("/run/rcluster/labs").join(lab.name()).join("backup");
    let file = file.to_str().unwrap();
    let written = lab.ctl(&["cluster", "backup", file]).unwrap();
    assert!(written.contains("made by manager") && written.contains("4 tasks, 2 nodes"), "{written}");
    assert_eq!(lab.ctl(&["cluster", "backup", "--verify", file]).unwrap(), written);
    // What the backup does not know is lost.
    lab.deploy(&web("late", "late", 1)).unwrap();
    let late = lab.wait_running("late", 1, SOON).unwrap().remove(0);
    let pid = late.containers[0].pid.unwrap();
    assert!(runs(lab, &late.node, pid));
    // One agent is away, longer than a leader waits for nodes otherwise.
    let away = if late.node == "n1" { "n2" } else { "n1" };
    lab.host("kill", &[&format!("{away}/agent")]).unwrap();
    lab.host("kill", &["m1", "m2", "m3"]).unwrap();
    for host in ["m1", "m2", "m3"] {
        std::fs::remove_dir_all(state_dir(lab, host)).unwrap();
    }
    // On another host than the one that the cluster began on, under another name.
    let dir = state_dir(lab, "m2");
    let addr = "10.90.0.12:7443";
    let restore = ["cluster", "restore", "--from", file, "--name", "m2b", "--state-dir", dir.to_str().unwrap(), "--advertise", addr];
    let said = lab.ctl(&restore).unwrap();
    assert!(said.contains("Nothing was changed") && !dir.exists(), "{said}");
    lab.ctl(&[restore.as_slice(), &["--yes"]].concat()).unwrap();
    lab.host("start", &["m2"]).unwrap();
    lab.wait_leader("", SOON).unwrap();
    let leads_since = Instant::now();
    wait_for("what the backup does not know has ended", SOON, || Ok((!runs(lab, &late.node, pid)).then_some(()))).unwrap();
    // It takes part in the same decisions: its container would be replaced by now.
    let patience = Duration::from_secs(12);
    wait_for("a leader would have judged", SOON, || Ok((leads_since.elapsed() > patience).then_some(()))).unwrap();
    assert_eq!(lab.fingerprint("web").unwrap(), before);
    lab.host("start", &[&format!("{away}/agent")]).unwrap();
    wait_for("the node is heard", SOON, || lab.ctl(&["exec", &of(lab, away), "/probe", "resolve", "web", "--count", "1"]).map(Some))
        .unwrap();
    assert_eq!(lab.fingerprint("web").unwrap(), before, "no container was started again");
    wait_for("all nodes are ready", SOON, || Ok(lab.nodes()?.iter().all(|node| node.status == NodeState::Ready).then_some(()))).unwrap();
    assert!(!lab.ctl(&["events"]).unwrap().contains("Down"), "{}", lab.ctl(&["events"]).unwrap());
    // The cluster does what it did before, and managers join with the token of before.
    lab.ctl(&["scale", "web=5"]).unwrap();
    lab.wait_running("web", 5, SOON).unwrap();
    assert_eq!(lab.running("late").unwrap().len(), 0);
    lab.host("start", &["m3"]).unwrap();
    wait_for("m3 votes", SOON, || Ok(lab.cluster()?.managers.iter().any(|m| m.name == "m3" && m.voter).then_some(()))).unwrap();
    turn.finish();
}

/// The name of a task on a node.
fn of(lab: &Lab, node: &str) -> String {
    let running = lab.running("web").unwrap();
    running.iter().find(|task| task.node == node).expect("the tasks are spread").name.clone()
}
