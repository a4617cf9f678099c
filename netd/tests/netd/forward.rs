//! Foreign names: what pods get of the host's resolvers.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tonic::Code;

use crate::support::dns::{RESOLVER, addresses, ask, ask_tcp, question, resolve};
use crate::support::resolver::{Resolver, answer, send};
use crate::support::{Host, Lab, eventually, network};

const SEVEN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const EIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);

/// What must not wait for anybody takes less on a busy machine; what waits for resolvers that are silent takes more.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// A host with this resolv.conf and two pods.
fn lab(resolv_conf: &str) -> Lab {
    let lab = Lab::start(1);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 0, 3)])]);
    fs::write(lab.hosts[0].resolv_conf(), resolv_conf).unwrap();
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[0].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    lab
}

fn code(lab: &Lab, task: &str, name: &str, kind: RecordType) -> ResponseCode {
    let answer = ask(&lab.hosts[0], task, name, kind);
    assert!(answer.answers.is_empty(), "{name}");
    answer.metadata.response_code
}

#[test]
fn a_foreign_name_is_asked_of_the_hosts_resolver_and_the_answer_remembered() {
    let lab = lab("search example.org\nnameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let resolver = Resolver::start(host, "127.0.0.1", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 60)));
    let first = ask(host, "t1", "example.com.", RecordType::A);
    assert_eq!(addresses(&first), [SEVEN]);
    assert!(first.metadata.recursion_available && !first.metadata.authoritative);
    let again = ask(host, "t2", "eXample.COM.", RecordType::A);
    assert_eq!((addresses(&again), again.queries[0].name().to_string()), (vec![SEVEN], "eXample.COM.".to_owned()));
    assert!(again.answers.iter().all(|record| record.ttl <= 60));
    assert_eq!(addresses(&ask_tcp(host, "t1", "example.com.", RecordType::A)), [SEVEN]);
    assert_eq!(resolver.asked(), ["example.com."]);
    ask(host, "t1", "www.example.com.", RecordType::A);
    assert_eq!(resolver.asked(), ["example.com.", "www.example.com."]);
}

#[test]
fn nobody_else_is_asked_about_what_is_ours() {
    let lab = lab("nameserver 127.0.0.1\n");
    let resolver = Resolver::start(&lab.hosts[0], "127.0.0.1", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 60)));
    for (name, kind, expected) in [
        ("web.", RecordType::AAAA, ResponseCode::NoError),
        ("nobody.", RecordType::A, ResponseCode::NXDomain),
        ("nobody.front.internal.", RecordType::A, ResponseCode::NXDomain),
        ("web.back.internal.", RecordType::A, ResponseCode::NXDomain),
        ("9.0.128.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
        ("9.9.200.10.in-addr.arpa.", RecordType::PTR, ResponseCode::Refused),
        ("53.53.254.169.in-addr.arpa.", RecordType::PTR, ResponseCode::Refused),
    ] {
        assert_eq!(code(&lab, "t1", name, kind), expected, "{name}");
    }
    assert!(resolver.asked().is_empty(), "{:?}", resolver.asked());
    ask(&lab.hosts[0], "t1", "example.web.", RecordType::A);
    assert_eq!(resolver.asked(), ["example.web."]);
}

#[test]
fn what_is_no_answer_to_the_question_is_not_believed() {
    let lab = lab("nameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let stranger = host.here(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let _resolver = Resolver::start(host, "127.0.0.1", move |socket, from, asked| {
        let lie = answer(asked, &[EIGHT], 60);
        let (mut id, mut name, mut kind) = (lie.clone(), lie.clone(), lie.clone());
        id.metadata.id ^= 1;
        name.queries[0].set_name(Name::from_ascii("example.org.").unwrap());
        kind.queries[0].set_query_type(RecordType::AAAA);
        for lie in [&id, &name, &kind] {
            send(socket, from, lie);
        }
        send(&stranger, from, &lie);
        send(socket, from, &answer(asked, &[SEVEN], 60));
    });
    assert_eq!(addresses(&ask(host, "t1", "example.com.", RecordType::A)), [SEVEN]);
}

#[test]
fn the_first_resolver_that_knows_is_enough() {
    let lab = lab("nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\n");
    let host = &lab.hosts[0];
    let silent = Resolver::start(host, "127.0.0.1", |_, _, _| {});
    let failing = Resolver::start(host, "127.0.0.2", |socket, from, asked| {
        let mut failure = answer(asked, &[], 0);
        failure.metadata.response_code = ResponseCode::ServFail;
        send(socket, from, &failure);
    });
    let _right = Resolver::start(host, "127.0.0.3", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 60)));
    let begin = Instant::now();
    assert_eq!(addresses(&ask(host, "t1", "example.com.", RecordType::A)), [SEVEN]);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    eventually("all were asked", || [&silent, &failing].iter().all(|resolver| resolver.asked() == ["example.com."]));
}

#[test]
fn who_has_nobody_to_ask_is_told_at_once() {
    for resolv_conf in ["", "nameserver 127.0.0.9\n", "nameserver 169.254.53.53\n"] {
        let lab = lab(resolv_conf);
        let begin = Instant::now();
        assert_eq!(code(&lab, "t1", "example.com.", RecordType::A), ResponseCode::ServFail, "{resolv_conf}");
        assert!(begin.elapsed() < AT_ONCE, "{resolv_conf}: {:?}", begin.elapsed());
    }
}

#[test]
fn when_nobody_answers_the_asker_is_told_and_names_of_ours_do_not_wait() {
    let lab = lab("nameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let resolver = Resolver::start(host, "127.0.0.1", |_, _, _| {});
    let socket = host.udp("t1", "0.0.0.0:0");
    let begin = Instant::now();
    socket.send_to(&question("example.com.", RecordType::A, None), RESOLVER).unwrap();
    assert_eq!(resolve(host, "t1", "web.").len(), 2);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(Message::from_vec(&buffer[..len]).unwrap().metadata.response_code, ResponseCode::ServFail);
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    let again = Instant::now();
    assert_eq!(code(&lab, "t2", "example.com.", RecordType::A), ResponseCode::ServFail);
    assert!(again.elapsed() < AT_ONCE, "{:?}", again.elapsed());
    assert_eq!(resolver.asked(), ["example.com."]);
}

#[test]
fn a_pod_of_internal_networks_alone_is_refused() {
    let lab = Lab::start(1);
    let mut closed = network("closed", 1, &[]);
    closed.internal = true;
    lab.apply(1, &[network("front", 0, &[]), closed]);
    let host = &lab.hosts[0];
    fs::write(host.resolv_conf(), "nameserver 127.0.0.1\n").unwrap();
    let resolver = Resolver::start(host, "127.0.0.1", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 60)));
    host.attach("inner", &[("closed", "10.128.1.2")]).unwrap();
    host.attach("both", &[("closed", "10.128.1.3"), ("front", "10.128.0.3")]).unwrap();
    assert_eq!(code(&lab, "inner", "example.com.", RecordType::A), ResponseCode::Refused);
    assert!(resolver.asked().is_empty());
    assert_eq!(addresses(&ask(host, "both", "example.com.", RecordType::A)), [SEVEN]);
    assert_eq!(code(&lab, "inner", "example.com.", RecordType::A), ResponseCode::Refused, "not even of what is remembered");
}

#[test]
fn a_pod_with_resolvers_of_its_own_asks_those_and_gets_nobody_elses_answers() {
    let mut lab = lab("nameserver 127.0.0.1\n");
    let host = &mut lab.hosts[0];
    let of_host = Resolver::start(host, "127.0.0.1", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 600)));
    let of_pod = Resolver::start(host, "127.0.0.2", |socket, from, asked| send(socket, from, &answer(asked, &[EIGHT], 600)));
    let networks = [("front", "10.128.0.9")];
    host.attach_asking("t3", &networks, &["127.0.0.2", "169.254.53.53"]).unwrap();
    let asked = |host: &Host, task: &str| addresses(&ask(host, task, "example.com.", RecordType::A));
    for _ in 0..2 {
        assert_eq!((asked(host, "t1"), asked(host, "t3")), (vec![SEVEN], vec![EIGHT]));
    }
    assert_eq!(addresses(&ask_tcp(host, "t3", "example.com.", RecordType::A)), [EIGHT]);
    assert_eq!((of_host.asked(), of_pod.asked()), (vec!["example.com.".to_owned()], vec!["example.com.".to_owned()]));
    assert_eq!(resolve(host, "t3", "web.").len(), 2, "what is ours is not theirs");
    host.kill();
    host.start();
    assert_eq!(asked(host, "t3"), [EIGHT], "they are remembered");
    host.attach_asking("t3", &networks, &["127.0.0.2", "169.254.53.53"]).unwrap();
    for (dns, code) in
        [(vec!["127.0.0.3"], Code::FailedPrecondition), (vec!["x"], Code::InvalidArgument), (vec!["1.1.1.1"; 4], Code::InvalidArgument)]
    {
        assert_eq!(host.attach_asking("t3", &networks, &dns).unwrap_err().code(), code, "{dns:?}");
    }
}

#[test]
fn the_hosts_resolv_conf_is_followed() {
    let lab = lab("nameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let _before = Resolver::start(host, "127.0.0.1", |socket, from, asked| send(socket, from, &answer(asked, &[SEVEN], 600)));
    let _after = Resolver::start(host, "127.0.0.2", |socket, from, asked| send(socket, from, &answer(asked, &[EIGHT], 600)));
    assert_eq!(addresses(&ask(host, "t1", "example.com.", RecordType::A)), [SEVEN]);
    let aside = host.resolv_conf().with_extension("new");
    fs::write(&aside, "nameserver 127.0.0.2\n").unwrap();
    fs::rename(&aside, host.resolv_conf()).unwrap();
    eventually("the other one is asked", || addresses(&ask(host, "t1", "example.com.", RecordType::A)) == [EIGHT]);
}

#[test]
fn an_answer_that_was_cut_is_fetched_whole_and_cut_again_for_who_cannot_take_it() {
    let lab = lab("nameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let _resolver = Resolver::start(host, "127.0.0.1", |socket, from, asked| {
        let mut cut = answer(asked, &[EIGHT], 60);
        cut.metadata.truncation = true;
        send(socket, from, &cut);
    });
    let listener = host.here(|| TcpListener::bind("127.0.0.1:53")).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut len = [0; 2];
        stream.read_exact(&mut len).unwrap();
        let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut query).unwrap();
        let whole = answer(&Message::from_vec(&query).unwrap(), &[SEVEN; 100], 60).to_vec().unwrap();
        stream.write_all(&u16::try_from(whole.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&whole).unwrap();
    });
    let cut = ask(host, "t1", "example.com.", RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = ask_tcp(host, "t1", "example.com.", RecordType::A);
    assert_eq!(addresses(&whole), [SEVEN; 100]);
    assert!(!whole.metadata.truncation);
}

#[test]
fn a_pod_whose_questions_are_not_answered_does_not_keep_others_from_theirs() {
    let lab = lab("nameserver 127.0.0.1\n");
    let host = &lab.hosts[0];
    let resolver = Resolver::start(host, "127.0.0.1", |socket, from, asked| {
        if asked.queries[0].name().to_string().starts_with("fast") {
            send(socket, from, &answer(asked, &[SEVEN], 60));
        }
    });
    let socket = host.udp("t1", "0.0.0.0:0");
    let begin = Instant::now();
    for number in 0..200 {
        socket.send_to(&question(&format!("slow{number}.example."), RecordType::A, None), RESOLVER).unwrap();
    }
    let mut buffer = [0; 512];
    for _ in 64..200 {
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(Message::from_vec(&buffer[..len]).unwrap().metadata.response_code, ResponseCode::ServFail);
    }
    assert!(begin.elapsed() < AT_ONCE, "what is too much is told at once: {:?}", begin.elapsed());
    assert_eq!(addresses(&ask(host, "t2", "fast.example.", RecordType::A)), [SEVEN]);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    eventually("its share was asked", || resolver.asked().iter().filter(|name| name.starts_with("slow")).count() == 64);
}
