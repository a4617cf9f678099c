//! The command line: parsed and checked at start, and nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use rcluster_api::client::TokenSource;
use rcluster_api::container::PullPolicy;
use rcluster_api::policy::NodePolicy;
use rcluster_api::resource::Millis;
use rcluster_api::validate::check_name;
use rcluster_base::telemetry::LogFormat;

use crate::core::image_gc::Limits;
use crate::core::reference::check_host;
use crate::image::registry::Access;
use crate::image::registry::transport::Patience;

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
    /// Pull an image from its registry, whether the node has it or not
    Pull {
        name: String,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
        #[command(flatten)]
        registries: RegistryArgs,
    },
    /// List the images
    Ls {
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Give an image another name
    Tag {
        from: String,
        to: String,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Take names away, and what only they kept; an image that a container runs on keeps its last name
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
        /// Also the last name of an image that a container runs on; its layers stay as long as the container
        #[arg(long)]
        force: bool,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Remove content that nothing needs
    Prune {
        /// Also the images that no container runs on
        #[arg(short, long)]
        all: bool,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Write images as an archive that `image load` and `docker load` read
    Save {
        #[arg(required = true)]
        names: Vec<String>,
        #[arg(short, long)]
        output: PathBuf,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Show all that is known of an image, as JSON
    Inspect {
        name: String,
        /// The agent's state directory
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Show how an image was made, as JSON
    History {
        name: String,
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
    /// A join token for agents: rclusterctl cluster token agent; has no effect once the node has joined
    #[arg(long, env = "RCLUSTER_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the join token
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
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
    /// When registries are asked for images: missing, always or never
    #[arg(long, value_name = "POLICY", default_value_t)]
    pull: PullPolicy,
    #[command(flatten)]
    collection: CollectionArgs,
    #[command(flatten)]
    registries: RegistryArgs,
    /// Speak with the managers in plain text
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// When unused images are removed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Garbage collection of images")]
pub struct CollectionArgs {
    /// Percent of the state directory's disk in use above which unused images are removed, the longest unused first; 100: never
    #[arg(long, value_name = "PERCENT", default_value_t = 85)]
    image_gc_high: u64,
    /// Percent in use at which that is enough
    #[arg(long, value_name = "PERCENT", default_value_t = 80)]
    image_gc_low: u64,
    /// Remove images that were not used for so long, however empty the disk; not given: never
    #[arg(long, value_name = "SPAN")]
    image_gc_max_age: Option<Millis>,
    /// Keep images that were used within this, however full the disk
    #[arg(long, value_name = "SPAN", default_value = "2m")]
    image_gc_min_age: Millis,
    /// How often to look
    #[arg(long, value_name = "SPAN", default_value = "1m")]
    image_gc_every: Millis,
}

/// When unused images are removed, and how often to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collection {
    pub limits: Limits,
    pub every: Duration,
}

impl CollectionArgs {
    /// The limits, if they go together.
    pub fn check(self) -> Result<Collection> {
        let Self { image_gc_high, image_gc_low, image_gc_max_age, image_gc_min_age, image_gc_every } = self;
        if image_gc_high > 100 || image_gc_low > image_gc_high {
            bail!("--image-gc-high {image_gc_high}, --image-gc-low {image_gc_low}: percent, and low is at most high");
        }
        if image_gc_every == Millis(0) {
            bail!("--image-gc-every: a span longer than nothing, such as 1m");
        }
        if let Some(max) = image_gc_max_age.filter(|max| *max < image_gc_min_age) {
            bail!("--image-gc-max-age {max} is shorter than --image-gc-min-age {image_gc_min_age}");
        }
        let limits =
            Limits { high_percent: image_gc_high, low_percent: image_gc_low, age_max: image_gc_max_age, age_min: image_gc_min_age };
        Ok(Collection { limits, every: image_gc_every.duration() })
    }
}

/// How registries are reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub struct RegistryArgs {
    /// Credentials for registries, a file as `docker login` writes it; read anew whenever a registry asks
    #[arg(long, value_name = "FILE")]
    registry_auth: Option<PathBuf>,
    /// Certificates, in PEM form, of authorities that are trusted beside the system's; may be given several times
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Speak plain HTTP with this host, and with no other that is not listed; may be given several times
    #[arg(long, value_name = "HOST[:PORT]")]
    registry_plain_http: Vec<String>,
    /// Ask a mirror before a registry; may be given several times, and they are asked in this order
    #[arg(long, value_name = "REGISTRY=HOST[:PORT][/PATH]")]
    registry_mirror: Vec<String>,
}

impl RegistryArgs {
    /// How registries are reached, if that can be worked with.
    pub fn check(self) -> Result<Access> {
        let Self { registry_auth, registry_ca, registry_plain_http, registry_mirror } = self;
        for host in &registry_plain_http {
            check_host(host).map_err(|why| anyhow!("--registry-plain-http: {why}"))?;
        }
        let mut mirrors = BTreeMap::<String, Vec<String>>::new();
        for pair in registry_mirror {
            let wrong = |why: &str| anyhow!("--registry-mirror {pair:?}: {why}");
            let (registry, mirror) = pair.split_once('=').ok_or_else(|| wrong("REGISTRY=HOST[:PORT][/PATH]"))?;
            check_host(registry).map_err(|why| wrong(&why))?;
            check_host(mirror.split('/').next().unwrap_or_default()).map_err(|why| wrong(&why))?;
            mirrors.entry(registry.to_owned()).or_default().push(mirror.trim_end_matches('/').to_owned());
        }
        Ok(Access {
            auth_file: registry_auth.map(absolute).transpose()?,
            authorities: registry_ca,
            plain_http: registry_plain_http.into_iter().collect(),
            mirrors,
            patience: Patience::default(),
        })
    }
}

/// Paths end up in mounts and in the runtime's hands: they must not depend on the working directory.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("find {}", path.display()))
}

/// The checked configuration of a running agent.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub addr: IpAddr,
    pub managers: Vec<String>,
    pub token: Option<TokenSource>,
    pub insecure: bool,
    pub cgroup_parent: String,
    pub labels: BTreeMap<String, String>,
    pub runtime: PathBuf,
    /// Others, by the names that services give.
    pub runtimes: BTreeMap<String, PathBuf>,
    pub policy: NodePolicy,
    pub pull: PullPolicy,
    pub collection: Collection,
    pub registries: Access,
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
            token,
            token_file,
            cgroup_parent,
            labels,
            runtime,
            runtimes,
            allow_privileged,
            binds,
            devices,
            pull,
            collection,
            registries,
            insecure,
            log_format: _,
        } = self;
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
        Ok(Config {
            name,
            state_dir: absolute(state_dir)?,
            run_dir: absolute(run_dir)?,
            addr,
            managers,
            token: TokenSource::of_flags(token, token_file),
            insecure,
            cgroup_parent,
            labels,
            runtime: absolute(runtime)?,
            runtimes,
            policy,
            pull,
            collection: collection.check()?,
            registries: registries.check()?,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> String {
        let base = ["rcluster-agent", "run", "--name", "n", "--state-dir", "/s", "--run-dir", "/r", "--addr", "127.0.0.1", "--insecure"];
        let rest = ["--managers", "h:1", "--runtime", "/proc/self/exe"];
        let cli = match Cli::try_parse_from(base.iter().chain(&rest).chain(arguments)) {
            Ok(cli) => cli,
            Err(error) => return error.to_string().lines().next().unwrap_or_default().to_owned(),
        };
        let Verb::Run(args) = cli.verb else { panic!("another verb") };
        match args.check() {
            Ok(config) => format!("{} {:?} {:?}", config.pull, config.registries.plain_http, config.registries.mirrors),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn registries_are_configured_by_flags_and_what_is_wrong_is_named() {
        assert_eq!(check(&[]), "missing {} {}");
        let flags = ["--pull=always", "--registry-plain-http=a:1", "--registry-mirror=docker.io=m:2/x/", "--registry-mirror=docker.io=n"];
        assert_eq!(check(&flags), r#"always {"a:1"} {"docker.io": ["m:2/x", "n"]}"#);
        assert_eq!(
            check(&["--pull=often"]),
            "error: invalid value 'often' for '--pull <POLICY>': pull policy \"often\": missing, always or never"
        );
        assert_eq!(
            check(&["--registry-plain-http=http://a"]),
            "--registry-plain-http: \"http://a\" is not the host of a registry: HOST, HOST:PORT or [IPV6]:PORT"
        );
        assert_eq!(check(&["--registry-mirror=a"]), "--registry-mirror \"a\": REGISTRY=HOST[:PORT][/PATH]");
    }

    #[test]
    fn a_token_is_not_looked_for_before_it_is_needed() {
        assert_eq!(check(&["--token-file=/no/such/file"]), "missing {} {}");
        assert_eq!(check(&["--token=x"]), "missing {} {}");
    }

    #[test]
    fn limits_that_do_not_go_together_are_refused() {
        let refused = "--image-gc-high 70, --image-gc-low 80: percent, and low is at most high";
        assert_eq!(check(&["--image-gc-high=70"]), refused);
        assert_eq!(check(&["--image-gc-max-age=1m"]), "--image-gc-max-age 1m is shorter than --image-gc-min-age 2m");
        assert_eq!(check(&["--image-gc-every=0s"]), "--image-gc-every: a span longer than nothing, such as 1m");
        assert_eq!(check(&["--image-gc-high=100", "--image-gc-low=0", "--image-gc-max-age=24h"]), "missing {} {}");
    }
}
