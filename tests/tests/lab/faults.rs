//! What holds when hosts, daemons and wires fail.

use std::collections::BTreeSet;
use std::time::Duration;

use rcluster_api::object::NodeState;
use rcluster_api::task::TaskState;
use rcluster_tests::lab::{Lab, Streamed, wait_for};

use crate::{Turn, everywhere, web};

const SOON: Duration = Duration::from_secs(20);

fn wait_node(lab: &Lab, name: &str, state: NodeState) {
    wait_for(&format!("{name} is {}", state.as_str()), SOON, || {
        Ok(lab.nodes()?.into_iter().find(|node| node.name == name && node.status == state))
    })
    .unwrap();
}

#[test]
fn a_power_cut_moves_the_tasks_and_the_host_comes_back_clean() {
    let turn = Turn::new("power", 1, 3);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 3)).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    let dead = before[0].clone();
    lab.host("kill", &[&dead.node]).unwrap();
    let after = wait_for("three run elsewhere", SOON, || {
        let running = lab.running("web")?;
        Ok((running.len() == 3 && running.iter().all(|task| task.node != dead.node)).then_some(running))
    })
    .unwrap();
    let address = &dead.networks[0].ip;
    assert!(after.iter().all(|task| task.networks[0].ip != *address), "the lost task's address is not given away");
    wait_for("the dead address is out of DNS", SOON, || Ok((!lab.resolve(&after[0], "web")?.contains(address)).then_some(()))).unwrap();
    lab.host("start", &[&dead.node]).unwrap();
    wait_node(lab, &dead.node, NodeState::Ready);
    let ids: BTreeSet<&String> = after.iter().map(|task| &task.id).collect();
    let still = lab.wait_running("web", 3, SOON).unwrap();
    assert_eq!(still.iter().map(|task| &task.id).collect::<BTreeSet<_>>(), ids, "the host's return moves nothing");
    lab.ctl(&["scale", "web=6"]).unwrap();
    assert!(lab.wait_running("web", 6, SOON).unwrap().iter().any(|task| task.node == dead.node), "the host is used again");
    turn.finish();
}

#[test]
fn a_dead_leader_is_replaced_and_no_container_notices() {
    let turn = Turn::new("leader", 3, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 4)).unwrap();
    lab.wait_running("web", 4, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    for _ in 0..3 {
        let old = lab.cluster().unwrap().leader;
        lab.host("kill", &[&old]).unwrap();
        lab.wait_leader(&old, SOON).unwrap();
        wait_for("a write is accepted", SOON, || lab.ctl(&["node", "label", "n1", "a=b"]).map(Some)).unwrap();
        lab.host("start", &[&old]).unwrap();
        wait_for("the old leader is back", SOON, || Ok(lab.cluster()?.managers.iter().all(|m| m.reachable).then_some(()))).unwrap();
    }
    assert_eq!(lab.fingerprint("web").unwrap(), before);
    let down: Vec<String> = lab.ctl(&["events"]).unwrap().lines().filter(|line| line.contains("Down")).map(str::to_owned).collect();
    assert!(down.is_empty(), "healthy nodes were marked down: {down:?}");
    turn.finish();
}

#[test]
fn agent_and_netd_restart_under_an_open_stream() {
    let turn = Turn::new("restart", 1, 2);
    let lab = turn.lab();
    lab.deploy(&everywhere("lab", "web")).unwrap();
    let tasks = lab.wait_running("web", 2, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    let to = format!("{}:8080", tasks[1].networks[0].ip);
    let stream = lab.background(&tasks[0], &["/probe", "stream", &to, "--interval-ms", "10"]).unwrap();
    for task in &tasks {
        for daemon in ["netd", "agent"] {
            let process = format!("{}/{daemon}", task.node);
            lab.host("kill", &[&process]).unwrap();
            lab.host("start", &[&process]).unwrap();
            wait_for("names resolve again", SOON, || Ok(Some(lab.resolve(&tasks[0], "web")?).filter(|answer| answer.len() == 2))).unwrap();
        }
    }
    lab.deploy(&web("lab", "more", 2)).unwrap();
    lab.wait_running("more", 2, SOON).unwrap();
    let streamed: Streamed = stream.finish().unwrap();
    assert!(!streamed.broken && streamed.echoed > 10, "{streamed:?}");
    assert_eq!(lab.fingerprint("web").unwrap(), before);
    turn.finish();
}

#[test]
fn a_partitioned_agent_keeps_its_tasks_and_after_healing_exactly_n_run() {
    let turn = Turn::new("cut", 3, 3);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 3)).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    let cut_off = before[0].clone();
    lab.host("cut", &[&cut_off.node]).unwrap();
    wait_for("the cut-off task is replaced", SOON, || {
        let running = lab.running("web")?;
        Ok((running.len() == 3 && running.iter().all(|task| task.id != cut_off.id)).then_some(()))
    })
    .unwrap();
    let alive = lab.exec(&cut_off, &["/probe", "get", "http://127.0.0.1:8080/", "--count", "1"]).unwrap();
    assert!(alive.contains(&cut_off.name), "the cut-off container goes on: {alive}");
    lab.host("heal", &[]).unwrap();
    wait_node(lab, &cut_off.node, NodeState::Ready);
    wait_for("the stray has stopped", SOON, || {
        let stray = lab.all_tasks()?.into_iter().find(|task| task.id == cut_off.id);
        Ok(stray.is_none_or(|task| task.state == TaskState::Removed).then_some(()))
    })
    .unwrap();
    let running = lab.wait_running("web", 3, SOON).unwrap();
    let addresses: BTreeSet<&String> = running.iter().map(|task| &task.networks[0].ip).collect();
    assert_eq!(addresses.len(), 3, "no address is held twice");
    turn.finish();
}

#[test]
fn all_managers_restart_from_disk_with_nothing_lost() {
    let turn = Turn::new("disk", 3, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 4)).unwrap();
    lab.wait_running("web", 4, SOON).unwrap();
    let before = lab.fingerprint("web").unwrap();
    let service = lab.service("web").unwrap();
    let nodes: BTreeSet<String> = lab.nodes().unwrap().into_iter().map(|node| node.id).collect();
    lab.host("kill", &["m1", "m2", "m3"]).unwrap();
    lab.host("start", &["m1", "m2", "m3"]).unwrap();
    lab.wait_leader("", SOON).unwrap();
    wait_for("the nodes are back", SOON, || Ok(lab.nodes()?.iter().all(|node| node.status == NodeState::Ready).then_some(()))).unwrap();
    assert_eq!(lab.service("web").unwrap(), service);
    assert_eq!(lab.nodes().unwrap().into_iter().map(|node| node.id).collect::<BTreeSet<_>>(), nodes);
    assert_eq!(lab.fingerprint("web").unwrap(), before);
    lab.ctl(&["scale", "web=5"]).unwrap();
    lab.wait_running("web", 5, SOON).unwrap();
    turn.finish();
}
