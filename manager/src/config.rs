//! What the manager is told at start: flags, checked before anything is touched.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::Parser;
use rcluster_base::telemetry::LogFormat;
use thiserror::Error;

/// rcluster-manager: keeps the cluster's state, decides what runs where.
#[derive(Debug, Parser)]
#[command(name = "rcluster-manager", version, about)]
pub struct Flags {
    /// This manager's name, as it stands in --initial-cluster.
    #[arg(long)]
    name: String,
    /// Where the log and snapshots are kept.
    #[arg(long)]
    state_dir: PathBuf,
    /// Address and port to serve on.
    #[arg(long)]
    listen: SocketAddr,
    /// Address at which others reach this manager; --listen when not given.
    #[arg(long)]
    advertise: Option<String>,
    /// Every manager of the cluster: NAME=HOST:PORT,…
    #[arg(long)]
    initial_cluster: String,
    /// Serve in plain text. TLS is not built yet, so this flag is needed.
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub id: u64,
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    /// Id, name and address of each manager, in the order of --initial-cluster.
    pub members: Vec<(u64, String, String)>,
    pub log_format: LogFormat,
}

/// A flag that does not make sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("TLS is not built yet: start with --insecure to serve in plain text, on a network that you trust")]
    Insecure,
    #[error("--initial-cluster: {0:?} is not NAME=HOST:PORT")]
    Member(String),
    #[error("--initial-cluster names {0} twice")]
    Twice(String),
    #[error("--initial-cluster does not name this manager, {0}; it names {1}")]
    NotMember(String, String),
    #[error("--initial-cluster gives {0} the address {1}, --advertise says {2}")]
    Address(String, String, String),
    #[error("--initial-cluster names {0} managers; 1, 3, 5 or 7 make sense (an even number survives no more failures than one less)")]
    Count(usize),
}

impl Flags {
    /// The checked configuration.
    pub fn check(self) -> Result<Config, ConfigError> {
        if !self.insecure {
            return Err(ConfigError::Insecure);
        }
        let members = members(&self.initial_cluster)?;
        let advertise = self.advertise.unwrap_or_else(|| self.listen.to_string());
        let names = || members.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let own = members.iter().find(|(_, name, _)| *name == self.name);
        let (id, _, addr) = own.ok_or_else(|| ConfigError::NotMember(self.name.clone(), names()))?;
        if *addr != advertise {
            return Err(ConfigError::Address(self.name.clone(), addr.clone(), advertise));
        }
        Ok(Config { id: *id, name: self.name, state_dir: self.state_dir, listen: self.listen, log_format: self.log_format, members })
    }
}

fn members(text: &str) -> Result<Vec<(u64, String, String)>, ConfigError> {
    let mut members: Vec<(u64, String, String)> = Vec::new();
    for (index, part) in text.split(',').enumerate() {
        let wrong = || ConfigError::Member(part.to_owned());
        let (name, addr) = part.split_once('=').ok_or_else(wrong)?;
        if name.is_empty() || addr.to_socket_addrs().is_err() {
            return Err(wrong());
        }
        if members.iter().any(|(_, other, other_addr)| other == name || other_addr == addr) {
            return Err(ConfigError::Twice(part.to_owned()));
        }
        members.push((index as u64 + 1, name.to_owned(), addr.to_owned()));
    }
    if members.len() > 7 || members.len().is_multiple_of(2) {
        return Err(ConfigError::Count(members.len()));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Result<Config, ConfigError> {
        let base = ["rcluster-manager", "--name", "m1", "--state-dir", "state", "--listen", "127.0.0.1:7443"];
        Flags::try_parse_from(base.iter().chain(arguments)).unwrap().check()
    }

    #[test]
    fn members_are_numbered_and_must_hold_this_manager() {
        let three = "m1=127.0.0.1:7443,m2=127.0.0.2:7443,m3=127.0.0.3:7443";
        let config = flags(&["--insecure", "--initial-cluster", three]).unwrap();
        assert_eq!((config.id, config.members[2].clone()), (1, (3, "m3".to_owned(), "127.0.0.3:7443".to_owned())));
        let refused = |arguments: &[&str]| flags(arguments).unwrap_err().to_string();
        assert!(refused(&["--initial-cluster", three]).contains("--insecure"));
        assert!(refused(&["--insecure", "--initial-cluster", "m1=127.0.0.1:7443,m2=127.0.0.2:7443"]).contains("names 2 managers"));
        assert!(refused(&["--insecure", "--initial-cluster", "m1"]).contains("NAME=HOST:PORT"));
        assert!(refused(&["--insecure", "--initial-cluster", "m2=127.0.0.1:7443"]).contains("does not name this manager"));
        assert!(refused(&["--insecure", "--initial-cluster", "m1=127.0.0.1:1"]).contains("--advertise says"));
    }
}
