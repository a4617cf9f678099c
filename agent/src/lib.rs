//! The agent: runs on each worker host, does what the managers assign to it and reports how far it has come.
//!
//! `core` decides; the rest does. `session` speaks with the managers, `agent` owns what is known of all tasks, a `worker` owns one
//! task, `data` holds secrets and configs, `exec` speaks with runtime and netd, `image` keeps images, `health` checks containers, `logs` reads what they wrote, `relay` lets
//! users talk to them.

pub mod core;

pub mod agent;
pub mod session;
pub mod worker;

pub mod credentials;
pub mod data;
pub mod exec;
pub mod health;
pub mod image;
pub mod logs;
pub mod relay;

pub mod config;
pub mod run;

pub mod host;
pub mod place;
