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
mod outcome;
mod plan;
mod platter;
mod processes;
mod queue;
mod recovery;
mod users;
mod watchers;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub use check::Violation;
pub use cluster::Counts;
pub use outcome::Outcome;
pub use plan::Plan;
pub use world::World;

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

/// Runs plans to their ends on all processors; what they did, in their order.
///
/// # Errors
/// All that was promised and not kept, seed by seed.
pub fn run_all(plans: &[Plan]) -> Result<Vec<Outcome>, Violation> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(plan) = plans.get(at)
        {
            done.push((at, run_plan(plan.clone(), false)));
        }
        done
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, Result<Outcome, Violation>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a panic of a seed is its outcome")).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    let failed = done.iter().filter_map(|(at, outcome)| outcome.as_ref().err().map(|why| format!("seed {}: {why}", plans[*at].seed)));
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        return Err(Violation(format!("{} of {} seeds failed:\n{}", failed.len(), plans.len(), failed.join("\n"))));
    }
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
