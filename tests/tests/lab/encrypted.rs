//! Encrypted networks, on a kernel with WireGuard and on one without.

use std::time::Duration;

use rcluster_tests::lab::{root, wait_for};

use crate::Turn;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn an_encrypted_network_joins_its_tasks_or_says_why_no_node_can() {
    let turn = Turn::new("vault", 1, 2);
    let lab = turn.lab();
    let example = root().join("examples/encrypted.yaml").to_string_lossy().into_owned();
    let can = wait_for("its tasks run, or it is said why not", SOON, || match lab.ctl(&["deploy", "--timeout", "3s", &example]) {
        Ok(_) => Ok(Some(true)),
        Err(refused) => {
            let words = refused.to_string();
            let is_why = words.contains("0/2 nodes fit keeper.1: 2 cannot encrypt (") && words.contains("this kernel has no WireGuard");
            if is_why { Ok(Some(false)) } else { Err(refused) }
        }
    })
    .unwrap();
    if can {
        let tasks = lab.wait_running("keeper", 2, SOON).unwrap();
        for (from, to) in [(&tasks[0], &tasks[1]), (&tasks[1], &tasks[0])] {
            let url = format!("http://{}:8080/", to.networks[0].ip);
            let get = || lab.exec(from, &["/probe", "get", &url, "--count", "1"]).map(Some);
            let answer = wait_for("each reaches the other", SOON, get).unwrap();
            assert!(answer.contains(&to.name), "{} asked {}: {answer}", from.name, to.name);
        }
    }
    turn.finish();
}
