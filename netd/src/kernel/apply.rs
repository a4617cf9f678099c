//! Operations carried out on the real kernel. Neighbours, forwarding entries, routes and their rules go out in one batch each, elements
//! in one transaction. Removing what is not there is success.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::linux::{Linux, ROUTER};
use super::messages::{self, CREATE, Next, REPLACE};
use super::netlink::Netlink;
use super::nft::Change;
use super::observe::{Device, Lookup};
use super::{Failure, KernelError, host, netns, nft, observe, wireguard};
use crate::core::ingress::INGRESS;
use crate::core::links::{GATEWAY6, Interface, Link, LinkKind, RESOLVER, ROUTER6};
use crate::core::neighbours::Route;
use crate::core::plan::Op;
use crate::core::rules::host::{FILTER, FILTER6};
use crate::core::rules::skeleton::skeleton;
use crate::drive::in_full;

/// The kernel does its deferred work within a second.
const CARRIER_TRIES_MAX: u32 = 1000;

/// Asked again and again and not listened for: on kernels since 6.8 the first question is the last (see `without_carrier`), and on older
/// ones this is waited for at a start, or when the uplink was made anew, and not longer for being asked.
const CARRIER_TRY_EVERY: Duration = Duration::from_millis(1);

/// How operations go to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As messages of one batch.
    Batch,
    /// As one transaction: rules, where they are loaded anew, and elements.
    Transaction,
    /// The same on the host.
    HostTransaction,
    OneByOne,
}

fn manner(op: &Op) -> Manner {
    match op {
        Op::SetNeighbour { .. }
        | Op::SetForward(_)
        | Op::SetRoute { .. }
        | Op::RemoveRoute { .. }
        | Op::RemoveNeighbour { .. }
        | Op::RemoveForward(_)
        | Op::SetDetour { .. }
        | Op::RemoveDetour { .. }
        | Op::AddSelector(_)
        | Op::RemoveSelector(_) => Manner::Batch,
        Op::LoadRules | Op::AddElement(_) | Op::RemoveElement(_) => Manner::Transaction,
        Op::LoadHostRules { .. }
        | Op::AddPeer { .. }
        | Op::RemovePeer { .. }
        | Op::SealNetwork { .. }
        | Op::UnsealNetwork { .. }
        | Op::OpenPort(_)
        | Op::ClosePort(_)
        | Op::OpenPort6(_)
        | Op::ClosePort6(_) => Manner::HostTransaction,
        Op::PrepareResolver
        | Op::EnableForwarding
        | Op::PlainLookup
        | Op::EnableHostForwarding
        | Op::EnableHostForwarding6 { .. }
        | Op::OpenPassage
        | Op::OpenPassage6
        | Op::Fence
        | Op::Unfence
        | Op::AddTunnel { .. }
        | Op::ConfigureTunnel { .. }
        | Op::SetTunnelPeer { .. }
        | Op::RemoveTunnelPeer { .. }
        | Op::RemoveTunnel { .. }
        | Op::AddUplink { .. }
        | Op::ConfigureUplink { .. }
        | Op::ConfigureIngress { .. }
        | Op::AddPod { .. }
        | Op::AddVxlan { .. }
        | Op::AddVeth { .. }
        | Op::MendLink { .. }
        | Op::ConfigurePod { .. }
        | Op::RemoveLink { .. }
        | Op::RemovePod { .. } => Manner::OneByOne,
    }
}

/// Carries out the operations in order.
pub fn apply(linux: &mut Linux, ops: &[Op]) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut start = 0;
    for group in ops.chunk_by(|one, next| manner(one) == manner(next)) {
        let fails = |(index, error)| Failure { index: start + index, error };
        match manner(&group[0]) {
            Manner::Batch => failures.extend(batch(linux, group).into_iter().map(fails)),
            Manner::Transaction => failures.extend(transaction(linux, group).into_iter().map(fails)),
            Manner::HostTransaction => failures.extend(on_host(linux, group).into_iter().map(fails)),
            Manner::OneByOne => {
                let errors = group.iter().enumerate().filter_map(|(index, op)| one(linux, op).err().map(|error| (index, error)));
                failures.extend(errors.map(fails));
            }
        }
        start += group.len();
    }
    failures
}

fn batch(linux: &mut Linux, ops: &[Op]) -> Vec<(usize, KernelError)> {
    let mut failures = Vec::new();
    let mut places = Vec::new();
    let mut batch = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        match message(linux, op) {
            Ok(Some(message)) => {
                places.push(index);
                batch.push(message);
            }
            Ok(None) => {}
            Err(error) => failures.push((index, error)),
        }
    }
    match linux.router.batch(batch) {
        Ok(errors) => {
            for (place, errno) in errors {
                let op = &ops[places[place]];
                let is_so = if is_removal(op) { is_absent(errno) } else { is_there(op, errno) };
                if !is_so {
                    failures.push((places[place], KernelError::Refused { what: op.to_string(), errno }));
                }
            }
        }
        Err(error) => {
            let why = in_full(&error);
            failures.extend(places.into_iter().map(|place| (place, with_others(&ops[place], &why))));
        }
    }
    failures
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveRoute { .. } | Op::RemoveNeighbour { .. } | Op::RemoveForward(_) | Op::RemoveDetour { .. } | Op::RemoveSelector(_)
    )
}

/// Rules of routing cannot be replaced, for nothing tells one from the next but all of it.
fn is_there(op: &Op, errno: Errno) -> bool {
    matches!(op, Op::AddSelector(_)) && errno == Errno::EEXIST
}

pub(super) fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH | Errno::ENODEV)
}

/// `None` for the removal of something whose device is gone: the kernel took it along.
fn message(linux: &Linux, op: &Op) -> Result<Option<(RouteNetlinkMessage, u16)>, KernelError> {
    let index = |link: &str| linux.indexes.get(link).copied().ok_or_else(|| KernelError::NoLink { name: link.to_owned() });
    let next = |route: &Route| {
        Ok(match route {
            Route::Link { link } => Next::Device(index(link)?),
            Route::Via { link, gateway } => Next::Gateway { device: index(link)?, address: *gateway, source: None },
            Route::Otherwise => Next::Any,
        })
    };
    let message = match op {
        Op::SetNeighbour { link, ip, mac } => {
            (RouteNetlinkMessage::NewNeighbour(messages::neighbour(index(link)?, *ip, Some(*mac))), REPLACE)
        }
        Op::SetForward(forward) => {
            (RouteNetlinkMessage::NewNeighbour(messages::forward(index(&forward.link)?, forward.mac, forward.node)), REPLACE)
        }
        Op::SetRoute { to, route } => (RouteNetlinkMessage::NewRoute(messages::route(*to, next(route)?)), REPLACE),
        Op::RemoveRoute { to, route } => match next(route) {
            Ok(next) => (RouteNetlinkMessage::DelRoute(messages::route(*to, next)), 0),
            Err(KernelError::NoLink { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
        Op::SetDetour { table, route } => (RouteNetlinkMessage::NewRoute(messages::detour(*table, next(route)?)), REPLACE),
        Op::RemoveDetour { table, route } => match next(route) {
            Ok(next) => (RouteNetlinkMessage::DelRoute(messages::detour(*table, next)), 0),
            Err(KernelError::NoLink { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
        Op::AddSelector(selector) => (RouteNetlinkMessage::NewRule(messages::selector(selector)), CREATE),
        Op::RemoveSelector(selector) => (RouteNetlinkMessage::DelRule(messages::selector(selector)), 0),
        Op::RemoveNeighbour { link, ip } => match index(link) {
            Ok(index) => (RouteNetlinkMessage::DelNeighbour(messages::neighbour(index, *ip, None)), 0),
            Err(_) => return Ok(None),
        },
        Op::RemoveForward(forward) => match index(&forward.link) {
            Ok(index) => (RouteNetlinkMessage::DelNeighbour(messages::forward(index, forward.mac, forward.node)), 0),
            Err(_) => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(message))
}

fn transaction(linux: &mut Linux, ops: &[Op]) -> Vec<(usize, KernelError)> {
    let changes = ops.iter().filter_map(|op| match op {
        Op::AddElement(element) => Some(Change::add(element)),
        Op::RemoveElement(element) => Some(Change::remove(element)),
        _ => None,
    });
    let changes: Vec<Change<'_>> = changes.collect();
    let Some((Op::LoadRules, elements)) = ops.split_first() else {
        return nft::change(&mut linux.rules, &changes).err().map(|error| all(ops, &error)).unwrap_or_default();
    };
    if nft::load_with(&mut linux.rules, &skeleton(), &changes).is_ok() {
        return Vec::new();
    }
    // Rules without elements let nothing pass that they should not.
    if let Err(error) = nft::load(&mut linux.rules, &skeleton()) {
        return all(ops, &error);
    }
    let failures = nft::change(&mut linux.rules, &changes).err().map(|error| all(elements, &error)).unwrap_or_default();
    failures.into_iter().map(|(index, error)| (index + 1, error)).collect()
}

fn on_host(linux: &mut Linux, ops: &[Op]) -> Vec<(usize, KernelError)> {
    host::change_elements(linux, ops).err().map(|error| all(ops, &error)).unwrap_or_default()
}

/// All or nothing: every one of them failed, for one reason.
fn all(ops: &[Op], error: &KernelError) -> Vec<(usize, KernelError)> {
    let why = in_full(error);
    ops.iter().enumerate().map(|(index, op)| (index, with_others(op, &why))).collect()
}

fn with_others(op: &Op, why: &str) -> KernelError {
    KernelError::Missing { why: format!("{op}, with others: {why}") }
}

fn one(linux: &mut Linux, op: &Op) -> Result<(), KernelError> {
    match op {
        Op::PrepareResolver => {
            linux.router.request("bring up the router's loopback", messages::loopback_up(), 0)?;
            linux.router.request("give the router the resolver's address", messages::loopback_address(RESOLVER), REPLACE)?;
            if !netns::has_six() {
                return Ok(());
            }
            linux.allow_loopback_six()?;
            linux.router.request("give the router its address of IPv6", messages::loopback_address6(ROUTER6), REPLACE)
        }
        Op::EnableForwarding => linux.enable_forwarding(),
        Op::PlainLookup => mend_lookup(linux),
        Op::EnableHostForwarding => host::enable_forwarding(),
        Op::EnableHostForwarding6 { hearing } => host::enable_forwarding6(linux, *hearing),
        Op::OpenPassage => host::open_passage(linux, FILTER),
        Op::OpenPassage6 => host::open_passage(linux, FILTER6),
        Op::AddUplink { link } => host::add_uplink(linux, link),
        Op::ConfigureUplink { end } => host::configure_uplink(linux, end),
        Op::ConfigureIngress { ip } => configure_ingress(linux, *ip),
        Op::AddPod { task } => linux.create_pod(task),
        Op::AddVxlan { name, link } => add_vxlan(linux, name, link),
        Op::AddVeth { name, link, task, interface, end } => add_veth(linux, name, link, task, (interface, end)),
        Op::MendLink { name, link, readdress } => {
            let index = linux.indexes.get(name).copied().ok_or_else(|| KernelError::NoLink { name: name.clone() })?;
            linux.router.request(&op.to_string(), messages::set_link(index, readdress.then_some(link.mac), link.mtu, link.up), 0)?;
            linux.set_six(name, link.six)
        }
        Op::ConfigurePod { task, interface, end } => configure_pod(linux, task, interface, end),
        Op::RemoveLink { name } => remove_link(linux, name),
        Op::RemovePod { task } => netns::remove(&linux.pin(task)),
        other => wireguard::carry_out(linux, other),
    }
}

/// First what is missing, for without the others nothing is found.
fn mend_lookup(linux: &mut Linux) -> Result<(), KernelError> {
    let Lookup { missing, foreign, .. } = observe::lookup(&mut linux.router)?;
    for (preference, table) in missing {
        let message = RouteNetlinkMessage::NewRule(messages::own_rule(preference, table));
        linux.router.request(&format!("add the kernel's rule of routing at {preference}"), message, CREATE)?;
    }
    for rule in foreign {
        match linux.router.request("remove a rule of routing that is nobody's", RouteNetlinkMessage::DelRule(rule), 0) {
            Err(KernelError::Refused { errno, .. }) if is_absent(errno) => {}
            other => other?,
        }
    }
    Ok(())
}

/// No address but this one, and no packet dropped for the way that leads back: that of a client from outside is by the uplink.
fn configure_ingress(linux: &mut Linux, ip: Ipv4Addr) -> Result<(), KernelError> {
    linux.loosen_ingress()?;
    let index = linux.indexes.get(INGRESS).copied().ok_or_else(|| KernelError::NoLink { name: INGRESS.to_owned() })?;
    linux.router.request(&format!("give {INGRESS} the address {ip}"), messages::new_address(index, ip), REPLACE)?;
    // Afterwards: with its last address a device loses its routes.
    let held = observe::addresses(&mut linux.router)?;
    for (_, old) in held.into_iter().filter(|(device, held)| *device == index && *held != ip) {
        let message = RouteNetlinkMessage::DelAddress(messages::address(index, old, old));
        linux.router.request(&format!("take {old} from {INGRESS}"), message, 0)?;
    }
    Ok(())
}

fn add_vxlan(linux: &mut Linux, name: &str, link: &Link) -> Result<(), KernelError> {
    let LinkKind::Vxlan { vni, local, port, .. } = link.kind else {
        return Err(KernelError::Missing { why: format!("{name} is not a VXLAN device") });
    };
    let path = linux.pins.join(ROUTER);
    let router = File::open(&path).map_err(|source| KernelError::Namespace { path, source })?;
    let message = messages::new_vxlan(name, router.as_raw_fd(), vni, local, port, link.mac, link.mtu);
    let what = format!("add vxlan {name}");
    let made = match linux.host.request(&what, message.clone(), CREATE) {
        Err(KernelError::Refused { errno: Errno::EEXIST, .. }) if lookup(linux, name)?.is_some() => {
            remove_link(linux, name)?;
            linux.host.request(&what, message, CREATE)
        }
        other => other,
    };
    match made {
        Err(KernelError::Refused { errno: Errno::EEXIST, .. }) => Err(KernelError::Missing {
            why: format!("VNI {vni} is taken by another VXLAN device of this host on port {port}; remove that device"),
        }),
        Err(KernelError::Refused { errno: Errno::EADDRINUSE, .. }) => {
            Err(KernelError::Missing { why: format!("UDP port {port} is held by another program of this host; the overlay needs it") })
        }
        other => other,
    }?;
    learn(linux, name)?;
    if link.six { linux.set_six(name, true) } else { Ok(()) }
}

fn add_veth(linux: &mut Linux, name: &str, link: &Link, task: &str, (interface, end): (&str, &Interface)) -> Result<(), KernelError> {
    let path = linux.pin(task);
    let pod = File::open(&path).map_err(|source| KernelError::Namespace { path, source })?;
    let message = messages::new_veth((name, link.mac), (interface, end.mac), pod.as_raw_fd(), link.mtu);
    let what = format!("add veth {name} for {task}");
    match linux.router.request(&what, message.clone(), CREATE) {
        // What is left of a namespace that the kernel is still taking down.
        Err(KernelError::Refused { errno: Errno::EEXIST, .. }) => {
            remove_link(linux, name)?;
            linux.router.request(&what, message, CREATE)?;
        }
        other => other?,
    }
    learn(linux, name)?;
    if link.six { linux.set_six(name, true) } else { Ok(()) }
}

/// Inside the pod: all in one batch.
fn configure_pod(linux: &mut Linux, task: &str, interface: &str, end: &Interface) -> Result<(), KernelError> {
    let mut netlink = linux.pod_netlink(task)?;
    let devices: BTreeMap<String, u32> = observe::devices(&mut netlink)?.into_iter().map(|device| (device.name, device.index)).collect();
    let index = *devices
        .get(interface)
        .ok_or_else(|| KernelError::Missing { why: format!("pod {task} has no device {interface}; detach and attach it again") })?;
    let mut batch = vec![
        (messages::loopback_up(), 0),
        (messages::set_link(index, Some(end.mac), end.mtu, end.up), 0),
        (messages::new_address(index, end.ip), REPLACE),
        (RouteNetlinkMessage::NewNeighbour(messages::neighbour(index, RESOLVER.into(), Some(end.gateway))), REPLACE),
    ];
    let others6 = observe::addresses6(&mut netlink)?.into_iter().filter(|(device, ip6)| *device == index && Some(*ip6) != end.ip6);
    batch.extend(others6.map(|(_, ip6)| (RouteNetlinkMessage::DelAddress(messages::address6(index, ip6)), 0)));
    if let Some(ip6) = end.ip6 {
        // A device that is too small for IPv6 has no settings of it.
        netlink.request(&format!("enlarge {task}/{interface}"), messages::set_link(index, None, end.mtu, end.up), 0)?;
        linux.set_six_of_pod(task, interface)?;
        batch.push((RouteNetlinkMessage::NewAddress(messages::address6(index, ip6)), REPLACE));
        batch.push((RouteNetlinkMessage::NewNeighbour(messages::neighbour(index, GATEWAY6.into(), Some(end.gateway))), REPLACE));
    }
    let next = |to: &IpNet| match to {
        IpNet::V4(_) => Next::Gateway { device: index, address: IpAddr::V4(RESOLVER), source: Some(end.ip) },
        IpNet::V6(_) => Next::Gateway { device: index, address: IpAddr::V6(GATEWAY6), source: None },
    };
    // What is routed by another of the pod's interfaces from now on.
    let names = BTreeMap::from([(index, interface.to_owned())]);
    let held = observe::routes(&mut netlink, &names)?;
    let strays = held.iter().filter(|(to, route)| route.link() == interface && !end.routes.contains(to));
    batch.extend(strays.map(|(to, _)| (RouteNetlinkMessage::DelRoute(messages::route(*to, next(to))), 0)));
    batch.extend(end.routes.iter().map(|to| (RouteNetlinkMessage::NewRoute(messages::route(*to, next(to))), REPLACE)));
    match netlink.batch(batch)?.into_iter().next() {
        Some((_, errno)) => Err(KernelError::Refused { what: format!("configure {task}/{interface} {}", end.ip), errno }),
        None => Ok(()),
    }
}

/// The devices that do not send yet what they are given. A veth's end hears of the carrier when the other end comes up, but takes it in by
/// deferred work, and drops until then; to ask for the device does that work at once on kernels since 6.8, and otherwise tells when it
/// is done.
pub(super) fn without_carrier(linux: &mut Linux, links: &[String]) -> Vec<String> {
    let mut is_quiet = |link: &str| matches!(get_device(&mut linux.router, link), Ok(Some(device)) if device.up && !device.carries);
    links.iter().filter(|link| is_quiet(link)).cloned().collect()
}

/// Waits for the uplink's router end, at the start and when it was made anew. One that stays silent is left to the traffic to find out.
pub(super) fn await_carrier(linux: &mut Linux, link: &str) {
    for _ in 0..CARRIER_TRIES_MAX {
        if without_carrier(linux, &[link.to_owned()]).is_empty() {
            return;
        }
        thread::sleep(CARRIER_TRY_EVERY);
    }
}

pub(super) fn remove_link(linux: &mut Linux, name: &str) -> Result<(), KernelError> {
    let Some(index) = lookup(linux, name)? else { return Ok(()) };
    linux.indexes.remove(name);
    match linux.router.request(&format!("remove device {name}"), messages::del_link(index), 0) {
        Err(KernelError::Refused { errno, .. }) if is_absent(errno) => Ok(()),
        other => other,
    }
}

/// Remembers the index of a device of the router namespace.
pub(super) fn learn(linux: &mut Linux, name: &str) -> Result<(), KernelError> {
    let index = lookup(linux, name)?.ok_or_else(|| KernelError::NoLink { name: name.to_owned() })?;
    linux.indexes.insert(name.to_owned(), index);
    Ok(())
}

fn lookup(linux: &mut Linux, name: &str) -> Result<Option<u32>, KernelError> {
    Ok(get_device(&mut linux.router, name)?.map(|device| device.index))
}

/// A device of the socket's namespace.
pub(super) fn get_device(netlink: &mut Netlink, name: &str) -> Result<Option<Device>, KernelError> {
    match netlink.ask(&format!("look up device {name}"), messages::get_link(name)) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(observe::device(link)),
            _ => None,
        })),
        Err(error) if error.errno().is_some_and(is_absent) => Ok(None),
        Err(error) => Err(error),
    }
}
