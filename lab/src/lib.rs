//! A cluster of many hosts on one machine: real programs, each host in namespaces of its own, and the faults that hosts have.
//!
//! ```text
//!   rclusterctl lab …            asks by a socket, line by line in JSON
//!        │
//!   supervisor                   one a lab; its network namespace is the wire
//!     ├─ init of host m1         PID 1 of the host: own pid, mount, net, uts and ipc namespaces ─ spawns ─► rcluster-manager
//!     └─ init of host n1         ─ spawns ─► rcluster-netd, rcluster-agent ─► containers
//! ```
//!
//! A power cut is SIGKILL to the host's init after its link was cut: the kernel ends everything in the PID namespace at once, containers
//! included, and mounts and network namespaces go with the last process. Every init asks to die with the supervisor, so that no process
//! outlives it; cgroups and directories, which no kernel removes, have names that follow from the lab's, and the next `up` or `down` of
//! that name removes them.
//!
//! In: what a user asks for. Out: hosts that live, and their state. Never: knowledge of what the daemons say to each other.

mod cgroup;
mod client;
mod core;
mod error;
mod exec;
mod host;
mod leftovers;
mod line;
mod logs;
mod netlink;
mod preflight;
mod protocol;
mod supervisor;
mod wire;

pub use crate::client::{Lab, Starting, UpOptions, up};
pub use crate::core::plan::Role;
pub use crate::error::LabError;
pub use crate::exec::exec;
pub use crate::leftovers::{clean_leftovers, has_leftovers};
pub use crate::logs::LogOptions;
pub use crate::protocol::{DaemonState, DaemonStatus, HostState, HostStatus, LabStatus};

/// The first argument by which the running program is started again as a part of a lab.
const PART: &str = "lab-part";

/// Runs the part of a lab that the arguments (with the program's name) name, and returns its exit code; `None` when they name none. To be
/// called first thing in `main`, before there is a thread.
pub fn run_part(arguments: &[String]) -> Option<i32> {
    match arguments {
        [_, part, what, rest @ ..] if part == PART => match what.as_str() {
            "supervisor" => Some(supervisor::main(rest)),
            "host" => Some(host::main(rest)),
            "exec" => Some(exec::main(rest)),
            "probe" => Some(preflight::main()),
            _ => None,
        },
        _ => None,
    }
}
