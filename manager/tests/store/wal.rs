//! The log in a directory: what is there, what is refused, and what happens when the disk is full.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};
use rcluster_api::seal::Key;
use rcluster_api::tls::Security;
use rcluster_manager::seal::Keys;
use rcluster_manager::store::{
    Batch, Compaction, Directory, Fatal, LogError, LogStore, ProposeError, Store, StoreConfig, StoreError, Wal, identity, prepare, start,
    start_with,
};
use tokio::sync::watch;

use crate::world::{Network, config, founded, has, make, make_large, until};

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    entry.data = vec![u8::try_from(index % 251).unwrap(); bytes].into();
    entry
}

fn append(log: &mut Wal, entries: &[Entry]) {
    let last = entries.last().unwrap();
    let hard_state = HardState { term: last.term, vote: 2, commit: last.index, ..HardState::default() };
    log.write(&Batch { hard_state: &hard_state, entries, snapshot: None, compaction: None }).unwrap();
}

/// Forgets the entries through `index`, which is of term 1, and names a snapshot of it.
fn compact(log: &mut Wal, index: u64, commit: u64) {
    let saved = log.saver()(SnapshotMetadata { index, term: 1, ..SnapshotMetadata::default() }, b"tables").unwrap();
    let hard_state = HardState { term: 1, vote: 2, commit, ..HardState::default() };
    let compaction = Some(Compaction::Through { index, term: 1 });
    log.write(&Batch { hard_state: &hard_state, entries: &[], snapshot: Some(&saved), compaction }).unwrap();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("raft")).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().contains("segment-")).collect();
    segments.sort();
    segments
}

/// Every file below `dir` and what it holds.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A log with short segments in a directory of its own.
fn short_log(dir: &Path, segment_bytes: u64) -> Wal {
    short_log_with(dir, segment_bytes, None)
}

fn short_log_with(dir: &Path, segment_bytes: u64, keys: Option<Keys>) -> Wal {
    fs::create_dir_all(dir.join("raft")).unwrap();
    let (hard_state, snapshot) = (HardState { term: 1, commit: 1, ..HardState::default() }, first_snapshot());
    Wal::create_on(Directory::new(&dir.join("raft")), dir, segment_bytes, keys, b"m1", &hard_state, snapshot).unwrap()
}

fn first_snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(b"tables".to_vec().into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (1, 1);
    metadata.mut_conf_state().set_voters(vec![1, 2, 3]);
    snapshot
}

#[test]
fn segments_are_used_again_and_the_log_takes_no_more_room() {
    const SEGMENT_BYTES: u64 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let mut log = short_log(dir.path(), SEGMENT_BYTES);
    log.load().unwrap();
    for round in 0..20 {
        let from = 2 + round * 100;
        for index in from..from + 100 {
            append(&mut log, &[entry(index, 1, 1000)]);
        }
        compact(&mut log, from + 89, from + 99);
        assert_eq!(log.entries(from + 90, from + 100, u64::MAX).unwrap().len(), 10);
    }
    drop(log);
    // 2,000 entries were some 34 segments; those that nothing needs go beside the log's thread, a few at a time.
    let (mut log, _) = Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), SEGMENT_BYTES, None).unwrap();
    let loaded = log.load().unwrap();
    assert_eq!((loaded.terms.first(), loaded.terms.last(), loaded.snapshot.index), (1992, 2001, 1991));
    assert_eq!(log.entries(1992, 2002, u64::MAX).unwrap(), (1992..2002).map(|index| entry(index, 1, 1000)).collect::<Vec<_>>());
    for wait in 0..3000 {
        if segments(dir.path()).len() <= 2 && dir.path().join("raft/spare").exists() {
            break;
        }
        assert!(wait < 2999, "segments that nothing needs stay: {:?}", segments(dir.path()));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_batch_larger_than_a_segment_and_entries_by_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = short_log(dir.path(), 16 << 10);
    append(&mut log, &(2..6).map(|index| entry(index, 1, 10_000)).collect::<Vec<_>>());
    append(&mut log, &[entry(6, 1, 10)]);
    drop(log);
    let (log, identity) = Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), 16 << 10, None).unwrap();
    assert_eq!(identity, b"m1");
    let lengths = |low, bytes_max| {
        let entries = log.entries(low, 7, bytes_max).unwrap();
        entries.iter().map(|entry| entry.data.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(2, u64::MAX), [10_000, 10_000, 10_000, 10_000, 10]);
    assert_eq!(lengths(3, 25_000), [10_000, 10_000]);
    assert_eq!(lengths(3, 1), [10_000]);
}

#[test]
fn entries_that_leave_a_gap_are_refused_before_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = short_log(dir.path(), 16 << 10);
    append(&mut log, &[entry(2, 1, 10)]);
    // The spare is being made beside it.
    let written = || contents(dir.path()).into_iter().filter(|(path, _)| !path.ends_with("spare")).collect::<BTreeMap<_, _>>();
    let before = written();
    let hard_state = HardState::default();
    let refused = log.write(&Batch { hard_state: &hard_state, entries: &[entry(4, 1, 10)], snapshot: None, compaction: None });
    assert!(matches!(refused, Err(LogError::Damaged(why)) if why == "entries from 4 on do not follow 2"));
    assert_eq!(written(), before);
}

fn lone(dir: &Path) -> StoreConfig {
    StoreConfig { dir: dir.to_path_buf(), ..config(1, 1) }
}

/// A state directory whose manager has made some writes, and is stopped.
async fn used() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    prepare(&lone(dir.path()), Some(&founded(&config(1, 1).seeds))).unwrap();
    let (store, _) = start(lone(dir.path()), Security::plain()).unwrap();
    write(&store, &["a", "b", "c"]).await;
    store.shutdown().await;
    dir
}

async fn write(store: &Store, ids: &[&str]) {
    until("it leads", || (store.role().borrow().leader.is_some()).then_some(())).await;
    for id in ids {
        store.propose(make(id)).await.unwrap();
    }
}

fn refusal(dir: &Path) -> String {
    let error: StoreError = start(lone(dir), Security::plain()).unwrap_err();
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[test]
fn a_write_that_was_cut_is_taken_off_and_what_was_confirmed_stays() {
    const SEGMENT_BYTES: u64 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let open = || Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), SEGMENT_BYTES, None).unwrap().0;
    let mut log = short_log(dir.path(), SEGMENT_BYTES);
    append(&mut log, &[entry(2, 1, 3000)]);
    append(&mut log, &[entry(3, 1, 3000)]);
    drop(log);
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let used = bytes.len();
    let lost = (used - 2000).next_multiple_of(512);
    bytes[lost..lost + 512].fill(0);
    fs::write(&segment, bytes).unwrap();
    let mut log = open();
    assert_eq!(log.load().unwrap().terms.last(), 2);
    let bytes = fs::read(&segment).unwrap();
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES, "a segment is made ready as a whole");
    assert!(bytes[used - 3000..].iter().all(|byte| *byte == 0), "what was cut off is gone from the disk");
    append(&mut log, &[entry(3, 2, 10)]);
    drop(log);
    assert_eq!(open().entries(2, 4, u64::MAX).unwrap(), [entry(2, 1, 3000), entry(3, 2, 10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_with_its_place_and_what_to_do_and_nothing_is_changed() {
    let dir = used().await;
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 4;
    fs::write(&segment, bytes).unwrap();
    let before = contents(dir.path());
    let refusal = refusal(dir.path());
    let expected = format!("{} is damaged at byte 32: ", segment.display());
    assert!(refusal.contains(&expected) && refusal.contains("join again with an empty state directory"), "{refusal}");
    assert_eq!(contents(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused_and_nothing_is_changed() {
    let dir = used().await;
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] = 3;
    fs::write(&segment, bytes).unwrap();
    let before = contents(dir.path());
    let refusal = refusal(dir.path());
    assert!(refusal.contains("has format 3, newer than this version reads (2)") && refusal.contains("upgrade this manager"), "{refusal}");
    assert_eq!(contents(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_earlier_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raft.redb"), b"redb").unwrap();
    let founded = founded(&config(1, 1).seeds);
    let refusals = [
        identity(dir.path()).unwrap_err().to_string(),
        prepare(&lone(dir.path()), Some(&founded)).unwrap_err().to_string(),
        refusal(dir.path()),
    ];
    for refusal in refusals {
        assert!(refusal.contains("raft.redb is the log of an earlier version") && refusal.contains("empty state directory"), "{refusal}");
    }
    assert_eq!(contents(dir.path()).into_values().collect::<Vec<_>>(), [b"redb"]);
}

/// Copies the files of a directory, and of those in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// What the logs in `tests/fixtures` were made by.
fn make_fixture(dir: &Path, keys: Option<Keys>) {
    let mut log = short_log_with(dir, 4 << 10, keys);
    append(&mut log, &[entry(2, 1, 600), entry(3, 1, 600), entry(4, 1, 0)]);
    append(&mut log, &[entry(5, 1, 1200), entry(6, 1, 1200)]);
    append(&mut log, &[entry(6, 2, 900)]);
    compact(&mut log, 3, 5);
    append(&mut log, &[entry(7, 3, 300)]);
}

fn check_fixture(dir: &Path, keys: Option<Keys>) {
    let (mut log, identity) = Wal::open_on(Directory::new(&dir.join("raft")), dir, 4 << 10, keys).unwrap();
    assert_eq!(identity, b"m1");
    let loaded = log.load().unwrap();
    assert_eq!(loaded.hard_state, HardState { term: 3, vote: 2, commit: 7, ..HardState::default() });
    assert_eq!((loaded.snapshot.index, loaded.snapshot.term, loaded.data), (3, 1, b"tables".to_vec()));
    let expected = [entry(4, 1, 0), entry(5, 1, 1200), entry(6, 2, 900), entry(7, 3, 300)];
    assert_eq!(log.entries(4, 8, u64::MAX).unwrap(), expected);
    assert_eq!((loaded.terms.first(), loaded.terms.term(3)), (4, Some(1)));
    append(&mut log, &[entry(8, 3, 9)]);
    assert_eq!(log.entries(8, 9, u64::MAX).unwrap(), [entry(8, 3, 9)]);
}

/// A log that an earlier version made.
fn fixture(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name), dir.path());
    assert!(segments(dir.path()).len() > 1);
    dir
}

/// Those that the fixture of format 2 is sealed with.
fn fixed_keys() -> Keys {
    Keys::new(BTreeMap::from([(1, Key::from_bytes(&[7; 32]).unwrap())])).unwrap()
}

#[test]
fn a_log_of_format_1_is_read() {
    check_fixture(fixture("log-1").path(), None);
    // What this version writes in clear is the same.
    let own = tempfile::tempdir().unwrap();
    make_fixture(own.path(), None);
    check_fixture(own.path(), None);
}

#[test]
fn a_log_of_format_2_is_read() {
    check_fixture(fixture("log-2").path(), Some(fixed_keys()));
    let own = tempfile::tempdir().unwrap();
    make_fixture(own.path(), Some(fixed_keys()));
    check_fixture(own.path(), Some(fixed_keys()));
    let refused = Wal::open_on(Directory::new(&own.path().join("raft")), own.path(), 4 << 10, None).unwrap_err().to_string();
    assert!(refused.contains("is sealed with key 1 of this disk, which seal.json does not hold"), "{refused}");
}

#[test]
fn a_log_in_clear_goes_on_sealed() {
    let dir = fixture("log-1");
    let open = || Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), 4 << 10, Some(fixed_keys())).unwrap().0;
    let text = b"a text that is seen";
    let shown = || contents(dir.path()).values().any(|bytes| bytes.windows(text.len()).any(|part| part == text));
    let write = |log: &mut Wal, index| {
        let mut entry = Entry { index, term: 3, ..Entry::default() };
        entry.data = text.to_vec().into();
        append(log, &[entry]);
    };
    let mut log = open();
    log.load().unwrap();
    write(&mut log, 8);
    drop(log);
    assert!(!shown());
    let mut log = open();
    assert_eq!(log.load().unwrap().terms.last(), 8);
    assert_eq!(log.entries(4, 9, u64::MAX).unwrap().len(), 5);
    drop(log);
    let clear = fixture("log-1");
    let mut log = Wal::open_on(Directory::new(&clear.path().join("raft")), clear.path(), 4 << 10, None).unwrap().0;
    write(&mut log, 8);
    assert!(contents(clear.path()).values().any(|bytes| bytes.windows(text.len()).any(|part| part == text)), "what is not sealed is seen");
}

#[test]
fn a_new_key_seals_what_is_written_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let keys = fixed_keys();
    let mut log = short_log_with(dir.path(), 16 << 10, Some(keys.clone()));
    append(&mut log, &[entry(2, 1, 100)]);
    let both = BTreeMap::from([(1, Key::from_bytes(&[7; 32]).unwrap()), (2, Key::random())]);
    keys.replace(&Keys::new(both.clone()).unwrap());
    append(&mut log, &[entry(3, 1, 100)]);
    compact(&mut log, 1, 3);
    assert_eq!(log.entries(2, 4, u64::MAX).unwrap().len(), 2);
    drop(log);
    let open = |keys| Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), 16 << 10, keys);
    assert!(matches!(open(Some(fixed_keys())), Err(LogError::NoKey { key: 2, .. })));
    let mut log = open(Keys::new(both)).unwrap().0;
    assert_eq!((log.load().unwrap().data, log.entries(2, 4, u64::MAX).unwrap().len()), (b"tables".to_vec(), 2));
}

#[test]
fn snapshots_that_nobody_uses_are_gone_with_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    drop(short_log_with(dir.path(), 16 << 10, Some(fixed_keys())));
    let names = || contents(dir.path()).into_keys().filter(|path| path.to_string_lossy().contains("snapshot-"));
    let used: Vec<PathBuf> = names().collect();
    // One that was replaced, one that was to replace it, and one that was being written, when the power went.
    for name in ["snapshot-00000000000000000000-0badcafe.sealed", "snapshot-00000000000000000099-0badcafe.sealed"] {
        fs::write(dir.path().join(name), "of before").unwrap();
        fs::write(dir.path().join(format!(".{name}.17")), "of bef").unwrap();
    }
    let mut log = Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), 16 << 10, Some(fixed_keys())).unwrap().0;
    assert_eq!(names().count(), 5, "nothing is changed before it is known that it can be read");
    assert_eq!(log.load().unwrap().data, b"tables");
    assert_eq!((used.len(), names().collect()), (1, used));
}

#[test]
#[ignore = "a measurement, not a claim: cargo test --release -p rcluster-manager --test store -- --ignored --nocapture what_sealing_costs"]
#[expect(clippy::print_stdout, reason = "a measurement says what it measured")]
fn what_sealing_costs() {
    const BATCHES: u64 = 400;
    let run = |entries: u64, bytes: usize, keys: Option<Keys>| {
        let dir = tempfile::tempdir().unwrap();
        let mut log = short_log_with(dir.path(), 16 << 20, keys.clone());
        log.load().unwrap();
        let began = std::time::Instant::now();
        for batch in 0..BATCHES {
            let from = 2 + batch * entries;
            append(&mut log, &(from..from + entries).map(|index| entry(index, 1, bytes)).collect::<Vec<_>>());
        }
        let written = began.elapsed();
        drop(log);
        let began = std::time::Instant::now();
        Wal::open_on(Directory::new(&dir.path().join("raft")), dir.path(), 16 << 20, keys).unwrap();
        (written, began.elapsed())
    };
    for (entries, bytes) in [(1, 256), (16, 256), (128, 256), (8, 64 << 10)] {
        let mut totals = [[0.0; 2]; 2];
        for _ in 0..5 {
            for (place, keys) in [None, Some(fixed_keys())].into_iter().enumerate() {
                let (written, opened) = run(entries, bytes, keys);
                totals[place][0] += written.as_secs_f64() / 5.0;
                totals[place][1] += opened.as_secs_f64() / 5.0;
            }
        }
        let [[clear, clear_open], [sealed, sealed_open]] = totals;
        let per_batch = |seconds: f64| seconds / BATCHES as f64 * 1e6;
        println!(
            "{entries} entries of {bytes} bytes: a batch {:.0} µs in clear, {:.0} µs sealed ({:.2}); opening {:.1} ms, {:.1} ms",
            per_batch(clear),
            per_batch(sealed),
            sealed / clear,
            clear_open * 1e3,
            sealed_open * 1e3
        );
    }
}

#[test]
#[ignore = "makes the fixture anew: only for a format that nobody has used"]
fn make_log_2() {
    make_fixture(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/log-2"), Some(fixed_keys()));
}

/// Runs `test` with a tmpfs of so many bytes at a directory that only it sees and that is gone with it.
fn on_a_disk_of(bytes: u64, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(format!("size={bytes}").as_str())).unwrap();
        test(dir.path());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn remount(dir: &Path, flags: MsFlags, options: &str) {
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_REMOUNT | flags, Some(options)).unwrap();
}

/// Writes until the disk is full; which writes were confirmed, and what was said at the end.
async fn fill(store: &Store, fatal: &mut watch::Receiver<Option<String>>) -> (Vec<String>, String) {
    until("it leads", || store.role().borrow().leader.is_some().then_some(())).await;
    let mut confirmed = Vec::new();
    for number in 0.. {
        let id = format!("{number:04}");
        match store.propose(make_large(&id, 1 << 20)).await {
            Ok(_) => confirmed.push(id),
            Err(ProposeError::ShuttingDown | ProposeError::Unavailable) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(number < 1000, "the disk is never full");
    }
    let told = until("what is wrong", || fatal.borrow_and_update().clone()).await;
    (confirmed, told)
}

#[test]
fn a_manager_on_a_full_disk_ends_and_nothing_confirmed_is_lost() {
    on_a_disk_of(40 << 20, |dir| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = lone(dir);
        prepare(&config, Some(&founded(&config.seeds))).unwrap();
        let confirmed = runtime.block_on(async {
            let (log, _) = Wal::open(dir, None).unwrap();
            let (told, mut fatal) = watch::channel(None);
            let wire = |inbox| Network::default().wire(1, inbox);
            let on_fatal = move |fatal: &Fatal| {
                told.send_replace(Some(chain(fatal)));
            };
            let (store, _) = start_with(config.clone(), log, wire, on_fatal).unwrap();
            let (confirmed, told) = fill(&store, &mut fatal).await;
            assert!(
                told.contains("the disk is full: make room on it") && told.contains("/raft/") && told.contains("No space left on device"),
                "{told}"
            );
            confirmed
        });
        assert!(confirmed.len() > 20, "{} writes", confirmed.len());
        remount(dir, MsFlags::empty(), "size=100m");
        runtime.block_on(async {
            let (store, _) = start(config, Security::plain()).unwrap();
            write(&store, &["one more"]).await;
            let lost: Vec<&String> = confirmed.iter().filter(|id| !has(&store.state(), id)).collect();
            assert!(lost.is_empty(), "{lost:?}");
            store.shutdown().await;
        });
    });
}

fn chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

#[test]
fn a_manager_does_not_start_on_a_disk_that_cannot_be_written() {
    on_a_disk_of(100 << 20, |dir| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = lone(dir);
        prepare(&config, Some(&founded(&config.seeds))).unwrap();
        runtime.block_on(async {
            let (store, _) = start(config.clone(), Security::plain()).unwrap();
            write(&store, &["a"]).await;
            store.shutdown().await;
        });
        remount(dir, MsFlags::MS_RDONLY, "");
        let _guard = runtime.enter();
        let refusal = refusal(dir);
        assert!(refusal.contains("/raft") && refusal.contains("Read-only file system"), "{refusal}");
        remount(dir, MsFlags::empty(), "");
        runtime.block_on(async {
            let (store, _) = start(config, Security::plain()).unwrap();
            write(&store, &["b"]).await;
            assert!(has(&store.state(), "a"));
            store.shutdown().await;
        });
    });
}
