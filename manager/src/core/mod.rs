//! The brain: pure functions from the replicated state to what should change in it and to what each node must do.
//!
//! No await, clock, randomness, IO, lock or map with random order. Time and ids come in through [`plan::Ctx`].

pub mod allocate;
pub mod audit;
pub mod authorize;
pub mod control;
pub mod dispatch;
pub mod limit;
pub mod members;
pub mod node;
pub mod orchestrate;
pub mod plan;
pub mod refound;
pub mod schedule;
pub mod state;
pub mod watch;
