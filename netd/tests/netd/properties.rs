//! What holds whatever happens: the kernel broken at random, pictures in any order, an address that moves while its old holder stays on.
//! What fails names its seed, which is taken again from RCLUSTER_SEED.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rcluster_api::wire::v1;
use rcluster_netd::kernel::messages::{self, Next};
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft;

use crate::lifecycle::held;
use crate::support::{Host, Lab, eventually, network};

/// Rounds in which the kernel is broken.
const ROUNDS: u32 = 200;

fn chance() -> (u64, StdRng) {
    let given = std::env::var("RCLUSTER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    (seed, StdRng::seed_from_u64(seed))
}

/// Breaks some of what the router holds; what was done, for people.
fn breaks(host: &Host, mut rng: StdRng) -> Vec<String> {
    let peer = Ipv4Addr::new(10, 90, 0, 102);
    let devices: Vec<(String, u32)> = host.devices().into_iter().filter(|(name, _)| name.starts_with(['v', 'p'])).collect();
    host.inside("router", move || {
        let mut done = Vec::new();
        let mut ip = |arguments: &str| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("the tests have iproute2");
            done.push(format!("ip {arguments}: {}", output.status));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for (kind, shown) in [("route", ip("-4 -o route show proto 114")), ("neighbour", ip("-4 neigh show nud permanent"))] {
            for line in shown.lines().filter(|_| rng.random_ratio(1, 4)) {
                let words: Vec<&str> = line.split_whitespace().collect();
                match (kind, &words[..]) {
                    ("route", [to, ..]) => drop(ip(&format!("route del {to} proto 114"))),
                    ("neighbour", [to, "dev", device, ..]) => drop(ip(&format!("neigh del {to} dev {device}"))),
                    _ => {}
                }
            }
        }
        for (name, _) in &devices {
            match rng.random_range(0..8) {
                0 => drop(ip(&format!("link set {name} mtu 1000"))),
                1 => drop(ip(&format!("link set {name} down"))),
                2 => drop(ip(&format!("link set {name} address 02:00:00:00:00:09"))),
                _ => {}
            }
        }
        let vxlan = devices.iter().find(|(name, _)| name.starts_with('v')).map(|(_, index)| *index);
        if let Some(device) = vxlan.filter(|_| rng.random_ratio(1, 4)) {
            let to = ipnet::Ipv4Net::from(Ipv4Addr::new(10, 128, 0, rng.random_range(100..250)));
            let stray = messages::route(to, Next::Gateway { device, address: peer, source: None });
            // Refused where the device was set down just now.
            let added = Netlink::open(0).unwrap().request("stray", RouteNetlinkMessage::NewRoute(stray), messages::REPLACE);
            done.push(format!("stray route {to}: {added:?}"));
        }
        let mut rules = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        let (_, elements) = nft::observe(&mut rules).unwrap();
        for (key, data) in elements.iter().filter(|_| rng.random_ratio(1, 4)) {
            nft::change(&mut rules, &[nft::Change { add: false, set: key.set.set(), key: &key.bytes, data }]).unwrap();
            done.push(format!("no element {key:?}"));
        }
        if rng.random_ratio(1, 8) {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            done.push("no forwarding".to_owned());
        }
        done
    })
}

#[test]
fn one_look_mends_whatever_was_broken_and_the_next_finds_nothing() {
    let lab = Lab::start(2);
    let networks = [network("front", 0, &[("t1", 0, 2), ("t2", 0, 3), ("t3", 1, 4)]), network("back", 1, &[("t4", 0, 2), ("t5", 1, 3)])];
    lab.apply(1, &networks);
    let host = &lab.hosts[0];
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    host.attach("t2", &[("front", "10.128.0.3")]).unwrap();
    host.attach("t4", &[("back", "10.128.1.2")]).unwrap();
    lab.hosts[1].attach("t3", &[("front", "10.128.0.4")]).unwrap();
    let whole = held(host);
    let (seed, mut rng) = chance();
    for round in 0..ROUNDS {
        let done = breaks(host, StdRng::seed_from_u64(rng.random()));
        let what = format!("round {round} of seed {seed}: {done:#?}");
        // The same picture again: the kernel is read back and mended.
        assert_eq!(host.apply(lab.view(0, 1, &networks)).unwrap().problems, Vec::<String>::new(), "{what}");
        assert_eq!(held(host), whole, "{what}");
        let repairs = host.status().unwrap().repairs;
        host.apply(lab.view(0, 1, &networks)).unwrap();
        assert_eq!(host.status().unwrap().repairs, repairs, "a second time, {what}");
    }
    assert!(host.status().unwrap().repairs > u64::from(ROUNDS), "nothing was broken");
    let _listener = lab.hosts[1].listen("t3", "10.128.0.4:80");
    host.connect("t1", "10.128.0.4:80").unwrap();
}

#[test]
fn pictures_that_are_lost_repeated_or_late_leave_the_highest_in_force() {
    const LAST: u64 = 50;
    let lab = Lab::start(3);
    let (seed, mut rng) = chance();
    let names: Vec<String> = (2..12).map(|last| format!("t{last}")).collect();
    let picture = |rng: &mut StdRng| -> Vec<v1::NetworkView> {
        let mut endpoints: Vec<(&str, usize, u8)> = Vec::new();
        for (last, name) in (2..).zip(&names) {
            if rng.random() {
                endpoints.push((name, rng.random_range(0..3), last));
            }
        }
        let (front, back) = endpoints.split_at(endpoints.len() / 2);
        vec![network("front", 0, front), network("back", 1, back)]
    };
    let pictures: Vec<Vec<v1::NetworkView>> = (0..=LAST).map(|_| picture(&mut rng)).collect();
    for (index, host) in lab.hosts.iter().enumerate() {
        let mut order: Vec<u64> = (1..LAST).filter(|_| rng.random_ratio(4, 5)).collect();
        order.extend((1..=LAST).filter(|_| rng.random_ratio(1, 4)));
        order.push(LAST);
        order.shuffle(&mut rng);
        let mut highest = 0;
        for revision in order {
            let picture = &pictures[usize::try_from(revision).unwrap()];
            highest = highest.max(revision);
            let answer = host.apply(lab.view(index, revision, picture)).unwrap();
            assert_eq!((answer.revision, answer.problems), (highest, vec![]), "seed {seed}, host {index}, after {revision}");
        }
        // As if it had never heard of any other.
        let (after, repairs) = (held(host), host.status().unwrap().repairs);
        host.apply(lab.view(index, LAST, &pictures[usize::try_from(LAST).unwrap()])).unwrap();
        assert_eq!((held(host), host.status().unwrap().repairs), (after, repairs), "seed {seed}, host {index}");
    }
}

/// A pod of the matrix, which listens on port 80.
struct Probe {
    task: String,
    network: usize,
    host: usize,
    last: u8,
    _listener: TcpListener,
}

impl Probe {
    fn addr(&self) -> String {
        format!("10.128.{}.{}", self.network, self.last)
    }

    fn start(lab: &Lab, (task, network, host, last): (String, usize, usize, u8)) -> Self {
        let addr = format!("10.128.{network}.{last}");
        lab.hosts[host].attach(&task, &[(NETWORKS[network], &addr)]).unwrap();
        let listener = lab.hosts[host].listen(&task, &format!("{addr}:80"));
        Self { task, network, host, last, _listener: listener }
    }
}

const NETWORKS: [&str; 3] = ["front", "back", "side"];

/// The picture with these pods: (task, network, host, last octet).
fn matrix<'a>(pods: impl Iterator<Item = (&'a str, usize, usize, u8)> + Clone) -> Vec<v1::NetworkView> {
    let networks = (0..).zip(NETWORKS);
    let of_network = |number: u8| -> Vec<(&'a str, usize, u8)> {
        let own = pods.clone().filter(|(_, network, _, _)| *network == usize::from(number));
        own.map(|(task, _, host, last)| (task, host, last)).collect()
    };
    networks.map(|(number, name)| network(name, number, &of_network(number))).collect()
}

#[test]
fn while_pods_move_those_of_a_network_reach_each_other_and_no_others() {
    let lab = Lab::start(4);
    let (seed, mut rng) = chance();
    let places: Vec<(String, usize, usize, u8)> =
        (0..24_u8).map(|number| (format!("p{number}"), usize::from(number % 3), usize::from(number % 4), 2 + number)).collect();
    lab.apply(1, &matrix(places.iter().map(|(task, network, host, last)| (task.as_str(), *network, *host, *last))));
    let mut pods: Vec<Probe> = places.into_iter().map(|place| Probe::start(&lab, place)).collect();
    for step in 0..100_u8 {
        // One goes, and another comes in its place elsewhere, at an address that is new.
        let place = rng.random_range(0..pods.len());
        let gone = pods.swap_remove(place);
        let come = (format!("p{}", 24 + u32::from(step)), gone.network, (gone.host + rng.random_range(1..4)) % 4, 26 + step);
        let stay = pods.iter().map(|pod| (pod.task.as_str(), pod.network, pod.host, pod.last));
        lab.apply(2 + u64::from(step), &matrix(stay.chain([(come.0.as_str(), come.1, come.2, come.3)])));
        pods.push(Probe::start(&lab, come));
        lab.hosts[gone.host].detach(&gone.task).unwrap();
        for _ in 0..6 {
            let (from, to) = (&pods[rng.random_range(0..pods.len())], &pods[rng.random_range(0..pods.len())]);
            let begun = Instant::now();
            let outcome = lab.hosts[from.host].connect(&from.task, &format!("{}:80", to.addr())).map(drop);
            let what = format!("seed {seed}, step {step}: {} on host {} to {} on host {}", from.task, from.host, to.task, to.host);
            if from.network == to.network {
                outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
            } else {
                assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::HostUnreachable), "{what}");
                assert!(begun.elapsed() < Duration::from_secs(5), "{what}: refused after {:?}", begun.elapsed());
            }
        }
    }
}

/// Connects from the client, and waits until that is known here.
fn reaches(from: &Host, client: &str, listener: &TcpListener) {
    let _stream = from.connect(client, "10.128.0.2:80").unwrap();
    eventually("who holds the address now is reached", || listener.accept().is_ok());
}

#[test]
fn an_address_that_moved_is_reached_where_it_is_while_its_old_holder_stays_on() {
    let lab = Lab::start(3);
    let [late, new, other] = &lab.hosts[..] else { panic!("there are three") };
    let client = ("client", 2, 3);
    lab.apply(1, &[network("front", 0, &[("old", 0, 2), client])]);
    late.attach("old", &[("front", "10.128.0.2")]).unwrap();
    other.attach("client", &[("front", "10.128.0.3")]).unwrap();
    let listens = |host: &Host, task: &str| {
        let listener = host.listen(task, "10.128.0.2:80");
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let before = listens(late, "old");
    reaches(other, "client", &before);
    // The managers have given the address away, as after a node that was lost and removed; its agent has not taken the pod down.
    for (index, host) in lab.hosts.iter().enumerate() {
        let moved = lab.view(index, 2, &[network("front", 0, &[("new", 1, 2), client])]);
        assert_eq!(host.apply(moved).unwrap().revision, 2);
    }
    new.attach("new", &[("front", "10.128.0.2")]).unwrap();
    let now = listens(new, "new");
    for _ in 0..20 {
        reaches(other, "client", &now);
    }
    late.detach("old").unwrap();
    for _ in 0..20 {
        reaches(other, "client", &now);
    }
    assert!(before.accept().is_err(), "nobody came to the old one");
    // And from where the old one was.
    let endpoints = [("new", 1, 2), client, ("more", 0, 4)];
    lab.apply(3, &[network("front", 0, &endpoints)]);
    late.attach("more", &[("front", "10.128.0.4")]).unwrap();
    reaches(late, "more", &now);
}
