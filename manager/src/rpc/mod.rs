//! The managers' interfaces on one port: gRPC (control, dispatcher, raft) and REST. Decode → validate → call → encode; nothing is
//! decided here.

pub mod control;
pub mod dispatcher;
mod logs;
pub mod raft;
mod relay;
pub mod rest;
mod route;
mod watch;

pub use route::Router;
