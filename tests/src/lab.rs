//! A lab as a user has one: everything goes through the `rclusterctl` command, and what is found left behind afterwards is an error.
//!
//! In: where the binaries are (`RCLUSTER_BIN_DIR`, else beside the running program). Out: objects as their JSON views. The lab is tied to
//! this process and goes when it does, however it ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use rcluster_api::rest::{ClusterJson, NodeJson, ServiceJson, TaskJson};
use rcluster_api::task::TaskState;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// How often a predicate is asked again.
const POLL: Duration = Duration::from_millis(20);

/// Lines of what a failed command said that its error carries, of each stream: an error and the last words of a log are no more.
const LAST_LINES: usize = 20;

/// The address of whoever is [`Lab::outside`]: the wire's, which is no host's.
pub const OUTSIDE: &str = "10.90.0.1";

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    bin_dir: PathBuf,
    dir: PathBuf,
    down: bool,
}

/// Where the built programs and the demo image are.
pub fn bin_dir() -> Result<PathBuf> {
    match std::env::var_os("RCLUSTER_BIN_DIR") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => bail!("RCLUSTER_BIN_DIR is not set: run this by make, which builds the programs and says where they are"),
    }
}

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asks until there is an answer; the error says what was waited for and what was last seen.
pub fn wait_for<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = ask();
        match last {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if started.elapsed() < deadline => {}
            Err(_) if started.elapsed() < deadline => {}
            Ok(None) => bail!("{what}: not within {} s", deadline.as_secs_f32()),
            Err(error) => return Err(error.context(format!("{what}: not within {} s", deadline.as_secs_f32()))),
        }
        std::thread::sleep(POLL);
    }
}

impl Lab {
    /// Makes a lab with the demo image on every node, and waits until it is ready.
    pub fn up(name: &str, managers: usize, agents: usize) -> Result<Self> {
        Self::up_with(name, managers, agents, &[])
    }

    /// The same with more flags of `lab up`.
    pub fn up_with(name: &str, managers: usize, agents: usize, flags: &[&str]) -> Result<Self> {
        let lab = Self {
            name: name.to_owned(),
            bin_dir: bin_dir()?,
            // Beside the lab's own files, so that it goes with them however this process ends.
            dir: Path::new("/run/rcluster/labs").join(name),
            down: false,
        };
        let image = lab.bin_dir.join("probe.tar");
        let (managers, agents, owner) = (managers.to_string(), agents.to_string(), std::process::id().to_string());
        let mut arguments = vec!["lab", "up", "--lab", name, "--managers", &managers, "--agents", &agents, "--owner-pid", &owner];
        let image = image.to_string_lossy();
        arguments.extend(["--image", &image]);
        arguments.extend(flags);
        lab.ctl(&arguments)?;
        Ok(lab)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A call of rclusterctl, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin_dir.join("rclusterctl"));
        command.args(arguments).env("RCLUSTER_CONFIG", self.dir.join("context.yaml")).env("RCLUSTER_BIN_DIR", &self.bin_dir);
        command
    }

    /// Runs rclusterctl and returns what it printed; a refusal is an error with its last words.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).stdin(Stdio::null()).output().context("run rclusterctl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = [end_of(&said), end_of(&text)].join("\n");
            bail!("rclusterctl {} ({}): {}", arguments.join(" "), output.status, last.trim());
        }
        Ok(text)
    }

    /// The same for an answer in JSON.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut with_format = arguments.to_vec();
        with_format.extend(["-o", "json"]);
        let text = self.ctl(&with_format)?;
        serde_json::from_str(&text).with_context(|| format!("read the JSON of rclusterctl {}: {text}", arguments.join(" ")))
    }

    /// All tasks, ended ones too.
    pub fn all_tasks(&self) -> Result<Vec<TaskJson>> {
        self.json(&["ps", "-a"])
    }

    /// The tasks of a service that run and are to run.
    pub fn running(&self, service: &str) -> Result<Vec<TaskJson>> {
        let mut tasks = self.all_tasks()?;
        tasks.retain(|task| task.service == service && task.state == TaskState::Running && task.desired_state == TaskState::Running);
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tasks)
    }

    /// Waits until exactly `count` tasks of a service run.
    pub fn wait_running(&self, service: &str, count: usize, deadline: Duration) -> Result<Vec<TaskJson>> {
        wait_for(&format!("{count} tasks of {service} run"), deadline, || {
            let running = self.running(service)?;
            Ok((running.len() == count).then_some(running))
        })
        .map_err(|error| anyhow!("{error:#}\n{}", self.ctl(&["ps", "-a"]).unwrap_or_default()))
    }

    /// What must not change when a manager dies: each running task's id, restarts and processes.
    pub fn fingerprint(&self, service: &str) -> Result<BTreeSet<String>> {
        let one = |task: &TaskJson| {
            let pids: Vec<_> = task.containers.iter().map(|container| container.pid).collect();
            format!("{} {} on {} restarts {} pids {pids:?}", task.name, task.id, task.node, task.restarts)
        };
        Ok(self.running(service)?.iter().map(one).collect())
    }

    /// A service.
    pub fn service(&self, name: &str) -> Result<ServiceJson> {
        self.json(&["get", "service", name])
    }

    /// All nodes.
    pub fn nodes(&self) -> Result<Vec<NodeJson>> {
        self.json(&["get", "nodes"])
    }

    /// The managers as one of them sees them.
    pub fn cluster(&self) -> Result<ClusterJson> {
        self.json(&["cluster", "status"])
    }

    /// Waits for a leader other than `not`.
    pub fn wait_leader(&self, not: &str, deadline: Duration) -> Result<String> {
        wait_for("a leader", deadline, || Ok(Some(self.cluster()?.leader).filter(|leader| !leader.is_empty() && leader != not)))
    }

    /// A lab verb on this lab.
    pub fn host(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["lab", verb, "--lab", &self.name];
        all.extend(arguments);
        self.ctl(&all)
    }

    /// Does something in a thread on the lab's wire: as someone who is on no host of the cluster, and reaches all of them.
    pub fn outside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let status: serde_json::Value = self.json(&["lab", "status", "--lab", &self.name])?;
        let supervisor = status["supervisor_pid"].as_i64().context("the lab's status names no supervisor")?;
        let wire = File::open(format!("/proc/{supervisor}/ns/net")).context("open the lab's wire")?;
        std::thread::scope(|scope| {
            let there = scope.spawn(|| -> Result<T> {
                setns(&wire, CloneFlags::CLONE_NEWNET).context("enter the lab's wire")?;
                Ok(act())
            });
            match there.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Writes a manifest among the lab's files.
    pub fn write(&self, manifest: &str) -> Result<String> {
        let file = self.dir.join("manifest.yaml");
        std::fs::write(&file, manifest).context("write a manifest")?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Deploys a manifest.
    pub fn deploy(&self, manifest: &str) -> Result<String> {
        self.ctl(&["deploy", &self.write(manifest)?])
    }

    /// A command inside a task's container, not yet started.
    pub fn in_task(&self, task: &TaskJson, arguments: &[&str]) -> Command {
        let mut all = vec!["lab", "exec", "--lab", &self.name, "--task", &task.id, &task.node, "--"];
        all.extend(arguments);
        self.command(&all)
    }

    /// Runs a command inside a task's container and returns what it printed.
    pub fn exec(&self, task: &TaskJson, arguments: &[&str]) -> Result<String> {
        let output = self.in_task(task, arguments).stdin(Stdio::null()).output().context("run rclusterctl lab exec")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} in {}: {} {} {}", arguments.join(" "), task.name, output.status, said.trim(), text.trim());
        }
        Ok(text)
    }

    /// Starts a command inside a task's container that runs until [`Background::finish`].
    pub fn background(&self, task: &TaskJson, arguments: &[&str]) -> Result<Background> {
        let child =
            self.in_task(task, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a command in a task")?;
        Ok(Background { child: Some(child) })
    }

    /// The addresses that DNS gives a task for a name, in the order of the answer.
    pub fn resolve(&self, from: &TaskJson, name: &str) -> Result<Vec<String>> {
        let text = self.exec(from, &["/probe", "resolve", name, "--count", "1"])?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Takes the lab down.
    pub fn down(mut self) -> Result<()> {
        self.down = true;
        self.ctl(&["lab", "down", "--lab", &self.name]).map(|_| ())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.down {
            if std::thread::panicking()
                && let Ok(picture) = self.ctl(&["ps", "-a"])
            {
                eprintln_failure(&picture);
            }
            if let Err(error) = self.ctl(&["lab", "down", "--lab", &self.name]) {
                eprintln_failure(&format!("{error:#}"));
            }
        }
    }
}

/// A deploy tells all that happens to each task, and what went wrong at its end.
fn end_of(said: &str) -> String {
    let lines: Vec<&str> = said.trim().lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[allow(clippy::print_stderr, reason = "a failing test tells what it saw")]
fn eprintln_failure(text: &str) {
    eprintln!("{text}");
}

/// What `probe watch` says at its end.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Watched {
    pub requests: u64,
    pub failures: u64,
    pub longest_outage_ms: u64,
}

/// What `probe stream` says at its end.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Streamed {
    pub sent: u64,
    pub echoed: u64,
    pub longest_gap_ms: u64,
    pub broken: bool,
}

/// A command that goes on beside the test and tells its findings at the end.
#[derive(Debug)]
pub struct Background {
    child: Option<Child>,
}

impl Background {
    /// Ends the command by closing its input, and returns its last line: the summary.
    pub fn finish<T: DeserializeOwned>(self) -> Result<T> {
        self.finish_in_full().map(|(summary, _)| summary)
    }

    /// The same, and the lines that it said before.
    pub fn finish_in_full<T: DeserializeOwned>(mut self) -> Result<(T, Vec<String>)> {
        let mut child = self.child.take().context("finished once")?;
        drop(child.stdin.take());
        let output = child.wait_with_output().context("wait for a command in a task")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let last = lines.pop().with_context(|| format!("the command ended with {} and said nothing", output.status))?;
        let summary = serde_json::from_str(&last).with_context(|| format!("read the summary {last}"))?;
        Ok((summary, lines))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; it must not outlive the test.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
