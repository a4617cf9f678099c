//! Messages to the other managers: for each, one task with one connection and a bounded queue, and one for snapshots. What does not fit
//! in the queue, or has no connection, is lost as on a wire, and raft is told that the peer cannot be reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_client::RaftClient;
use rcluster_base::backoff::Backoff;
use rcluster_base::scope::Scope;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

use super::{Inbox, StoreError, Transport};
use crate::core::state::{State, encode_snapshot};
use crate::store::StoreConfig;

/// Messages that wait for a slow peer.
const QUEUE_MAX: usize = 256;
/// Batches on the stream: one on the way, one behind it.
const BATCHES_MAX: usize = 2;
/// A batch is closed when it has so many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of one chunk of a snapshot.
const CHUNK_BYTES: usize = 256 << 10;
/// Longest time for a snapshot to arrive.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection that answers nothing for their sum is given up: a partition that heals is then over within a second.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause before the next try to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// The addresses of the peers, checked.
#[derive(Debug)]
pub struct Peers {
    envelope: Envelope,
    endpoints: BTreeMap<u64, (String, Endpoint)>,
}

/// What every batch says about itself.
#[derive(Debug, Clone)]
struct Envelope {
    from: u64,
    cluster_id: String,
}

/// The connections to the peers; they end when this is dropped.
#[derive(Debug)]
pub struct Connections {
    peers: BTreeMap<u64, Peer>,
    inbox: Inbox,
    _scope: Scope,
}

#[derive(Debug)]
struct Peer {
    queue: mpsc::Sender<Message>,
    snapshots: mpsc::Sender<(Message, State)>,
    connected: Arc<AtomicBool>,
}

impl Peers {
    /// The peers of this manager.
    pub fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        let mut endpoints = BTreeMap::new();
        for member in config.members.iter().filter(|member| member.id != config.id) {
            let endpoint = Endpoint::from_shared(format!("http://{}", member.addr)).map_err(|error| StoreError::Address {
                name: member.name.clone(),
                addr: member.addr.clone(),
                why: error.to_string(),
            })?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true);
            endpoints.insert(member.id, (member.name.clone(), endpoint));
        }
        Ok(Self { envelope: Envelope { from: config.id, cluster_id: config.cluster_id() }, endpoints })
    }

    /// Starts to connect. Must be called inside a tokio runtime.
    pub fn connect(self, inbox: Inbox) -> Connections {
        let mut scope = Scope::new();
        let mut peers = BTreeMap::new();
        for (id, (name, endpoint)) in self.endpoints {
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            let (snapshots, to_send) = mpsc::channel(1);
            let connected = Arc::new(AtomicBool::new(false));
            let link = Link { envelope: self.envelope.clone(), to: id, name, endpoint, inbox: inbox.clone(), connected: connected.clone() };
            scope.spawn(link.clone().pump(messages));
            scope.spawn(link.pump_snapshots(to_send));
            peers.insert(id, Peer { queue, snapshots, connected });
        }
        Connections { peers, inbox, _scope: scope }
    }
}

impl Transport for Connections {
    fn send(&mut self, message: Message) {
        let to = message.to;
        let Some(peer) = self.peers.get(&to) else { return };
        if !peer.connected.load(Ordering::Relaxed) || peer.queue.try_send(message).is_err() {
            self.inbox.unreachable(to);
        }
    }

    fn send_snapshot(&mut self, message: Message, state: State) {
        let to = message.to;
        let Some(peer) = self.peers.get(&to) else { return };
        // When one is on its way already, that one's end is reported, and raft asks for another if it needs it.
        if let Err(mpsc::error::TrySendError::Closed(_)) = peer.snapshots.try_send((message, state)) {
            self.inbox.snapshot_sent(to, false);
        }
    }

    fn is_connected(&self, peer: u64) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.connected.load(Ordering::Relaxed))
    }
}

/// One peer's end of the tasks.
#[derive(Debug, Clone)]
struct Link {
    envelope: Envelope,
    to: u64,
    name: String,
    endpoint: Endpoint,
    inbox: Inbox,
    connected: Arc<AtomicBool>,
}

impl Link {
    /// Keeps one stream to the peer open and puts the queue on it.
    async fn pump(self, mut messages: mpsc::Receiver<Message>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut told = None;
        loop {
            let why = match self.endpoint.connect().await {
                Ok(channel) => {
                    info!(peer = self.name, "connected");
                    // What waited meanwhile is old news to raft.
                    while messages.try_recv().is_ok() {}
                    self.connected.store(true, Ordering::Relaxed);
                    backoff.reset();
                    told = None;
                    let ended = self.stream(channel, &mut messages).await;
                    self.connected.store(false, Ordering::Relaxed);
                    self.inbox.unreachable(self.to);
                    let Some(status) = ended else { return };
                    root_cause(&status)
                }
                Err(error) => root_cause(&error),
            };
            if told.as_ref() != Some(&why) {
                warn!(peer = self.name, why, "not connected; trying on");
                told = Some(why);
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Streams until the connection ends, and says why; `None` when the queue has ended.
    async fn stream(&self, channel: Channel, messages: &mut mpsc::Receiver<Message>) -> Option<Status> {
        let (sender, receiver) = mpsc::channel(BATCHES_MAX);
        let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let feed = async {
            while let Some(first) = messages.recv().await {
                let batch = self.batch(first, messages);
                if sender.send(batch).await.is_err() {
                    // The other arm says why.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = feed => None,
            ended = client.send(ReceiverStream::new(receiver)) => {
                Some(ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream")))
            }
        }
    }

    fn batch(&self, first: Message, more: &mut mpsc::Receiver<Message>) -> v1::RaftBatch {
        let mut batch =
            v1::RaftBatch { from: self.envelope.from, to: self.to, cluster_id: self.envelope.cluster_id.clone(), messages: Vec::new() };
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message.write_to_bytes() {
                Ok(encoded) => {
                    bytes += encoded.len();
                    batch.messages.push(encoded);
                }
                Err(error) => warn!(peer = self.name, %error, "a message cannot be encoded"),
            }
            next = if bytes < BATCH_BYTES { more.try_recv().ok() } else { None };
        }
        batch
    }

    /// Sends snapshots, one at a time.
    async fn pump_snapshots(self, mut snapshots: mpsc::Receiver<(Message, State)>) {
        while let Some((message, state)) = snapshots.recv().await {
            let why = match tokio::time::timeout(SNAPSHOT_TIMEOUT, self.send_snapshot(message, state)).await {
                Ok(Ok(())) => None,
                Ok(Err(status)) => Some(status.message().to_owned()),
                Err(_) => Some(format!("it took longer than {} s", SNAPSHOT_TIMEOUT.as_secs())),
            };
            if let Some(why) = &why {
                warn!(peer = self.name, why, "a snapshot did not arrive");
            }
            self.inbox.snapshot_sent(self.to, why.is_none());
        }
    }

    async fn send_snapshot(&self, message: Message, state: State) -> Result<(), Status> {
        let data = tokio::task::spawn_blocking(move || encode_snapshot(&state));
        let data = bytes::Bytes::from(data.await.map_err(|error| Status::internal(error.to_string()))?);
        let head = message.write_to_bytes().map_err(|error| Status::internal(error.to_string()))?;
        let channel = self.endpoint.connect().await.map_err(|error| Status::unavailable(root_cause(&error)))?;
        debug!(peer = self.name, bytes = data.len(), "sending a snapshot");
        let Envelope { from, cluster_id } = self.envelope.clone();
        let to = self.to;
        let chunk = move |message: Vec<u8>, data: Vec<u8>| v1::SnapshotChunk { from, to, cluster_id: cluster_id.clone(), message, data };
        let parts = (0..data.len()).step_by(CHUNK_BYTES).map(move |start| data.slice(start..data.len().min(start + CHUNK_BYTES)));
        let chunks = std::iter::once((head, bytes::Bytes::new())).chain(parts.map(|part| (Vec::new(), part)));
        let stream = tokio_stream::iter(chunks.map(move |(message, data)| chunk(message, data.to_vec())));
        RaftClient::new(channel).send_snapshot(stream).await.map(|_| ())
    }
}

/// The innermost cause: what a person needs to read.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
