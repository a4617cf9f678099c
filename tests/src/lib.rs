//! What tests share: code generation, the lab harness, managers without a lab, the look for leftovers.

pub mod codegen;
pub mod failover_bench;
pub mod lab;
pub mod leaders_bench;
pub mod leftovers;
pub mod managers;
pub mod net_bench;
pub mod processes;
pub mod pull_bench;
pub mod state_bench;
pub mod store_bench;

/// Tells how far a program has come, beside what it is run for.
#[allow(clippy::print_stderr, reason = "progress is talk")]
pub fn progress(text: &str) {
    eprintln!("{text}");
}
