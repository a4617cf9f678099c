//! Seeds without their lulls: fixed ones, and those that have failed before. `make sim-ci` runs more of them, with their lulls, and as many that are
//! drawn.
//!
//! A seed that fails says how to see what happened: `cargo run -p rcluster-sim -- --seed N --busy --trace`.

use std::time::Duration;

use rcluster_sim::{Outcome, Plan, run_all, run_plan};

/// Each line: a seed, and what it has found.
const FAILED_BEFORE: &str = include_str!("failed-seeds.txt");

fn busy(seed: u64) -> Plan {
    Plan::draw(seed).busy()
}

/// Runs seeds; what they did, in their order.
fn run(seeds: impl IntoIterator<Item = u64>) -> Vec<Outcome> {
    let plans: Vec<Plan> = seeds.into_iter().map(busy).collect();
    run_all(&plans).unwrap_or_else(|failed| panic!("{failed}"))
}

#[test]
fn a_hundred_seeds() {
    let outcomes = run(0..100);
    let simulated: Duration = outcomes.iter().map(|outcome| outcome.simulated).sum();
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let (told, too_old) = (sum(|outcome| outcome.watched.0), sum(|outcome| outcome.watched.1));
    let withdrawn = sum(|outcome| outcome.withdrawn);
    let (writes, reads, terms) = (sum(|outcome| outcome.writes), sum(|outcome| outcome.reads), sum(|outcome| outcome.terms));
    // A simulation in which nothing happens proves nothing.
    let busy = simulated > Duration::from_secs(3600) && terms > 500 && writes > 20_000 && reads > 20_000;
    assert!(busy, "only {simulated:?}, {terms} terms, {writes} writes, {reads} reads");
    assert!(told > 5_000 && too_old > 20, "watchers were told only {told} pieces, and refused {too_old} times");
    assert!(withdrawn > 10, "only {withdrawn} leaders were withdrawn whose disk hung");
}

#[test]
fn seeds_that_have_failed_before() {
    let seeds = FAILED_BEFORE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    run(seeds.map(|seed| seed.parse().unwrap()));
}

#[test]
fn equal_seeds_do_the_same_and_others_do_not() {
    let once = |seed| run_plan(busy(seed), false).unwrap();
    for seed in [2, 7, 11] {
        assert_eq!(once(seed), once(seed));
    }
    assert_ne!(once(2).hash, once(3).hash);
}
