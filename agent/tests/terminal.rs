//! Containers with terminals, under our own runtime and another. Needs root.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rcluster_agent::exec::monitor::{self, Screen, Seen};
use rcluster_api::wire::v1::{Task, TaskState};
use support::agent::{Agent, eventually, shell_task};
use support::manager::Manager;

const A: &str = "aaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbb";

fn with_terminal(id: &str, runtime: &str) -> Task {
    let mut task = shell_task(id, "echo at $TERM; while read line; do echo got $line; done");
    let template = task.template.as_mut().expect("it has one");
    template.stop_grace_ms = 200;
    template.runtime = runtime.to_owned();
    template.containers[0].tty = true;
    task
}

/// Looks until `wanted` is there.
async fn sees(screen: &Screen, wanted: &str) {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match tokio::time::timeout(Duration::from_secs(20), screen.next()).await {
            Ok(Ok(Seen::Output(bytes))) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

#[tokio::test]
async fn a_container_has_its_terminal_whatever_its_runtime_and_keeps_it_when_the_agent_dies() {
    let runc = ["/usr/bin/runc", "/usr/sbin/runc"].into_iter().find(|path| Path::new(path).exists()).expect("apt-get install runc");
    let manager = Manager::leader().await;
    let mut agent = Agent::start_with(&[manager.address], &["--add-runtime", &format!("runc={runc}")]);
    manager.assign(vec![with_terminal(A, ""), with_terminal(B, "runc")]);
    for task in [A, B] {
        manager.reported(task, TaskState::Running).await;
        let log = agent.state().join("logs").join(task).join("web.log");
        let kept = || fs::read_to_string(&log).is_ok_and(|log| log.contains(r#""s":"stdout","l":"at xterm"}"#));
        eventually("the log", || kept().then_some(())).await;
    }
    agent.kill();
    for task in [A, B] {
        let socket = agent.run().join("tasks").join(task).join("c-web/tty.sock");
        let (screen, master) = monitor::terminal(&socket, Duration::from_secs(20)).await.expect("a terminal");
        File::from(master).write_all(b"word\n").expect("write");
        sees(&screen, "got word\r\n").await;
    }
    agent.spawn();
    manager.assign(Vec::new());
    for task in [A, B] {
        eventually("nothing is left", || agent.leftovers(task).is_empty().then_some(())).await;
    }
}
