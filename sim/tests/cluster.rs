//! Seeds of whole clusters: brains, agents with kernels that are made up, users, and the stores under them.
//!
//! A seed that fails says how to see what happened: `cargo run -p rcluster-sim -- --cluster --seed N --trace`.

use rcluster_sim::{Counts, Outcome, Plan, run_all, run_cluster};

/// Each line: a seed, and what it has found.
const FAILED_BEFORE: &str = include_str!("failed-clusters.txt");
const FIXED: u64 = 24;

/// Runs seeds; what they did, in their order.
fn run(seeds: impl IntoIterator<Item = u64>) -> Vec<Outcome> {
    let plans: Vec<Plan> = seeds.into_iter().map(Plan::draw_cluster).collect();
    run_all(&plans).unwrap_or_else(|failed| panic!("{failed}"))
}

#[test]
fn fixed_seeds() {
    let outcomes = run(0..FIXED);
    let count = |of: fn(Counts) -> usize| outcomes.iter().filter_map(|outcome| outcome.cluster).map(of).sum::<usize>();
    let (brains, requests, starts) = (count(|made| made.brains), count(|made| made.requests), count(|made| made.starts));
    let (downs, troubles) = (count(|made| made.downs), count(|made| made.troubles));
    // A simulation in which nothing happens proves nothing.
    let busy = brains > 50 && requests > 300 && starts > 1_000 && troubles > 50 && downs > 10;
    assert!(busy, "only {brains} brains, {requests} requests, {starts} starts, {troubles} troubles, {downs} downs");
    let withdrawn: usize = outcomes.iter().map(|outcome| outcome.withdrawn).sum();
    assert!(withdrawn > 8, "only {withdrawn} leaders were withdrawn whose disk hung");
}

#[test]
fn seeds_that_have_failed_before() {
    let seeds = FAILED_BEFORE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    run(seeds.map(|seed| seed.parse().unwrap()));
}

#[test]
fn equal_seeds_do_the_same_and_others_do_not() {
    for seed in [2, 5] {
        assert_eq!(run_cluster(seed, false).unwrap(), run_cluster(seed, false).unwrap());
    }
    assert_ne!(run_cluster(2, false).unwrap().hash, run_cluster(3, false).unwrap().hash);
}
