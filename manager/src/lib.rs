//! The managers: they keep the cluster's state through Raft, decide what runs where, and tell the agents.

pub mod core;
