//! The durable log in redb, one file; a batch is one transaction with immediate durability. Snapshots' data are files beside it.
//!
//! ```text
//! D/raft.redb                 entries by index; meta: format, who it belongs to, hard state, snapshot in use, where the log begins
//! D/snapshot-<index>-<hex>    data of the snapshot in use; written and synced before the log names it, removed after it names another
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use rcluster_base::ledger::{self, LedgerError};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tracing::warn;

use super::log::{Batch, Compaction, Loaded, LogError, LogStore, Saved, Saver, checksum};
use super::storage::{Terms, size};

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const IDENTITY: &str = "identity";
const HARD_STATE: &str = "hard_state";
/// The snapshot's metadata, as a raft snapshot without data.
const SNAPSHOT: &str = "snapshot";
const SNAPSHOT_NAME: &str = "snapshot_name";
/// Bytes and checksum of the snapshot's data.
const SNAPSHOT_SUM: &str = "snapshot_sum";
/// Index and term of the entry before the first.
const OFFSET: &str = "offset";

/// The format that this version writes.
const FORMAT_KNOWN: u64 = 1;
const FILE: &str = "raft.redb";
/// Pages that redb keeps in memory; the log is hardly ever read.
const PAGES_BYTES_MAX: usize = 2 << 20;

/// The log of one manager.
#[derive(Debug)]
pub struct RedbLog {
    database: Database,
    dir: PathBuf,
}

fn redb_error<E: Into<redb::Error>>(what: &'static str) -> impl FnOnce(E) -> LogError {
    move |source| LogError::Redb { what, source: Box::new(source.into()) }
}

fn open_database(path: &Path) -> Result<Database, LogError> {
    let opened = Database::builder().set_cache_size(PAGES_BYTES_MAX).create(path);
    let path = path.to_path_buf();
    opened.map_err(|source| match source {
        redb::DatabaseError::DatabaseAlreadyOpen => LogError::InUse { path },
        source => LogError::Open { path, source: Box::new(source) },
    })
}

fn decode<T: Message>(what: &'static str, bytes: &[u8]) -> Result<T, LogError> {
    T::parse_from_bytes(bytes).map_err(|source| LogError::Decode { what, source })
}

fn encode(what: &'static str, message: &impl Message) -> Result<Vec<u8>, LogError> {
    message.write_to_bytes().map_err(|source| LogError::Decode { what, source })
}

fn pair(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

fn unpair(bytes: &[u8]) -> Option<(u64, u64)> {
    let number = u128::from_be_bytes(bytes.try_into().ok()?);
    Some((u64::try_from(number >> 64).ok()?, u64::try_from(number & u128::from(u64::MAX)).ok()?))
}

impl RedbLog {
    /// Whether there is a log in `dir`.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Makes the first log in `dir`, for `identity`, holding `hard_state` and a snapshot. It is there as a whole afterwards, or not at
    /// all.
    pub fn create(dir: &Path, identity: &[u8], hard_state: &HardState, snapshot: Snapshot) -> Result<Self, LogError> {
        let (path, aside) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
        let failed = |what, path: &Path| {
            let path = path.to_path_buf();
            move |source| LogError::File { what, path, source }
        };
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the unfinished", &aside)(error)),
            Ok(()) | Err(_) => {}
        }
        // It holds the authority's key and secrets: made before redb opens it, so that nobody else ever reads it.
        let made = fs::File::options().write(true).create_new(true).mode(0o600).open(&aside);
        made.map_err(failed("make", &aside))?;
        let log = Self::create_on(open_database(&aside)?, dir, identity, hard_state, snapshot)?;
        fs::rename(&aside, &path).map_err(failed("name the log", &path))?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
        Ok(log)
    }

    /// Makes the first log in an empty database; snapshots' data goes to `dir`.
    pub fn create_on(
        database: Database,
        dir: &Path,
        identity: &[u8],
        hard_state: &HardState,
        snapshot: Snapshot,
    ) -> Result<Self, LogError> {
        let mut log = Self { database, dir: dir.to_path_buf() };
        let Snapshot { data, metadata, .. } = snapshot;
        let saved = log.saver()(metadata.unwrap_or_default(), &data)?;
        let writing = log.database.begin_write().map_err(redb_error("begin the first write of the log"))?;
        {
            let mut meta = writing.open_table(META).map_err(redb_error("make the log"))?;
            meta.insert(FORMAT, FORMAT_KNOWN.to_be_bytes().as_slice()).map_err(redb_error("write the log's format"))?;
            meta.insert(IDENTITY, identity).map_err(redb_error("write whose log it is"))?;
        }
        writing.commit().map_err(redb_error("make the log durable"))?;
        let (index, term) = (saved.metadata.index, saved.metadata.term);
        let compaction = Some(Compaction::Reset { index, term });
        log.write(&Batch { hard_state, entries: &[], snapshot: Some(&saved), compaction })?;
        Ok(log)
    }

    /// Opens the log in `dir` and says whose it is.
    pub fn open(dir: &Path) -> Result<(Self, Vec<u8>), LogError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(LogError::Missing { path });
        }
        Self::open_on(open_database(&path)?, dir)
    }

    /// Opens the log in a database and says whose it is.
    pub fn open_on(database: Database, dir: &Path) -> Result<(Self, Vec<u8>), LogError> {
        let log = Self { database, dir: dir.to_path_buf() };
        let format = log.meta(FORMAT)?.ok_or_else(|| LogError::Damaged("it names no format".to_owned()))?;
        let found = u64::from_be_bytes(format.as_slice().try_into().map_err(|_| LogError::Damaged("its format is no number".to_owned()))?);
        if found > FORMAT_KNOWN {
            return Err(LogError::Format { found, known: FORMAT_KNOWN });
        }
        let identity = log.meta(IDENTITY)?.ok_or_else(|| LogError::Damaged("it does not say whose it is".to_owned()))?;
        Ok((log, identity))
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, LogError> {
        let reading = self.database.begin_read().map_err(redb_error("read the log"))?;
        let meta = match reading.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(redb_error("read the log")(error)),
        };
        let value = meta.get(key).map_err(redb_error("read the log"))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn needed(&self, key: &str) -> Result<Vec<u8>, LogError> {
        self.meta(key)?.ok_or_else(|| LogError::Damaged(format!("it has no {key}")))
    }

    fn load_data(&self) -> Result<Vec<u8>, LogError> {
        let name = String::from_utf8(self.needed(SNAPSHOT_NAME)?).map_err(|_| LogError::Damaged("its snapshot has no name".to_owned()))?;
        let (bytes, sum) = unpair(&self.needed(SNAPSHOT_SUM)?).ok_or_else(|| LogError::Damaged("its snapshot has no sum".to_owned()))?;
        let path = self.dir.join(&name);
        let data = fs::read(&path).map_err(|source| LogError::File { what: "read the snapshot", path, source })?;
        if data.len() as u64 != bytes || checksum(&data) != sum {
            return Err(LogError::Damaged(format!("{name} has {} bytes and is not what was written ({bytes} bytes)", data.len())));
        }
        Ok(data)
    }

    fn load_terms(&self) -> Result<(Terms, u64), LogError> {
        let (index, term) = unpair(&self.needed(OFFSET)?).ok_or_else(|| LogError::Damaged("it does not say where it begins".to_owned()))?;
        let (mut terms, mut bytes) = (Terms::new(index, term), 0);
        let reading = self.database.begin_read().map_err(redb_error("read the log"))?;
        let entries = reading.open_table(ENTRIES).map_err(redb_error("read the log's entries"))?;
        for row in entries.iter().map_err(redb_error("read the log's entries"))? {
            let (key, value) = row.map_err(redb_error("read the log's entries"))?;
            let entry: Entry = decode("decode an entry of the log", value.value())?;
            if entry.index != key.value() || !terms.put(entry.index, entry.term) {
                return Err(LogError::Damaged(format!("entry {} follows {}", key.value(), terms.last())));
            }
            bytes += size(&entry);
        }
        Ok((terms, bytes))
    }

    /// Removes the data of snapshots that are older than the one in use.
    fn sweep(&self, used: &Saved) {
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let index =
                name.strip_prefix("snapshot-").and_then(|rest| rest.split_once('-')).and_then(|(index, _)| index.parse::<u64>().ok());
            let old = index.is_some_and(|index| index <= used.metadata.index) && name != used.name;
            if old && let Err(error) = fs::remove_file(file.path()) {
                warn!(file = name, %error, "an old snapshot cannot be removed");
            }
        }
    }
}

impl LogStore for RedbLog {
    fn load(&mut self) -> Result<Loaded, LogError> {
        let hard_state = decode("decode the log's hard state", &self.needed(HARD_STATE)?)?;
        let snapshot: Snapshot = decode("decode the log's snapshot", &self.needed(SNAPSHOT)?)?;
        let (terms, bytes) = self.load_terms()?;
        let data = self.load_data()?;
        Ok(Loaded { hard_state, snapshot: { snapshot }.take_metadata(), data, terms, bytes })
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        let mut writing = self.database.begin_write().map_err(redb_error("begin a write to the log"))?;
        writing.set_durability(Durability::Immediate).map_err(redb_error("choose durability"))?;
        {
            let mut entries = writing.open_table(ENTRIES).map_err(redb_error("write to the log"))?;
            let mut meta = writing.open_table(META).map_err(redb_error("write to the log"))?;
            if let Some(compaction) = batch.compaction {
                let (index, term) = match compaction {
                    Compaction::Through { index, term } => {
                        entries.retain_in(..=index, |_, _| false).map_err(redb_error("compact the log"))?;
                        (index, term)
                    }
                    Compaction::Reset { index, term } => {
                        entries.retain(|_, _| false).map_err(redb_error("reset the log"))?;
                        (index, term)
                    }
                };
                meta.insert(OFFSET, pair(index, term).as_slice()).map_err(redb_error("compact the log"))?;
            }
            if let Some(first) = batch.entries.first() {
                entries.retain_in(first.index.., |_, _| false).map_err(redb_error("cut the log"))?;
            }
            for entry in batch.entries {
                let bytes = encode("encode an entry", entry)?;
                entries.insert(entry.index, bytes.as_slice()).map_err(redb_error("append to the log"))?;
            }
            let hard_state = encode("encode the hard state", batch.hard_state)?;
            meta.insert(HARD_STATE, hard_state.as_slice()).map_err(redb_error("write the hard state"))?;
            if let Some(saved) = batch.snapshot {
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(saved.metadata.clone());
                let snapshot = encode("encode a snapshot", &snapshot)?;
                meta.insert(SNAPSHOT, snapshot.as_slice()).map_err(redb_error("name the snapshot"))?;
                meta.insert(SNAPSHOT_NAME, saved.name.as_bytes()).map_err(redb_error("name the snapshot"))?;
                meta.insert(SNAPSHOT_SUM, pair(saved.bytes, saved.checksum).as_slice()).map_err(redb_error("name the snapshot"))?;
            }
        }
        writing.commit().map_err(redb_error("make the log durable"))?;
        if let Some(saved) = batch.snapshot {
            self.sweep(saved);
        }
        Ok(())
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let reading = self.database.begin_read().map_err(redb_error("read the log"))?;
        let table = reading.open_table(ENTRIES).map_err(redb_error("read the log's entries"))?;
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for row in table.range(low..high).map_err(redb_error("read the log's entries"))? {
            let (_, value) = row.map_err(redb_error("read the log's entries"))?;
            bytes += value.value().len() as u64;
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            let entry: Entry = decode("decode an entry of the log", value.value())?;
            if entry.index != low + taken.len() as u64 {
                return Err(LogError::Damaged(format!("entry {} is missing", low + taken.len() as u64)));
            }
            taken.push(entry);
        }
        if taken.is_empty() {
            return Err(LogError::Damaged(format!("entry {low} is missing")));
        }
        Ok(taken)
    }

    fn saver(&self) -> Saver {
        let dir = self.dir.clone();
        Box::new(move |metadata, data| {
            let name = format!("snapshot-{:020}-{:08x}", metadata.index, rand::random::<u32>());
            ledger::write_secret_bytes(&dir.join(&name), data).map_err(|error| {
                let path = dir.join(&name);
                let source = match error {
                    LedgerError::Write { source, .. } | LedgerError::Read { source, .. } => source,
                    LedgerError::Decode { source, .. } | LedgerError::Encode { source, .. } => source.into(),
                };
                LogError::File { what: "write the snapshot", path, source }
            })?;
            Ok(Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) })
        })
    }
}
