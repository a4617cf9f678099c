//! The durable log in redb: one file, a batch is one transaction with immediate durability.

use std::path::{Path, PathBuf};

use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use thiserror::Error;

use super::log::{Batch, Loaded, LogStore};

const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HARD_STATE: &str = "hard_state";
const SNAPSHOT: &str = "snapshot";

/// Why the disk did not do what it was asked to.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("open the log {path}")]
    Open { path: PathBuf, source: redb::DatabaseError },
    #[error("the log")]
    Redb(#[from] redb::Error),
    #[error("decode what stands in the log")]
    Decode(#[from] protobuf::ProtobufError),
    #[error("choose durability")]
    Durability(#[from] redb::SetDurabilityError),
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for DiskError {
            fn from(error: redb::$error) -> Self {
                Self::Redb(error.into())
            }
        }
    )+};
}

from_redb!(TransactionError, TableError, StorageError, CommitError);

/// The log of one manager.
#[derive(Debug)]
pub struct RedbLog {
    database: Database,
}

impl RedbLog {
    /// Opens, or makes, the log in `dir`.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join("raft.redb");
        // The cache is small: the log is read at start only.
        let database = Database::builder().set_cache_size(4 << 20).create(&path).map_err(|source| DiskError::Open { path, source })?;
        Ok(Self { database })
    }
}

impl LogStore for RedbLog {
    type Error = DiskError;

    fn load(&mut self) -> Result<Option<Loaded>, DiskError> {
        let reading = self.database.begin_read()?;
        let meta = match reading.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut loaded = Loaded::default();
        if let Some(bytes) = meta.get(HARD_STATE)? {
            loaded.hard_state = HardState::parse_from_bytes(bytes.value())?;
        }
        if let Some(bytes) = meta.get(SNAPSHOT)? {
            loaded.snapshot = Snapshot::parse_from_bytes(bytes.value())?;
        }
        for row in reading.open_table(ENTRIES)?.iter()? {
            let (_, bytes) = row?;
            loaded.entries.push(Entry::parse_from_bytes(bytes.value())?);
        }
        Ok(Some(loaded))
    }

    fn persist(&mut self, batch: &Batch<'_>) -> Result<(), DiskError> {
        let mut writing = self.database.begin_write()?;
        writing.set_durability(Durability::Immediate)?;
        {
            let mut entries = writing.open_table(ENTRIES)?;
            let mut meta = writing.open_table(META)?;
            if batch.reset_log {
                entries.retain(|_, _| false)?;
            }
            if batch.first_kept > 0 {
                entries.retain_in(..batch.first_kept, |_, _| false)?;
            }
            if let Some(first) = batch.entries.first() {
                entries.retain_in(first.index.., |_, _| false)?;
            }
            for entry in batch.entries {
                entries.insert(entry.index, entry.write_to_bytes()?.as_slice())?;
            }
            if let Some(hard_state) = batch.hard_state {
                meta.insert(HARD_STATE, hard_state.write_to_bytes()?.as_slice())?;
            }
            if let Some(snapshot) = batch.snapshot {
                meta.insert(SNAPSHOT, snapshot.write_to_bytes()?.as_slice())?;
            }
        }
        writing.commit()?;
        Ok(())
    }
}
