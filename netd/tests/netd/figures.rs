//! What things cost, as text with `--nocapture` on a release build: `cargo test --release -p rcluster-netd figures -- --ignored --nocapture`.
//! A figure is never a test; what is asserted here is only that the work was done.

use std::io::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;

use crate::support::dns::{RESOLVER, addresses, ask_tcp, question};
use crate::support::{Host, Lab, network, resident_kib};

fn tell(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    let line =
        format!("{what}: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}\n", at(50), at(90), at(99), at(100), times.len());
    std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
}

/// Ten thousand endpoints on a hundred networks: what netd takes of memory, and a pod's coming and going beside them.
#[test]
#[ignore = "a measurement"]
fn figures_of_ten_thousand_endpoints() {
    let mut lab = Lab::start(1);
    let networks = (0..100_u8).map(|third| {
        let tasks: Vec<String> = (2..102).map(|last| format!("0198c7f2-1111-7000-8000-{third:06}{last:06}")).collect();
        let endpoints: Vec<(&str, usize, u8)> = tasks.iter().zip(2..).map(|(task, last)| (task.as_str(), 1, last)).collect();
        network(&format!("n{third}"), third, &endpoints)
    });
    let networks: Vec<_> = networks.collect();
    let mut view = lab.view(0, 1, &networks);
    view.nodes.push(rcluster_api::wire::v1::NodeView { id: crate::support::node_id(1), addr: "10.90.0.102".into(), ..Default::default() });
    let host = &mut lab.hosts[0];
    let begun = Instant::now();
    host.apply(view.clone()).unwrap();
    tell("first picture, 100 networks, 10000 endpoints", &mut [begun.elapsed()]);
    let mut changed = Vec::new();
    for revision in 2..22 {
        view.networks[0].endpoints.pop();
        view.revision = revision;
        let begun = Instant::now();
        host.apply(view.clone()).unwrap();
        changed.push(begun.elapsed());
    }
    tell("picture with one endpoint less of 10000", &mut changed);
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for pod in 0..100_u8 {
        let (task, ip) = (format!("pod{pod}"), format!("10.128.{pod}.200"));
        let begun = Instant::now();
        host.attach(&task, &[(&format!("n{pod}"), &ip)]).unwrap();
        attach.push(begun.elapsed());
    }
    assert_eq!(addresses(&ask_tcp(host, "pod7", "web.", RecordType::A)).len(), 100);
    let memory = format!("resident with 100 networks of 100 endpoints and 100 pods: {} KiB\n", resident_kib(host.pid()));
    std::io::stderr().write_all(memory.as_bytes()).expect("stderr is open");
    for pod in 0..100_u8 {
        let begun = Instant::now();
        host.detach(&format!("pod{pod}")).unwrap();
        detach.push(begun.elapsed());
    }
    tell("attach (connect included), beside 10000 endpoints", &mut attach);
    tell("detach (connect included), beside 10000 endpoints", &mut detach);
    assert_eq!(host.status().unwrap().repairs, 0);
    host.kill();
    host.start();
    let memory = format!("resident after a restart with them: {} KiB\n", resident_kib(host.pid()));
    std::io::stderr().write_all(memory.as_bytes()).expect("stderr is open");
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    let mut lab = Lab::start(1);
    let mut large: Vec<_> = (0..4).map(|third| network(&format!("n{third}"), third, &[])).collect();
    for (third, network) in (0..4_u8).zip(&mut large) {
        let tasks: Vec<String> = (2..=251).map(|last| format!("t{third}-{last}")).collect();
        let endpoints: Vec<(&str, usize, u8)> = tasks.iter().zip(2..).map(|(task, last)| (task.as_str(), 1, last)).collect();
        network.endpoints = crate::support::network("", third, &endpoints).endpoints;
    }
    let mut view = lab.view(0, 1, &large);
    view.nodes.push(rcluster_api::wire::v1::NodeView { id: crate::support::node_id(1), addr: "10.90.0.102".into(), ..Default::default() });

    let time = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    let host = &mut lab.hosts[0];
    tell("first picture, 4 networks, 1000 endpoints", &mut [time(&mut || drop(host.apply(view.clone()).unwrap()))]);
    let mut same = Vec::new();
    let mut changed = Vec::new();
    for revision in 2..22 {
        view.revision = revision;
        same.push(time(&mut || drop(host.apply(view.clone()).unwrap())));
        view.networks[0].endpoints.pop();
        view.revision = revision;
        changed.push(time(&mut || drop(host.apply(view.clone()).unwrap())));
    }
    tell("picture that changes nothing", &mut same);
    tell("picture with one endpoint less", &mut changed);
    let mut calls: Vec<Duration> = (0..50).map(|_| time(&mut || drop(host.status().unwrap()))).collect();
    tell("a call that does nothing (connect included)", &mut calls);
    let mut attach = Vec::new();
    for pod in 0..50_u8 {
        attach.push(time(&mut || drop(host.attach(&format!("pod{pod}"), &[("n0", &format!("10.128.0.{}", 200 + pod))]).unwrap())));
    }
    tell("attach (connect included), beside 1000 endpoints", &mut attach);
    assert_eq!(addresses(&ask_tcp(host, "pod0", "web.", RecordType::A)).len(), view.networks[0].endpoints.len());
    let cost = format!("a question to the resolver: {:.2} us of netd's CPU time\n", cost_of_a_question(host, "n0.internal."));
    std::io::stderr().write_all(cost.as_bytes()).expect("stderr is open");
    let memory = format!("resident with 1000 endpoints and 50 pods: {} KiB\n", resident_kib(host.pid()));
    std::io::stderr().write_all(memory.as_bytes()).expect("stderr is open");
    host.kill();
    let mut restart = [time(&mut || host.start())];
    tell("restart until the socket answers, 50 pods", &mut restart);
    assert_eq!(host.status().unwrap().repairs, 0);
    let memory = format!("resident after the restart: {} KiB\n", resident_kib(host.pid()));
    std::io::stderr().write_all(memory.as_bytes()).expect("stderr is open");
    let mut detach = Vec::new();
    for pod in 0..50_u8 {
        detach.push(time(&mut || host.detach(&format!("pod{pod}")).unwrap()));
    }
    tell("detach (connect included)", &mut detach);
}

/// Microseconds of netd's CPU time for one of 100,000 questions, 32 at a time, from 50 pods in turns: each stays within its budget.
fn cost_of_a_question(host: &Host, zone: &str) -> f64 {
    const AT_ONCE: usize = 32;
    const ROUNDS: usize = 3125;
    let sockets: Vec<UdpSocket> = (0..50).map(|pod| host.udp(&format!("pod{pod}"), "0.0.0.0:0")).collect();
    let request = question(&format!("2.web.{zone}"), RecordType::A, None);
    let mut buffer = [0; 512];
    let before = cpu_ms(host.pid());
    for round in 0..ROUNDS {
        let socket = &sockets[round % sockets.len()];
        for _ in 0..AT_ONCE {
            socket.send_to(&request, RESOLVER).unwrap();
        }
        for _ in 0..AT_ONCE {
            socket.recv(&mut buffer).unwrap();
        }
    }
    let questions = u32::try_from(AT_ONCE * ROUNDS).unwrap();
    f64::from(u32::try_from(cpu_ms(host.pid()) - before).unwrap()) * 1000.0 / f64::from(questions)
}

/// What a process and its threads have used, in ticks of 10 ms.
fn cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}
