//! Checks of health through the containers' monitors, with the real runtime. Needs root.

mod support;

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use rcluster_api::wire::v1::{Health, HealthCheck, RelayProblem, Task, TaskState, TaskStatus, relay_output};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process};
use support::agent::{Agent, eventually, is_alive, shell_task};
use support::manager::Manager;
use tokio::process::Command;
use tokio::task::spawn_blocking;

const A: &str = "aaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccc";

const OBEDIENT: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

fn checked(id: &str, check: &[&str], timeout_ms: u64) -> Task {
    let mut task = shell_task(id, OBEDIENT);
    let template = task.template.as_mut().expect("it has one");
    template.stop_grace_ms = 200;
    template.containers[0].healthcheck = Some(HealthCheck {
        command: check.iter().map(|&arg| arg.to_owned()).collect(),
        interval_ms: 100,
        timeout_ms,
        retries: 3,
        ..HealthCheck::default()
    });
    task
}

fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn command_line(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// The process of a check that sleeps for so long, which no other test uses.
fn sleeper(seconds: &str) -> Option<u32> {
    let pids = fs::read_dir("/proc").expect("list").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_alive(*pid)).find(|pid| command_line(*pid).trim_end().ends_with(&format!("sleep {seconds}")))
}

async fn running(manager: &Manager, task: &str) -> TaskStatus {
    manager.reported(task, TaskState::Running).await
}

async fn healthy(manager: &Manager, task: &str) {
    let is_healthy = |status: &TaskStatus| status.containers.first().is_some_and(|container| container.health() == Health::Healthy);
    manager.until("it is healthy", |seen| seen.statuses.get(task).filter(|status| is_healthy(status)).map(drop)).await;
}

#[tokio::test]
async fn a_check_is_the_monitors_and_ends_with_the_agent_that_wanted_it() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    manager.assign(vec![checked(A, &["sleep", "71.5"], 60_000)]);
    let container = running(&manager, A).await.containers[0].pid;
    let check = eventually("a check", || sleeper("71.5")).await;
    let servant = parent(check).expect("it has one");
    assert!(command_line(servant).contains(" monitor "), "a command line was started: {}", command_line(servant));
    assert_eq!(parent(servant), parent(container), "it is not a child of the container's monitor");
    agent.kill();
    eventually("the check ends with its agent", || (!is_alive(check)).then_some(())).await;
    assert!(is_alive(container));
    agent.spawn();
    let next = eventually("a check of the next agent", || sleeper("71.5")).await;
    assert!(command_line(parent(next).expect("it has one")).contains(" monitor "));
    assert_eq!(running(&manager, A).await.containers[0].pid, container);
    manager.assign(Vec::new());
    eventually("nothing is left", || agent.leftovers(A).is_empty().then_some(())).await;
    assert!(!is_alive(next) && sleeper("71.5").is_none());
}

/// Whether a check has found it unhealthy: it fails for that soon after, and may be seen only then.
fn is_sick(status: &TaskStatus) -> bool {
    let unhealthy = status.containers.first().is_some_and(|container| container.health() == Health::Unhealthy);
    unhealthy || status.message.contains("is unhealthy")
}

#[tokio::test]
async fn a_check_that_takes_too_long_is_killed() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    manager.assign(vec![checked(A, &["sleep", "72.5"], 3000)]);
    let check = eventually("a check", || sleeper("72.5")).await;
    assert!(command_line(parent(check).expect("it has one")).contains(" monitor "));
    eventually("its end", || (!is_alive(check)).then_some(())).await;
    let sick = manager.until("it is unhealthy", |seen| seen.statuses.get(A).filter(|status| is_sick(status)).cloned()).await;
    assert!(format!("{sick:?}").contains("the check did not end within 3s"), "{sick:?}");
    manager.assign(Vec::new());
    eventually("nothing is left", || agent.leftovers(A).is_empty().then_some(())).await;
    assert_eq!(sleeper("72.5"), None);
}

#[tokio::test]
async fn what_a_check_says_and_how_it_ends_is_told() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    manager.assign(vec![checked(A, &["sh", "-c", "echo low on luck >&2; exit 3"], 5000), checked(B, &["sh", "-c", "exit 3"], 5000)]);
    for (task, why) in [(A, "low on luck"), (B, "exit status: 3")] {
        let sick = manager.until("it is unhealthy", |seen| seen.statuses.get(task).filter(|status| is_sick(status)).cloned()).await;
        assert!(format!("{sick:?}").contains(why), "{sick:?}");
    }
    assert!(!agent.log().contains("executes no check"));
}

/// A task that has no checks, with its container's process and a socket that takes the place of its monitor's.
async fn with_fake_monitor(manager: &Manager, agent: &Agent) -> (u32, OwnedFd) {
    manager.assign(vec![shell_task(C, OBEDIENT)]);
    let container = running(manager, C).await.containers[0].pid;
    let path = agent.run().join("tasks").join(C).join("c-web/monitor.sock");
    fs::remove_file(&path).expect("it has one");
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("short")).expect("bind");
    rustix::net::listen(&socket, 4).expect("listen");
    (container, socket)
}

/// The next client, and that it asked something.
async fn asked(socket: &OwnedFd) -> OwnedFd {
    let socket = socket.try_clone().expect("a copy");
    let asked = spawn_blocking(move || {
        // Not for the processes that tests start: one would hold it open.
        let client = rustix::net::accept_with(&socket, SocketFlags::CLOEXEC).expect("accept");
        assert!(rustix::net::recv(&client, &mut [0; 4096][..], RecvFlags::empty()).expect("a request").1 > 12);
        client
    });
    asked.await.expect("a client")
}

fn problem(said: &relay_output::Kind) -> Option<RelayProblem> {
    match said {
        relay_output::Kind::Problem(problem) => Some(problem.clone()),
        _ => None,
    }
}

fn say(client: &OwnedFd, message: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(client, message, SendFlags::NOSIGNAL)
}

const TAKEN: &[u8] = b"\x01\x0b\0\0\0\0\0\0\0\0\0\0";
const STARTED: &[u8] = b"\x01\x02\0\0\0\0\0\0\0\0\0\0";
const APPEND: [&str; 3] = ["/bin/sh", "-c", "echo ran >> /ran"];

#[tokio::test]
async fn a_users_command_that_a_monitor_has_taken_is_not_run_a_second_time() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let (container, socket) = with_fake_monitor(&manager, &agent).await;
    manager.exec(C, &APPEND);
    let client = asked(&socket).await;
    say(&client, TAKEN).expect("it waits");
    drop(client);
    let problem = manager.until("what became of it", |seen| seen.relayed.iter().find_map(problem)).await;
    assert!(problem.message.contains("it is not known whether the monitor at"), "{problem:?}");
    assert!(problem.message.ends_with("has begun the command: it has taken it, and then: the monitor hung up"), "{problem:?}");
    assert_eq!((problem.code.as_str(), problem.hint.contains("look what it has done")), ("conflict", true), "{problem:?}");
    assert!(!fs::exists(format!("/proc/{container}/root/ran")).expect("look"), "it was run in another way");
}

#[tokio::test]
async fn a_users_command_whose_end_nobody_tells_has_no_exit_code() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let (_, socket) = with_fake_monitor(&manager, &agent).await;
    manager.exec(C, &APPEND);
    let client = asked(&socket).await;
    say(&client, TAKEN).expect("it waits");
    let mut command = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("a process");
    let pid = Pid::from_raw(command.id().expect("it runs").cast_signed()).expect("a pid");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [pidfd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    rustix::net::sendmsg(&client, &[IoSlice::new(STARTED)], &mut control, SendFlags::NOSIGNAL).expect("it waits");
    drop(client);
    let problem = manager.until("what became of it", |seen| seen.relayed.iter().find_map(problem)).await;
    assert!(problem.message.contains("ended is not known, and what is left of it is killed: the monitor hung up"), "{problem:?}");
    assert_eq!(problem.code, "conflict");
    assert_eq!(command.wait().await.expect("its end").signal(), Some(9));
    let exits = |seen: &relay_output::Kind| matches!(seen, relay_output::Kind::Exit(_));
    assert!(!manager.seen.borrow().relayed.iter().any(exits));
}

#[tokio::test]
async fn a_users_command_that_a_monitor_does_not_take_is_run_by_the_runtime_and_never_by_the_monitor() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let (container, socket) = with_fake_monitor(&manager, &agent).await;
    manager.exec(C, &APPEND);
    let client = asked(&socket).await;
    let exit = |kind: &relay_output::Kind| match kind {
        relay_output::Kind::Exit(exit) => Some(exit.code),
        _ => None,
    };
    assert_eq!(manager.until("its end", |seen| seen.relayed.iter().find_map(exit)).await, 0);
    assert_eq!(fs::read_to_string(format!("/proc/{container}/root/ran")).expect("it has run"), "ran\n");
    assert_eq!(say(&client, TAKEN), Err(Errno::PIPE), "it could still take it");
}

#[tokio::test]
async fn a_monitor_that_stands_still_is_told_of_and_holds_up_neither_others_nor_its_own_removal() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let tasks = [A, B].map(|id| checked(id, &["sh", "-c", "exit 0"], 5000));
    manager.assign(tasks.to_vec());
    let container = running(&manager, A).await.containers[0].pid;
    let monitor = parent(container).expect("it has one");
    let monitor_pid = Pid::from_raw(monitor.cast_signed()).expect("a pid");
    kill_process(monitor_pid, Signal::STOP).expect("stop the monitor");
    eventually("it is told", || agent.log().contains("its monitor executes no check").then_some(())).await;
    // By the command line.
    healthy(&manager, A).await;
    healthy(&manager, B).await;
    manager.assign(vec![tasks[0].clone()]);
    eventually("the other is gone", || agent.leftovers(B).is_empty().then_some(())).await;
    assert!(is_alive(container), "it stays as long as it is wanted");
    manager.assign(Vec::new());
    eventually("its container is gone", || agent.leftovers(A).is_empty().then_some(())).await;
    assert!(!is_alive(container) && !is_alive(monitor));
    eventually("its records are gone", || (!agent.run().join("tasks").join(A).exists()).then_some(())).await;
}
