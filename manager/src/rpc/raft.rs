//! The Raft service: other managers' messages, checked for where they come from, handed to the store's thread.

use protobuf::Message as _;
use raft::eraftpb::Message;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_server::Raft;
use tonic::{Request, Response, Status, Streaming};

use crate::store::Inbound;

/// Largest snapshot that is taken.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// Takes in what other managers send.
#[derive(Debug, Clone)]
pub struct RaftService {
    inbound: Inbound,
}

impl RaftService {
    /// A service that hands messages to `inbound`.
    pub fn new(inbound: Inbound) -> Self {
        Self { inbound }
    }

    fn check(&self, from: u64, to: u64, cluster_id: &str) -> Result<(), Status> {
        let refuse = |why: String| Err(Status::from(ApiError::new(ErrorCode::Invalid, why)));
        if cluster_id != self.inbound.cluster_id {
            return refuse(format!(
                "manager {from} is of cluster {cluster_id}, this one of {}: their --initial-cluster differ",
                self.inbound.cluster_id
            ));
        }
        if to != self.inbound.id || !self.inbound.members.contains(&from) {
            return refuse(format!("a message from manager {from} to {to} has come to {}", self.inbound.id));
        }
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Result<Message, Status> {
    Message::parse_from_bytes(bytes)
        .map_err(|error| ApiError::new(ErrorCode::Invalid, format!("a raft message cannot be read: {error}")).into())
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn send(&self, request: Request<Streaming<v1::RaftBatch>>) -> Result<Response<v1::RaftSendResponse>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.check(batch.from, batch.to, &batch.cluster_id)?;
            for bytes in batch.messages {
                self.inbound.step(read(&bytes)?);
            }
        }
        Ok(Response::new(v1::RaftSendResponse {}))
    }

    async fn send_snapshot(&self, request: Request<Streaming<v1::SnapshotChunk>>) -> Result<Response<v1::SnapshotResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut message = None;
        let mut data = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            self.check(chunk.from, chunk.to, &chunk.cluster_id)?;
            if !chunk.message.is_empty() {
                message = Some(read(&chunk.message)?);
            }
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(ApiError::new(ErrorCode::TooLarge, format!("a snapshot of more than {SNAPSHOT_BYTES_MAX} bytes")).into());
            }
            data.extend(chunk.data);
        }
        let mut message = message.ok_or_else(|| Status::from(ApiError::new(ErrorCode::Invalid, "a snapshot without its message")))?;
        message.mut_snapshot().set_data(data.into());
        self.inbound.step(message);
        Ok(Response::new(v1::SnapshotResponse {}))
    }
}
