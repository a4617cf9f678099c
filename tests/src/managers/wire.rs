//! A network namespace for each manager, and one that routes between them, in which the test itself runs: it reaches every manager,
//! also those that it has cut off from each other.
//!
//! ```text
//!   host 1: eth0 10.91.0.11/32 ── h1 169.254.1.1/32 ┐
//!   host 2: eth0 10.91.0.12/32 ── h2 169.254.1.1/32 ┴ test: 10.91.0.1/32; rules swallow what one sends to another
//! ```

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

const TEST_ADDR: &str = "10.91.0.1/32";
const GATEWAY: &str = "169.254.1.1";

/// The namespaces; they go with the processes in them, and with this.
#[derive(Debug)]
pub struct Wire {
    own: File,
    hosts: Vec<File>,
    /// Who reaches whom no longer.
    cuts: Vec<(usize, usize)>,
}

/// The calling thread's network namespace.
fn own_namespace() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("open the thread's network namespace")
}

/// Runs `ip` of iproute2, in the calling thread's network namespace.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output().context("run ip (iproute2)")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
}

/// A network namespace without processes; it goes with the file.
pub fn new_namespace() -> Result<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        own_namespace()
    });
    made.join().expect("it does not panic")
}

/// Where a host is.
pub fn addr(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 91, 0, 11 + u8::try_from(host).expect("few hosts"))
}

impl Wire {
    /// Moves the calling thread, and those that it starts from now on, into a namespace that reaches so many hosts.
    pub fn make(hosts: usize) -> Result<Self> {
        enter(&new_namespace()?)?;
        for (name, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")] {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), value).with_context(|| format!("set {name}"))?;
        }
        ip("link set lo up")?;
        ip(&format!("addr add {TEST_ADDR} dev lo"))?;
        let mut wire = Self { own: own_namespace()?, hosts: Vec::new(), cuts: Vec::new() };
        for host in 0..hosts {
            wire.plug(host)?;
        }
        Ok(wire)
    }

    fn plug(&mut self, host: usize) -> Result<()> {
        let (namespace, addr) = (new_namespace()?, addr(host));
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        ip(&format!("link add h{host} type veth peer name eth0 netns {path}"))?;
        ip(&format!("addr add {GATEWAY}/32 dev h{host}"))?;
        ip(&format!("link set h{host} up"))?;
        self.hosts.push(namespace);
        self.inside(host, || {
            ip("link set lo up")?;
            ip(&format!("addr add {addr}/32 dev eth0"))?;
            ip("link set eth0 up")?;
            ip(&format!("route add {GATEWAY} dev eth0"))?;
            ip(&format!("route add default via {GATEWAY} dev eth0 src {addr}"))
        })?;
        ip(&format!("route add {addr}/32 dev h{host} src 10.91.0.1"))
    }

    /// Does something in a host's namespace, such as starting a process.
    pub fn inside<T>(&self, host: usize, deed: impl FnOnce() -> Result<T>) -> Result<T> {
        self.within(&self.hosts[host], deed)
    }

    /// The same in any network namespace.
    pub fn within<T>(&self, namespace: &File, deed: impl FnOnce() -> Result<T>) -> Result<T> {
        enter(namespace)?;
        let done = deed();
        enter(&self.own)?;
        done
    }

    /// What one host sends to the other arrives no more; nobody is told.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<()> {
        if !self.cuts.contains(&(from, to)) {
            ip(&format!("rule add iif h{from} to {}/32 blackhole", addr(to)))?;
            self.cuts.push((from, to));
        }
        Ok(())
    }

    /// A host and the others do not reach each other.
    pub fn isolate(&mut self, host: usize) -> Result<()> {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut(host, other)?;
            self.cut(other, host)?;
        }
        Ok(())
    }

    /// All reach each other.
    pub fn heal(&mut self) -> Result<()> {
        for (from, to) in std::mem::take(&mut self.cuts) {
            ip(&format!("rule del iif h{from} to {}/32 blackhole", addr(to)))?;
        }
        Ok(())
    }
}
