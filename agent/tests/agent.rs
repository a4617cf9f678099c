//! The agent's process against a manager's side of the session, with the real runtime. Needs root.

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcluster_agent::image::pull::Progress;
use rcluster_agent::image::take::LayerProgress;
use rcluster_api::wire::v1::{ContainerSpec, Logging, LogsCommand, Mount, MountKind, TaskState};
use serde_json::json;
use support::agent::{Agent, eventually, is_alive, memory_limit, on_network, shell, shell_task, task};
use support::image::{Entry, Layout, dir, file, layer, symlink};
use support::manager::Manager;
use support::registry::{Fake, How, Shelf, reply};

const A: &str = "aaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbb";

/// Ends at once on SIGTERM.
const OBEDIENT: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";

#[tokio::test]
async fn a_task_climbs_to_running_and_its_exit_code_is_reported() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    manager.assign(vec![shell_task(A, "exit 3")]);
    let status = manager.reported(A, TaskState::Failed).await;
    assert_eq!((status.state(), status.message.as_str()), (TaskState::Failed, "container web exited with code 3"));
    assert_eq!((status.containers[0].exited, status.containers[0].exit_code), (true, 3));
    let history = manager.seen.borrow().history.clone();
    assert!(history.is_sorted_by_key(|(_, state)| *state), "states rise: {history:?}");
}

#[tokio::test]
async fn a_task_that_ends_well_is_complete_and_one_that_is_killed_says_by_what() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    manager.assign(vec![shell_task(A, "exit 0"), shell_task(B, "kill -SEGV $$; sleep 60")]);
    assert_eq!(manager.reported(A, TaskState::Complete).await.state(), TaskState::Complete);
    let pid = manager.reported(B, TaskState::Running).await.containers[0].pid;
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    assert_eq!(manager.reported(B, TaskState::Failed).await.message, "container web was killed by SIGKILL");
}

#[tokio::test]
async fn running_out_of_memory_is_named() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    let mut hungry = shell_task(A, "x=$(cat /dev/zero | id); a=aaaaaaaaaaaaaaaa; while :; do a=$a$a; done");
    if let Some(template) = &mut hungry.template {
        template.containers[0].limits = memory_limit(16 << 20);
    }
    manager.assign(vec![hungry]);
    assert_eq!(manager.reported(A, TaskState::Failed).await.message, "container web ran out of memory (limit 16 MiB)");
}

#[tokio::test]
async fn what_a_container_wrote_can_be_read_and_followed() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    manager.assign(vec![shell_task(A, &format!("echo one; echo two >&2; {OBEDIENT}"))]);
    manager.reported(A, TaskState::Running).await;
    let lines = |request: &'static str| {
        move |seen: &support::manager::Seen| -> Vec<String> {
            let chunks = seen.chunks.iter().filter(|chunk| chunk.request_id == request);
            chunks.flat_map(|chunk| &chunk.entries).map(|entry| format!("{} {}", entry.stream, entry.text)).collect()
        }
    };
    let command =
        |request: &str, follow: bool, tail: u32| LogsCommand { request_id: request.into(), task_id: A.into(), follow, tail, since_ms: 0 };
    manager.logs(command("follow", true, 0));
    manager.until("three lines", |seen| (lines("follow")(seen).len() == 3).then_some(())).await;
    let mut all = lines("follow")(&manager.seen.borrow());
    all.sort();
    assert_eq!(all, ["stderr two", "stdout one", "stdout ready"]);
    manager.logs(command("tail", false, 1));
    manager.until("the end", |seen| seen.chunks.iter().any(|chunk| chunk.request_id == "tail" && chunk.end).then_some(())).await;
    assert_eq!(lines("tail")(&manager.seen.borrow()).len(), 1);

    // Kept when asked for, gone when not.
    manager.keep_logs(Vec::new(), vec![A.into()]);
    manager
        .until("the follower's end", |seen| seen.chunks.iter().any(|chunk| chunk.request_id == "follow" && chunk.end).then_some(()))
        .await;
    let logs = agent.state().join("logs").join(A);
    eventually("the record is forgotten", || (!agent.run().join("tasks").join(A).exists()).then_some(())).await;
    assert!(logs.exists());
    manager.keep_logs(Vec::new(), Vec::new());
    eventually("the logs are gone", || (!logs.exists()).then_some(())).await;
    manager.logs(command("late", false, 0));
    let problem = manager
        .until("an answer", |seen| seen.chunks.iter().find(|chunk| chunk.request_id == "late" && chunk.end).map(|c| c.problem.clone()));
    assert_eq!(problem.await, "node n1 has no logs of this task");
}

#[tokio::test]
async fn a_node_that_is_another_one_than_before_takes_what_its_new_managers_send() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    manager.assign_at(7, 700, vec![shell_task(A, OBEDIENT)]);
    let before = manager.reported(A, TaskState::Running).await;
    agent.kill();
    fs::remove_file(agent.state().join("node.json")).expect("it has one");
    // Of a cluster that has just been made.
    manager.assign_at(1, 2, vec![shell_task(B, OBEDIENT)]);
    agent.spawn();
    manager.reported(B, TaskState::Running).await;
    eventually("what it had for the others is gone", || (!is_alive(before.containers[0].pid)).then_some(())).await;
    let registrations = manager.seen.borrow().registrations.clone();
    assert_ne!(registrations[0].node_id, registrations.last().expect("one").node_id);
    manager.assign_at(1, 3, Vec::new());
    eventually("nothing is left", || agent.leftovers(B).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_killed_agent_that_is_started_again_adopts_the_same_processes() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    manager.assign(vec![shell_task(A, OBEDIENT), shell_task(B, "while [ ! -e /go ]; do sleep 0.05; done; exit 5")]);
    let before = manager.reported(A, TaskState::Running).await;
    let b = manager.reported(B, TaskState::Running).await;
    agent.kill();
    assert!(is_alive(before.containers[0].pid));
    fs::write(format!("/proc/{}/root/go", b.containers[0].pid), "").expect("write");
    eventually("b ends without an agent", || agent.run().join("tasks").join(B).join("c-web/exit.json").exists().then_some(())).await;
    agent.spawn();
    manager.until("the second registration", |seen| (seen.registrations.len() >= 2).then_some(())).await;
    let registrations = manager.seen.borrow().registrations.clone();
    assert_eq!(registrations[0].node_id, registrations[1].node_id);
    assert_eq!(registrations[0].incarnation, registrations[1].incarnation, "the host did not boot");
    assert_eq!(manager.reported(B, TaskState::Failed).await.message, "container web exited with code 5");
    let after = manager.reported(A, TaskState::Running).await;
    assert_eq!((after.state(), after.containers[0].pid), (TaskState::Running, before.containers[0].pid));
    assert!(is_alive(before.containers[0].pid));
    manager.assign(Vec::new());
    eventually("a is gone", || (!is_alive(before.containers[0].pid)).then_some(())).await;
}

#[tokio::test]
async fn an_agent_without_managers_goes_on_with_what_it_had() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    manager.assign(vec![shell_task(A, OBEDIENT)]);
    let before = manager.reported(A, TaskState::Running).await;
    manager.stop();
    agent.kill();
    agent.spawn();
    eventually("it adopts the task", || agent.log().contains("adopts a task").then_some(())).await;
    eventually("it seeks managers", || agent.log().contains("no manager takes this node").then_some(())).await;
    assert!(is_alive(before.containers[0].pid));
}

#[tokio::test]
async fn stopping_sends_the_stop_signal_and_after_the_grace_sigkill_and_nothing_is_left() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let mut stubborn = shell_task(B, "trap '' TERM; while :; do sleep 0.05; done");
    if let Some(template) = &mut stubborn.template {
        template.stop_grace_ms = 700;
    }
    let obedient = shell_task(A, OBEDIENT);
    manager.assign(vec![obedient.clone(), stubborn.clone()]);
    manager.reported(A, TaskState::Running).await;
    manager.reported(B, TaskState::Running).await;
    let log = agent.state().join("logs").join(A).join("web.log");
    eventually("the trap of a is set", || fs::read_to_string(&log).ok().filter(|text| text.contains("ready"))).await;
    let stopped = [obedient, stubborn].map(|mut task| {
        task.desired_state = TaskState::Shutdown.into();
        task
    });
    let begin = Instant::now();
    manager.assign(stopped.to_vec());
    let first = manager.reported(A, TaskState::Shutdown).await;
    let second = manager.reported(B, TaskState::Shutdown).await;
    assert!(begin.elapsed() >= Duration::from_millis(700), "the grace was cut short: {:?}", begin.elapsed());
    assert_eq!((first.state(), first.containers[0].exit_code), (TaskState::Shutdown, 0));
    assert_eq!((second.state(), second.containers[0].exit_code), (TaskState::Shutdown, 137));
    for task in [A, B] {
        eventually(&format!("nothing is left of {task}"), || agent.leftovers(task).is_empty().then_some(())).await;
    }
}

#[tokio::test]
async fn what_can_never_run_is_rejected_in_words() {
    let manager = Manager::leader().await;
    let agent = Agent::start_with(&[manager.address], &["--pull", "never"]);
    let mut absent = shell_task(A, "true");
    let mut nobody = shell_task(B, "true");
    if let (Some(absent), Some(nobody)) = (&mut absent.template, &mut nobody.template) {
        absent.containers[0].image = "web:1".into();
        nobody.containers[0].user = "nobody-there".into();
    }
    manager.assign(vec![absent, nobody]);
    let absent = manager.reported(A, TaskState::Rejected).await;
    assert_eq!(
        absent.message,
        "image \"web:1\" is not on node n1; images there: shell:1; pulling is off on this node (--pull never): load it with \
         `rcluster-agent image load FILE`"
    );
    let nobody = manager.reported(B, TaskState::Rejected).await;
    assert!(nobody.message.contains("user \"nobody-there\" is not in the image's /etc/passwd"), "{}", nobody.message);
    eventually("nothing is left", || agent.leftovers(B).is_empty().then_some(())).await;
    // Loading the image while the agent runs lets another task of it run.
    Layout::new(&agent.dir.path().join("web")).image(
        "web:1",
        &json!({"Entrypoint": ["/bin/sh"]}),
        &[support::image::shell_layer(), layer(&[file("x", "")])],
    );
    agent.image_load("web");
    let mut task = shell_task("cccccccccccccccc", "exit 0");
    if let Some(template) = &mut task.template {
        template.containers[0].image = "web:1".into();
    }
    manager.assign(vec![task]);
    assert_eq!(manager.reported("cccccccccccccccc", TaskState::Complete).await.state(), TaskState::Complete);
}

#[tokio::test]
async fn a_command_that_is_not_in_the_image_fails_with_the_runtimes_words() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    let mut task = shell_task(A, "true");
    if let Some(template) = &mut task.template {
        template.containers[0].command = vec!["/not/there".into()];
    }
    manager.assign(vec![task]);
    let status = manager.reported(A, TaskState::Complete).await;
    assert_eq!(status.state(), TaskState::Failed);
    assert!(status.message.contains("/not/there"), "{}", status.message);
}

#[tokio::test]
async fn a_running_task_that_is_not_known_here_was_lost_with_a_boot_and_is_not_started_again() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    let mut task = shell_task(A, OBEDIENT);
    manager.assign(vec![task.clone()]);
    let running = manager.reported(A, TaskState::Running).await;
    manager.assign(vec![task.clone(), shell_task(B, "exit 0")]);
    manager.reported(B, TaskState::Complete).await;
    agent.power_cut(&[running.containers[0].pid]);
    task.status = Some(running);
    manager.seen.send_modify(|seen| seen.statuses.clear());
    manager.assign(vec![task]);
    agent.spawn();
    let status = manager.reported(A, TaskState::Failed).await;
    assert_eq!((status.state(), status.message.as_str()), (TaskState::Failed, "the host restarted"));
    let registrations = manager.seen.borrow().registrations.clone();
    assert_eq!(registrations.last().expect("one").incarnation, registrations[0].incarnation + 1);
    eventually("what its containers wrote is gone", || (!agent.state().join("tasks").join(A).exists()).then_some(())).await;
}

#[tokio::test]
async fn a_task_is_held_back_until_its_time() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    let mut task = shell_task(A, OBEDIENT);
    task.start_after_ms = rcluster_base::clock::unix_ms() + 800;
    manager.assign(vec![task.clone()]);
    manager.reported(A, TaskState::Ready).await;
    let status = manager.reported(A, TaskState::Running).await;
    assert!(status.containers[0].started_at_ms >= task.start_after_ms);
}

#[tokio::test]
async fn the_containers_of_a_pod_share_network_ipc_and_host_name_and_end_together() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    let container = |name: &str| ContainerSpec { user: "web".into(), ..shell(name, OBEDIENT) };
    manager.assign(vec![task(A, vec![container("web"), container("side")])]);
    let status = manager.reported(A, TaskState::Running).await;
    let pids: Vec<u32> = status.containers.iter().map(|container| container.pid).collect();
    let namespace = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pids[0], name), namespace(pids[1], name), "{name}");
    }
    for name in ["pid", "mnt"] {
        assert_ne!(namespace(pids[0], name), namespace(pids[1], name), "{name}");
    }
    let text = fs::read_to_string(format!("/proc/{}/status", pids[1])).expect("status");
    assert!(text.contains("Uid:\t33\t33\t33\t33"), "{text}");
    let root = format!("/proc/{}/root", pids[1]);
    assert_eq!(fs::read_to_string(format!("{root}/etc/hostname")).expect("hostname"), "web-1\n");
    let first = rustix::process::Pid::from_raw(pids[0].cast_signed()).expect("a pid");
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("kill");
    assert_eq!(manager.reported(A, TaskState::Failed).await.message, "container web was killed by SIGKILL");
    assert!(!is_alive(pids[1]));
}

#[tokio::test]
async fn a_container_that_has_ended_is_told_of_before_the_others_of_its_pod_have_stopped() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    let mut pod = task(A, vec![shell("web", OBEDIENT), shell("side", "trap '' TERM; while :; do sleep 0.05; done")]);
    if let Some(template) = &mut pod.template {
        template.stop_grace_ms = 3000;
    }
    manager.assign(vec![pod]);
    let status = manager.reported(A, TaskState::Running).await;
    let [web, side] = [0, 1].map(|index: usize| status.containers[index].pid);
    rustix::process::kill_process(rustix::process::Pid::from_raw(web.cast_signed()).expect("a pid"), rustix::process::Signal::KILL)
        .expect("kill");
    manager
        .until("web has ended and its pod has not", |seen| {
            let status = seen.statuses.get(A)?;
            (status.state() == TaskState::Running && status.ending && status.containers[0].exited && status.containers[1].pid == side)
                .then_some(())
        })
        .await;
    assert_eq!(manager.reported(A, TaskState::Failed).await.message, "container web was killed by SIGKILL");
}

#[tokio::test]
async fn a_follower_sends_the_agent_to_the_leader_and_a_deaf_leader_is_left() {
    let leader = Manager::leader().await;
    let follower = Manager::follower(leader.address).await;
    let _agent = Agent::start(&[follower.address]);
    leader.until("a registration", |seen| (seen.heartbeats > 2).then_some(())).await;
    let before = leader.seen.borrow().registrations.len();
    leader.set_deaf(true);
    leader.until("it comes back by the follower", |seen| (seen.registrations.len() > before).then_some(())).await;
}

#[tokio::test]
async fn managers_who_refuse_the_node_are_reported_in_the_log() {
    let manager = Manager::refusing("the name n1 is taken by another node").await;
    let agent = Agent::start(&[manager.address]);
    eventually("the refusal", || agent.log().contains("the name n1 is taken by another node").then_some(())).await;
}

#[tokio::test]
async fn assignments_that_go_back_are_refused() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    manager.assign_at(3, 7, vec![shell_task(A, OBEDIENT)]);
    let status = manager.reported(A, TaskState::Running).await;
    manager.assign_at(2, 99, Vec::new());
    eventually("the refusal", || agent.log().contains("refuses assignments older than those in force").then_some(())).await;
    assert!(is_alive(status.containers[0].pid));
}

#[tokio::test]
async fn a_pod_on_a_network_without_netd_fails_and_says_what_is_missing() {
    let manager = Manager::leader().await;
    let _agent = Agent::start(&[manager.address]);
    manager.assign(vec![on_network(shell_task(A, OBEDIENT))]);
    let status = manager.reported(A, TaskState::Failed).await;
    assert!(
        status.message.starts_with("netd does not answer at ") && status.message.ends_with("is rcluster-netd running?"),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn a_second_agent_on_the_same_directories_is_refused() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start(&[manager.address]);
    manager.until("the first", |seen| (!seen.registrations.is_empty()).then_some(())).await;
    let first = agent.pid();
    let error = agent.second();
    assert!(error.contains("another agent uses the state directory"), "{error}");
    assert!(is_alive(first));
}

/// A registry that has the image `shell:1` with another layer on top of the one that the node has already, and whose first answer
/// to whoever asks for that layer stops in the middle; and what a task says then.
fn slow_registry(agent: &Agent) -> (Fake, String) {
    const HALF: usize = 400_000;
    let layout = agent.dir.path().join("remote");
    let (shell, more) = (support::image::shell_layer(), layer(&[file("remote", &"x".repeat(2 * HALF))]));
    Layout::new(&layout).image("1", &json!({"Cmd": ["/bin/sh"]}), &[shell.clone(), more.clone()]);
    let (shelf, asked_before, length) = (Shelf::of(&layout), AtomicBool::new(false), more.len());
    let fake = Fake::start(move |asked| match shelf.reply(asked) {
        reply if reply.body.len() == length && !asked_before.swap(true, Ordering::SeqCst) => reply.how(How::StallAt(HALF)),
        reply => reply,
    });
    let done = LayerProgress { bytes: shell.len() as u64, bytes_total: shell.len() as u64, done: true };
    let under_way = LayerProgress { bytes: HALF as u64, bytes_total: more.len() as u64, done: false };
    (fake, Progress { layers: vec![done, under_way] }.to_string())
}

fn task_of(id: &str, image: &str, script: &str) -> rcluster_api::wire::v1::Task {
    let mut task = shell_task(id, script);
    if let Some(template) = &mut task.template {
        template.containers[0].image = image.into();
    }
    task
}

#[tokio::test]
async fn a_task_tells_how_far_its_image_has_come_stops_while_it_comes_and_the_next_one_runs_it() {
    let manager = Manager::leader().await;
    let agent = Agent::start_with(&[manager.address], &["--registry-plain-http", "127.0.0.1"]);
    let (registry, half) = slow_registry(&agent);
    let image = registry.name("shell:1");
    manager.assign(vec![task_of(A, &image, "exit 0")]);
    let status = manager.until("a pull under way", |seen| seen.statuses.get(A).filter(|status| status.message == half).cloned()).await;
    assert_eq!(status.state(), TaskState::Preparing);
    assert!(half.starts_with("pulling 1/2 layers, "), "{half}");
    let mut stopped = task_of(A, &image, "exit 0");
    stopped.desired_state = TaskState::Shutdown.into();
    manager.assign(vec![stopped]);
    // Long before it would give the registry up, which says nothing more for longer than this waits.
    manager.reported(A, TaskState::Shutdown).await;
    eventually("nothing is left", || agent.leftovers(A).is_empty().then_some(())).await;

    manager.assign(vec![task_of(B, &image, "cat /remote >/dev/null && exit 7")]);
    let status = manager.reported(B, TaskState::Failed).await;
    assert_eq!(status.message, "container web exited with code 7");
    assert!(registry.blobs_asked().iter().any(|asked| asked.range_from() == Some(400_000)), "what had come was not used");
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_pulls_goes_on_with_what_has_come() {
    let manager = Manager::leader().await;
    let mut agent = Agent::start_with(&[manager.address], &["--registry-plain-http", "127.0.0.1"]);
    let (registry, half) = slow_registry(&agent);
    manager.assign(vec![task_of(A, &registry.name("shell:1"), "exit 7")]);
    manager.until("a pull under way", |seen| (seen.statuses.get(A)?.message == half).then_some(())).await;
    agent.kill();
    agent.spawn();
    assert_eq!(manager.reported(A, TaskState::Failed).await.message, "container web exited with code 7");
    assert!(registry.blobs_asked().iter().any(|asked| asked.range_from() == Some(400_000)), "what had come was not used");
}

#[tokio::test]
async fn an_image_that_no_registry_has_is_rejected_and_one_that_cannot_be_asked_for_fails() {
    let manager = Manager::leader().await;
    let _agent = Agent::start_with(&[manager.address], &["--registry-plain-http", "127.0.0.1"]);
    let registry = Fake::start(|_| reply(404, ""));
    // A port that nobody is given.
    let closed = "127.0.0.1:1";
    let (none, unreachable) = (registry.name("web:1"), format!("{closed}/web:1"));
    manager.assign(vec![task_of(A, &none, "true"), task_of(B, &unreachable, "true")]);
    let message = manager.reported(A, TaskState::Rejected).await.message;
    assert_eq!(message, format!("pull image {none:?}: registry {} has no image \"1\" in web: check the name and the tag", registry.addr));
    let message = manager.reported(B, TaskState::Failed).await.message;
    assert!(message.starts_with(&format!("pull image {unreachable:?}: registry {closed} cannot be reached")), "{message}");
}

#[tokio::test]
async fn what_an_image_says_of_its_container_is_done() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let script = "set -e; test $(id -u):$(id -g) = 33:34; test $(pwd) = /srv/deep; test $A = image; test $(cat /data/seed) = seed; \
                  echo more >/data/more; echo more >/link/more; ! echo x 2>/dev/null >/x; exit 42";
    let config = json!({
        "Entrypoint": ["/bin/sh"], "Cmd": ["-c", script], "Env": ["A=image"], "WorkingDir": "/srv/deep", "User": "web:web",
        "Volumes": {"/data": {}, "/link": {}, "/data/new/dir": {}}, "Labels": {"k": "v"},
    });
    let own = |entry: Entry| Entry { owner: 33, ..entry };
    // A volume behind a link that would lead out of the image, were it followed on the host.
    let outside = agent.dir.path().join("outside");
    fs::create_dir(&outside).expect("make");
    let inside = outside.to_string_lossy().trim_start_matches('/').to_owned();
    let entries = [
        file("etc/group", "root:x:0:\nweb:x:34:\n"),
        own(dir("data")),
        own(file("data/seed", "seed")),
        symlink("link", &outside.to_string_lossy()),
        own(dir(&inside)),
    ];
    Layout::new(&agent.dir.path().join("layout-all")).image("all:1", &config, &[support::image::shell_layer(), layer(&entries)]);
    agent.image_load("layout-all");
    let container = ContainerSpec { name: "web".into(), image: "all:1".into(), read_only: true, ..ContainerSpec::default() };
    manager.assign(vec![task(A, vec![container])]);
    assert_eq!(manager.reported(A, TaskState::Failed).await.message, "container web exited with code 42");
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "a volume led out of the image");
    eventually("nothing is left", || agent.leftovers(A).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_bind_mount_does_not_follow_a_link_out_of_what_the_node_allows() {
    let manager = Manager::leader().await;
    let shared = tempfile::tempdir().expect("a directory");
    let path = |name: &str| shared.path().join(name).to_string_lossy().into_owned();
    std::fs::create_dir(path("inside")).expect("make");
    std::os::unix::fs::symlink("inside", path("near")).expect("link");
    std::os::unix::fs::symlink("/etc", path("far")).expect("link");
    let _agent = Agent::start_with(&[manager.address], &["--allow-bind", &shared.path().to_string_lossy()]);
    let with = |id: &str, source: &str| {
        let mut task = shell_task(id, "echo here > /mounted/here");
        let mount = Mount { kind: MountKind::Bind.into(), source: path(source), target: "/mounted".into(), ..Mount::default() };
        task.template.as_mut().expect("a template").containers[0].mounts = vec![mount];
        task
    };
    manager.assign(vec![with(A, "near"), with(B, "far")]);
    assert_eq!(manager.reported(A, TaskState::Complete).await.state(), TaskState::Complete);
    assert!(shared.path().join("inside/here").exists());
    let refused = manager.reported(B, TaskState::Complete).await;
    assert_eq!(refused.state(), TaskState::Rejected);
    assert!(refused.message.contains("it leads to /etc, which node n1 does not allow to be mounted"), "{}", refused.message);
}

#[tokio::test]
async fn output_goes_to_a_log_daemon_too_and_is_kept() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let path = agent.dir.path().join("log.sock");
    let daemon = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    daemon.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let mut task = shell_task(A, "echo hello");
    let address = format!("unix://{}", path.display());
    let logging = Logging { driver: "syslog".into(), address, facility: "local3".into(), ..Logging::default() };
    task.template.as_mut().expect("a template").containers[0].logging = Some(logging);
    manager.assign(vec![task]);
    manager.reported(A, TaskState::Complete).await;
    let mut bytes = [0; 1000];
    let count = daemon.recv(&mut bytes).expect("a message");
    let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
    // local3 is 19, information 6.
    assert!(message.starts_with("<158>") && message.ends_with(" web.1: hello"), "{message}");
    let kept = fs::read_to_string(agent.dir.path().join("state/logs").join(A).join("web.log")).expect("the file");
    assert!(kept.contains("\"l\":\"hello\""), "{kept}");
}
