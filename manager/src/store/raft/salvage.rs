//! What a manager that does not run has in its state directory: the tables with every entry of its log.
//!
//! Of the last entries nobody can tell any more whether a quorum had them. All are kept: one that was confirmed must not be lost, and one
//! that was not may still come about, as it might have without the disaster.

use std::path::Path;

use prost::Message as _;
use raft::eraftpb::EntryType;
use rcluster_api::wire::v1;

use super::identity::Identity;
use super::log::{Loaded, LogError};
use super::wal::View;
use super::{Chain, StoreError, identity};
use crate::core::state::{State, decode_snapshot, decode_transaction};
use crate::seal::Keys;

/// Bytes of entries that are read at once.
const READ_BYTES: u64 = 4 << 20;

/// What a directory holds. No manager can start on it, and nobody else read it, until this goes.
#[derive(Debug)]
pub struct Salvaged {
    pub identity: Identity,
    /// With all entries applied, also those that are not known to be committed.
    pub state: State,
    pub term: u64,
    /// The entries that this manager knew to be committed end here.
    pub committed: u64,
    /// The last entry.
    pub last: u64,
    _log: View,
}

/// Reads the directory of a manager that has ended, sealed with `keys` if it is, and changes nothing in it; `None` when it is nobody's.
pub fn salvage(dir: &Path, keys: Option<Keys>) -> Result<Option<Salvaged>, StoreError> {
    let Some(identity) = identity(dir)? else { return Ok(None) };
    let log = View::open(dir, keys)?;
    let Loaded { hard_state, snapshot, data, terms, bytes: _ } = log.load()?;
    let mut state = decode_snapshot(&data)?;
    let last = terms.last();
    let mut next = snapshot.index + 1;
    while next <= last {
        let entries = log.entries(next, last + 1, READ_BYTES)?;
        for entry in &entries {
            // Who takes part is decided anew: changes of the configuration do not count.
            if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                let unreadable = |why: String| {
                    LogError::Damaged(format!("entry {} cannot be applied: {why}; was it written by a newer version?", entry.index))
                };
                let wire = v1::Transaction::decode(&entry.data[..]).map_err(|error| unreadable(error.to_string()))?;
                let transaction = decode_transaction(wire).map_err(|error| unreadable(Chain(&error).to_string()))?;
                // One that was refused is refused by every manager alike.
                drop(state.apply(entry.index, &transaction));
            }
        }
        next += entries.len() as u64;
    }
    let term = hard_state.term.max(terms.term(last).unwrap_or_default());
    Ok(Some(Salvaged { identity, state, term, committed: hard_state.commit, last, _log: log }))
}
