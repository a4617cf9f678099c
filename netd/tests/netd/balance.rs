//! Services' virtual addresses: who answers at them, and what becomes of connections when that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rcluster_api::wire::v1;
use rcluster_netd::core::flows::Flow;
use rcluster_netd::core::rules::elements::Element;
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::{conntrack, nft};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::egress::checksum;
use crate::support::dns::resolve;
use crate::support::seen::run;
use crate::support::traffic::at_once;
use crate::support::{DEADLINE, Lab, eventually, network};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 200);

/// A task with its host's index and the last octet of its address.
pub type Place = (&'static str, usize, u8);

pub const CLIENT: Place = ("client", 0, 100);

/// Network `front` with the client and these tasks of `web`.
pub fn front(web: &[Place]) -> v1::NetworkView {
    let mut front = network("front", 0, &[web, &[CLIENT]].concat());
    let client = front.endpoints.last_mut().expect("the client");
    (client.service_id, client.serving) = ("client".to_owned(), false);
    front
}

/// The service `web` with its address on `front`.
pub fn service(affinity: v1::Affinity) -> v1::ServiceView {
    v1::ServiceView {
        id: "web".into(),
        name: "web".into(),
        mode: v1::EndpointMode::Vip.into(),
        affinity: affinity.into(),
        vips: vec![v1::VipView { network_id: "net-front".into(), ip: VIP.to_string(), names: vec!["web".into(), "web.shop".into()] }],
        ..Default::default()
    }
}

/// Gives every host the picture, with the service.
pub fn apply(lab: &Lab, revision: u64, networks: &[v1::NetworkView], affinity: v1::Affinity) {
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = v1::NetView { services: vec![service(affinity)], ..lab.view(index, revision, networks) };
        let response = host.apply(view).unwrap();
        assert_eq!((response.revision, response.problems), (revision, vec![]));
    }
}

pub fn address(last: u8) -> String {
    Ipv4Addr::new(10, 128, 0, last).to_string()
}

/// Hosts with a picture, and the pods of these tasks and the client.
pub fn balanced(hosts: u8, web: &[Place], affinity: v1::Affinity) -> Lab {
    let lab = Lab::start(hosts);
    apply(&lab, 1, &[front(web)], affinity);
    for (task, host, last) in web.iter().chain([&CLIENT]) {
        lab.hosts[*host].attach(task, &[("front", address(*last).as_str())]).unwrap();
    }
    lab
}

/// Tells whoever connects to a task's port 80 which task it is, and whom it sees; and then says again what it hears.
fn serve(lab: &Lab, (task, host, last): Place) {
    let listener = lab.hosts[host].listen(task, &format!("{}:80", address(last)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            thread::spawn(move || {
                let IpAddr::V4(peer) = stream.peer_addr()?.ip() else { panic!("not IPv4") };
                stream.write_all(&[&[last][..], &peer.octets()].concat())?;
                let mut byte = [0];
                while stream.read(&mut byte)? == 1 {
                    stream.write_all(&byte)?;
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
}

/// A connection to the service, with the last octet of who took it, and whom that one sees.
fn connect(lab: &Lab, (task, host, _): Place) -> (TcpStream, u8, Ipv4Addr) {
    let mut stream = lab.hosts[host].connect(task, &format!("{VIP}:80")).unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).unwrap();
    let [last, peer @ ..] = said;
    (stream, last, peer.into())
}

/// Answers datagrams to a task's port 9 with which task it is.
fn serve_udp(lab: &Lab, (task, host, last): Place) {
    let socket = lab.hosts[host].udp(task, &format!("{}:9", address(last)));
    socket.set_read_timeout(None).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&[last], from));
        }
    });
}

/// A socket that speaks with the service's port 9 alone.
fn socket(lab: &Lab, (task, host, last): Place) -> UdpSocket {
    let socket = lab.hosts[host].udp(task, &format!("{}:0", address(last)));
    socket.connect((VIP, 9)).unwrap();
    socket
}

fn ask(socket: &UdpSocket) -> std::io::Result<u8> {
    let mut last = [0];
    socket.send(b"?")?;
    socket.recv(&mut last)?;
    Ok(last[0])
}

const THREE: [Place; 3] = [("t1", 0, 11), ("t2", 1, 12), ("t3", 2, 13)];

#[test]
fn connections_to_the_one_address_of_a_service_are_shared_among_its_endpoints_on_all_hosts() {
    let lab = balanced(3, &THREE, v1::Affinity::Unspecified);
    THREE.into_iter().for_each(|place| serve(&lab, place));
    for name in ["web.", "web.shop.", "web.front.internal."] {
        assert_eq!(resolve(&lab.hosts[0], "client", name), [VIP], "{name}");
    }
    assert_eq!(resolve(&lab.hosts[0], "client", "12.web."), [Ipv4Addr::new(10, 128, 0, 12)]);
    let mut counts: BTreeMap<u8, i32> = BTreeMap::new();
    for _ in 0..300 {
        let (_, last, peer) = connect(&lab, CLIENT);
        assert_eq!(peer.to_string(), address(100), "the endpoint sees the client");
        *counts.entry(last).or_default() += 1;
    }
    // Four standard deviations of 300 draws with a chance of a third.
    assert!(counts.len() == 3 && counts.values().all(|count| (count - 100).abs() <= 33), "{counts:?}");
    // Directly, they are as reachable as ever.
    drop(lab.hosts[0].connect("client", "10.128.0.12:80").unwrap());
}

#[test]
fn a_client_keeps_its_endpoint_while_that_one_serves() {
    let lab = balanced(3, &THREE, v1::Affinity::Client);
    THREE.into_iter().for_each(|place| serve(&lab, place));
    let (_, first, _) = connect(&lab, CLIENT);
    for _ in 0..100 {
        assert_eq!(connect(&lab, CLIENT).1, first);
    }
    let others: Vec<Place> = THREE.into_iter().filter(|(.., last)| *last != first).collect();
    let kept: Vec<Place> = THREE.into_iter().filter(|place| *place != others[0]).collect();
    apply(&lab, 2, &[front(&kept)], v1::Affinity::Client);
    for _ in 0..20 {
        assert_eq!(connect(&lab, CLIENT).1, first, "another one has gone");
    }
    apply(&lab, 3, &[front(&others)], v1::Affinity::Client);
    let (_, second, _) = connect(&lab, CLIENT);
    assert!(others.iter().any(|(.., last)| *last == second));
    apply(&lab, 4, &[front(&THREE)], v1::Affinity::Client);
    assert_eq!(connect(&lab, CLIENT).1, first, "and comes back to it");
}

#[test]
fn an_endpoint_reaches_its_own_service() {
    let alone: Place = ("t1", 0, 11);
    let lab = balanced(1, &[alone], v1::Affinity::Unspecified);
    serve(&lab, alone);
    serve_udp(&lab, alone);
    let (mut stream, last, peer) = connect(&lab, alone);
    assert_eq!((last, peer), (11, Ipv4Addr::new(169, 254, 53, 53)));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(ask(&socket(&lab, alone)).unwrap(), 11);
    // Another pod is still seen as it is.
    assert_eq!(connect(&lab, CLIENT).2.to_string(), address(100));
}

#[test]
fn a_service_without_endpoints_and_one_of_another_network_refuse_at_once() {
    let web: [Place; 1] = [("t1", 0, 11)];
    let lab = balanced(1, &web, v1::Affinity::Unspecified);
    serve(&lab, web[0]);
    let back = network("back", 1, &[("stranger", 0, 2)]);
    apply(&lab, 2, &[front(&web), back.clone()], v1::Affinity::Unspecified);
    lab.hosts[0].attach("stranger", &[("back", "10.128.1.2")]).unwrap();
    drop(connect(&lab, CLIENT));
    let refused = |task: &str| {
        let error = at_once(&lab.hosts[0], Some(task), task, || lab.hosts[0].connect(task, &format!("{VIP}:80"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{task}: {error}");
    };
    refused("stranger");
    let mut idle = front(&web);
    idle.endpoints[0].serving = false;
    apply(&lab, 3, &[idle, back.clone()], v1::Affinity::Unspecified);
    refused("client");
    assert_eq!(resolve(&lab.hosts[0], "client", "web."), [VIP], "the name stands");
    assert_eq!(ask(&socket(&lab, CLIENT)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    apply(&lab, 4, &[front(&web), back], v1::Affinity::Unspecified);
    assert_eq!(connect(&lab, CLIENT).1, 11);
}

#[test]
fn a_connection_from_the_port_of_one_before_is_not_forgotten_in_its_stead() {
    let web: [Place; 2] = [("t1", 0, 11), ("t2", 0, 12)];
    let lab = balanced(1, &web, v1::Affinity::Unspecified);
    web.into_iter().for_each(|place| serve(&lab, place));
    let mut before: Option<Flow> = None;
    // The kernel gives the later one the id of the one before in about half of the rounds.
    for (revision, idle) in (2..22).zip([0, 1].into_iter().cycle()) {
        let mut picture = front(&web);
        picture.endpoints[idle].serving = false;
        apply(&lab, revision, &[picture], v1::Affinity::Unspecified);
        let (last, mut said) = (web[1 - idle].2, [0; 5]);
        let mut stream = lab.hosts[0].inside(CLIENT.0, || from_port(SocketAddr::from((VIP, 80)))).unwrap();
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said[0], last);
        let now = lab.hosts[0].inside("router", move || {
            let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
            if let Some(before) = &before {
                conntrack::forget(&mut netlink, before).unwrap();
            }
            conntrack::flows(&mut netlink, &|flow| flow.source.1 == PORT).unwrap()
        });
        let [now] = &now[..] else { panic!("there is one from that port: {now:?}") };
        assert_eq!(now.server(), IpAddr::from(Ipv4Addr::new(10, 128, 0, last)));
        stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).unwrap();
        before = Some(now.clone());
        // Reset, so that the port is free at once.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// The client's port in what follows.
const PORT: u16 = 40_000;

fn from_port(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.connect_timeout(&to.into(), DEADLINE)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket.into())
}

#[test]
fn datagrams_of_one_socket_go_on_to_another_endpoint_when_theirs_leaves() {
    let web: [Place; 2] = [("t1", 0, 11), ("t2", 1, 12)];
    let lab = balanced(2, &web, v1::Affinity::Unspecified);
    web.into_iter().for_each(|place| serve_udp(&lab, place));
    let socket = socket(&lab, CLIENT);
    let first = ask(&socket).unwrap();
    for _ in 0..50 {
        assert_eq!(ask(&socket).unwrap(), first);
    }
    let mut leaving = front(&web);
    leaving.endpoints[usize::from(first - 11)].serving = false;
    apply(&lab, 2, &[leaving], v1::Affinity::Unspecified);
    assert_eq!(ask(&socket).unwrap(), 11 + 12 - first);
}

/// Sends datagrams without ever waiting long, and tells of each whether it was answered, and by whom; until nobody listens.
fn babble(socket: UdpSocket) -> mpsc::Receiver<(Instant, Option<u8>)> {
    let (tells, told) = mpsc::channel();
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    thread::spawn(move || {
        loop {
            // While nobody serves it is refused, which is no answer.
            let answer = ask(&socket).ok();
            if tells.send((Instant::now(), answer)).is_err() {
                return;
            }
        }
    });
    told
}

/// The first answer of this endpoint after `begun` comes soon: a flow that is not forgotten would be led elsewhere as long as its client sends.
fn answers_soon(told: &mpsc::Receiver<(Instant, Option<u8>)>, endpoint: u8, begun: Instant) {
    let (at, _) = told.iter().find(|(at, answer)| *at > begun && (*answer == Some(endpoint) || begun.elapsed() > DEADLINE)).unwrap();
    assert!(at - begun < Duration::from_secs(3), "10.128.0.{endpoint} answers after {:?}", at - begun);
}

#[test]
fn a_client_that_never_pauses_is_answered_by_who_replaces_its_endpoint() {
    let [one, two, three]: [Place; 3] = [("t1", 0, 11), ("t2", 1, 12), ("t3", 0, 13)];
    let lab = balanced(2, &[one], v1::Affinity::Unspecified);
    serve_udp(&lab, one);
    let told = babble(socket(&lab, CLIENT));
    answers_soon(&told, 11, Instant::now());
    let leaving = |web: &[Place]| {
        let mut picture = front(web);
        picture.endpoints[0].serving = false;
        picture
    };
    let starts = |place: Place| {
        lab.hosts[place.1].attach(place.0, &[("front", address(place.2).as_str())]).unwrap();
        serve_udp(&lab, place);
    };

    // The new one first.
    starts(two);
    apply(&lab, 2, &[front(&[one, two])], v1::Affinity::Unspecified);
    apply(&lab, 3, &[leaving(&[one, two])], v1::Affinity::Unspecified);
    answers_soon(&told, 12, Instant::now());
    lab.hosts[0].detach("t1").unwrap();

    // The old one first.
    apply(&lab, 4, &[leaving(&[two])], v1::Affinity::Unspecified);
    lab.hosts[1].detach("t2").unwrap();
    apply(&lab, 5, &[front(&[])], v1::Affinity::Unspecified);
    starts(three);
    apply(&lab, 6, &[front(&[three])], v1::Affinity::Unspecified);
    answers_soon(&told, 13, Instant::now());
}

/// A stream to an endpoint on the second host hears, at its next word, that the endpoint is not there.
fn is_reset(lab: &Lab, stream: &mut TcpStream, picture: v1::NetworkView) {
    apply(lab, 2, &[picture], v1::Affinity::Unspecified);
    let begun = Instant::now();
    stream.write_all(b"x").unwrap();
    let error = stream.read_exact(&mut [0]).unwrap_err();
    assert!(error.kind() == ErrorKind::ConnectionReset && begun.elapsed() < Duration::from_secs(2), "{error}, {:?}", begun.elapsed());
}

#[test]
fn a_stream_to_an_endpoint_on_a_dead_node_is_reset() {
    let web: [Place; 1] = [("t2", 1, 12)];
    let lab = balanced(2, &web, v1::Affinity::Unspecified);
    serve(&lab, web[0]);
    let mut stream = connect(&lab, CLIENT).0;
    let mut dead = front(&web);
    dead.endpoints[0].serving = false;
    dead.endpoints[0].state = v1::EndpointState::Dead.into();

    // The managers may be wrong: as long as the node answers, the stream goes on.
    apply(&lab, 2, std::slice::from_ref(&dead), v1::Affinity::Unspecified);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    lab.hosts[1].here(|| run("ip link set up0 down"));
    is_reset(&lab, &mut stream, dead);
}

#[test]
fn a_stream_to_an_endpoint_that_is_gone_is_reset_and_one_to_an_endpoint_that_leaves_goes_on() {
    let web: [Place; 1] = [("t2", 1, 12)];
    let lab = balanced(2, &web, v1::Affinity::Unspecified);
    serve(&lab, web[0]);
    let mut stream = connect(&lab, CLIENT).0;
    let mut leaving = front(&web);
    leaving.endpoints[0].serving = false;
    apply(&lab, 1, &[leaving], v1::Affinity::Unspecified);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    is_reset(&lab, &mut stream, front(&[]));
}

#[test]
fn a_restarted_netd_changes_nothing_and_mends_what_someone_broke() {
    let web: [Place; 2] = [("t1", 0, 11), ("t2", 1, 12)];
    let mut lab = balanced(2, &web, v1::Affinity::Unspecified);
    web.into_iter().for_each(|place| serve(&lab, place));
    let mut stream = connect(&lab, CLIENT).0;
    lab.hosts[0].kill();
    drop(connect(&lab, CLIENT));
    lab.hosts[0].start();
    assert_eq!(lab.hosts[0].status().unwrap().repairs, 0);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(resolve(&lab.hosts[0], "client", "web."), [VIP]);
    lab.hosts[0].inside("router", || {
        let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
        let (_, elements) = nft::observe(&mut netlink).unwrap();
        for (key, data) in elements {
            nft::change(&mut netlink, &[nft::Change::remove(&Element { key, data })]).unwrap();
        }
    });
    apply(&lab, 2, &[front(&web)], v1::Affinity::Unspecified);
    eventually("both are reached again", || {
        let reached: BTreeSet<u8> = (0..20).map(|_| connect(&lab, CLIENT).1).collect();
        reached.len() == 2
    });
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// A segment of TCP, its checksum right, with a sequence number from far outside of any window.
fn stray_segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]);
    // A header of five words; ACK and PSH; a window, no checksum yet, nothing urgent; and its text.
    segment.extend([0x50, 0x18, 0x10, 0, 0, 0, 0, 0]);
    segment.extend(b"stray!");
    let mut summed = [from.0.octets(), to.0.octets()].concat();
    summed.extend([0, 6, 0, u8::try_from(segment.len()).unwrap()]);
    summed.extend(&segment);
    segment[16..18].copy_from_slice(&checksum(&summed));
    segment
}

#[test]
fn a_segment_outside_of_the_window_comes_from_the_services_address_as_all_do() {
    let web: [Place; 1] = [("t2", 1, 12)];
    let lab = balanced(2, &web, v1::Affinity::Unspecified);
    serve(&lab, web[0]);
    let mut stream = connect(&lab, CLIENT).0;
    let client = stream.local_addr().unwrap();
    let IpAddr::V4(ip) = client.ip() else { panic!("not IPv4") };
    let mut ear = lab.hosts[0].inside("client", || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))).unwrap();
    ear.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut from_whom = BTreeSet::new();
    // One of the two is outside, whatever the window is.
    for sequence in [1, 1 << 31] {
        let segment = stray_segment((Ipv4Addr::new(10, 128, 0, 12), 80), (ip, client.port()), sequence);
        lab.hosts[1].inside("t2", move || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
            socket.send_to(&segment, &client.into()).unwrap();
        });
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    // The echoes came after the strays.
    let mut echoes = 0;
    while echoes < 2 {
        let mut packet = [0; 2048];
        let len = ear.read(&mut packet).unwrap();
        if packet[22..24] == client.port().to_be_bytes() {
            from_whom.insert(Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]));
            echoes += usize::from(packet[..len].ends_with(b"x"));
        }
    }
    assert_eq!(from_whom, BTreeSet::from([VIP]));
}

#[test]
fn an_idle_connection_is_remembered_for_a_day_at_least() {
    let lab = Lab::start(1);
    let seconds = lab.hosts[0].inside("router", || {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").unwrap().trim().parse::<u64>().unwrap()
    });
    assert!(seconds >= 86_400, "{seconds}");
}
