//! What an image, or a service instead of it, says of its container and its pull, and pulls that users ask for, by the agent's process and
//! real containers. Needs root.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rcluster_api::wire::v1::{
    ContainerSpec, HealthCheck, ImageAnswer, ImagePull, PullPolicy, RelayProblem, TaskState, image_answer, image_request, relay_output,
};
use serde_json::json;
use support::agent::{Agent, eventually, shell_task, task};
use support::image::{Layout, file, layer, shell_layer};
use support::manager::Manager;
use support::registry::{Fake, Shelf};

const A: &str = "aaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccc";

/// Whether a file in the directory, or below it, holds the text.
fn holds(dir: &Path, text: &str) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { holds(&path, text) } else { fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text)) }
    })
}

#[tokio::test]
async fn a_container_is_stopped_by_its_images_signal() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let script = "trap 'exit 21' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let config = json!({"Cmd": ["/bin/sh", "-c", script], "StopSignal": "SIGUSR1"});
    Layout::new(&agent.dir.path().join("layout-stop")).image("stop:1", &config, &[shell_layer()]);
    agent.image_load("layout-stop");
    let container = ContainerSpec { name: "web".into(), image: "stop:1".into(), ..ContainerSpec::default() };
    let mut wanted = task(A, vec![container]);
    manager.assign(vec![wanted.clone()]);
    manager.until("it runs", |seen| seen.statuses.get(A).filter(|status| status.state() == TaskState::Running).cloned()).await;
    eventually("it has set its traps", || holds(&agent.state().join("logs"), "ready").then_some(())).await;
    wanted.desired_state = TaskState::Shutdown.into();
    let begin = Instant::now();
    manager.assign(vec![wanted]);
    let status = manager.reported(A, TaskState::Shutdown).await;
    assert_eq!((status.containers[0].exited, status.containers[0].exit_code), (true, 21));
    assert!(begin.elapsed() < Duration::from_secs(8), "the grace was waited for");
}

#[tokio::test]
async fn an_images_health_is_checked_unless_its_service_does_not_want_it() {
    let manager = Manager::leader().await;
    let agent = Agent::start(&[manager.address]);
    let check = json!({"Test": ["CMD-SHELL", "echo poorly; exit 1"], "Interval": 100_000_000, "StartInterval": 100_000_000, "Retries": 1});
    let config = json!({"Cmd": ["/bin/sh", "-c", "sleep 1000"], "Healthcheck": check});
    Layout::new(&agent.dir.path().join("layout-health")).image("health:1", &config, &[shell_layer()]);
    agent.image_load("layout-health");
    let with = |id: &str, healthcheck: Option<HealthCheck>| {
        let container = ContainerSpec { name: "web".into(), image: "health:1".into(), healthcheck, ..ContainerSpec::default() };
        task(id, vec![container])
    };
    let off =
        HealthCheck { disable: true, interval_ms: 1000, timeout_ms: 1000, retries: 1, start_interval_ms: 1000, ..HealthCheck::default() };
    manager.assign(vec![with(A, None), with(B, Some(off))]);
    let status = manager.reported(A, TaskState::Failed).await;
    assert!(status.message.starts_with("container web is unhealthy: ") && status.message.contains("poorly"), "{}", status.message);
    let status = manager.seen.borrow().statuses.get(B).cloned().expect("it has begun with the other");
    assert_eq!(status.state(), TaskState::Running, "{}", status.message);
}

#[tokio::test]
async fn a_service_says_when_its_image_is_pulled_and_the_node_for_those_that_do_not() {
    let manager = Manager::leader().await;
    let agent = Agent::start_with(&[manager.address], &["--pull", "never", "--registry-plain-http", "127.0.0.1"]);
    let layout = agent.dir.path().join("remote");
    Layout::new(&layout).image("1", &json!({"Cmd": ["/bin/sh"]}), &[shell_layer(), layer(&[file("remote", "x")])]);
    let shelf = Shelf::of(&layout);
    let registry = Fake::start(move |asked| shelf.reply(asked));
    let image = registry.name("shell:1");
    let with = |id: &str, pull: PullPolicy| {
        let mut task = shell_task(id, "cat /remote >/dev/null && exit 7");
        let container = &mut task.template.as_mut().expect("a template").containers[0];
        (container.image, container.pull) = (image.clone(), pull.into());
        task
    };
    manager.assign(vec![with(A, PullPolicy::Never), with(B, PullPolicy::Unspecified)]);
    let message = manager.reported(A, TaskState::Rejected).await.message;
    assert!(message.contains("its service does not want it pulled (pull: never): load it with"), "{message}");
    let message = manager.reported(B, TaskState::Rejected).await.message;
    assert!(message.contains("pulling is off on this node (--pull never)"), "{message}");
    assert!(registry.asked().is_empty(), "nobody wanted it to be asked");
    manager.assign(vec![with(C, PullPolicy::Missing)]);
    assert_eq!(manager.reported(C, TaskState::Failed).await.message, "container web exited with code 7");
}

#[tokio::test]
async fn a_user_has_an_image_pulled_and_sees_how_far_it_is() {
    let manager = Manager::leader().await;
    // Pulling is off for tasks; a user who asks for it means it.
    let agent = Agent::start_with(&[manager.address], &["--pull", "never", "--registry-plain-http", "127.0.0.1"]);
    let layout = agent.dir.path().join("remote");
    let more = layer(&[file("remote", "x")]);
    Layout::new(&layout).image("1", &json!({"Cmd": ["/bin/sh"]}), &[shell_layer(), more.clone()]);
    let shelf = Shelf::of(&layout);
    let registry = Fake::start(move |asked| shelf.reply(asked));
    manager.until("a session", |seen| (seen.heartbeats > 0).then_some(())).await;

    let image = registry.name("shell:1");
    manager.ask_images(image_request::Kind::Pull(ImagePull { name: image.clone() }));
    let ended = |kind: &relay_output::Kind| matches!(kind, relay_output::Kind::Exit(_) | relay_output::Kind::Problem(_));
    let said = manager.until("the end", |seen| seen.relayed.iter().any(ended).then(|| seen.relayed.clone())).await;
    let answers = said.iter().filter_map(|kind| match kind {
        relay_output::Kind::Image(ImageAnswer { kind }) => kind.as_ref(),
        _ => None,
    });
    let answers: Vec<&image_answer::Kind> = answers.collect();
    let [progress @ .., image_answer::Kind::Images(images)] = answers.as_slice() else { panic!("{said:?}") };
    assert_eq!(images.images.iter().map(|image| &image.name).collect::<Vec<_>>(), [&image]);
    let layers = progress.iter().map(|answer| match answer {
        image_answer::Kind::Progress(progress) => progress.layers.len(),
        other => panic!("{other:?}"),
    });
    assert!(layers.clone().count() > 0 && layers.clone().all(|layers| layers == 2), "{said:?}");

    manager.seen.send_modify(|seen| seen.relayed.clear());
    let absent = registry.name("shell:2");
    manager.ask_images(image_request::Kind::Pull(ImagePull { name: absent }));
    let said = manager.until("the end", |seen| seen.relayed.iter().find(|kind| ended(kind)).cloned()).await;
    let relay_output::Kind::Problem(RelayProblem { code, message, hint }) = said else { panic!("{said:?}") };
    assert_eq!(code, "conflict");
    assert!(message.contains("has no image \"2\" in shell") && hint.contains("asked from n1"), "{message} {hint}");
}
