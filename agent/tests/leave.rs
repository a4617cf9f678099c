//! The order in which tasks leave, as an agent's process keeps it. Needs root.

mod support;

use std::time::{Duration, Instant};

use rcluster_api::wire::v1::{NetView, Task, TaskState};
use support::agent::{Agent, is_alive, on_network, shell_task};
use support::manager::Manager;
use support::netd::FakeNetd;

const A: &str = "aaaaaaaaaaaaaaaa";

/// Ends at once on SIGTERM.
const OBEDIENT: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A task on a network, whose service gives other nodes so long.
fn leaving(leave_ms: u64) -> Task {
    Task { leave_ms, ..on_network(shell_task(A, OBEDIENT)) }
}

fn to_stop(mut task: Task) -> Task {
    task.desired_state = TaskState::Shutdown.into();
    task
}

/// The task runs; gives its process.
async fn run(manager: &Manager, task: Task) -> u32 {
    manager.assign(vec![task]);
    manager.reported(A, TaskState::Running).await.containers[0].pid
}

/// The agent says that the task will end, and some heartbeats pass.
async fn until_ending(manager: &Manager) {
    let ending = |status: &rcluster_api::wire::v1::TaskStatus| status.ending && status.state() == TaskState::Running;
    let beats = manager
        .until("it is told that it will end", |seen| seen.statuses.get(A).filter(|status| ending(status)).map(|_| seen.heartbeats))
        .await;
    manager.until("it goes on", |seen| (seen.heartbeats > beats + 10).then_some(())).await;
}

#[tokio::test]
async fn a_task_is_stopped_when_nobody_sends_to_it_any_more_and_not_before() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    let pid = run(&manager, leaving(600_000)).await;
    manager.assign(vec![to_stop(leaving(600_000))]);
    until_ending(&manager).await;
    assert!(is_alive(pid));
    assert_eq!(netd.asked(), "attach, leave");

    agent.kill();
    agent.spawn();
    let beats = manager.seen.borrow().heartbeats;
    manager.until("the agent is back", |seen| (seen.registrations.len() == 2 && seen.heartbeats > beats + 10).then_some(())).await;
    assert!(is_alive(pid), "an agent that was started anew waits on");
    let begun = Instant::now();
    manager.release(A);
    manager.reported(A, TaskState::Shutdown).await;
    assert!(begun.elapsed() >= Duration::from_millis(200), "what was begun before is still served: {:?}", begun.elapsed());
    assert!(!is_alive(pid));
    assert_eq!(netd.asked(), "attach, leave, detach after 1000 ms");
}

#[tokio::test]
async fn a_task_that_nobody_releases_waits_as_long_as_its_service_says() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let _netd = FakeNetd::listen(agent.run());
    let pid = run(&manager, leaving(1500)).await;
    let begun = Instant::now();
    manager.assign(vec![to_stop(leaving(1500))]);
    manager.reported(A, TaskState::Shutdown).await;
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn without_a_time_to_leave_a_task_is_withdrawn_and_stopped() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let netd = FakeNetd::listen(agent.run());
    run(&manager, leaving(0)).await;
    manager.assign(vec![to_stop(leaving(0))]);
    manager.reported(A, TaskState::Shutdown).await;
    assert_eq!(netd.asked(), "attach, leave, detach after 1000 ms");
}

#[tokio::test]
async fn a_container_that_ends_meanwhile_ends_the_wait() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let _netd = FakeNetd::listen(agent.run());
    let pid = run(&manager, leaving(600_000)).await;
    manager.assign(vec![to_stop(leaving(600_000))]);
    until_ending(&manager).await;
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("kill");
    manager.reported(A, TaskState::Shutdown).await;
}

#[tokio::test]
async fn the_manager_hears_of_each_view_that_netd_holds_also_of_one_it_held_before() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let _netd = FakeNetd::listen(agent.run());
    manager.until("a session", |seen| (seen.heartbeats > 0).then_some(())).await;
    let times = |seen: &support::manager::Seen, mark| seen.applied.iter().filter(|applied| **applied == mark).count();
    let view = |revision| NetView { term: 1, revision, ..NetView::default() };
    manager.view(view(5));
    manager.until("the view is in force", |seen| (times(seen, (1, 5)) == 1).then_some(())).await;
    manager.view(view(6));
    manager.until("the next is in force", |seen| (times(seen, (1, 6)) == 1).then_some(())).await;
    manager.view(view(6));
    manager.until("it is told again", |seen| (times(seen, (1, 6)) == 2).then_some(())).await;
}
