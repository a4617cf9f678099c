//! The command line: parsed and checked at start, and nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use rcluster_api::policy::NodePolicy;
use rcluster_api::validate::check_name;
use rcluster_base::telemetry::LogFormat;

#[derive(Debug, Parser)]
#[command(name = "rcluster-agent", version, about = "Runs containers on this host as the managers of an rcluster ask")]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent
    Run(Box<RunArgs>),
    /// The images on this node
    #[command(subcommand)]
    Image(ImageVerb),
}

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Take in an OCI image layout: a directory, or a tar archive, gzipped or not
    Load {
        file: PathBuf,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// List the images
    Ls {
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// This node's name, unique in the cluster
    #[arg(long)]
    name: String,
    /// Keeps images, logs and the node's identity; must survive a power cut
    #[arg(long)]
    state_dir: PathBuf,
    /// Holds what lives as long as a boot of the host; must be empty after one (tmpfs)
    #[arg(long)]
    run_dir: PathBuf,
    /// The address at which other nodes reach this one
    #[arg(long)]
    addr: IpAddr,
    /// Addresses of managers, separated by commas; one that answers is enough
    #[arg(long, value_delimiter = ',', required = true)]
    managers: Vec<String>,
    /// The cgroup below which tasks get theirs, from the root of each hierarchy
    #[arg(long, default_value = "/rcluster")]
    cgroup_parent: String,
    /// A label of the node, KEY=VALUE; may be given several times
    #[arg(long = "label")]
    labels: Vec<String>,
    /// The OCI runtime; rcluster-runtime beside this program when not given
    #[arg(long)]
    runtime: Option<PathBuf>,
    /// Another OCI runtime that services may ask for by name, NAME=PATH; may be given several times
    #[arg(long = "add-runtime", value_name = "NAME=PATH")]
    runtimes: Vec<String>,
    /// Let services run privileged containers here
    #[arg(long)]
    allow_privileged: bool,
    /// A directory of this host that services may mount, with all below; may be given several times
    #[arg(long = "allow-bind", value_name = "DIR")]
    binds: Vec<PathBuf>,
    /// A device of this host that services may use, or a directory of them; may be given several times
    #[arg(long = "allow-device", value_name = "PATH")]
    devices: Vec<PathBuf>,
    /// Speak with the managers in plain text
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// The checked configuration of a running agent.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub addr: IpAddr,
    pub managers: Vec<String>,
    pub cgroup_parent: String,
    pub labels: BTreeMap<String, String>,
    pub runtime: PathBuf,
    /// Others, by the names that services give.
    pub runtimes: BTreeMap<String, PathBuf>,
    pub policy: NodePolicy,
}

impl RunArgs {
    /// The configuration, if it can be worked with.
    pub fn check(self) -> Result<Config> {
        let Self {
            name,
            state_dir,
            run_dir,
            addr,
            managers,
            cgroup_parent,
            labels,
            runtime,
            runtimes,
            allow_privileged,
            binds,
            devices,
            insecure,
            log_format: _,
        } = self;
        if !insecure {
            bail!("mutual TLS is not built yet: give --insecure to speak with the managers in plain text, on networks you trust");
        }
        if name.is_empty()
            || name.len() > 63
            || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        {
            bail!("--name {name:?}: lower-case letters, digits and '-', 63 at most");
        }
        for manager in &managers {
            let port = manager.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                bail!("--managers {manager:?}: an address is HOST:PORT");
            }
        }
        let parts: Vec<&str> = cgroup_parent.split('/').collect();
        if parts.first() != Some(&"") || parts.len() < 2 || parts[1..].iter().any(|part| part.is_empty() || part.starts_with('.')) {
            bail!("--cgroup-parent {cgroup_parent:?}: a path such as /rcluster, not the root, without empty or dotted parts");
        }
        let labels = labels.iter().map(|label| {
            let (key, value) =
                label.split_once('=').filter(|(key, _)| !key.is_empty()).with_context(|| format!("--label {label:?}: KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        let labels = labels.collect::<Result<_>>()?;
        let runtime = match runtime {
            Some(runtime) => runtime,
            None => std::env::current_exe().context("find this program")?.with_file_name("rcluster-runtime"),
        };
        if !runtime.is_file() {
            bail!("the OCI runtime {} is not there: give --runtime PATH", runtime.display());
        }
        let runtimes = runtimes.iter().map(|entry| other_runtime(entry)).collect::<Result<BTreeMap<_, _>>>()?;
        let paths = |flag: &str, paths: Vec<PathBuf>| paths.iter().map(|path| allowed(flag, path)).collect::<Result<Vec<_>>>();
        let policy = NodePolicy {
            runtimes: runtimes.keys().cloned().collect(),
            privileged: allow_privileged,
            binds: paths("--allow-bind", binds)?,
            devices: paths("--allow-device", devices)?,
        };
        // Paths end up in mounts and in the runtime's hands: they must not depend on the working directory.
        let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("find {}", path.display()));
        Ok(Config {
            name,
            state_dir: absolute(state_dir)?,
            run_dir: absolute(run_dir)?,
            addr,
            managers,
            cgroup_parent,
            labels,
            runtime: absolute(runtime)?,
            runtimes,
            policy,
        })
    }
}

fn other_runtime(entry: &str) -> Result<(String, PathBuf)> {
    let (name, path) = entry.split_once('=').with_context(|| format!("--add-runtime {entry:?}: NAME=PATH"))?;
    let path = PathBuf::from(path);
    check_name("runtime", name).map_err(|error| anyhow!("--add-runtime {entry:?}: {error}"))?;
    if !path.is_absolute() || !path.is_file() {
        bail!("--add-runtime {entry:?}: {} is no program: give its absolute path", path.display());
    }
    Ok((name.to_owned(), path))
}

/// A path that a policy allows; it is compared with what services ask for, part by part.
fn allowed(flag: &str, path: &Path) -> Result<String> {
    let plain = path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    match path.to_str() {
        Some(text) if plain => Ok(text.to_owned()),
        _ => bail!("{flag} {}: give an absolute path without . and ..", path.display()),
    }
}
