//! The wire: a network namespace that routes between the hosts' links.
//!
//! ```text
//!   host m1: eth0 10.90.0.11/32 ──── port "m1" 169.254.1.1/32 ┐
//!   host n1: eth0 10.90.0.101/32 ─── port "n1" 169.254.1.1/32 ┴ routes 10.90.0.X by its port; what has no port goes into the sink
//! ```
//!
//! A host that is off or cut off has no route of its own, and what is meant for it falls into the sink: a link to nobody. Rules swallow what
//! a host that is cut off sends, and what goes between two that are cut off from each other. Nothing is ever answered, as on a real wire, so
//! that nobody learns of a failure sooner than they would. The links of hosts that are on stay up, so that a cut mends at once.
//!
//! Whoever is in the wire's namespace is outside of the cluster: at 10.90.0.1, which is no host's, with every host in reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::core::plan::{GATEWAY, LabPlan, SUBNET, SUBNET_PREFIX_LENGTH, WIRE_ADDR};
use crate::error::LabError;
use crate::netlink::Netlink;

/// A host's end of its link.
const HOST_DEVICE: &str = "eth0";
const SINK: &str = "sink";
const SINK_END: &str = "sink-end";
/// Locally administered, and not the sink's end: a frame for it is dropped there.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const LOOPBACK: u32 = 1;

/// One host's link.
#[derive(Debug, Clone)]
struct Port {
    index: u32,
    addr: Ipv4Addr,
}

/// The wire of a lab; its namespace is the calling process's.
#[derive(Debug)]
pub struct Wire {
    netlink: Netlink,
    ports: BTreeMap<String, Port>,
    /// Hosts cut off from everyone.
    cut: BTreeSet<String>,
    /// Pairs cut off from each other, each in order.
    pairs: BTreeSet<(String, String)>,
}

fn sysctl(name: &str, value: &str) -> Result<(), LabError> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).map_err(LabError::io(format!("write {path}")))
}

/// A setting that a kernel built without IPv6 does not have.
fn sysctl_if_there(name: &str, value: &str) -> Result<(), LabError> {
    match sysctl(name, value) {
        Err(LabError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn index_of(device: &str) -> Result<u32, LabError> {
    if_nametoindex(device).map_err(LabError::kernel(format!("find link {device}")))
}

/// Whether netlink says that the thing is not there (any more).
fn is_gone(error: &LabError) -> bool {
    let gone = [Errno::ENODEV, Errno::ENOENT, Errno::ENXIO, Errno::ESRCH];
    matches!(error, LabError::Netlink { source, .. } if gone.iter().any(|errno| source.raw_os_error() == Some(*errno as i32)))
}

fn unless_gone(done: Result<(), LabError>) -> Result<(), LabError> {
    match done {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn in_order(a: &str, b: &str) -> (String, String) {
    if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

impl Wire {
    /// Moves the calling process into a network namespace of its own and makes it a wire.
    pub fn make(plan: &LabPlan) -> Result<Self, LabError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::kernel("make a network namespace"))?;
        sysctl("ipv4/ip_forward", "1")?;
        sysctl("ipv4/conf/all/rp_filter", "0")?;
        sysctl("ipv4/conf/default/rp_filter", "0")?;
        sysctl_if_there("ipv6/conf/default/disable_ipv6", "1")?;
        let mut netlink = Netlink::open()?;
        netlink.blackholes_first()?;
        netlink.set_up(LOOPBACK, true)?;
        netlink.add_address(LOOPBACK, WIRE_ADDR)?;
        netlink.add_veth(SINK, SINK_END, None)?;
        let sink = index_of(SINK)?;
        netlink.set_up(index_of(SINK_END)?, true)?;
        netlink.set_up(sink, true)?;
        netlink.add_link_route(SUBNET, SUBNET_PREFIX_LENGTH, sink, WIRE_ADDR)?;
        for host in &plan.hosts {
            netlink.add_neighbour(host.addr, NOBODY, sink)?;
        }
        Ok(Self { netlink, ports: BTreeMap::new(), cut: BTreeSet::new(), pairs: BTreeSet::new() })
    }

    /// Plugs a host in; process `pid` is in its network namespace.
    pub fn plug(&mut self, host: &str, addr: Ipv4Addr, pid: u32) -> Result<(), LabError> {
        self.netlink.add_veth(host, HOST_DEVICE, Some(pid))?;
        let index = index_of(host)?;
        self.netlink.add_address(index, GATEWAY)?;
        self.netlink.set_up(index, true)?;
        self.ports.insert(host.to_owned(), Port { index, addr });
        if self.cut.contains(host) { Ok(()) } else { self.reach(host) }
    }

    /// Pulls a host's plug for good.
    pub fn unplug(&mut self, host: &str) -> Result<(), LabError> {
        match self.ports.remove(host) {
            // The kernel removes the pair with the host's namespace, perhaps before we do.
            Some(port) => unless_gone(self.netlink.delete_link(port.index)),
            None => Ok(()),
        }
    }

    /// Takes a host's link down, without forgetting it: the first thing in a power cut.
    pub fn silence(&mut self, host: &str) -> Result<(), LabError> {
        match self.ports.get(host) {
            Some(port) => unless_gone(self.netlink.set_up(port.index, false)),
            None => Ok(()),
        }
    }

    /// What is meant for a host goes to its port again; the kernel forgets that when a link goes down.
    fn reach(&mut self, host: &str) -> Result<(), LabError> {
        match self.ports.get(host) {
            Some(port) => self.netlink.add_link_route(port.addr, 32, port.index, WIRE_ADDR),
            None => Ok(()),
        }
    }

    /// Cuts a host off from everyone.
    pub fn cut(&mut self, host: &str) -> Result<(), LabError> {
        if self.cut.contains(host) {
            return Ok(());
        }
        self.netlink.blackhole(host, SUBNET, SUBNET_PREFIX_LENGTH, true)?;
        self.cut.insert(host.to_owned());
        match self.ports.get(host) {
            Some(port) => unless_gone(self.netlink.remove_link_route(port.addr, port.index)),
            None => Ok(()),
        }
    }

    /// Cuts two hosts off from each other. The rules name ports that need not be there: they hold whenever the hosts are on.
    pub fn cut_pair(&mut self, plan: &LabPlan, a: &str, b: &str) -> Result<(), LabError> {
        if self.pairs.contains(&in_order(a, b)) {
            return Ok(());
        }
        self.netlink.blackhole(a, plan.host(b)?.addr, 32, true)?;
        self.netlink.blackhole(b, plan.host(a)?.addr, 32, true)?;
        self.pairs.insert(in_order(a, b));
        Ok(())
    }

    /// Mends the cut between two hosts, all cuts of a host, or every cut.
    pub fn heal(&mut self, plan: &LabPlan, host: Option<&str>, other: Option<&str>) -> Result<(), LabError> {
        let concerned = |name: &str| host.is_none_or(|host| host == name);
        if other.is_none() {
            for name in self.cut.clone().into_iter().filter(|name| concerned(name)) {
                unless_gone(self.netlink.blackhole(&name, SUBNET, SUBNET_PREFIX_LENGTH, false))?;
                self.cut.remove(&name);
                self.reach(&name)?;
            }
        }
        for (a, b) in self.pairs.clone() {
            let meant = match (host, other) {
                (Some(host), Some(other)) => in_order(host, other) == (a.clone(), b.clone()),
                _ => concerned(&a) || concerned(&b),
            };
            if meant {
                unless_gone(self.netlink.blackhole(&a, plan.host(&b)?.addr, 32, false))?;
                unless_gone(self.netlink.blackhole(&b, plan.host(&a)?.addr, 32, false))?;
                self.pairs.remove(&(a, b));
            }
        }
        Ok(())
    }

    /// Whether a host is cut off from everyone.
    pub fn is_cut(&self, host: &str) -> bool {
        self.cut.contains(host)
    }

    /// The pairs that are cut off from each other.
    pub fn pairs(&self) -> Vec<(String, String)> {
        self.pairs.iter().cloned().collect()
    }
}

/// The host's side of its link, from inside the host.
pub fn configure_host(addr: Ipv4Addr) -> Result<(), LabError> {
    let mut netlink = Netlink::open()?;
    netlink.set_up(LOOPBACK, true)?;
    let index = index_of(HOST_DEVICE)?;
    netlink.add_address(index, addr)?;
    netlink.set_up(index, true)?;
    netlink.add_default_route(GATEWAY, index, addr)
}
