//! What holds while nothing goes wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use rcluster_api::rest::TaskJson;
use rcluster_api::task::TaskState;
use rcluster_tests::lab::wait_for;

use crate::{Turn, balanced, everywhere, web};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn containers_on_different_hosts_reach_each_other() {
    let turn = Turn::new("reach", 1, 3);
    let lab = turn.lab();
    lab.deploy(&everywhere("lab", "web")).unwrap();
    let tasks = lab.wait_running("web", 3, SOON).unwrap();
    let nodes: BTreeSet<&String> = tasks.iter().map(|task| &task.node).collect();
    assert_eq!(nodes.len(), 3);
    for from in &tasks {
        for to in &tasks {
            let url = format!("http://{}:8080/", to.networks[0].ip);
            let get = || lab.exec(from, &["/probe", "get", &url, "--count", "1"]).map(Some);
            let answer = wait_for(&format!("{} reaches {}", from.name, to.name), SOON, get).unwrap();
            assert!(answer.contains(&format!("\"{}\"", to.name)), "{} asked {}: {answer}", from.name, to.name);
        }
    }
    turn.finish();
}

#[test]
fn two_networks_do_not_see_each_other() {
    let turn = Turn::new("isolate", 1, 2);
    let lab = turn.lab();
    lab.deploy(&format!("{}---\n{}", everywhere("red", "one"), everywhere("blue", "two"))).unwrap();
    let one = lab.wait_running("one", 2, SOON).unwrap();
    let two = lab.wait_running("two", 2, SOON).unwrap();
    for to in &two {
        let url = format!("http://{}:8080/", to.networks[0].ip);
        let refused = lab.exec(&one[0], &["/probe", "get", &url, "--count", "1", "--timeout-ms", "20000"]).unwrap_err().to_string();
        assert!(!refused.contains("timed out"), "a packet to another network is rejected at once: {refused}");
    }
    let unknown = lab.exec(&one[0], &["/probe", "resolve", "two", "--count", "1"]).unwrap_or_else(|error| error.to_string());
    assert!(unknown.contains("NXDOMAIN"), "a name of another network does not exist here: {unknown}");
    turn.finish();
}

#[test]
fn dns_answers_with_all_replicas_in_turning_order() {
    let turn = Turn::new("dns", 1, 2);
    let lab = turn.lab();
    lab.deploy(&format!("{}---\n{}", web("lab", "web", 4), web("lab", "client", 1).split_once("---\n").unwrap().1)).unwrap();
    let web = lab.wait_running("web", 4, SOON).unwrap();
    let client = lab.wait_running("client", 1, SOON).unwrap().remove(0);
    let addresses: BTreeSet<String> = web.iter().map(|task| task.networks[0].ip.clone()).collect();
    wait_for("the client's node knows all four", SOON, || Ok((lab.resolve(&client, "web")?.len() == 4).then_some(()))).unwrap();
    let answers = lab.exec(&client, &["/probe", "resolve", "web", "--count", "200"]).unwrap();
    let mut first = std::collections::BTreeMap::new();
    for line in answers.lines() {
        let answer: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(answer.iter().cloned().collect::<BTreeSet<_>>(), addresses, "{line}");
        *first.entry(answer[0].clone()).or_insert(0) += 1;
    }
    assert_eq!(first.len(), 4, "{first:?}");
    // Of 200 fair draws from four, fewer than 20 for one of them is a chance of less than 1 in 10^7.
    assert!(first.values().all(|count| *count > 20), "{first:?}");
    assert_eq!(lab.resolve(&client, "2.web").unwrap().len(), 1);
    for node in web.iter().map(|task| &task.node).collect::<BTreeSet<_>>() {
        let there: BTreeSet<String> = web.iter().filter(|task| task.node == *node).map(|task| task.networks[0].ip.clone()).collect();
        assert_eq!(lab.resolve(&client, &format!("web.{node}.node")).unwrap().into_iter().collect::<BTreeSet<_>>(), there, "on {node}");
    }
    assert_eq!(lab.resolve(&client, "host.rcluster.internal").unwrap(), ["169.254.53.53"]);
    turn.finish();
}

#[test]
fn a_service_has_one_address_and_its_replicas_share_what_comes_to_it() {
    let turn = Turn::new("vip", 1, 2);
    let lab = turn.lab();
    lab.deploy(&format!("{}---\n{}", balanced("lab", "web", 4), web("lab", "client", 1).split_once("---\n").unwrap().1)).unwrap();
    let web = lab.wait_running("web", 4, SOON).unwrap();
    let client = lab.wait_running("client", 1, SOON).unwrap().remove(0);
    let addresses: BTreeSet<String> = web.iter().map(|task| task.networks[0].ip.clone()).collect();
    wait_for("the client's node knows all four", SOON, || {
        let known: BTreeSet<String> = lab.resolve(&client, "tasks.web")?.into_iter().collect();
        Ok((known == addresses).then_some(()))
    })
    .unwrap();
    let own = lab.resolve(&client, "web").unwrap();
    assert!(own.len() == 1 && !addresses.contains(&own[0]), "{own:?} beside {addresses:?}");
    let answers = lab.exec(&client, &["/probe", "get", "http://web:8080/", "--count", "200"]).unwrap();
    for task in &web {
        let count = answers.lines().filter(|line| line.contains(&format!("\"{}\"", task.name))).count();
        // Of 200 fair draws from four, fewer than 20 for one of them is a chance of less than 1 in 10^7.
        assert!(count > 20, "{count} of 200 by {}: {answers}", task.name);
    }
    turn.finish();
}

#[test]
fn a_crashed_container_is_replaced_and_its_address_leaves_dns() {
    let turn = Turn::new("crash", 1, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 3)).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    drop(lab.exec(&before[0], &["/probe", "get", "http://127.0.0.1:8080/crash", "--count", "1"]));
    let after = wait_for("the crashed task is replaced", SOON, || {
        let running = lab.running("web")?;
        Ok((running.len() == 3 && running.iter().all(|task| task.id != before[0].id)).then_some(running))
    })
    .unwrap();
    assert_eq!(after[0].restarts, 1);
    assert_eq!((&after[1].id, &after[2].id), (&before[1].id, &before[2].id));
    let ended = lab.all_tasks().unwrap().into_iter().find(|task| task.id == before[0].id).unwrap();
    assert_eq!(ended.state, TaskState::Failed);
    assert!(ended.message.contains("exited with code 3"), "{}", ended.message);
    let address = &before[0].networks[0].ip;
    wait_for("its address is out of DNS", SOON, || Ok((!lab.resolve(&after[1], "web")?.contains(address)).then_some(()))).unwrap();
    turn.finish();
}

#[test]
fn logs_are_read_through_the_managers() {
    let turn = Turn::new("logs", 3, 2);
    let lab = turn.lab();
    lab.deploy(&web("lab", "web", 2)).unwrap();
    let tasks = lab.wait_running("web", 2, SOON).unwrap();
    // Each says that it serves, and then names who asks: nothing more comes once all of it is there.
    let ask = |task: &TaskJson| {
        let url = format!("http://{}:8080/", task.networks[0].ip);
        wait_for("it answers", SOON, || lab.exec(&tasks[0], &["/probe", "get", &url, "--count", "1"]).map(Some)).unwrap();
    };
    tasks.iter().for_each(ask);
    let logs = wait_for("both tasks have logged", SOON, || {
        let logs = lab.ctl(&["logs", "web"])?;
        let asked = |task: &TaskJson| logs.lines().any(|line| line.contains(&task.name) && line.contains("GET / from "));
        Ok(tasks.iter().all(asked).then_some(logs))
    })
    .unwrap();
    assert!(logs.lines().count() >= 4, "{logs}");
    let of_one = lab.ctl(&["logs", &tasks[0].name]).unwrap();
    assert!(!of_one.is_empty() && of_one.lines().all(|line| logs.contains(line)), "{of_one}");
    assert_eq!(lab.ctl(&["logs", &tasks[0].id]).unwrap(), of_one);
    let last = lab.ctl(&["logs", "-n", "1", "-t", &tasks[0].name]).unwrap();
    let (time, line) = last.trim_end().split_once(' ').unwrap();
    assert_eq!(Some(line), of_one.lines().last());
    assert_eq!(lab.ctl(&["logs", "--since", time, &tasks[0].name]).unwrap().lines().last(), Some(line));
    assert_eq!(lab.ctl(&["logs", "--since", "2999-01-01T00:00:00Z", &tasks[0].name]).unwrap(), "");
    assert_eq!(lab.ctl(&["logs", "-n", "0", &tasks[0].name]).unwrap(), "");
    turn.finish();
}

#[test]
fn what_cannot_run_says_why_and_what_is_wrong_is_refused_with_its_place() {
    let turn = Turn::new("refuse", 1, 2);
    let lab = turn.lab();
    let manifest = |body: &str| format!("kind: Service\nname: web\nspec:\n  containers:\n    - image: rcluster/probe:demo\n{body}");
    for (body, expected) in
        [("  replcas: 3\n", ":6:"), ("  networks: [nowhere]\n", "network nowhere"), ("  mode: global\n  replicas: 2\n", "replicas")]
    {
        let refused = lab.deploy(&manifest(body)).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    assert!(lab.all_tasks().unwrap().is_empty(), "a refused deploy leaves nothing");
    let again = lab.ctl(&["lab", "up", "--lab", lab.name()]).unwrap_err().to_string();
    assert!(again.contains("there is a lab t-refuse already"), "{again}");
    assert_eq!(lab.nodes().unwrap().len(), 2, "the first lab goes on");
    let big = lab.write(&manifest("      resources: {reservations: {memory: 64TiB}}\n")).unwrap();
    wait_for("it is said why it cannot run", SOON, || {
        let refused = lab.ctl(&["deploy", "--timeout", "3s", &big]).unwrap_err();
        if refused.to_string().contains("0/2 nodes fit web.1: 2 lack memory (need 64 TiB") { Ok(Some(())) } else { Err(refused) }
    })
    .unwrap();
    let typo = manifest("").replace("probe:demo", "prob:demo");
    let refused = lab.deploy(&typo).unwrap_err().to_string();
    assert!(refused.contains("image \"rcluster/prob:demo\" is not on node") && refused.contains("images there: "), "{refused}");
    turn.finish();
}

#[test]
fn the_containers_of_a_pod_share_localhost() {
    let turn = Turn::new("pod", 1, 1);
    let lab = turn.lab();
    lab.ctl(&["deploy", &rcluster_tests::lab::root().join("examples/pod.yaml").to_string_lossy()]).unwrap();
    let tasks: Vec<_> = lab.all_tasks().unwrap().into_iter().filter(|task| task.state == TaskState::Running).collect();
    assert_eq!(tasks[0].containers.len(), 2);
    let get = || lab.exec(&tasks[0], &["/probe", "get", "http://127.0.0.1:8080/", "--count", "1"]).map(Some);
    let answer = wait_for("the first container serves the second", SOON, get).unwrap();
    assert!(answer.contains(&tasks[0].name), "{answer}");
    turn.finish();
}
