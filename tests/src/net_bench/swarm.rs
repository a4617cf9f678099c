//! Debian's Docker 20.10 in the same shape: three hosts of a lab with nothing but an idle manager of ours, a dockerd in each, one swarm.
//!
//! Each dockerd has a root and an exec directory of its own in the host's directories, its cgroups are below the host's, and what lies in
//! places of all engines is hidden by a tmpfs: all of it goes with the lab. Its rules of iptables are in the host's network namespace.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tar::{Builder, Header};

use super::eyes::Eye;
use super::places::{Outside, Place, SINK_PORT, summary};
use crate::lab::{Lab, Watched, bin_dir, wait_for};
use crate::progress;

/// The first one leads.
pub const HOSTS: [&str; 3] = ["m1", "m2", "m3"];
const SWARM_PORT: u16 = 2377;
const IMAGE: &str = "rcluster/probe:bench";
/// Not another one of that name that comes first in the path.
const CLIENT: &str = "/usr/bin/docker";
/// The container from which is measured; one on each host.
const EYE: &str = "eye";
/// The one of the first host from which is measured what goes by a service's address.
const EYE_BY_VIP: &str = "eye-by-vip";
const PATIENCE: Duration = Duration::from_secs(120);
/// For how long a service is tried by its address: where the kernel has no IPVS, it is in vain.
const VIP_PATIENCE: Duration = Duration::from_secs(20);

/// The swarm; it ends with this.
pub struct Swarm {
    lab: Lab,
    daemons: Vec<Child>,
    /// Why services are not reached by their addresses, if they are not.
    no_vips: Option<String>,
}

/// What a comparison takes that is not installed.
pub fn missing() -> Option<String> {
    let there =
        |program: &str| std::env::var_os("PATH").is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()));
    let missing: Vec<&str> = ["dockerd", "containerd", "runc"].into_iter().filter(|program| !there(program)).collect();
    match missing.as_slice() {
        [] if PathBuf::from(CLIENT).is_file() => None,
        [] => Some(format!("not installed: {CLIENT}")),
        names => Some(format!("not installed: {} (make tools)", names.join(", "))),
    }
}

/// Where a host is: they are a lab's managers, in their order (`lab/src/core/plan.rs`).
pub fn addr(host: &str) -> String {
    let index = HOSTS.iter().position(|known| *known == host).expect("one of the swarm's");
    format!("10.90.0.{}", 11 + index)
}

impl Swarm {
    /// Three hosts, the network `bench` that spans them, a container `eye` on each, and another one on the first.
    pub fn up() -> Result<Self> {
        let lab = Lab::up(&format!("swarm-{}", std::process::id()), HOSTS.len(), 0)?;
        let mut swarm = Self { lab, daemons: Vec::new(), no_vips: None };
        for host in HOSTS {
            let daemon = swarm.start(host)?;
            swarm.daemons.push(daemon);
        }
        for host in HOSTS {
            wait_for(&format!("dockerd of {host} answers"), PATIENCE, || swarm.docker(host, &["version"]).map(Some))
                .with_context(|| swarm.log(host))?;
            swarm.load(host)?;
        }
        swarm.docker(HOSTS[0], &["swarm", "init", "--advertise-addr", &addr(HOSTS[0])])?;
        let token = swarm.docker(HOSTS[0], &["swarm", "join-token", "--quiet", "worker"])?;
        for host in &HOSTS[1..] {
            swarm.docker(host, &["swarm", "join", "--token", token.trim(), &format!("{}:{SWARM_PORT}", addr(HOSTS[0]))])?;
        }
        swarm.docker(HOSTS[0], &["network", "create", "--driver", "overlay", "--attachable", "bench"])?;
        for host in HOSTS {
            swarm.run_eye(host, EYE)?;
        }
        swarm.run_eye(HOSTS[0], EYE_BY_VIP)?;
        swarm.no_vips = swarm.try_vips()?;
        Ok(swarm)
    }

    fn run_eye(&self, host: &str, eye: &str) -> Result<()> {
        let run = ["run", "--detach", "--name", eye, "--network", "bench", IMAGE, "idle"];
        wait_for(&format!("{host} runs a container on the network"), PATIENCE, || {
            if let Err(error) = self.docker(host, &run) {
                // A container that was made and could not be started holds the name.
                drop(self.docker(host, &["rm", "--force", eye]));
                return Err(error);
            }
            Ok(Some(()))
        })
    }

    /// Why a service that is reached by its task's address is not reached by its own; none when it is.
    fn try_vips(&self) -> Result<Option<String>> {
        let name = "reach";
        let reach = |address: &str, patience: Duration| {
            let target = format!("{address}:{SINK_PORT}");
            wait_for(&format!("{target} is reached"), patience, || self.place(HOSTS[0]).probe(&["rr", &target, "--millis", "1"]).map(Some))
        };
        self.service(name, 1, Some(HOSTS[1]), &["sink", "--port", &SINK_PORT.to_string()])?;
        reach(&format!("tasks.{name}"), PATIENCE)?;
        let tried = reach(name, VIP_PATIENCE);
        self.docker(HOSTS[0], &["service", "rm", name])?;
        Ok(tried.err().map(|error| {
            progress(&format!("{error:#}"));
            format!("no service is reached by its address within {} s (has the kernel IPVS?)", VIP_PATIENCE.as_secs())
        }))
    }

    /// Whether services are reached by their addresses; the error says why they are not.
    pub fn vips(&self) -> Result<(), &str> {
        self.no_vips.as_deref().map_or(Ok(()), Err)
    }

    /// Where the host has what is Docker's: on disk, and in memory.
    fn dirs(&self, host: &str) -> (String, String) {
        let lab = self.lab.name();
        (format!("/var/lib/rcluster/labs/{lab}/{host}/docker"), format!("/run/rcluster/labs/{lab}/hosts/{host}/run/docker"))
    }

    fn start(&self, host: &str) -> Result<Child> {
        let (root, run) = self.dirs(host);
        let lab = self.lab.name();
        let hide = "mount --make-rshared / && mkdir -p /etc/docker /run/containerd && mount -t tmpfs engine /etc/docker && \
                    mount -t tmpfs engine /run/containerd";
        let daemon = format!(
            "exec dockerd --config-file {run}/daemon.json --pidfile {run}/docker.pid --data-root {root} --exec-root {run}/exec \
             --host unix://{run}/docker.sock --storage-driver overlay2 --iptables=true --cgroup-parent /rcluster-lab-{lab}/{host}/docker"
        );
        let script = format!("{hide} && mkdir -p {root} {run} && echo '{{}}' >{run}/daemon.json && {daemon} >{root}.log 2>&1");
        self.on(host, &["sh", "-c", &script]).stdin(Stdio::null()).spawn().with_context(|| format!("start dockerd on {host}"))
    }

    /// The last lines of a daemon's log.
    fn log(&self, host: &str) -> String {
        let text = std::fs::read_to_string(format!("{}.log", self.dirs(host).0)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("dockerd of {host} said last: {}", lines[lines.len().saturating_sub(3)..].join("; "))
    }

    /// A command on a host, not yet started.
    fn on(&self, host: &str, words: &[&str]) -> Command {
        let mut all = vec!["lab", "exec", "--lab", self.lab.name(), host, "--"];
        all.extend(words);
        self.lab.command(&all)
    }

    /// `docker` on a host, not yet started.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        let socket = format!("unix://{}/docker.sock", self.dirs(host).1);
        let mut command = self.on(host, &[[CLIENT, "-H", socket.as_str()].as_slice(), words].concat());
        command.env("DOCKER_CONFIG", format!("{}/client", self.dirs(host).0));
        command
    }

    /// Runs `docker` on a host and returns what it printed.
    pub fn docker(&self, host: &str, words: &[&str]) -> Result<String> {
        let output = self.command(host, words).stdin(Stdio::null()).output().context("run rclusterctl lab exec")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("docker {} on {host}: {} {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim(), text.trim());
        }
        Ok(text)
    }

    /// The image, made of the probe alone: `docker load` of that age reads no OCI layout.
    fn load(&self, host: &str) -> Result<()> {
        let probe = std::fs::read(bin_dir()?.join("rcluster-probe")).context("read the probe")?;
        let file = format!("{}.tar", self.dirs(host).0);
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(probe.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, "probe", probe.as_slice()).context("pack the probe")?;
        std::fs::write(&file, archive.into_inner().context("pack the probe")?).context("write the image")?;
        self.docker(host, &["import", "--change", "ENTRYPOINT [\"/probe\"]", &file, IMAGE]).map(drop)
    }

    /// Makes a service on the network and waits until so many of its tasks run; `placed` is a host of its own, or none. Where an address of
    /// its own leads nowhere, its name stands for its tasks.
    pub fn service(&self, name: &str, replicas: usize, placed: Option<&str>, arguments: &[&str]) -> Result<()> {
        let flags: &[&str] = if self.vips().is_err() { &["--endpoint-mode", "dnsrr"] } else { &[] };
        self.service_with(name, replicas, placed, flags, arguments)
    }

    /// One with other flags of `service create`, which has an address of its own.
    pub fn service_with(&self, name: &str, replicas: usize, placed: Option<&str>, flags: &[&str], arguments: &[&str]) -> Result<()> {
        let replicas_text = replicas.to_string();
        let mut words =
            vec!["service", "create", "--detach", "--name", name, "--network", "bench", "--no-resolve-image", "--replicas", &replicas_text];
        let constraint = placed.map(|host| format!("node.hostname=={host}"));
        if let Some(constraint) = &constraint {
            words.extend(["--constraint", constraint]);
        }
        words.extend(flags);
        words.push(IMAGE);
        words.extend(arguments);
        self.docker(HOSTS[0], &words)?;
        wait_for(&format!("{replicas} tasks of {name} are in DNS"), PATIENCE, || {
            Ok((self.resolve(HOSTS[0], &format!("tasks.{name}"))?.len() == replicas).then_some(()))
        })
    }

    /// What a name stands for, from a host's eye.
    pub fn resolve(&self, host: &str, name: &str) -> Result<Vec<String>> {
        let text = self.docker(host, &["exec", EYE, "/probe", "resolve", name, "--count", "1"])?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// The eye of a host, from which is measured.
    pub fn place(&self, host: &'static str) -> InEye<'_> {
        InEye { swarm: self, host, eye: EYE }
    }

    /// The one beside it on the first host, for what goes by a service's address.
    pub fn place_by_vip(&self) -> InEye<'_> {
        InEye { swarm: self, host: HOSTS[0], eye: EYE_BY_VIP }
    }

    /// Outside of the swarm.
    pub fn outside(&self) -> Outside<'_> {
        Outside { lab: &self.lab }
    }

    /// One that watches, on each host.
    pub fn eyes(&self) -> Result<Vec<Eye>> {
        HOSTS.iter().map(|host| Eye::open(host, self.command(host, &["exec", "--interactive", EYE, "/probe"]))).collect()
    }

    /// A running container of a service: its host and its id.
    pub fn container(&self, service: &str, turn: usize) -> Result<(&'static str, String)> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let mut found = Vec::new();
        for host in HOSTS {
            let ids = self.docker(host, &["ps", "--no-trunc", "--quiet", "--filter", &filter])?;
            found.extend(ids.lines().map(|id| (host, id.to_owned())));
        }
        found.sort();
        let at = turn.checked_rem(found.len()).with_context(|| format!("no container of {service} runs"))?;
        Ok(found.swap_remove(at))
    }

    /// The address of a container on the network.
    pub fn address(&self, host: &str, container: &str) -> Result<String> {
        let text = self.docker(host, &["inspect", "--format", "{{.NetworkSettings.Networks.bench.IPAddress}}", container])?;
        Ok(text.trim().to_owned())
    }

    /// The name of the lab that its hosts are in.
    pub fn lab_name(&self) -> &str {
        self.lab.name()
    }

    /// Replaces the tasks of a service again and again under a client that asks all the time.
    pub fn update_under_load(&self, service: &str, time: Duration) -> Result<Watched> {
        let seconds = time.as_secs().to_string();
        let url = format!("http://{service}:8080/");
        wait_for(&format!("{service} answers"), PATIENCE, || {
            self.docker(HOSTS[0], &["exec", EYE, "/probe", "get", &url, "--count", "1"]).map(Some)
        })?;
        let words = ["exec", EYE, "/probe", "watch", &url, "--interval-ms", "5", "--timeout-ms", "2000", "--seconds", &seconds];
        let mut watch = self.command(HOSTS[0], &words);
        let watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start a client")?;
        let began = Instant::now();
        while began.elapsed() < time {
            self.docker(HOSTS[0], &["service", "update", "--force", "--quiet", service])?;
        }
        let output = watch.wait_with_output().context("wait for the client")?;
        serde_json::from_value(summary(&String::from_utf8_lossy(&output.stdout))?).context("read what the client said")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended by itself. The lab, which goes after this, ends all that it has started.
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

/// The container of a host from which is measured.
#[derive(Clone, Copy)]
pub struct InEye<'a> {
    swarm: &'a Swarm,
    host: &'static str,
    eye: &'static str,
}

impl Place for InEye<'_> {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        summary(&self.swarm.docker(self.host, &[["exec", self.eye, "/probe"].as_slice(), words].concat())?)
    }
}
