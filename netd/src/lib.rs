//! netd: the node's network. Obeys the managers' picture (`core`, pure), keeps the kernel as the picture wants it (`kernel`), gives pods
//! their network namespaces (`drive`), answers their questions about names (`dns`), and is told what to do over a unix socket (`service`).
//!
//! Not built yet, and refused or absent rather than pretended: virtual addresses, published ports, egress (so every network is as good as
//! internal), IPv6, encryption, forwarding of foreign names.

pub mod config;

pub mod core;

pub mod drive;

pub mod dns;

pub mod kernel;

pub mod store;

pub mod service;
