//! netd killed at any instant of its work, under streams and datagrams that must not notice.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use rcluster_api::wire::v1;

use crate::balance::{CLIENT, Place, VIP, balanced, front, service};
use crate::support::traffic::{Pod, Traffic, echo, sent_again, sent_again_here};
use crate::support::{DEADLINE, Lab, chance, network, numbered, published, rounds};

/// Times that it is killed.
const ROUNDS: u64 = 100;

/// About as long as one picture takes it.
const WORK_US: u64 = 20_000;

/// To it goes all that is under way.
const SERVER: Place = ("t2", 1, 12);

/// The same with a network of many endpoints more, or with more endpoints of the service.
fn picture(lab: &Lab, round: u64, many: &[String]) -> v1::NetView {
    let others: Vec<Place> = [("t3", 1, 13), ("t4", 1, 14), ("t5", 1, 15)].into_iter().filter(|_| round % 2 == 1).collect();
    let mut networks = vec![front(&[others.as_slice(), &[SERVER]].concat())];
    if round.is_multiple_of(2) {
        let endpoints: Vec<(&str, usize, u8)> = many.iter().zip(10..).map(|(task, last)| (task.as_str(), 1, last)).collect();
        networks.push(network("back", 1, &endpoints));
    }
    // A policy that allows all and yet has to be put into force.
    if round % 3 == 1 {
        let all = v1::AllowView { from_all: true, to_all: true, ..Default::default() };
        let anybody = v1::AllowView { from_cidrs: vec!["0.0.0.0/0".into()], to_all: true, ..Default::default() };
        networks[0].policy = Some(v1::NetworkPolicyView { allow: vec![all, anybody] });
    }
    let more = published(9090, 90, &others[..others.len().min(2)]);
    let ports = [published(8080, 83, &[SERVER])].into_iter().chain((round % 2 == 1).then_some(more));
    let view = v1::NetView { services: vec![service(v1::Affinity::Unspecified)], ..lab.view(0, 10 + round, &networks) };
    numbered(v1::NetView { published: ports.collect(), ..view })
}

#[test]
fn killed_at_any_instant_of_its_work_it_converges_and_nothing_under_way_notices() {
    let mut lab = balanced(2, &[SERVER], v1::Affinity::Unspecified);
    let pods: [Pod<'static>; 2] = [(CLIENT.1, CLIENT.0), (SERVER.1, SERVER.0)];
    let [client, server] = pods;
    let open = |port: u16, to: &str| Traffic::stream(&lab, client, server, &format!("10.128.0.12:{port}"), &format!("{to}:{port}"));
    let streams = [open(80, "10.128.0.12"), open(81, &VIP.to_string())];
    let datagrams = Traffic::datagrams(&lab, client, server, "10.128.0.12:82", &format!("{VIP}:82"));
    // One from outside by the node whose netd is killed, which leads it to the other node; its netd has the ports, too.
    let outside = lab.outside();
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = v1::NetView { services: vec![service(v1::Affinity::Unspecified)], ..lab.view(index, 2, &[front(&[SERVER])]) };
        let view = numbered(v1::NetView { published: vec![published(8080, 83, &[SERVER])], ..view });
        assert_eq!(host.apply(view).unwrap().problems, Vec::<String>::new());
    }
    echo(&lab, server, "10.128.0.12:83");
    let entry = SocketAddr::from((lab.hosts[0].addr, 8080));
    let stream = outside.here(move || TcpStream::connect_timeout(&entry, DEADLINE)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let by_port = Traffic::over(stream);
    let (again, again_outside) = (sent_again(&lab, &pods), outside.here(sent_again_here));
    let many: Vec<String> = (10..200).map(|last| format!("x{last}")).collect();
    let (seed, mut rng) = chance();
    for round in 0..rounds(ROUNDS) {
        let what = format!("round {round} of RCLUSTER_SEED={seed}");
        let view = picture(&lab, round, &many);
        let pid = Pid::from_raw(lab.hosts[0].pid().cast_signed());
        let after = Duration::from_micros(rng.random_range(0..WORK_US));
        let killer = thread::spawn(move || {
            // Which step it hits is left to chance.
            thread::sleep(after);
            kill(pid, Signal::SIGKILL).unwrap();
        });
        // Answered or cut off: both are right.
        let _outcome = lab.hosts[0].apply(view.clone());
        killer.join().unwrap();
        lab.hosts[0].kill();
        lab.hosts[0].start();
        let answer = lab.hosts[0].apply(view.clone()).unwrap();
        assert_eq!((answer.revision, answer.problems), (view.revision, vec![]), "{what}");
        let vxlans = lab.hosts[0].devices().iter().filter(|(name, _)| name.starts_with('v')).count();
        assert_eq!(vxlans, view.networks.len(), "{what}, and `ing` besides");
        let repairs = lab.hosts[0].status().unwrap().repairs;
        lab.hosts[0].apply(view).unwrap();
        assert_eq!(lab.hosts[0].status().unwrap().repairs, repairs, "{what}");
    }
    for traffic in streams.iter().chain([&datagrams, &by_port]) {
        traffic.goes_on();
    }
    let longest = streams.into_iter().chain([by_port]).map(|stream| stream.close().unwrap()).max().unwrap_or_default();
    let again = sent_again(&lab, &pods) - again + outside.here(sent_again_here) - again_outside;
    assert!(longest < Duration::from_secs(1) || again == 0, "RCLUSTER_SEED={seed}: a packet was lost: {longest:?}, {again} sent again");
    datagrams.close().unwrap_or_else(|error| panic!("RCLUSTER_SEED={seed}: a datagram was lost: {error}"));
}
