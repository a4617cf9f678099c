//! Messages to the other managers: for each, one task with one connection and a bounded queue, and one for snapshots. What does not fit
//! in the queue, or has no connection, is lost as on a wire, and raft is told that the peer cannot be reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use protobuf::Message as _;
use raft::eraftpb::Message;
use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_client::RaftClient;
use rcluster_base::backoff::Backoff;
use rcluster_base::scope::Scope;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

use super::{Inbox, Transport};
use crate::core::state::{State, encode_snapshot};
use crate::store::{Member, StoreConfig};

/// Set on the refusal of a manager that was removed.
pub const REMOVED: &str = "x-rcluster-removed";
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

/// What every batch says about itself.
#[derive(Debug, Clone)]
struct Envelope {
    from: u64,
    cluster_id: String,
    write_us: Arc<AtomicU64>,
    /// Where this manager is, as its tables say.
    sender: Arc<ArcSwap<v1::Introduction>>,
}

impl Envelope {
    fn sender(&self) -> Option<v1::Introduction> {
        Some((**self.sender.load()).clone())
    }
}

/// The connections to the peers; they end when this is dropped.
#[derive(Debug)]
pub struct Connections {
    envelope: Envelope,
    peers: BTreeMap<u64, Peer>,
    inbox: Inbox,
    runtime: Handle,
    security: Security,
}

#[derive(Debug)]
struct Peer {
    member: Member,
    queue: mpsc::Sender<Message>,
    snapshots: mpsc::Sender<(Message, State)>,
    connected: Arc<AtomicBool>,
    _scope: Scope,
}

/// Connections for the manager of `config`, on the runtime that this is called in.
pub fn connector(config: &StoreConfig, security: Security) -> impl FnOnce(Inbox) -> Connections + use<> {
    let envelope = Envelope { from: config.id, cluster_id: config.cluster_id.clone(), write_us: Arc::default(), sender: Arc::default() };
    let runtime = Handle::current();
    move |inbox| Connections { envelope, peers: BTreeMap::new(), inbox, runtime, security }
}

impl Connections {
    /// Begins to connect to a peer, and goes on trying for as long as it is one.
    fn peer(&self, member: Member) -> Peer {
        let _runtime = self.runtime.enter();
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        let (snapshots, to_send) = mpsc::channel(1);
        let connected = Arc::new(AtomicBool::new(false));
        let link = Link {
            envelope: self.envelope.clone(),
            to: member.id,
            name: member.name.clone(),
            addr: member.addr.clone(),
            security: self.security.clone(),
            inbox: self.inbox.clone(),
            connected: connected.clone(),
        };
        let mut scope = Scope::new();
        scope.spawn(link.clone().pump(messages));
        scope.spawn(link.pump_snapshots(to_send));
        Peer { member, queue, snapshots, connected, _scope: scope }
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
        let Some(peer) = self.peers.get(&to) else { return self.inbox.snapshot_sent(to, false) };
        // When one is on its way already, that one's end is reported, and raft asks for another if it needs it.
        if let Err(mpsc::error::TrySendError::Closed(_)) = peer.snapshots.try_send((message, state)) {
            self.inbox.snapshot_sent(to, false);
        }
    }

    fn set_members(&mut self, members: &[Member], version: u64) {
        if let Some(Member { name, addr, .. }) = members.iter().find(|member| member.id == self.envelope.from).cloned() {
            self.envelope.sender.store(Arc::new(v1::Introduction { name, addr, version }));
        }
        let inbox = &self.inbox;
        self.peers.retain(|id, peer| {
            let stays = members.contains(&peer.member);
            if !stays {
                // One that is on its way ends with the connection, and raft would wait for its report. Without one it hears nothing of this.
                inbox.snapshot_sent(*id, false);
            }
            stays
        });
        for member in members.iter().filter(|member| member.id != self.envelope.from) {
            if !self.peers.contains_key(&member.id) {
                let peer = self.peer(member.clone());
                self.peers.insert(member.id, peer);
            }
        }
    }

    fn set_write(&mut self, write_us: u64) {
        self.envelope.write_us.store(write_us, Ordering::Relaxed);
    }

    fn is_connected(&self, peer: u64) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.connected.load(Ordering::Relaxed))
    }
}

/// An endpoint for a manager's address.
fn endpoint(addr: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{addr}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// One peer's end of the tasks.
#[derive(Debug, Clone)]
struct Link {
    envelope: Envelope,
    to: u64,
    name: String,
    addr: String,
    security: Security,
    inbox: Inbox,
    connected: Arc<AtomicBool>,
}

impl Link {
    /// Keeps one stream to the peer open and puts the queue on it.
    async fn pump(self, mut messages: mpsc::Receiver<Message>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut told = None;
        loop {
            let why = match self.connect().await {
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
                    if status.metadata().contains_key(REMOVED) {
                        self.inbox.removed();
                        return;
                    }
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

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.security.connect(endpoint(&self.addr)?).await
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
        let Envelope { from, cluster_id, write_us, .. } = self.envelope.clone();
        let (messages, write_us, sender) = (Vec::new(), write_us.load(Ordering::Relaxed), self.envelope.sender());
        let mut batch = v1::RaftBatch { from, to: self.to, cluster_id, messages, write_us, sender };
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
        let channel = self.connect().await.map_err(|error| Status::unavailable(root_cause(&error)))?;
        debug!(peer = self.name, bytes = data.len(), "sending a snapshot");
        let Envelope { from, cluster_id, .. } = self.envelope.clone();
        let (to, sender) = (self.to, self.envelope.sender());
        let chunk = move |message: Vec<u8>, data: Vec<u8>| {
            let (cluster_id, sender) = (cluster_id.clone(), sender.clone());
            v1::SnapshotChunk { from, to, cluster_id, message, data, sender }
        };
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc::Receiver;

    use raft::eraftpb::MessageType;

    use super::*;
    use crate::store::Input;

    fn member(id: u64, addr: &str) -> Member {
        Member { id, name: format!("m{id}"), addr: addr.to_owned() }
    }

    fn lost(inputs: &Receiver<Input>) -> Vec<u64> {
        let lost = |input: Input| if let Input::SnapshotSent { to, arrived: false } = input { Some(to) } else { None };
        inputs.try_iter().filter_map(lost).collect()
    }

    #[tokio::test]
    async fn a_snapshot_that_is_on_its_way_to_a_peer_that_moves_is_reported_as_lost() {
        let (inbox, inputs) = Inbox::new();
        let config = StoreConfig::new("c".to_owned(), "m1".to_owned(), 1, Vec::new(), PathBuf::new());
        let mut connections = connector(&config, Security::plain())(inbox);
        let at = |addr: &str| [member(1, "127.0.0.1:1"), member(2, addr), member(3, "127.0.0.1:3")];
        connections.set_members(&at("127.0.0.1:2"), 1);
        let mut message = Message { to: 2, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        connections.send_snapshot(message, State::new("c".to_owned()));
        connections.set_members(&at("127.0.0.1:2"), 2);
        assert_eq!(lost(&inputs), Vec::<u64>::new());
        connections.set_members(&at("127.0.0.1:4"), 3);
        assert_eq!(lost(&inputs), [2]);
    }
}
