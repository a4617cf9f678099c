//! A state with changes staged on top: what the passes of a plan read, and at the end the transaction that was gathered.

use std::collections::BTreeMap;

use rcluster_api::object::{Kind, Object};

use super::{Answered, Change, PENDING, State, Transaction};

/// The state as it would be.
#[derive(Debug, Clone)]
pub struct Draft {
    base: State,
    staged: State,
    at_ms: u64,
    changes: BTreeMap<(Kind, String), Change>,
    answers: Vec<Answered>,
}

impl Draft {
    /// Nothing staged yet on top of `base`.
    pub fn new(base: State, at_ms: u64) -> Self {
        Self { staged: base.clone(), base, at_ms, changes: BTreeMap::new(), answers: Vec::new() }
    }

    /// The state with everything staged so far.
    pub fn state(&self) -> &State {
        &self.staged
    }

    /// Stages an object, new or changed.
    pub fn put(&mut self, object: Object) {
        let kind = object.kind();
        let id = object.id().to_owned();
        let expected = self.base.version(kind, &id);
        // A version that no reader has seen: what was staged is not what a later request of the same batch was made for.
        self.staged.write(self.base.revision() + 1, self.at_ms, object.clone());
        self.changes.insert((kind, id), Change::Put { expected, object });
    }

    /// Stages a removal; of an object that was only staged, nothing remains.
    pub fn delete(&mut self, kind: Kind, id: &str) {
        let expected = self.base.version(kind, id);
        self.staged.delete(kind, id);
        if expected == 0 {
            self.changes.remove(&(kind, id.to_owned()));
        } else {
            self.changes.insert((kind, id.to_owned()), Change::Delete { expected, kind, id: id.to_owned() });
        }
    }

    /// Stages an answer.
    pub fn answer(&mut self, answered: Answered) {
        self.staged.answers.insert(Answered { at_ms: self.at_ms, revision: PENDING, ..answered.clone() });
        self.answers.push(answered);
    }

    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty()
    }

    /// What was staged, as one transaction.
    pub fn into_transaction(self) -> Transaction {
        let answers = self.answers.into_iter().map(Change::Answer);
        Transaction { at_ms: self.at_ms, changes: self.changes.into_values().chain(answers).collect() }
    }
}
