//! What stands in etcd, and where.
//!
//! ```text
//! PREFIX/CLUSTER/live/format          {"format":1}                     watched by every manager: small, and all that changes
//! PREFIX/CLUSTER/live/head            the last revision
//! PREFIX/CLUSTER/live/term            the last term
//! PREFIX/CLUSTER/live/leader          who leads, on its lease
//! PREFIX/CLUSTER/live/alive/ID        a manager that runs, on its lease
//! PREFIX/CLUSTER/live/log/REVISION    rcluster.v1.EtcdEntry
//! PREFIX/CLUSTER/live/snapshot        the snapshot that the log begins after
//! PREFIX/CLUSTER/parts/log/REVISION/N         pieces of a transaction that is too large for one value
//! PREFIX/CLUSTER/parts/snapshot/REVISION/N    pieces of the tables
//! ```
//!
//! Numbers in keys have 20 digits, so that etcd's order is theirs.

use prost::Message;
use rcluster_api::wire::v1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::Address;
use crate::core::state::{CodecError, Transaction, decode_transaction};

/// The format of all this; another number is refused.
pub const FORMAT: u32 = 1;
/// Most bytes in one value. etcd refuses requests of more than 1.5 MiB unless it is told otherwise (`--max-request-bytes`).
pub const PART_BYTES: usize = 1 << 20;

/// The keys of one cluster.
#[derive(Debug, Clone)]
pub struct Keys {
    base: String,
}

impl Keys {
    /// Those of the cluster called `cluster_id`.
    pub fn new(address: &Address, cluster_id: &str) -> Self {
        Self { base: format!("{}/{cluster_id}", address.prefix) }
    }

    /// What all managers watch.
    pub fn live(&self) -> String {
        format!("{}/live/", self.base)
    }

    pub fn format(&self) -> String {
        format!("{}/live/format", self.base)
    }

    pub fn head(&self) -> String {
        format!("{}/live/head", self.base)
    }

    pub fn term(&self) -> String {
        format!("{}/live/term", self.base)
    }

    pub fn leader(&self) -> String {
        format!("{}/live/leader", self.base)
    }

    pub fn snapshot(&self) -> String {
        format!("{}/live/snapshot", self.base)
    }

    /// The managers that run.
    pub fn all_alive(&self) -> String {
        format!("{}/live/alive/", self.base)
    }

    pub fn alive(&self, id: u64) -> String {
        format!("{}/live/alive/{id:020}", self.base)
    }

    pub fn entry(&self, revision: u64) -> String {
        format!("{}/live/log/{revision:020}", self.base)
    }

    /// The pieces of the transaction of `revision`, below this.
    pub fn entry_parts(&self, revision: u64) -> String {
        format!("{}/parts/log/{revision:020}/", self.base)
    }

    /// The pieces of the tables at `revision`, below this.
    pub fn snapshot_parts(&self, revision: u64) -> String {
        format!("{}/parts/snapshot/{revision:020}/", self.base)
    }

    /// One piece.
    pub fn part(parts: &str, number: usize) -> String {
        format!("{parts}{number:020}")
    }

    /// What a key under [`Keys::live`] is for.
    pub fn read(&self, key: &[u8]) -> Option<Live> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.live())?;
        match rest.split_once('/') {
            None if rest == "format" => Some(Live::Format),
            None if rest == "leader" => Some(Live::Leader),
            None if rest == "snapshot" => Some(Live::Snapshot),
            Some(("log", revision)) => revision.parse().ok().map(Live::Entry),
            Some(("alive", id)) => id.parse().ok().map(Live::Alive),
            _ => None,
        }
    }
}

/// A watched key that a manager acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    Format,
    Leader,
    Snapshot,
    Entry(u64),
    Alive(u64),
}

/// Value of the format's key.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
}

/// Value of the leader's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    pub id: u64,
    /// Random for each start of a manager.
    pub run: u64,
    pub term: u64,
}

/// Value of the snapshot's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Of the tables.
    pub revision: u64,
    pub parts: usize,
    pub bytes: usize,
    pub checksum: u32,
}

/// Why what stands in etcd cannot be used.
#[derive(Debug, Error)]
pub enum Unreadable {
    #[error("{key} is no JSON of this program's")]
    Json { key: String, source: serde_json::Error },
    #[error("{key} is not a number")]
    Number { key: String },
    #[error("{key} is missing")]
    Missing { key: String },
    #[error("{key} is not what was written: its checksum or length differs")]
    Checksum { key: String },
    #[error("{key} cannot be decoded")]
    Entry { key: String, source: CodecError },
    #[error("{key} says format {found}, this version reads {FORMAT}: upgrade this manager")]
    Format { key: String, found: u32 },
    #[error("{key} was written for tables that were not these: {why}")]
    Conflict { key: String, why: String },
}

/// What this version writes as the format, and finds there at each of its writes.
pub fn format() -> Vec<u8> {
    to_json(&Format { format: FORMAT })
}

/// Whether the format's value is [`format()`], to the byte.
pub fn check_format(key: &str, value: &[u8]) -> Result<(), Unreadable> {
    let found = json::<Format>(key, value)?.format;
    if found != FORMAT {
        return Err(Unreadable::Format { key: key.to_owned(), found });
    }
    if value == format() { Ok(()) } else { Err(Unreadable::Checksum { key: key.to_owned() }) }
}

pub fn json<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(bytes).map_err(|source| Unreadable::Json { key: key.to_owned(), source })
}

pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record has nothing that JSON lacks")
}

pub fn number(key: &str, bytes: &[u8]) -> Result<u64, Unreadable> {
    let text = std::str::from_utf8(bytes).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Unreadable::Number { key: key.to_owned() })
}

/// A transaction as it is to stand in etcd: in its entry, or in parts beside it.
pub fn entry(transaction: v1::Transaction) -> (v1::EtcdEntry, Vec<Vec<u8>>) {
    if transaction.encoded_len() <= PART_BYTES {
        return (v1::EtcdEntry { transaction: Some(transaction), ..v1::EtcdEntry::default() }, Vec::new());
    }
    let bytes = transaction.encode_to_vec();
    let parts: Vec<Vec<u8>> = bytes.chunks(PART_BYTES).map(<[u8]>::to_vec).collect();
    let count = u32::try_from(parts.len()).expect("a transaction is bounded");
    (v1::EtcdEntry { transaction: None, parts: count, checksum: crc32c::crc32c(&bytes) }, parts)
}

/// An entry, as it stands in etcd.
pub fn open(key: &str, value: &[u8]) -> Result<v1::EtcdEntry, Unreadable> {
    v1::EtcdEntry::decode(value).map_err(|error| Unreadable::Entry { key: key.to_owned(), source: error.into() })
}

/// The transaction of an entry that has its parts, if it has any.
pub fn transaction(key: &str, entry: v1::EtcdEntry, parts: &[Vec<u8>]) -> Result<Transaction, Unreadable> {
    let unreadable = |source| Unreadable::Entry { key: key.to_owned(), source };
    let wire = match entry.transaction {
        Some(transaction) => transaction,
        None => {
            let bytes = parts.concat();
            if crc32c::crc32c(&bytes) != entry.checksum || parts.len() != entry.parts as usize {
                return Err(Unreadable::Checksum { key: key.to_owned() });
            }
            v1::Transaction::decode(bytes.as_slice()).map_err(|error| unreadable(error.into()))?
        }
    };
    decode_transaction(wire).map_err(unreadable)
}
