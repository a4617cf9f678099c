//! The only code that speaks netlink and nf_tables, enters network namespaces and writes sysctls. The host's ports are kept by `proxy`.
//!
//! Does what `core` decides: `observe` reads the kernel into a `Dataplane`, `apply` carries out operations. Both are synchronous and
//! belong to the one thread that owns the dataplane. Never: decides, or touches what is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use thiserror::Error;

use crate::core::dataplane::Dataplane;
use crate::core::encryption::PublicKey;
use crate::core::flows::Flow;
use crate::core::ingress::Target;
use crate::core::links::Pod;
use crate::core::plan::Op;
use crate::core::published::Opening;

pub mod netlink;

pub mod nft;

pub mod conntrack;

pub mod echo;

pub mod netns;

pub mod linux;

pub mod messages;

mod observe;

pub mod watch;

pub mod host;

mod wireguard;

mod apply;

#[cfg(test)]
mod damage;

#[cfg(test)]
pub mod fake;

/// Why the kernel was not changed or read.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("open a netlink socket")]
    Open { source: io::Error },
    #[error("talk to the kernel by netlink")]
    Transfer { source: io::Error },
    #[error("understand the kernel's answer: {why}")]
    Decode { why: String },
    #[error("{what}: {errno}")]
    Refused { what: String, errno: Errno },
    #[error("namespace {path}")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("set {path}")]
    Sysctl { path: PathBuf, source: io::Error },
    #[error("there is no device {name} in the router namespace")]
    NoLink { name: String },
    #[error("{why}")]
    Missing { why: String },
}

impl KernelError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Open { source } | Self::Transfer { source } | Self::Namespace { source, .. } | Self::Sysctl { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
            Self::Decode { .. } | Self::NoLink { .. } | Self::Missing { .. } => None,
        }
    }
}

/// An operation that failed.
#[derive(Debug)]
pub struct Failure {
    /// Its place in the list that was to be applied.
    pub index: usize,
    pub error: KernelError,
}

/// What is asked about pods while observing: looking into each costs a thread and three dumps.
#[derive(Debug, Clone, Copy)]
pub enum Pods<'a> {
    Look,
    Believe(&'a BTreeMap<String, Pod>),
}

/// What the host has of IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSix {
    /// Its own addresses, but those of links and of the uplink.
    pub addresses: BTreeSet<Ipv6Addr>,
    /// Where it has ways to, by all of its tables; none without such an address, which its packets need.
    pub routes: Vec<Ipv6Net>,
    pub forwards: bool,
}

/// The node's dataplane as the owner's loop sees it; `fake` simulates it.
pub trait Kernel {
    /// What the kernel holds of ours.
    fn observe(&mut self, pods: Pods<'_>) -> Result<Dataplane, KernelError>;

    /// Carries out the operations in order; what fails is told and the rest is done.
    fn apply(&mut self, ops: &[Op]) -> Vec<Failure>;

    /// Those of the connections over TCP and UDP that the router namespace tracks.
    fn flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError>;

    /// Has a connection forgotten, if it is still tracked.
    fn forget(&mut self, flow: &Flow) -> Result<(), KernelError>;

    /// Those of the flows over UDP from elsewhere to addresses of the host itself, as the host tracks them.
    fn host_flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError>;

    /// The same as `forget`, on the host.
    fn forget_on_host(&mut self, flow: &Flow) -> Result<(), KernelError>;

    /// Those of the nodes that do not answer within 300 ms; none when they cannot be asked.
    fn silent(&mut self, nodes: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr>;

    /// Those of the router's devices that are up but drop what they are given, as a veth's end does for an instant after the other end came up.
    fn without_carrier(&mut self, links: &[String]) -> Vec<String>;

    /// The router namespace's devices by index, for telling who asks DNS.
    fn indexes(&self) -> BTreeMap<u32, String>;

    /// The MTU that is left for pods over the underlay as it is now.
    fn overlay_mtu(&mut self) -> Result<u32, KernelError>;

    /// Why nothing can be encrypted here; `None` when it can.
    fn no_encryption(&mut self) -> Option<String>;

    /// The public keys of the tunnels that are up, by epoch.
    fn public_keys(&mut self) -> Result<BTreeMap<u64, PublicKey>, KernelError>;

    /// How many connections the router namespace tracks, and how many it may.
    fn tracked(&mut self) -> Result<(u64, u64), KernelError>;

    /// Keeps these ports of the host from others, and no other ones; those that others have already, and who: also of ports that were to be
    /// kept before, as long as they are not free. `six` are those that are kept of IPv6, too.
    fn keep_ports(&mut self, ports: &BTreeSet<Opening>, six: &BTreeSet<Opening>) -> BTreeMap<Opening, String>;

    /// Sends the host's own connections to its ports on to these, from here on.
    fn lead(&mut self, targets: BTreeMap<Opening, Vec<Target>>);

    /// Whether pods can have IPv6, as far as the kernel decides.
    fn has_six(&self) -> bool;

    /// Where the host itself sends packets to, by all of its tables.
    fn host_routes(&mut self) -> Result<Vec<Ipv4Net>, KernelError>;

    /// What the host has of IPv6; nothing where the kernel has none.
    fn host_six(&mut self) -> Result<HostSix, KernelError>;
}
