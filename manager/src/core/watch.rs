//! What a watcher is told next.
//!
//! In: the tables as they are now, again and again, and where the watcher stands. Out: the objects that changed since, in pieces of bounded
//! size. Each piece names the range of revisions that it covers, and the ranges follow each other without a gap; what changed several
//! times in a range is told once, as it is at the range's end. Never: the cluster's own object, or the bytes of a secret.

use std::collections::BTreeSet;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object};

use super::state::{Key, State, weight};

/// Objects of one piece at most.
const OBJECTS_MAX: usize = 512;
/// A piece ends with the object that makes it so large, roughly.
const BYTES_MAX: usize = 1 << 20;
/// After so many revisions that have changed nothing of interest the watcher is told that it has them: it could not go on from an old one.
const QUIET_MAX: u64 = 1024;

/// A piece of a range of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The range is what happened after this revision.
    pub after: u64,
    /// And through this one.
    pub revision: u64,
    pub puts: Vec<Object>,
    pub deletes: Vec<Key>,
    /// The watcher has all that was there when it began.
    pub synced: bool,
    /// The range has more pieces.
    pub partial: bool,
}

/// Where a watcher stands.
#[derive(Debug)]
pub struct Watcher {
    /// None: all.
    kinds: BTreeSet<Kind>,
    /// `None` until the first picture.
    seen: Option<u64>,
    /// It was told of everything through this revision.
    told: u64,
    synced: bool,
}

impl Watcher {
    /// One that has not seen anything, or everything through revision `from`, which is then to be one of `state`'s.
    pub fn new(state: &State, kinds: BTreeSet<Kind>, from: u64) -> Result<Self, ApiError> {
        if kinds.contains(&Kind::Cluster) {
            return Err(ApiError::new(ErrorCode::Forbidden, "the cluster's own object holds its keys and never leaves the managers"));
        }
        if from > state.revision() {
            let newest = state.revision();
            return Err(ApiError::new(ErrorCode::Invalid, format!("revision {from} is not there yet: the newest is {newest}"))
                .field("from_revision")
                .hint("is it another cluster's, or was this one restored? watch from revision 0"));
        }
        Ok(Self { kinds, seen: (from > 0).then_some(from), told: from, synced: false })
    }

    /// What is to be told now that the tables are these; fails when the watcher has fallen behind what is kept.
    pub fn turn(&mut self, state: &State) -> Result<Option<Pieces>, ApiError> {
        let wanted = |kind: Kind| kind != Kind::Cluster && (self.kinds.is_empty() || self.kinds.contains(&kind));
        let keys: Vec<Key> = match self.seen {
            None => state.keys().filter(|(kind, _)| wanted(*kind)).map(|(kind, id)| (kind, id.to_owned())).collect(),
            Some(seen) => {
                let changed = state.history().after(seen).map_err(|compacted| {
                    ApiError::new(ErrorCode::Compacted, compacted.to_string()).hint("list again: watch from revision 0")
                })?;
                changed.into_iter().filter(|(kind, _)| wanted(*kind)).cloned().collect()
            }
        };
        let revision = state.revision();
        self.seen = Some(revision);
        if self.synced && keys.is_empty() && revision < self.told + QUIET_MAX {
            return Ok(None);
        }
        let after = std::mem::replace(&mut self.told, revision);
        let synced = !std::mem::replace(&mut self.synced, true);
        Ok(Some(Pieces { state: state.clone(), keys: keys.into_iter(), after, synced, ended: false }))
    }
}

/// The pieces of one range, made one by one: a copy of the tables lives as long as this.
#[derive(Debug)]
pub struct Pieces {
    state: State,
    keys: std::vec::IntoIter<Key>,
    after: u64,
    synced: bool,
    ended: bool,
}

impl Iterator for Pieces {
    type Item = Piece;

    /// The next piece; there is at least one.
    fn next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        let (mut puts, mut deletes, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < BYTES_MAX && puts.len() + deletes.len() < OBJECTS_MAX {
            let Some((kind, id)) = self.keys.next() else { break };
            match self.state.object(kind, &id) {
                Some(object) => {
                    let object = if let Object::Data(data) = object { Object::Data(data.listed()) } else { object };
                    bytes += weight(&object);
                    puts.push(object);
                }
                None => deletes.push((kind, id)),
            }
        }
        self.ended = self.keys.as_slice().is_empty();
        let synced = self.synced && self.ended;
        Some(Piece { after: self.after, revision: self.state.revision(), puts, deletes, synced, partial: !self.ended })
    }
}

#[cfg(test)]
mod tests;
