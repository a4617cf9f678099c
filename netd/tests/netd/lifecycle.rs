//! Attach and detach, pictures, restarts, repairs, refusals.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_netd::core::links::{Mac, vtep_mac};
use rcluster_netd::core::rules::{TABLE, isolation};
use rcluster_netd::kernel::messages::{self, Next};
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use rcluster_netd::kernel::nft;
use tonic::Code;

use crate::support::dns::{RESOLVER, question, resolve};
use crate::support::seen::run;
use crate::support::traffic::{Traffic, sent_again};
use crate::support::{Host, Lab, eventually, network, two_pods};

#[test]
fn a_killed_netd_comes_back_unnoticed() {
    let mut lab = two_pods();
    let (client, server) = ((0, "t1"), (1, "t2"));
    let stream = Traffic::stream(&lab, client, server, "10.128.0.3:80", "10.128.0.3:80");
    stream.goes_on();
    let (before, again) = (lab.hosts[0].devices(), sent_again(&lab, &[client, server]));
    lab.hosts[0].kill();
    stream.goes_on();
    lab.hosts[0].start();
    stream.goes_on();
    assert_eq!(lab.hosts[0].devices(), before, "the same devices");
    let status = lab.hosts[0].status().unwrap();
    assert_eq!((status.revision, status.repairs, status.attachments.len(), status.problems.len()), (1, 0, 1, 0));
    assert_eq!(resolve(&lab.hosts[0], "t1", "web.").len(), 2);
    let answer = lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    assert!(answer.netns_path.ends_with("/netns/t1"));
    assert!(lab.hosts[0].stop().success(), "SIGTERM is a good end");
    stream.goes_on();
    lab.hosts[0].start();
    assert_eq!(lab.hosts[0].devices(), before);
    let longest = stream.close().unwrap();
    let again = sent_again(&lab, &[client, server]) - again;
    assert!(longest < Duration::from_secs(1) || again == 0, "a packet was lost: {longest:?}, {again} sent again");
}

#[test]
fn no_question_is_lost_while_netd_is_started_anew() {
    let mut lab = two_pods();
    let socket = lab.hosts[0].udp("t1", "0.0.0.0:0");
    socket.connect(RESOLVER).unwrap();
    let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, stopped) = (answered.clone(), stop.clone());
    let asker = thread::spawn(move || {
        let mut answer = [0; 512];
        for id in (0..=u16::MAX).cycle() {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            let mut request = question("web.", RecordType::A, None);
            request[..2].copy_from_slice(&id.to_be_bytes());
            // Each once.
            socket.send(&request).unwrap();
            let len = socket.recv(&mut answer).expect("an answer");
            assert!(len > 12 && answer[..2] == id.to_be_bytes(), "the answer to question {id}");
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..20 {
        let before = answered.load(Ordering::Relaxed);
        eventually("questions are answered", || answered.load(Ordering::Relaxed) > before + 20 || asker.is_finished());
        assert!(lab.hosts[0].stop().success());
        lab.hosts[0].start();
    }
    stop.store(true, Ordering::Relaxed);
    asker.join().expect("every question was answered");
    assert_eq!(keepers(&lab.hosts[0]), 1);
}

#[test]
fn who_keeps_the_sockets_survives_netd_and_not_the_run_directory() {
    let mut lab = two_pods();
    let host = &mut lab.hosts[0];
    host.kill();
    assert_eq!(keepers(host), 1);
    host.start();
    assert_eq!((keepers(host), resolve(host, "t1", "web.").len()), (1, 2));
    host.kill();
    std::fs::remove_file(host.run_dir().join("dns.hold")).unwrap();
    eventually("the keeper ends", || keepers(host) == 0);
    host.start();
    assert_eq!((keepers(host), resolve(host, "t1", "web.").len()), (1, 2));
    // One that is killed is replaced, and hands the sockets on like the first.
    let first = keeper_pids(host);
    tell(&first, Signal::SIGKILL);
    eventually("there is another one", || keepers(host) == 1 && keeper_pids(host) != first);
    host.kill();
    host.start();
    assert_eq!((keepers(host), resolve(host, "t1", "web.").len()), (1, 2));
}

#[test]
fn who_keeps_the_sockets_and_is_slow_does_not_keep_netd_from_starting() {
    let mut lab = two_pods();
    let host = &mut lab.hosts[0];
    let keeper = keeper_pids(host);
    host.kill();
    tell(&keeper, Signal::SIGSTOP);
    let mut netd = host.spawn(&host.addr.to_string(), Stdio::piped());
    let mut words = BufReader::new(netd.stderr.take().expect("piped")).lines().map(Result::unwrap);
    assert!(words.any(|line| line.contains("from who keeps them")), "it asks, in vain");
    tell(&keeper, Signal::SIGCONT);
    eventually("netd answers", || host.status().is_ok());
    assert_eq!((keepers(host), resolve(host, "t1", "web.").len()), (1, 2));
    netd.kill().unwrap();
    netd.wait().unwrap();
}

fn tell(processes: &[Pid], signal: Signal) {
    for process in processes {
        kill(*process, signal).unwrap();
    }
}

/// How many processes keep the resolver's sockets of a host.
fn keepers(host: &Host) -> usize {
    keeper_pids(host).len()
}

fn keeper_pids(host: &Host) -> Vec<Pid> {
    let path = host.run_dir().canonicalize().unwrap().join("dns.hold");
    let tail = [b"\0hold\0".as_slice(), path.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let keeps = |process: &std::path::Path| std::fs::read(process.join("cmdline")).is_ok_and(|words| words.ends_with(&tail));
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap()).filter(|entry| keeps(&entry.path()));
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}

#[test]
fn attach_can_be_repeated_but_not_changed() {
    let lab = two_pods();
    let host = &lab.hosts[0];
    let devices = host.devices();
    let first = host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    assert_eq!(host.attach("t1", &[("front", "10.128.0.2")]).unwrap(), first);
    assert_eq!(host.devices(), devices);

    let refused = |task: &str, networks: &[(&str, &str)], code: Code, word: &str| {
        let status = host.attach(task, networks).unwrap_err();
        assert!(status.code() == code && status.message().contains(word), "{status:?}");
        assert!(task == "t1" || task == "router" || task.contains('/') || !host.pinned(task));
    };
    refused("t1", &[("front", "10.128.0.9")], Code::FailedPrecondition, "attached already");
    refused("t9", &[("front", "10.128.0.2")], Code::FailedPrecondition, "held by task t1");
    refused("t9", &[("nowhere", "10.128.7.2")], Code::Unavailable, "not in this node's picture");
    refused("t9", &[("front", "10.128.7.2")], Code::InvalidArgument, "not in 10.128.0.0/24");
    refused("t9", &[("front", "10.128.0.8"), ("front", "10.128.0.9")], Code::InvalidArgument, "twice");
    refused("t9", &[("front", "not an address")], Code::InvalidArgument, "not an IPv4 address");
    refused("router", &[], Code::InvalidArgument, "cannot name");
    refused("../t9", &[], Code::InvalidArgument, "cannot name");
    assert_eq!(host.devices(), devices);
}

#[test]
fn a_pod_without_networks_has_its_loopback_alone() {
    let lab = Lab::start(1);
    let answer = lab.hosts[0].attach("alone", &[]).unwrap();
    assert_eq!((answer.dns.as_str(), answer.search.len()), ("", 0));
    let listener = lab.hosts[0].listen("alone", "127.0.0.1:80");
    lab.hosts[0].connect("alone", "127.0.0.1:80").unwrap();
    drop(listener);
    assert!(lab.hosts[0].connect("alone", "192.0.2.1:80").is_err());
    lab.hosts[0].detach("alone").unwrap();
    assert!(!lab.hosts[0].pinned("alone"));
}

#[test]
fn detach_leaves_nothing_and_can_be_repeated() {
    let lab = Lab::start(1);
    let host = &lab.hosts[0];
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2)])]);
    let (devices, held) = (host.devices(), held(host));
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    assert_ne!(self::held(host), held);
    host.detach("t1").unwrap();
    host.detach("t1").unwrap();
    host.detach("never").unwrap();
    assert!(!host.pinned("t1"));
    assert_eq!(self::held(host), held, "no rule elements, routes or neighbours");
    eventually("the kernel has taken the device down", || host.devices() == devices);
    // At once again, even while the kernel is still at it.
    for _ in 0..50 {
        host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
        assert_eq!(resolve(host, "t1", "web.").len(), 1);
        host.detach("t1").unwrap();
    }
    // What the kernel is at for longer, netd takes down itself, and does not count as a repair.
    assert_eq!(host.status().unwrap().repairs, 0);
    // A network without pods goes with the picture, its device too.
    lab.apply(2, &[]);
    assert_eq!(host.devices().into_iter().filter(|(name, _)| name.starts_with('v')).count(), 0);
}

/// Elements and routes of the router, as text.
pub fn held(host: &crate::support::Host) -> String {
    host.inside("router", || {
        let (_, elements) = nft::observe(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap()).unwrap();
        let mut route = netlink_packet_route::route::RouteMessage::default();
        route.header.address_family = netlink_packet_route::AddressFamily::Inet;
        let routes = Netlink::open(NETLINK_ROUTE).unwrap().dump("routes", &RouteNetlinkMessage::GetRoute(route)).unwrap();
        format!("{elements:?}\n{routes:?}")
    })
}

#[test]
fn an_older_picture_is_answered_with_the_one_in_force() {
    let mut lab = two_pods();
    lab.apply(7, &[network("front", 0, &[("t1", 0, 2)])]);
    let host = &lab.hosts[0];
    let older = lab.view(0, 6, &[]);
    assert_eq!(host.apply(older.clone()).unwrap().revision, 7);
    assert_eq!(resolve(host, "t1", "web.").len(), 1);
    let newer_term = rcluster_api::wire::v1::NetView { term: 2, revision: 1, ..older.clone() };
    assert_eq!(host.apply(newer_term).unwrap().revision, 1);
    assert_eq!(host.apply(rcluster_api::wire::v1::NetView::default()).unwrap_err().code(), Code::InvalidArgument);
    // Also after a restart.
    lab.hosts[0].kill();
    lab.hosts[0].start();
    let answer = lab.hosts[0].apply(older).unwrap();
    assert_eq!((answer.term, answer.revision), (2, 1));
}

#[test]
fn a_network_that_left_the_picture_serves_its_last_pod() {
    let mut lab = two_pods();
    lab.apply(2, &[]);
    assert_eq!(resolve(&lab.hosts[0], "t1", "web.").len(), 2);
    lab.hosts[0].kill();
    lab.hosts[0].start();
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    lab.hosts[0].detach("t1").unwrap();
    eventually("no device is left", || lab.hosts[0].devices().iter().all(|(name, _)| name == "lo" || name == "up"));
}

#[test]
fn what_someone_breaks_is_mended_and_counted() {
    let lab = two_pods();
    let host = &lab.hosts[0];
    let devices = host.devices();
    let vxlan = devices.iter().find(|(name, _)| name == "v4096").expect("the network's device").1;
    let peer = lab.hosts[1].addr;
    let route = move |last: u8| {
        let to = ipnet::Ipv4Net::from(std::net::Ipv4Addr::new(10, 128, 0, last));
        messages::route(to.into(), Next::Gateway { device: vxlan, address: peer.into(), source: None })
    };
    let stranger = route(250);
    host.inside("router", move || {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let delete = RouteNetlinkMessage::DelNeighbour;
        netlink.request("route", RouteNetlinkMessage::DelRoute(route(3)), 0).unwrap();
        netlink.request("neighbour", delete(messages::neighbour(vxlan, peer.into(), None)), 0).unwrap();
        netlink.request("forward", delete(messages::forward(vxlan, vtep_mac(peer), peer)), 0).unwrap();
        netlink.request("mtu", messages::set_link(vxlan, Some(Mac([2, 0, 0, 0, 0, 9])), 1000, true), 0).unwrap();
        netlink.request("stale route", RouteNetlinkMessage::NewRoute(stranger), messages::REPLACE).unwrap();
        let element = isolation::exit(4096, "v4096");
        nft::change(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &[nft::Change::remove(&element)]).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    });
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    assert_eq!(host.status().unwrap().repairs, 7);
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    host.connect("t1", "10.128.0.3:80").unwrap();
    assert_eq!(host.devices(), devices);

    // The same picture again finds nothing to do.
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    assert_eq!(host.status().unwrap().repairs, 7);

    // The whole table, and a device with all that hung on it.
    host.inside("router", move || {
        nft::load(
            &mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(),
            &rcluster_netd::core::rules::Skeleton { table: TABLE, sets: vec![], chains: vec![] },
        )
        .unwrap();
        Netlink::open(NETLINK_ROUTE).unwrap().request("device", messages::del_link(vxlan), 0).unwrap();
    });
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    host.connect("t1", "10.128.0.3:80").unwrap();
    assert_eq!(host.status().unwrap().problems, Vec::<String>::new());
}

#[test]
fn routes_of_others_in_the_router_are_left_alone() {
    let lab = two_pods();
    let host = &lab.hosts[0];
    host.inside("router", || {
        let to = ipnet::Ipv4Net::from(std::net::Ipv4Addr::new(198, 51, 100, 1));
        let mut foreign = messages::route(to.into(), Next::Device(1));
        foreign.header.protocol = netlink_packet_route::route::RouteProtocol::Static;
        Netlink::open(NETLINK_ROUTE).unwrap().request("route", RouteNetlinkMessage::NewRoute(foreign), messages::CREATE).unwrap();
    });
    lab.apply(2, &[network("front", 0, &[("t1", 0, 2)])]);
    assert!(held(host).contains("198.51.100.1"));
    assert_eq!(host.status().unwrap().repairs, 0);
}

#[test]
fn after_a_reboot_the_picture_is_there_and_the_pods_are_not() {
    let mut lab = two_pods();
    let host = &mut lab.hosts[0];
    host.kill();
    let run_dir = host.run_dir();
    host.here(move || {
        for pin in ["t1", "router"] {
            rcluster_netd::kernel::netns::remove(&run_dir.join("netns").join(pin)).unwrap();
        }
        std::fs::remove_dir_all(&run_dir).unwrap();
    });
    host.start();
    let status = host.status().unwrap();
    assert_eq!((status.revision, status.attachments.len(), status.repairs), (1, 0, 0));
    // The kernel may still be taking the old router down, and its VXLAN device with it.
    eventually("no problem is left", || host.status().unwrap().problems.is_empty());
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
}

#[test]
fn what_cannot_work_is_said_at_the_start() {
    let lab = Lab::start(1);
    let second = lab.hosts[0].refusal("10.90.0.101");
    assert!(second.contains(&format!("another rcluster-netd (process {}) serves", lab.hosts[0].pid())), "{second}");
    let bare = Lab::wire(1);
    let stranger = bare.hosts[0].refusal("10.90.0.77");
    assert!(stranger.contains("10.90.0.77 is not an address of this host; give one that is by --addr"), "{stranger}");
}

#[test]
fn a_pods_own_devices_are_its_own_business() {
    let mut lab = two_pods();
    let host = &mut lab.hosts[0];
    let devices = host.devices();
    host.inside("t1", || {
        for pair in [["v0", "v1"], ["eth7", "eth8"]] {
            run(&format!("ip link add {} type veth peer name {}", pair[0], pair[1]));
        }
    });
    host.kill();
    host.start();
    assert_eq!(host.status().unwrap().repairs, 0);
    assert_eq!(host.devices(), devices);
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
}

#[test]
fn the_hosts_own_routes_are_told() {
    let lab = Lab::start(1);
    let host = &lab.hosts[0];
    let told = || {
        let network = host.status().unwrap().network.unwrap();
        (network.mtu, network.routes, network.conditions)
    };
    assert_eq!(told(), (1450, vec!["10.90.0.0/24".to_owned()], vec![]));
    host.here(|| {
        for route in ["192.168.7.0/24", "192.168.7.9/32", "default", "172.30.0.0/16 table 100", "blackhole 10.1.0.0/16"] {
            let device = if route.starts_with("blackhole") { "" } else { " dev up0" };
            run(&format!("ip route add {route}{device}"));
        }
    });
    // A netd with pods makes no route on the host itself.
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2)])]);
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    let routes = ["10.90.0.0/24", "172.30.0.0/16", "192.168.7.0/24"].map(str::to_owned).to_vec();
    eventually("they are told", || told() == (1450, routes.clone(), vec![]));
}
