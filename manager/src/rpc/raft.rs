//! The Raft service: other managers' messages, checked for where they come from, handed to the store's thread.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::validate;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_server::Raft;
use tokio::sync::Semaphore;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::auth;
use crate::core::authorize::Caller;
use crate::store::{Inbound, Introduction, Member, REMOVED, Standing};

/// Largest snapshot that is taken.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// Takes in what other managers send.
#[derive(Debug, Clone)]
pub struct RaftService {
    inbound: Inbound,
    /// Snapshots are held in memory until they are whole: one at a time.
    snapshots: Arc<Semaphore>,
}

/// What stands around messages.
#[derive(Debug, Clone, Copy)]
struct Envelope<'a> {
    from: u64,
    to: u64,
    cluster_id: &'a str,
    sender: Option<&'a v1::Introduction>,
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

/// The refusal, marked so that the manager ends.
fn removed(mut status: Status) -> Status {
    status.metadata_mut().insert(REMOVED, MetadataValue::from_static("true"));
    status
}

impl RaftService {
    /// A service that hands messages to `inbound`.
    pub fn new(inbound: Inbound) -> Self {
        Self { inbound, snapshots: Arc::new(Semaphore::new(1)) }
    }

    fn check(&self, envelope: &Envelope<'_>, caller: Option<&str>) -> Result<(), Status> {
        let Envelope { from, to, cluster_id, sender } = *envelope;
        let Inbound { id, cluster_id: own, .. } = &self.inbound;
        if cluster_id != own {
            return Err(refuse(format!(
                "manager {from} is of cluster {cluster_id}, this one of {own}: does the address belong to another cluster?"
            )));
        }
        // Before anything else: one that takes this manager for one that was here before a recovery is to know that it is none itself.
        if self.inbound.standing(from) == Standing::Removed {
            return Err(removed(refuse(format!("manager {from} was removed from the cluster"))));
        }
        if to != *id || from == *id {
            return Err(refuse(format!("a message from manager {from} to {to} has come to {id}")));
        }
        self.check_caller(from, caller)?;
        let v1::Introduction { name, addr, version } = sender.cloned().unwrap_or_default();
        let says_where = validate::check_address(&addr).is_ok();
        let said = Introduction { member: Member { id: from, name, addr: if says_where { addr } else { String::new() } }, version };
        match self.inbound.admit(said) {
            Standing::Member => Ok(()),
            Standing::Unknown if says_where => Ok(()),
            Standing::Unknown => Err(refuse(format!("manager {from} is not known here yet, and does not say where it is"))),
            Standing::Removed => Err(removed(refuse(format!("manager {from} was removed from the cluster")))),
        }
    }

    /// The id in the calling manager's certificate; none in plain text.
    fn caller<T>(&self, request: &Request<T>) -> Result<Option<String>, Status> {
        let state = self.inbound.state();
        let caller = match auth::peer(request, &state) {
            Ok(caller) => caller,
            Err(refusal) if auth::is_removed_manager(request, &state) => return Err(removed(refusal.into())),
            Err(refusal) => return Err(refusal.into()),
        };
        match caller {
            Caller::Anyone => Ok(None),
            Caller::Manager(id) => Ok(Some(id)),
            other @ (Caller::Agent(_) | Caller::User { .. }) => {
                Err(ApiError::new(ErrorCode::Forbidden, format!("only managers may do this; the caller is {}", other.describe())).into())
            }
        }
    }

    /// A manager speaks for itself alone. Of one that the tables do not know yet it is known only that it is one.
    fn check_caller(&self, from: u64, caller: Option<&str>) -> Result<(), Status> {
        let Some(caller) = caller else { return Ok(()) };
        let state = self.inbound.state();
        let other = state.managers().values().find(|manager| (manager.raft_id == from) != (manager.id.as_str() == caller));
        match other {
            None => Ok(()),
            Some(other) => {
                let whom = if other.raft_id == from { other.name.clone() } else { format!("manager {from}, and is {}", other.raft_id) };
                Err(ApiError::new(ErrorCode::Forbidden, format!("manager {caller} speaks for {whom}")).into())
            }
        }
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
        let caller = self.caller(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            let v1::RaftBatch { from, to, cluster_id, sender, .. } = &batch;
            let envelope = Envelope { from: *from, to: *to, cluster_id, sender: sender.as_ref() };
            self.check(&envelope, caller.as_deref())?;
            self.inbound.heard_write(batch.from, batch.write_us);
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
        let caller = self.caller(&request)?;
        let mut chunks = request.into_inner();
        let mut message = None;
        let mut data = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            let v1::SnapshotChunk { from, to, cluster_id, sender, .. } = &chunk;
            let envelope = Envelope { from: *from, to: *to, cluster_id, sender: sender.as_ref() };
            self.check(&envelope, caller.as_deref())?;
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
