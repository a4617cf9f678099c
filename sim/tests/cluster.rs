//! Seeds of whole clusters: brains, agents with kernels that are made up, users, and the stores under them.
//!
//! A seed that fails says how to see what happened: `cargo run -p rcluster-sim -- --cluster --seed N --trace`.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcluster_sim::{Outcome, Violation, run_cluster};

/// Each line: a seed, and what it has found.
const FAILED_BEFORE: &str = include_str!("failed-clusters.txt");
const FIXED: u64 = 24;

/// Runs seeds on all processors; what they did, in their order.
fn run_all(seeds: &[u64]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(seed) = seeds.get(at)
        {
            done.push((at, run_cluster(*seed, false)));
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
fn fixed_seeds() {
    let outcomes = run_all(&(0..FIXED).collect::<Vec<_>>());
    let count = |of: fn(rcluster_sim::Counts) -> usize| outcomes.iter().filter_map(|outcome| outcome.cluster).map(of).sum::<usize>();
    let (brains, requests, starts) = (count(|made| made.brains), count(|made| made.requests), count(|made| made.starts));
    let (downs, troubles) = (count(|made| made.downs), count(|made| made.troubles));
    // A simulation in which nothing happens proves nothing.
    let busy = brains > 50 && requests > 300 && starts > 1_000 && troubles > 50 && downs > 10;
    assert!(busy, "only {brains} brains, {requests} requests, {starts} starts, {troubles} troubles, {downs} downs");
}

#[test]
fn seeds_that_have_failed_before() {
    let seeds = FAILED_BEFORE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    run_all(&seeds.map(|seed| seed.parse().unwrap()).collect::<Vec<_>>());
}

#[test]
fn equal_seeds_do_the_same_and_others_do_not() {
    for seed in [2, 5] {
        assert_eq!(run_cluster(seed, false).unwrap(), run_cluster(seed, false).unwrap());
    }
    assert_ne!(run_cluster(2, false).unwrap().hash, run_cluster(3, false).unwrap().hash);
}
