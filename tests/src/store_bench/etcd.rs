//! Three members of Debian's etcd on loopback, and the calls of its API that are needed here (etcd 3.4, `rpc.proto`).

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Connection, Contender};
use crate::processes::{Process, loopback};

#[derive(Debug)]
pub struct Etcd {
    leader: String,
    processes: Vec<Process>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

/// A message that is not looked at.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

async fn call<Q, A>(channel: &mut Channel, path: &'static str, message: Q) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.context("etcd is not there")?;
    let codec: ProstCodec<Q, A> = ProstCodec::default();
    let answer = grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(path), codec).await;
    Ok(answer.with_context(|| format!("etcd: {path}"))?.into_inner())
}

impl Etcd {
    /// `None`: it is not installed.
    pub async fn start(dir: &Path) -> Result<Option<Self>> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        std::fs::create_dir_all(dir)?;
        let hosts = [loopback(), loopback(), loopback()];
        let names = ["e1", "e2", "e3"];
        let url = |host: &str, port: u16| format!("http://{host}:{port}");
        let all: Vec<String> = names.iter().zip(&hosts).map(|(name, host)| format!("{name}={}", url(host, 2380))).collect();
        let start = |name: &str, host: &str| -> Result<Child> {
            let log = File::create(dir.join(format!("{name}.log")))?;
            let (clients, peers) = (url(host, 2379), url(host, 2380));
            let mut command = Command::new("etcd");
            command.args(["--name", name, "--data-dir"]).arg(dir.join(name));
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
            Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
        };
        let mut processes = Vec::new();
        for (name, host) in names.iter().zip(&hosts) {
            processes.push(Process::new(start(name, host).context("start etcd")?));
        }
        let members: Vec<String> = hosts.iter().map(|host| url(host, 2379)).collect();
        let mut leader = None;
        for _ in 0..600 {
            leader = Self::find_leader(&members).await;
            if leader.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let leader = leader.context("etcd elects no leader within 30 s")?;
        Ok(Some(Self { leader, processes }))
    }

    async fn find_leader(members: &[String]) -> Option<String> {
        for member in members {
            let mut channel = Endpoint::from_shared(member.clone()).ok()?.connect().await.ok()?;
            let status: StatusResponse = call(&mut channel, "/etcdserverpb.Maintenance/Status", Nothing {}).await.ok()?;
            if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                return Some(member.clone());
            }
        }
        None
    }
}

impl Contender for Etcd {
    type Connection = Channel;

    fn name(&self) -> &'static str {
        "etcd 3.4"
    }

    fn processes(&self) -> &[Process] {
        &self.processes
    }

    async fn connect(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.leader.clone())?.tcp_nodelay(true).connect().await?)
    }
}

impl Connection for Channel {
    async fn put(&mut self, key: usize, value: Vec<u8>) -> Result<()> {
        let Nothing {} = call(self, "/etcdserverpb.KV/Put", PutRequest { key: key.to_string().into_bytes(), value }).await?;
        Ok(())
    }

    async fn get(&mut self, key: usize) -> Result<()> {
        let answer: RangeResponse = call(self, "/etcdserverpb.KV/Range", RangeRequest { key: key.to_string().into_bytes() }).await?;
        ensure!(answer.count == 1, "key {key} is not there");
        Ok(())
    }
}
