//! The managers' interfaces on one port: gRPC (control, admission, dispatcher, raft) and REST. Decode → authorize → validate → call → encode; nothing is
//! decided here.

pub mod admission;
pub mod audit;
pub mod audited;
pub mod auth;
mod backup;
pub mod calls;
pub mod control;
pub mod dispatcher;
pub mod figures;
mod holder;
pub mod limits;
pub mod listen;
pub mod locked;
mod logs;
mod methods;
mod metrics;
mod network;
mod once;
pub mod raft;
mod relay;
pub mod rest;
mod route;
mod watch;

pub use route::Router;
