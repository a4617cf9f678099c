//! What nodes hold is what the managers want of them, also after much has changed, and what is broken is told.

use std::time::Duration;

use rcluster_tests::lab::wait_for;
use serde::Deserialize;

use crate::{Turn, balanced, web};

const SOON: Duration = Duration::from_secs(60);

/// As `audit -o json` prints it.
#[derive(Debug, Deserialize)]
struct Audited {
    nodes: Vec<Node>,
    differences: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Node {
    node: String,
}

#[test]
fn an_audit_finds_nothing_after_churn_and_what_is_broken_afterwards() {
    let turn = Turn::new("audit", 1, 3);
    let lab = turn.lab();
    lab.deploy(&format!("{}---\n{}", balanced("front", "web", 3), web("back", "db", 2))).unwrap();
    for (web, db) in [(6, 1), (1, 4), (5, 2), (2, 5), (6, 1)] {
        lab.ctl(&["scale", &format!("web={web}"), &format!("db={db}"), "--detach"]).unwrap();
        lab.host("kill", &["n3"]).unwrap();
        lab.host("start", &["n3"]).unwrap();
    }
    lab.ctl(&["scale", "web=4", "db=3"]).unwrap();
    let tasks = lab.wait_running("web", 4, SOON).unwrap();
    lab.wait_running("db", 3, SOON).unwrap();
    wait_for("all nodes are ready", SOON, || {
        let nodes = lab.nodes()?;
        Ok(nodes.iter().all(|node| node.status.as_str() == "ready").then_some(()))
    })
    .unwrap();
    // What goes on still, such as pods that linger, is over within the audit's patience.
    let clean: Audited = lab.json(&["audit"]).unwrap();
    assert_eq!(clean.nodes.iter().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    assert_eq!(clean.differences, Vec::<serde_json::Value>::new());

    let trace = lab.ctl(&["trace", &tasks[0].name, "web:8080"]).unwrap();
    assert!(trace.contains("the address of service web") && trace.contains("delivered to task web."), "{trace}");
    let over_udp = lab.ctl(&["trace", &tasks[0].name, "web:8080/udp"]).unwrap();
    assert!(over_udp.contains("the address of service web") && over_udp.contains("delivered to task web."), "{over_udp}");

    // In a pod, where its netd hears of nothing: what it hears of it mends before the audit is sure.
    let pod = &tasks[0];
    let pin = format!("--net=/run/rcluster/labs/{}/hosts/{}/run/netns/{}", lab.name(), pod.node, pod.id);
    wait_for("the audit tells what was broken", SOON, || {
        // The regular check may just have mended it.
        lab.host("exec", &[&pod.node, "--", "nsenter", &pin, "ip", "link", "set", "eth0", "mtu", "1300"])?;
        let output = lab.command(&["audit"]).output()?;
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = said.lines().collect();
        let broken = format!("{}: pod {}/eth0 is ", pod.node, pod.id);
        assert!(lines.iter().all(|line| line.starts_with(&broken)), "{said}{told}");
        assert_eq!(output.status.code(), Some(i32::from(!lines.is_empty())), "{said}{told}");
        Ok((!lines.is_empty()).then_some(()))
    })
    .unwrap();
    turn.finish();
}
