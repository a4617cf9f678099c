//! The Raft service: other managers' messages, checked for where they come from, handed to the store's thread.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_server::Raft;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use crate::store::Inbound;

/// Largest snapshot that is taken.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// Takes in what other managers send.
#[derive(Debug, Clone)]
pub struct RaftService {
    inbound: Inbound,
    /// Snapshots are held in memory until they are whole: one at a time.
    snapshots: Arc<Semaphore>,
}

/// The call that a message came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Stream,
    Snapshot,
}

fn refuse(why: String) -> Status {
    ApiError::new(ErrorCode::Invalid, why).into()
}

impl RaftService {
    /// A service that hands messages to `inbound`.
    pub fn new(inbound: Inbound) -> Self {
        Self { inbound, snapshots: Arc::new(Semaphore::new(1)) }
    }

    fn check(&self, from: u64, to: u64, cluster_id: &str) -> Result<(), Status> {
        let Inbound { id, cluster_id: own, members, .. } = &self.inbound;
        if cluster_id != own {
            return Err(refuse(format!(
                "manager {from} is of cluster {cluster_id}, this one of {own}: were they given the same --initial-cluster?"
            )));
        }
        if to != *id || from == *id || !members.contains(&from) {
            return Err(refuse(format!(
                "a message from manager {from} to {to} has come to {id}, whose cluster has the managers {members:?}"
            )));
        }
        Ok(())
    }

    /// A message that a member may send: its own, to us, and not one that makes this manager propose or hand over for another.
    fn read(&self, from: u64, bytes: &[u8], way: Way) -> Result<Message, Status> {
        let message = Message::parse_from_bytes(bytes).map_err(|error| refuse(format!("a raft message cannot be read: {error}")))?;
        let kind = message.get_msg_type();
        let fits = match kind {
            MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse => way == Way::Stream && message.term > 0,
            MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => way == Way::Stream && message.entries.len() == 1,
            MessageType::MsgSnapshot => way == Way::Snapshot && message.term > 0,
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader => false,
        };
        if !fits || message.from != from || message.to != self.inbound.id {
            return Err(refuse(format!("manager {from} sent a {kind:?} from {} to {}, which is not taken", message.from, message.to)));
        }
        Ok(message)
    }

    fn step(&self, message: Message) -> Result<(), Status> {
        self.inbound.step(message).map_err(|stopped| Status::unavailable(stopped.to_string()))
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn send(&self, request: Request<Streaming<v1::RaftBatch>>) -> Result<Response<v1::RaftSendResponse>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.check(batch.from, batch.to, &batch.cluster_id)?;
            for bytes in batch.messages {
                self.step(self.read(batch.from, &bytes, Way::Stream)?)?;
            }
        }
        Ok(Response::new(v1::RaftSendResponse {}))
    }

    async fn send_snapshot(&self, request: Request<Streaming<v1::SnapshotChunk>>) -> Result<Response<v1::SnapshotResponse>, Status> {
        let Ok(_alone) = self.snapshots.try_acquire() else {
            return Err(Status::resource_exhausted("another snapshot is on its way to this manager"));
        };
        let mut chunks = request.into_inner();
        let mut message = None;
        let mut data = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            self.check(chunk.from, chunk.to, &chunk.cluster_id)?;
            if message.is_none() {
                message = Some(self.read(chunk.from, &chunk.message, Way::Snapshot)?);
            }
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(ApiError::new(ErrorCode::TooLarge, format!("a snapshot of more than {SNAPSHOT_BYTES_MAX} bytes")).into());
            }
            data.extend_from_slice(&chunk.data);
        }
        let mut message = message.ok_or_else(|| refuse("a snapshot without its message".to_owned()))?;
        message.mut_snapshot().set_data(data.into());
        self.step(message)?;
        Ok(Response::new(v1::SnapshotResponse {}))
    }
}
