//! Messages to the other managers: one task and one bounded queue for each. What does not fit in the queue is lost, as on a wire, and
//! raft is told that the peer cannot be reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use rcluster_api::client::{MESSAGE_BYTES_MAX, endpoint};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_client::RaftClient;
use rcluster_base::backoff::Backoff;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, warn};

use super::node::is_snapshot;
use super::{Inbox, Input};
use crate::store::StoreConfig;

/// Messages that wait for a slow peer.
const QUEUE_MAX: usize = 1024;
/// Messages sent together.
const BATCH_MAX: usize = 128;
/// Bytes of one chunk of a snapshot.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest time for a snapshot to arrive.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// The queues to the peers.
#[derive(Debug)]
pub struct Peers {
    peers: BTreeMap<u64, Peer>,
    runtime: tokio::runtime::Handle,
    own: u64,
    cluster_id: String,
}

#[derive(Debug)]
struct Peer {
    queue: mpsc::Sender<Message>,
    channel: Channel,
    sending_snapshot: Arc<AtomicBool>,
}

impl Peers {
    /// Starts a task for each peer. Must be called inside a tokio runtime.
    pub fn connect(config: &StoreConfig) -> Self {
        let own = config.id;
        let cluster_id = config.cluster_id();
        let mut peers = BTreeMap::new();
        for member in config.members.iter().filter(|member| member.id != own) {
            let channel = match endpoint(&member.addr) {
                Ok(endpoint) => endpoint.connect_lazy(),
                Err(error) => {
                    warn!(peer = member.name, %error, "cannot be reached");
                    continue;
                }
            };
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(pump(own, member.id, cluster_id.clone(), channel.clone(), messages));
            peers.insert(member.id, Peer { queue, channel, sending_snapshot: Arc::default() });
        }
        Self { peers, runtime: tokio::runtime::Handle::current(), own, cluster_id }
    }

    /// Sends a message, or tells raft that it could not be sent.
    pub fn send(&self, inbox: &Inbox, message: Message) {
        let Some(peer) = self.peers.get(&message.to) else { return };
        if is_snapshot(&message) {
            self.send_snapshot(peer, inbox, message);
            return;
        }
        let to = message.to;
        if peer.queue.try_send(message).is_err() {
            drop(inbox.send(Input::Unreachable(to)));
        }
    }

    fn send_snapshot(&self, peer: &Peer, inbox: &Inbox, message: Message) {
        if peer.sending_snapshot.swap(true, Ordering::AcqRel) {
            return;
        }
        let (own, cluster_id, channel) = (self.own, self.cluster_id.clone(), peer.channel.clone());
        let (inbox, busy) = (inbox.clone(), peer.sending_snapshot.clone());
        self.runtime.spawn(async move {
            let to = message.to;
            let sent = tokio::time::timeout(SNAPSHOT_TIMEOUT, stream_snapshot(own, cluster_id, channel, message)).await;
            let arrived = matches!(sent, Ok(Ok(())));
            if !arrived {
                warn!(to, "a snapshot did not arrive");
            }
            busy.store(false, Ordering::Release);
            drop(inbox.send(Input::SnapshotSent { to, arrived }));
        });
    }
}

async fn stream_snapshot(own: u64, cluster_id: String, channel: Channel, mut message: Message) -> Result<(), tonic::Status> {
    let to = message.to;
    let data = message.mut_snapshot().take_data();
    let head = message.write_to_bytes().map_err(|error| tonic::Status::internal(error.to_string()))?;
    let chunk = move |message: Vec<u8>, data: Vec<u8>| v1::SnapshotChunk { from: own, to, cluster_id: cluster_id.clone(), message, data };
    let mut chunks = vec![chunk(head, Vec::new())];
    chunks.extend(data.chunks(CHUNK_BYTES).map(|part| chunk(Vec::new(), part.to_vec())));
    let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
    client.send_snapshot(tokio_stream::iter(chunks)).await.map(|_| ())
}

/// Keeps one stream to a peer open and puts the queue on it.
async fn pump(own: u64, to: u64, cluster_id: String, channel: Channel, mut messages: mpsc::Receiver<Message>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    loop {
        let (sender, receiver) = mpsc::channel::<v1::RaftBatch>(4);
        let mut client = RaftClient::new(channel.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let stream = ReceiverStream::new(receiver).map(|batch| batch);
        let feed = async {
            let mut taken = Vec::with_capacity(BATCH_MAX);
            while messages.recv_many(&mut taken, BATCH_MAX).await > 0 {
                let encoded = taken.drain(..).filter_map(|message| message.write_to_bytes().ok()).collect();
                let batch = v1::RaftBatch { from: own, to, cluster_id: cluster_id.clone(), messages: encoded };
                if sender.send(batch).await.is_err() {
                    return true;
                }
            }
            false
        };
        let more = tokio::select! {
            more = feed => more,
            ended = client.send(stream) => {
                debug!(to, ended = ?ended.map(|_| ()), "stream to a manager ended");
                true
            }
        };
        if !more {
            return;
        }
        tokio::time::sleep(backoff.delay()).await;
        // What waited meanwhile is old news to raft.
        while messages.try_recv().is_ok() {}
    }
}
