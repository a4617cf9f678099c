//! `make bench`: what a user waits for, and what the daemons weigh. Prints a table; `docs/benchmarks.md` says how it was taken.
//!
//! Times are of the whole path as a user sees it: from the command to the state that a later `ps` shows. Each is the median of the rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use rcluster_tests::failover_bench::{self, Counts};
use rcluster_tests::lab::{Lab, wait_for};
use rcluster_tests::{leaders_bench, net_bench, progress, pull_bench, state_bench};

/// Figures of Docker Swarm 20.10 on a machine of the same kind, 5 hosts (see docs/benchmarks.md).
const SWARM: [(&str, &str); 6] = [
    ("deploy 20 replicas", "6.1 s"),
    ("scale 20 to 100", "15.2 s"),
    ("crashed container replaced", "5.8 s"),
    ("power cut to all running again", "18.0 s"),
    ("leader killed to write accepted", "10.8 s"),
    ("memory of a host's daemons", "118 + 43 MB"),
];

#[derive(Debug, Parser)]
struct Flags {
    /// How often the whole story is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Pull and unpack an image, beside what others take for it
    Pull {
        /// How often each is measured.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Kill leaders, and have them hand over, under clients that write
    Failover {
        #[arg(long, default_value_t = 100)]
        kills: usize,
        #[arg(long, default_value_t = 30)]
        power_cuts: usize,
        #[arg(long, default_value_t = 30)]
        transfers: usize,
    },
    /// Kill leaders of a lab in which containers run, and count what that did to them
    Leaders {
        #[arg(long, default_value_t = 100)]
        kills: usize,
    },
    /// Weigh managers, idle and with 30,000 tasks, and restart them
    State {
        #[arg(long, default_value_t = 10)]
        restarts: usize,
    },
    /// Measure the network: paths, names, how soon changes are known, updates under load
    Net(net_bench::Options),
}

/// Everything measured, by name, in the order of first measurement.
#[derive(Debug, Default)]
struct Figures {
    order: Vec<(String, String)>,
    values: BTreeMap<String, Vec<f64>>,
}

impl Figures {
    fn add(&mut self, name: &str, unit: &str, value: f64) {
        if !self.values.contains_key(name) {
            self.order.push((name.to_owned(), unit.to_owned()));
        }
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    #[allow(clippy::print_stdout, reason = "the table is the product")]
    fn print(&self, goals: &BTreeMap<&str, &str>) {
        let swarm: BTreeMap<&str, &str> = SWARM.into_iter().collect();
        println!("| what | median | min | max | goal | Swarm 20.10 |\n|---|---|---|---|---|---|");
        for (name, unit) in &self.order {
            let mut values = self.values[name].clone();
            values.sort_by(f64::total_cmp);
            let (least, most, median) = (values[0], values[values.len() - 1], values[values.len() / 2]);
            let goal = goals.get(name.as_str()).copied().unwrap_or("");
            let theirs = swarm.get(name.as_str()).copied().unwrap_or("");
            println!("| {name} | {median:.2} {unit} | {least:.2} | {most:.2} | {goal} | {theirs} |");
        }
    }
}

fn goals() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("lab up 3+3", "5 s"),
        ("deploy 20 replicas", "2 s"),
        ("scale 20 to 100", "6 s"),
        ("crashed container replaced", "0.5 s"),
        ("power cut to all running again", "5 s"),
        ("leader killed to write accepted", "1 s"),
        ("manager RSS, loaded", "40 MB"),
        ("agent RSS, loaded", "30 MB with netd"),
        ("monitor RSS, at rest, largest of 100", "1.5 MB"),
    ])
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    match flags.verb {
        Some(Verb::Pull { rounds }) => return pull_bench::run(rounds),
        Some(Verb::Failover { kills, power_cuts, transfers }) => return failover_bench::run(Counts { kills, power_cuts, transfers }),
        Some(Verb::Leaders { kills }) => return leaders_bench::run(kills),
        Some(Verb::State { restarts }) => return state_bench::run(restarts),
        Some(Verb::Net(options)) => return net_bench::run(&options),
        None => {}
    }
    let mut figures = Figures::default();
    for round in 0..flags.rounds {
        progress(&format!("round {} of {}", round + 1, flags.rounds));
        boot(&mut figures, round)?;
        story(&mut figures, round)?;
    }
    figures.print(&goals());
    Ok(())
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// A lab of three managers and three agents.
fn boot(figures: &mut Figures, round: usize) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::up(&format!("bench-{}-{round}a", std::process::id()), 3, 3)?;
    figures.add("lab up 3+3", "s", seconds(started));
    lab.down()
}

const MANIFEST: &str = "kind: Network
name: bench
---
kind: Service
name: web
spec:
  replicas: 20
  containers:
    - image: rcluster/probe:demo
      args: [serve, --port, \"8080\"]
  networks: [bench]
";

/// The same measures as Swarm's: 3 managers and 5 agents.
fn story(figures: &mut Figures, round: usize) -> Result<()> {
    let lab = Lab::up(&format!("bench-{}-{round}b", std::process::id()), 3, 5)?;
    weigh(&lab, figures, "idle")?;
    let started = Instant::now();
    lab.deploy(MANIFEST)?;
    figures.add("deploy 20 replicas", "s", seconds(started));
    ensure!(lab.running("web")?.len() == 20, "deploy returned before 20 replicas ran");

    let crashing = lab.running("web")?.remove(7);
    let started = Instant::now();
    // The server dies while it answers, so that the request fails.
    drop(lab.exec(&crashing, &["/probe", "get", "http://127.0.0.1:8080/crash", "--count", "1"]));
    wait_for("the crashed container is replaced", Duration::from_secs(20), || {
        let running = lab.running("web")?;
        Ok((running.len() == 20 && running.iter().all(|task| task.id != crashing.id)).then_some(()))
    })?;
    figures.add("crashed container replaced", "s", seconds(started));

    let started = Instant::now();
    lab.ctl(&["scale", "web=100"])?;
    figures.add("scale 20 to 100", "s", seconds(started));
    ensure!(lab.running("web")?.len() == 100, "scale returned before 100 replicas ran");
    weigh(&lab, figures, "loaded")?;
    weigh_monitors(&lab, figures)?;
    lab.ctl(&["scale", "web=20"])?;
    // Those that have ended are kept while their addresses rest.
    wait_for("the rest has ended", Duration::from_secs(30), || {
        Ok((lab.all_tasks()?.iter().filter(|task| !task.state.is_terminal()).count() <= 20).then_some(()))
    })?;

    let started = Instant::now();
    lab.host("kill", &["n5"])?;
    wait_for("all run again", Duration::from_secs(60), || {
        let running = lab.running("web")?;
        Ok((running.len() == 20 && running.iter().all(|task| task.node != "n5")).then_some(()))
    })?;
    figures.add("power cut to all running again", "s", seconds(started));

    let leader = lab.cluster()?.leader;
    let started = Instant::now();
    lab.host("kill", &[&leader])?;
    wait_for("a write is accepted", Duration::from_secs(30), || lab.ctl(&["node", "label", "n1", &format!("round=r{round}")]).map(Some))?;
    figures.add("leader killed to write accepted", "s", seconds(started));
    lab.down()
}

/// The largest process of each program, when the lab has just become so.
fn weigh(lab: &Lab, figures: &mut Figures, when: &str) -> Result<()> {
    let sizes = sizes(lab)?;
    let names = [("rcluster-manage", "manager RSS"), ("rcluster-agent", "agent RSS"), ("rcluster-netd", "netd RSS")];
    for (program, name) in names {
        figures.add(&format!("{name}, {when}"), "MiB", largest(&sizes, program)?);
    }
    Ok(())
}

/// The largest monitor, at once and once none has changed for two seconds: a monitor that has nothing to do gives memory back.
fn weigh_monitors(lab: &Lab, figures: &mut Figures) -> Result<()> {
    const AT_REST: Duration = Duration::from_secs(2);
    let mut seen = sizes(lab)?;
    figures.add("monitor RSS, just started, largest of 100", "MiB", largest(&seen, MONITOR)?);
    let mut since = Instant::now();
    wait_for("the monitors are at rest", Duration::from_secs(30), || {
        let now = sizes(lab)?;
        if now.get(MONITOR) != seen.get(MONITOR) {
            since = Instant::now();
        }
        seen = now;
        Ok((since.elapsed() >= AT_REST).then_some(()))
    })?;
    figures.add("monitor RSS, at rest, largest of 100", "MiB", largest(&seen, MONITOR)?);
    Ok(())
}

/// The kernel's name for a monitor: 15 bytes of its program's.
const MONITOR: &str = "rcluster-runtim";

/// Resident memory of the lab's processes in MiB, by program.
type Sizes = BTreeMap<String, BTreeMap<String, f64>>;

fn largest(sizes: &Sizes, program: &str) -> Result<f64> {
    let of_program = sizes.get(program).and_then(|sizes| sizes.values().copied().max_by(f64::total_cmp));
    of_program.with_context(|| format!("no {program} runs in the lab; there are {:?}", sizes.keys()))
}

/// By program and process id.
fn sizes(lab: &Lab) -> Result<Sizes> {
    let mut sizes = Sizes::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let dir = entry.path();
        // A process may end while it is being looked at.
        let (Ok(cgroup), Ok(status)) = (std::fs::read_to_string(dir.join("cgroup")), std::fs::read_to_string(dir.join("status"))) else {
            continue;
        };
        if !cgroup.contains(&format!("/rcluster-lab-{}/", lab.name())) {
            continue;
        }
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned();
        let kib: f64 = field("VmRSS:").trim_end_matches(" kB").parse().unwrap_or_default();
        sizes.entry(field("Name:")).or_default().insert(entry.file_name().to_string_lossy().into_owned(), kib / 1024.0);
    }
    Ok(sizes)
}
