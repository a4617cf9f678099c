//! A transaction: objects to put and to delete, each with the version it was decided on.
//!
//! Applied whole, or not at all when any object is no longer at the expected version. The same inputs give the same outcome on every
//! manager.

use rcluster_api::object::{Kind, Object};
use thiserror::Error;

use super::State;

/// One object's change.
#[allow(clippy::large_enum_variant, reason = "changes are few, and almost all of them are puts")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object is to be this. `expected`: its version as it was read, 0 for a new one.
    Put { expected: u64, object: Object },
    /// The object is to go.
    Delete { expected: u64, kind: Kind, id: String },
}

impl Change {
    /// The kind and id of the object.
    pub fn target(&self) -> (Kind, &str) {
        match self {
            Self::Put { object, .. } => (object.kind(), object.id()),
            Self::Delete { kind, id, .. } => (*kind, id),
        }
    }

    fn expected(&self) -> u64 {
        match self {
            Self::Put { expected, .. } | Self::Delete { expected, .. } => *expected,
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
        for change in &transaction.changes {
            let (kind, id) = change.target();
            let actual = self.version(kind, id);
            if actual != change.expected() {
                return Err(Conflict { kind, id: id.to_owned(), expected: change.expected(), actual });
            }
        }
        for change in &transaction.changes {
            match change {
                Change::Put { object, .. } => self.write(revision, transaction.at_ms, object.clone()),
                Change::Delete { kind, id, .. } => self.delete(*kind, id),
            }
        }
        let keys = transaction.changes.iter().map(Change::target).map(|(kind, id)| (kind, id.to_owned()));
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
