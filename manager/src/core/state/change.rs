//! A transaction: objects to put and to delete, each with the version it was decided on.
//!
//! Applied whole, or not at all when any object is no longer at the expected version. The same inputs give the same outcome on every
//! manager.

use rcluster_api::object::{Kind, Object};
use thiserror::Error;

use super::{Answered, State};

/// One object's change.
#[allow(clippy::large_enum_variant, reason = "changes are few, and almost all of them are puts")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object is to be this. `expected`: its version as it was read, 0 for a new one.
    Put { expected: u64, object: Object },
    /// The object is to go.
    Delete { expected: u64, kind: Kind, id: String },
    /// A request was answered so; with the changes that it has made.
    Answer(Answered),
}

impl Change {
    /// The kind and id of the object, and the version that it was decided on.
    fn target(&self) -> Option<(Kind, &str, u64)> {
        match self {
            Self::Put { object, expected } => Some((object.kind(), object.id(), *expected)),
            Self::Delete { kind, id, expected } => Some((*kind, id, *expected)),
            Self::Answer(_) => None,
        }
    }
}

/// Changes that happen together, at a time that the proposer chose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    pub at_ms: u64,
    pub changes: Vec<Change>,
}

/// An object was not at the version that the transaction was decided on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{} {id} is at version {actual}, not {expected}", kind.as_str())]
pub struct Conflict {
    pub kind: Kind,
    pub id: String,
    pub expected: u64,
    pub actual: u64,
}

impl State {
    /// Applies `transaction` as revision `revision`; on a conflict nothing changes.
    pub fn apply(&mut self, revision: u64, transaction: &Transaction) -> Result<(), Conflict> {
        for (kind, id, expected) in transaction.changes.iter().filter_map(Change::target) {
            let actual = self.version(kind, id);
            if actual != expected {
                return Err(Conflict { kind, id: id.to_owned(), expected, actual });
            }
        }
        for change in &transaction.changes {
            match change {
                Change::Put { object, .. } => self.write(revision, transaction.at_ms, object.clone()),
                Change::Delete { kind, id, .. } => self.delete(*kind, id),
                Change::Answer(answered) => {
                    self.answers.insert(Answered { revision, at_ms: transaction.at_ms, ..answered.clone() });
                }
            }
        }
        let keys = transaction.changes.iter().filter_map(Change::target).map(|(kind, id, _)| (kind, id.to_owned()));
        self.history.record(revision, keys.collect());
        self.revision = revision;
        Ok(())
    }

    /// Writes an object and stamps it.
    pub(super) fn write(&mut self, revision: u64, at_ms: u64, mut object: Object) {
        let stamp = object.stamp_mut();
        if stamp.version == 0 {
            stamp.created_at_ms = at_ms;
        }
        stamp.version = revision;
        stamp.updated_at_ms = at_ms;
        self.insert(object);
    }
}
