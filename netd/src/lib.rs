//! netd: the node's network. Obeys the managers' picture (`core`, pure), keeps the kernel as the picture wants it (`kernel`), gives pods
//! their network namespaces (`drive`), answers their questions about names (`dns`), and is told what to do over a unix socket (`service`).
//!
//! ```text
//!  agent ── R/netd.sock ──► service ──commands──► drive ──plan──► kernel
//!                                                   │
//!  pods ─── 169.254.53.53:53 ──► dns ◄────board─────┘
//! ```
//!
//! What others may rely on:
//!
//! - A picture is obeyed if its (term, revision) is not lower than that in force for the same node id; the answer names the one in force.
//!   What could not be done is told in `problems` and tried again, after a second, two, four, up to thirty.
//! - `Attach` wants its networks in the picture (`UNAVAILABLE` until then; the same call later works), pins the namespace at
//!   R/netns/<task id> and names its interfaces `eth0`, `eth1`, … in the order of the request. Repeated, it answers the same; with other
//!   arguments, or for an address that another pod here holds, it is `FAILED_PRECONDITION`.
//! - `Detach` takes the addresses away at once; the namespace ends with its last process.
//! - netd may be killed and started at any moment: packets, devices and namespaces stay, DNS is back within some 30 ms.
//! - The run directory ends with a reboot and the pods with it; the picture in the state directory is in force again at once.
//! - On the host itself netd makes nothing but the VXLAN devices' UDP socket on port 4789. Outer packets are tracked by the host's
//!   conntrack, if it runs; to exempt them is the host's business.
//!
//! Not built yet, and refused or absent rather than pretended: virtual addresses, published ports, egress (so every network is as good as
//! internal), IPv6, encryption, forwarding of foreign names (they are REFUSED at once).

pub mod config;

pub mod core;

pub mod drive;

pub mod dns;

pub mod kernel;

pub mod store;

pub mod service;
