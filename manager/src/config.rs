//! What the manager is told at start: verbs and flags, checked before anything is touched.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use rcluster_api::client::{TokenError, TokenSource};
use rcluster_api::error::ApiError;
use rcluster_api::identity::JoinToken;
use rcluster_api::resource::Millis;
use rcluster_api::seal::{NotAnUnlockKey, UnlockKey};
use rcluster_api::validate;
use rcluster_base::telemetry::LogFormat;
use thiserror::Error;

use crate::disaster::{Recover, Restore};
use crate::store::etcd::{Access, Address};

/// rcluster-manager: keeps the cluster's state, decides what runs where.
#[derive(Debug, Parser)]
#[command(name = "rcluster-manager", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Makes a new cluster in a state directory, of which this is the first manager; `run` starts it
    Init(InitArgs),
    /// Runs this manager; with --join it joins a cluster first, if it has not yet
    Run(RunArgs),
    /// Makes this host a manager of a cluster that is there; `run` starts it
    Join(JoinArgs),
    /// Makes a cluster of one manager from a backup (rclusterctl cluster backup); says first what it does and what is lost
    Restore(RestoreArgs),
    /// Makes the manager of a state directory the only one of its cluster, when the quorum is lost for good, or, with --store, when its etcd
    /// went back; says first what it does and what is lost
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// This manager's name, such as the host's
    #[arg(long)]
    name: String,
    /// Where the log, snapshots and credentials are kept; empty, or not there
    #[arg(long)]
    state_dir: PathBuf,
    /// HOST:PORT at which others reach this manager
    #[arg(long)]
    advertise: String,
    /// How long certificates of managers, agents and users are valid; they are renewed at half of it
    #[arg(long, default_value = "90d")]
    certificate_ttl: String,
    /// Without TLS: anyone who reaches the managers may do anything
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who keeps the cluster's state: the managers, unless an etcd is named.
#[derive(Debug, Args)]
struct StoreArgs {
    /// Keep the cluster's state in this etcd instead of among the managers: etcd://HOST:PORT[,HOST:PORT…]/PREFIX
    #[arg(long)]
    store: Option<String>,
    /// A file (PEM) with the authority that signs etcd's certificates: etcd is reached over TLS
    #[arg(long, requires = "store")]
    etcd_ca: Option<PathBuf>,
    /// Reach etcd in plain text: whoever is on the way reads the authority's key, secrets and the password of --etcd-user
    #[arg(long, requires = "store", conflicts_with_all = ["etcd_ca", "etcd_cert", "etcd_key"])]
    etcd_insecure: bool,
    /// A file (PEM) with the certificate that is shown to etcd
    #[arg(long, requires = "etcd_ca", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// A file (PEM) with the key of --etcd-cert
    #[arg(long, requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// A user of etcd
    #[arg(long, requires = "store", requires = "etcd_password_file")]
    etcd_user: Option<String>,
    /// A file with the password of --etcd-user
    #[arg(long, requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
}

impl StoreArgs {
    fn check(self) -> Result<Option<Access>, ConfigError> {
        let Self { store, etcd_ca, etcd_insecure, etcd_cert, etcd_key, etcd_user, etcd_password_file } = self;
        let Some(store) = store else { return Ok(None) };
        let address: Address = store.parse().map_err(|error| ConfigError::Flag { flag: "store", why: format!("{error}") })?;
        if etcd_ca.is_none() && !etcd_insecure {
            return Err(ConfigError::EtcdInPlainText { address });
        }
        for path in [&etcd_ca, &etcd_cert, &etcd_key, &etcd_password_file].into_iter().flatten() {
            std::fs::metadata(path).map_err(|source| ConfigError::EtcdFile { path: path.clone(), source })?;
        }
        Ok(Some(Access { address, ca: etcd_ca, certificate: etcd_cert.zip(etcd_key), user: etcd_user.zip(etcd_password_file) }))
    }
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Managers of the cluster, HOST:PORT,…
    #[arg(long, value_delimiter = ',', required = true)]
    join: Vec<String>,
    /// This manager's name, such as the host's
    #[arg(long)]
    name: String,
    /// Where the log, snapshots and credentials are kept; empty, or not there
    #[arg(long)]
    state_dir: PathBuf,
    /// HOST:PORT at which others reach this manager
    #[arg(long)]
    advertise: String,
    /// A join token for managers: rclusterctl cluster token manager
    #[arg(long, env = "RCLUSTER_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the join token
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Without TLS, in a cluster that was made so
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The manager's name, such as the host's
    #[arg(long)]
    name: String,
    /// Where the log, snapshots and credentials are kept; empty, or not there
    #[arg(long)]
    state_dir: PathBuf,
    /// HOST:PORT at which others reach this manager; agents that know it come by themselves
    #[arg(long)]
    advertise: String,
    /// How long nodes are waited for before their tasks are started elsewhere
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    await_nodes: Millis,
    /// Does it; without this it only says what it would do
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The directory of a manager that is left, and does not run
    #[arg(long)]
    state_dir: PathBuf,
    /// HOST:PORT at which others reach this manager from now on; as before when not given
    #[arg(long)]
    advertise: Option<String>,
    /// How long nodes are waited for before their tasks are started elsewhere
    #[arg(long, value_name = "SPAN", default_value = "1m")]
    await_nodes: Millis,
    /// A file with the unlock key (rclusterctl cluster unlock-key), of a cluster with autolock
    #[arg(long, value_name = "FILE")]
    unlock_key_file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Does it; without this it only says what it would do
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where the log, snapshots and credentials are kept
    #[arg(long)]
    state_dir: PathBuf,
    /// Address and port to serve on
    #[arg(long)]
    listen: SocketAddr,
    /// Managers of the cluster to join, HOST:PORT,…; has no effect once it has joined
    #[arg(long, value_delimiter = ',')]
    join: Vec<String>,
    /// A join token for managers: rclusterctl cluster token manager
    #[arg(long, env = "RCLUSTER_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the join token
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// To join: this manager's name
    #[arg(long)]
    name: Option<String>,
    /// To join: HOST:PORT at which others reach this manager; --listen when not given
    #[arg(long)]
    advertise: Option<String>,
    /// Without TLS, in a cluster that was made so
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    limits: Limits,
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// What each caller may ask of this manager: a user, or an address from which somebody comes without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Limits {
    /// Requests a second that a caller may make, and as many at a stroke after a pause
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests_per_second, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests_per_second: u32,
    /// Requests of a caller that are answered at once
    #[arg(long = "requests-per-caller", value_name = "N", default_value_t = Limits::default().requests, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,
    /// Watches, followed logs and conversations that a caller may have open
    #[arg(long = "streams-per-caller", value_name = "N", default_value_t = Limits::default().streams, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Connections that a caller may have
    #[arg(long = "connections-per-caller", value_name = "N", default_value_t = Limits::default().connections, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
}

impl Default for Limits {
    /// More than a client's own fault, less than what would keep others waiting: those who are answered at once wait for one another.
    fn default() -> Self {
        Self { requests_per_second: 50_000, requests: 1024, streams: 1024, connections: 1024 }
    }
}

/// A cluster to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    pub name: String,
    pub state_dir: PathBuf,
    pub advertise: String,
    pub certificate_ttl_ms: u64,
    pub insecure: bool,
    /// An etcd that keeps the state.
    pub store: Option<Access>,
    pub json: bool,
}

/// A manager to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    pub join: Option<Join>,
    pub insecure: bool,
    /// An etcd that keeps the state.
    pub store: Option<Access>,
    pub limits: Limits,
}

/// How to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    pub managers: Vec<String>,
    pub token: Option<TokenSource>,
    /// The cluster is one without TLS, for which no token is needed.
    pub insecure: bool,
    pub name: String,
    pub advertise: String,
}

/// A flag that does not make sense.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("--{flag}: {why}")]
    Flag { flag: &'static str, why: String },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("to join, a token is needed: `rclusterctl cluster token manager` prints it; give it with --token-file, or RCLUSTER_JOIN_TOKEN")]
    NoToken,
    #[error(
        "--store {address}: the cluster authority's key, secrets and the password of --etcd-user travel to etcd: give --etcd-ca FILE, with the authority that signs etcd's certificates, to reach it over TLS, or --etcd-insecure to send them in plain text"
    )]
    EtcdInPlainText { address: Address },
    #[error("{path}, for etcd")]
    EtcdFile { path: PathBuf, source: std::io::Error },
    #[error("--unlock-key-file {path}")]
    UnlockKeyFile { path: PathBuf, source: std::io::Error },
    #[error("--unlock-key-file {path}: {source}")]
    UnlockKey { path: PathBuf, source: NotAnUnlockKey },
    #[error("--join needs --name, this manager's name")]
    NoName,
}

fn flag(flag: &'static str) -> impl Fn(ApiError) -> ConfigError {
    move |error| ConfigError::Flag { flag, why: error.to_string() }
}

fn read_unlock_key(path: &Path) -> Result<UnlockKey, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::UnlockKeyFile { path: path.to_owned(), source })?;
    text.parse().map_err(|source| ConfigError::UnlockKey { path: path.to_owned(), source })
}

/// Shorter certificates would be renewed all the time.
const TTL_MS_MIN: u64 = 60_000;

impl InitArgs {
    /// The checked flags.
    pub fn check(self) -> Result<Init, ConfigError> {
        let Self { name, state_dir, advertise, certificate_ttl, insecure, store, json } = self;
        validate::check_name("manager", &name).map_err(flag("name"))?;
        validate::check_address(&advertise).map_err(flag("advertise"))?;
        let ttl = certificate_ttl.parse::<Millis>().map_err(|why| ConfigError::Flag { flag: "certificate-ttl", why: why.to_string() })?;
        if ttl.0 < TTL_MS_MIN {
            let why = format!("{certificate_ttl} is too short: a minute at least");
            return Err(ConfigError::Flag { flag: "certificate-ttl", why });
        }
        Ok(Init { name, state_dir, advertise, certificate_ttl_ms: ttl.0, insecure, store: store.check()?, json })
    }
}

impl RunArgs {
    /// The checked flags.
    pub fn check(self) -> Result<Config, ConfigError> {
        let Self { state_dir, listen, join, token, token_file, name, advertise, insecure, store, limits, log_format: _ } = self;
        let store = store.check()?;
        if join.is_empty() {
            return Ok(Config { state_dir, listen, join: None, insecure, store, limits });
        }
        let advertise = advertise.unwrap_or_else(|| listen.to_string());
        let join = check_join(join, token, token_file, name, advertise, insecure)?;
        Ok(Config { state_dir, listen, join: Some(join), insecure, store, limits })
    }
}

fn check_join(
    managers: Vec<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    name: Option<String>,
    advertise: String,
    insecure: bool,
) -> Result<Join, ConfigError> {
    for manager in &managers {
        validate::check_address(manager).map_err(flag("join"))?;
    }
    let name = name.ok_or(ConfigError::NoName)?;
    validate::check_name("manager", &name).map_err(flag("name"))?;
    validate::check_address(&advertise).map_err(flag("advertise"))?;
    Ok(Join { managers, token: TokenSource::of_flags(token, token_file), insecure, name, advertise })
}

impl Join {
    /// The token, read now; none in a cluster without TLS.
    pub fn token(&self) -> Result<Option<JoinToken>, ConfigError> {
        match &self.token {
            Some(source) => Ok(Some(source.read()?)),
            None if self.insecure => Ok(None),
            None => Err(ConfigError::NoToken),
        }
    }
}

impl JoinArgs {
    /// The checked flags: whom to join, in which directory, and the etcd that keeps the state, if one does.
    pub fn check(self) -> Result<(Join, PathBuf, Option<Access>), ConfigError> {
        let Self { join, name, state_dir, advertise, token, token_file, insecure, store } = self;
        Ok((check_join(join, token, token_file, Some(name), advertise, insecure)?, state_dir, store.check()?))
    }
}

impl RestoreArgs {
    /// The checked flags.
    pub fn check(self) -> Result<Restore, ConfigError> {
        let Self { from, name, state_dir, advertise, await_nodes, yes } = self;
        validate::check_name("manager", &name).map_err(flag("name"))?;
        validate::check_address(&advertise).map_err(flag("advertise"))?;
        Ok(Restore { from, name, state_dir, advertise, await_nodes_ms: await_nodes.0, yes })
    }
}

impl RecoverArgs {
    /// The checked flags.
    pub fn check(self) -> Result<Recover, ConfigError> {
        let Self { state_dir, advertise, await_nodes, unlock_key_file, store, yes } = self;
        advertise.as_deref().map(validate::check_address).transpose().map_err(flag("advertise"))?;
        let unlock_key = unlock_key_file.map(|path| read_unlock_key(&path)).transpose()?;
        Ok(Recover { state_dir, advertise, await_nodes_ms: await_nodes.0, unlock_key, store: store.check()?, yes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(arguments: &[&str]) -> String {
        let base = ["rcluster-manager", "init", "--name", "m1", "--state-dir", "s", "--advertise", "10.0.0.1:7443"];
        match Cli::try_parse_from(base.iter().chain(arguments)).unwrap().verb {
            Verb::Init(args) => args.check().map_or_else(|error| error.to_string(), |init| format!("{}", init.certificate_ttl_ms)),
            _ => panic!("another verb"),
        }
    }

    fn run(arguments: &[&str]) -> String {
        let base = ["rcluster-manager", "run", "--state-dir", "s", "--listen", "127.0.0.1:7443"];
        match Cli::try_parse_from(base.iter().chain(arguments)).unwrap().verb {
            Verb::Run(args) => {
                args.check().map_or_else(|error| error.to_string(), |config| format!("{:?}", config.join.map(|join| join.advertise)))
            }
            _ => panic!("another verb"),
        }
    }

    #[test]
    fn an_etcd_is_given_on_by_the_flags_that_gave_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let address: Address = "etcd://e1:2379,e2:2379/x".parse().unwrap();
        let plain = Access { address, ca: None, certificate: None, user: None };
        let tls = Access { ca: Some(file("ca")), certificate: Some((file("cert"), file("key"))), ..plain.clone() };
        let all = Access { user: Some(("me".to_owned(), file("password"))), ..tls.clone() };
        for access in [plain, tls, all] {
            let base = "rcluster-manager join --join m1:1 --name m2 --state-dir s --advertise h:5 --insecure";
            let line = format!("{base}{}", access.flags());
            match Cli::try_parse_from(line.split(' ')).unwrap().verb {
                Verb::Join(args) => assert_eq!(args.check().unwrap().2, Some(access)),
                _ => panic!("another verb"),
            }
        }
    }

    #[test]
    fn etcd_is_reached_in_plain_text_only_when_a_flag_says_so() {
        let store = "etcd://127.0.0.1:2379/x";
        for refused in [init(&["--store", store]), run(&["--store", store])] {
            let names = refused.contains("--etcd-ca FILE") && refused.contains("--etcd-insecure");
            assert!(refused.starts_with("--store etcd://127.0.0.1:2379/x: ") && names, "{refused}");
        }
        assert_eq!(init(&["--store", store, "--etcd-insecure"]), "7776000000");
        for of_tls in ["--etcd-ca f", "--etcd-cert f --etcd-key f"] {
            let line = format!("rcluster-manager recover --state-dir s --store {store} --etcd-insecure {of_tls}");
            let refused = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(refused.contains("--etcd-insecure") && refused.contains("cannot be used with"), "{refused}");
        }
    }

    #[test]
    fn what_init_is_told_is_checked() {
        assert_eq!(init(&[]), "7776000000");
        assert_eq!(init(&["--certificate-ttl", "1s"]), "--certificate-ttl: 1s is too short: a minute at least");
        assert!(init(&["--certificate-ttl", "long"]).starts_with("--certificate-ttl: "));
    }

    #[test]
    fn joining_needs_a_name() {
        let token = JoinToken { manager: true, authority: [1; 32], secret: vec![2; 16] }.to_string();
        assert_eq!(run(&[]), "None");
        assert_eq!(run(&["--join", "m1:1", "--token", &token]), "--join needs --name, this manager's name");
        assert_eq!(run(&["--join", "m1:1", "--token", &token, "--name", "m2"]), "Some(\"127.0.0.1:7443\")");
        assert!(run(&["--join", "m1", "--token", &token, "--name", "m2"]).starts_with("--join: "));
        assert_eq!(run(&["--join", "m1:1", "--insecure", "--name", "m2", "--advertise", "h:5"]), "Some(\"h:5\")");
    }
}
