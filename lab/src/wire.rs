//! The wire: a network namespace that routes between the hosts' links. A cut is a link that is down, or a rule that swallows what goes from
//! one to another; nothing is ever answered, as on a real wire.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::LabError;
use crate::netlink::Netlink;
use crate::plan::{GATEWAY, WIRE_ADDR};

/// A host's end of its link.
pub const HOST_DEVICE: &str = "eth0";
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
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).map_err(LabError::io(format!("write {path}")))
}

fn index_of(device: &str) -> Result<u32, LabError> {
    if_nametoindex(device).map_err(LabError::kernel(format!("find link {device}")))
}

impl Wire {
    /// Moves the calling process into a network namespace of its own and makes it a wire.
    pub fn make() -> Result<Self, LabError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::kernel("make a network namespace"))?;
        let mut netlink = Netlink::open()?;
        netlink.set_up(LOOPBACK, true)?;
        netlink.add_address(LOOPBACK, WIRE_ADDR)?;
        sysctl("ip_forward", "1")?;
        sysctl("conf/all/rp_filter", "0")?;
        sysctl("conf/default/rp_filter", "0")?;
        Ok(Self { netlink, ports: BTreeMap::new(), cut: BTreeSet::new(), pairs: BTreeSet::new() })
    }

    /// Plugs a host in; `pid` is in its network namespace.
    pub fn plug(&mut self, host: &str, addr: Ipv4Addr, pid: i32) -> Result<(), LabError> {
        self.netlink.add_veth(host, HOST_DEVICE, pid)?;
        let index = index_of(host)?;
        self.netlink.add_address(index, GATEWAY)?;
        self.ports.insert(host.to_owned(), Port { index, addr });
        if !self.cut.contains(host) {
            self.raise(host)?;
        }
        for (a, b) in self.pairs.clone() {
            if a == host || b == host {
                self.swallow(&a, &b, true)?;
            }
        }
        Ok(())
    }

    /// Pulls a host's plug; what it still sends goes nowhere and nobody is told.
    pub fn unplug(&mut self, host: &str) -> Result<(), LabError> {
        let Some(port) = self.ports.get(host).cloned() else { return Ok(()) };
        for (a, b) in self.pairs.clone() {
            if a == host || b == host {
                self.swallow(&a, &b, false)?;
            }
        }
        self.ports.remove(host);
        // The kernel removes the pair with the host's namespace, perhaps before we do.
        match self.netlink.delete_link(port.index) {
            Err(LabError::Netlink { source, .. }) if source.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => Ok(()),
            other => other,
        }
    }

    /// Takes a host's link down, without forgetting it: the first thing in a power cut.
    pub fn silence(&mut self, host: &str) -> Result<(), LabError> {
        match self.ports.get(host) {
            Some(port) => self.netlink.set_up(port.index, false),
            None => Ok(()),
        }
    }

    fn raise(&mut self, host: &str) -> Result<(), LabError> {
        let Some(port) = self.ports.get(host).cloned() else { return Ok(()) };
        self.netlink.set_up(port.index, true)?;
        // The kernel forgets a device's routes when it goes down.
        self.netlink.add_host_route(port.addr, port.index, WIRE_ADDR)
    }

    fn swallow(&mut self, a: &str, b: &str, on: bool) -> Result<(), LabError> {
        let (Some(port_a), Some(port_b)) = (self.ports.get(a).cloned(), self.ports.get(b).cloned()) else { return Ok(()) };
        self.netlink.blackhole(a, port_b.addr, on)?;
        self.netlink.blackhole(b, port_a.addr, on)
    }

    /// Cuts a host off from everyone, or from one other.
    pub fn cut(&mut self, host: &str, other: Option<&str>) -> Result<(), LabError> {
        let Some(other) = other else {
            self.cut.insert(host.to_owned());
            return self.silence(host);
        };
        let pair = if host < other { (host.to_owned(), other.to_owned()) } else { (other.to_owned(), host.to_owned()) };
        if self.pairs.insert(pair.clone()) {
            self.swallow(&pair.0, &pair.1, true)?;
        }
        Ok(())
    }

    /// Mends every cut.
    pub fn heal(&mut self) -> Result<(), LabError> {
        for host in std::mem::take(&mut self.cut) {
            self.raise(&host)?;
        }
        for (a, b) in std::mem::take(&mut self.pairs) {
            self.swallow(&a, &b, false)?;
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
