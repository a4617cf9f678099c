//! Encrypted networks: what the wire shows of them, what is taken from it, and what becomes of streams when keys change.
//!
//! What needs WireGuard is run by `vm.rs`, on a kernel that has it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use rcluster_api::wire::v1;
use rcluster_netd::core::links::vtep_mac;
use rcluster_netd::kernel::messages;
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use socket2::{Domain, Protocol, Socket, Type};
use tonic::Code;

use crate::egress::checksum;
use crate::support::{Host, Lab, network, numbered};

/// What no one on the wire is to read.
const MARKER: &[u8] = b"a word that stands nowhere else";

/// Those of the hosts that have a netd.
const NODES: usize = 2;

/// Everything that crosses the wire.
struct Tap {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Vec<u8>>,
}

impl Tap {
    fn start(lab: &Lab) -> Self {
        let socket = lab.on_wire(|| {
            let every_protocol = i32::from(0x0003_u16.to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every_protocol))).unwrap();
            socket.set_recv_buffer_size(8 << 20).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            let (mut socket, mut seen, mut frame) = (socket, Vec::new(), vec![0; 1 << 17]);
            loop {
                match socket.read(&mut frame) {
                    Ok(len) => seen.extend_from_slice(&frame[..len]),
                    // Silence, after all that came before.
                    Err(_) if stopped.load(Ordering::Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        Self { stop, reader }
    }

    fn end(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().unwrap()
    }
}

fn shows(seen: &[u8], word: &[u8]) -> bool {
    seen.windows(word.len()).any(|part| part == word)
}

/// With IPv6, too: t1 is fd00::a80:2, and t2 fd00::a80:3.
fn secret(encrypted: bool) -> v1::NetworkView {
    v1::NetworkView { encrypted, subnet6: "fd00::/64".into(), ..network("secret", 0, &[("t1", 0, 2), ("t2", 1, 3)]) }
}

fn plain() -> v1::NetworkView {
    network("plain", 1, &[("p1", 0, 2), ("p2", 1, 3)])
}

fn attach_all(lab: &Lab) {
    for (host, tasks) in lab.hosts.iter().zip([["t1", "p1"], ["t2", "p2"]]) {
        let last = host.addr.octets()[3] - 99;
        host.attach(tasks[0], &[("secret", &format!("10.128.0.{last}"))]).unwrap();
        host.attach(tasks[1], &[("plain", &format!("10.128.1.{last}"))]).unwrap();
    }
}

fn told(host: &Host) -> v1::NodeNetwork {
    host.status().unwrap().network.unwrap()
}

/// Gives the nodes the picture, with the keys that all have told by now.
fn apply(lab: &Lab, revision: u64, key_epoch: u64, networks: &[v1::NetworkView]) {
    let keys: Vec<Vec<v1::WireguardKey>> = lab.hosts.iter().take(NODES).map(|host| told(host).wireguard_keys).collect();
    for (index, host) in lab.hosts.iter().enumerate().take(NODES) {
        let mut view = numbered(v1::NetView { key_epoch, ..lab.view(index, revision, networks) });
        for (node, keys) in view.nodes.iter_mut().zip(&keys) {
            node.wireguard_keys.clone_from(keys);
        }
        let response = host.apply(view).unwrap();
        assert_eq!((response.revision, response.problems), (revision, vec![]));
    }
}

fn has_device(host: &Host, name: &'static str) -> bool {
    host.here(move || nix::net::if_::if_nametoindex(name).is_ok())
}

fn said(receiver: &UdpSocket) -> Vec<u8> {
    let mut word = [0; 128];
    let len = receiver.recv(&mut word).unwrap();
    word[..len].to_vec()
}

fn has_heard_nothing(receiver: &UdpSocket) -> bool {
    receiver.set_nonblocking(true).unwrap();
    receiver.recv(&mut [0; 128]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header[..], payload].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// A third one on the wire sends the second node a datagram for a pod of the network `third`, as if the first one had sent it.
fn inject(lab: &Lab, third: u8, word: &[u8]) {
    inject_at(lab, third, lab.hosts[1].addr, word);
}

/// The same to an address at which the second node hears it.
fn inject_at(lab: &Lab, third: u8, at: Ipv4Addr, word: &[u8]) {
    let (from, to, own) = (lab.hosts[0].addr, lab.hosts[1].addr, lab.hosts[2].addr);
    let inside = ipv4(Ipv4Addr::new(10, 128, third, 2), Ipv4Addr::new(10, 128, third, 3), &udp(9, 9, word));
    let frame = [&vtep_mac(to).0[..], &vtep_mac(from).0, &[8, 0], &inside].concat();
    let vxlan = [&[8_u8, 0, 0, 0, 0, 16, third, 0][..], &frame].concat();
    let packet = ipv4(from, at, &udp(40000, 4789, &vxlan));
    lab.hosts[2].here(move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
        socket.set_header_included_v4(true).unwrap();
        socket.set_broadcast(true).unwrap();
        // By which device what is for everybody goes.
        socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
        socket.send_to(&packet, &SocketAddr::from((at, 0)).into()).unwrap();
    });
}

fn serve(listener: TcpListener) {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 65536];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..len]).is_err() {
                return;
            }
        }
    });
}

fn echo(stream: &mut TcpStream) {
    let text = MARKER.repeat(500);
    stream.write_all(&text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == text);
}

#[test]
fn a_node_encrypts_or_says_why_not() {
    let lab = Lab::start(2);
    apply(&lab, 1, 1, &[secret(true)]);
    let network = told(&lab.hosts[0]);
    let attached = lab.hosts[0].attach("t1", &[("secret", "10.128.0.2")]);
    if network.no_encryption.is_empty() {
        let keys: Vec<(u64, usize, u32)> = network.wireguard_keys.iter().map(|key| (key.epoch, key.key.len(), key.port)).collect();
        assert_eq!((keys, attached.unwrap().mtu), (vec![(1, 32, 51821)], 1390));
    } else {
        assert_eq!(network.no_encryption, "this kernel has no WireGuard (CONFIG_WIREGUARD); load the module wireguard");
        let refused = attached.unwrap_err();
        let words = format!("network secret is encrypted, and this node has no part in it: {}", network.no_encryption);
        assert_eq!((refused.code(), refused.message(), network.wireguard_keys), (Code::Unavailable, words.as_str(), vec![]));
    }
}

#[test]
fn without_a_tunnel_nothing_of_an_encrypted_network_leaves_and_nothing_in_clear_is_taken() {
    let mut lab = Lab::wire(3);
    lab.hosts[..NODES].iter_mut().for_each(Host::start);
    apply(&lab, 1, 0, &[secret(false), plain()]);
    attach_all(&lab);
    let (hidden, open) = (lab.hosts[1].udp("t2", "10.128.0.3:9"), lab.hosts[1].udp("p2", "10.128.1.3:9"));
    let (to_hidden, to_open) = (lab.hosts[0].udp("t1", "10.128.0.2:9"), lab.hosts[0].udp("p1", "10.128.1.2:9"));
    let (hidden6, to_hidden6) = (lab.hosts[1].udp("t2", "[fd00::a80:3]:9"), lab.hosts[0].udp("t1", "[fd00::a80:2]:9"));
    to_hidden.send_to(b"while in clear", "10.128.0.3:9").unwrap();
    assert_eq!(said(&hidden), b"while in clear");
    to_hidden6.send_to(b"by IPv6", "[fd00::a80:3]:9").unwrap();
    assert_eq!(said(&hidden6), b"by IPv6");
    inject(&lab, 0, b"slipped in");
    assert_eq!(said(&hidden), b"slipped in");
    inject_at(&lab, 0, Ipv4Addr::BROADCAST, b"slipped in for everybody");
    assert_eq!(said(&hidden), b"slipped in for everybody");

    apply(&lab, 2, 0, &[secret(true), plain()]);
    let tap = Tap::start(&lab);
    to_hidden.send_to(MARKER, "10.128.0.3:9").unwrap();
    to_hidden6.send_to(MARKER, "[fd00::a80:3]:9").unwrap();
    inject(&lab, 0, b"slipped in");
    inject_at(&lab, 0, Ipv4Addr::BROADCAST, b"slipped in for everybody");
    inject(&lab, 1, b"taken, for this network is not encrypted");
    assert_eq!(said(&open), b"taken, for this network is not encrypted");
    to_open.send_to(b"the last word", "10.128.1.3:9").unwrap();
    assert_eq!(said(&open), b"the last word");
    let seen = tap.end();
    assert!(shows(&seen, b"the last word") && !shows(&seen, MARKER));
    assert!(has_heard_nothing(&hidden) && has_heard_nothing(&hidden6));
}

#[test]
#[ignore = "needs WireGuard: vm.rs runs it on a kernel that has it"]
fn the_wire_shows_nothing_of_a_stream_and_without_its_tunnel_nothing_leaves() {
    let mut lab = Lab::start(2);
    let networks = [secret(true), plain()];
    apply(&lab, 1, 1, &networks);
    apply(&lab, 2, 1, &networks);
    attach_all(&lab);
    let tap = Tap::start(&lab);
    serve(lab.hosts[1].listen("t2", "10.128.0.3:80"));
    let mut stream = lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    (0..10).for_each(|_| echo(&mut stream));
    let (hidden, open) = (lab.hosts[1].udp("t2", "10.128.0.3:9"), lab.hosts[1].udp("p2", "10.128.1.3:9"));
    let (to_hidden, to_open) = (lab.hosts[0].udp("t1", "10.128.0.2:9"), lab.hosts[0].udp("p1", "10.128.1.2:9"));
    let (hidden6, to_hidden6) = (lab.hosts[1].udp("t2", "[fd00::a80:3]:9"), lab.hosts[0].udp("t1", "[fd00::a80:2]:9"));
    to_hidden6.send_to(MARKER, "[fd00::a80:3]:9").unwrap();
    assert_eq!(said(&hidden6), MARKER);
    to_open.send_to(b"in clear", "10.128.1.3:9").unwrap();
    assert_eq!(said(&open), b"in clear");
    let seen = tap.end();
    assert!(shows(&seen, b"in clear") && !shows(&seen, MARKER));
    // By a tunnel comes nothing for the host itself.
    let _listener = lab.hosts[1].here(|| TcpListener::bind("0.0.0.0:22")).unwrap();
    let at_the_host = SocketAddr::from((Ipv4Addr::new(169, 254, 96, 2), 22));
    let reached = lab.hosts[0].here(move || TcpStream::connect_timeout(&at_the_host, Duration::from_secs(2)));
    assert_eq!(reached.unwrap_err().kind(), ErrorKind::TimedOut);

    // It would mend what is broken next.
    lab.hosts[0].kill();
    lab.hosts[0].here(|| {
        let index = nix::net::if_::if_nametoindex("rcl-wg1").unwrap();
        Netlink::open(NETLINK_ROUTE).unwrap().request("delete the tunnel", messages::del_link(index), 0).unwrap();
    });
    let tap = Tap::start(&lab);
    // The kernel may tell the sender that there is no route.
    drop(to_hidden.send_to(MARKER, "10.128.0.3:9"));
    drop(to_hidden6.send_to(MARKER, "[fd00::a80:3]:9"));
    to_open.send_to(b"the last word", "10.128.1.3:9").unwrap();
    assert_eq!(said(&open), b"the last word");
    let seen = tap.end();
    assert!(shows(&seen, b"the last word") && !shows(&seen, MARKER));
    assert!(has_heard_nothing(&hidden) && has_heard_nothing(&hidden6));

    lab.hosts[0].start();
    apply(&lab, 3, 1, &networks);
    echo(&mut stream);
}

#[test]
#[ignore = "needs WireGuard: vm.rs runs it on a kernel that has it"]
fn keys_change_under_a_stream() {
    let lab = Lab::start(2);
    let networks = [secret(true), plain()];
    apply(&lab, 1, 1, &networks);
    apply(&lab, 2, 1, &networks);
    attach_all(&lab);
    let first = told(&lab.hosts[0]).wireguard_keys;
    serve(lab.hosts[1].listen("t2", "10.128.0.3:80"));
    let mut stream = lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    let tap = Tap::start(&lab);
    let mut epochs = Vec::new();
    for revision in 3..7 {
        apply(&lab, revision, 2, &networks);
        echo(&mut stream);
        let devices = ["rcl-wg0", "rcl-wg1"].map(|name| lab.hosts.iter().filter(|host| has_device(host, name)).count());
        let told: Vec<u64> = told(&lab.hosts[0]).wireguard_keys.iter().map(|key| key.epoch).collect();
        epochs.push((told, devices));
    }
    // Made; told, and changed over to; the old one not told any more, and gone.
    assert_eq!(epochs, [(vec![1, 2], [2, 2]), (vec![2], [2, 2]), (vec![2], [2, 0]), (vec![2], [2, 0])]);
    assert!(!shows(&tap.end(), MARKER));
    assert_ne!(told(&lab.hosts[0]).wireguard_keys[0].key, first[0].key);
}

#[test]
#[ignore = "needs WireGuard: vm.rs runs it on a kernel that has it"]
fn a_restarted_netd_keeps_its_key_and_mends_a_tunnel_that_someone_broke() {
    let mut lab = Lab::start(2);
    let networks = [secret(true), plain()];
    apply(&lab, 1, 1, &networks);
    apply(&lab, 2, 1, &networks);
    attach_all(&lab);
    serve(lab.hosts[1].listen("t2", "10.128.0.3:80"));
    let mut stream = lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    let keys = told(&lab.hosts[0]).wireguard_keys;
    lab.hosts[0].kill();
    lab.hosts[0].start();
    let status = lab.hosts[0].status().unwrap();
    assert_eq!((status.repairs, status.network.unwrap().wireguard_keys), (0, keys.clone()));
    echo(&mut stream);
    lab.hosts[0].kill();
    lab.hosts[0].here(|| {
        let index = nix::net::if_::if_nametoindex("rcl-wg1").unwrap();
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        netlink.request("set the tunnel down", messages::set_link(index, None, 1000, false), 0).unwrap();
        let address = messages::address(index, Ipv4Addr::new(169, 254, 96, 1), Ipv4Addr::new(169, 254, 96, 1));
        netlink.request("take its address", RouteNetlinkMessage::DelAddress(address), 0).unwrap();
    });
    lab.hosts[0].start();
    let status = lab.hosts[0].status().unwrap();
    assert_eq!((status.repairs > 0, status.network.unwrap().wireguard_keys), (true, keys));
    echo(&mut stream);
}
