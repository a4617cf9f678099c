//! How long a cluster takes no writes when its leader is killed, loses power, or hands over: three real managers, and clients that write
//! all the time, one through each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rcluster_api::client;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use tokio::task::JoinHandle;

use crate::lab::wait_for;
use crate::managers::{Clocks, DEADLINE, Managers};
use crate::progress;

const MANAGERS: usize = 3;
/// A client that has no answer by then asks again.
const PATIENCE: Duration = Duration::from_millis(250);
/// Pause of a client whose manager does not answer at all.
const PAUSE: Duration = Duration::from_millis(5);
/// Writes accepted on either side of what is measured, so that it falls into a steady stream.
const STEADY: usize = 50;

/// How often each is measured.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub kills: usize,
    pub power_cuts: usize,
    pub transfers: usize,
}

/// Measures and prints a table.
pub fn run(counts: Counts) -> Result<()> {
    let mut cluster = Managers::found(MANAGERS, Clocks::Shared)?;
    let writers = Writers::start(&cluster);
    let kill = |cluster: &mut Managers, leader: usize| cluster.kill(leader);
    let cut = |cluster: &mut Managers, leader: usize| {
        // Nobody is told that its connections are gone.
        cluster.wire().isolate(leader)?;
        cluster.kill(leader)
    };
    let hand_over = |cluster: &mut Managers, leader: usize| cluster.terminate(leader);
    let killed = measure(&mut cluster, &writers, counts.kills, "kill", &kill, first_after)?;
    let cut_off = measure(&mut cluster, &writers, counts.power_cuts, "power cut", &cut, first_after)?;
    let handed = measure(&mut cluster, &writers, counts.transfers, "transfer", &hand_over, longest_gap)?;
    writers.end(&cluster);
    print(&[
        ("leader killed to write accepted", "p50 600 ms, p99 1000 ms", killed),
        ("leader's host loses power to write accepted", "", cut_off),
        ("leader hands over and ends: longest time without an accepted write", "50 ms", handed),
    ]);
    Ok(())
}

/// Has it happen so many times, each time to a cluster that is whole; milliseconds.
fn measure(
    cluster: &mut Managers,
    writers: &Writers,
    count: usize,
    what: &str,
    deed: &dyn Fn(&mut Managers, usize) -> Result<()>,
    figure: fn(&[Instant], Instant) -> Option<Duration>,
) -> Result<Vec<f64>> {
    let mut figures = Vec::new();
    for round in 0..count {
        let leader = cluster.leader()?;
        writers.wait_for(STEADY, Instant::now())?;
        let began = Instant::now();
        deed(cluster, leader)?;
        // Those of the others alone: what the old leader had on its way may still arrive.
        writers.wait_for(STEADY, began + Duration::from_millis(1))?;
        let accepted = writers.accepted();
        let took = figure(&accepted, began).context("writes were accepted")?.as_secs_f64() * 1000.0;
        progress(&format!("{what} {} of {count}: {took:.0} ms", round + 1));
        figures.push(took);
        cluster.wire().heal()?;
        cluster.start(leader)?;
        cluster.wait_whole()?;
        writers.forget();
    }
    Ok(figures)
}

/// From the deed to the first write that was accepted after a pause: what the old leader had answered before is on its way for a moment.
fn first_after(accepted: &[Instant], began: Instant) -> Option<Duration> {
    longest(accepted, began).map(|(_, until)| until - began)
}

fn longest_gap(accepted: &[Instant], began: Instant) -> Option<Duration> {
    longest(accepted, began).map(|(from, until)| until - from)
}

/// The longest time without an accepted write that ended after the deed.
fn longest(accepted: &[Instant], began: Instant) -> Option<(Instant, Instant)> {
    let gaps = accepted.windows(2).map(|pair| (pair[0], pair[1])).filter(|(_, until)| *until > began);
    gaps.max_by_key(|(from, until)| *until - *from)
}

/// Clients that write, one through each manager.
struct Writers {
    accepted: Arc<Mutex<Vec<Instant>>>,
    ended: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(cluster: &Managers) -> Self {
        let (accepted, ended) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::new(AtomicBool::new(false)));
        let addrs = cluster.addrs();
        let writer = |addr: String| cluster.handle().spawn(write(addr, cluster.admin().clone(), accepted.clone(), ended.clone()));
        let tasks = addrs.into_iter().map(writer).collect();
        Self { accepted, ended, tasks }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.accepted.lock().expect("who pushes does not panic")
    }

    fn accepted(&self) -> Vec<Instant> {
        self.lock().clone()
    }

    fn forget(&self) {
        self.lock().clear();
    }

    fn wait_for(&self, count: usize, since: Instant) -> Result<()> {
        wait_for("writes are accepted", DEADLINE, || {
            let after = self.lock().iter().rev().take_while(|at| **at > since).count();
            Ok((after >= count).then_some(()))
        })
    }

    fn end(self, cluster: &Managers) {
        self.ended.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // A writer that has panicked has accepted nothing more; the figures stand.
            drop(cluster.handle().block_on(task));
        }
    }
}

async fn write(addr: String, admin: Security, accepted: Arc<Mutex<Vec<Instant>>>, ended: Arc<AtomicBool>) {
    let mut control = None;
    let mut number = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        let connected = match control.take() {
            Some(control) => Some(control),
            None => client::control(std::slice::from_ref(&addr), &admin).await.ok(),
        };
        let Some(mut connected) = connected else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        number += 1;
        let data = v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: format!("at-{}", addr.replace([':', '.'], "-")),
            payload: Some(v1::Payload { bytes: format!("{number:0256}").into_bytes() }),
            ..v1::DataSpec::default()
        };
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }];
        match tokio::time::timeout(PATIENCE, connected.apply(v1::ApplyRequest { specs })).await {
            Ok(Ok(_)) => accepted.lock().expect("who pushes does not panic").push(Instant::now()),
            Ok(Err(_)) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(_) => {}
        }
        control = Some(connected);
    }
}

#[allow(clippy::print_stdout, reason = "the table is the product")]
fn print(rows: &[(&str, &str, Vec<f64>)]) {
    println!("| ms, three managers, three clients that write | times | p50 | p99 | max | goal |\n|---|---|---|---|---|---|");
    for (name, goal, figures) in rows {
        let mut figures = figures.clone();
        figures.sort_by(f64::total_cmp);
        let Some(max) = figures.last() else { continue };
        let at = |percent: usize| figures[(figures.len() * percent / 100).min(figures.len() - 1)];
        println!("| {name} | {} | {:.0} | {:.0} | {max:.0} | {goal} |", figures.len(), at(50), at(99));
    }
}
