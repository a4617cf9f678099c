//! What a durable log must offer. The owner thread writes to it; raft-rs reads through `storage`.

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

use super::storage::Terms;

/// A log that survives a power cut.
pub trait LogStore: Send + 'static {
    /// What is there, at start.
    fn load(&mut self) -> Result<Loaded, LogError>;

    /// Makes a batch durable, as a whole, before it returns. After an error nobody knows what is on the disk: it is not called again.
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError>;

    /// Entries `low..high`, all of which are there; fewer when they exceed `bytes_max`, but at least one.
    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError>;

    /// Writes a snapshot's data where a later batch can take it into use; may be run on another thread.
    fn saver(&self) -> Saver;

    /// Whether something that is needed stands under another key than the newest, or in clear although there are keys. All of it is gone
    /// once a snapshot that is made now is in use, and every entry that stands there now is forgotten.
    fn has_older_keys(&self) -> bool {
        false
    }
}

/// Makes data durable that no batch refers to yet.
pub type Saver = Box<dyn FnOnce(SnapshotMetadata, &[u8]) -> Result<Saved, LogError> + Send>;

/// A snapshot of the tables that is durable, and used once a batch names it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// Index, term and voters that it stands for.
    pub metadata: SnapshotMetadata,
    pub name: String,
    pub bytes: u64,
    pub checksum: u64,
}

/// What becomes durable in one step.
#[derive(Debug)]
pub struct Batch<'a> {
    pub hard_state: &'a HardState,
    /// To be appended, after `compaction`; what stands at these indices or later goes.
    pub entries: &'a [Entry],
    /// Replaces the snapshot that the next start begins from.
    pub snapshot: Option<&'a Saved>,
    pub compaction: Option<Compaction>,
}

/// Which entries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// Those up to this index, which has this term.
    Through { index: u64, term: u64 },
    /// All of them: the log goes on after this index, which has this term.
    Reset { index: u64, term: u64 },
}

/// What was durable when the process started.
#[derive(Debug, Default)]
pub struct Loaded {
    pub hard_state: HardState,
    pub snapshot: SnapshotMetadata,
    /// The snapshot's data.
    pub data: Vec<u8>,
    /// Where the log begins and ends, and the term of each of its entries.
    pub terms: Terms,
    /// Bytes of the log's entries.
    pub bytes: u64,
}

/// How a manager is replaced whose log cannot be gone on from.
const REPLACE: &str = "Look after the disk, remove the manager from the cluster (rclusterctl node rm NAME) and join again with an empty state \
                       directory; if no other manager is left, make the cluster anew from a backup (rclusterctl cluster restore)";

/// What is wrong with the log on disk.
#[derive(Debug, Error)]
pub enum LogError {
    #[error(
        "{path} is missing although this manager has been a member of its cluster: it may have voted or confirmed writes that it no longer \
             knows, so it must not go on under this name. Bring the file back if it was moved. {REPLACE}"
    )]
    Missing { path: PathBuf },
    #[error("{path} is open in another process: is a manager running on this state directory?")]
    InUse { path: PathBuf },
    #[error(
        "{path} is the log of an earlier version, which this one does not read; nothing was changed. Start a cluster anew with an empty state \
             directory, or remove this manager from its cluster and join again with one"
    )]
    Earlier { path: PathBuf },
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    #[error("{what}")]
    Decode { what: &'static str, source: protobuf::ProtobufError },
    #[error("{path} has format {found}, newer than this version reads ({known}); nothing was changed: upgrade this manager")]
    Format { path: PathBuf, found: u64, known: u64 },
    #[error(
        "{path} is damaged at byte {offset}: {why}. This manager may have voted or confirmed writes that stood there, so it must not go on \
             without them. {REPLACE}"
    )]
    Segment { path: PathBuf, offset: u64, why: String },
    #[error("{path} is damaged: {why}, and the log goes on after it alone. {REPLACE}")]
    Snapshot { path: PathBuf, why: String },
    #[error(
        "{path} is sealed with key {key} of this disk, which seal.json does not hold; nothing was changed. Bring back the seal.json that belongs to it"
    )]
    NoKey { path: PathBuf, key: u32 },
    #[error("{bytes} bytes at once are more than a segment of the log takes ({limit})")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("the log is damaged: {0}")]
    Damaged(String),
}

/// FNV-1a, 64 bits: tells a damaged file from a whole one, nothing more.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
