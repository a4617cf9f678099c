//! Rollouts told in a few words, and the verdict after each.

use rcluster_api::object::{Capacity, NodeDescription, Stamp, TaskStatus};
use rcluster_api::spec::{Constraint, ServiceSpec};

use super::*;

/// The revision of the deploy that is followed.
const DEPLOY: u64 = 10;

fn service(spec: serde_json::Value) -> Service {
    let mut spec: ServiceSpec = serde_json::from_value(spec).unwrap();
    spec.name = "web".to_owned();
    Service {
        id: "s".into(),
        stamp: Stamp { version: DEPLOY, ..Stamp::default() },
        spec,
        spec_version: 2,
        removing: false,
        vips: Vec::new(),
    }
}

fn replicas(count: u32) -> Service {
    service(serde_json::json!({"replicas": count, "containers": [{"image": "web:1"}]}))
}

fn node(name: &str, state: NodeState, zone: &str) -> Object {
    Object::Node(Node {
        id: name.into(),
        stamp: Stamp::default(),
        description: NodeDescription { name: name.to_owned(), capacity: Capacity::default(), ..NodeDescription::default() },
        availability: Availability::Active,
        labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
        state,
        message: String::new(),
        since_ms: 0,
        incarnation: 1,
        number: 0,
    })
}

/// `ID SLOT NODE STATE VERSION [old] [stop] [: MESSAGE]`; VERSION is the revision that wrote it.
fn task(line: &str) -> Object {
    let (line, message) = line.split_once(": ").unwrap_or((line, ""));
    let words: Vec<&str> = line.split_whitespace().collect();
    let slot = words[1].parse().unwrap();
    Object::Task(Box::new(Task {
        id: words[0].into(),
        stamp: Stamp { version: words[4].parse().unwrap(), ..Stamp::default() },
        service_id: "s".into(),
        service: "web".to_owned(),
        stack: String::new(),
        slot,
        name: if slot == 0 { format!("web.{}", words[2]) } else { format!("web.{slot}") },
        template: rcluster_api::spec::TaskTemplate::default(),
        spec_version: if words.contains(&"old") { 1 } else { 2 },
        desired_state: if words.contains(&"stop") { TaskState::Shutdown } else { TaskState::Running },
        restarts: 0,
        restarts_in_window: 0,
        window_start_ms: 0,
        start_after_ms: 0,
        node_id: (words[2] != "-").then(|| words[2].into()),
        node: words[2].replace('-', ""),
        networks: Vec::new(),
        status: TaskStatus {
            state: words[3].parse().unwrap(),
            message: message.to_owned(),
            since_ms: 0,
            containers: Vec::new(),
            ending: false,
        },
        leave_ms: 0,
    }))
}

fn picture(service: Service, tasks: &[&str]) -> Picture {
    let mut picture = Picture::default();
    picture.update(DEPLOY, [Object::Service(service)], []);
    picture.update(DEPLOY, tasks.iter().map(|line| task(line)), []);
    picture
}

fn rollout() -> Rollout {
    Rollout::new(["web".to_owned()], DEPLOY)
}

#[test]
fn a_picture_from_before_the_deploy_is_not_judged() {
    let mut picture = picture(replicas(0), &[]);
    picture.revision = DEPLOY - 1;
    assert_eq!(rollout().observe(&picture, 0), Verdict::Progress { wake_at_ms: None });
}

#[test]
fn new_tasks_must_run_and_settle() {
    let mut rollout = rollout();
    let mut picture = picture(replicas(2), &["a 1 n1 running 11", "b 2 n2 starting 12"]);
    assert_eq!(rollout.observe(&picture, 1000), Verdict::Progress { wake_at_ms: Some(1000 + SETTLE_MS) });
    assert_eq!(rollout.observe(&picture, 1600), Verdict::Progress { wake_at_ms: None });
    picture.update(13, [task("b 2 n2 running 13")], []);
    assert_eq!(rollout.observe(&picture, 1700), Verdict::Progress { wake_at_ms: Some(1700 + SETTLE_MS) });
    assert_eq!(rollout.observe(&picture, 1700 + SETTLE_MS), Verdict::Converged);
}

#[test]
fn tasks_that_ran_before_need_not_settle() {
    assert_eq!(rollout().observe(&picture(replicas(1), &["a 1 n1 running 9", "z 1 n1 failed 8 stop"]), 5), Verdict::Converged);
    assert_eq!(rollout().observe(&picture(replicas(0), &[]), 5), Verdict::Converged);
}

#[test]
fn old_tasks_and_those_too_many_are_waited_for() {
    for tasks in [&["a 1 n1 running 9 old", "b 2 n2 running 9"][..], &["a 1 n1 running 9", "b 2 n2 running 9", "c 3 n1 running 9"][..]] {
        assert_eq!(rollout().observe(&picture(replicas(2), tasks), 5), Verdict::Progress { wake_at_ms: None }, "{tasks:?}");
    }
    let stopping = picture(replicas(2), &["a 1 n1 running 9", "b 2 n2 running 9", "c 3 n1 running 11 stop"]);
    assert_eq!(rollout().observe(&stopping, 5), Verdict::Converged);
    assert_eq!(rollout().tallies(&stopping), [Tally { service: "web".to_owned(), running: 2, wanted: 2, leaving: 1, complete: true }]);
}

#[test]
fn too_many_tasks_are_behind_as_too_few_are() {
    let surplus = &["a 1 n1 running 9", "b 2 n1 running 9"][..];
    let to_come = &["a 1 n1 running 9", "b 2 n1 starting 9"][..];
    for (tasks, behind) in [(&["a 1 n1 running 9"][..], false), (surplus, true), (to_come, true), (&[][..], true)] {
        let tallies = rollout().tallies(&picture(replicas(1), tasks));
        assert_eq!(tallies.iter().map(Tally::is_behind).collect::<Vec<_>>(), [behind], "{tasks:?}");
    }
}

#[test]
fn a_service_is_judged_by_its_own_tasks() {
    let mut picture = picture(replicas(2), &["a 1 n1 running 9", "b 2 n2 running 9"]);
    let mut api = replicas(1);
    (api.id, api.spec.name) = ("t".into(), "api".to_owned());
    let Object::Task(mut of_api) = task("c 1 n1 running 11") else { unreachable!("a task was told") };
    (of_api.service_id, of_api.service, of_api.name) = ("t".into(), "api".to_owned(), "api.1".to_owned());
    picture.update(DEPLOY, [Object::Service(api), Object::Task(of_api.clone())], []);
    let mut both = Rollout::new(["web".to_owned(), "api".to_owned()], DEPLOY);
    assert_eq!(both.observe(&picture, 1000), Verdict::Progress { wake_at_ms: Some(1000 + SETTLE_MS) });
    assert_eq!(both.observe(&picture, 1000 + SETTLE_MS), Verdict::Converged);
    let tally = |service: &str, running, wanted| Tally { service: service.to_owned(), running, wanted, leaving: 0, complete: true };
    assert_eq!(both.tallies(&picture), [tally("api", 1, 1), tally("web", 2, 2)]);
    let of_both = both.lines(&picture);
    assert_eq!(of_both.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["api.1", "web.1", "web.2"]);
    of_api.status.state = TaskState::Starting;
    picture.update(DEPLOY, [Object::Task(of_api)], []);
    assert_eq!(rollout().observe(&picture, 5), Verdict::Converged, "who follows web alone does not wait for api");
    assert!(matches!(both.observe(&picture, 5_000), Verdict::Progress { .. }));
}

#[test]
fn a_slot_that_keeps_failing_fails_the_rollout_though_its_history_is_forgotten() {
    let mut rollout = rollout();
    let mut picture = picture(replicas(1), &["a 1 n1 failed 11: exit code 3", "b 1 n1 running 12"]);
    assert_eq!(rollout.observe(&picture, 0), Verdict::Progress { wake_at_ms: Some(SETTLE_AFTER_FAILURE_MS) });
    picture.update(13, [task("b 1 n1 failed 13: exit code 3")], [(Kind::Task, "a".to_owned())]);
    assert_eq!(rollout.observe(&picture, 100), Verdict::Progress { wake_at_ms: None });
    picture.update(14, [task("c 1 n2 failed 14: exit code 4")], [(Kind::Task, "b".to_owned())]);
    let blame = Blame {
        service: "web".to_owned(),
        task: "web.1".to_owned(),
        task_id: "c".to_owned(),
        node: "n2".to_owned(),
        reason: "failed, 3 times: exit code 4".to_owned(),
    };
    assert_eq!(rollout.observe(&picture, 200), Verdict::Failed(blame));
}

#[test]
fn a_restart_policy_that_gives_up_fails_the_rollout_at_once() {
    let never = service(serde_json::json!({"containers": [{"image": "a"}], "restart": {"condition": "none"}}));
    let Verdict::Failed(blame) = rollout().observe(&picture(never, &["a 1 n1 rejected 11: no image web:1 on n1"]), 0) else {
        panic!("not failed")
    };
    assert_eq!(blame.reason, "rejected: no image web:1 on n1");
    let on_failure = service(serde_json::json!({"containers": [{"image": "a"}], "restart": {"condition": "on-failure"}}));
    let Verdict::Failed(blame) = rollout().observe(&picture(on_failure, &["a 1 n1 complete 11"]), 0) else { panic!("not failed") };
    assert_eq!(blame.reason, "complete: no reason was given");
}

#[test]
fn a_lost_node_or_an_ordered_stop_is_no_failure_of_the_task() {
    let tasks = ["a 1 n1 orphaned 11 stop", "b 1 n1 shutdown 12 stop", "c 1 n1 orphaned 13 stop", "d 1 n2 pending 14: 0/1 nodes fit web.1"];
    let picture = picture(replicas(1), &tasks);
    let mut rollout = rollout();
    assert_eq!(rollout.observe(&picture, 0), Verdict::Progress { wake_at_ms: None });
    let lines = rollout.lines(&picture);
    assert_eq!((lines.len(), lines[0].state, lines[0].message.as_str()), (1, TaskState::Pending, "0/1 nodes fit web.1"));
}

#[test]
fn a_global_service_waits_for_every_node_that_fits() {
    let mut global = service(serde_json::json!({"mode": "global", "containers": [{"image": "a"}]}));
    global.spec.placement.constraints = vec!["node.labels.zone!=c".parse::<Constraint>().unwrap()];
    let mut picture = picture(global, &["a 0 n1 running 9"]);
    let nodes = [
        node("n1", NodeState::Ready, "a"),
        node("n2", NodeState::Ready, "b"),
        node("n3", NodeState::Ready, "c"),
        node("n4", NodeState::Down, "a"),
    ];
    picture.update(DEPLOY, nodes, []);
    assert_eq!(rollout().observe(&picture, 5), Verdict::Progress { wake_at_ms: None });
    picture.update(DEPLOY, [task("b 0 n2 running 9")], []);
    assert_eq!(rollout().observe(&picture, 5), Verdict::Converged);
}

#[test]
fn a_service_that_is_removed_meanwhile_ends_the_rollout() {
    let mut removing = replicas(1);
    removing.removing = true;
    assert_eq!(rollout().observe(&picture(removing, &[]), 0), Verdict::Gone { service: "web".to_owned() });
}
