//! The brain: pure functions from the replicated state to what should change in it and to what each node must do.
//!
//! No await, clock, randomness, IO, lock or map with random order. Time and ids come in through [`plan::Ctx`].

pub mod state;
pub mod plan;
pub mod orchestrate;
pub mod allocate;
pub mod schedule;
pub mod node;
pub mod dispatch;
pub mod control;
