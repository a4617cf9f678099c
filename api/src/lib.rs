//! The words that managers, agents, netd and the command line share: what a user asks for, what the managers keep, how both stand
//! on the wire. Conversion and checking are pure; only `client`, `tls` and `greeting` talk to anyone.

pub mod backup;
pub mod client;
pub mod cluster;
pub mod container;
pub mod copy;
pub mod data;
pub mod error;
mod greeting;
pub mod health;
pub mod id;
pub mod identity;
pub mod network;
pub mod object;
pub mod policy;
pub mod resource;
pub mod rest;
pub mod seal;
pub mod spec;
pub mod task;
pub mod tls;
pub mod validate;
pub mod wire;
