//! The managers: they keep the cluster's state through Raft, decide what runs where, and tell the agents.

pub mod ca;
pub mod config;
pub mod core;
pub mod disaster;
pub mod drive;
pub mod found;
pub mod meter;
pub mod renewal;
pub mod rpc;
pub mod seal;
pub mod store;
