//! What every daemon needs and no cluster noun: time, backing off, small durable files, scopes of tasks, telemetry.
//!
//! A thing enters only when two crates already need it. Nothing here knows what a service or a node is.

pub mod backoff;
pub mod clock;
pub mod ledger;
pub mod renewal;
pub mod scope;
pub mod telemetry;
