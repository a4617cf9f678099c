//! The real kernel: the host's namespace, the router's, and the pods', under one run directory.
//!
//! ```text
//! host namespace          router namespace (R/netns/router)             pod namespace (R/netns/<task id>)
//! underlay ── UDP 4789 ┄┄ v<vni>  ── routes, rules ── p<hash> ═ veth ═ eth0, address /32 (and /128)
//! rcl-up ══ veth ════════ up        lo: resolver, gateway
//! rcl-wg0, rcl-wg1: tunnels
//! ```
//!
//! The router namespace is adopted if it is pinned already; nothing in it is reset.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use netlink_packet_route::link::InfoKind;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::netlink::{NETLINK_ROUTE, Netlink};
use super::observe::Routes;
use super::watch::{RouterEars, Watch};
use super::wireguard::{self, Wireguard};
use super::{Failure, HostSix, Kernel, KernelError, Pods, apply, conntrack, echo, host, messages, netns, nft, observe};
use crate::core::dataplane::Dataplane;
use crate::core::encryption::PublicKey;
use crate::core::flows::{Flow, Transport};
use crate::core::ingress::Target;
use crate::core::links::{LOOPBACK, Pod, RESOLVER, VXLAN_OVERHEAD};
use crate::core::plan::Op;
use crate::core::published::Opening;
use crate::proxy::Proxy;

/// The router namespace's pin in the pins' directory; no task may have this id.
pub const ROUTER: &str = "router";

const DNS_PORT: u16 = 53;

/// Smallest underlay MTU that leaves IPv4's 576 bytes to pods.
const UNDERLAY_MTU_MIN: u32 = 576 + VXLAN_OVERHEAD;

/// The sysctls of the router namespace once it forwards, whatever the host's are, which a new namespace has. Of pods and of other nodes'
/// pods the kernel is not asked for the way back to the sender, a search of all routes for each packet: rules have compared the sender with
/// the one address of its device, here or there. No rationing of ICMP "unreachable" (bit 3 of the mask; the rest is the kernel's default),
/// for a pod that is refused often must not take refusals for losses. A segment outside of the window that connection tracking expects is its
/// connection's all the same: it would be dropped here, and is the receiver's to judge. That setting is there once rules that ask for
/// connections are.
const FORWARDING: [(&str, &str); 9] = [
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_local", "0"),
    // With rules of routing there, only this spares the search.
    ("ipv4/conf/default/accept_local", "1"),
    ("ipv4/conf/all/src_valid_mark", "0"),
    ("ipv4/conf/default/src_valid_mark", "0"),
    ("ipv4/icmp_ratemask", "6160"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("ipv4/ip_forward", "1"),
];

/// The same of IPv6, where the kernel has that (type 1 is "unreachable").
const FORWARDING6: [(&str, &str); 2] = [("ipv6/conf/all/forwarding", "1"), ("ipv6/icmp/ratemask", "0,3-127")];

/// The sysctls of a device that has IPv6: no addresses but those that it is given, and nobody is believed who calls himself a router or shows
/// other ways. Enabled last.
const SIX: [(&str, &str); 6] =
    [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")];

/// By the uplink comes what is not behind any other device.
const STRICT: [(&str, &str); 2] = [("ipv4/conf/up/rp_filter", "1"), ("ipv4/conf/up/accept_local", "0")];

/// The device of published ports takes packets of any source that is somewhere.
const LOOSE: [(&str, &str); 2] = [("ipv4/conf/ing/rp_filter", "2"), ("ipv4/conf/ing/accept_local", "0")];

/// The node's kernel.
pub struct Linux {
    /// R/netns.
    pub(super) pins: PathBuf,
    pub(super) addr: Ipv4Addr,
    pub(super) host: Netlink,
    pub(super) router: Netlink,
    pub(super) rules: Netlink,
    /// nf_tables of the host's namespace.
    pub(super) host_rules: Netlink,
    pub(super) wireguard: Wireguard,
    /// The router namespace's devices by name, as last seen or made.
    pub(super) indexes: BTreeMap<String, u32>,
    /// The ports of the host that are ours.
    proxy: Proxy,
}

/// The resolver's sockets, bound in the router namespace.
pub struct ResolverSockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

impl Linux {
    /// Checks what the kernel offers and makes, or adopts, the router namespace; the second value tells whether it was adopted.
    pub fn start(run_dir: &Path, addr: Ipv4Addr) -> Result<(Self, bool), KernelError> {
        let pins = run_dir.join("netns");
        fs::create_dir_all(&pins).map_err(|source| KernelError::Namespace { path: pins.clone(), source })?;
        let mut host = Netlink::open(NETLINK_ROUTE)?;
        probe(&mut host)?;
        host::check(&mut host)?;
        let router_pin = pins.join(ROUTER);
        let adopted = netns::create(&router_pin, prepare_router)?.is_none();
        let (router, rules) = netns::inside(&router_pin, || {
            Ok((Netlink::open(NETLINK_ROUTE)?, Netlink::open(nft::NETLINK_NETFILTER).map_err(no_nf_tables)?))
        })?;
        let host_rules = Netlink::open(nft::NETLINK_NETFILTER).map_err(no_nf_tables)?;
        let proxy = Proxy::start(router_pin).map_err(|error| KernelError::Missing {
            why: format!("the thread that takes the host's own connections to published ports cannot be started: {error}"),
        })?;
        let wireguard = Wireguard::open()?;
        let mut linux = Self { pins, addr, host, router, rules, host_rules, wireguard, indexes: BTreeMap::new(), proxy };
        linux.overlay_mtu()?;
        nft::observe(&mut linux.rules).map_err(no_nf_tables)?;
        Ok((linux, adopted))
    }

    /// Where a pod's namespace is pinned.
    pub fn pin(&self, task: &str) -> PathBuf {
        self.pins.join(task)
    }

    /// Binds the resolver's sockets; its address must be there.
    pub fn resolver_sockets(&self) -> Result<ResolverSockets, KernelError> {
        let pin = self.pins.join(ROUTER);
        let failed = |source: io::Error| KernelError::Namespace { path: pin.clone(), source };
        netns::inside(&pin, || {
            let bind = |kind: Type, protocol: Protocol| -> io::Result<Socket> {
                let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
                socket.set_reuse_address(kind == Type::STREAM)?;
                socket.bind(&std::net::SocketAddr::from((RESOLVER, DNS_PORT)).into())?;
                Ok(socket)
            };
            let udp = bind(Type::DGRAM, Protocol::UDP).map_err(failed)?;
            nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::Ipv4PacketInfo, &true).map_err(|errno| failed(errno.into()))?;
            let tcp = bind(Type::STREAM, Protocol::TCP).map_err(failed)?;
            tcp.listen(128).map_err(failed)?;
            tcp.set_nonblocking(true).map_err(failed)?;
            Ok(ResolverSockets { udp: udp.into(), tcp: tcp.into() })
        })
    }

    /// Hears of what others than this kernel's owner change.
    pub fn watch(&self) -> Result<Watch, KernelError> {
        let own = [&self.host, &self.router, &self.rules, &self.host_rules].map(Netlink::port);
        let ears = netns::inside(&self.pins.join(ROUTER), RouterEars::open)?;
        Watch::open(ears, own.into())
    }

    /// A socket in the router namespace that is connected to the resolver's.
    pub fn resolver_client(&self) -> Result<std::net::UdpSocket, KernelError> {
        let pin = self.pins.join(ROUTER);
        netns::inside(&pin, || {
            let connected = std::net::UdpSocket::bind((RESOLVER, 0)).and_then(|socket| {
                socket.connect((RESOLVER, DNS_PORT))?;
                Ok(socket)
            });
            connected.map_err(|source| KernelError::Namespace { path: pin.clone(), source })
        })
    }

    /// A route socket in a pod's namespace.
    pub(super) fn pod_netlink(&self, task: &str) -> Result<Netlink, KernelError> {
        netns::inside(&self.pin(task), || Netlink::open(NETLINK_ROUTE))
    }

    /// Makes a pod's namespace, unless it is there: loopback up, reverse paths loose (the router checks sources; a pod with two
    /// networks hears the router on either), no IPv6 but the loopback's until an interface is given an address of it.
    pub(super) fn create_pod(&self, task: &str) -> Result<(), KernelError> {
        netns::create(&self.pin(task), || {
            netns::set_sysctl("ipv4/conf/all/rp_filter", "0", false)?;
            netns::set_sysctl("ipv4/conf/default/rp_filter", "0", false)?;
            netns::set_sysctl("ipv6/conf/default/disable_ipv6", "1", true)?;
            Netlink::open(NETLINK_ROUTE)?.request("bring up a pod's loopback", messages::loopback_up(), 0)
        })?;
        Ok(())
    }

    pub(super) fn forwarding(&self) -> Result<bool, KernelError> {
        netns::inside(&self.pins.join(ROUTER), || {
            for (name, value) in forwarding_settings() {
                match netns::sysctl(name) {
                    Ok(set) if set == value => {}
                    Ok(_) => return Ok(false),
                    Err(KernelError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            for (name, value) in STRICT {
                match netns::sysctl(name) {
                    Ok(set) if set != value => return Ok(false),
                    // There is no uplink yet.
                    Err(KernelError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    other => drop(other?),
                }
            }
            Ok(true)
        })
    }

    pub(super) fn enable_forwarding(&self) -> Result<(), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || {
            forwarding_settings().try_for_each(|(name, value)| netns::set_sysctl(name, value, false))?;
            STRICT.iter().try_for_each(|(name, value)| netns::set_sysctl(name, value, true))
        })
    }

    /// The uplink is there by now.
    pub(super) fn tighten_uplink(&self) -> Result<(), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || STRICT.iter().try_for_each(|(name, value)| netns::set_sysctl(name, value, false)))
    }

    /// Has a device of the router namespace take IPv6, or not.
    pub(super) fn set_six(&self, device: &str, six: bool) -> Result<(), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || {
            if six { enable_six(device) } else { netns::set_sysctl(&of_device(device, "disable_ipv6"), "1", true) }
        })
    }

    /// Has a pod's interface take IPv6.
    pub(super) fn set_six_of_pod(&self, task: &str, interface: &str) -> Result<(), KernelError> {
        netns::inside(&self.pin(task), || enable_six(interface))
    }

    /// The host may have it otherwise for all its namespaces.
    pub(super) fn allow_loopback_six(&self) -> Result<(), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || netns::set_sysctl(&of_device(LOOPBACK, "disable_ipv6"), "0", false))
    }

    /// Those of our devices in the router namespace that take IPv6 as they should, or do not as they should not: the former.
    fn with_six(&self, devices: &[observe::Device]) -> Result<BTreeSet<String>, KernelError> {
        let ours = devices.iter().map(|device| &device.name).filter(|name| crate::core::links::is_ours(name));
        if !netns::has_six() {
            return Ok(BTreeSet::new());
        }
        netns::inside(&self.pins.join(ROUTER), || {
            // A device may have gone meanwhile, or be too small for IPv6: then it has no settings.
            let is = |device: &str, (name, value): (&str, &str)| netns::sysctl(&of_device(device, name)).is_ok_and(|held| held == value);
            Ok(ours.filter(|device| SIX.iter().rev().all(|setting| is(device, *setting))).cloned().collect())
        })
    }

    pub(super) fn loosen_ingress(&self) -> Result<(), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || LOOSE.iter().try_for_each(|(name, value)| netns::set_sysctl(name, value, false)))
    }

    /// Its address, once it is loose too.
    fn observe_ingress(&mut self, devices: &[observe::Device]) -> Result<Option<Ipv4Addr>, KernelError> {
        let Some(ip) = observe::ingress(&mut self.router, devices)? else { return Ok(None) };
        let values =
            netns::inside(&self.pins.join(ROUTER), || LOOSE.iter().map(|(name, _)| netns::sysctl(name)).collect::<Result<Vec<_>, _>>())?;
        Ok(values.iter().zip(LOOSE).all(|(held, (_, value))| held == value).then_some(ip))
    }

    fn observe_pods(&mut self, pods: Pods<'_>, names: &BTreeMap<u32, String>) -> Result<BTreeMap<String, Pod>, KernelError> {
        let mut seen = BTreeMap::new();
        for task in observe::pins(&self.pins)? {
            let pod = match pods {
                Pods::Believe(believed) => believed.get(&task).cloned().unwrap_or_default(),
                Pods::Look if netns::is_pinned(&self.pin(&task)) => observe::pod(&mut self.pod_netlink(&task)?, names)?,
                // The pin's mount is gone: what is left is a file, which a plan removes or pins anew.
                Pods::Look => continue,
            };
            seen.insert(task, pod);
        }
        Ok(seen)
    }
}

impl Kernel for Linux {
    fn observe(&mut self, pods: Pods<'_>) -> Result<Dataplane, KernelError> {
        let devices = observe::devices(&mut self.router)?;
        let names: BTreeMap<u32, String> = devices.iter().map(|device| (device.index, device.name.clone())).collect();
        self.indexes = devices.iter().map(|device| (device.name.clone(), device.index)).collect();
        let ours: BTreeMap<u32, String> =
            names.iter().filter(|(_, name)| crate::core::links::is_ours(name)).map(|(i, n)| (*i, n.clone())).collect();
        let (rules, elements) = nft::observe(&mut self.rules)?;
        let Routes { main: routes, detours } = observe::all_routes(&mut self.router, &names)?;
        let lookup = observe::lookup(&mut self.router)?;
        Ok(Dataplane {
            plain_lookup: lookup.is_plain(),
            resolver: observe::resolver(&mut self.router, &devices, netns::has_six())?,
            forwarding: self.forwarding()?,
            rules,
            elements,
            links: observe::links(&devices, &self.with_six(&devices)?),
            neighbours: observe::neighbours(&mut self.router, &ours)?,
            forwards: observe::forwards(&mut self.router, &ours)?,
            routes,
            detours,
            selectors: lookup.selectors,
            ingress: self.observe_ingress(&devices)?,
            pods: self.observe_pods(pods, &names)?,
            host: host::observe(self, &devices)?,
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Failure> {
        apply::apply(self, ops)
    }

    fn flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        conntrack::flows(&mut self.rules, which)
    }

    fn forget(&mut self, flow: &Flow) -> Result<(), KernelError> {
        conntrack::forget(&mut self.rules, flow)
    }

    fn host_flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        let mut own: BTreeSet<IpAddr> = observe::addresses(&mut self.host)?.into_iter().map(|(_, ip)| ip.into()).collect();
        if netns::has_six() {
            own.extend(observe::addresses6(&mut self.host)?.into_iter().map(|(_, ip6)| IpAddr::V6(ip6)));
        }
        let comes = |flow: &Flow| flow.transport == Transport::Udp && own.contains(&flow.destination.0) && !own.contains(&flow.source.0);
        conntrack::flows(&mut self.host_rules, &|flow: &Flow| comes(flow) && which(flow))
    }

    fn forget_on_host(&mut self, flow: &Flow) -> Result<(), KernelError> {
        conntrack::forget(&mut self.host_rules, flow)
    }

    fn silent(&mut self, nodes: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
        echo::silent(nodes).unwrap_or_else(|error| {
            warn!(%error, "nodes that are said to be down could not be asked");
            BTreeSet::new()
        })
    }

    fn without_carrier(&mut self, links: &[String]) -> Vec<String> {
        apply::without_carrier(self, links)
    }

    fn indexes(&self) -> BTreeMap<u32, String> {
        self.indexes.iter().map(|(name, index)| (*index, name.clone())).collect()
    }

    fn overlay_mtu(&mut self) -> Result<u32, KernelError> {
        let addr = self.addr;
        let index = observe::addresses(&mut self.host)?.into_iter().find(|(_, ip)| *ip == addr).map(|(index, _)| index);
        let Some(index) = index else {
            return Err(KernelError::Missing { why: format!("{addr} is not an address of this host; give one that is by --addr") });
        };
        let mtu = observe::devices(&mut self.host)?.into_iter().find(|device| device.index == index).map_or(0, |device| device.mtu);
        if mtu < UNDERLAY_MTU_MIN {
            return Err(KernelError::Missing {
                why: format!("the device of {addr} has MTU {mtu}; the overlay needs at least {UNDERLAY_MTU_MIN}"),
            });
        }
        // The loopback's 64 KiB and other giants are more than an IP packet can use.
        Ok(mtu.min(u32::from(u16::MAX)) - VXLAN_OVERHEAD)
    }

    fn no_encryption(&mut self) -> Option<String> {
        wireguard::missing(self)
    }

    fn public_keys(&mut self) -> Result<BTreeMap<u64, PublicKey>, KernelError> {
        wireguard::public_keys(self)
    }

    fn tracked(&mut self) -> Result<(u64, u64), KernelError> {
        netns::inside(&self.pins.join(ROUTER), || {
            let number = |name: &str| -> Result<u64, KernelError> {
                let text = netns::sysctl(name)?;
                text.parse().map_err(|_| KernelError::Decode { why: format!("{name} is {text:?}") })
            };
            Ok((number("netfilter/nf_conntrack_count")?, number("netfilter/nf_conntrack_max")?))
        })
    }

    fn keep_ports(&mut self, ports: &BTreeSet<Opening>, six: &BTreeSet<Opening>) -> BTreeMap<Opening, String> {
        self.proxy.keep(ports, six)
    }

    fn lead(&mut self, targets: BTreeMap<Opening, Vec<Target>>) {
        self.proxy.lead(targets);
    }

    fn has_six(&self) -> bool {
        netns::has_six()
    }

    fn host_routes(&mut self) -> Result<Vec<Ipv4Net>, KernelError> {
        observe::host_routes(&mut self.host)
    }

    fn host_six(&mut self) -> Result<HostSix, KernelError> {
        host::six(self)
    }
}

fn forwarding_settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    FORWARDING.into_iter().chain(FORWARDING6.into_iter().filter(|_| netns::has_six()))
}

/// A device's sysctl of IPv6.
pub(super) fn of_device(device: &str, name: &str) -> String {
    format!("ipv6/conf/{device}/{name}")
}

/// In the calling thread's namespace.
pub(super) fn enable_six(device: &str) -> Result<(), KernelError> {
    SIX.iter().try_for_each(|(name, value)| netns::set_sysctl(&of_device(device, name), value, false))
}

/// In the router's new namespace, before anything can be forwarded.
fn prepare_router() -> Result<(), KernelError> {
    netns::set_sysctl("ipv6/conf/default/disable_ipv6", "1", true)?;
    netns::set_sysctl("ipv4/ip_forward", "0", false)
}

/// Tells what is missing before anything is touched.
fn probe(host: &mut Netlink) -> Result<(), KernelError> {
    for (kind, name) in [(InfoKind::Vxlan, "vxlan"), (InfoKind::Veth, "veth")] {
        match host.request(&format!("ask for {name} devices"), messages::probe_link(kind), messages::CREATE) {
            Err(KernelError::Refused { errno: Errno::EOPNOTSUPP, .. }) => {
                let config = name.to_ascii_uppercase();
                return Err(KernelError::Missing {
                    why: format!("this kernel has no {name} devices (CONFIG_{config}); load the module {name} or use a kernel that has it"),
                });
            }
            Err(KernelError::Refused { errno: Errno::EPERM, .. }) => {
                return Err(KernelError::Missing { why: "netd must run as root (CAP_NET_ADMIN and CAP_SYS_ADMIN)".to_owned() });
            }
            // The probe's address is refused by a kernel that knows the kind.
            Err(KernelError::Refused { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn no_nf_tables(error: KernelError) -> KernelError {
    match error.errno() {
        Some(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EAFNOSUPPORT) => KernelError::Missing {
            why: "this kernel has no nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET); load the module nf_tables or use a kernel that has it"
                .to_owned(),
        },
        _ => error,
    }
}
