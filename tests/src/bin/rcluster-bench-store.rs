//! `make bench`, the store's part: writes and linearizable reads through the managers' API, beside Debian's etcd.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use rcluster_tests::store_bench::{self, Options};

#[derive(Debug, Parser)]
struct Flags {
    /// How often each cell is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Clients at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256])]
    clients: Vec<usize>,
    /// Ours.
    #[arg(long, default_value = "rcluster-manager")]
    manager: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Flags { rounds, seconds, clients, manager } = Flags::parse();
    store_bench::run(&Options { rounds: rounds.into(), seconds, clients, manager }).await
}
