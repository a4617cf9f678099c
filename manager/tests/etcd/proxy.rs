//! A way to an etcd that can be made slow, or to pass nothing on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rcluster_base::scope::Scope;
use rcluster_manager::store::etcd::Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::server::Server;

/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;

/// How it passes on.
#[derive(Debug, Default)]
struct Rules {
    /// Nothing passes.
    is_closed: bool,
    /// It closes when etcd is asked for these bytes.
    trap: Vec<u8>,
    /// Bytes that come from etcd in a second, of each connection; 0: as many as there are.
    pace: u32,
}

/// Connections to it go on to etcd. They end with it.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    rules: watch::Sender<Rules>,
    _connections: Scope,
}

impl Proxy {
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (addr, to) = (listener.local_addr().unwrap(), server.endpoint());
        let (rules, seen) = watch::channel(Rules::default());
        let mut connections = Scope::new();
        connections.spawn(accept(listener, to, rules.clone(), seen));
        Self { addr, rules, _connections: connections }
    }

    /// The server, by this way.
    pub fn access(&self, server: &Server) -> Access {
        Access { address: format!("etcd://{}/test", self.addr).parse().unwrap(), ..server.access() }
    }

    pub fn close(&self) {
        self.rules.send_modify(|rules| rules.is_closed = true);
    }

    /// Closes it before etcd is asked for these bytes.
    pub fn close_before(&self, bytes: &str) {
        self.rules.send_modify(|rules| rules.trap = bytes.as_bytes().to_vec());
    }

    pub async fn closed(&self) {
        self.rules.subscribe().wait_for(|rules| rules.is_closed).await.unwrap();
    }

    /// What was held back passes, and all that follows.
    pub fn open(&self) {
        self.rules.send_modify(|rules| (rules.is_closed, rules.trap) = (false, Vec::new()));
    }

    pub fn slow_down(&self, bytes_a_second: u32) {
        self.rules.send_modify(|rules| rules.pace = bytes_a_second);
    }
}

async fn accept(listener: TcpListener, to: String, rules: watch::Sender<Rules>, seen: watch::Receiver<Rules>) {
    let mut connections = Scope::new();
    while let Ok((near, _)) = listener.accept().await {
        let (to, rules, seen) = (to.clone(), rules.clone(), seen.clone());
        connections.spawn(async move {
            // etcd is away: so is this.
            let Ok(far) = TcpStream::connect(to).await else { return };
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = ask(near_read, far_write, rules, seen.clone()) => {}
                () = answer(far_read, near_write, seen) => {}
            }
        });
    }
}

async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, rules: watch::Sender<Rules>, mut seen: watch::Receiver<Rules>) {
    let (mut bytes, mut said) = (vec![0; CHUNK], Vec::new());
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        // The bytes may come in two chunks.
        said.drain(..said.len().saturating_sub(CHUNK));
        said.extend_from_slice(&bytes[..length]);
        rules.send_if_modified(|rules| {
            let is_said = !rules.trap.is_empty() && said.windows(rules.trap.len()).any(|part| part == rules.trap);
            rules.is_closed |= is_said;
            is_said
        });
        if seen.wait_for(|rules| !rules.is_closed).await.is_err() || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut seen: watch::Receiver<Rules>) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let Ok(pace) = seen.wait_for(|rules| !rules.is_closed).await.map(|rules| rules.pace) else { return };
        if pace > 0 {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / f64::from(pace))).await;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
