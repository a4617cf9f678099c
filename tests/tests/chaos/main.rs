//! Clusters of real managers under faults, with clients that write and read all the time: what the clients saw must be linearizable.
//!
//! A run meets every kind of fault once, in an order by chance. `RCLUSTER_CHAOS_MINUTES` makes it go on for so long (`make chaos`),
//! `RCLUSTER_CHAOS_SEED` repeats an order; what the machine does with time no seed repeats.

mod clients;
mod faults;
mod stale;

use std::time::{Duration, Instant};

use rcluster_history::{search, witness};
use rcluster_tests::managers::{Clocks, Managers, check_alive};

use clients::Clients;
use faults::Fault;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

#[allow(clippy::print_stdout, reason = "how far it has come, and the seed, for who looks on or looks for why it failed")]
fn tell(text: &str) {
    println!("{text}");
}

fn survives(managers: usize, clients: usize, faults: &[Fault]) {
    let seed = number("RCLUSTER_CHAOS_SEED").unwrap_or_else(rand::random);
    let length = number("RCLUSTER_CHAOS_MINUTES").map_or(Duration::ZERO, |minutes| Duration::from_secs(60 * minutes) / 2);
    tell(&format!("{managers} managers, {clients} clients, RCLUSTER_CHAOS_SEED={seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Managers::found(managers, Clocks::Own).unwrap();
    let clients = Clients::start(&cluster, clients, &mut rng);
    let started = Instant::now();
    loop {
        let mut order = faults.to_vec();
        order.shuffle(&mut rng);
        for fault in order {
            let begun = Instant::now();
            clients.next_round();
            clients.wait_for_answers(40);
            faults::befall(fault, &mut cluster, &clients, &mut rng);
            cluster.wait_whole().unwrap();
            check_alive(&mut cluster).unwrap();
            tell(&format!(
                "{:6.1} s  {fault:?}: {:.1} s, {}",
                started.elapsed().as_secs_f64(),
                begun.elapsed().as_secs_f64(),
                clients.summary()
            ));
        }
        if started.elapsed() >= length {
            break;
        }
    }
    let history = clients.end(&cluster);
    let checking = Instant::now();
    for verdict in [witness::check(&history), search::check(&history)] {
        if let Err(broken) = verdict {
            panic!("not linearizable (RCLUSTER_CHAOS_SEED={seed}): {broken}\n{}", cluster.last_words());
        }
    }
    tell(&format!("{} operations are linearizable; found in {:.1} s", history.len(), checking.elapsed().as_secs_f64()));
}

#[test]
fn three_managers_stay_linearizable() {
    survives(3, 12, &Fault::ALL);
}

#[test]
fn five_managers_stay_linearizable() {
    survives(5, 16, &Fault::FEW);
}
