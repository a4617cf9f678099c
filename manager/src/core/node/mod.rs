//! Nodes: whether they are heard from, and what their reports change.

pub mod liveness;
pub mod register;
pub mod report;
