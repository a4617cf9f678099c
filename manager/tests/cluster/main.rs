//! The real program on loopback: clusters made and joined over TLS, who is let in and who is not.

mod admission;
mod members;
mod roles;
mod support;
mod watch;
