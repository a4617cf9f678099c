//! The managers' store in one thread, under a seed: the store's own code with a clock, a network, disks and users that are made up; and
//! around it, if asked for, the brains that lead and agents whose kernels are made up.
//!
//! In: a seed. Out: whether everything that the store promises held after every event, and whether it came back once the faults had
//! stopped. Equal seeds do exactly the same. See `docs/simulation.md`.

mod chance;
mod check;
mod cluster;
mod disk;
mod faults;
mod host;
mod network;
mod plan;
mod platter;
mod queue;
mod recovery;
mod users;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use check::Violation;
pub use cluster::Counts;
pub use plan::Plan;
pub use world::{Outcome, World};

/// Runs one seed of the managers' stores to its end; a panic is a violation too.
///
/// # Errors
/// What was promised and not kept.
pub fn run(seed: u64, trace: bool) -> Result<Outcome, Violation> {
    run_plan(Plan::draw(seed), trace)
}

/// Runs one seed of a whole cluster to its end.
///
/// # Errors
/// What was promised and not kept.
pub fn run_cluster(seed: u64, trace: bool) -> Result<Outcome, Violation> {
    run_plan(Plan::draw_cluster(seed), trace)
}

/// Runs a plan to its end.
///
/// # Errors
/// What was promised and not kept.
pub fn run_plan(plan: Plan, trace: bool) -> Result<Outcome, Violation> {
    catch_unwind(AssertUnwindSafe(|| World::new(plan, trace)?.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Violation(format!("a panic: {}", text.unwrap_or("without words"))))
    })
}
