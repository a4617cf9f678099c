//! What a log holds, from the bytes of its segments.
//!
//! In: segments, oldest first. Out: what their batches add up to, and where the last one ends; or what is wrong. A batch counts as a whole
//! or not at all. Never: an entry that was not written, or a batch after one that is missing.
//!
//! ```text
//!  bytes that are no whole batch, and ...             are
//!  ... they are zeros to the end                      the end of the segment
//!  ... the segment is not the last one                damage
//!  ... a later batch follows                          damage
//!  ... some sector of them is as it was before,
//!      or the file ends                               a write that the power cut: it was never confirmed, and goes
//!  ... every sector of them was written               damage
//! ```
//!
//! The last two are told apart because what lies after the last batch is zeros always: a write that was cut leaves a sector of zeros, and
//! one that was finished and decayed does not.

use std::collections::VecDeque;

use raft::eraftpb::HardState;

use super::record::{self, ALIGNMENT, HEADER_BYTES, Kind, NoPreamble, Placed, Preamble, Record, Sealing, Whole};
use crate::seal::Keys;
use crate::store::raft::log::{Batch, Compaction, Saved};

/// What a disk writes as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// To compare with, a piece at a time.
const ZEROS: [u8; 4096] = [0; 4096];

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub term: u64,
    pub segment: u64,
    /// Of the entry's content, in the segment.
    pub offset: u32,
    pub bytes: u32,
}

/// The entries of the log, by index, without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    first: u64,
    places: VecDeque<Place>,
}

impl Index {
    /// Index of the first entry, if there is one.
    pub fn first(&self) -> Option<(u64, &Place)> {
        Some((self.first, self.places.front()?))
    }

    /// Entries in order, from `low` on.
    pub fn from(&self, low: u64) -> impl Iterator<Item = (u64, &Place)> {
        let skipped = usize::try_from(low.saturating_sub(self.first)).unwrap_or(usize::MAX);
        (low.max(self.first)..).zip(self.places.iter().skip(skipped))
    }

    /// Puts an entry; what stands there or later goes. An index that leaves a gap is refused.
    fn put(&mut self, index: u64, place: Place) -> bool {
        if self.places.is_empty() || index < self.first {
            self.places.clear();
            self.first = index;
        }
        let before = index - self.first;
        if before > self.places.len() as u64 {
            return false;
        }
        self.places.truncate(usize::try_from(before).unwrap_or(usize::MAX));
        self.places.push_back(place);
        true
    }

    fn compact(&mut self, through: u64) {
        while self.first <= through && self.places.pop_front().is_some() {
            self.first += 1;
        }
    }
}

/// What the batches so far add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    pub identity: Vec<u8>,
    pub hard_state: HardState,
    pub snapshot: Saved,
    /// Index and term of the entry before the first.
    pub offset: (u64, u64),
    pub index: Index,
    /// Of the next batch.
    pub number: u64,
}

impl Held {
    /// Index of the last entry, or of the one before the first.
    pub fn last(&self) -> u64 {
        match self.index.places.len() as u64 {
            0 => self.offset.0,
            entries => self.index.first + entries - 1,
        }
    }

    /// Takes in a batch of the log that stands at `offset` of `segment`.
    pub fn take_in(&mut self, batch: &Batch<'_>, placed: &[Placed], segment: u64, offset: usize) -> Result<(), String> {
        if let Some(compaction) = batch.compaction {
            self.compact(compaction);
        }
        placed.iter().try_for_each(|placed| self.put(&Placed { offset: offset + placed.offset, ..*placed }, segment))?;
        self.hard_state = batch.hard_state.clone();
        if let Some(saved) = batch.snapshot {
            self.snapshot = saved.clone();
        }
        self.number += 1;
        Ok(())
    }

    fn take_in_record(&mut self, stored: &Record<'_>, segment: u64, sealing: Option<&Sealing>) -> Result<(), String> {
        let content = stored.opened(sealing, 0)?;
        let record = &Record { content: &content, ..*stored };
        let Record { kind, term, index, offset, content } = *record;
        match kind {
            Kind::Batch => return Err("a batch stands in a batch".to_owned()),
            Kind::Identity => self.identity = content.to_vec(),
            Kind::HardState => self.hard_state = record::hard_state(record)?,
            Kind::Snapshot => self.snapshot = record::snapshot(record)?,
            Kind::Through => self.compact(Compaction::Through { index, term }),
            Kind::Reset => self.compact(Compaction::Reset { index, term }),
            Kind::Entry => {
                record::entry(record)?;
                let bytes = u32::try_from(stored.content.len()).map_err(|_| "an entry is too long")?;
                self.put(&Placed { index, term, offset, bytes }, segment)?;
            }
        }
        Ok(())
    }

    fn compact(&mut self, compaction: Compaction) {
        match compaction {
            Compaction::Through { index, term } => {
                self.index.compact(index);
                self.offset = (index, term);
            }
            Compaction::Reset { index, term } => {
                self.index = Index::default();
                self.offset = (index, term);
            }
        }
    }

    fn put(&mut self, placed: &Placed, segment: u64) -> Result<(), String> {
        let Placed { index, term, offset, bytes } = *placed;
        let offset = u32::try_from(offset).map_err(|_| "a segment is too long")?;
        // Segments that hold nothing but forgotten entries are gone: the first entry that is still there may leave a gap to the offset
        // of its time, which a later batch has moved.
        if index <= self.offset.0 || !self.index.put(index, Place { term, segment, offset, bytes }) {
            return Err(format!("entry {index} does not follow the one before it"));
        }
        Ok(())
    }

    /// Whether nothing is missing between the entries that were forgotten and those that are there.
    fn check(&self) -> Result<(), String> {
        match self.index.first() {
            Some((first, _)) if first != self.offset.0 + 1 => {
                Err(format!("entries {} to {} are missing: a segment before it is gone", self.offset.0 + 1, first - 1))
            }
            Some(_) | None if self.identity.is_empty() => Err("it does not say whose it is".to_owned()),
            Some(_) | None => Ok(()),
        }
    }
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub segment: u64,
    pub offset: usize,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The segment is of this format, which is newer.
    Newer(u32),
    /// The disk's key with this number, which seals the segment, is not there.
    NoKey(u32),
    Damaged(String),
}

impl From<NoPreamble> for Why {
    fn from(no: NoPreamble) -> Self {
        match no {
            NoPreamble::Newer(format) => Self::Newer(format),
            NoPreamble::Damaged(why) => Self::Damaged(why.to_owned()),
        }
    }
}

/// How a segment ends.
#[derive(Debug, Clone)]
pub struct End {
    pub salt: u32,
    /// `None`: it is in clear.
    pub sealing: Option<Sealing>,
    /// Where its last batch begins.
    pub last: usize,
    /// Where the next batch would begin.
    pub end: usize,
    /// Bytes after it of a write that the power cut.
    pub torn: usize,
}

/// Reads segments, oldest first.
#[derive(Debug, Default)]
pub struct Replay {
    held: Held,
    /// The first segment that was read.
    first: Option<u64>,
    keys: Option<Keys>,
}

impl Replay {
    /// Reads with these keys what is sealed.
    pub fn new(keys: Option<Keys>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Takes in segment `number`, `last` when no other follows, and says how it ends. It does not matter which was the first, as long as all follow that hold
    /// what the log still needs.
    pub fn segment(&mut self, number: u64, bytes: &[u8], last: bool) -> Result<End, Wrong> {
        let wrong = |offset, why: &str| Wrong { segment: number, offset, why: Why::Damaged(why.to_owned()) };
        let preamble = Preamble::decode(bytes).map_err(|no| Wrong { segment: number, offset: 0, why: no.into() })?;
        if preamble.number != number {
            return Err(wrong(0, &format!("it was written as segment {}", preamble.number)));
        }
        let sealing = preamble.seal.map(|seal| {
            let sealing = self.keys.as_ref().and_then(|keys| Sealing::of(keys, seal, number));
            sealing.ok_or(Wrong { segment: number, offset: 24, why: Why::NoKey(seal.key) })
        });
        let first = preamble.end();
        let mut end = End { salt: preamble.salt, sealing: sealing.transpose()?, last: first, end: first, torn: 0 };
        while !is_zero(&bytes[end.end..]) {
            let why = match record::batch(bytes, end.end, end.salt) {
                Ok(batch) => {
                    self.take_in(&batch, number, end.sealing.as_ref()).map_err(|why| wrong(end.end, &why))?;
                    (end.last, end.end) = (end.end, batch.end);
                    continue;
                }
                Err(why) => why,
            };
            if !last {
                return Err(wrong(end.end, &format!("{why}, and another segment follows")));
            }
            if end.end == first {
                // A segment gets its name after its first batch is durable.
                return Err(wrong(end.end, why));
            }
            if let Some(later) = later_batch(bytes, end.end, end.salt, self.held.number) {
                return Err(wrong(end.end, &format!("{why}, and a later batch stands at byte {later}")));
            }
            end.torn = torn(bytes, end.end, end.salt).ok_or_else(|| wrong(end.end, why))?;
            break;
        }
        if end.end == first {
            return Err(wrong(end.end, "it holds no batch"));
        }
        Ok(end)
    }

    fn take_in(&mut self, batch: &Whole<'_>, segment: u64, sealing: Option<&Sealing>) -> Result<(), String> {
        if self.first.is_none() {
            self.first = Some(segment);
            self.held.number = batch.number;
        }
        if batch.number != self.held.number {
            return Err(format!("batch {} stands where batch {} should", batch.number, self.held.number));
        }
        batch.records.iter().try_for_each(|record| self.held.take_in_record(record, segment, sealing))?;
        self.held.number += 1;
        Ok(())
    }

    /// What all of them hold.
    pub fn finish(self) -> Result<Held, Wrong> {
        let segment = self.first.unwrap_or_default();
        self.held.check().map_err(|why| Wrong { segment, offset: 0, why: Why::Damaged(why) })?;
        Ok(self.held)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

/// Where a batch begins that was written after the one at `offset`, which is batch `number`.
fn later_batch(bytes: &[u8], offset: usize, salt: u32, number: u64) -> Option<usize> {
    let later = |at: &usize| record::batch_bounds(bytes, *at, salt).is_some_and(|(found, _)| found > number);
    (offset + ALIGNMENT..bytes.len()).step_by(ALIGNMENT).find(later)
}

/// Bytes of the write at `offset` when the power cut it: when the file ends before it does, or some sector of it was not written. `None`
/// when all of it was.
fn torn(bytes: &[u8], offset: usize, salt: u32) -> Option<usize> {
    let last = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let end = match record::batch_bounds(bytes, offset, salt) {
        Some((_, end)) => end.max(last),
        None => last.max(offset + HEADER_BYTES),
    };
    let cut = end > bytes.len();
    let mut begin = offset;
    let mut unwritten = false;
    while begin < end.min(bytes.len()) {
        let next = (begin + 1).next_multiple_of(SECTOR_BYTES).min(end.min(bytes.len()));
        unwritten |= is_zero(&bytes[begin..next]);
        begin = next;
    }
    (cut || unwritten).then(|| last - offset)
}
