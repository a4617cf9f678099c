//! `rcluster-sim`: runs seeds, one or as many as a time allows.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use rcluster_sim::{Plan, run_plan};

/// Simulates the managers' store under seeds.
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
    /// Leaves out the lulls.
    #[arg(long)]
    busy: bool,
    /// Keeps all logs in memory, also where a seed has the managers' own.
    #[arg(long)]
    memory: bool,
    /// How many seeds, one after the other; one, unless a time is given.
    #[arg(long)]
    count: Option<u64>,
    /// So many further seeds, from one that is drawn and printed.
    #[arg(long, default_value_t = 0)]
    fresh: u64,
    /// Begins no seed after so many hours of this machine's time.
    #[arg(long)]
    hours: Option<f64>,
    /// How many seeds at a time.
    #[arg(long, default_value = "1")]
    threads: NonZero<usize>,
    /// Runs each so manieth seed a second time, which must do the same.
    #[arg(long)]
    twice_every: Option<NonZero<u64>>,
    /// Fails when fewer hours were simulated.
    #[arg(long, default_value_t = 0.0)]
    at_least: f64,
    /// Says nothing of seeds that hold.
    #[arg(long)]
    quiet: bool,
}

/// What all seeds did together.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    failed: u64,
    simulated: Duration,
    /// Of that, what was no lull.
    busy: Duration,
    writes: usize,
    terms: usize,
}

#[expect(clippy::print_stdout, reason = "what it says is its output")]
fn run_one(args: &Args, seed: u64, number: u64, sum: &Mutex<Sum>) {
    let plan = || {
        let plan = if args.cluster { Plan::draw_cluster(seed) } else { Plan::draw(seed) };
        let plan = if args.busy { plan.busy() } else { plan };
        if args.memory { plan.in_memory() } else { plan }
    };
    if args.trace {
        println!("{:#?}", plan());
    }
    let mut outcome = run_plan(plan(), args.trace).map_err(|violation| violation.to_string());
    let twice = args.twice_every.is_some_and(|every| number.is_multiple_of(every.get()));
    if let (true, Ok(first)) = (twice, &outcome) {
        match run_plan(plan(), false) {
            Ok(second) if second == *first => {}
            other => outcome = Err(format!("it does not do the same twice: {first}, then {other:?}")),
        }
    }
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    sum.seeds += 1;
    match outcome {
        Ok(outcome) => {
            sum.simulated += outcome.simulated;
            sum.busy += outcome.busy;
            sum.writes += outcome.writes;
            sum.terms += outcome.terms;
            if !args.quiet {
                println!("seed {seed}: {outcome}");
            }
        }
        Err(why) => {
            sum.failed += 1;
            let flags = [(args.cluster, " --cluster"), (args.busy, " --busy"), (args.memory, " --memory")];
            let flags: String = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
            println!("seed {seed} FAILED: {why}\n  replay: rcluster-sim{flags} --seed {seed} --trace");
        }
    }
}

#[expect(clippy::print_stdout, reason = "what it says is its output")]
fn main() -> ExitCode {
    let args = Args::parse();
    let (first, fresh) = (args.seed.unwrap_or_else(rand::random), rand::random());
    let counted = args.count.unwrap_or(if args.hours.is_some() { u64::MAX } else { 1 });
    let (began, patience) = (Instant::now(), args.hours.map(|hours| Duration::from_secs_f64(hours.max(0.0) * 3600.0)));
    if args.seed.is_none() {
        println!("the first seed is {first}");
    }
    if args.fresh > 0 {
        println!("the first fresh seed is {fresh}");
    }
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= counted.saturating_add(args.fresh) || patience.is_some_and(|patience| began.elapsed() >= patience) {
                break;
            }
            let seed = if number < counted { first.wrapping_add(number) } else { u64::wrapping_add(fresh, number - counted) };
            run_one(&args, seed, number, &sum);
        }
    };
    thread::scope(|scope| (0..args.threads.get()).for_each(|_| drop(scope.spawn(work))));
    let Sum { seeds, failed, simulated, busy, writes, terms } = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (hours, busy) = (simulated.as_secs_f64() / 3600.0, busy.as_secs_f64() / 3600.0);
    println!(
        "{seeds} seeds, {failed} failed, {hours:.1} simulated hours, of them {busy:.1} busy, in {:.1} s: {writes} writes, {terms} terms",
        began.elapsed().as_secs_f64()
    );
    if hours < args.at_least {
        println!("{hours:.1} h are fewer than the {} h that are to be simulated", args.at_least);
    }
    if failed == 0 && hours >= args.at_least { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
