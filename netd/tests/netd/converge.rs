//! What others change is mended at once.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use rcluster_netd::core::links::vtep_mac;
use rcluster_netd::core::rules::{self, Skeleton, isolation};
use rcluster_netd::kernel::messages;
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use rcluster_netd::kernel::nft;

use crate::lifecycle::held;
use crate::support::seen::run;
use crate::support::{Host, Lab, eventually, network};

/// From the change to its end.
const BOUND: Duration = Duration::from_secs(1);

/// So often each is tried until it is within the bound: this machine may be busy.
const TRIES: usize = 3;

/// A command, to be run somewhere.
fn ip(arguments: &'static str) -> impl FnOnce() + Send {
    move || run(&format!("ip {arguments}"))
}

fn forget_forward() {
    let peer = Ipv4Addr::new(10, 90, 0, 102);
    let device = nix::net::if_::if_nametoindex("v4096").unwrap();
    let forward = RouteNetlinkMessage::DelNeighbour(messages::forward(device, vtep_mac(peer), peer));
    Netlink::open(NETLINK_ROUTE).unwrap().request("forward", forward, 0).unwrap();
}

fn forget_element() {
    let element = isolation::exit(4096, "v4096");
    nft::change(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &[nft::Change::remove(&element)]).unwrap();
}

fn empty(table: rules::Table) {
    let nothing = Skeleton { table, sets: vec![], chains: vec![] };
    nft::load(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &nothing).unwrap();
}

/// What is broken, and how.
type Breakage = (&'static str, fn(&Host));

#[test]
fn what_others_change_is_mended_within_a_second_and_not_at_the_regular_check() {
    let lab = Lab::start(2);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    let host = &lab.hosts[0];
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[1].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    let breakages: [Breakage; 12] = [
        ("a route is gone", |host| host.inside("router", ip("route del 10.128.0.3/32"))),
        ("a route too many", |host| host.inside("router", ip("route add 10.128.0.77/32 via 10.90.0.102 dev v4096 onlink proto 114"))),
        ("a neighbour is gone", |host| host.inside("router", ip("neigh del 10.90.0.102 dev v4096"))),
        ("a forwarding entry is gone", |host| host.inside("router", forget_forward)),
        ("a device has another MTU", |host| host.inside("router", ip("link set v4096 mtu 1000"))),
        ("a device is down", |host| host.inside("router", ip("link set v4096 down"))),
        ("the resolver's address is gone", |host| host.inside("router", ip("addr del 169.254.53.53/32 dev lo"))),
        ("an element is gone", |host| host.inside("router", forget_element)),
        ("the rules are gone", |host| host.inside("router", || empty(rules::TABLE))),
        ("nothing is forwarded", |host| host.inside("router", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap())),
        ("the host's end is down", |host| host.here(ip("link set rcl-up down"))),
        ("the host's rules are gone", |host| host.here(|| empty(rules::host::TABLE))),
    ];
    let whole = held(host);
    for (what, breaks) in breakages {
        let mended = || {
            let repairs = host.status().unwrap().repairs;
            let begun = Instant::now();
            breaks(host);
            eventually(what, || host.status().unwrap().repairs > repairs);
            begun.elapsed()
        };
        let took: Vec<Duration> = (0..TRIES).map(|_| mended()).collect();
        assert!(took.iter().any(|took| *took < BOUND), "{what}: mended after {took:?}");
        eventually(what, || held(host) == whole);
        assert_eq!(host.status().unwrap().problems, Vec::<String>::new(), "{what}");
    }
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    host.connect("t1", "10.128.0.3:80").unwrap();
}

#[test]
fn what_netd_does_itself_and_what_is_not_ours_is_not_mended() {
    let lab = Lab::start(1);
    let host = &lab.hosts[0];
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2)])]);
    for round in 2..12 {
        host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
        host.here(ip("link add other type veth peer name another"));
        host.inside("router", ip("route add 198.51.100.0/24 dev lo"));
        lab.apply(round, &[network("front", 0, &[("t1", 0, 2)])]);
        host.inside("router", ip("route del 198.51.100.0/24 dev lo"));
        host.here(ip("link del other"));
        host.detach("t1").unwrap();
    }
    // The look that follows the last of it has been taken when one that is asked for later has.
    host.inside("router", ip("route add 10.128.0.77/32 dev lo proto 114"));
    eventually("the stray is gone", || host.status().unwrap().repairs > 0);
    assert_eq!(host.status().unwrap().repairs, 1);
}
