//! What is read back from segments that are as they were written, or were cut, torn or flipped.

use proptest::prelude::*;
use raft::eraftpb::{ConfState, Entry, HardState, SnapshotMetadata};

use super::record::{self, FORMAT, HEADER_BYTES, Preamble, Sealing, Writer};
use super::replay::{End, Held, Replay, SECTOR_BYTES, Why, Wrong};
use crate::seal::Keys;
use crate::store::raft::log::{Batch, Compaction, Saved};

const SALT: u32 = 0x5a17_5a17;
/// A segment's bytes, zeros after its batches.
const SEGMENT_BYTES: usize = 48 << 10;

/// What a batch is made from: how far back its entries begin, the content of each, whether it names a snapshot.
type Drawn = (u64, Vec<Vec<u8>>, bool);

/// A segment with the batches, and what was held after each of them, with the place where it ends.
struct Written {
    keys: Option<Keys>,
    bytes: Vec<u8>,
    after: Vec<(usize, Held)>,
}

fn write(drawn: &[Drawn], sealed: bool) -> Written {
    let mut bytes = Vec::new();
    let keys = sealed.then(Keys::random);
    let (seal, sealing) = keys.as_ref().map(|keys| Sealing::draw(keys, 1)).unzip();
    let preamble = Preamble { number: 1, salt: SALT, seal };
    preamble.encode(&mut bytes);
    assert_eq!(bytes.len(), preamble.end());
    let mut held = Held { number: 1, offset: (4, 1), ..Held::default() };
    let mut after = Vec::new();
    for (term, (back, contents, with_snapshot)) in (1..).zip(drawn) {
        let first = after.is_empty();
        let begin = bytes.len();
        let last = held.last();
        let from = last.saturating_sub(*back).max(4) + 1;
        let entries: Vec<Entry> = (from..).zip(contents).map(|(index, content)| entry(index, term, content)).collect();
        let hard_state = HardState { term, vote: term % 4, commit: last, ..HardState::default() };
        let saved = (first || *with_snapshot).then(|| saved(last));
        let batch = Batch { hard_state: &hard_state, entries: &entries, snapshot: saved.as_ref(), compaction: None };
        let mut writer = Writer::new(&mut bytes, SALT, sealing.as_ref(), 0);
        if first {
            writer.identity(b"m1").unwrap();
            writer.compaction(Compaction::Through { index: 4, term: 1 }).unwrap();
            held.identity = b"m1".to_vec();
        }
        writer.batch(&batch).unwrap();
        if let Some(saved) = &saved {
            writer.snapshot(saved).unwrap();
        }
        let placed = writer.end(held.number).unwrap();
        assert!(placed.iter().all(|placed| placed.offset > begin));
        held.take_in(&batch, &placed, 1, 0).unwrap();
        after.push((bytes.len(), held.clone()));
    }
    bytes.resize(SEGMENT_BYTES, 0);
    Written { keys, bytes, after }
}

fn entry(index: u64, term: u64, content: &[u8]) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    entry.data = content.to_vec().into();
    entry
}

fn saved(index: u64) -> Saved {
    let mut metadata = SnapshotMetadata { index, term: 1, ..SnapshotMetadata::default() };
    metadata.set_conf_state(ConfState::from((vec![1, 2, 3], vec![4])));
    Saved { metadata, name: format!("snapshot-{index}"), bytes: 7, checksum: 9 }
}

fn read(bytes: &[u8]) -> Result<(Held, End), Wrong> {
    read_with(bytes, None)
}

fn read_with(bytes: &[u8], keys: Option<&Keys>) -> Result<(Held, End), Wrong> {
    let mut replay = Replay::new(keys.cloned());
    let end = replay.segment(1, bytes, true)?;
    Ok((replay.finish()?, end))
}

/// Every entry that is held can be read where it is said to stand.
fn check_entries(held: &Held, end: &End, bytes: &[u8]) {
    for (index, place) in held.index.from(0) {
        let (found, _) = record::record(bytes, place.offset as usize - HEADER_BYTES, SALT).unwrap();
        let content = found.opened(end.sealing.as_ref(), 0).unwrap();
        let entry = record::entry(&record::Record { content: &content, ..found }).unwrap();
        assert_eq!((entry.index, entry.term), (index, place.term));
    }
}

/// Asserts that what is read is what was held after one of the batches, or a refusal; how many batches were kept.
fn check_prefix(written: &Written, bytes: &[u8]) -> Option<usize> {
    let (held, end) = read_with(bytes, written.keys.as_ref()).ok()?;
    let kept = written.after.iter().position(|(at, after)| *at == end.end && *after == held).expect("a state that never was");
    check_entries(&held, &end, bytes);
    Some(kept + 1)
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop_oneof![4 => 0..200_usize, 1 => 500..1600_usize];
    (any::<u8>(), sizes).prop_map(|(fill, size)| vec![fill; size])
}

fn batches() -> impl Strategy<Value = Vec<Drawn>> {
    prop::collection::vec((0..3_u64, prop::collection::vec(content(), 0..4), prop::bool::weighted(0.1)), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(drawn in batches(), sealed in any::<bool>()) {
        let written = write(&drawn, sealed);
        prop_assert_eq!(check_prefix(&written, &written.bytes), Some(drawn.len()));
        prop_assert_eq!(read_with(&written.bytes, written.keys.as_ref()).unwrap().1.torn, 0);
    }

    #[test]
    fn a_log_cut_at_any_byte_holds_the_batches_before_the_cut(drawn in batches(), sealed in any::<bool>(), cut in 0..SEGMENT_BYTES) {
        let written = write(&drawn, sealed);
        let whole = written.after.iter().filter(|(end, _)| *end <= cut).count();
        let kept = check_prefix(&written, &written.bytes[..cut]);
        // The first batch of a segment is durable before the segment has a name.
        prop_assert_eq!(kept, (whole > 0).then_some(whole));
    }

    #[test]
    fn a_flipped_bit_costs_nothing_or_is_refused_or_takes_the_last_batch(
        drawn in batches(), sealed in any::<bool>(), at in any::<prop::sample::Index>(), bit in 0..8_u32
    ) {
        let written = write(&drawn, sealed);
        let mut bytes = written.bytes.clone();
        let used = written.after.last().unwrap().0;
        bytes[at.index(used + 40)] ^= 1 << bit;
        if let Some(kept) = check_prefix(&written, &bytes) {
            prop_assert!(kept + 1 >= drawn.len(), "{} of {}", kept, drawn.len());
        }
    }

    #[test]
    fn a_write_that_the_power_cut_is_taken_off(drawn in batches(), sealed in any::<bool>(), lost in prop::collection::vec(any::<bool>(), 20), more in content()) {
        let mut with_last = drawn.clone();
        with_last.push((0, vec![more], false));
        let written = write(&with_last, sealed);
        let (begin, end) = (written.after[drawn.len() - 1].0, written.after[drawn.len()].0);
        let mut bytes = written.bytes.clone();
        let sectors = (begin / SECTOR_BYTES)..end.div_ceil(SECTOR_BYTES);
        let mut any_lost = false;
        for (sector, _) in sectors.zip(&lost).filter(|(_, lost)| **lost) {
            let here = (sector * SECTOR_BYTES).max(begin)..((sector + 1) * SECTOR_BYTES).min(end);
            any_lost |= bytes[here.clone()].iter().any(|byte| *byte != 0);
            bytes[here].fill(0);
        }
        let expected = if any_lost { drawn.len() } else { drawn.len() + 1 };
        prop_assert_eq!(check_prefix(&written, &bytes), Some(expected));
        // Once it is filled with zeros, it is as if it had never been.
        let (_, found) = read_with(&bytes, written.keys.as_ref()).unwrap();
        bytes[found.end..found.end + found.torn].fill(0);
        prop_assert_eq!(read_with(&bytes, written.keys.as_ref()).unwrap().1.torn, 0);
        prop_assert_eq!(check_prefix(&written, &bytes), Some(expected));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&bytes).is_err());
        let mut begun = Vec::new();
        Preamble { number: 1, salt: SALT, seal: None }.encode(&mut begun);
        begun.extend_from_slice(&bytes);
        prop_assert!(read(&begun).is_err());
    }

    #[test]
    fn a_number_that_was_changed_is_never_trusted(drawn in batches(), sealed in any::<bool>(), at in any::<prop::sample::Index>(), value in any::<u32>()) {
        let written = write(&drawn, sealed);
        let mut bytes = written.bytes.clone();
        let at = at.index(written.after.last().unwrap().0 - 4);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        check_prefix(&written, &bytes);
    }
}

/// Three batches with an entry of 1,000 bytes each.
fn three() -> Written {
    write(&[(0, vec![vec![1; 1000]], false), (0, vec![vec![2; 1000]], false), (0, vec![vec![3; 1000]], false)], false)
}

fn refused(bytes: &[u8]) -> (usize, String) {
    match read(bytes).unwrap_err() {
        Wrong { offset, why: Why::Damaged(why), .. } => (offset, why),
        wrong => panic!("{wrong:?}"),
    }
}

#[test]
fn damage_before_a_whole_batch_is_refused_by_its_place() {
    let written = three();
    let mut bytes = written.bytes.clone();
    let (first, second) = (written.after[0].0, written.after[1].0);
    bytes[first + 80] ^= 1;
    let why = format!("a batch is not what was written (CRC), and a later batch stands at byte {second}");
    assert_eq!(refused(&bytes), (first, why));
    // Also when the batch's own bounds are lost.
    bytes[first..first + HEADER_BYTES].fill(0);
    assert_eq!(refused(&bytes), (first, format!("a batch has no header, and a later batch stands at byte {second}")));
}

#[test]
fn a_last_batch_that_was_written_to_its_end_and_decayed_is_refused() {
    let written = three();
    let mut bytes = written.bytes.clone();
    let second = written.after[1].0;
    bytes[second + 80] ^= 1;
    assert_eq!(refused(&bytes), (second, "a batch is not what was written (CRC)".to_owned()));
}

#[test]
fn a_segment_that_another_follows_must_be_whole() {
    let written = three();
    let mut bytes = written.bytes.clone();
    let second = written.after[1].0;
    bytes[(second + 80).next_multiple_of(SECTOR_BYTES)..].fill(0);
    assert!(read(&bytes).is_ok());
    let wrong = Replay::default().segment(1, &bytes, false).unwrap_err();
    assert!(matches!(wrong, Wrong { offset, why: Why::Damaged(why), .. } if offset == second && why.contains("another segment follows")));
}

#[test]
fn a_missing_batch_is_refused() {
    let written = three();
    let (first, second) = (written.after[0].0, written.after[1].0);
    let mut bytes = written.bytes.clone();
    bytes.drain(first..second);
    assert_eq!(refused(&bytes), (first, "batch 3 stands where batch 2 should".to_owned()));
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let mut bytes = three().bytes;
    bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    // Whatever else it changes.
    bytes[24..].fill(0xff);
    assert!(matches!(read(&bytes).unwrap_err().why, Why::Newer(format) if format == FORMAT + 1));
}

#[test]
fn bytes_of_another_segment_do_not_pass() {
    let written = three();
    let mut bytes = Vec::new();
    Preamble { number: 1, salt: SALT + 2, seal: None }.encode(&mut bytes);
    bytes.extend_from_slice(&written.bytes[32..]);
    assert_eq!(refused(&bytes).0, 32);
    let wrong = Replay::default().segment(2, &written.bytes, true).unwrap_err();
    assert!(matches!(wrong.why, Why::Damaged(why) if why == "it was written as segment 1"));
}

#[test]
fn entries_that_are_needed_and_stood_in_a_lost_segment_are_missed() {
    let mut bytes = Vec::new();
    Preamble { number: 2, salt: SALT, seal: None }.encode(&mut bytes);
    let mut writer = Writer::new(&mut bytes, SALT, None, 0);
    writer.identity(b"m1").unwrap();
    writer.compaction(Compaction::Through { index: 4, term: 1 }).unwrap();
    let batch = Batch { hard_state: &HardState::default(), entries: &[entry(9, 1, b"x")], snapshot: None, compaction: None };
    writer.batch(&batch).unwrap();
    writer.end(17).unwrap();
    let mut replay = Replay::default();
    replay.segment(2, &bytes, true).unwrap();
    let wrong = replay.finish().unwrap_err();
    assert!(matches!(wrong.why, Why::Damaged(why) if why == "entries 5 to 8 are missing: a segment before it is gone"));
}

#[test]
fn a_sealed_log_is_read_by_its_keys_alone_and_nothing_of_it_stands_in_clear() {
    let written = write(&[(0, vec![b"hunter2 hunter2".to_vec()], true), (0, vec![b"hunter2".to_vec()], false)], true);
    let shown = |bytes: &[u8]| bytes.windows(7).any(|part| part == b"hunter2");
    assert!(!shown(&written.bytes));
    assert!(shown(&write(&[(0, vec![b"hunter2".to_vec()], false)], false).bytes), "the test sees what stands in clear");
    assert_eq!(check_prefix(&written, &written.bytes), Some(2));
    assert_eq!(read(&written.bytes).unwrap_err().why, Why::NoKey(1));
    let wrong = read_with(&written.bytes, Some(&Keys::random())).unwrap_err();
    assert!(matches!(wrong.why, Why::Damaged(why) if why.starts_with("a record cannot be opened")));
}

#[test]
fn a_sealed_record_counts_only_where_it_was_written_and_as_what() {
    let keys = Keys::random();
    let (seal, sealing) = Sealing::draw(&keys, 1);
    let batch = |base| {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, SALT, Some(&sealing), base);
        let hard_state = HardState { term: 1, ..HardState::default() };
        let batch = Batch { hard_state: &hard_state, entries: &[entry(5, 1, b"x")], snapshot: None, compaction: None };
        writer.batch(&batch).unwrap();
        writer.end(2).unwrap();
        bytes
    };
    let bytes = batch(640);
    let (found, _) = record::record(&bytes, HEADER_BYTES, SALT).unwrap();
    assert!(found.opened(Some(&sealing), 640).is_ok());
    for moved in [0, 639, 641] {
        assert!(found.opened(Some(&sealing), moved).is_err(), "it is taken at {moved}");
    }
    let changed = [
        record::Record { index: 6, ..found },
        record::Record { term: 2, ..found },
        record::Record { kind: record::Kind::HardState, ..found },
    ];
    assert!(changed.iter().all(|record| record.opened(Some(&sealing), 640).is_err()));
    let others = [Sealing::of(&keys, seal, 2).unwrap(), Sealing::draw(&keys, 1).1];
    assert!(others.iter().all(|other| found.opened(Some(other), 640).is_err()));
    assert_ne!(batch(640), bytes, "nothing is sealed twice alike");
}
