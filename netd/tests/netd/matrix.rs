//! Who reaches whom while pods come, go and move: all of a network each other, and nobody anyone of another.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rcluster_api::wire::v1;

use crate::support::traffic::sent_again_here;
use crate::support::{DEADLINE, Lab, chance, network, rounds};

const NETWORKS: [&str; 3] = ["front", "back", "side"];

const HOSTS: usize = 4;

/// Pods in all. Every other one stays where it is.
const PODS: u8 = 24;

/// Moves of pods. An octet of addresses has room for no more.
const MOVES: u64 = 200;

/// How often all pods that stay try each other meanwhile.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// A refusal that comes as fast as a packet travels.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A pod with a listener on port 80.
struct Pod {
    task: String,
    network: usize,
    host: usize,
    last: u8,
    listener: Option<TcpListener>,
}

impl Pod {
    fn new(number: u64, network: usize, host: usize, last: u8) -> Self {
        Self { task: format!("p{number}"), network, host, last, listener: None }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([10, 128, u8::try_from(self.network).unwrap(), self.last], 80))
    }

    fn start(&mut self, lab: &Lab) {
        let ip = self.address().ip().to_string();
        lab.hosts[self.host].attach(&self.task, &[(NETWORKS[self.network], ip.as_str())]).unwrap();
        let listener = lab.hosts[self.host].listen(&self.task, &self.address().to_string());
        listener.set_nonblocking(true).unwrap();
        self.listener = Some(listener);
    }

    /// Who has come is let go: a listener has room for so many.
    fn empty(&self) {
        while self.listener.as_ref().is_some_and(|listener| listener.accept().is_ok()) {}
    }
}

/// The picture with these pods.
fn picture<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<v1::NetworkView> {
    let pods: Vec<&'a Pod> = pods.collect();
    let of = |number: usize| -> Vec<(&'a str, usize, u8)> {
        pods.iter().filter(|pod| pod.network == number).map(|pod| (pod.task.as_str(), pod.host, pod.last)).collect()
    };
    (0..).zip(NETWORKS).map(|(third, name)| network(name, third, &of(usize::from(third)))).collect()
}

/// What one who connects finds: that it is let in, or who refuses; how long that took, and how many segments it has sent twice meanwhile.
type Found = (Result<(), ErrorKind>, Duration, u64);

fn connect(to: SocketAddr) -> Found {
    let (begun, again) = (Instant::now(), sent_again_here());
    let outcome = TcpStream::connect_timeout(&to, DEADLINE).map(drop).map_err(|error| error.kind());
    (outcome, begun.elapsed(), sent_again_here() - again)
}

/// One pod tries others.
fn probe(lab: &Lab, from: &Pod, to: &[&Pod], what: &str) {
    let addresses: Vec<SocketAddr> = to.iter().map(|pod| pod.address()).collect();
    let found = lab.hosts[from.host].inside(&from.task, move || addresses.into_iter().map(connect).collect::<Vec<Found>>());
    for (pod, (outcome, took, again)) in to.iter().zip(found) {
        pod.empty();
        let expected = if from.network == pod.network { Ok(()) } else { Err(ErrorKind::HostUnreachable) };
        let who = format!("{what}: {} on host {} to {} on host {}", from.task, from.host, pod.task, pod.host);
        assert_eq!(outcome, expected, "{who}");
        // What took long because this machine was busy was asked for once.
        assert!(took < AT_ONCE || again == 0, "{who}: {took:?}, {again} sent again");
    }
}

/// Everyone of them tries everyone else.
fn all_try_each_other(lab: &Lab, pods: &[&Pod], what: &str) {
    for (place, from) in pods.iter().enumerate() {
        let others: Vec<&Pod> = [&pods[..place], &pods[place + 1..]].concat();
        probe(lab, from, &others, what);
    }
}

#[test]
fn while_pods_move_those_of_a_network_reach_each_other_and_no_others() {
    let lab = Lab::start(u8::try_from(HOSTS).unwrap());
    let (seed, mut rng) = chance();
    let first = |number: u8| Pod::new(u64::from(number), usize::from(number) % 3, usize::from(number / 2) % HOSTS, 2 + number);
    let (mut steady, mut moving): (Vec<Pod>, Vec<Pod>) = (0..PODS).map(first).partition(|pod| pod.last % 2 == 0);
    lab.apply(1, &picture(steady.iter().chain(&moving)));
    steady.iter_mut().chain(&mut moving).for_each(|pod| pod.start(&lab));
    thread::scope(|scope| {
        // Dropped when the moves are over, or have failed.
        let (over, is_over) = mpsc::channel::<()>();
        let (lab, steady) = (&lab, &steady);
        let others = scope.spawn(move || {
            let pods: Vec<&Pod> = steady.iter().collect();
            let mut times = 0;
            while is_over.recv_timeout(PROBE_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                all_try_each_other(lab, &pods, &format!("RCLUSTER_SEED={seed}, while others move"));
                times += 1;
            }
            times
        });
        let begun = Instant::now();
        for (step, last) in (0..rounds(MOVES).min(MOVES)).zip(2 + PODS..) {
            let what = format!("RCLUSTER_SEED={seed}, move {step}");
            // One goes, and another comes in its place elsewhere, at an address that is new.
            let gone = moving.swap_remove(rng.random_range(0..moving.len()));
            let host = (gone.host + rng.random_range(1..HOSTS)) % HOSTS;
            let mut come = Pod::new(u64::from(PODS) + step, gone.network, host, last);
            lab.apply(2 + step, &picture(steady.iter().chain(&moving).chain([&come])));
            come.start(lab);
            lab.hosts[gone.host].detach(&gone.task).unwrap();
            let pods: Vec<&Pod> = steady.iter().chain(&moving).collect();
            probe(lab, &come, &pods, &what);
            for _ in 0..3 {
                probe(lab, pods[rng.random_range(0..pods.len())], &[&come], &what);
            }
            moving.push(come);
        }
        drop(over);
        let times = others.join().expect("those that stayed reached each other");
        assert!(times > 0 || begun.elapsed() < 2 * PROBE_EVERY, "they never tried");
    });
    let pods: Vec<&Pod> = steady.iter().chain(&moving).collect();
    all_try_each_other(&lab, &pods, &format!("RCLUSTER_SEED={seed}, at the end"));
}
