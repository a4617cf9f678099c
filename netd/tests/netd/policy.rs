//! Networks' policies: which connections may begin, whatever else happens meanwhile.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rcluster_api::wire::v1;

use crate::overlay::ping;
use crate::support::traffic::at_once;
use crate::support::{DEADLINE, Lab, eventually, network, numbered, published};

/// A service's task: the service, the host's index, the last octet of the address.
type Place = (&'static str, usize, u8);

/// Three services, each on both hosts.
const SIX: [Place; 6] = [("web", 0, 11), ("web", 1, 12), ("db", 0, 21), ("db", 1, 22), ("log", 0, 31), ("log", 1, 32)];

const SERVICES: [(&str, u8); 3] = [("web", 201), ("db", 202), ("log", 203)];

fn task((service, _, last): Place) -> String {
    format!("{service}-{last}")
}

fn address(last: u8) -> String {
    Ipv4Addr::new(10, 128, 0, last).to_string()
}

/// Network `front` with these tasks.
fn front(places: &[Place], policy: Option<Vec<v1::AllowView>>) -> v1::NetworkView {
    let endpoint = |place: &Place| {
        let (service, host, last) = *place;
        let task = task(*place);
        let mut one = network("front", 0, &[(task.as_str(), host, last)]);
        v1::EndpointView { service_id: service.to_owned(), ..one.endpoints.remove(0) }
    };
    let endpoints = places.iter().map(endpoint).collect();
    v1::NetworkView { endpoints, policy: policy.map(|allow| v1::NetworkPolicyView { allow }), ..network("front", 0, &[]) }
}

/// Gives a host the picture, with the services' addresses.
fn apply_to(lab: &Lab, index: usize, revision: u64, front: &v1::NetworkView) {
    let service = |(name, last): (&str, u8)| v1::ServiceView {
        id: name.into(),
        name: name.into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: "net-front".into(), ip: address(last), names: vec![name.into()] }],
        ..Default::default()
    };
    let view = v1::NetView { services: SERVICES.map(service).into(), ..lab.view(index, revision, std::slice::from_ref(front)) };
    let response = lab.hosts[index].apply(view).unwrap();
    assert_eq!((response.revision, response.problems), (revision, vec![]));
}

fn apply(lab: &Lab, revision: u64, front: &v1::NetworkView) {
    (0..lab.hosts.len()).for_each(|index| apply_to(lab, index, revision, front));
}

fn attach(lab: &Lab, place: Place) {
    let (_, host, last) = place;
    lab.hosts[host].attach(&task(place), &[("front", address(last).as_str())]).unwrap();
}

fn tcp(first: u32, last: u32) -> v1::PolicyPort {
    v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first, last }
}

fn allow(from: &str, to: &str, ports: &[v1::PolicyPort]) -> v1::AllowView {
    let (from_service_ids, to_service_ids) = (vec![from.to_owned()], vec![to.to_owned()]);
    v1::AllowView { from_service_ids, to_service_ids, ports: ports.to_vec(), ..Default::default() }
}

/// Web may speak with the database at port 80, and the database with the log.
fn chain() -> Vec<v1::AllowView> {
    vec![allow("web", "db", &[tcp(80, 80)]), allow("db", "log", &[])]
}

/// Two hosts with the six tasks under a policy, each of which listens at ports 80 and 81.
fn six(policy: Option<Vec<v1::AllowView>>) -> (Lab, Vec<TcpListener>) {
    let lab = Lab::start(2);
    apply(&lab, 1, &front(&SIX, policy));
    let mut listeners = Vec::new();
    for place in SIX {
        attach(&lab, place);
        let (_, host, last) = place;
        listeners.extend([80, 81].map(|port| lab.hosts[host].listen(&task(place), &format!("{}:{port}", address(last)))));
    }
    (lab, listeners)
}

/// Whether a connection begins; one that does not is refused as a policy refuses.
fn reaches(lab: &Lab, from: Place, last: u8, port: u16) -> bool {
    match lab.hosts[from.1].connect(&task(from), &format!("{}:{port}", address(last))) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::HostUnreachable => false,
        Err(error) => panic!("{from:?} to {last} at {port}: {error}"),
    }
}

#[test]
fn what_a_policy_allows_begins_and_nothing_else_whichever_way_it_takes() {
    let (lab, _listeners) = six(Some(chain()));
    let may = |from: &str, to: &str, port: u16| matches!((from, to, port), ("web", "db", 80) | ("db", "log", _));
    for from in SIX {
        for port in [80, 81] {
            for to in SIX.into_iter().filter(|to| *to != from) {
                assert_eq!(reaches(&lab, from, to.2, port), may(from.0, to.0, port), "{from:?} to {to:?} at {port}");
            }
            for (service, vip) in SERVICES {
                assert_eq!(reaches(&lab, from, vip, port), may(from.0, service, port), "{from:?} to {service} at {port}");
            }
        }
    }
    // Who may speak at all may ping.
    assert!(lab.hosts[0].inside("web-11", || ping(Ipv4Addr::new(10, 128, 0, 22))));
}

#[test]
fn datagrams_are_judged_and_answered_ones_are_not_judged_again() {
    let udp = v1::PolicyPort { protocol: v1::Protocol::Udp.into(), first: 9, last: 9 };
    let (lab, _listeners) = six(Some(vec![allow("log", "web", &[udp])]));
    for (name, host, last) in [("web-11", 0, 11), ("web-12", 1, 12), ("db-22", 1, 22)] {
        let socket = lab.hosts[host].udp(name, &format!("{}:9", address(last)));
        socket.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&[last], from));
            }
        });
    }
    let ask = |(service, host, last): Place, to: u8| -> io::Result<u8> {
        let socket = lab.hosts[host].udp(&task((service, host, last)), &format!("{}:0", address(last)));
        socket.connect((Ipv4Addr::new(10, 128, 0, to), 9))?;
        let mut answer = [0];
        socket.send(b"?")?;
        socket.recv(&mut answer)?;
        Ok(answer[0])
    };
    for to in [11, 12] {
        assert_eq!(ask(("log", 0, 31), to).unwrap(), to);
    }
    assert!([11, 12].contains(&ask(("log", 0, 31), 201).unwrap()), "by the service's address");
    for (from, to) in [(("log", 0, 31), 22), (("db", 0, 21), 12), (("web", 0, 11), 12)] {
        assert_eq!(ask(from, to).unwrap_err().kind(), ErrorKind::HostUnreachable, "{from:?} to {to}");
    }
}

#[test]
fn a_new_task_may_what_its_service_may_when_attach_answers() {
    let (lab, _listeners) = six(Some(chain()));
    let new: [Place; 2] = [("web", 0, 13), ("log", 1, 33)];
    apply(&lab, 2, &front(&[&SIX[..], &new].concat(), Some(chain())));
    for place in new {
        attach(&lab, place);
        for to in [21, 22] {
            assert_eq!(reaches(&lab, place, to, 80), place.0 == "web", "{place:?} to {to}");
        }
    }
}

#[test]
fn the_node_of_the_one_that_is_spoken_to_judges_too() {
    let (lab, _listeners) = six(None);
    assert!(reaches(&lab, ("web", 0, 11), 32, 80));
    apply_to(&lab, 1, 2, &front(&SIX, Some(chain())));
    let error = at_once(&lab.hosts[0], Some("web-11"), "to log", || lab.hosts[0].connect("web-11", "10.128.0.32:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(reaches(&lab, ("web", 0, 11), 22, 80));
}

#[test]
fn a_policy_that_changes_is_in_force_with_the_answer_and_what_has_begun_goes_on() {
    let (mut lab, listeners) = six(Some(Vec::new()));
    let (web, db) = (SIX[0], 22);
    let policies = [
        (None, [true, true]),
        (Some(vec![allow("web", "db", &[tcp(70, 80)])]), [true, false]),
        (Some(vec![allow("web", "db", &[tcp(80, 90)])]), [true, true]),
        (Some(vec![allow("web", "db", &[tcp(81, 81)])]), [false, true]),
        (Some(vec![allow("web", "db", &[tcp(60, 80), tcp(82, 99)])]), [true, false]),
        (Some(vec![v1::AllowView { from_all: true, ..allow("web", "db", &[tcp(75, 95)]) }]), [true, true]),
        (Some(vec![allow("web", "db", &[])]), [true, true]),
        (Some(vec![allow("log", "db", &[])]), [false, false]),
    ];
    assert!(!reaches(&lab, web, db, 80), "a policy without rules allows nothing");
    let mut stream = None;
    for (revision, (policy, expected)) in (2..).zip(policies) {
        apply(&lab, revision, &front(&SIX, policy));
        let found = [80, 81].map(|port| reaches(&lab, web, db, port));
        assert_eq!(found, expected, "revision {revision}");
        stream = stream.or_else(|| Some(streaming(&lab, web, &listeners)));
        goes_on(stream.as_mut().expect("opened with the first"));
    }

    // A netd that is started again finds all as it left it.
    lab.hosts[0].kill();
    assert!(!reaches(&lab, web, db, 80));
    lab.hosts[0].start();
    assert_eq!(lab.hosts[0].status().unwrap().repairs, 0);
    assert!(!reaches(&lab, web, db, 80));
    apply(&lab, 100, &front(&SIX, None));
    assert!(reaches(&lab, web, db, 80));
    goes_on(stream.as_mut().expect("opened with the first"));
}

/// A connection to the database's port 80, both ends.
fn streaming(lab: &Lab, from: Place, listeners: &[TcpListener]) -> (TcpStream, TcpStream) {
    let at: SocketAddr = "10.128.0.22:80".parse().unwrap();
    let listener = listeners.iter().find(|listener| listener.local_addr().unwrap() == at).expect("it listens");
    let client = lab.hosts[from.1].connect(&task(from), &at.to_string()).unwrap();
    // Others stand before it, from the attempts of before.
    let ours = client.local_addr().unwrap();
    let server = listener.incoming().map(Result::unwrap).find(|stream| stream.peer_addr().unwrap() == ours).expect("it comes");
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    (client, server)
}

fn goes_on((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn what_leaves_the_cluster_is_not_judged() {
    let (lab, _listeners) = six(Some(Vec::new()));
    let outside = lab.outside();
    let _listener = outside.here(|| TcpListener::bind("203.0.113.1:80")).unwrap();
    drop(lab.hosts[0].connect("web-11", "203.0.113.1:80").unwrap());
    assert!(!reaches(&lab, SIX[0], 22, 80));
}

#[test]
fn killed_at_any_instant_of_a_change_of_a_policy_netd_never_lets_through_what_neither_allows() {
    let (mut lab, _listeners) = six(Some(chain()));
    // Work enough to be killed in: 2 × 150 pairs, with ports that overlap those of before.
    let many: Vec<Place> = (50..200).map(|last| ("many", 1, last)).collect();
    let places = [&SIX[..], &many].concat();
    let policy = |round: u32| {
        let ports = [tcp(80, 85 + round % 2), tcp(90 + round % 2, 99)];
        [chain(), vec![allow("db", "many", &ports)]].concat()
    };

    let (stop, opened, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let counts = (stop.clone(), opened.clone(), refused.clone());
    // Begun in the pod, the thread stays in it.
    let tries = lab.hosts[0].inside("web-11", move || {
        thread::spawn(move || {
            let (stop, opened, refused) = counts;
            let to: SocketAddr = "10.128.0.32:80".parse().unwrap();
            while !stop.load(Ordering::Relaxed) {
                let count = if TcpStream::connect_timeout(&to, DEADLINE).is_ok() { &opened } else { &refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for round in 0..12_u32 {
        let view = lab.view(0, 10 + u64::from(round), &[front(&places, Some(policy(round)))]);
        let pid = nix::unistd::Pid::from_raw(lab.hosts[0].pid().cast_signed());
        let killer = thread::spawn(move || {
            // Spread over the time that the work takes; which step it hits is left to chance.
            thread::sleep(Duration::from_micros(u64::from(round) * 1500));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        });
        // Answered or cut off: both are right.
        let _outcome = lab.hosts[0].apply(view.clone());
        killer.join().unwrap();
        lab.hosts[0].kill();
        lab.hosts[0].start();
        let answer = lab.hosts[0].apply(view).unwrap();
        assert_eq!((answer.revision, answer.problems), (10 + u64::from(round), vec![]));
        assert!(reaches(&lab, SIX[0], 22, 80), "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    tries.join().unwrap();
    assert_eq!(opened.load(Ordering::Relaxed), 0);
    assert!(refused.load(Ordering::Relaxed) > 12, "{refused:?}");
}

/// Gives every host the picture, with port 8080 of all nodes for these tasks' port 80.
fn publish(lab: &Lab, revision: u64, front: &v1::NetworkView, places: &[Place]) {
    let tasks: Vec<String> = places.iter().map(|place| task(*place)).collect();
    let behind: Vec<(&str, usize, u8)> = tasks.iter().zip(places).map(|(task, (_, host, last))| (task.as_str(), *host, *last)).collect();
    let mut published = published(8080, 80, &behind);
    published.ports[0].policy = v1::IngressPolicy::Mesh.into();
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = lab.view(index, revision, std::slice::from_ref(front));
        let response = host.apply(numbered(v1::NetView { published: vec![published.clone()], ..view })).unwrap();
        assert_eq!((response.revision, response.problems), (revision, vec![]));
    }
}

#[test]
fn who_comes_by_a_published_port_is_judged_by_where_they_come_from_and_by_nothing_else() {
    let lab = Lab::start(2);
    let outside = lab.outside();
    let web: [Place; 2] = [("web", 0, 11), ("web", 1, 12)];
    let from = |range: &str| v1::AllowView {
        from_service_ids: Vec::new(),
        from_cidrs: vec![range.to_owned()],
        ..allow("", "web", &[tcp(80, 80)])
    };
    let everyone = v1::AllowView { from_all: true, to_all: true, ..Default::default() };
    publish(&lab, 1, &front(&web, None), &web);
    web.into_iter().for_each(|place| attach(&lab, place));
    let listeners = web.map(|place| lab.hosts[place.1].listen(&task(place), &format!("{}:80", address(place.2))));
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
    // The host itself, whose connections no policy judges, wherever the task is.
    let host_reaches = |listener: &TcpListener| {
        let _stream = lab.hosts[0].here(|| TcpStream::connect(("127.0.0.1", 8080))).unwrap();
        let own = IpAddr::from([169, 254, 192, 1]);
        eventually("the task has it", || listener.accept().is_ok_and(|(_, peer)| peer.ip() == own));
    };
    // Through another node a refusal is silence.
    let patience = Duration::from_secs(2);
    let connect = || {
        let to: SocketAddr = "10.90.0.101:8080".parse().unwrap();
        outside.here(move || TcpStream::connect_timeout(&to, patience)).map(drop).map_err(|error| error.kind())
    };
    let policies = [
        (None, true),
        (Some(vec![from("203.0.113.0/24")]), true),
        (Some(vec![from("198.51.100.0/24"), everyone]), false),
        (Some(vec![from("198.51.100.0/24"), from("203.0.113.1/32")]), true),
        (Some(Vec::new()), false),
    ];
    for (revision, (policy, expected)) in (1_u64..).zip(policies) {
        let front = front(&web, policy);
        publish(&lab, 2 * revision, &front, &web[..1]);
        let refused = Err(ErrorKind::ConnectionRefused);
        assert_eq!(connect(), if expected { Ok(()) } else { refused }, "at its own node, {revision}");
        host_reaches(&listeners[0]);
        publish(&lab, 2 * revision + 1, &front, &web[1..]);
        assert_eq!(connect().is_ok(), expected, "through another node, {revision}");
        host_reaches(&listeners[1]);
    }
}
