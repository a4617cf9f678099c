//! Seeds without their lulls: fixed ones, those that have failed before, and fresh ones. `make sim-ci` runs more of them, with their lulls.
//!
//! A seed that fails says how to see what happened: `cargo run -p rcluster-sim -- --seed N --busy --trace`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcluster_sim::{Outcome, Plan, Violation, run_plan};

/// Each line: a seed, and what it has found.
const FAILED_BEFORE: &str = include_str!("failed-seeds.txt");
const FRESH: usize = 10;

fn run(seed: u64) -> Result<Outcome, Violation> {
    run_plan(Plan::draw(seed).busy(), false)
}

/// Runs seeds on all processors; what they did, in their order.
fn run_all(seeds: &[u64]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(seed) = seeds.get(at)
        {
            done.push((at, run(*seed)));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, Result<Outcome, Violation>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    let failed = done.iter().filter_map(|(at, outcome)| outcome.as_ref().err().map(|why| format!("seed {}: {why}", seeds[*at])));
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{} of {} seeds failed:\n{}", failed.len(), seeds.len(), failed.join("\n"));
    done.into_iter().map(|(_, outcome)| outcome.unwrap()).collect()
}

#[test]
fn a_hundred_seeds() {
    let outcomes = run_all(&(0..100).collect::<Vec<_>>());
    let simulated: Duration = outcomes.iter().map(|outcome| outcome.simulated).sum();
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let (writes, reads, terms) = (sum(|outcome| outcome.writes), sum(|outcome| outcome.reads), sum(|outcome| outcome.terms));
    // A simulation in which nothing happens proves nothing.
    let busy = simulated > Duration::from_secs(3600) && terms > 500 && writes > 20_000 && reads > 20_000;
    assert!(busy, "only {simulated:?}, {terms} terms, {writes} writes, {reads} reads");
}

#[test]
fn seeds_that_have_failed_before() {
    let seeds = FAILED_BEFORE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    run_all(&seeds.map(|seed| seed.parse().unwrap()).collect::<Vec<_>>());
}

#[test]
fn fresh_seeds() {
    run_all(&(0..FRESH).map(|_| rand::random()).collect::<Vec<_>>());
}

#[test]
fn equal_seeds_do_the_same_and_others_do_not() {
    for seed in [2, 7, 11] {
        assert_eq!(run(seed).unwrap(), run(seed).unwrap());
    }
    assert_ne!(run(2).unwrap().hash, run(3).unwrap().hash);
}
