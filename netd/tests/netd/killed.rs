//! netd killed at any instant of its work, under streams and datagrams that must not notice.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use rcluster_api::wire::v1;

use crate::balance::{CLIENT, Place, VIP, balanced, front, service};
use crate::support::traffic::{Pod, Traffic, sent_again};
use crate::support::{Lab, chance, network, rounds};

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
    v1::NetView { services: vec![service(v1::Affinity::Unspecified)], ..lab.view(0, 10 + round, &networks) }
}

#[test]
fn killed_at_any_instant_of_its_work_it_converges_and_nothing_under_way_notices() {
    let mut lab = balanced(2, &[SERVER], v1::Affinity::Unspecified);
    let pods: [Pod<'static>; 2] = [(CLIENT.1, CLIENT.0), (SERVER.1, SERVER.0)];
    let [client, server] = pods;
    let open = |port: u16, to: &str| Traffic::stream(&lab, client, server, &format!("10.128.0.12:{port}"), &format!("{to}:{port}"));
    let streams = [open(80, "10.128.0.12"), open(81, &VIP.to_string())];
    let datagrams = Traffic::datagrams(&lab, client, server, "10.128.0.12:82", &format!("{VIP}:82"));
    let again = sent_again(&lab, &pods);
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
        assert_eq!(vxlans, view.networks.len(), "{what}");
        let repairs = lab.hosts[0].status().unwrap().repairs;
        lab.hosts[0].apply(view).unwrap();
        assert_eq!(lab.hosts[0].status().unwrap().repairs, repairs, "{what}");
    }
    for traffic in streams.iter().chain([&datagrams]) {
        traffic.goes_on();
    }
    let longest = streams.into_iter().map(|stream| stream.close().unwrap()).max().unwrap_or_default();
    let again = sent_again(&lab, &pods) - again;
    assert!(longest < Duration::from_secs(1) || again == 0, "RCLUSTER_SEED={seed}: a packet was lost: {longest:?}, {again} sent again");
    datagrams.close().unwrap_or_else(|error| panic!("RCLUSTER_SEED={seed}: a datagram was lost: {error}"));
}
