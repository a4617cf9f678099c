//! Whether what clients saw of a store can have happened one deed after the other: linearizability (Herlihy and Wing 1990).
//!
//! In: what each client asked, what it was answered, and when. Out: [`Broken`], the deeds that do not fit together, or nothing. Never: IO,
//! clocks, chance; a verdict about deeds that it was not told of.
//!
//! Two checkers, each of which finds what the other cannot. [`witness::check`] believes the revisions that the store gives its answers,
//! takes n log n, and holds every answer against every other. [`search::check`] does not look at revisions: it searches for an order, key
//! by key, and so tells when the revisions themselves are made up.

pub mod search;
pub mod witness;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Names an object. Objects are registers: each holds a value, or none yet.
pub type Key = u32;
/// What is written; each write of a history must have a value of its own, so that a reader knows whose it saw.
pub type Value = u64;
/// The store's count of commits; an object's version is the revision that wrote it last.
pub type Revision = u64;

/// An object as a reader found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    pub version: Revision,
    pub value: Value,
}

/// One call of one client, by a clock that all clients share and that never steps back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub client: u32,
    pub called: Duration,
    /// When the answer was there. Of an outcome that is unknown it says nothing.
    pub ended: Duration,
    pub deed: Deed,
}

/// What was asked, and what came of it. A read without an answer is no part of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Write {
        key: Key,
        value: Value,
        /// Only if the object still is what was seen; else whatever it is.
        expected: Option<Seen>,
        outcome: Outcome,
    },
    /// All these objects at one revision.
    Read { revision: Revision, objects: BTreeMap<Key, Option<Seen>> },
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Written(Revision),
    /// It held this value already, as of this revision.
    Unchanged(Revision),
    /// It was not what was expected. Nothing was written.
    Conflict,
    /// No answer, or one that says that nobody knows: it may happen at any later time, once, or never.
    Unknown,
}

/// A history that cannot have happened: why, and the deeds that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub why: String,
    pub operations: Vec<Operation>,
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.why)?;
        for Operation { client, called, ended, deed } in &self.operations {
            write!(formatter, "\n  client {client}, {:.6} to ", called.as_secs_f64())?;
            if deed.is_unknown() {
                write!(formatter, "…: {deed:?}")?;
            } else {
                write!(formatter, "{:.6}: {deed:?}", ended.as_secs_f64())?;
            }
        }
        Ok(())
    }
}

impl Deed {
    /// Whether it may have happened at any later time, or never.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Write { outcome: Outcome::Unknown, .. })
    }
}
