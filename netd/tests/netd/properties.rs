//! What holds whatever happens to pictures: lost, late or repeated, none at all, or an address that moves while its old holder stays on. What
//! fails by chance names its seed, which is taken again from RCLUSTER_SEED.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rcluster_api::wire::v1;

use crate::balance::{CLIENT, Place, VIP, balanced};
use crate::lifecycle::held;
use crate::support::dns::resolve;
use crate::support::seen::{differences, seen};
use crate::support::{Host, Lab, chance, eventually, network};

/// How long nobody speaks to netd.
const SILENCE: Duration = Duration::from_secs(5);

#[test]
fn pictures_that_are_lost_repeated_or_late_leave_the_highest_in_force() {
    const LAST: u64 = 50;
    let lab = Lab::start(3);
    let (seed, mut rng) = chance();
    let names: Vec<String> = (2..12).map(|last| format!("t{last}")).collect();
    let picture = |rng: &mut StdRng| -> Vec<v1::NetworkView> {
        let mut endpoints: Vec<(&str, usize, u8)> = Vec::new();
        for (last, name) in (2..).zip(&names) {
            if rng.random() {
                endpoints.push((name, rng.random_range(0..3), last));
            }
        }
        let (front, back) = endpoints.split_at(endpoints.len() / 2);
        vec![network("front", 0, front), network("back", 1, back)]
    };
    let pictures: Vec<Vec<v1::NetworkView>> = (0..=LAST).map(|_| picture(&mut rng)).collect();
    for (index, host) in lab.hosts.iter().enumerate() {
        let mut order: Vec<u64> = (1..LAST).filter(|_| rng.random_ratio(4, 5)).collect();
        order.extend((1..=LAST).filter(|_| rng.random_ratio(1, 4)));
        order.push(LAST);
        order.shuffle(&mut rng);
        let mut highest = 0;
        for revision in order {
            let picture = &pictures[usize::try_from(revision).unwrap()];
            highest = highest.max(revision);
            let answer = host.apply(lab.view(index, revision, picture)).unwrap();
            assert_eq!((answer.revision, answer.problems), (highest, vec![]), "RCLUSTER_SEED={seed}, host {index}, after {revision}");
        }
        // As if it had never heard of any other.
        let (after, repairs) = (held(host), host.status().unwrap().repairs);
        host.apply(lab.view(index, LAST, &pictures[usize::try_from(LAST).unwrap()])).unwrap();
        assert_eq!((held(host), host.status().unwrap().repairs), (after, repairs), "RCLUSTER_SEED={seed}, host {index}");
    }
}

/// Connects from the client, and waits until that is known here.
fn reaches(from: &Host, client: &str, listener: &TcpListener) {
    let _stream = from.connect(client, "10.128.0.2:80").unwrap();
    eventually("who holds the address now is reached", || listener.accept().is_ok());
}

#[test]
fn an_address_that_moved_is_reached_where_it_is_while_its_old_holder_stays_on() {
    let lab = Lab::start(3);
    let [late, new, other] = &lab.hosts[..] else { panic!("there are three") };
    let client = ("client", 2, 3);
    lab.apply(1, &[network("front", 0, &[("old", 0, 2), client])]);
    late.attach("old", &[("front", "10.128.0.2")]).unwrap();
    other.attach("client", &[("front", "10.128.0.3")]).unwrap();
    let listens = |host: &Host, task: &str| {
        let listener = host.listen(task, "10.128.0.2:80");
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let before = listens(late, "old");
    reaches(other, "client", &before);
    // The managers have given the address away, as after a node that was lost and removed; its agent has not taken the pod down.
    for (index, host) in lab.hosts.iter().enumerate() {
        let moved = lab.view(index, 2, &[network("front", 0, &[("new", 1, 2), client])]);
        assert_eq!(host.apply(moved).unwrap().revision, 2);
    }
    new.attach("new", &[("front", "10.128.0.2")]).unwrap();
    let now = listens(new, "new");
    for _ in 0..20 {
        reaches(other, "client", &now);
    }
    late.detach("old").unwrap();
    for _ in 0..20 {
        reaches(other, "client", &now);
    }
    assert!(before.accept().is_err(), "nobody came to the old one");
    // And from where the old one was.
    let endpoints = [("new", 1, 2), client, ("more", 0, 4)];
    lab.apply(3, &[network("front", 0, &endpoints)]);
    late.attach("more", &[("front", "10.128.0.4")]).unwrap();
    reaches(late, "more", &now);
}

#[test]
fn while_nobody_speaks_to_it_netd_keeps_all_it_has() {
    let web: [Place; 2] = [("t1", 0, 11), ("t2", 1, 12)];
    let mut lab = balanced(2, &web, v1::Affinity::Unspecified);
    let listener = lab.hosts[1].listen("t2", "10.128.0.12:80");
    let pods = [CLIENT.0, "t1"];
    let before = seen(&lab.hosts[0], &pods);
    for _ in 0..2 {
        let begun = Instant::now();
        while begun.elapsed() < SILENCE / 2 {
            assert_eq!(differences(&before, &seen(&lab.hosts[0], &pods)), Vec::<String>::new(), "after {:?}", begun.elapsed());
            assert_eq!(resolve(&lab.hosts[0], CLIENT.0, "web."), [VIP]);
            assert_eq!(resolve(&lab.hosts[0], CLIENT.0, "12.web.").len(), 1);
            let _stream = lab.hosts[0].connect(CLIENT.0, "10.128.0.12:80").unwrap();
            listener.accept().unwrap();
        }
        // Nor when it is started anew, and still nobody does.
        lab.hosts[0].kill();
        lab.hosts[0].start();
    }
    let status = lab.hosts[0].status().unwrap();
    assert_eq!((status.revision, status.repairs, status.attachments.len(), status.problems.len()), (1, 0, 2, 0));
    assert_eq!(differences(&before, &seen(&lab.hosts[0], &pods)), Vec::<String>::new());
}
