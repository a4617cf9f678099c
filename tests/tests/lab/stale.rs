//! Services that are scaled, replaced and crash by chance, many at a time: a second after it is quiet no node names who is gone, or misses
//! who is there. And when nobody tells the nodes anything any more, they know what they knew.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_api::rest::TaskJson;
use rcluster_api::task::TaskState;
use rcluster_tests::lab::{Lab, wait_for};

use crate::{Turn, balanced, everywhere, number, web};

/// Each of them is changed in each round.
const SERVICES: usize = 20;

/// Changes in all, where RCLUSTER_CHANGES does not say; ten thousand are `rcluster-bench net`'s.
const CHANGES: u64 = 150;

const REPLICAS_MAX: usize = 3;

/// Twenty services on two processors.
const QUIET: Duration = Duration::from_secs(120);

/// What is named no later than this after the managers know it.
const FRESH: Duration = Duration::from_secs(1);

/// How long the managers are gone, and then the agents too.
const SILENCE: Duration = Duration::from_secs(3);

/// A service as it is to be; every other one has an address of its own.
struct Service {
    name: String,
    balanced: bool,
    replicas: usize,
    generation: u32,
    /// Tasks that are not to run any more.
    over: BTreeSet<String>,
}

impl Service {
    fn new(number: usize) -> Self {
        Self { name: format!("s{number}"), balanced: number.is_multiple_of(2), replicas: 1, generation: 1, over: BTreeSet::new() }
    }

    fn manifest(&self) -> String {
        let manifest = if self.balanced { balanced } else { web };
        let container = format!("    - env: {{GENERATION: \"{}\"}}\n      image:", self.generation);
        // Many crash more than once.
        let restarts = "  restart: {delay: 0s}\n  containers:\n";
        manifest("lab", &self.name, self.replicas).replace("    - image:", &container).replace("  containers:\n", restarts)
    }

    /// The name that has its tasks' addresses.
    fn tasks_name(&self) -> String {
        if self.balanced { format!("tasks.{}", self.name) } else { self.name.clone() }
    }
}

/// Addresses by service.
type Truth = BTreeMap<String, BTreeSet<String>>;

/// Deploys them, without waiting for what becomes of it.
fn deploy<'a>(lab: &Lab, services: impl Iterator<Item = &'a Service>) {
    let manifests: Vec<String> = services.map(Service::manifest).collect();
    let documents = manifests.iter().map(|manifest| manifest.split_once("---\n").expect("a network and a service").1);
    let whole: Vec<&str> = ["kind: Network\nname: lab\n"].into_iter().chain(documents).collect();
    let file = lab.write(&whole.join("---\n")).unwrap();
    lab.ctl(&["deploy", "--detach", &file]).unwrap();
}

/// The addresses once every service is as it is to be.
fn quiet(lab: &Lab, services: &[Service], what: &str) -> Truth {
    let asked = wait_for("all is quiet", QUIET, || {
        let tasks = lab.all_tasks()?;
        let addresses = services.iter().map(|service| Some((service.name.clone(), settled(service, &tasks)?)));
        Ok(addresses.collect::<Option<Truth>>())
    });
    asked.unwrap_or_else(|error| panic!("{what}: {error:#}"))
}

fn settled(service: &Service, tasks: &[TaskJson]) -> Option<BTreeSet<String>> {
    let due = |task: &&TaskJson| task.service == service.name && task.desired_state == TaskState::Running && !task.state.is_terminal();
    let due: Vec<&TaskJson> = tasks.iter().filter(due).collect();
    let is_settled =
        due.len() == service.replicas && due.iter().all(|task| task.state == TaskState::Running && !service.over.contains(&task.id));
    is_settled.then(|| due.iter().map(|task| task.networks[0].ip.clone()).collect())
}

/// What a client's node says that is not so, and how long after `since` it was asked.
fn wrong(lab: &Lab, client: &TaskJson, services: &[Service], truth: &Truth, since: Instant) -> Vec<(Duration, String)> {
    let mut wrong = Vec::new();
    for service in services {
        let (name, due) = (service.tasks_name(), &truth[&service.name]);
        let asked = since.elapsed();
        match lab.resolve(client, &name) {
            Ok(answer) if answer.iter().cloned().collect::<BTreeSet<_>>() == *due => {}
            Ok(answer) => wrong.push((asked, format!("{}: {name} is {answer:?}, not {due:?}", client.node))),
            Err(error) => wrong.push((asked, format!("{}: {name} is not {due:?}: {error:#}", client.node))),
        }
        if service.balanced {
            let (asked, url) = (since.elapsed(), format!("http://{}:8080/", service.name));
            if let Err(error) = lab.exec(client, &["/probe", "get", &url, "--count", "1", "--timeout-ms", "500"]) {
                wrong.push((asked, format!("{}: nobody answers at {url}: {error:#}", client.node)));
            }
        }
    }
    wrong
}

/// The node says what is so, and nothing else where it is asked later than a second after it was quiet.
fn is_fresh(lab: &Lab, client: &TaskJson, services: &[Service], truth: &Truth, what: &str) {
    let since = Instant::now();
    loop {
        let wrong = wrong(lab, client, services, truth, since);
        let stale: Vec<&(Duration, String)> = wrong.iter().filter(|(asked, _)| *asked > FRESH).collect();
        assert!(stale.is_empty(), "{what}: {stale:#?}");
        if wrong.is_empty() {
            break;
        }
    }
}

/// Scales, replaces or crashes a service; whether it is to be deployed.
fn change(lab: &Lab, service: &mut Service, tasks: &[TaskJson], rng: &mut StdRng) -> bool {
    let runs = |task: &&TaskJson| (task.state, task.desired_state) == (TaskState::Running, TaskState::Running);
    let running: Vec<&TaskJson> = tasks.iter().filter(runs).filter(|task| task.service == service.name).collect();
    service.over.clear();
    match rng.random_range(0..3) {
        0 => service.replicas = rng.random_range(1..=REPLICAS_MAX),
        1 => {
            service.generation += 1;
            service.over = running.iter().map(|task| task.id.clone()).collect();
        }
        _ => {
            let victim = running[rng.random_range(0..running.len())];
            // Its answer is that the connection ends.
            drop(lab.exec(victim, &["/probe", "get", "http://127.0.0.1:8080/crash", "--count", "1"]));
            service.over.insert(victim.id.clone());
            return false;
        }
    }
    true
}

#[test]
fn a_second_after_any_changes_no_answer_is_stale() {
    let seed = number("RCLUSTER_SEED").unwrap_or_else(rand::random);
    let mut rng = StdRng::seed_from_u64(seed);
    let turn = Turn::new("stale", 1, 2);
    let lab = turn.lab();
    let mut services: Vec<Service> = (0..SERVICES).map(Service::new).collect();
    lab.deploy(&everywhere("lab", "client")).unwrap();
    let clients = lab.wait_running("client", 2, QUIET).unwrap();
    deploy(lab, services.iter());
    quiet(lab, &services, "at the beginning");
    let rounds = number("RCLUSTER_CHANGES").unwrap_or(CHANGES).div_ceil(u64::try_from(SERVICES).unwrap());
    for round in 0..rounds {
        let what = format!("round {round} of RCLUSTER_SEED={seed}");
        let tasks = lab.all_tasks().unwrap();
        let changed: Vec<bool> = services.iter_mut().map(|service| change(lab, service, &tasks, &mut rng)).collect();
        deploy(lab, services.iter().zip(changed).filter(|(_, deploys)| *deploys).map(|(service, _)| service));
        let truth = quiet(lab, &services, &what);
        let (services, truth, what) = (&services, &truth, &what);
        thread::scope(|scope| {
            for client in &clients {
                scope.spawn(move || is_fresh(lab, client, services, truth, what));
            }
        });
    }
    turn.finish();
}

#[test]
fn while_managers_and_agents_are_gone_nodes_forget_nothing() {
    let turn = Turn::new("frozen", 1, 2);
    let lab = turn.lab();
    let services: Vec<Service> = (0..4).map(Service::new).collect();
    lab.deploy(&everywhere("lab", "client")).unwrap();
    let clients = lab.wait_running("client", 2, QUIET).unwrap();
    deploy(lab, services.iter());
    let truth = quiet(lab, &services, "at the beginning");
    clients.iter().for_each(|client| is_fresh(lab, client, &services, &truth, "at the beginning"));
    let before = lab.fingerprint("client").unwrap();
    let agents: Vec<String> = clients.iter().map(|client| format!("{}/agent", client.node)).collect();
    let agents: Vec<&str> = agents.iter().map(String::as_str).collect();
    for gone in [["m1"].as_slice(), agents.as_slice()] {
        lab.host("kill", gone).unwrap();
        let since = Instant::now();
        while since.elapsed() < SILENCE {
            for client in &clients {
                let wrong = wrong(lab, client, &services, &truth, since);
                assert!(wrong.is_empty(), "{gone:?} are gone: {wrong:#?}");
            }
        }
    }
    lab.host("start", &[["m1"].as_slice(), agents.as_slice()].concat()).unwrap();
    lab.wait_leader("", QUIET).unwrap();
    assert_eq!(quiet(lab, &services, "at the end"), truth);
    assert_eq!(lab.fingerprint("client").unwrap(), before);
    turn.finish();
}
