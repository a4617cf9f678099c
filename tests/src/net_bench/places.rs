//! Where the probe is run: on bare hosts, in a container of a lab. A place says what the probe said.
//!
//! ```text
//!   host 1: eth0 10.91.0.11, bare 10.92.0.1 ── wire ── host 2: eth0 10.91.0.12, bare 10.92.0.2     (no netd, no rules, no containers)
//! ```

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rcluster_api::rest::TaskJson;
use serde_json::Value;

use crate::lab::{Lab, bin_dir, wait_for};
use crate::managers::DEADLINE;
use crate::managers::wire::{self, Wire};
use crate::processes::Process;

/// The sink's port everywhere.
pub const SINK_PORT: u16 = 9000;
/// What netd's own devices have over an underlay of 1500.
const OVERLAY_MTU: u32 = 1450;

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

/// Two namespaces on a wire of their own, with a VXLAN device in each as netd makes them, and nothing else; a sink in the second.
pub struct Bare {
    wire: Wire,
    probe: PathBuf,
    _sink: Process,
}

impl Bare {
    /// The calling thread is on the wire from now on; the sink stays on one processor.
    pub fn make(sink_cpu: usize) -> Result<Self> {
        let probe = bin_dir()?.join("rcluster-probe");
        let wire = Wire::make(2)?;
        for (host, other) in [(0, 1), (1, 0)] {
            let (local, remote) = (wire::addr(host), wire::addr(other));
            wire.inside(host, || {
                let kind = format!("type vxlan id 77 local {local} remote {remote} dstport 4789 dev eth0 udpcsum nolearning");
                wire::ip(&format!("link add bare mtu {OVERLAY_MTU} {kind}"))?;
                wire::ip(&format!("addr add 10.92.0.{}/24 dev bare", host + 1))?;
                wire::ip("link set bare up")
            })?;
        }
        let port = SINK_PORT.to_string();
        let mut sink = Command::new(&probe);
        sink.args(["sink", "--port", &port, "--cpu", &sink_cpu.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
        let sink = wire.inside(1, || sink.spawn().with_context(|| format!("run {}", probe.display())))?;
        let bare = Self { wire, probe, _sink: Process::new(sink) };
        for target in [Self::by_veth(), Self::by_vxlan()] {
            wait_for("the bare sink answers", DEADLINE, || bare.probe(&["rr", &target, "--millis", "1"]).map(Some))?;
        }
        Ok(bare)
    }

    /// The sink without encapsulation.
    pub fn by_veth() -> String {
        format!("{}:{SINK_PORT}", wire::addr(1))
    }

    /// The sink by VXLAN.
    pub fn by_vxlan() -> String {
        format!("10.92.0.2:{SINK_PORT}")
    }
}

impl Place for Bare {
    fn probe(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.probe);
        command.args(words).stdin(Stdio::null());
        let output = self.wire.inside(0, || command.output().with_context(|| format!("run {}", self.probe.display())))?;
        ensure!(output.status.success(), "probe {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        summary(&String::from_utf8_lossy(&output.stdout))
    }
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
