//! Three managers and three members of etcd under the same load, in turns in one run.
//!
//! Every contender is three processes on this machine with their state on the same disk, and gets the same number of clients over the
//! same number of connections to its leader, each with one request on its way. What else the machine does meets all alike: read the
//! ratios.

mod etcd;
mod ours;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use self::etcd::Etcd;
use self::ours::Ours;
use crate::processes::{Process, processor_time};

/// Bytes of every value.
const VALUE_BYTES: usize = 256;
/// Keys that are written and read.
const KEYS: usize = 1000;
/// Connections that the clients share.
const CONNECTIONS: usize = 16;
/// Under load, but not counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Put,
    /// Linearizable.
    Get,
}

/// A connection to a contender.
trait Connection: Clone + Send + 'static {
    fn put(&mut self, key: usize, value: Vec<u8>) -> impl Future<Output = Result<()>> + Send;
    fn get(&mut self, key: usize) -> impl Future<Output = Result<()>> + Send;
}

/// Three processes.
trait Contender {
    type Connection: Connection;
    fn name(&self) -> &'static str;
    fn processes(&self) -> &[Process];
    async fn connect(&self) -> Result<Self::Connection>;
}

/// One contender, one work, one number of clients: the rate of each round, the times of all requests, and what they took of the processors.
#[derive(Debug, Default)]
struct Cell {
    per_second: Vec<f64>,
    times: Vec<Duration>,
    members: Duration,
    clients: Duration,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: usize,
    pub seconds: f64,
    pub clients: Vec<usize>,
    /// `rcluster-manager`.
    pub manager: PathBuf,
}

/// Measures and prints the table.
#[allow(clippy::print_stdout, reason = "the table is the product")]
pub async fn run(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir().context("make a directory for the members' state")?;
    let tls = Ours::start(&options.manager, &dir.path().join("tls"), true).await?;
    let plain = Ours::start(&options.manager, &dir.path().join("plain"), false).await?;
    let etcd = Etcd::start(&dir.path().join("etcd")).await?;
    if etcd.is_none() {
        println!("etcd is not installed: `make tools` installs it. Ours alone:\n");
    }
    println!("Processor time is that of each request, in µs.\n");
    println!(
        "| work, clients | contender | per second | p50 ms | p99 ms | members' processor time | clients' | of etcd's rate | of etcd's p99 | of its \
         processor time |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for work in [Work::Put, Work::Get] {
        for clients in options.clients.iter().copied() {
            let mut cells = [Cell::default(), Cell::default(), Cell::default()];
            for round in 0..options.rounds {
                // No one is always the first after another.
                for place in 0..3 {
                    match ((place + round) % 3, &etcd) {
                        (0, _) => measure(&tls, work, clients, options.seconds, &mut cells[0]).await?,
                        (1, _) => measure(&plain, work, clients, options.seconds, &mut cells[1]).await?,
                        (_, Some(etcd)) => measure(etcd, work, clients, options.seconds, &mut cells[2]).await?,
                        (_, None) => {}
                    }
                }
            }
            let [tls_cell, plain_cell, etcd_cell] = &mut cells;
            let base = etcd.as_ref().map(|_| etcd_cell.figures());
            row(work, clients, tls.name(), tls_cell, base);
            row(work, clients, plain.name(), plain_cell, base);
            if let Some(etcd) = &etcd {
                row(work, clients, etcd.name(), etcd_cell, None);
            }
        }
    }
    println!();
    for ours in [&tls, &plain] {
        ours.print_memory()?;
    }
    Ok(())
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
struct Figures {
    per_second: f64,
    p99_ms: f64,
    /// Members' processor time of a request.
    members_us: f64,
}

impl Cell {
    fn figures(&mut self) -> Figures {
        Figures { per_second: self.rate(), p99_ms: self.quantile(0.99), members_us: self.per_request_us(self.members) }
    }

    #[allow(clippy::cast_precision_loss, reason = "a mean")]
    fn per_request_us(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.times.len() as f64
    }

    /// The median of the rounds.
    fn rate(&mut self) -> f64 {
        self.per_second.sort_by(f64::total_cmp);
        self.per_second.get(self.per_second.len() / 2).copied().unwrap_or_default()
    }

    /// In milliseconds, of all rounds' requests.
    fn quantile(&mut self, quantile: f64) -> f64 {
        self.times.sort_unstable();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
        let place = (self.times.len() as f64 * quantile) as usize;
        self.times.get(place.min(self.times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }
}

#[allow(clippy::print_stdout, reason = "the table is the product")]
fn row(work: Work, clients: usize, name: &str, cell: &mut Cell, base: Option<Figures>) {
    let word = if work == Work::Put { "put" } else { "linearizable get" };
    let (p50, clients_us) = (cell.quantile(0.5), cell.per_request_us(cell.clients));
    let Figures { per_second, p99_ms, members_us } = cell.figures();
    let ratios = base.map_or(" |  | ".to_owned(), |base| {
        let [rate, p99, time] = [per_second / base.per_second, p99_ms / base.p99_ms, members_us / base.members_us];
        format!("{rate:.2} | {p99:.2} | {time:.2}")
    });
    println!("| {word}, {clients} | {name} | {per_second:.0} | {p50:.2} | {p99_ms:.2} | {members_us:.0} | {clients_us:.0} | {ratios} |");
}

/// One round of one cell.
async fn measure<C: Contender>(contender: &C, work: Work, clients: usize, seconds: f64, cell: &mut Cell) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS.min(clients) {
        connections.push(contender.connect().await?);
    }
    if work == Work::Get {
        fill(&connections[0]).await?;
    }
    let (counting, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let connection = connections[client % connections.len()].clone();
        tasks.spawn(client_loop(connection, work, (client, clients), counting.clone(), ended.clone()));
    }
    tokio::time::sleep(WARM_UP).await;
    let before = (members_time(contender)?, processor_time(std::process::id())?);
    counting.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    ended.store(true, Ordering::Relaxed);
    let took = started.elapsed();
    cell.members += members_time(contender)?.saturating_sub(before.0);
    cell.clients += processor_time(std::process::id())?.saturating_sub(before.1);
    let mut count = 0_u32;
    while let Some(times) = tasks.join_next().await {
        let times = times.context("a client")??;
        count += u32::try_from(times.len())?;
        cell.times.extend(times);
    }
    ensure!(count > 0, "{} did nothing", contender.name());
    cell.per_second.push(f64::from(count) / took.as_secs_f64());
    Ok(())
}

fn members_time(contender: &impl Contender) -> Result<Duration> {
    contender.processes().iter().map(|process| processor_time(process.id())).sum()
}

/// Writes every key once.
async fn fill<C: Connection>(connection: &C) -> Result<()> {
    let mut tasks = JoinSet::new();
    for part in 0..CONNECTIONS {
        let mut connection = connection.clone();
        tasks.spawn(async move {
            for key in (part..KEYS).step_by(CONNECTIONS) {
                connection.put(key, value()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a client")??;
    }
    Ok(())
}

fn value() -> Vec<u8> {
    rand::random_iter().take(VALUE_BYTES).collect()
}

/// One client, of so many; says how long each counted request took.
async fn client_loop<C: Connection>(
    mut connection: C,
    work: Work,
    (client, clients): (usize, usize),
    counting: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut key = client;
    while !ended.load(Ordering::Relaxed) {
        key = (key + clients) % KEYS;
        let value = value();
        let started = Instant::now();
        match work {
            Work::Put => connection.put(key, value).await?,
            Work::Get => connection.get(key).await?,
        }
        if counting.load(Ordering::Relaxed) {
            times.push(started.elapsed());
        }
    }
    Ok(times)
}
