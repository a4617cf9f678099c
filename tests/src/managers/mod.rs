//! Managers as processes, each in a network namespace of its own, with a clock of its own where that is asked for, and everything that can
//! befall them: killed, stopped, cut off, their clocks set.

pub mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_api::client;
use rcluster_api::tls::{Credentials, Security};
use rcluster_api::wire::v1;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

use crate::lab::{bin_dir, wait_for};
use crate::processes::rss_kib;
use wire::Wire;

/// Longest wait for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(60);
const PORT: u16 = 7443;
/// Where Debian has the library that gives a process a clock of its own; the loader puts its own directory in place of `$LIB`.
const CLOCK_LIBRARY: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// What `init` prints.
#[derive(Debug, Deserialize)]
struct Founded {
    manager_token: String,
    admin_file: PathBuf,
}

/// What `init` writes for the administrator.
#[derive(Debug, Deserialize)]
struct Access {
    credentials: Option<Credentials>,
}

/// Whether the managers' clocks can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clocks {
    /// That of the machine.
    Shared,
    /// Each has its own, by libfaketime. Time that only rises is that of the machine all the same.
    Own,
}

#[derive(Debug)]
struct Host {
    name: String,
    dir: PathBuf,
    process: Option<Child>,
}

/// A cluster of managers; all end with this.
#[derive(Debug)]
pub struct Managers {
    runtime: Runtime,
    wire: Wire,
    hosts: Vec<Host>,
    program: PathBuf,
    clocks: Clocks,
    admin: Security,
    dir: TempDir,
}

impl Drop for Managers {
    fn drop(&mut self) {
        for process in self.hosts.iter_mut().filter_map(|host| host.process.as_mut()) {
            // It may have ended by itself.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// `HOST:PORT` of a manager.
fn addr(host: usize) -> String {
    format!("{}:{PORT}", wire::addr(host))
}

fn name(host: usize) -> String {
    format!("m{}", host + 1)
}

impl Managers {
    /// Makes a cluster of so many voters. The calling thread is on the managers' wire from now on.
    pub fn found(count: usize, clocks: Clocks) -> Result<Self> {
        let program = bin_dir()?.join("rcluster-manager");
        let wire = Wire::make(count)?;
        // Its threads are on the wire, as this one is.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the async runtime")?;
        let dir = tempfile::tempdir().context("make a directory")?;
        let state = dir.path().join(name(0));
        let mut init = Command::new(&program);
        init.args(["init", "--json", "--name", &name(0), "--advertise", &addr(0), "--state-dir"]).arg(&state);
        let output = init.stdin(Stdio::null()).output().with_context(|| format!("run {}", program.display()))?;
        ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
        let founded: Founded = serde_json::from_slice(&output.stdout).context("read what init printed")?;
        let access = fs::read(&founded.admin_file).context("read the administrator's file")?;
        let access: Access = serde_json::from_slice(&access).context("read the administrator's file")?;
        let admin = Security::new(access.credentials.context("the administrator has credentials")?)?;
        fs::write(dir.path().join("token"), &founded.manager_token).context("write the token")?;
        let host = |host| Host { name: name(host), dir: dir.path().join(name(host)), process: None };
        let hosts = (0..count).map(host).collect();
        let mut managers = Self { runtime, wire, hosts, program, clocks, admin, dir };
        for host in 0..count {
            managers.set_clock(host, 0)?;
            managers.start(host)?;
        }
        managers.wait_whole()?;
        Ok(managers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Where what belongs to the test can lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who may do everything.
    pub fn admin(&self) -> &Security {
        &self.admin
    }

    /// Where each manager is.
    pub fn addrs(&self) -> Vec<String> {
        (0..self.count()).map(addr).collect()
    }

    /// Runs what is on the wire.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// The wire between them.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Starts a manager, which joins if it has not yet.
    pub fn start(&mut self, host: usize) -> Result<()> {
        let Host { name, dir, process: _ } = &self.hosts[host];
        let log = fs::File::options().create(true).append(true).open(dir.with_extension("log")).context("open a log")?;
        // When this thread ends, however it does, they end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program).args(["run", "--listen", &addr(host), "--state-dir"]).arg(dir);
        command.args(["--join", &addr(0), "--name", name, "--token-file"]).arg(self.dir.path().join("token"));
        if self.clocks == Clocks::Own {
            command.env("LD_PRELOAD", CLOCK_LIBRARY).env("FAKETIME_TIMESTAMP_FILE", dir.with_extension("clock"));
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = self.wire.inside(host, || command.spawn().context("start a manager (by setpriv, of util-linux)"))?;
        self.hosts[host].process = Some(process);
        Ok(())
    }

    /// Kills a manager as a power cut does, but for what the kernel has not written yet.
    pub fn kill(&mut self, host: usize) -> Result<()> {
        let mut process = self.hosts[host].process.take().context("it runs")?;
        process.kill().context("kill a manager")?;
        process.wait().context("wait for a manager").map(drop)
    }

    /// Asks a manager to end, and waits until it has; a leader hands over first.
    pub fn terminate(&mut self, host: usize) -> Result<()> {
        self.signal(host, Signal::SIGTERM)?;
        let mut process = self.hosts[host].process.take().context("it runs")?;
        wait_for("the manager ends", DEADLINE, || process.try_wait().context("wait for a manager")).map(drop)
    }

    /// Sends a signal, such as SIGSTOP.
    pub fn signal(&self, host: usize, signal: Signal) -> Result<()> {
        let process = self.hosts[host].process.as_ref().context("it runs")?;
        let pid = i32::try_from(process.id()).context("a PID")?;
        kill(Pid::from_raw(pid), signal).context("signal a manager")
    }

    /// A manager's resident memory.
    pub fn rss_kib(&self, host: usize) -> Result<u32> {
        rss_kib(self.hosts[host].process.as_ref().context("it runs")?.id())
    }

    /// Sets a manager's clock, so many seconds from the machine's.
    pub fn set_clock(&self, host: usize, seconds: i64) -> Result<()> {
        let (path, new) = (self.hosts[host].dir.with_extension("clock"), self.dir.path().join("clock.new"));
        fs::write(&new, format!("{seconds:+}\n")).and_then(|()| fs::rename(&new, &path)).context("set a clock")
    }

    /// What a manager has logged.
    pub fn log(&self, host: usize) -> String {
        fs::read_to_string(self.hosts[host].dir.with_extension("log")).unwrap_or_default()
    }

    /// How one manager sees the cluster.
    pub fn status(&self, host: usize) -> Result<v1::ClusterResponse> {
        let ask = async {
            let mut control = client::control(&[addr(host)], &self.admin).await?;
            anyhow::Ok(control.cluster(v1::ClusterRequest {}).await?.into_inner())
        };
        let timed = async { tokio::time::timeout(Duration::from_secs(5), ask).await };
        self.runtime.block_on(timed).context("ask for the cluster's status")?
    }

    /// The place of the leader: one that says so of itself, and whom another of those that run sees too if there are others.
    pub fn leader(&self) -> Result<usize> {
        self.leader_besides(&[])
    }

    /// The same without looking at some managers, such as those that others do not reach.
    pub fn leader_besides(&self, not: &[usize]) -> Result<usize> {
        let looked_at: Vec<usize> = (0..self.count()).filter(|host| self.hosts[*host].process.is_some() && !not.contains(host)).collect();
        wait_for("a leader", DEADLINE, || {
            let mut seen = Vec::new();
            for host in &looked_at {
                if let Ok(status) = self.status(*host) {
                    seen.push((name(*host), status.answered_by, status.leader));
                }
            }
            let leads = |host: &&usize| {
                let others = seen.iter().filter(|(_, _, leader)| *leader == name(**host)).count();
                others == seen.len() && seen.iter().any(|(asked, answered, _)| *asked == name(**host) && asked == answered)
            };
            Ok(looked_at.iter().find(leads).copied())
        })
        .map_err(|error| error.context(self.last_words()))
    }

    /// Waits until all vote, are reachable and have all that the leader has.
    pub fn wait_whole(&self) -> Result<()> {
        wait_for("all managers vote and have caught up", DEADLINE, || {
            let status = self.status(self.leader()?)?;
            let whole = |manager: &v1::ManagerStatus| manager.voter && manager.reachable && manager.matched >= status.committed;
            Ok((status.managers.len() == self.count() && status.managers.iter().all(whole)).then_some(()))
        })
        .map_err(|error| error.context(self.last_words()))
    }

    /// The ends of all logs.
    pub fn last_words(&self) -> String {
        let end = |host: usize| {
            let log = self.log(host);
            let from = log.lines().count().saturating_sub(15);
            let lines: Vec<&str> = log.lines().skip(from).collect();
            format!("{}:\n{}\n", self.hosts[host].name, lines.join("\n"))
        };
        (0..self.count()).map(end).collect()
    }
}

/// Refuses to go on when a manager has died by itself.
pub fn check_alive(managers: &mut Managers) -> Result<()> {
    for host in 0..managers.count() {
        if let Some(process) = managers.hosts[host].process.as_mut()
            && let Some(status) = process.try_wait().context("look at a manager")?
        {
            bail!("manager {} ended by itself, {status}:\n{}", managers.hosts[host].name, managers.log(host));
        }
    }
    Ok(())
}
