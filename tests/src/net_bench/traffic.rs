//! What containers get through to each other, what comes to them from outside, and how fast their names are answered: on the bare wire, over
//! ours and over Docker's, in turns.
//!
//! ```text
//!   n1: client ──► n2: sink     m1: eye ──► m2: sink (Docker)     host 1 ──► host 2: sink (bare)
//!
//!   outside ──► n2:9000 ──► door on n2      outside ──► m2:9000 ──► door on m2 (Docker)
//!           ──► n1:9002 ──► side-door on n2         ──► m1:9000 ──► door on m2
//!           ──► n2:9001, of the host itself
//! ```
//!
//! A stream is sent on one processor and swallowed on another. A byte there and back, and connections, stay on one: what is measured is then
//! the path's own work, and not how soon the other processor wakes up.
//!
//! What goes by a service's address has a client of its own. The sink closes first and keeps the connection in TIME_WAIT for 60 s; a SYN from the
//! same address and port is judged there by its TCP timestamp, whose offset the client's kernel derives from both addresses. Of one client those
//! of one way look old beside those of the other: each is answered by an ACK, reset by the client, and sent again after two jiffies.
//! So it is with one client by two nodes, whose sinks therefore are two; Docker's sees the node that a connection came to, not the client.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rcluster_api::rest::TaskJson;
use serde_json::Value;

use super::eyes::processes_in;
use super::places::{Bare, BarePod, HOST_SINK_PORT, Inside, Outside, Place, SIDE_PORT, SINK_PORT, host_sink};
use super::swarm::{self, HOSTS, InEye, Swarm};
use super::table::{Better, Figure, Sample, Table};
use super::{DOCKER, DOCKER_VIP, OURS, OURS_VIP, Options};
use crate::lab::{Lab, wait_for};
use crate::managers::DEADLINE;
use crate::processes::processor_time;
use crate::progress;

const VETH: &str = "plain veth";
const VXLAN: &str = "bare VXLAN";
/// What a pod's veth and one more route take, without rules.
const ROUTED: &str = "bare pods, VXLAN";
/// So many containers ask at once, where one alone is held back.
const ASKERS: usize = 4;
const OURS_ASKERS: &str = "ours, 4 containers at once";
/// From outside, to a node's address.
const HOST_ITSELF: &str = "a host's own socket";
const OURS_HOME: &str = "ours, at the task's node";
const OURS_AWAY: &str = "ours, at another node";
const DOCKER_HOME: &str = "Docker 20.10, at the task's node";
const DOCKER_AWAY: &str = "Docker 20.10, at another node";

const THROUGHPUT: Figure = Figure {
    what: "TCP throughput, one stream",
    unit: "Mbit/s",
    better: Better::More,
    goal: "0.95 of bare VXLAN; Docker's",
    of: &[(VXLAN, VETH), (ROUTED, VXLAN), (OURS, VXLAN), (OURS_VIP, VXLAN), (DOCKER, VXLAN), (DOCKER_VIP, VXLAN)],
};
const LATENCY: Figure = Figure {
    what: "a byte there and back",
    unit: "µs",
    better: Better::Less,
    goal: "1.5 of plain veth with VIP",
    of: &[(VXLAN, VETH), (ROUTED, VETH), (OURS, VETH), (OURS_VIP, VETH), (DOCKER, VETH), (DOCKER_VIP, VETH)],
};
const CONNECTIONS: Figure = Figure {
    what: "connections, 1 service",
    unit: "/s",
    better: Better::More,
    goal: "VIP: 0.85 of direct",
    of: &[(ROUTED, VXLAN), (OURS, VXLAN), (OURS_VIP, OURS), (DOCKER, VXLAN), (DOCKER_VIP, DOCKER)],
};
const CONNECTIONS_MANY: Figure =
    Figure { what: "connections, many services", unit: "/s", better: Better::More, goal: "as with 1", of: &[(OURS_VIP, OURS)] };
const PUBLISHED_LATENCY: Figure =
    Figure { what: "a byte there and back by a published port", unit: "µs", better: Better::Less, goal: "Docker's", of: &BESIDE_HOST };
const PUBLISHED_CONNECTIONS: Figure =
    Figure { what: "connections by a published port", unit: "/s", better: Better::More, goal: "0.8 of the host's own", of: &BESIDE_HOST };
const BESIDE_HOST: [(&str, &str); 4] =
    [(OURS_HOME, HOST_ITSELF), (OURS_AWAY, HOST_ITSELF), (DOCKER_HOME, HOST_ITSELF), (DOCKER_AWAY, HOST_ITSELF)];
const QUESTIONS: Figure = Figure {
    what: "DNS questions answered",
    unit: "/s",
    better: Better::More,
    goal: "3 times Docker's",
    of: &[(OURS, DOCKER), (OURS_ASKERS, DOCKER)],
};
const ANSWER_TIME: Figure = Figure {
    what: "DNS answer, 16 on their way",
    unit: "µs",
    better: Better::Less,
    goal: "",
    of: &[(OURS, DOCKER), (OURS_ASKERS, DOCKER)],
};
const QUESTION_COST: Figure = Figure {
    what: "DNS: the daemon's processor time of a question",
    unit: "µs",
    better: Better::Less,
    goal: "5 µs",
    of: &[(OURS, DOCKER), (OURS_ASKERS, DOCKER)],
};

/// A place from which a sink is reached in some way.
struct Lane<'a> {
    who: &'static str,
    place: &'a dyn Place,
    target: String,
}

/// Measures everything of this kind.
pub fn run(options: &Options, swarm: Result<&Swarm, &str>, table: &mut Table) -> Result<()> {
    let cpus = thread::available_parallelism().context("count the processors")?.get();
    let sink_cpu = cpus - 1;
    let bare = Bare::make(sink_cpu)?;
    let bare_pod = BarePod(&bare);
    let lab = Lab::up(&format!("net-{}", std::process::id()), 1, 3)?;
    lab.deploy(&manifest(sink_cpu))?;
    let clients = lab.wait_running("client", ASKERS, DEADLINE)?;
    let direct = lab.wait_running("sink", 1, DEADLINE)?[0].networks[0].ip.clone();
    let vip = lab.service("sink")?.vips.first().context("the sink has no address of its own")?.ip.clone();
    let [ours, ours_by_vip] = [0, 1].map(|client| Inside { lab: &lab, task: &clients[client] });
    let theirs = swarm.ok().map(|swarm| docker_sink(swarm, sink_cpu)).transpose()?;
    let at = |address: &str| format!("{address}:{SINK_PORT}");
    let mut lanes = vec![
        Lane { who: VETH, place: &bare, target: Bare::by_veth() },
        Lane { who: VXLAN, place: &bare, target: Bare::by_vxlan() },
        Lane { who: ROUTED, place: &bare_pod, target: BarePod::sink() },
        Lane { who: OURS, place: &ours, target: at(&direct) },
        Lane { who: OURS_VIP, place: &ours_by_vip, target: at(&vip) },
    ];
    if let Some(theirs) = &theirs {
        lanes.push(Lane { who: DOCKER, place: &theirs.eye, target: at(&theirs.direct) });
        if let Some(eye) = &theirs.eye_by_vip {
            lanes.push(Lane { who: DOCKER_VIP, place: eye, target: at("sink") });
        }
    }
    for lane in &lanes {
        reached(lane)?;
    }
    let outside = Outside { lab: &lab };
    let own_sink = host_sink(&lab, "n2", sink_cpu)?;
    let doors = doors(&outside, theirs.as_ref(), table)?;
    let mut lost = 0.0;
    let millis = options.millis.to_string();
    let (near, far) = ("0".to_owned(), sink_cpu.to_string());
    for round in 0..options.rounds {
        progress(&format!("traffic, round {} of {}", round + 1, options.rounds));
        for index in 0..lanes.len() {
            // Nobody is always the first.
            let Lane { who, place, target } = &lanes[(index + round) % lanes.len()];
            let said = place.probe(&["load", target, "--millis", &millis, "--cpu", &near])?;
            table.add(THROUGHPUT, who, Sample::rate(number(&said, "mbit_per_second")?));
            let said = place.probe(&["rr", target, "--millis", &millis, "--cpu", &far])?;
            table.add(LATENCY, who, times(&said)?);
            if *who != VETH {
                table.add(CONNECTIONS, who, connections(*place, target, &millis, &far)?);
            }
        }
        for index in 0..doors.len() {
            lost += by_port(&doors[(index + round) % doors.len()], &millis, &far, table)?;
        }
        ask_names(options, &lab, &clients, theirs.as_ref(), table)?;
    }
    if lost > 0.0 {
        table.note(&format!("{lost} of Docker's connections by a published port failed; its rate is of the others"));
    }
    drop(own_sink);
    if let Err(why) = swarm {
        for figure in [THROUGHPUT, LATENCY, CONNECTIONS, PUBLISHED_LATENCY, PUBLISHED_CONNECTIONS, QUESTIONS, ANSWER_TIME, QUESTION_COST] {
            table.absent(figure, DOCKER, why);
        }
    }
    if let Err(why) = swarm.and_then(Swarm::vips) {
        for figure in [THROUGHPUT, LATENCY, CONNECTIONS] {
            table.absent(figure, DOCKER_VIP, why);
        }
    }
    many(options, &lab, &lanes, table)?;
    lab.down()
}

fn reached(lane: &Lane<'_>) -> Result<()> {
    let Lane { who, place, target } = lane;
    wait_for(&format!("{who} reaches its sink"), DEADLINE, || place.probe(&["rr", target, "--millis", "1"]).map(Some)).map(drop)
}

/// The ways from outside. Where Docker's is not passable, the table says why.
fn doors<'a>(outside: &'a Outside<'_>, theirs: Option<&'a Theirs<'_>>, table: &mut Table) -> Result<Vec<Lane<'a>>> {
    let nodes = outside.lab.nodes()?;
    let at = |name: &str, port: u16| {
        let node = nodes.iter().find(|node| node.name == name).with_context(|| format!("the lab has no node {name}"))?;
        anyhow::Ok(format!("{}:{port}", node.addr))
    };
    let mut doors = vec![
        Lane { who: HOST_ITSELF, place: outside, target: at("n2", HOST_SINK_PORT)? },
        Lane { who: OURS_HOME, place: outside, target: at("n2", SINK_PORT)? },
        Lane { who: OURS_AWAY, place: outside, target: at("n1", SIDE_PORT)? },
    ];
    for door in &doors {
        reached(door)?;
    }
    let Some(theirs) = theirs else { return Ok(doors) };
    for (who, host) in [(DOCKER_HOME, HOSTS[1]), (DOCKER_AWAY, HOSTS[0])] {
        let door = Lane { who, place: &theirs.outside, target: format!("{}:{SINK_PORT}", swarm::addr(host)) };
        match reached(&door) {
            Ok(()) => doors.push(door),
            Err(error) => {
                for figure in [PUBLISHED_LATENCY, PUBLISHED_CONNECTIONS] {
                    table.absent(figure, who, &format!("{error:#}"));
                }
            }
        }
    }
    Ok(doors)
}

/// What a published port lets through; how many connections were lost, which ours must not.
fn by_port(lane: &Lane<'_>, millis: &str, cpu: &str, table: &mut Table) -> Result<f64> {
    let Lane { who, place, target } = lane;
    let said = place.probe(&["rr", target, "--millis", millis, "--cpu", cpu])?;
    table.add(PUBLISHED_LATENCY, who, times(&said)?);
    let said = place.probe(&["conns", target, "--millis", millis, "--cpu", cpu])?;
    let lost = number(&said, "failed")?;
    anyhow::ensure!(lost == 0.0 || [DOCKER_HOME, DOCKER_AWAY].contains(who), "connections to {target} fail: {said}");
    table.add(PUBLISHED_CONNECTIONS, who, Sample::rate(number(&said, "per_second")?));
    Ok(lost)
}

/// The sinks, two of them behind a published port each, and a client on another node; more of these to ask for names at once.
fn manifest(sink_cpu: usize) -> String {
    let service = |name: &str, replicas: usize, node: &str, ports: &str, args: &str| {
        format!(
            "---\nkind: Service\nname: {name}\nspec:\n  replicas: {replicas}\n  networks: [bench]\n{ports}  \
             placement: {{constraints: [node.name=={node}]}}\n  containers:\n    - image: rcluster/probe:demo\n      args: {args}\n"
        )
    };
    let sink = format!("[sink, --port, \"{SINK_PORT}\", --cpu, \"{sink_cpu}\"]");
    let network = "kind: Network\nname: bench\nspec: {subnet: 10.200.0.0/18}\n";
    let at = |published: u16| format!("  ports: [\"{published}:{SINK_PORT}\"]\n");
    let services = [
        service("sink", 1, "n2", "", &sink),
        service("door", 1, "n2", &at(SINK_PORT), &sink),
        service("side-door", 1, "n2", &at(SIDE_PORT), &sink),
        service("client", ASKERS, "n1", "", "[idle]"),
    ];
    [network, &services.concat()].concat()
}

/// Docker's sink, and who asks it; another one is behind a published port.
struct Theirs<'a> {
    eye: InEye<'a>,
    outside: Outside<'a>,
    /// None where its services are not reached by their addresses.
    eye_by_vip: Option<InEye<'a>>,
    direct: String,
    /// The daemon that answers the eye's questions.
    daemon: u32,
}

fn docker_sink(swarm: &Swarm, sink_cpu: usize) -> Result<Theirs<'_>> {
    let (port, cpu) = (SINK_PORT.to_string(), sink_cpu.to_string());
    let sink = ["sink", "--port", &port, "--cpu", &cpu];
    swarm.service("sink", 1, Some(HOSTS[1]), &sink)?;
    swarm.service_with("door", 1, Some(HOSTS[1]), &["--publish", &format!("published={port},target={port}")], &sink)?;
    let direct = swarm.resolve(HOSTS[0], "tasks.sink")?.into_iter().next().context("Docker's sink has no address")?;
    let daemon = daemon(swarm.lab_name(), HOSTS[0], "dockerd")?;
    let eye_by_vip = swarm.vips().is_ok().then(|| swarm.place_by_vip());
    Ok(Theirs { eye: swarm.place(HOSTS[0]), outside: swarm.outside(), eye_by_vip, direct, daemon })
}

/// The process of a program on a host of a lab.
fn daemon(lab: &str, host: &str, program: &str) -> Result<u32> {
    let found = processes_in(&[&format!("/rcluster-lab-{lab}/{host}/")])?;
    let found = found.into_iter().find(|(_, name)| name == program);
    found.map(|(pid, _)| pid).with_context(|| format!("no {program} runs on {host} of lab {lab}"))
}

fn number(said: &Value, field: &str) -> Result<f64> {
    said[field].as_f64().with_context(|| format!("the probe says no {field}: {said}"))
}

fn times(said: &Value) -> Result<Sample> {
    Ok(Sample { best: number(said, "best_us")?, p50: number(said, "p50_us")?, p99: number(said, "p99_us")? })
}

fn connections(place: &dyn Place, target: &str, millis: &str, cpu: &str) -> Result<Sample> {
    let said = place.probe(&["conns", target, "--millis", millis, "--cpu", cpu])?;
    anyhow::ensure!(number(&said, "failed")? == 0.0, "connections to {target} fail: {said}");
    Ok(Sample::rate(number(&said, "per_second")?))
}

/// Questions for the sink's name: of one of our containers, of several at once, of one of Docker's.
fn ask_names(options: &Options, lab: &Lab, clients: &[TaskJson], theirs: Option<&Theirs<'_>>, table: &mut Table) -> Result<()> {
    let netd = daemon(lab.name(), "n1", "rcluster-netd")?;
    let places: Vec<Inside<'_>> = clients.iter().map(|task| Inside { lab, task }).collect();
    let all: Vec<&(dyn Place + Sync)> = places.iter().map(|place| place as &(dyn Place + Sync)).collect();
    asked(options, OURS, &all[..1], netd, table)?;
    asked(options, OURS_ASKERS, &all, netd, table)?;
    match theirs {
        Some(theirs) => asked(options, DOCKER, &[&theirs.eye], theirs.daemon, table),
        None => Ok(()),
    }
}

fn asked(options: &Options, who: &str, places: &[&(dyn Place + Sync)], daemon: u32, table: &mut Table) -> Result<()> {
    let millis = options.millis.to_string();
    let before = processor_time(daemon)?;
    let said: Vec<Result<Value>> = thread::scope(|scope| {
        let mut askers = Vec::new();
        for place in places {
            let millis = millis.as_str();
            askers.push(scope.spawn(move || place.probe(&["dnsload", "sink", "--millis", millis, "--window", "16"])));
        }
        askers.into_iter().map(|asker| asker.join().expect("it does not panic")).collect()
    });
    let spent: Duration = processor_time(daemon)?.saturating_sub(before);
    let (mut rate, mut questions) = (0.0, 0.0);
    for said in said {
        let said = said?;
        anyhow::ensure!(number(&said, "bad")? == 0.0, "{who} says no to the name of its sink: {said}");
        rate += number(&said, "per_second")?;
        questions += number(&said, "count")? + number(&said, "lost")?;
        table.add(ANSWER_TIME, who, times(&said)?);
    }
    table.add(QUESTIONS, who, Sample::rate(rate));
    table.add(QUESTION_COST, who, Sample::rate(spent.as_secs_f64() * 1e6 / questions));
    Ok(())
}

/// Connections once more, beside many other services on the same network.
fn many(options: &Options, lab: &Lab, lanes: &[Lane<'_>], table: &mut Table) -> Result<()> {
    if options.services == 0 {
        return Ok(());
    }
    progress(&format!("making {} services", options.services));
    let one = |number: usize| {
        format!(
            "kind: Service\nname: s{number}\nspec:\n  networks: [bench]\n  containers:\n    - image: rcluster/probe:demo\n      args: [idle]\n"
        )
    };
    let all: Vec<String> = (0..options.services).map(one).collect();
    if let Err(error) = lab.ctl(&["deploy", "--timeout", "1800s", &lab.write(&all.join("---\n"))?]) {
        let text = format!("{error:#}");
        progress(&text);
        let why = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(&text);
        for who in [OURS, OURS_VIP] {
            table.absent(CONNECTIONS_MANY, who, &format!("{} services are not made: {why}", options.services));
        }
        return Ok(());
    }
    table.note(&format!("many services: {} beside the sink, each with an address of its own and a task", options.services));
    let (millis, cpu) = (options.millis.to_string(), (thread::available_parallelism()?.get() - 1).to_string());
    for round in 0..options.rounds {
        progress(&format!("connections beside many services, round {} of {}", round + 1, options.rounds));
        for Lane { who, place, target } in lanes.iter().filter(|lane| [OURS, OURS_VIP].contains(&lane.who)) {
            table.add(CONNECTIONS_MANY, who, connections(*place, target, &millis, &cpu)?);
        }
    }
    Ok(())
}
