//! Moves interfaces of the host's into the container's network namespace (config-linux.md "Network Devices", 1.3).
//!
//! As the specification asks, an interface keeps its permanent addresses of global scope, gets its name, and is set up. Should
//! the container end, or a later one of several fail, it goes where the kernel puts it: a physical one back, a virtual one away
//! (network_namespaces(7)).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::core::check::NetDevice;
use crate::core::route::{self, Address};

/// As the kernel's own dumps need at most (netlink(7)).
const ANSWER_BYTES: usize = 32 << 10;

/// Moves all, which must be there; `pid` is a process in the namespace.
pub fn move_all(devices: &[NetDevice], pid: i32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let here = Routes::open().context("linux.netDevices")?;
    let field = |device: &NetDevice| format!("linux.netDevices[{}]", device.host_name);
    for device in devices {
        here.index(&device.host_name).with_context(|| format!("{}: no such interface of the host's", field(device)))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("linux.netDevices: open the container's network namespace")?;
    let there = Routes::open_in(namespace.as_fd()).context("linux.netDevices: enter the container's network namespace")?;
    // The kernel moves first and renames then: what cannot be renamed would be lost with the namespace.
    if let Some(device) = devices.iter().find(|device| there.index(&device.name).is_ok()) {
        bail!("{}: the container's network namespace has an interface {} already: choose another name", field(device), device.name);
    }
    devices.iter().try_for_each(|device| move_one(&here, &there, namespace.as_fd(), device).with_context(|| field(device)))
}

fn move_one(here: &Routes, there: &Routes, namespace: BorrowedFd<'_>, device: &NetDevice) -> Result<()> {
    let index = here.index(&device.host_name)?;
    let addresses = here.addresses(index).context("read its addresses")?;
    let moved = here.ask(&route::moved(index, namespace.as_raw_fd(), &device.name), index);
    moved.with_context(|| format!("move it into the container's network namespace as {}", device.name))?;
    let index = there.index(&device.name)?;
    for address in &addresses {
        there.ask(&route::with_address(index, address), index).context("give it its address again")?;
    }
    there.ask(&route::up(index), index).context("set it up")?;
    Ok(())
}

/// A socket to the kernel's routing of one network namespace.
struct Routes(OwnedFd);

impl Routes {
    fn open() -> Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        Ok(Self(socket.context("open a netlink socket")?))
    }

    /// This process leaves the namespace again: a socket stays where it was made.
    fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        let own = File::open("/proc/self/ns/net").context("open /proc/self/ns/net")?;
        let enter = |namespace| rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network));
        enter(namespace)?;
        let opened = Self::open();
        enter(own.as_fd()).context("come back")?;
        opened
    }

    fn index(&self, name: &str) -> Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        self.ask(&route::addresses(), index)
    }

    /// Sends a request and hears the whole answer.
    fn ask(&self, request: &[u8], index: u32) -> Result<Vec<Address>> {
        rustix::net::send(&self.0, request, SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES];
        let mut addresses = Vec::new();
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let answer = route::answer(&buffer[..length], index);
            addresses.extend(answer.addresses);
            match answer.end {
                Some(0) => return Ok(addresses),
                Some(errno) => return Err(std::io::Error::from_raw_os_error(errno).into()),
                None if length == 0 => bail!("the kernel's answer ends early"),
                None => {}
            }
        }
    }
}
