//! How soon every node's resolver knows of what has changed, whether anything stale is left, and whether an update loses requests.
//!
//! An eye in a container of each node asks its resolver every 5 ms; a time is that of the answer in which the change is seen, so that it is
//! up to 5 ms too long. All hosts of a lab have one clock. Containers are killed from outside, by SIGKILL to their first process.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_api::rest::TaskJson;
use rcluster_api::task::TaskState;

use super::eyes::{Eye, PATIENCE, first_process, now_ms};
use super::swarm::Swarm;
use super::table::{Better, Figure, Sample, Table};
use super::{DOCKER, OURS, Options};
use crate::lab::{Lab, Watched, wait_for};
use crate::managers::DEADLINE;
use crate::progress;

const fn time(what: &'static str, goal: &'static str) -> Figure {
    Figure { what, unit: "ms", better: Better::Less, goal, of: &[(OURS, DOCKER)] }
}

const OUT_HERE: Figure = time("container killed → out of its node's DNS", "250 ms");
const OUT_EVERYWHERE: Figure = time("container killed → out of every node's DNS", "500 ms");
const IN_EVERYWHERE: Figure = time("container started → in every node's DNS", "p99 250 ms");
const SCALED: Figure = time("`scale` begins → every node's DNS (start of the command included)", "p99 250 ms");

const RUNNING: TaskState = TaskState::Running;
/// A change is to be known everywhere by then.
const KNOWN: Duration = Duration::from_secs(1);
/// Services of [`stale`], and the most replicas of one.
const CHANGED: usize = 20;
const REPLICAS_MAX: usize = 4;
/// Docker starts a task anew after 5 s.
const SAMPLES_DOCKER: usize = 10;
/// What a line of a client says, beside when and why, of a request that had no answer.
const FAILED: &str = "\"ok\":false";

/// Changes of endpoints on five nodes.
pub fn run(options: &Options, swarm: Result<&Swarm, &str>, table: &mut Table) -> Result<()> {
    let Options { change_services: services, change_replicas: replicas, samples, .. } = *options;
    ensure!(services > 0 && replicas > 1, "--change-services: at least one; --change-replicas: at least two");
    let lab = Lab::up(&format!("netc-{}", std::process::id()), 3, 5)?;
    progress(&format!("making {services} services of {replicas}"));
    let all: Vec<String> = (0..services).map(|number| service(&format!("s{number}"), replicas, "")).collect();
    let manifest = [network(), eyes(), all.concat()].concat();
    lab.ctl(&["deploy", "--timeout", "1800s", &lab.write(&manifest)?])?;
    let mut watchers = Eye::open_all(&lab, "eye")?;
    ensure!(watchers.len() == 5, "{} eyes are open on 5 nodes", watchers.len());
    let (mut here, mut everywhere, mut entered, mut scaled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..samples {
        let name = format!("s{}", turn % services);
        let seen = killed(&lab, &mut watchers, &name, turn)?;
        here.push(seen.out_here);
        everywhere.push(seen.out_everywhere);
        entered.push(seen.entered);
        if turn % 4 == 0 {
            scaled.push(scale(&lab, &mut watchers, &name, replicas)?);
        }
        progress(&format!("change {} of {samples}: out after {:.0} ms, in after {:.0} ms", turn + 1, seen.out_everywhere, seen.entered));
    }
    for (figure, times) in [(OUT_HERE, here), (OUT_EVERYWHERE, everywhere), (IN_EVERYWHERE, entered), (SCALED, scaled)] {
        if let Some(sample) = Sample::times(times) {
            table.add(figure, OURS, sample);
        }
    }
    table.note(&format!("changes: {services} services of {replicas} on 5 nodes, {samples} containers killed, one after the other"));
    drop(watchers);
    lab.down()?;
    match swarm {
        Ok(swarm) => theirs(swarm, table),
        Err(why) => {
            table.absent(OUT_HERE, DOCKER, why);
            table.absent(OUT_EVERYWHERE, DOCKER, why);
            Ok(())
        }
    }
}

fn network() -> String {
    "kind: Network\nname: bench\nspec: {subnet: 10.200.0.0/18}\n".to_owned()
}

/// A container on each node from which is looked.
fn eyes() -> String {
    let container = "containers:\n    - image: rcluster/probe:demo\n      args: [idle]\n";
    format!("---\nkind: Service\nname: eye\nspec:\n  mode: global\n  networks: [bench]\n  {container}")
}

/// The demo's server; `more` is put before its containers' `image`.
fn service(name: &str, replicas: usize, more: &str) -> String {
    format!(
        "---\nkind: Service\nname: {name}\nspec:\n  replicas: {replicas}\n  networks: [bench]\n  \
         containers:\n    - {more}image: rcluster/probe:demo\n      args: [serve, --port, \"8080\"]\n"
    )
}

/// What a container's end, and the beginning of the next one, took to be known; ms.
struct Known {
    out_here: f64,
    out_everywhere: f64,
    entered: f64,
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds")]
fn since(at_ms: u64, began_ms: u64) -> f64 {
    at_ms.saturating_sub(began_ms) as f64
}

/// The tasks of a service that run.
fn tasks(lab: &Lab, service: &str) -> Result<Vec<TaskJson>> {
    let mut tasks: Vec<TaskJson> = lab.json(&["ps", service])?;
    tasks.retain(|task| task.state == RUNNING);
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tasks)
}

fn killed(lab: &Lab, eyes: &mut [Eye], service: &str, turn: usize) -> Result<Known> {
    let before = wait_for(&format!("{service} runs"), DEADLINE, || Ok(Some(tasks(lab, service)?).filter(|tasks| !tasks.is_empty())))?;
    let victim = &before[turn % before.len()];
    let old: BTreeSet<&str> = before.iter().map(|task| task.networks[0].ip.as_str()).collect();
    let (address, name) = (victim.networks[0].ip.as_str(), format!("tasks.{service}"));
    let process = first_process(&victim.id)?;
    watch_whole(eyes, &name, &old)?;
    let began = now_ms()?;
    kill(process, Signal::SIGKILL).context("kill a container")?;
    let mut left = Vec::new();
    for eye in eyes.iter_mut() {
        left.push((eye.node.clone(), eye.first(&name, |seen| !seen.has(address))?.at_ms));
    }
    let mut came = Vec::new();
    for eye in eyes.iter_mut() {
        came.push(eye.first(&name, |seen| seen.addresses.iter().any(|address| !old.contains(address.as_str())))?);
        eye.rest()?;
    }
    let new = came[0].addresses.iter().find(|address| !old.contains(address.as_str())).context("just seen")?.clone();
    let started = wait_for(&format!("the task with {new} is told of"), DEADLINE, || {
        let task = tasks(lab, service)?.into_iter().find(|task| task.networks[0].ip == new);
        Ok(task.and_then(|task| task.containers.first().map(|container| container.started_at_ms)))
    })?;
    let last = |times: &mut dyn Iterator<Item = u64>| times.max().context("there are eyes");
    let out_here = left.iter().find(|(node, _)| *node == victim.node).map(|(_, at_ms)| *at_ms).context("each node has an eye")?;
    Ok(Known {
        out_here: since(out_here, began),
        out_everywhere: since(last(&mut left.iter().map(|(_, at_ms)| *at_ms))?, began),
        entered: since(last(&mut came.iter().map(|seen| seen.at_ms))?, started),
    })
}

/// Has all eyes look at a name, and waits until each sees these addresses and no others.
fn watch_whole(eyes: &mut [Eye], name: &str, whole: &BTreeSet<&str>) -> Result<()> {
    for eye in eyes.iter_mut() {
        eye.watch(name)?;
    }
    for eye in eyes.iter_mut() {
        let is_whole = |addresses: &[String]| addresses.iter().map(String::as_str).collect::<BTreeSet<_>>() == *whole;
        eye.first(name, |seen| is_whole(&seen.addresses)).with_context(|| format!("{name} is {whole:?}"))?;
    }
    // From here on.
    for eye in eyes.iter_mut() {
        eye.watch(name)?;
    }
    Ok(())
}

/// One replica less, and again as many; how long the first took to be known everywhere.
fn scale(lab: &Lab, eyes: &mut [Eye], service: &str, replicas: usize) -> Result<f64> {
    let before = wait_for(&format!("{replicas} tasks of {service} run"), DEADLINE, || {
        Ok(Some(tasks(lab, service)?).filter(|tasks| tasks.len() == replicas))
    })?;
    let old: BTreeSet<&str> = before.iter().map(|task| task.networks[0].ip.as_str()).collect();
    let name = format!("tasks.{service}");
    watch_whole(eyes, &name, &old)?;
    let began = now_ms()?;
    let mut command = lab.command(&["scale", "--detach", &format!("{service}={}", replicas - 1)]);
    let mut command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("run rclusterctl")?;
    let mut last = began;
    for eye in eyes.iter_mut() {
        last = last.max(eye.first(&name, |seen| seen.addresses.len() < replicas)?.at_ms);
        eye.rest()?;
    }
    ensure!(command.wait().context("wait for rclusterctl")?.success(), "rclusterctl scale {service} fails");
    lab.ctl(&["scale", &format!("{service}={replicas}")])?;
    Ok(since(last, began))
}

/// The same of Docker's swarm; that names of new tasks are known is not asked, as it waits 5 s before it starts them.
fn theirs(swarm: &Swarm, table: &mut Table) -> Result<()> {
    swarm.service("crash", 3, None, &["serve", "--port", "8080"])?;
    let mut eyes = swarm.eyes()?;
    let (mut here, mut everywhere) = (Vec::new(), Vec::new());
    let name = "tasks.crash";
    for turn in 0..SAMPLES_DOCKER {
        progress(&format!("Docker: change {} of {SAMPLES_DOCKER}", turn + 1));
        for eye in &mut eyes {
            wait_for("all three tasks are in DNS", PATIENCE, || Ok((eye.ask(name)?.len() == 3).then_some(())))?;
            eye.watch(name)?;
        }
        let (host, id) = swarm.container("crash", turn)?;
        let address = swarm.address(host, &id)?;
        let process = first_process(&id)?;
        let began = now_ms()?;
        kill(process, Signal::SIGKILL).context("kill a container")?;
        let mut last = began;
        for eye in &mut eyes {
            let at_ms = eye.first(name, |seen| !seen.has(&address))?.at_ms;
            if eye.node == host {
                here.push(since(at_ms, began));
            }
            last = last.max(at_ms);
            eye.rest()?;
        }
        everywhere.push(since(last, began));
    }
    for (figure, times) in [(OUT_HERE, here), (OUT_EVERYWHERE, everywhere)] {
        if let Some(sample) = Sample::times(times) {
            table.add(figure, DOCKER, sample);
        }
    }
    table.note(&format!("Docker: 3 replicas on 3 nodes, {SAMPLES_DOCKER} containers killed"));
    Ok(())
}

/// A service with an address of its own is replaced again and again while a client on each node asks all the time.
pub fn update(options: &Options, swarm: Result<&Swarm, &str>, table: &mut Table) -> Result<()> {
    let lab = Lab::up(&format!("netu-{}", std::process::id()), 3, 3)?;
    let server = |generation: u32| {
        let check = "healthcheck: {http: {port: 8080, path: /health}, interval: 200ms}";
        service("web", 4, &format!("{check}\n      env: {{GENERATION: \"{generation}\"}}\n      "))
    };
    lab.deploy(&[network(), eyes(), server(1)].concat())?;
    let clients = lab.wait_running("eye", 3, DEADLINE)?;
    for client in &clients {
        wait_for("each node knows the server's address", DEADLINE, || {
            lab.exec(client, &["/probe", "get", "http://web:8080/", "--count", "1"]).map(Some)
        })?;
    }
    let ask = ["/probe", "watch", "http://web:8080/", "--interval-ms", "5", "--timeout-ms", "2000"];
    let watching: Vec<_> = clients.iter().map(|client| lab.background(client, &ask)).collect::<Result<_>>()?;
    let (began, mut generation) = (Instant::now(), 1);
    while began.elapsed() < Duration::from_secs(options.update_seconds) {
        generation += 1;
        lab.deploy(&server(generation))?;
        progress(&format!("update {}, {} of {} s", generation - 1, began.elapsed().as_secs(), options.update_seconds));
    }
    let (mut requests, mut failures) = (0, 0);
    for watched in watching {
        let (watched, said): (Watched, _) = watched.finish_in_full()?;
        requests += watched.requests;
        failures += watched.failures;
        said.iter().filter(|line| line.contains(FAILED)).for_each(|line| progress(line));
    }
    let of = format!("{requests} requests in {} s, {} updates of 4 replicas", began.elapsed().as_secs(), generation - 1);
    table.count("failed requests during updates, ours", failures, &of, "0");
    lab.down()?;
    match swarm {
        Ok(swarm) => {
            swarm.service("web", 4, None, &["serve", "--port", "8080"])?;
            let time = Duration::from_secs(options.update_seconds.min(60));
            let Watched { requests, failures, .. } = swarm.update_under_load("web", time)?;
            let way = match swarm.vips() {
                Ok(()) => String::new(),
                Err(why) => format!(", by the addresses of its tasks (--endpoint-mode dnsrr): {why}"),
            };
            let of = format!("{requests} requests in {} s, from one host{way}", time.as_secs());
            table.count("failed requests during updates, Docker 20.10", failures, &of, "");
        }
        Err(why) => table.note(&format!("updates of Docker's services: {why}")),
    }
    Ok(())
}

/// Random changes, in waves; within a second after each wave every node's answers are to be the tasks that run.
pub fn stale(options: &Options, table: &mut Table) -> Result<()> {
    let lab = Lab::up(&format!("nets-{}", std::process::id()), 1, 3)?;
    let mut chance = StdRng::seed_from_u64(options.seed);
    let mut wanted = vec![(1_usize, 1_u32); CHANGED];
    lab.deploy(&[network(), eyes(), manifest(&wanted)].concat())?;
    let mut watchers = Eye::open_all(&lab, "eye")?;
    let (mut changes, mut answers, mut stale) = (0, 0_u64, 0);
    while changes < options.changes {
        changes += wave(&lab, &mut wanted, &mut chance)?;
        let (asked, wrong) = compare(&lab, &mut watchers)?;
        answers += asked;
        stale += wrong;
        progress(&format!("{changes} of {} changes, {answers} answers, {stale} stale (--seed {})", options.changes, options.seed));
    }
    drop(watchers);
    table.count("stale answers 1 s after random changes", stale, &format!("{answers} answers after {changes} changes"), "0");
    lab.down()
}

fn manifest(wanted: &[(usize, u32)]) -> String {
    let one = |(number, (replicas, generation)): (usize, &(usize, u32))| {
        service(&format!("c{number}"), *replicas, &format!("env: {{GENERATION: \"{generation}\"}}\n      "))
    };
    wanted.iter().enumerate().map(one).collect()
}

/// Changes replicas or templates of some services, then kills some containers; how many changes that were. Returns when the managers know of all.
fn wave(lab: &Lab, wanted: &mut [(usize, u32)], chance: &mut StdRng) -> Result<usize> {
    let mut changes = 0;
    for (replicas, generation) in wanted.iter_mut() {
        match chance.random_range(0..3) {
            0 => *generation += 1,
            1 => {
                let other = chance.random_range(0..REPLICAS_MAX);
                // Any number but the one that it is.
                *replicas = if other < *replicas { other } else { other + 1 };
            }
            _ => continue,
        }
        changes += 1;
    }
    lab.ctl(&["deploy", "--timeout", "300s", &lab.write(&manifest(wanted))?])?;
    let running: Vec<TaskJson> = lab.json(&["ps"])?;
    let mut killed = BTreeSet::new();
    for task in running.iter().filter(|task| task.service != "eye") {
        // One that has ended meanwhile is not killed.
        if chance.random_bool(0.1)
            && let Ok(process) = first_process(&task.id)
            && kill(process, Signal::SIGKILL).is_ok()
        {
            killed.insert(task.id.as_str());
        }
    }
    wait_for("the managers know who was killed", DEADLINE, || {
        let is_gone = |task: &TaskJson| task.state != RUNNING || !killed.contains(task.id.as_str());
        Ok(lab.all_tasks()?.iter().all(is_gone).then_some(()))
    })?;
    Ok(changes + killed.len())
}

/// The addresses of each service's tasks that run and are to run.
fn truth(lab: &Lab) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let all: Vec<TaskJson> = lab.json(&["ps"])?;
    let mut truth: BTreeMap<String, BTreeSet<String>> = (0..CHANGED).map(|number| (format!("c{number}"), BTreeSet::new())).collect();
    for task in all.iter().filter(|task| task.state == RUNNING && task.desired_state == RUNNING) {
        if let Some(addresses) = truth.get_mut(&task.service) {
            addresses.insert(task.networks[0].ip.clone());
        }
    }
    Ok(truth)
}

/// How many answers were looked at, and how many were not what is true by the time at which it is to be known. A truth that changes while it
/// is being looked at is none.
fn compare(lab: &Lab, eyes: &mut [Eye]) -> Result<(u64, u64)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let before = truth(lab)?;
        let known = Instant::now() + KNOWN;
        let (mut answers, mut stale) = (0, Vec::new());
        for eye in eyes.iter_mut() {
            for (service, addresses) in &before {
                let told = told_by(eye, &format!("tasks.{service}"), addresses, known)?;
                answers += 1;
                if told != *addresses {
                    stale.push(format!("stale on {}: tasks.{service} is {told:?}, and {addresses:?} run", eye.node));
                }
            }
        }
        if truth(lab)? == before {
            stale.iter().for_each(|line| progress(line));
            return Ok((answers, u64::try_from(stale.len())?));
        }
        ensure!(Instant::now() < deadline, "the tasks do not come to rest");
    }
}

/// What a name stands for at an eye's node once it is what is true; else the first answer to what was asked after `known`.
fn told_by(eye: &mut Eye, name: &str, addresses: &BTreeSet<String>, known: Instant) -> Result<BTreeSet<String>> {
    loop {
        let is_late = Instant::now() >= known;
        let told: BTreeSet<String> = eye.ask(name)?.into_iter().collect();
        if is_late || told == *addresses {
            return Ok(told);
        }
    }
}
