//! Records, batches and the first bytes of a segment, as they stand on the disk (`docs/store.md` draws them). Numbers are little-endian.
//!
//! In: what is to be written. Out: bytes, or what bytes hold. Never: a guess about bytes that do not hold together.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use protobuf::Message;
use raft::eraftpb::{ConfState, Entry, HardState, SnapshotMetadata};
use rcluster_api::seal::Cipher;

use crate::seal::{Keys, SEED_BYTES};
use crate::store::raft::log::{Batch, Compaction, LogError, Saved};

/// The newest format that this version reads, which it writes with keys.
pub const FORMAT: u32 = 2;
/// The format of a log in clear.
const FORMAT_CLEAR: u32 = 1;
/// What a segment begins with.
const MAGIC: [u8; 8] = *b"rclu-log";
/// Bytes before a segment's first batch, in clear and sealed.
const PREAMBLE_BYTES: usize = 32;
pub const PREAMBLE_SEALED_BYTES: usize = 64;
/// Bytes before the content of a record.
pub const HEADER_BYTES: usize = 32;
/// Bytes after the last record of a batch.
const TRAILER_BYTES: usize = 8;
/// Records and batches begin at multiples of it.
pub const ALIGNMENT: usize = 8;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Bounds the records that become durable together; index: the batch's number.
    Batch = 1,
    /// Content: whose log it is.
    Identity = 2,
    /// Term: the current one; index: the last committed entry; content: whom this manager votes for.
    HardState = 3,
    /// Index, term: the entry that it stands for; content: its file and configuration.
    Snapshot = 4,
    /// The entries through index, which has term, are gone.
    Through = 5,
    /// All entries are gone: the log goes on after index, which has term.
    Reset = 6,
    /// Content: raft's own encoding. What stood at index or later goes.
    Entry = 7,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        let all = [Self::Batch, Self::Identity, Self::HardState, Self::Snapshot, Self::Through, Self::Reset, Self::Entry];
        all.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    pub number: u64,
    /// Drawn for each segment and part of every record in it, so that nothing that was written elsewhere passes for one.
    pub salt: u32,
    pub seal: Option<Seal>,
}

/// What a segment is sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Number of the disk's key that the segment's is made from.
    pub key: u32,
    /// Drawn for each segment.
    pub seed: [u8; SEED_BYTES],
}

/// Why there is no preamble to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPreamble {
    /// The segment is of this format, which is newer.
    Newer(u32),
    Damaged(&'static str),
}

impl Preamble {
    /// Where the first batch begins.
    pub fn end(self) -> usize {
        if self.seal.is_some() { PREAMBLE_SEALED_BYTES } else { PREAMBLE_BYTES }
    }

    pub fn encode(self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&if self.seal.is_some() { FORMAT } else { FORMAT_CLEAR }.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        if let Some(Seal { key, seed }) = self.seal {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&seed);
        }
        let crc = crc32c::crc32c(&out[begin..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(begin + self.end(), 0);
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, NoPreamble> {
        let short = NoPreamble::Damaged("it is shorter than what a segment begins with");
        let clear = bytes.get(..PREAMBLE_BYTES).ok_or(short)?;
        if clear[..8] != MAGIC {
            return Err(NoPreamble::Damaged("it does not begin as a segment of the log does"));
        }
        let (bytes, end, seal) = match u32_at(clear, 8) {
            FORMAT_CLEAR => (clear, 24, None),
            FORMAT => {
                let sealed = bytes.get(..PREAMBLE_SEALED_BYTES).ok_or(short)?;
                let seed = sealed[28..28 + SEED_BYTES].try_into().expect("a seed has so many bytes");
                (sealed, 28 + SEED_BYTES, Some(Seal { key: u32_at(sealed, 24), seed }))
            }
            0 => return Err(NoPreamble::Damaged("its first bytes are not what was written")),
            newer => return Err(NoPreamble::Newer(newer)),
        };
        if crc32c::crc32c(&bytes[..end]) != u32_at(bytes, end) || bytes[end + 4..].iter().any(|byte| *byte != 0) {
            return Err(NoPreamble::Damaged("its first bytes are not what was written"));
        }
        Ok(Self { salt: u32_at(bytes, 12), number: u64_at(bytes, 16), seal })
    }
}

/// What seals and opens the records of one segment.
#[derive(Clone)]
pub struct Sealing {
    /// Number of the disk's key that it comes from.
    pub key: u32,
    cipher: Arc<Cipher>,
}

impl fmt::Debug for Sealing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Sealing(key {})", self.key)
    }
}

impl Sealing {
    /// For a new segment, with what its preamble is to say.
    pub fn draw(keys: &Keys, number: u64) -> (Seal, Self) {
        let (key, seed, cipher) = keys.draw(&label(number));
        (Seal { key, seed }, Self { key, cipher: Arc::new(cipher) })
    }

    /// That of a segment that is there; `None` when the key is not among `keys`.
    pub fn of(keys: &Keys, seal: Seal, number: u64) -> Option<Self> {
        let cipher = keys.cipher(seal.key, &seal.seed, &label(number))?;
        Some(Self { key: seal.key, cipher: Arc::new(cipher) })
    }
}

fn label(number: u64) -> String {
    format!("rcluster log segment {number}")
}

/// What the content of a record is bound to: the rest of the record, and the place in the segment where it begins.
fn context(kind: Kind, term: u64, index: u64, begin: u64) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    bytes[4..12].copy_from_slice(&term.to_le_bytes());
    bytes[12..20].copy_from_slice(&index.to_le_bytes());
    bytes[20..].copy_from_slice(&begin.to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A record's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of content.
    pub length: u32,
    crc: u32,
    kind: u32,
    salt: u32,
    pub term: u64,
    pub index: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.kind.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.term.to_le_bytes());
        bytes[24..].copy_from_slice(&self.index.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let (length, crc, kind, salt) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8), u32_at(bytes, 12));
        Self { length, crc, kind, salt, term: u64_at(bytes, 16), index: u64_at(bytes, 24) }
    }

    /// The sum of the header and `content`.
    fn sum(self, content: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&Self { crc: 0, ..self }.encode()), content)
    }

    /// A batch's header has a sum of its own in the place of a term, so that the end of a batch that is not whole is known.
    fn batch(length: u32, salt: u32, number: u64) -> Self {
        let bare = Self { length, crc: 0, kind: Kind::Batch as u32, salt, term: 0, index: number };
        Self { term: u64::from(bare.sum(&[])), ..bare }
    }
}

/// A record that is as it was written.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub kind: Kind,
    pub term: u64,
    pub index: u64,
    /// Where the content stands in the bytes that the record was read from.
    pub offset: usize,
    pub content: &'a [u8],
}

impl<'a> Record<'a> {
    /// The content as it was before it was sealed. `base`: where in the segment the bytes begin that the record was read from. Whose log
    /// it is stands in clear: it is asked before there are keys.
    pub fn opened(&self, sealing: Option<&Sealing>, base: u64) -> Result<Cow<'a, [u8]>, &'static str> {
        let Some(sealing) = sealing.filter(|_| self.kind != Kind::Identity) else { return Ok(Cow::Borrowed(self.content)) };
        let begin = base + (self.offset - HEADER_BYTES) as u64;
        let opened = sealing.cipher.open(&context(self.kind, self.term, self.index, begin), self.content);
        opened.map(Cow::Owned).map_err(|_| "a record cannot be opened: it was not sealed by this manager, there")
    }
}

/// The record at `offset`, and where the next one would begin.
pub fn record(bytes: &[u8], offset: usize, salt: u32) -> Result<(Record<'_>, usize), &'static str> {
    let begin = offset + HEADER_BYTES;
    let header = Header::decode(bytes.get(offset..begin).ok_or("a record has no room for its header")?);
    let end = begin.checked_add(header.length as usize).ok_or("a record has an impossible length")?;
    let content = bytes.get(begin..end).ok_or("a record is longer than what holds it")?;
    if header.salt != salt || header.sum(content) != header.crc {
        return Err("a record is not what was written (CRC)");
    }
    let kind = Kind::of(header.kind).ok_or("a record is of a kind that this format does not have")?;
    let Header { term, index, .. } = header;
    Ok((Record { kind, term, index, offset: begin, content }, end.next_multiple_of(ALIGNMENT)))
}

/// The number and the end of the batch that begins at `offset`, whole or not.
pub fn batch_bounds(bytes: &[u8], offset: usize, salt: u32) -> Option<(u64, usize)> {
    let header = Header::decode(bytes.get(offset..offset + HEADER_BYTES)?);
    let known = header == Header { crc: header.crc, ..Header::batch(header.length, salt, header.index) };
    let end = offset.checked_add(HEADER_BYTES + TRAILER_BYTES)?.checked_add(header.length as usize)?;
    known.then_some((header.index, end))
}

/// A batch that is as it was written.
#[derive(Debug)]
pub struct Whole<'a> {
    pub number: u64,
    pub records: Vec<Record<'a>>,
    pub end: usize,
}

/// The batch that begins at `offset`.
pub fn batch(bytes: &[u8], offset: usize, salt: u32) -> Result<Whole<'_>, &'static str> {
    let (number, end) = batch_bounds(bytes, offset, salt).ok_or("a batch has no header")?;
    let held = bytes.get(..end).ok_or("a batch is longer than what holds it")?;
    let (first, last) = (offset + HEADER_BYTES, end - TRAILER_BYTES);
    let header = Header::decode(&held[offset..first]);
    if header.sum(&held[first..last]) != header.crc || held[last..] != trailer(header) {
        return Err("a batch is not what was written (CRC)");
    }
    let (mut records, mut at) = (Vec::new(), first);
    while at < last {
        let (record, next) = record(&held[..last], at, salt)?;
        records.push(record);
        at = next;
    }
    Ok(Whole { number, records, end })
}

/// Ends a batch: never zeros, so that a last sector that was not written is told from one that was.
fn trailer(header: Header) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..4].copy_from_slice(&header.crc.to_le_bytes());
    bytes[4..].copy_from_slice(&header.salt.to_le_bytes());
    bytes
}

/// Where an entry's content stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub index: u64,
    pub term: u64,
    pub offset: usize,
    pub bytes: u32,
}

/// Puts a batch together, at the end of `out`.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    begin: usize,
    salt: u32,
    sealing: Option<&'a Sealing>,
    /// Where in the segment `out` begins.
    base: u64,
    placed: Vec<Placed>,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>, salt: u32, sealing: Option<&'a Sealing>, base: u64) -> Self {
        let begin = out.len();
        out.resize(begin + HEADER_BYTES, 0);
        Self { out, begin, salt, sealing, base, placed: Vec::new() }
    }

    pub fn identity(&mut self, identity: &[u8]) -> Result<(), LogError> {
        self.put(Kind::Identity, 0, 0, |out| {
            out.extend_from_slice(identity);
            Ok(())
        })
    }

    pub fn compaction(&mut self, compaction: Compaction) -> Result<(), LogError> {
        let (kind, index, term) = match compaction {
            Compaction::Through { index, term } => (Kind::Through, index, term),
            Compaction::Reset { index, term } => (Kind::Reset, index, term),
        };
        self.put(kind, term, index, |_| Ok(()))
    }

    pub fn snapshot(&mut self, saved: &Saved) -> Result<(), LogError> {
        let SnapshotMetadata { index, term, .. } = saved.metadata;
        self.put(Kind::Snapshot, term, index, |out| {
            out.extend_from_slice(&saved.bytes.to_le_bytes());
            out.extend_from_slice(&saved.checksum.to_le_bytes());
            out.extend_from_slice(&(saved.name.len() as u64).to_le_bytes());
            out.extend_from_slice(saved.name.as_bytes());
            saved.metadata.get_conf_state().write_to_vec(out)
        })
    }

    /// What a batch of the log holds, but for its snapshot.
    pub fn batch(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        if let Some(compaction) = batch.compaction {
            self.compaction(compaction)?;
        }
        for entry in batch.entries {
            self.put(Kind::Entry, entry.term, entry.index, |out| entry.write_to_vec(out))?;
        }
        let HardState { term, vote, commit, .. } = *batch.hard_state;
        self.put(Kind::HardState, term, commit, |out| {
            out.extend_from_slice(&vote.to_le_bytes());
            Ok(())
        })
    }

    fn put(
        &mut self,
        kind: Kind,
        term: u64,
        index: u64,
        content: impl FnOnce(&mut Vec<u8>) -> Result<(), protobuf::ProtobufError>,
    ) -> Result<(), LogError> {
        let begin = self.out.len();
        let offset = begin + HEADER_BYTES;
        self.out.resize(offset, 0);
        let written = match self.sealing.filter(|_| kind != Kind::Identity) {
            Some(sealing) => sealing.cipher.seal_into(&context(kind, term, index, self.base + begin as u64), self.out, content),
            None => content(self.out),
        };
        written.map_err(|source| LogError::Decode { what: "encode a record of the log", source })?;
        let length = length(self.out.len() - offset)?;
        let bare = Header { length, crc: 0, kind: kind as u32, salt: self.salt, term, index };
        let header = Header { crc: bare.sum(&self.out[offset..]), ..bare };
        self.out[begin..offset].copy_from_slice(&header.encode());
        let padded = self.out.len().next_multiple_of(ALIGNMENT);
        self.out.resize(padded, 0);
        if kind == Kind::Entry {
            self.placed.push(Placed { index, term, offset, bytes: length });
        }
        Ok(())
    }

    /// Seals it as batch `number`; says where its entries stand in the bytes.
    pub fn end(self, number: u64) -> Result<Vec<Placed>, LogError> {
        let first = self.begin + HEADER_BYTES;
        let bare = Header::batch(length(self.out.len() - first)?, self.salt, number);
        let header = Header { crc: bare.sum(&self.out[first..]), ..bare };
        self.out[self.begin..first].copy_from_slice(&header.encode());
        self.out.extend_from_slice(&trailer(header));
        Ok(self.placed)
    }
}

fn length(bytes: usize) -> Result<u32, LogError> {
    // Half of what the field holds: offsets in a segment stay below it as well.
    let limit = u32::MAX / 2;
    match u32::try_from(bytes) {
        Ok(length) if length < limit => Ok(length),
        _ => Err(LogError::TooLarge { bytes: bytes as u64, limit: u64::from(limit) }),
    }
}

/// What a record says about the hard state.
pub fn hard_state(record: &Record<'_>) -> Result<HardState, &'static str> {
    let vote = record.content.try_into().map_err(|_| "a hard state is not of its length")?;
    Ok(HardState { term: record.term, vote: u64::from_le_bytes(vote), commit: record.index, ..HardState::default() })
}

/// What a record says about the snapshot in use.
pub fn snapshot(record: &Record<'_>) -> Result<Saved, &'static str> {
    let (sums, rest) = record.content.split_at_checked(24).ok_or("a snapshot's record is too short")?;
    let name = usize::try_from(u64_at(sums, 16)).ok().and_then(|length| rest.split_at_checked(length));
    let (name, conf_state) = name.ok_or("a snapshot's record is too short")?;
    let name = std::str::from_utf8(name).map_err(|_| "a snapshot has no name")?.to_owned();
    let conf_state = ConfState::parse_from_bytes(conf_state).map_err(|_| "a snapshot's configuration cannot be read")?;
    let mut metadata = SnapshotMetadata { index: record.index, term: record.term, ..SnapshotMetadata::default() };
    metadata.set_conf_state(conf_state);
    Ok(Saved { metadata, name, bytes: u64_at(sums, 0), checksum: u64_at(sums, 8) })
}

/// The entry in a record.
pub fn entry(record: &Record<'_>) -> Result<Entry, &'static str> {
    let entry = Entry::parse_from_bytes(record.content).map_err(|_| "an entry cannot be read")?;
    if record.kind != Kind::Entry || (entry.index, entry.term) != (record.index, record.term) {
        return Err("an entry is not the one that its record names");
    }
    Ok(entry)
}
