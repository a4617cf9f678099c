//! Where the probe is run: on bare hosts, in bare pods, in a container of a lab, outside of its cluster. A place says what the probe said.
//!
//! ```text
//!   pod 10.93.0.1 ── host 1: eth0 10.91.0.11, bare 10.92.0.1 ── wire ── host 2: eth0 10.91.0.12, bare 10.92.0.2 ── pod 10.93.0.2
//! ```
//!
//! Nothing but devices and routes as a lab's and netd's: no rules, no tracking of connections, no containers.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use rcluster_api::rest::TaskJson;
use serde_json::Value;

use crate::lab::{Lab, bin_dir, wait_for};
use crate::managers::DEADLINE;
use crate::managers::wire::{self, Wire, ip};
use crate::processes::Process;

/// The sink's port everywhere.
pub const SINK_PORT: u16 = 9000;
/// That of a host's own sink, where the other one is published.
pub const HOST_SINK_PORT: u16 = 9001;
/// By which a sink is reached at another node than its own.
pub const SIDE_PORT: u16 = 9002;
/// What netd's own devices have over an underlay of 1500.
const OVERLAY_MTU: u32 = 1450;
/// The pods' gateway, on each host, as netd has it.
const GATEWAY: &str = "169.254.53.53";

/// Where a probe can be run.
pub trait Place {
    /// The last line that the probe prints, which is JSON.
    fn probe(&self, words: &[&str]) -> Result<Value>;
}

/// The last line of what a probe printed.
pub fn summary(text: &str) -> Result<Value> {
    let last = text.lines().last().context("the probe said nothing")?;
    serde_json::from_str(last).with_context(|| format!("read what the probe said: {last}"))
}

fn said(words: &[&str], output: &Output) -> Result<Value> {
    ensure!(output.status.success(), "probe {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    summary(&String::from_utf8_lossy(&output.stdout))
}

/// Two hosts on a wire of their own with a VXLAN device, and a pod behind each; sinks on the second host and in its pod. It is the first host.
pub struct Bare {
    wire: Wire,
    pods: [File; 2],
    probe: PathBuf,
    _sinks: [Process; 2],
}

/// The pod of the first bare host.
pub struct BarePod<'a>(pub &'a Bare);

impl Bare {
    /// The calling thread is on the wire from now on; the sinks stay on one processor.
    pub fn make(sink_cpu: usize) -> Result<Self> {
        let probe = bin_dir()?.join("rcluster-probe");
        let wire = Wire::make(2)?;
        let pods = [wire::new_namespace()?, wire::new_namespace()?];
        for (host, pod) in pods.iter().enumerate() {
            furnish(&wire, host, pod).with_context(|| format!("make bare host {}", host + 1))?;
        }
        let sinks = [wire.inside(1, || sink(&probe, sink_cpu))?, wire.within(&pods[1], || sink(&probe, sink_cpu))?];
        let bare = Self { wire, pods, probe, _sinks: sinks };
        let answers = |place: &dyn Place, target: &str| {
            wait_for(&format!("the bare sink at {target} answers"), DEADLINE, || place.probe(&["rr", target, "--millis", "1"]).map(Some))
        };
        answers(&bare, &Self::by_veth())?;
        answers(&bare, &Self::by_vxlan())?;
        answers(&BarePod(&bare), &BarePod::sink())?;
        Ok(bare)
    }

    /// The second host's sink without encapsulation.
    pub fn by_veth() -> String {
        format!("{}:{SINK_PORT}", wire::addr(1))
    }

    /// The second host's sink by VXLAN.
    pub fn by_vxlan() -> String {
        format!("10.92.0.2:{SINK_PORT}")
    }

    fn run(&self, words: &[&str], namespace: Option<&File>) -> Result<Value> {
        let mut command = Command::new(&self.probe);
        command.args(words).stdin(Stdio::null());
        let run = || command.output().with_context(|| format!("run {}", self.probe.display()));
        let output = match namespace {
            Some(namespace) => self.wire.within(namespace, run)?,
            None => self.wire.inside(0, run)?,
        };
        said(words, &output)
    }
}

impl BarePod<'_> {
    /// The other pod's sink.
    pub fn sink() -> String {
        format!("10.93.0.2:{SINK_PORT}")
    }
}

impl Place for Bare {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        self.run(words, None)
    }
}

impl Place for BarePod<'_> {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        let Self(bare) = self;
        bare.run(words, Some(&bare.pods[0]))
    }
}

/// A host's VXLAN device, its pod's veth, and the routes to both pods.
fn furnish(wire: &Wire, host: usize, pod: &File) -> Result<()> {
    let other = 1 - host;
    let (own, others) = (host + 1, other + 1);
    let (local, remote) = (wire::addr(host), wire::addr(other));
    let pod_path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
    wire.inside(host, || {
        let kind = format!("type vxlan id 77 local {local} remote {remote} dstport 4789 dev eth0 udpcsum nolearning");
        ip(&format!("link add bare mtu {OVERLAY_MTU} {kind}"))?;
        ip(&format!("addr add 10.92.0.{own}/24 dev bare"))?;
        ip("link set bare up")?;
        ip(&format!("link add pod mtu {OVERLAY_MTU} type veth peer name eth0 mtu {OVERLAY_MTU} netns {pod_path}"))?;
        ip(&format!("addr add {GATEWAY}/32 dev pod"))?;
        ip("link set pod up")?;
        ip(&format!("route add 10.93.0.{own}/32 dev pod"))?;
        ip(&format!("route add 10.93.0.{others}/32 via 10.92.0.{others} dev bare"))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("have a bare host forward packets")
    })?;
    wire.within(pod, || {
        ip("link set lo up")?;
        ip(&format!("addr add 10.93.0.{own}/32 dev eth0"))?;
        ip("link set eth0 up")?;
        ip(&format!("route add {GATEWAY} dev eth0"))?;
        ip(&format!("route add default via {GATEWAY} dev eth0"))
    })
}

/// A sink of a lab's host itself; it goes with this, or with the lab.
pub fn host_sink(lab: &Lab, host: &str, cpu: usize) -> Result<Process> {
    let probe = bin_dir()?.join("rcluster-probe");
    let (program, port, cpu) = (probe.to_string_lossy(), HOST_SINK_PORT.to_string(), cpu.to_string());
    let mut command = lab.command(&["lab", "exec", "--lab", lab.name(), host, "--", &program, "sink", "--port", &port, "--cpu", &cpu]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Process::new(command.spawn().with_context(|| format!("run a sink on {host}"))?))
}

fn sink(probe: &Path, cpu: usize) -> Result<Process> {
    let mut command = Command::new(probe);
    command.args(["sink", "--port", &SINK_PORT.to_string(), "--cpu", &cpu.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Process::new(command.spawn().with_context(|| format!("run {}", probe.display()))?))
}

/// A container of a lab's task.
#[derive(Clone, Copy)]
pub struct Inside<'a> {
    pub lab: &'a Lab,
    pub task: &'a TaskJson,
}

impl Place for Inside<'_> {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        summary(&self.lab.exec(self.task, &[["/probe"].as_slice(), words].concat())?)
    }
}

/// On a lab's wire: outside of the cluster, with all hosts in reach.
#[derive(Clone, Copy)]
pub struct Outside<'a> {
    pub lab: &'a Lab,
}

impl Place for Outside<'_> {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        let probe = bin_dir()?.join("rcluster-probe");
        let run = || Command::new(&probe).args(words).stdin(Stdio::null()).output();
        let output = self.lab.outside(run)?.with_context(|| format!("run {}", probe.display()))?;
        said(words, &output)
    }
}
