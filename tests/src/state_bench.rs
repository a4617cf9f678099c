//! What a manager weighs, idle and with 30,000 tasks, and how long it takes to serve again with them: three real managers and no node, so
//! that every task waits for one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rcluster_api::client;
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_api::wire::v1;

use crate::lab::wait_for;
use crate::managers::{Clocks, DEADLINE, Managers};
use crate::progress;

const MANAGERS: usize = 3;
/// Most replicas that a service may have.
const REPLICAS: usize = 10_000;
const SERVICES: usize = 3;
/// How soon a manager that starts is asked again.
const PAUSE: Duration = Duration::from_millis(2);

/// Measures and prints a table; so many restarts.
pub fn run(restarts: usize) -> Result<()> {
    let mut cluster = Managers::found(MANAGERS, Clocks::Shared)?;
    let idle = weigh(&cluster)?;
    progress("the managers are idle");
    for service in 0..SERVICES {
        deploy(&cluster, &format!("s{service}"))?;
        let wanted = (service + 1) * REPLICAS;
        wait_for("the tasks are there", DEADLINE, || Ok((tasks(&cluster, cluster.leader()?)? >= wanted).then_some(())))?;
        progress(&format!("{wanted} tasks"));
    }
    cluster.wait_whole()?;
    let loaded = weigh(&cluster)?;
    let mut took = Vec::new();
    for round in 0..restarts {
        let leader = cluster.leader()?;
        let host = (leader + 1 + round % (MANAGERS - 1)) % MANAGERS;
        // Half of them as a power cut ends them.
        if round % 2 == 0 {
            cluster.terminate(host)?
        } else {
            cluster.kill(host)?
        }
        let began = Instant::now();
        cluster.start(host)?;
        let served = wait_for("it serves", DEADLINE, || {
            let served = one(&cluster, host).ok().map(|()| began.elapsed());
            if served.is_none() {
                std::thread::sleep(PAUSE);
            }
            Ok(served)
        })?;
        progress(&format!("restart {} of {restarts}: {} ms", round + 1, served.as_millis()));
        took.push(served.as_secs_f64() * 1000.0);
        cluster.wait_whole()?;
    }
    let after = weigh(&cluster)?;
    print(&idle, &loaded, &after, &mut took);
    Ok(())
}

/// MiB of each manager.
fn weigh(cluster: &Managers) -> Result<Vec<f64>> {
    (0..MANAGERS).map(|host| Ok(f64::from(cluster.rss_kib(host)?) / 1024.0)).collect()
}

fn deploy(cluster: &Managers, name: &str) -> Result<()> {
    let spec = serde_json::json!({
        "replicas": REPLICAS,
        "containers": [{"image": "registry.example/team/web:1.2.3", "env": {"PORT": "8080", "MODE": "production"}}],
    });
    let spec = ServiceSpec { name: name.to_owned(), ..serde_json::from_value(spec).context("a service")? };
    let specs = vec![v1::Spec { kind: Some(Spec::Service(spec).into()), expected_version: 0 }];
    cluster.handle().block_on(async {
        let mut control = client::control(&cluster.addrs(), cluster.admin()).await?;
        control.apply(v1::ApplyRequest { specs }).await?;
        Ok(())
    })
}

/// How many tasks there are.
fn tasks(cluster: &Managers, host: usize) -> Result<usize> {
    list(cluster, host, v1::ListRequest { kind: v1::Kind::Task.into(), ..v1::ListRequest::default() })
}

/// Asks a manager for a service: a linearizable read.
fn one(cluster: &Managers, host: usize) -> Result<()> {
    let asked = v1::ListRequest { kind: v1::Kind::Service.into(), name: "s0".to_owned(), ..v1::ListRequest::default() };
    list(cluster, host, asked).map(drop)
}

fn list(cluster: &Managers, host: usize, asked: v1::ListRequest) -> Result<usize> {
    cluster.handle().block_on(async {
        let mut control = client::control(&cluster.addrs()[host..=host], cluster.admin()).await?;
        Ok(control.list(asked).await?.into_inner().objects.len())
    })
}

#[allow(clippy::print_stdout, reason = "the table is the product")]
fn print(idle: &[f64], loaded: &[f64], after: &[f64], took: &mut [f64]) {
    let mib = |sizes: &[f64]| sizes.iter().map(|size| format!("{size:.1}")).collect::<Vec<_>>().join(", ");
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or_default();
    println!("| three managers | | goal |\n|---|---|---|");
    println!("| idle, MiB (RSS) | {} | 30 MB |", mib(idle));
    println!("| with {} tasks, MiB | {} | 150 MB |", SERVICES * REPLICAS, mib(loaded));
    println!("| the same after the restarts, MiB | {} | |", mib(after));
    println!("| restart to serving, ms: p50, max of {} | {:.0}, {:.0} | 1000 ms |", took.len(), at(50), at(100));
}
