//! The words of `network`, `audit` and `trace`.

use clap::{Args, Subcommand};

use super::{OnNodes, Wait, parse_label};

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Makes a network.
    Create(NetworkCreate),
    /// Shows networks.
    Ls,
    /// Prints a network with all its fields, and who has which address.
    Inspect { network: String },
    /// Removes networks.
    Rm {
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// From where subnets are chosen.
    #[command(subcommand)]
    Pool(PoolCommand),
}

#[derive(Debug, Args)]
pub struct NetworkCreate {
    pub name: String,
    /// Its addresses, such as 10.9.0.0/24; the managers choose when not given.
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<String>,
    /// Gives its tasks no way out of the cluster.
    #[arg(long)]
    pub internal: bool,
    /// Encrypts what goes from one node to another.
    #[arg(long)]
    pub encrypted: bool,
    /// Gives its tasks IPv6 addresses too.
    #[arg(long)]
    pub ipv6: bool,
    /// Of the object; may be given again.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Shows the pools and how much of each is free.
    Ls,
    /// Adds a pool behind those there are; it can neither change nor go.
    Add {
        /// Its addresses, such as 10.200.0.0/16.
        #[arg(value_name = "CIDR")]
        cidr: String,
        /// Of the subnets that are chosen from it; 24 when not given, or the pool's own if that is longer.
        #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(16..=29))]
        prefix: Option<u32>,
    },
}

#[derive(Debug, Args)]
pub struct Audit {
    #[command(flatten)]
    pub on: OnNodes,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// A running task's name or id; a service's name stands for one of its running tasks.
    #[arg(value_name = "TASK|SERVICE")]
    pub task: String,
    /// A name or an address, also with :PORT.
    #[arg(value_name = "NAME|ADDRESS")]
    pub target: String,
}
