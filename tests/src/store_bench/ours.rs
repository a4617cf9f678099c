//! Three managers on loopback, made as a user makes them: `init`, then two that join.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcluster_api::client;
use rcluster_api::tls::{Credentials, Security};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use serde::Deserialize;
use tonic::transport::Channel;

use super::{Connection, Contender};
use crate::processes::{Process, loopback};

#[derive(Debug)]
pub struct Ours {
    security: Security,
    leader: String,
    processes: Vec<Process>,
}

/// What `init --json` prints.
#[derive(Deserialize)]
struct Founded {
    manager_token: String,
    admin_file: PathBuf,
}

#[derive(Deserialize)]
struct Access {
    credentials: Option<Credentials>,
}

impl Ours {
    pub async fn start(program: &Path, dir: &Path, tls: bool) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let flags: &[&str] = if tls { &[] } else { &["--insecure"] };
        let addrs: Vec<String> = (0..3).map(|_| format!("{}:7443", loopback())).collect();
        let output = Command::new(program)
            .args(["init", "--name", "m1", "--advertise", &addrs[0], "--json", "--state-dir"])
            .arg(dir.join("m1"))
            .args(flags)
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
        let founded: Founded = serde_json::from_slice(&output.stdout)?;
        let access: Access = serde_json::from_slice(&std::fs::read(&founded.admin_file)?)?;
        let security = access.credentials.map_or_else(|| Ok(Security::plain()), Security::new)?;
        let mut processes = Vec::new();
        for (name, addr) in ["m1", "m2", "m3"].iter().zip(&addrs) {
            let log = File::create(dir.join(format!("{name}.log")))?;
            let mut command = Command::new(program);
            command.args(["run", "--listen", addr, "--state-dir"]).arg(dir.join(name)).args(flags);
            if *name != "m1" {
                command.args(["--name", name, "--join", &addrs[0]]);
                if tls {
                    command.env("RCLUSTER_JOIN_TOKEN", &founded.manager_token);
                }
            }
            processes.push(Process::new(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?));
        }
        let mut leader = None;
        for _ in 0..600 {
            leader = Self::find_leader(&addrs, &security).await;
            if leader.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let leader = leader.context("the managers do not settle within 30 s")?;
        Ok(Self { security, leader, processes })
    }

    /// Once all three vote.
    async fn find_leader(addrs: &[String], security: &Security) -> Option<String> {
        let mut control = client::control(addrs, security).await.ok()?;
        let status = control.cluster(v1::ClusterRequest {}).await.ok()?.into_inner();
        let voters = status.managers.iter().filter(|manager| manager.voter && manager.reachable).count();
        let leader = status.managers.into_iter().find(|manager| manager.name == status.leader)?;
        (voters == addrs.len()).then_some(leader.addr)
    }

    #[allow(clippy::print_stdout, reason = "the table is the product")]
    pub fn print_memory(&self) -> Result<()> {
        let sizes: Result<Vec<String>> =
            self.processes.iter().map(|process| Ok(format!("{:.1}", f64::from(process.rss_kib()?) / 1024.0))).collect();
        println!("{}: the managers have {} MiB (RSS) afterwards", self.name(), sizes?.join(", "));
        Ok(())
    }
}

impl Contender for Ours {
    type Connection = ControlClient<Channel>;

    fn name(&self) -> &'static str {
        if self.security.is_plain() { "ours, --insecure" } else { "ours (TLS)" }
    }

    fn processes(&self) -> &[Process] {
        &self.processes
    }

    async fn connect(&self) -> Result<Self::Connection> {
        Ok(client::control(std::slice::from_ref(&self.leader), &self.security).await?)
    }
}

impl Connection for ControlClient<Channel> {
    async fn put(&mut self, key: usize, value: Vec<u8>) -> Result<()> {
        let spec = v1::DataSpec {
            name: format!("k{key}"),
            kind: v1::DataKind::Config.into(),
            payload: Some(v1::Payload { bytes: value }),
            ..v1::DataSpec::default()
        };
        let spec = v1::Spec { kind: Some(v1::spec::Kind::Data(spec)), expected_version: 0 };
        self.apply(v1::ApplyRequest { specs: vec![spec] }).await?;
        Ok(())
    }

    async fn get(&mut self, key: usize) -> Result<()> {
        let asked = v1::ListRequest { kind: v1::Kind::Config.into(), name: format!("k{key}"), ..v1::ListRequest::default() };
        let answer = self.list(asked).await?.into_inner();
        ensure!(answer.objects.len() == 1, "config k{key} is not there");
        Ok(())
    }
}
