//! How a lab comes and goes, also when the tools that made it do not end as they should.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_api::object::NodeState;
use rcluster_tests::lab::{Lab, bin_dir, wait_for};
use rcluster_tests::leftovers::Inventory;
use serde_json::Value;

use crate::{TURN, Turn, web};

const SOON: Duration = Duration::from_secs(60);

fn nothing_left(name: &str) {
    wait_for("nothing is left behind", SOON, || Inventory::check_nothing_of(name).map(Some)).unwrap();
}

#[test]
fn a_frozen_host_is_down_and_goes_on_where_it_was() {
    let turn = Turn::new("pause", 1, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 2)).unwrap();
    let before = lab.wait_running("web", 2, SOON).unwrap();
    lab.host("pause", &["n1"]).unwrap();
    let is = |state: NodeState| move |lab: &Lab| Ok(lab.nodes()?.into_iter().find(|node| node.name == "n1" && node.status == state));
    wait_for("n1 is down", SOON, || is(NodeState::Down)(lab)).unwrap();
    lab.wait_running("web", 2, SOON).unwrap();
    lab.host("resume", &["n1"]).unwrap();
    wait_for("n1 is ready", SOON, || is(NodeState::Ready)(lab)).unwrap();
    let after = lab.wait_running("web", 2, SOON).unwrap();
    let kept = before.iter().filter(|task| after.iter().any(|other| other.id == task.id)).count();
    assert_eq!(kept, 1, "the task on n2 was not touched, the one on n1 was replaced");
    lab.host("pause", &["n1"]).unwrap();
    turn.finish();
}

#[test]
fn two_hosts_that_are_cut_off_from_each_other_still_reach_the_rest() {
    let turn = Turn::new("pair", 1, 2);
    let lab = turn.lab();
    lab.deploy(&crate::everywhere("lab", "web")).unwrap();
    let tasks = lab.wait_running("web", 2, SOON).unwrap();
    let url = format!("http://{}:8080/", tasks[1].networks[0].ip);
    let ask = |timeout: &str| lab.exec(&tasks[0], &["/probe", "get", &url, "--count", "1", "--timeout-ms", timeout]);
    wait_for("they reach each other", SOON, || ask("3000").map(Some)).unwrap();
    lab.host("cut", &["n1", "n2"]).unwrap();
    ask("1000").unwrap_err();
    let are_ready = || Ok(lab.nodes()?.iter().all(|node| node.status == NodeState::Ready).then_some(()));
    wait_for("both reach the manager", SOON, are_ready).unwrap();
    lab.host("heal", &[]).unwrap();
    wait_for("they reach each other again", SOON, || ask("1000").map(Some)).unwrap();
    turn.finish();
}

#[test]
fn a_lab_goes_with_the_process_that_it_is_tied_to() {
    let _turn = TURN.lock();
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = owner.id().to_string();
    let up = Command::new(bin_dir().unwrap().join("rclusterctl"))
        .args(["lab", "up", "--lab", "t-owner", "--managers", "1", "--agents", "1", "--owner-pid", &pid])
        .env("RCLUSTER_CONFIG", "/run/rcluster/labs/t-owner/context.yaml")
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(up.success());
    owner.kill().unwrap();
    owner.wait().unwrap();
    nothing_left("t-owner");
}

#[test]
fn an_interrupted_lab_up_leaves_nothing() {
    let _turn = TURN.lock();
    for after_ms in [10, 100, 300] {
        let mut up = Command::new(bin_dir().unwrap().join("rclusterctl"))
            .args(["lab", "up", "--lab", "t-interrupt", "--managers", "3", "--agents", "3"])
            .env("RCLUSTER_CONFIG", "/run/rcluster/labs/t-interrupt/context.yaml")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment of the interruption is what this test varies; nothing is waited for.
        std::thread::sleep(Duration::from_millis(after_ms));
        kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), Signal::SIGKILL).unwrap();
        up.wait().unwrap();
        wait_for("every process has gone", SOON, || Ok(Inventory::processes_of("t-interrupt")?.is_empty().then_some(()))).unwrap();
        Command::new(bin_dir().unwrap().join("rclusterctl"))
            .args(["lab", "down", "--lab", "t-interrupt"])
            .env("RCLUSTER_CONFIG", "/run/rcluster/labs/t-interrupt/context.yaml")
            .stderr(Stdio::null())
            .status()
            .unwrap();
        nothing_left("t-interrupt");
    }
}

#[test]
fn a_lab_whose_supervisor_was_killed_is_gone_and_down_removes_the_rest() {
    let _turn = TURN.lock();
    let lab = Lab::up("t-orphan", 1, 1).unwrap();
    lab.deploy(&web("lab", "web", 1)).unwrap();
    let status: Value = lab.json(&["lab", "status", "--lab", "t-orphan"]).unwrap();
    let supervisor = i32::try_from(status["supervisor_pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    let refused = wait_for("the lab is gone", SOON, || Ok(lab.ctl(&["ps"]).err())).unwrap().to_string();
    assert!(refused.contains("lab t-orphan has no supervisor"), "{refused}");
    lab.down().unwrap();
    nothing_left("t-orphan");
}
