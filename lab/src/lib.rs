//! A cluster of many hosts on one machine: real programs, each host in namespaces of its own, and the faults that hosts have.
//!
//! ```text
//!   supervisor (owns the wire's network namespace)        one a lab
//!     └─ host shell (unshares)                            one a host
//!          └─ host init (PID 1 of the host)  ─ spawns ─►  rcluster-manager, or rcluster-netd and rcluster-agent
//! ```
//!
//! A power cut is SIGKILL to the host's init after its wire was cut: the kernel ends everything in the PID namespace at once, containers
//! included, and mounts and network namespaces go with the last process. Every process here asks to die with its parent, so that nothing
//! outlives the supervisor; cgroups and directories, which no kernel removes, have names that follow from the lab's.

mod cgroup;
mod client;
mod exec;
mod host;
mod netlink;
pub mod plan;
mod preflight;
mod protocol;
mod supervisor;
mod wire;

use thiserror::Error;

pub use client::{Lab, Starting, UpOptions, clean_leftovers, has_leftovers, up};
pub use exec::exec;
pub use protocol::{DaemonState, DaemonStatus, HostState, HostStatus, LabStatus};

/// Why something in a lab could not be done.
#[derive(Debug, Error)]
pub enum LabError {
    /// The lab, host, process or number that was named does not fit.
    #[error("{0}")]
    Refused(String),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}")]
    Kernel { what: String, source: nix::errno::Errno },
    #[error("netlink: {what}")]
    Netlink { what: String, source: std::io::Error },
    #[error("encode or decode {what}")]
    Json { what: String, source: serde_json::Error },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }
}

/// The first argument by which this program is run as a part of a lab.
const SUPERVISOR: &str = "lab-supervisor-process";
const HOST: &str = "lab-host-process";

/// Runs the part of a lab that the arguments name; `None` when they are not a lab's. To be called first thing in `main`, before any thread.
pub fn run_part(arguments: &[String]) -> Option<i32> {
    match arguments.get(1).map(String::as_str) {
        Some(SUPERVISOR) => Some(supervisor::main(arguments.get(2..).unwrap_or_default())),
        Some(HOST) => Some(host::main(arguments.get(2..).unwrap_or_default())),
        _ => None,
    }
}
