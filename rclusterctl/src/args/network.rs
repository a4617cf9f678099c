//! The words of `network`, `audit` and `trace`.

use std::ops::RangeInclusive;

use clap::{Args, Subcommand};
use rcluster_api::network::{AddressPool, Protocol};

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
        #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(prefixes()))]
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
    /// A name or an address, also with :PORT, which is of TCP, or with :PORT/udp.
    #[arg(value_name = "NAME|ADDRESS", value_parser = parse_target)]
    pub target: TraceTarget,
}

/// As clap has ranges.
fn prefixes() -> RangeInclusive<i64> {
    i64::from(*AddressPool::PREFIXES.start())..=i64::from(*AddressPool::PREFIXES.end())
}

/// Where a packet goes whose way is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceTarget {
    /// As it was said.
    pub said: String,
    /// A name or an address, also with :PORT.
    pub target: String,
    /// `None` where nothing was said of it.
    pub protocol: Option<Protocol>,
}

fn parse_target(text: &str) -> Result<TraceTarget, String> {
    let (target, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((target, word)) => {
            let wrong = |why: String| format!("{why}, which are what a trace follows: write {target}/udp");
            let protocol = word.parse::<Protocol>().map_err(wrong)?;
            // What has more colons is IPv6, which before a port is in brackets.
            let halves = target.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
            if halves.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(format!("{word} has ports: write NAME:PORT/{word}, or {target} alone for a ping"));
            }
            (target, Some(protocol))
        }
    };
    Ok(TraceTarget { said: text.to_owned(), target: target.to_owned(), protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_a_trace_may_name_a_port_and_what_it_is_of() {
        let parsed = |text: &str| parse_target(text).map(|TraceTarget { target, protocol, .. }| (target, protocol));
        for (text, target, protocol) in [
            ("web", "web", None),
            ("web:80", "web:80", None),
            ("web:80/tcp", "web:80", Some(Protocol::Tcp)),
            ("10.9.0.2:53/udp", "10.9.0.2:53", Some(Protocol::Udp)),
            ("[fd00::2]:53/udp", "[fd00::2]:53", Some(Protocol::Udp)),
        ] {
            assert_eq!(parsed(text), Ok((target.to_owned(), protocol)));
        }
        for (text, why) in [
            ("web:80/sctp", "\"sctp\" is neither tcp nor udp, which are what a trace follows: write web:80/udp"),
            ("web:80/", "\"\" is neither tcp nor udp, which are what a trace follows: write web:80/udp"),
            ("web/udp", "udp has ports: write NAME:PORT/udp, or web alone for a ping"),
            ("fd00::2/udp", "udp has ports: write NAME:PORT/udp, or fd00::2 alone for a ping"),
        ] {
            assert_eq!(parsed(text), Err(why.to_owned()));
        }
    }
}
