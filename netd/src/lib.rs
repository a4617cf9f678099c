//! netd: the node's network. Obeys the managers' picture (`core`, pure), keeps the kernel as the picture wants it (`kernel`), gives pods
//! their network namespaces (`drive`), answers their questions about names (`dns`), takes the host's own connections to published ports
//! (`proxy`), and is told what to do over a unix socket (`service`).
//!
//! ```text
//!  agent ── R/netd.sock ──► service ──commands──► drive ──plan──► kernel
//!                                          ▲        │                │
//!                                          └────────┼──── watch ◄────┘
//!  pods ─── 169.254.53.53:53 ──► dns ◄────board─────┘
//!    │                            └─ foreign names ──► the host's resolvers
//!    └───── up ═ rcl-up ──► the host's own routes
//! host ─── 127.0.0.1:8080 ──► proxy ──► pods
//! ```
//!
//! What others may rely on:
//!
//! - A picture is obeyed if its (term, revision) is not lower than that in force for the same node id; the answer names the one in force.
//!   What could not be done is told in `problems` and tried again, after a second, two, four, up to thirty.
//! - What someone else changes of what is ours in the router's and the host's namespace is put back within a second; in pods, and of what
//!   `rcl-up` has of IPv6, within thirty.
//! - `Attach` wants its networks in the picture (`UNAVAILABLE` until then; the same call later works), pins the namespace at
//!   R/netns/<task id> and names its interfaces `eth0`, `eth1`, … in the order of the request. Repeated, it answers the same; with other
//!   arguments, or for an address that another pod here holds, it is `FAILED_PRECONDITION`.
//! - A service's virtual address leads to those of its endpoints that the picture calls serving, and, of those here, that are attached. A
//!   connection keeps its endpoint; what is in force when `ApplyView` answers holds for the next one.
//! - On a network with a policy a connection begins only if the policy of the picture in force allows it, at both of its nodes; which ones it
//!   allows changes in one step, also if netd is killed meanwhile. A connection that has begun goes on.
//! - A published port leads, from any node and with the client's address, to those of its tasks that the picture calls serving, by its
//!   policy. netd listens at it on the host itself: one that another program has is told of and left alone, and tried again. Connections
//!   go on when netd is killed; but those of a host to itself end with it.
//! - `Detach` takes the addresses away at once, and the names with them; the namespace ends with its last process.
//! - `Dump` and `Trace` change nothing. What a dump calls wanted and what it calls held are equal, line by line, when all is well.
//! - netd may be killed and started at any moment: packets, devices and namespaces stay. What pods ask the resolver meanwhile waits in its
//!   sockets, which a second process keeps (R/dns.hold), and is answered; at a SIGKILL, not what was being answered just then.
//! - The run directory ends with a reboot and the pods with it; the picture in the state directory is in force again at once. A picture that
//!   was answered outlives netd's end; a power cut it outlives once the disk has it, which is not waited for: the managers give it again.
//! - A connection to an endpoint whose node is down, by the managers' word and because it answers no ping of this node, is reset.
//! - Networks with an IPv6 prefix have every address once more there, with the same reach, names, policy and encryption.
//! - A frame of an encrypted network leaves the node through a WireGuard tunnel or not at all, and is taken from nowhere else. Private keys
//!   are in the kernel alone: no file and no log has one.
//! - On the host itself netd makes the device `rcl-up` with 169.254.54.1, and with fd5c:7263::54:1 while IPv6 passes by it, while a network is
//!   encrypted the devices `rcl-wg0` and `rcl-wg1` with routes for 169.254.64.0/18, which else goes nowhere, the table `inet rcluster_host`,
//!   the VXLAN devices' UDP socket on port 4789, sockets at published ports, and sockets to ask its resolvers, nodes that are said to be
//!   down, and peers whether they hear large packets. Unless it is told not to, it turns `net.ipv4.ip_forward` on, and once IPv6 is to pass
//!   `net.ipv6.conf.all.forwarding` with `accept_ra` 2 of the devices that had 1. It puts two rules into `DOCKER-USER` of iptables, or of
//!   ip6tables, where that would drop what is forwarded. Nothing else there is changed.
//!
//! Not built yet, and refused or absent rather than pretended: IPv6 between nodes, of pods to published ports, and of the host's own
//! datagrams to them.

pub mod config;

pub mod core;

pub mod drive;

pub mod dns;

pub mod proxy;

pub mod kernel;

pub mod store;

pub mod service;
