//! DNS as a pod meets it.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use rcluster_api::wire::v1;

use crate::support::dns::{RESOLVER, addresses, ask, ask_tcp, exchange, question, resolve};
use crate::support::{Lab, network};

/// Two hosts; `front` has t1 here and t2, t3 there, `back` has t4 there. t1 is attached on the first host.
fn lab() -> Lab {
    let lab = Lab::start(2);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3), ("t3", 1, 4)]), network("back", 1, &[("t4", 1, 2)])]);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab
}

fn front(lasts: &[u8]) -> Vec<Ipv4Addr> {
    lasts.iter().map(|last| Ipv4Addr::new(10, 128, 0, *last)).collect()
}

#[test]
fn a_name_has_all_serving_endpoints_in_random_order_for_this_instant() {
    let lab = lab();
    let answer = lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    assert_eq!((answer.dns.as_str(), answer.search), ("169.254.53.53", vec!["front.internal".to_owned()]));
    for name in ["web.", "web.shop.", "web.front.internal.", "WeB."] {
        assert_eq!(resolve(&lab.hosts[0], "t1", name), front(&[2, 3, 4]), "{name}");
    }
    assert_eq!(resolve(&lab.hosts[0], "t1", "3.web."), front(&[3]));
    let answers: Vec<Message> = (0..300).map(|_| ask(&lab.hosts[0], "t1", "web.", RecordType::A)).collect();
    let orders: BTreeSet<Vec<Ipv4Addr>> = answers.iter().map(addresses).collect();
    assert_eq!(orders.len(), 6, "each of the orders of three comes up in 300 answers");
    assert!(answers.iter().flat_map(|answer| &answer.answers).all(|record| record.ttl == 0));
    assert!(answers.iter().all(|answer| answer.metadata.authoritative));
    assert_eq!(lab.hosts[0].status().unwrap().dns_queries, 5 + 300, "each question is counted");
}

#[test]
fn names_of_other_networks_do_not_exist() {
    let lab = lab();
    lab.hosts[1].attach("t4", &[("back", "10.128.1.2")]).unwrap();
    assert_eq!(resolve(&lab.hosts[1], "t4", "web."), [Ipv4Addr::new(10, 128, 1, 2)]);
    assert_eq!(ask(&lab.hosts[1], "t4", "web.front.internal.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(ask(&lab.hosts[1], "t4", "2.0.128.10.in-addr.arpa.", RecordType::PTR).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn no_data_no_name_and_not_ours_are_told_apart() {
    let lab = lab();
    let negative = |name: &str, kind: RecordType| {
        let answer = ask(&lab.hosts[0], "t1", name, kind);
        assert!(answer.answers.is_empty(), "{name}");
        let soa = answer.authorities.iter().any(|record| matches!(record.data, RData::SOA(_)) && record.ttl == 1);
        (answer.metadata.response_code, soa)
    };
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::HTTPS] {
        assert_eq!(negative("web.", kind), (ResponseCode::NoError, true), "{kind}");
    }
    assert_eq!(negative("idle.", RecordType::A), (ResponseCode::NoError, true));
    for name in ["nobody.", "nobody.front.internal.", "9.web.front.internal."] {
        assert_eq!(negative(name, RecordType::A), (ResponseCode::NXDomain, true), "{name}");
    }
    for name in ["example.com.", "example.web.", "tasks.nobody."] {
        assert_eq!(negative(name, RecordType::A), (ResponseCode::ServFail, false), "{name}: the host has no resolvers");
    }
    let pointer = ask(&lab.hosts[0], "t1", "3.0.128.10.in-addr.arpa.", RecordType::PTR);
    assert!(matches!(&pointer.answers[0].data, RData::PTR(name) if name.to_string() == "web.3.front.internal."));
}

#[test]
fn a_service_is_found_by_node_and_by_port() {
    let lab = Lab::start(2);
    let networks = [network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])];
    let port = v1::Port { name: "http".into(), protocol: v1::Protocol::Tcp.into(), target: 8080, ..Default::default() };
    let web = v1::ServiceView { id: "web".into(), name: "web".into(), stack: "shop".into(), ports: vec![port], ..Default::default() };
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = v1::NetView { services: vec![web.clone()], ..lab.view(index, 1, &networks) };
        assert_eq!(host.apply(view).unwrap().problems, Vec::<String>::new());
    }
    let host = &lab.hosts[0];
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    for (name, last) in [("web.node-0.node.", 2), ("web.shop.node-1.node.", 3), ("T2.web.", 3), ("t2.web.front.internal.", 3)] {
        assert_eq!(resolve(host, "t1", name), front(&[last]), "{name}");
    }
    assert_eq!(resolve(host, "t1", "host.rcluster.internal."), [Ipv4Addr::new(169, 254, 53, 53)]);
    for name in ["_http._tcp.web.", "_http._tcp.web.shop.", "_HTTP._tcp.web.front.internal."] {
        let answer = ask(host, "t1", name, RecordType::SRV);
        let mut targets: Vec<(String, u16)> = answer.answers.iter().filter_map(|record| srv(&record.data)).collect();
        targets.sort();
        assert_eq!(targets, [("web.2.front.internal.".to_owned(), 8080), ("web.3.front.internal.".to_owned(), 8080)], "{name}");
        assert_eq!(answer.additionals.len(), 2, "{name}");
        assert_eq!(resolve(host, "t1", &targets[1].0), front(&[3]));
    }
    assert_eq!(ask(host, "t1", "_ftp._tcp.web.", RecordType::SRV).metadata.response_code, ResponseCode::NXDomain);
    host.detach("t1").unwrap();
    host.attach("me", &[("front", "10.128.0.250")]).unwrap();
    assert_eq!(ask(host, "me", "_http._tcp.web.", RecordType::SRV).answers.len(), 1, "a pod that is not here has no port");
}

fn srv(data: &RData) -> Option<(String, u16)> {
    if let RData::SRV(srv) = data { Some((srv.target.to_string(), srv.port)) } else { None }
}

#[test]
fn an_endpoint_that_is_not_serving_is_routed_but_not_named() {
    let lab = lab();
    let mut leaving = network("front", 0, &[("t1", 0, 2), ("t2", 1, 3), ("t3", 1, 4)]);
    leaving.endpoints[1].serving = false;
    lab.hosts[1].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    lab.apply(2, &[leaving]);
    assert_eq!(resolve(&lab.hosts[0], "t1", "web."), front(&[2, 4]));
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    lab.apply(3, &[network("front", 0, &[("t1", 0, 2)])]);
    assert_eq!(resolve(&lab.hosts[0], "t1", "web."), front(&[2]));
    assert!(lab.hosts[0].connect("t1", "10.128.0.3:80").is_err());
}

#[test]
fn a_detached_pod_is_not_named_any_more_without_a_new_picture() {
    let lab = lab();
    let host = &lab.hosts[0];
    host.attach("me", &[("front", "10.128.0.250")]).unwrap();
    assert_eq!(resolve(host, "me", "web."), front(&[2, 3, 4]));
    host.detach("t1").unwrap();
    assert_eq!(resolve(host, "me", "web."), front(&[3, 4]));
}

#[test]
fn an_answer_too_large_for_udp_is_cut_and_whole_over_tcp() {
    let lab = Lab::start(2);
    let tasks: Vec<String> = (2..=201).map(|last| format!("t{last}")).collect();
    let endpoints: Vec<(&str, usize, u8)> = tasks.iter().zip(2..).map(|(task, last)| (task.as_str(), 1, last)).collect();
    lab.apply(1, &[network("front", 0, &endpoints)]);
    lab.hosts[0].attach("me", &[("front", "10.128.0.250")]).unwrap();
    let host = &lab.hosts[0];
    for (edns, limit) in [(None, 512), (Some(4096), 1232), (Some(700), 700)] {
        let bytes = exchange(host, "me", question("web.", RecordType::A, edns));
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.metadata.truncation && bytes.len() <= limit && bytes.len() > limit - 40, "{} of {limit}", bytes.len());
        assert!(addresses(&answer).len() > 20);
    }
    let whole = ask_tcp(host, "me", "web.", RecordType::A);
    assert!(!whole.metadata.truncation);
    assert_eq!(addresses(&whole).into_iter().collect::<BTreeSet<_>>().len(), 200);
}

#[test]
fn malformed_and_foreign_requests_get_what_the_rfcs_say() {
    let lab = lab();
    let code = |request: Vec<u8>| Message::from_vec(&exchange(&lab.hosts[0], "t1", request)).unwrap().metadata.response_code;
    let plain = question("web.", RecordType::A, None);

    let mut notify = plain.clone();
    notify[2] = 4 << 3;
    assert_eq!(code(notify), ResponseCode::NotImp);
    let mut no_question = plain[..12].to_vec();
    no_question[5] = 0;
    assert_eq!(code(no_question), ResponseCode::FormErr);
    let mut two = plain.clone();
    two[5] = 2;
    two.extend(&plain[12..]);
    assert_eq!(code(two), ResponseCode::FormErr);
    assert_eq!(code(plain[..plain.len() - 3].to_vec()), ResponseCode::FormErr);

    let mut version = question("web.", RecordType::A, Some(1232));
    let at = version.len() - 5;
    version[at] = 1;
    // BADVERS shares its number with BADSIG, which is what the crate reads.
    assert_eq!(u16::from(code(version)), u16::from(ResponseCode::BADVERS));

    // A response, and less than a header, are met with silence; what comes next is answered.
    let socket = lab.hosts[0].udp("t1", "0.0.0.0:0");
    let mut response = plain.clone();
    response[2] |= 0x80;
    for silent in [response.as_slice(), &plain[..11]] {
        socket.send_to(silent, "169.254.53.53:53").unwrap();
    }
    let mut last = question("wEb.", RecordType::A, None);
    last[0..2].copy_from_slice(&[0xab, 0xcd]);
    socket.send_to(&last, "169.254.53.53:53").unwrap();
    let mut answer = [0; 1500];
    let len = socket.recv(&mut answer).unwrap();
    assert_eq!(answer[0..2], [0xab, 0xcd]);
    assert_eq!(answer[12..16], *b"\x03wEb", "the question comes back as it was asked");
    assert!(len > 12);
}

#[test]
fn a_pod_that_floods_the_resolver_costs_the_others_no_question() {
    let lab = lab();
    let host = &lab.hosts[0];
    host.attach("me", &[("front", "10.128.0.250")]).unwrap();
    let (before, begin) = (host.status().unwrap().dns_queries, Instant::now());
    let (socket, stop) = (host.udp("t1", "0.0.0.0:0"), Arc::new(AtomicBool::new(false)));
    let (stopped, request) = (stop.clone(), question("web.", RecordType::A, None));
    socket.connect(RESOLVER).unwrap();
    let flood = thread::spawn(move || {
        let mut sent = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            // A full queue on the way is as good as sent.
            sent += u64::from(socket.send(&request).is_ok());
        }
        sent
    });
    let mut times: Vec<Duration> = Vec::new();
    while begin.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        assert_eq!(resolve(host, "me", "web."), front(&[2, 3, 4]));
        times.push(asked.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().unwrap();
    times.sort();
    let slow = times[times.len() * 99 / 100];
    assert!(slow < Duration::from_secs(2), "p99 {slow:?} of {}", times.len());
    let seen = host.status().unwrap().dns_queries - before - u64::try_from(times.len()).unwrap();
    assert!(seen < sent, "{seen} of {sent} questions were let through: there was no flood");
}

#[test]
fn a_pod_that_holds_connections_open_leaves_some_for_the_others() {
    let lab = lab();
    let host = &lab.hosts[0];
    host.attach("me", &[("front", "10.128.0.250")]).unwrap();
    let mut held: Vec<TcpStream> = (0..100).map(|_| host.connect("t1", RESOLVER).unwrap()).collect();
    let begin = Instant::now();
    assert_eq!(addresses(&ask_tcp(host, "me", "web.", RecordType::A)).len(), 3);
    // Connections are silent for three seconds at most: a place that one of those had to leave would have come later.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let ended = held.last_mut().unwrap().read(&mut [0]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(begin.elapsed() < Duration::from_secs(2), "what is too much is closed at once: {:?}", begin.elapsed());
}
