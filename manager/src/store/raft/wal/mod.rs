//! The durable log: segments of fixed length that are written from front to back, a batch with one write and one fdatasync. The format and
//! what is promised of it stand in `docs/store.md`.
//!
//! ```text
//! D/raft.lock                 held while a manager uses D
//! D/raft/segment-<number>     the log, the last one being written
//! D/raft/spare                the next segment, filled with zeros beside the owner thread
//! D/raft/new                  the next segment when no spare was ready; renamed once its first batch is durable
//! ```
//!
//! `core` decides what bytes mean; here is what reads and writes them. After a write that failed nobody knows what is on the disk: there is
//! no second one.

mod core;
pub mod disk;
mod spare;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use raft::eraftpb::{Entry, HardState, Snapshot};
use tracing::warn;

use self::core::record::{self, FORMAT, HEADER_BYTES, Kind, Placed, Preamble, Sealing, Writer};
use self::core::replay::{End, Held, Place, Replay, Why, Wrong};
use self::disk::{Directory, Disk, DiskFile};
use self::spare::{SPARE, Spares};
use super::log::{Batch, Compaction, Loaded, LogError, LogStore, Saver};
use super::snapshots;
use super::storage::Terms;
use crate::meter::StoreMeter;
use crate::seal::Keys;

/// Bytes of a segment; a batch that is larger has a longer segment to itself.
const SEGMENT_BYTES: u64 = 16 << 20;
const DIR: &str = "raft";
const LOCK: &str = "raft.lock";
const NEW: &str = "new";
/// What the log was before there was this one.
const EARLIER: &str = "raft.redb";
/// A buffer that a large batch has made larger than this is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// The log of one manager.
pub struct Wal<D: Disk = Directory> {
    /// First to go: whoever works beside this thread ends before the lock does.
    spares: Spares<D>,
    disk: D,
    /// Where snapshots' data stand.
    dir: PathBuf,
    segment_bytes: u64,
    /// What it is sealed with; `None`: it is written in clear.
    keys: Option<Keys>,
    /// Those that are read and, the last, written; oldest first.
    segments: Vec<Segment<D::File>>,
    held: Held,
    buffer: Vec<u8>,
    /// A write has failed.
    failed: bool,
    /// Where writes are counted; `None` where there is no clock but a simulation's.
    meter: Option<Arc<StoreMeter>>,
    _lock: Option<File>,
}

struct Segment<F> {
    number: u64,
    salt: u32,
    sealing: Option<Sealing>,
    file: F,
    /// Where the next batch goes.
    end: u64,
}

impl<D: Disk> fmt::Debug for Wal<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Wal").field("dir", &self.dir).field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

fn segment_name(number: u64) -> String {
    format!("segment-{number:016x}")
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Numbers of the segments in a directory, in order.
fn segment_numbers(disk: &impl Disk) -> Result<Vec<u64>, LogError> {
    let names = disk.names().map_err(|source| file_error(disk, "list", "")(source))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn file_error(disk: &impl Disk, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> LogError {
    let path = disk.path(name);
    move |source| LogError::File { what, path, source }
}

/// Keeps others off a manager's directory until the file is closed.
pub fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join(LOCK);
    let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|source| LogError::File { what: "open", path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::InUse { path: dir.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(LogError::File { what: "lock", path, source }),
    }
}

/// Whether there is a log in `dir`.
///
/// # Errors
/// Also when there is one that an earlier version made.
pub fn exists(dir: &Path) -> Result<bool, LogError> {
    let segments = dir.join(DIR);
    if segments.is_dir() && !segment_numbers(&Directory::new(&segments))?.is_empty() {
        return Ok(true);
    }
    let path = dir.join(EARLIER);
    if path.exists() { Err(LogError::Earlier { path }) } else { Ok(false) }
}

/// Whose log stands in `dir`: what the newest segment begins with, as each does. Asks for no key and changes nothing.
pub fn whose(dir: &Path) -> Result<Vec<u8>, LogError> {
    let disk = Directory::new(&dir.join(DIR));
    let numbers = segment_numbers(&disk)?;
    let number = *numbers.last().ok_or(LogError::Missing { path: dir.join(DIR) })?;
    let mut bytes = Vec::new();
    read_segment(&disk, &segment_name(number), &mut bytes)?;
    let wrong = |offset, why: Why| refusal(&disk, Wrong { segment: number, offset, why });
    let preamble = Preamble::decode(&bytes).map_err(|no| wrong(0, no.into()))?;
    let batch = record::batch(&bytes, preamble.end(), preamble.salt).map_err(|why| wrong(preamble.end(), Why::Damaged(why.to_owned())))?;
    let identity = batch.records.iter().find(|record| record.kind == Kind::Identity).map(|record| record.content.to_vec());
    identity.ok_or_else(|| wrong(preamble.end(), Why::Damaged("it does not say whose it is".to_owned())))
}

/// Numbers of the disk's keys that segments in `dir` are sealed with. Whoever has the log open may remove some meanwhile: what is gone is
/// sealed with nothing.
pub fn keys_used(dir: &Path) -> Result<BTreeSet<u32>, LogError> {
    let disk = Directory::new(&dir.join(DIR));
    if !disk.path("").is_dir() {
        return Ok(BTreeSet::new());
    }
    let mut used = BTreeSet::new();
    for number in segment_numbers(&disk)? {
        let name = segment_name(number);
        let mut bytes = vec![0; record::PREAMBLE_SEALED_BYTES];
        let read = disk.open(&name).and_then(|file| {
            let length = usize::try_from(file.length()?).unwrap_or(usize::MAX);
            bytes.truncate(length);
            file.read(0, &mut bytes)
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read.map_err(file_error(&disk, "open", &name))?,
        }
        // What is wrong with a segment is told when it is opened.
        used.extend(Preamble::decode(&bytes).ok().and_then(|preamble| preamble.seal).map(|seal| seal.key));
    }
    Ok(used)
}

impl Wal {
    /// Makes the first log in `dir`, for `identity`, holding `hard_state` and a snapshot. It is there as a whole afterwards, or not at
    /// all.
    pub fn create(dir: &Path, keys: Option<Keys>, identity: &[u8], hard_state: &HardState, snapshot: Snapshot) -> Result<Self, LogError> {
        let lock = lock(dir)?;
        let path = dir.join(DIR);
        // The tables' secrets pass through the log.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path).and_then(|()| File::open(dir)?.sync_all());
        made.map_err(|source| LogError::File { what: "make", path: path.clone(), source })?;
        let log = Self::create_on(Directory::new(&path), dir, SEGMENT_BYTES, keys, identity, hard_state, snapshot)?;
        Ok(Self { _lock: Some(lock), ..log })
    }

    /// Opens the log in `dir` and says whose it is.
    pub fn open(dir: &Path, keys: Option<Keys>) -> Result<(Self, Vec<u8>), LogError> {
        if !exists(dir)? {
            return Err(LogError::Missing { path: dir.join(DIR) });
        }
        let lock = lock(dir)?;
        let (log, identity) = Self::open_on(Directory::new(&dir.join(DIR)), dir, SEGMENT_BYTES, keys)?;
        Ok((Self { _lock: Some(lock), ..log }, identity))
    }
}

/// A log that is looked at and never written: nothing on the disk changes by it, however the log ends.
pub struct View(Wal);

impl fmt::Debug for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl View {
    /// Looks at the log in `dir`. No manager can start on it until this goes.
    pub fn open(dir: &Path, keys: Option<Keys>) -> Result<Self, LogError> {
        if !exists(dir)? {
            return Err(LogError::Missing { path: dir.join(DIR) });
        }
        let lock = lock(dir)?;
        let (log, _) = Wal::read_on(Directory::new(&dir.join(DIR)), dir, SEGMENT_BYTES, keys)?;
        Ok(Self(Wal { _lock: Some(lock), ..log }))
    }

    /// What is there.
    pub fn load(&self) -> Result<Loaded, LogError> {
        self.0.loaded()
    }

    /// Like [`LogStore::entries`].
    pub fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        self.0.entries(low, high, bytes_max)
    }
}

/// What has to be done before a log that was read is written on.
struct Ending {
    end: End,
    /// The last segment.
    bytes: Vec<u8>,
    /// Segments that nothing needs.
    forgotten: Vec<u64>,
}

impl<D: Disk> Wal<D> {
    /// Makes the first log on an empty disk; snapshots' data goes to `dir`.
    pub fn create_on(
        disk: D,
        dir: &Path,
        segment_bytes: u64,
        keys: Option<Keys>,
        identity: &[u8],
        hard_state: &HardState,
        snapshot: Snapshot,
    ) -> Result<Self, LogError> {
        let Snapshot { data, metadata, .. } = snapshot;
        let saved = snapshots::saver(dir, keys.clone())(metadata.unwrap_or_default(), &data)?;
        let (index, term) = (saved.metadata.index, saved.metadata.term);
        let held = Held { identity: identity.to_vec(), offset: (index, term), number: 1, ..Held::default() };
        let mut log = Self::new(disk, dir, segment_bytes, keys, Vec::new(), held);
        let compaction = Some(Compaction::Reset { index, term });
        log.write(&Batch { hard_state, entries: &[], snapshot: Some(&saved), compaction })?;
        Ok(log)
    }

    /// Opens the log on a disk and says whose it is. What is wrong with it is found before anything is written.
    pub fn open_on(disk: D, dir: &Path, segment_bytes: u64, keys: Option<Keys>) -> Result<(Self, Vec<u8>), LogError> {
        let (mut log, ending) = Self::read_on(disk, dir, segment_bytes, keys)?;
        if let Some(Ending { end, bytes, forgotten }) = ending {
            if let Some(segment) = log.segments.last() {
                log.settle(segment, &end, &bytes)?;
            }
            log.spares.retire(forgotten.into_iter());
        }
        let identity = log.held.identity.clone();
        Ok((log, identity))
    }

    /// Reads the log on a disk, and changes nothing.
    fn read_on(disk: D, dir: &Path, segment_bytes: u64, keys: Option<Keys>) -> Result<(Self, Option<Ending>), LogError> {
        let numbers = segment_numbers(&disk)?;
        let gap = numbers.windows(2).rposition(|pair| pair[1] != pair[0] + 1);
        // Segments before a gap were forgotten: what still needs one also needs all that follow it.
        let (forgotten, needed) = numbers.split_at(gap.map_or(0, |gap| gap + 1));
        let (mut replay, mut segments, mut bytes, mut last) = (Replay::new(keys.clone()), Vec::new(), Vec::new(), None);
        for number in needed {
            let file = read_segment(&disk, &segment_name(*number), &mut bytes)?;
            let end = replay.segment(*number, &bytes, Some(number) == needed.last()).map_err(|wrong| refusal(&disk, wrong))?;
            segments.push(Segment { number: *number, salt: end.salt, sealing: end.sealing.clone(), file, end: end.end as u64 });
            last = Some(end);
        }
        let held = replay.finish().map_err(|wrong| refusal(&disk, wrong))?;
        let ending = last.map(|end| Ending { end, bytes, forgotten: forgotten.to_vec() });
        Ok((Self::new(disk, dir, segment_bytes, keys, segments, held), ending))
    }

    fn new(disk: D, dir: &Path, segment_bytes: u64, keys: Option<Keys>, segments: Vec<Segment<D::File>>, held: Held) -> Self {
        let spares = Spares::new(disk.clone(), segment_bytes);
        let dir = dir.to_path_buf();
        Self { spares, disk, dir, segment_bytes, keys, segments, held, buffer: Vec::new(), failed: false, meter: None, _lock: None }
    }

    /// The same, counting what it writes.
    #[must_use]
    pub fn metered(self, meter: Arc<StoreMeter>) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Makes the last segment such that it can be written on: nothing but zeros after its last batch, and that batch durable. A process
    /// that ended before its sync returned has left it to chance; after a sync that failed, the kernel may hold it as written although it
    /// is not. Hence it is written again.
    fn settle(&self, segment: &Segment<D::File>, end: &End, bytes: &[u8]) -> Result<(), LogError> {
        let (name, go_on) = (segment_name(segment.number), AtomicBool::new(false));
        let failed = || file_error(&self.disk, "write", &name);
        if end.torn > 0 {
            let file = self.disk.path(&name).display().to_string();
            warn!(file, offset = end.end, bytes = end.torn, "the end of the log was being written when this manager ended, and is cut off");
            spare::fill(&segment.file, segment.end, segment.end + end.torn as u64, &go_on).map_err(failed())?;
        }
        segment.file.write(end.last as u64, &bytes[end.last..end.end]).map_err(failed())?;
        segment.file.sync().map_err(failed())?;
        spare::fill(&segment.file, bytes.len() as u64, self.segment_bytes, &go_on).map_err(failed())?;
        let names = self.disk.names().map_err(file_error(&self.disk, "list", ""))?;
        if names.iter().any(|name| name == NEW) {
            self.disk.remove(NEW).map_err(file_error(&self.disk, "remove the unfinished", NEW))?;
        }
        self.disk.sync().map_err(file_error(&self.disk, "sync", ""))
    }

    /// Refuses what a later start could not read.
    fn check(&self, batch: &Batch<'_>) -> Result<(), LogError> {
        let (offset, last) = (self.held.offset.0, self.held.last());
        let (offset, last) = match batch.compaction {
            Some(Compaction::Reset { index, .. }) => (index, index),
            Some(Compaction::Through { index, .. }) => (index, last.max(index)),
            None => (offset, last),
        };
        let Some(first) = batch.entries.first() else { return Ok(()) };
        let follows = first.index > offset && first.index <= last + 1;
        if !follows || !batch.entries.windows(2).all(|pair| pair[1].index == pair[0].index + 1) {
            return Err(LogError::Damaged(format!("entries from {} on do not follow {last}", first.index)));
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        self.check(batch)?;
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        if !self.append_to_last(batch, &mut bytes)? {
            bytes.clear();
            self.append_to_next(batch, &mut bytes)?;
        }
        if bytes.capacity() <= BUFFER_BYTES_KEPT {
            self.buffer = bytes;
        }
        if batch.compaction.is_some() {
            self.forget();
        }
        Ok(())
    }

    /// Appends to the segment that is being written; `false` when it has no room, or is not sealed with the newest key.
    fn append_to_last(&mut self, batch: &Batch<'_>, bytes: &mut Vec<u8>) -> Result<bool, LogError> {
        let newest = self.keys.as_ref().map(Keys::newest);
        let sealed_so = |segment: &&mut Segment<D::File>| newest == segment.sealing.as_ref().map(|sealing| sealing.key);
        let Some(segment) = self.segments.last_mut().filter(sealed_so) else { return Ok(false) };
        let writer = Writer::new(bytes, segment.salt, segment.sealing.as_ref(), segment.end);
        let placed = encode(batch, None, writer, self.held.number)?;
        if segment.end + bytes.len() as u64 > self.segment_bytes {
            return Ok(false);
        }
        let written = put(&segment.file, segment.end, bytes, self.meter.as_deref());
        written.map_err(|source| file_error(&self.disk, "write", &segment_name(segment.number))(source))?;
        take_in(&mut self.held, batch, &placed, segment.number, segment.end)?;
        segment.end += bytes.len() as u64;
        Ok(true)
    }

    /// Begins the next segment with a batch. It gets its name once it is durable: a segment whose first batch is not whole is damaged.
    fn append_to_next(&mut self, batch: &Batch<'_>, bytes: &mut Vec<u8>) -> Result<(), LogError> {
        let number = self.segments.last().map_or(1, |segment| segment.number + 1);
        // Never 0, which is what a place that was not written holds.
        let salt = rand::random::<u32>() | 1;
        let (seal, sealing) = self.keys.as_ref().map(|keys| Sealing::draw(keys, number)).unzip();
        Preamble { number, salt, seal }.encode(bytes);
        let writer = Writer::new(bytes, salt, sealing.as_ref(), 0);
        let placed = encode(batch, Some(&self.held), writer, self.held.number)?;
        let (from, file) = match self.spares.take() {
            Some(file) => (SPARE, file),
            None => (NEW, self.disk.create(NEW).map_err(file_error(&self.disk, "make", NEW))?),
        };
        put(&file, 0, bytes, self.meter.as_deref()).map_err(file_error(&self.disk, "write", from))?;
        let name = segment_name(number);
        self.disk.rename(from, &name).and_then(|()| self.disk.sync()).map_err(file_error(&self.disk, "name", &name))?;
        take_in(&mut self.held, batch, &placed, number, 0)?;
        self.segments.push(Segment { number, salt, sealing, file, end: bytes.len() as u64 });
        self.spares.work();
        Ok(())
    }

    /// Lets go of the segments that hold nothing but forgotten entries.
    fn forget(&mut self) {
        let Some(last) = self.segments.last() else { return };
        let needed = self.held.index.first().map_or(last.number, |(_, place)| place.segment);
        let dead = self.segments.partition_point(|segment| segment.number < needed);
        if dead > 0 {
            self.spares.retire(self.segments.drain(..dead).map(|segment| segment.number));
            self.spares.work();
        }
    }

    fn loaded(&self) -> Result<Loaded, LogError> {
        let Held { hard_state, snapshot, offset, index, .. } = &self.held;
        let (mut terms, mut bytes) = (Terms::new(offset.0, offset.1), 0);
        for (index, place) in index.from(offset.0 + 1) {
            if !terms.put(index, place.term) {
                return Err(LogError::Damaged(format!("entry {index} follows {}", terms.last())));
            }
            bytes += u64::from(place.bytes);
        }
        let data = snapshots::read(&self.dir, snapshot, self.keys.as_ref())?;
        Ok(Loaded { hard_state: hard_state.clone(), snapshot: snapshot.metadata.clone(), data, terms, bytes })
    }

    fn read_entry(&self, index: u64, place: &Place) -> Result<Entry, LogError> {
        let at = self.segments.binary_search_by_key(&place.segment, |segment| segment.number);
        let segment = at.map(|at| &self.segments[at]).map_err(|_| LogError::Damaged(format!("the segment of entry {index} is gone")))?;
        let name = segment_name(segment.number);
        let begin = u64::from(place.offset) - HEADER_BYTES as u64;
        let mut bytes = vec![0; HEADER_BYTES + place.bytes as usize];
        segment.file.read(begin, &mut bytes).map_err(file_error(&self.disk, "read", &name))?;
        let found = record::record(&bytes, 0, segment.salt).and_then(|(record, _)| {
            let content = record.opened(segment.sealing.as_ref(), begin)?;
            record::entry(&record::Record { content: &content, ..record })
        });
        let entry = found.and_then(|entry| if entry.index == index { Ok(entry) } else { Err("another entry stands there") });
        entry.map_err(|why| LogError::Segment { path: self.disk.path(&name), offset: begin, why: why.to_owned() })
    }
}

/// Writes a batch and makes it durable.
fn put(file: &impl DiskFile, offset: u64, bytes: &[u8], meter: Option<&StoreMeter>) -> io::Result<()> {
    file.write(offset, bytes)?;
    let Some(meter) = meter else { return file.sync() };
    let began = Instant::now();
    file.sync()?;
    meter.log_syncs.observe(began.elapsed());
    meter.log_bytes.add(bytes.len() as u64);
    Ok(())
}

/// A batch as bytes; as the first one of a segment it repeats what was held before it, so that no older segment is needed for that.
fn encode(batch: &Batch<'_>, before: Option<&Held>, mut writer: Writer<'_>, number: u64) -> Result<Vec<Placed>, LogError> {
    if let Some(held) = before {
        writer.identity(&held.identity)?;
        writer.compaction(Compaction::Through { index: held.offset.0, term: held.offset.1 })?;
    }
    writer.batch(batch)?;
    if let Some(saved) = batch.snapshot.or(before.map(|held| &held.snapshot)) {
        writer.snapshot(saved)?;
    }
    writer.end(number)
}

fn take_in(held: &mut Held, batch: &Batch<'_>, placed: &[Placed], segment: u64, offset: u64) -> Result<(), LogError> {
    let offset = usize::try_from(offset).map_err(|_| LogError::Damaged("a segment is too long".to_owned()))?;
    held.take_in(batch, placed, segment, offset).map_err(LogError::Damaged)
}

fn read_segment<D: Disk>(disk: &D, name: &str, bytes: &mut Vec<u8>) -> Result<D::File, LogError> {
    let mut read = || {
        let file = disk.open(name)?;
        let length = usize::try_from(file.length()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        bytes.resize(length, 0);
        file.read(0, bytes)?;
        Ok(file)
    };
    read().map_err(file_error(disk, "open", name))
}

fn refusal(disk: &impl Disk, wrong: Wrong) -> LogError {
    let path = disk.path(&segment_name(wrong.segment));
    match wrong.why {
        Why::Newer(found) => LogError::Format { path, found: u64::from(found), known: u64::from(FORMAT) },
        Why::NoKey(key) => LogError::NoKey { path, key },
        Why::Damaged(why) => LogError::Segment { path, offset: wrong.offset as u64, why },
    }
}

impl<D: Disk> LogStore for Wal<D> {
    fn load(&mut self) -> Result<Loaded, LogError> {
        let loaded = self.loaded()?;
        snapshots::sweep_all(&self.dir, &self.held.snapshot);
        self.forget();
        self.spares.work();
        Ok(loaded)
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Damaged("a write to it has failed before".to_owned()));
        }
        self.failed = true;
        self.append(batch)?;
        self.failed = false;
        if let Some(saved) = batch.snapshot {
            snapshots::sweep(&self.dir, saved);
        }
        Ok(())
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (index, place) in self.held.index.from(low).take_while(|(index, _)| *index < high) {
            bytes += u64::from(place.bytes);
            if index != low + taken.len() as u64 || (bytes > bytes_max && !taken.is_empty()) {
                break;
            }
            taken.push(self.read_entry(index, place)?);
        }
        if taken.is_empty() { Err(LogError::Damaged(format!("entry {low} is missing"))) } else { Ok(taken) }
    }

    fn saver(&self) -> Saver {
        snapshots::saver(&self.dir, self.keys.clone())
    }

    fn has_older_keys(&self) -> bool {
        let newest = self.keys.as_ref().map(Keys::newest);
        let sealed = |segment: &Segment<D::File>| segment.sealing.as_ref().map(|sealing| sealing.key);
        let older = |key: Option<u32>| newest.is_some() && key != newest;
        self.segments.iter().any(|segment| older(sealed(segment))) || older(snapshots::key_used(&self.dir, &self.held.snapshot))
    }
}
