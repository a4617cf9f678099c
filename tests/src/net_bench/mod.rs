//! The network's figures, beside a bare wire and Debian's Docker where they can be compared: `rcluster-bench net`, see docs/benchmarks.md.
//!
//! Everything is measured in labs and by the probe alone, in turns, so that what else the machine does hits all alike. What netd takes for a
//! picture, a pod and its memory is measured at its boundary instead: `netd/tests/netd/figures.rs`.

mod changes;
mod eyes;
mod places;
mod swarm;
mod table;
mod traffic;

use anyhow::Result;
use clap::ValueEnum;

use swarm::Swarm;
use table::Table;

const OURS: &str = "ours";
const OURS_VIP: &str = "ours, by VIP";
const DOCKER: &str = "Docker 20.10";
const DOCKER_VIP: &str = "Docker 20.10, by VIP";

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Throughput, latency, connections, questions, published ports.
    Traffic,
    /// From a change of an endpoint to every node's answers.
    Changes,
    /// Requests during updates.
    Update,
    /// Answers after random changes.
    Stale,
}

/// How much is measured; the defaults are what the table in docs/benchmarks.md is made with.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Section::Traffic, Section::Changes, Section::Update, Section::Stale])]
    pub only: Vec<Section>,
    /// How often each path is measured, in turns.
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// Of each measurement of a path.
    #[arg(long, default_value_t = 2000)]
    pub millis: u64,
    /// Beside how many services connections are measured once more; 0: not at all.
    #[arg(long, default_value_t = 1000)]
    pub services: usize,
    /// Among how many services endpoints change.
    #[arg(long, default_value_t = 100)]
    pub change_services: usize,
    /// Of how many replicas each.
    #[arg(long, default_value_t = 10)]
    pub change_replicas: usize,
    /// How many containers are killed, one after the other.
    #[arg(long, default_value_t = 200)]
    pub samples: usize,
    /// For how long a service is updated under load.
    #[arg(long, default_value_t = 300)]
    pub update_seconds: u64,
    /// How many random changes, at least.
    #[arg(long, default_value_t = 10_000)]
    pub changes: usize,
    /// Of the random changes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leaves Docker out.
    #[arg(long)]
    pub without_docker: bool,
}

/// Measures and prints a table, and a line of JSON for each of its rows.
#[allow(clippy::print_stdout, reason = "the table is the product")]
pub fn run(options: &Options) -> Result<()> {
    anyhow::ensure!(options.rounds > 0, "--rounds: at least one");
    let mut table = Table::default();
    let compared = options.only.iter().any(|section| *section != Section::Stale);
    let why_not = match (options.without_docker, swarm::missing()) {
        _ if !compared => "not asked for".to_owned(),
        (true, _) => "left out".to_owned(),
        (false, Some(missing)) => missing,
        (false, None) => String::new(),
    };
    let swarm = if why_not.is_empty() { Some(Swarm::up()?) } else { None };
    let theirs = || swarm.as_ref().ok_or(why_not.as_str());
    for section in &options.only {
        let done = match section {
            Section::Traffic => traffic::run(options, theirs(), &mut table),
            Section::Changes => changes::run(options, theirs(), &mut table),
            Section::Update => changes::update(options, theirs(), &mut table),
            Section::Stale => changes::stale(options, &mut table),
        };
        // What was measured is told even if this section has failed, or the next one does.
        crate::progress(&format!("so far:\n{}", table.text()));
        done?;
    }
    println!("{}", table.text());
    Ok(())
}
