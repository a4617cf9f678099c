//! The real program on loopback: clusters made and joined over TLS, who is let in and who is not.

mod admission;
mod agents;
mod audit;
mod bad_days;
mod disaster;
mod disks;
mod etcd;
#[path = "../etcd/server.rs"]
#[allow(dead_code, reason = "the tests of the store in etcd use the rest")]
mod etcd_server;
mod formats;
mod limits;
mod lock;
mod members;
mod network;
mod observe;
mod once;
mod roles;
mod streams;
mod support;
mod watch;
mod writes;
