//! What befalls the managers, one thing at a time, each until it has had its effect.

use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use rcluster_tests::managers::Managers;
use tokio::task::JoinHandle;

use crate::clients::Clients;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillLeader,
    KillAnyOther,
    KillMajority,
    KillAll,
    /// It stands still until others have elected another, then goes on as if nothing had been.
    StopLeader,
    /// Clients reach it, managers do not.
    IsolateLeader,
    /// Nothing that it sends arrives at the others.
    MuteLeader,
    /// Nothing that the others send arrives at it.
    DeafenLeader,
    /// It and one other.
    CutLeaderFromOne,
    /// Nothing that one other sends arrives anywhere.
    MuteOther,
    /// Two hours ahead, then three back, then right again.
    ClockOfLeader,
    ClocksOfAll,
    HandOver,
}

impl Fault {
    pub const ALL: [Self; 13] = [
        Self::KillLeader,
        Self::KillAnyOther,
        Self::KillMajority,
        Self::KillAll,
        Self::StopLeader,
        Self::IsolateLeader,
        Self::MuteLeader,
        Self::DeafenLeader,
        Self::CutLeaderFromOne,
        Self::MuteOther,
        Self::ClockOfLeader,
        Self::ClocksOfAll,
        Self::HandOver,
    ];
    pub const FEW: [Self; 5] = [Self::KillLeader, Self::StopLeader, Self::IsolateLeader, Self::ClocksOfAll, Self::HandOver];
}

/// Has it happen under the clients' calls, and mends it.
pub fn befall(fault: Fault, cluster: &mut Managers, clients: &Clients, rng: &mut StdRng) {
    let (leader, count) = (cluster.leader().unwrap(), cluster.count());
    let other = (leader + rng.random_range(1..count)) % count;
    match fault {
        Fault::KillLeader => {
            cluster.kill(leader).unwrap();
            cluster.leader_besides(&[leader]).unwrap();
            clients.wait_for_answers(40);
            cluster.start(leader).unwrap();
        }
        Fault::KillAnyOther => {
            cluster.kill(other).unwrap();
            clients.wait_for_answers(40);
            cluster.start(other).unwrap();
        }
        Fault::KillMajority => kill(cluster, &(0..=count / 2).map(|at| (leader + at) % count).collect::<Vec<_>>(), clients),
        Fault::KillAll => kill(cluster, &(0..count).collect::<Vec<_>>(), clients),
        Fault::StopLeader => {
            let visitors = clients.visitors(cluster, leader);
            cluster.signal(leader, Signal::SIGSTOP).unwrap();
            cluster.leader_besides(&[leader]).unwrap();
            clients.wait_for_answers(40);
            // What they ask now lies at its door when it wakes up and believes to lead still.
            let visits = visitors.ask(cluster);
            cluster.signal(leader, Signal::SIGCONT).unwrap();
            wait(cluster, visits);
        }
        Fault::IsolateLeader => {
            let visitors = clients.visitors(cluster, leader);
            cluster.wire().isolate(leader).unwrap();
            let visits = visitors.ask(cluster);
            replaced(leader, cluster, clients);
            wait(cluster, visits);
        }
        Fault::MuteLeader => {
            (0..count).filter(|to| *to != leader).for_each(|to| cluster.wire().cut(leader, to).unwrap());
            replaced(leader, cluster, clients);
        }
        Fault::DeafenLeader => {
            (0..count).filter(|from| *from != leader).for_each(|from| cluster.wire().cut(from, leader).unwrap());
            replaced(leader, cluster, clients);
        }
        Fault::CutLeaderFromOne => {
            cluster.wire().cut(leader, other).unwrap();
            cluster.wire().cut(other, leader).unwrap();
            clients.wait_for_answers(100);
            cluster.wire().heal().unwrap();
        }
        Fault::MuteOther => {
            (0..count).filter(|to| *to != other).for_each(|to| cluster.wire().cut(other, to).unwrap());
            clients.wait_for_answers(100);
            cluster.wire().heal().unwrap();
        }
        Fault::ClockOfLeader => jump(cluster, &[leader], clients),
        Fault::ClocksOfAll => jump(cluster, &(0..count).collect::<Vec<_>>(), clients),
        Fault::HandOver => {
            cluster.terminate(leader).unwrap();
            cluster.start(leader).unwrap();
            clients.wait_for_answers(40);
        }
    }
}

/// The others elect another leader and serve clients, then the wire is whole again.
fn replaced(leader: usize, cluster: &mut Managers, clients: &Clients) {
    cluster.leader_besides(&[leader]).unwrap();
    clients.wait_for_answers(80);
    cluster.wire().heal().unwrap();
}

fn wait(cluster: &Managers, visits: Vec<JoinHandle<()>>) {
    visits.into_iter().for_each(|visit| cluster.handle().block_on(visit).unwrap());
}

/// They are gone until clients have felt it.
fn kill(cluster: &mut Managers, hosts: &[usize], clients: &Clients) {
    hosts.iter().for_each(|host| cluster.kill(*host).unwrap());
    clients.wait_for_failures();
    hosts.iter().for_each(|host| cluster.start(*host).unwrap());
}

/// Each clock is set to something else.
fn jump(cluster: &mut Managers, hosts: &[usize], clients: &Clients) {
    for hours in [2, -1, 0] {
        for (at, host) in hosts.iter().enumerate() {
            let seconds = hours * 3600 * if at % 2 == 0 { 1 } else { -1 };
            cluster.set_clock(*host, seconds).unwrap();
        }
        clients.wait_for_answers(40);
    }
}
