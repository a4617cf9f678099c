//! The kernel broken by chance, of all that netd has in it: one look mends it, and the next finds nothing to do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_api::wire::v1;
use rcluster_netd::core::links::is_ours;
use rcluster_netd::core::rules::elements::Element;
use rcluster_netd::core::rules::{Data, Skeleton, TABLE, Table, host, isolation};
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft::{self, Change};

use crate::balance::{Place, VIP, address, balanced, front, service};
use crate::egress6::world;
use crate::support::dns::resolve;
use crate::support::seen::{OUR_NEIGHBOURS, OUR_NEIGHBOURS6, OUR_ROUTES, OUR_ROUTES6, batch, differences, seen, show};
use crate::support::{Host, Lab, chance, eventually, network, numbered, published, rounds};

/// Rounds in which the kernel is broken.
const ROUNDS: u64 = 200;

/// In one round of so many netd is not running meanwhile, and pods are broken too: they are looked into at the start.
const STARTS_EVERY: u64 = 10;

const WEB: [Place; 2] = [("t2", 0, 12), ("t3", 1, 13)];

/// Endpoints without a pod.
const MORE: [Place; 6] = [("m1", 1, 21), ("m2", 1, 22), ("m3", 1, 23), ("m4", 1, 24), ("m5", 1, 25), ("m6", 1, 26)];

/// What is wanted changes now and then, to one of so many pictures.
const PICTURES: usize = 5;

/// The pods of the host that is broken.
const PODS: [&str; 3] = ["client", "t2", "t4"];

/// What is done to a namespace, with chance.
struct Breaker {
    rng: StdRng,
    ip: Vec<String>,
    /// Of IPv6, where the words do not say so.
    ip6: Vec<String>,
    bridge: Vec<String>,
    done: Vec<String>,
}

impl Breaker {
    fn new(rng: StdRng) -> Self {
        Self { rng, ip: Vec::new(), ip6: Vec::new(), bridge: Vec::new(), done: Vec::new() }
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.rng.random_ratio(1, many)
    }

    /// Some of our routes and permanent neighbours go, and some lead elsewhere.
    fn paths(&mut self) {
        for (list, broken) in [(OUR_ROUTES, &mut self.ip), (OUR_ROUTES6, &mut self.ip6)] {
            for route in show(list) {
                let words: Vec<&str> = route.split_whitespace().collect();
                let Some(to) = words.iter().find(|word| **word == "default" || word.contains(['.', ':'])) else { continue };
                let table = words.windows(2).find(|pair| pair[0] == "table").map_or("main", |pair| pair[1]);
                match self.rng.random_range(0..12) {
                    0 | 1 => broken.push(format!("route del {to} proto 114 table {table}")),
                    2 => broken.push(format!("route replace {to} dev lo proto 114 table {table}")),
                    _ => {}
                }
            }
        }
        for neighbour in [OUR_NEIGHBOURS, OUR_NEIGHBOURS6].into_iter().flat_map(show) {
            let words: Vec<&str> = neighbour.split_whitespace().collect();
            let &[to, "dev", device, ..] = &words[..] else { continue };
            match self.rng.random_range(0..12) {
                0 | 1 => self.ip.push(format!("neigh del {to} dev {device}")),
                2 => self.ip.push(format!("neigh replace {to} lladdr 02:00:00:00:00:07 dev {device} nud permanent")),
                _ => {}
            }
        }
    }

    /// Forwarding entries likewise; and what nobody wants is added.
    fn forwards(&mut self) {
        for line in show("bridge fdb show") {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[mac, "dev", device, "dst", node, ..] = &words[..] else { continue };
            match self.rng.random_range(0..12) {
                0 | 1 => self.bridge.push(format!("fdb del {mac} dev {device} dst {node}")),
                2 => self.bridge.push(format!("fdb replace {mac} dev {device} dst 10.90.0.199")),
                _ => {}
            }
        }
        let last = self.rng.random_range(150..250);
        if self.one_in(4) {
            self.bridge.push("fdb add 02:00:00:00:00:0a dev v4096 dst 10.90.0.66".to_owned());
        }
        if self.one_in(4) {
            self.ip.push(format!("neigh replace 10.90.0.{last} lladdr 02:00:00:00:00:08 dev v4096 nud permanent"));
        }
        if self.one_in(4) {
            self.ip.push(format!("route add 10.128.0.{last} via 10.90.0.102 dev v4096 onlink proto 114"));
        }
        // Of kinds that netd has none of.
        let places = [(&mut self.ip, format!("10.128.0.{last}"), 100_077), (&mut self.ip6, format!("fd00::{last:x}"), 200_077)];
        for (batch, to, unused) in places {
            if self.rng.random_ratio(1, 8) {
                batch.push(format!("route add unreachable default proto 114 table {unused}"));
            }
            let kind = ["unreachable", "blackhole", "prohibit", "throw", "local"][self.rng.random_range(0..5)];
            let device = if kind == "local" { "dev lo " } else { "" };
            if self.rng.random_ratio(1, 4) {
                batch.push(format!("route add {kind} {to} {device}proto 114 table main"));
            }
        }
    }

    fn devices<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            match self.rng.random_range(0..24) {
                0 | 1 => self.ip.push(format!("link set dev {name} mtu 1000")),
                2 | 3 => self.ip.push(format!("link set dev {name} down")),
                4 => self.ip.push(format!("link set dev {name} address 02:00:00:00:00:09")),
                5 => self.ip.push(format!("link del dev {name}")),
                _ => {}
            }
        }
    }

    fn sysctl(&mut self, name: &str) {
        if self.one_in(8) {
            std::fs::write(format!("/proc/sys/net/{name}"), "0").unwrap();
            self.done.push(format!("sysctl {name} 0"));
        }
    }

    /// IPv6 is not forwarded, or a device has none.
    fn six(&mut self, devices: &[String]) {
        let off: Vec<String> = devices.iter().filter(|_| self.rng.random_ratio(1, 12)).map(|name| format!("{name}/disable_ipv6")).collect();
        for (name, value) in off.iter().map(|name| (name.as_str(), "1")).chain(self.one_in(8).then_some(("all/forwarding", "0"))) {
            match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), value) {
                Ok(()) => self.done.push(format!("sysctl {name} {value}")),
                // The device has gone before, with its other end.
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}"),
            }
        }
    }

    /// A table of ours without anything in it.
    fn empties(&mut self, table: Table) -> bool {
        let empties = self.one_in(24);
        if empties {
            let nothing = Skeleton { table, sets: Vec::new(), chains: Vec::new() };
            nft::load(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &nothing).unwrap();
            self.done.push(format!("emptied {}", table.name));
        }
        empties
    }

    /// Elements go, or have other data, or there is one too many.
    fn elements(&mut self) {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        let (_, elements) = nft::observe(&mut netlink).unwrap();
        for element in elements.into_iter().map(|(key, data)| Element { key, data }) {
            let draw = self.rng.random_range(0..12);
            match (draw, element.key.set.set().data) {
                (0 | 1, _) => nft::change(&mut netlink, &[Change::remove(&element)]).unwrap(),
                (2, Data::Fields(_)) => {
                    let mut other = element.clone();
                    other.data.iter_mut().for_each(|byte| *byte ^= 1);
                    nft::change(&mut netlink, &[Change::remove(&element), Change::add(&other)]).unwrap();
                }
                _ => continue,
            }
            self.done.push(format!("{} element {element}", if draw == 2 { "altered" } else { "removed" }));
        }
        if self.one_in(4) {
            let stray = isolation::source("p000000000000", Ipv4Addr::new(10, 128, 0, 99));
            nft::change(&mut netlink, &[Change::add(&stray)]).unwrap();
            self.done.push(format!("stray element {stray}"));
        }
    }

    /// Rules by which marks choose routes.
    fn selectors(&mut self) {
        for preference in [100, 1000] {
            if self.one_in(8) {
                self.ip.push(format!("rule del pref {preference}"));
            }
            if self.one_in(8) {
                self.ip6.push(format!("rule del pref {preference}"));
            }
        }
    }

    /// Ports that lead into the router.
    fn ports(&mut self) {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        for set in [&host::PORTS, &host::PORTS6] {
            for (key, _) in nft::read_in(&mut netlink, host::TABLE, set).unwrap() {
                if self.one_in(4) {
                    nft::change_in(&mut netlink, host::TABLE, &[Change { add: false, set, key: &key, data: &[] }]).unwrap();
                    self.done.push(format!("removed {key:?} of {}", set.name));
                }
            }
        }
    }

    /// Nodes that VXLAN is taken from.
    fn peers(&mut self) {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        let held = nft::read_in(&mut netlink, host::TABLE, &host::NODES).unwrap();
        let mut changes: Vec<(bool, Vec<u8>)> = Vec::new();
        for (key, _) in held {
            if self.one_in(4) {
                changes.push((false, key));
            }
        }
        if self.one_in(4) {
            changes.push((true, vec![10, 90, 0, 66]));
        }
        for (add, key) in changes {
            nft::change_in(&mut netlink, host::TABLE, &[Change { add, set: &host::NODES, key: &key, data: &[] }]).unwrap();
            self.done.push(format!("{} peer {key:?}", if add { "stray" } else { "removed" }));
        }
    }

    /// Does what is left to do; what was done, for people.
    fn finish(mut self) -> Vec<String> {
        batch("ip", &[], &self.ip);
        batch("ip", &["-6"], &self.ip6);
        batch("bridge", &[], &self.bridge);
        self.done.extend(self.ip);
        self.done.extend(self.ip6.into_iter().map(|words| format!("-6 {words}")));
        self.done.extend(self.bridge);
        self.done
    }
}

fn break_router(rng: StdRng, devices: &[String]) -> Vec<String> {
    let mut breaker = Breaker::new(rng);
    if !breaker.empties(TABLE) {
        breaker.elements();
    }
    breaker.sysctl("ipv4/ip_forward");
    breaker.sysctl("ipv4/conf/up/rp_filter");
    breaker.sysctl("netfilter/nf_conntrack_tcp_be_liberal");
    breaker.six(devices);
    breaker.paths();
    breaker.selectors();
    breaker.forwards();
    for (device, addresses) in [("lo", "del 169.254.53.53/32"), ("up", "flush"), ("ing", "flush")] {
        if breaker.one_in(12) {
            breaker.ip.push(format!("addr {addresses} dev {device}"));
        }
    }
    breaker.devices(devices.iter().map(String::as_str));
    breaker.finish()
}

fn break_host(rng: StdRng) -> Vec<String> {
    let mut breaker = Breaker::new(rng);
    if !breaker.empties(host::TABLE) {
        breaker.peers();
        breaker.ports();
    }
    breaker.sysctl("ipv4/ip_forward");
    breaker.sysctl("ipv6/conf/all/forwarding");
    if breaker.one_in(12) {
        breaker.ip.push("addr flush dev rcl-up".to_owned());
    }
    breaker.devices(["rcl-up"]);
    breaker.finish()
}

fn break_pod(rng: StdRng) -> Vec<String> {
    let mut breaker = Breaker::new(rng);
    breaker.paths();
    if breaker.one_in(12) {
        breaker.ip.push("addr flush dev eth0".to_owned());
    }
    breaker.devices(["eth0"]);
    breaker.finish()
}

/// Breaks some of all that netd has on this host, in pods only where it is said.
fn break_some(host: &Host, rng: &mut StdRng, in_pods: bool) -> Vec<String> {
    let devices: Vec<String> = host.devices().into_iter().map(|(name, _)| name).filter(|name| is_ours(name)).collect();
    let mut chance = || StdRng::seed_from_u64(rng.random());
    let (router, outside) = (chance(), chance());
    // While the router's devices are there to be broken.
    let mut done: Vec<String> = Vec::new();
    for pod in PODS.iter().filter(|_| in_pods) {
        let inner = chance();
        done.extend(host.inside(pod, move || break_pod(inner)));
    }
    done.extend(host.inside("router", move || break_router(router, &devices)));
    done.extend(host.here(move || break_host(outside)));
    done
}

/// One of the pictures, and what the kernel holds when it is obeyed.
struct Wanted {
    networks: Vec<v1::NetworkView>,
    ports: Vec<v1::PublishedView>,
    whole: BTreeSet<String>,
}

/// The network of the service, with IPv6.
fn six(web: &[Place]) -> v1::NetworkView {
    v1::NetworkView { subnet6: "fd00::/64".to_owned(), ..front(web) }
}

/// Networks of which some endpoints are there by chance.
fn networks(rng: &mut StdRng) -> Vec<v1::NetworkView> {
    let web: Vec<Place> = WEB.into_iter().chain(MORE).filter(|_| rng.random_ratio(2, 3)).collect();
    let back: &[(&str, usize, u8)] = if rng.random() { &[("t4", 0, 2), ("t5", 1, 3)] } else { &[("t4", 0, 2)] };
    let mut front = six(&web);
    if rng.random() {
        let ports = vec![v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: rng.random_range(80..90) }];
        let all = v1::AllowView { from_all: true, to_all: true, ports, ..Default::default() };
        let outside = v1::AllowView { from_cidrs: vec!["203.0.113.0/24".into()], to_all: true, ..Default::default() };
        front.policy = Some(v1::NetworkPolicyView { allow: vec![all, outside] });
    }
    vec![front, network("back", 1, back)]
}

/// Published ports by chance, one of them not for everybody.
fn ports(rng: &mut StdRng) -> Vec<v1::PublishedView> {
    let with_six = |number: u32, places: &[Place]| {
        let mut published = published(number, 80, places);
        for (backend, (_, _, last)) in published.backends.iter_mut().zip(places) {
            backend.ip6 = format!("fd00::a80:{last:x}");
        }
        published
    };
    let mut guarded = with_six(8081, &WEB[..1]);
    guarded.ports[0].allow_from =
        vec![format!("203.0.113.{}/32", rng.random_range(1..9)), "198.51.100.0/24".into(), "2001:db8:9::/48".into()];
    [with_six(8080, &WEB), guarded].into_iter().filter(|_| rng.random_ratio(2, 3)).collect()
}

/// Gives the first host a picture twice: when it comes again, it is answered after a look at the kernel. What was broken may be in the way of
/// what is new in it the first time.
fn apply(lab: &Lab, revision: u64, networks: &[v1::NetworkView], ports: &[v1::PublishedView]) {
    let view = || {
        let view = v1::NetView { services: vec![service(v1::Affinity::Unspecified)], ..lab.view(0, revision, networks) };
        numbered(v1::NetView { published: ports.to_vec(), ..view })
    };
    lab.hosts[0].apply(view()).unwrap();
    let answer = lab.hosts[0].apply(view()).unwrap();
    assert_eq!((answer.revision, answer.problems), (revision, vec![]));
}

#[test]
fn one_look_mends_whatever_was_broken_and_the_next_finds_nothing() {
    let (seed, mut rng) = chance();
    let mut lab = balanced(2, &WEB, v1::Affinity::Unspecified);
    let _world = world(&lab);
    let mut revision = 2;
    apply(&lab, revision, &[six(&WEB), network("back", 1, &[("t4", 0, 2)])], &[]);
    lab.hosts[0].attach("t4", &[("back", "10.128.1.2")]).unwrap();
    eventually("IPv6 leads out", || lab.hosts[0].inside("router", || show(OUR_ROUTES6)).iter().any(|route| route.starts_with("default")));
    let wanted: Vec<Wanted> = (0..PICTURES)
        .map(|_| {
            let (networks, ports) = (networks(&mut rng), ports(&mut rng));
            revision += 1;
            apply(&lab, revision, &networks, &ports);
            Wanted { networks, ports, whole: seen(&lab.hosts[0], &PODS) }
        })
        .collect();
    let mut now = wanted.last().expect("there are some");
    let mut repairs = 0;
    for round in 0..rounds(ROUNDS) {
        let is_down = round % STARTS_EVERY == STARTS_EVERY - 1;
        let mut before = lab.hosts[0].status().unwrap().repairs;
        if is_down {
            lab.hosts[0].kill();
            before = 0;
        }
        let done = break_some(&lab.hosts[0], &mut rng, is_down);
        let what = format!("round {round} of RCLUSTER_SEED={seed}, netd {}: {done:#?}", if is_down { "was down" } else { "ran" });
        if is_down {
            lab.hosts[0].start();
            assert_eq!(differences(&now.whole, &seen(&lab.hosts[0], &PODS)), Vec::<String>::new(), "when it started, {what}");
        }
        if rng.random_ratio(1, 4) {
            now = &wanted[rng.random_range(0..wanted.len())];
            revision += 1;
        }
        apply(&lab, revision, &now.networks, &now.ports);
        assert_eq!(differences(&now.whole, &seen(&lab.hosts[0], &PODS)), Vec::<String>::new(), "{what}");
        let after = lab.hosts[0].status().unwrap().repairs;
        apply(&lab, revision, &now.networks, &now.ports);
        assert_eq!(lab.hosts[0].status().unwrap().repairs, after, "a second time, {what}");
        repairs += after - before;
    }
    assert!(repairs > rounds(ROUNDS), "{repairs} repairs: nothing was broken");
    apply(&lab, revision + 1, &[six(&WEB), network("back", 1, &[("t4", 0, 2)])], &[]);
    for (task, host, last) in WEB {
        let _listener = lab.hosts[host].listen(task, &format!("{}:80", address(last)));
        lab.hosts[0].connect("client", &format!("{}:80", address(last))).unwrap();
    }
    assert_eq!(resolve(&lab.hosts[0], "client", "web."), [VIP]);
}
