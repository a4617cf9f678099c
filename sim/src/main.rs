//! `rcluster-sim`: runs seeds, one or as many as a time allows.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rcluster_sim::{Plan, run, run_cluster};

/// Simulates the managers' store under a seed.
#[derive(Debug, Parser)]
#[command(name = "rcluster-sim", version)]
struct Args {
    /// The first seed; without it, one by chance.
    #[arg(long)]
    seed: Option<u64>,
    /// With brains, agents and users around the stores.
    #[arg(long)]
    cluster: bool,
    /// Prints the plan and every event.
    #[arg(long)]
    trace: bool,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Goes on with further seeds for so many hours of this machine's time.
    #[arg(long)]
    hours: Option<f64>,
}

#[expect(clippy::print_stdout, reason = "what it says is its output")]
fn main() -> ExitCode {
    let Args { seed, cluster, trace, count, hours } = Args::parse();
    let first = seed.unwrap_or_else(rand::random);
    let began = Instant::now();
    let lasts = hours.map(|hours| Duration::from_secs_f64(hours.max(0.0) * 3600.0));
    let (mut seeds, mut failed, mut simulated) = (0_u64, 0_u64, Duration::ZERO);
    while lasts.map_or(seeds < count, |lasts| began.elapsed() < lasts) {
        let seed = first.wrapping_add(seeds);
        seeds += 1;
        if trace {
            println!("{:#?}", if cluster { Plan::draw_cluster(seed) } else { Plan::draw(seed) });
        }
        match if cluster { run_cluster(seed, trace) } else { run(seed, trace) } {
            Ok(outcome) => {
                simulated += outcome.simulated;
                if lasts.is_none() {
                    println!("seed {seed}: {outcome}");
                }
            }
            Err(violation) => {
                failed += 1;
                println!(
                    "seed {seed} FAILED: {violation}\n  replay: rcluster-sim{} --seed {seed} --trace",
                    if cluster { " --cluster" } else { "" }
                );
            }
        }
    }
    println!(
        "{seeds} seeds, {failed} failed, {:.1} h simulated in {:.1} s",
        simulated.as_secs_f64() / 3600.0,
        began.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
