//! Transactions and snapshots as bytes: what stands in the log and what is sent to a manager that fell behind.

use prost::Message;
use rcluster_api::object::Object;
use rcluster_api::wire::convert::{self, WireError};
use rcluster_api::wire::v1;
use thiserror::Error;

use super::{Answered, Change, History, State, Transaction};

/// The format that this version writes; it reads this and older ones.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// Bytes that do not hold what this version writes.
#[derive(Debug, Error)]
pub enum CodecError {
    #[error("decode protobuf")]
    Protobuf(#[from] prost::DecodeError),
    #[error("decode object")]
    Object(#[from] WireError),
    #[error("the snapshot has format {0}, newer than this version reads ({SNAPSHOT_FORMAT}); upgrade this manager")]
    Format(u32),
}

/// The wire form of a transaction; the caller adds who proposed it.
pub fn encode_transaction(transaction: &Transaction) -> v1::Transaction {
    let changes = transaction
        .changes
        .iter()
        .map(|change| match change {
            Change::Put { expected, object } => {
                v1::Change { expected_version: *expected, kind: Some(v1::change::Kind::Put(object.clone().into())) }
            }
            Change::Delete { expected, kind, id } => v1::Change {
                expected_version: *expected,
                kind: Some(v1::change::Kind::Delete(v1::Delete { kind: v1::Kind::from(*kind).into(), id: id.clone() })),
            },
            Change::Answer(answered) => {
                v1::Change { expected_version: 0, kind: Some(v1::change::Kind::Answer(answered_wire(answered.clone()))) }
            }
        })
        .collect();
    v1::Transaction { at_ms: transaction.at_ms, changes, ..v1::Transaction::default() }
}

/// A transaction from its wire form.
pub fn decode_transaction(wire: v1::Transaction) -> Result<Transaction, CodecError> {
    let changes = wire
        .changes
        .into_iter()
        .map(|change| {
            let expected = change.expected_version;
            Ok(match change.kind.ok_or(WireError { field: "change" })? {
                v1::change::Kind::Put(object) => Change::Put { expected, object: Object::try_from(object)? },
                v1::change::Kind::Delete(v1::Delete { kind, id }) => Change::Delete { expected, kind: convert::kind(kind)?, id },
                v1::change::Kind::Answer(wire) => Change::Answer(answered(wire)),
            })
        })
        .collect::<Result<_, WireError>>()?;
    Ok(Transaction { at_ms: wire.at_ms, changes })
}

fn answered_wire(answered: Answered) -> v1::Answered {
    let Answered { id, digest, answer, at_ms, revision } = answered;
    v1::Answered { id, digest, answer, at_ms, revision }
}

fn answered(wire: v1::Answered) -> Answered {
    let v1::Answered { id, digest, answer, at_ms, revision } = wire;
    Answered { id, digest, answer, at_ms, revision }
}

/// The whole state as bytes.
pub fn encode_snapshot(state: &State) -> Vec<u8> {
    let snapshot = v1::StateSnapshot {
        format: SNAPSHOT_FORMAT,
        revision: state.revision(),
        objects: state.objects().map(Into::into).collect(),
        cluster_id: state.cluster_id().to_owned(),
        answers: state.answers().iter().map(|answered| answered_wire((**answered).clone())).collect(),
    };
    snapshot.encode_to_vec()
}

/// The state from [`encode_snapshot`]'s bytes.
pub fn decode_snapshot(bytes: &[u8]) -> Result<State, CodecError> {
    let snapshot = v1::StateSnapshot::decode(bytes)?;
    if snapshot.format > SNAPSHOT_FORMAT {
        return Err(CodecError::Format(snapshot.format));
    }
    let mut state = State::new(snapshot.cluster_id);
    state.revision = snapshot.revision;
    state.history = History::new(snapshot.revision);
    for object in snapshot.objects {
        state.insert(Object::try_from(object)?);
    }
    for wire in snapshot.answers {
        state.answers.insert(answered(wire));
    }
    Ok(state)
}
