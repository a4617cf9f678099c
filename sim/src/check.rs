//! What must hold, after every event.
//!
//! The committed log as anyone has first seen it is the measure: it is replayed here from its first entry, so that the tables of every
//! manager, whether it has replayed the log or begun from a snapshot, are compared with what they must be at that index.

mod watch;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType};
use raft::{Raft, StateRole};
use rcluster_api::cluster::{Manager, ManagerRole};
use rcluster_api::wire::v1;
use rcluster_manager::core::state::{Change, Key, State, decode_transaction};
use rcluster_manager::store::Fatal;

use crate::disk::Disk;
use crate::host::Process;

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

macro_rules! hold {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(Violation(format!($($what)*)));
        }
    };
}

pub(crate) use hold;

/// Tables are compared object by object at each so manieth index, and whenever they have come in one piece.
const WHOLE_EVERY: u64 = 8;
/// How far back a new leader's log is compared.
const COMPARED_MAX: usize = 300;

/// What is the same of an entry wherever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    before: Option<u64>,
    kind: EntryType,
    data: Bytes,
}

/// An entry of which someone knew that it is committed.
struct Committed {
    term: u64,
    written: Written,
    /// The term of whoever knew it first: leaders of later terms must have the entry.
    by: u64,
    /// The tables after it.
    state: State,
    /// What it has changed.
    keys: Vec<Key>,
    /// The changes of all entries up to it.
    changes: usize,
}

/// How a write has ended, as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It may come about, or not.
    Unknown,
    Made(u64),
    /// An object had another version: it has no effect.
    Conflict,
    /// Nothing was proposed: it never comes about.
    Refused,
}

/// What was seen of a process the last time.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    commit: u64,
    applied: u64,
    term: u64,
    revision: u64,
    led: bool,
}

/// All that was ever seen.
pub struct Checker {
    /// Where the log begins: a snapshot of the tables that the cluster was founded with.
    founded: State,
    /// From index 2 on.
    log: Vec<Committed>,
    written: BTreeMap<(u64, u64), Written>,
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    fates: BTreeMap<u64, Fate>,
    /// By a write's number: its index, and whether it has had an effect.
    outcomes: BTreeMap<u64, (u64, bool)>,
    /// By host.
    seen: BTreeMap<usize, Seen>,
    /// By host: index of the snapshot that its process has its tables from; what came after, it has applied entry by entry.
    bases: BTreeMap<usize, u64>,
    /// What every request that begins now must see.
    pub floor: u64,
    /// Each write has a number of its own, which stands in the log as the transaction's time.
    is_numbered: bool,
}

const FIRST: u64 = 2;

impl Checker {
    pub fn new(founded: State, is_numbered: bool) -> Self {
        let floor = founded.revision();
        Self {
            founded,
            log: Vec::new(),
            written: BTreeMap::new(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            fates: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            seen: BTreeMap::new(),
            bases: BTreeMap::new(),
            floor,
            is_numbered,
        }
    }

    /// The last index of which anyone knows that it is committed.
    pub fn last(&self) -> u64 {
        self.log.len() as u64 + 1
    }

    /// The tables at the last of them.
    pub fn latest(&self) -> &State {
        self.log.last().map_or(&self.founded, |committed| &committed.state)
    }

    /// Terms in which someone has led.
    pub fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Writes of which a client knows that they were made.
    pub fn made(&self) -> usize {
        self.fates.values().filter(|fate| matches!(fate, Fate::Made(_))).count()
    }

    fn committed(&self, index: u64) -> Option<&Committed> {
        self.log.get(usize::try_from(index.checked_sub(FIRST)?).ok()?)
    }

    /// The tables after the entry at `index`.
    pub fn state_at(&self, index: u64) -> Option<&State> {
        if index < FIRST { (index == 1).then_some(&self.founded) } else { self.committed(index).map(|committed| &committed.state) }
    }

    /// A new process of a host, which has its tables from a snapshot of this index: it may know less than the one before.
    pub fn begin_process(&mut self, host: usize, snapshot_index: u64) {
        self.seen.remove(&host);
        self.bases.insert(host, snapshot_index);
    }

    /// After an event on a host whose manager has `id`; one that has ended in it may not have published all that it has applied.
    pub fn look(&mut self, host: usize, id: u64, process: &Process, disk: &Disk, has_ended: bool) -> Result<(), Violation> {
        self.look_at_disk(host, id, disk)?;
        let raft = process.node.raft();
        let (storage, before) = (raft.store(), self.seen.get(&host).copied().unwrap_or_default());
        let state = storage.state();
        let seen = Seen {
            // One that has ended may know of what its log has not taken in: a snapshot that could not be written.
            commit: if has_ended { storage.applied().max(before.commit) } else { raft.raft_log.committed },
            applied: storage.applied(),
            term: raft.term,
            revision: state.revision(),
            led: raft.state == StateRole::Leader,
        };
        hold!(seen.commit >= before.commit, "{id} knew that {} is committed and now knows {}", before.commit, seen.commit);
        hold!(seen.applied >= before.applied, "{id} had applied {} and now {}", before.applied, seen.applied);
        hold!(seen.term >= before.term, "{id} was in term {} and now in {}", before.term, seen.term);
        hold!(seen.revision >= before.revision, "{id} was at revision {} and now at {}", before.revision, seen.revision);
        hold!(seen.applied <= seen.commit, "{id} has applied {} of {} committed", seen.applied, seen.commit);
        for index in before.commit + 1..=seen.commit {
            // What a snapshot stands for is not in the log; the tables are compared.
            if let Some(entry) = disk.entry(index) {
                self.commit(id, seen.term, &entry)?;
            }
        }
        hold!(seen.commit <= self.last(), "{id} says that {} is committed, and nobody has {}", seen.commit, self.last() + 1);
        if seen.led && (!before.led || seen.term != before.term) {
            self.elect(id, raft)?;
        }
        if seen.applied != before.applied && seen.applied > 0 {
            let expected = self.state_at(seen.applied);
            let expected = expected.ok_or_else(|| Violation(format!("{id} has applied {}, which is not committed", seen.applied)))?;
            let published = process.store.state();
            let published = if has_ended { state } else { &published };
            // What is once different stays different: not all of it need be looked at each time.
            let whole = seen.applied != before.applied + 1 || seen.applied.is_multiple_of(WHOLE_EVERY);
            for found in [state, published] {
                hold!(
                    same(expected, found, whole),
                    "{id} at index {} has other tables than a replay of the log: {}",
                    seen.applied,
                    differ(expected, found)
                );
            }
        }
        self.seen.insert(host, seen);
        Ok(())
    }

    fn look_at_disk(&mut self, host: usize, id: u64, disk: &Disk) -> Result<(), Violation> {
        let news = disk.take_news();
        if let Some(index) = news.installed {
            self.bases.insert(host, index);
        }
        for (term, vote) in news.votes {
            let known = *self.votes.entry((id, term)).or_insert(vote);
            hold!(known == vote, "{id} has voted for {known} and for {vote} in term {term}");
        }
        for (before, entry) in news.entries {
            let (index, term) = (entry.index, entry.term);
            let written = Written { before, kind: entry.get_entry_type(), data: entry.data.clone() };
            if let Some(committed) = self.committed(index)
                && committed.term == term
            {
                hold!(committed.written == written, "{id} has another entry {index} of term {term} than the one that is committed");
            }
            let known = self.written.entry((index, term)).or_insert_with(|| written.clone());
            hold!(*known == written, "{id} has another entry {index} of term {term} than others");
        }
        Ok(())
    }

    fn commit(&mut self, id: u64, by: u64, entry: &Entry) -> Result<(), Violation> {
        let index = entry.index;
        if let Some(known) = self.committed(index) {
            let same = known.term == entry.term && known.written.data == entry.data;
            hold!(same, "{id} has entry {index} of term {} committed, others have it of term {}", entry.term, known.term);
            return Ok(());
        }
        hold!(index == self.last() + 1, "{id} has {index} committed, of which {} is the last that was known", self.last());
        let (mut state, mut keys) = (self.latest().clone(), Vec::new());
        let wire = v1::Transaction::decode(&entry.data[..]).ok().filter(|_| entry.get_entry_type() == EntryType::EntryNormal);
        if let Some(wire) = wire.filter(|_| !entry.data.is_empty()) {
            let transaction = decode_transaction(wire).map_err(|error| Violation(format!("entry {index} cannot be read: {error}")))?;
            let number = transaction.at_ms;
            let has_effect = state.apply(index, &transaction).is_ok();
            if has_effect {
                keys = transaction.changes.iter().filter_map(key).collect();
            }
            let earlier = self.outcomes.insert(number, (index, has_effect)).filter(|_| self.is_numbered);
            hold!(earlier.is_none(), "write {number} is in the log twice: at {earlier:?} and at {index}");
            hold!(self.fates.get(&number) != Some(&Fate::Refused), "write {number} was refused and is in the log at {index}");
        }
        let written = Written { before: None, kind: entry.get_entry_type(), data: entry.data.clone() };
        let written = self.written.get(&(index, entry.term)).cloned().unwrap_or(written);
        let changes = self.log.last().map_or(0, |last| last.changes) + keys.len();
        self.log.push(Committed { term: entry.term, written, by, state, keys, changes });
        Ok(())
    }

    fn elect<S: raft::Storage>(&mut self, id: u64, raft: &Raft<S>) -> Result<(), Violation> {
        let term = raft.term;
        let leader = *self.leaders.entry(term).or_insert(id);
        hold!(leader == id, "{leader} and {id} lead in term {term}");
        let first = raft.store().first_index().map_err(|error| Violation(format!("{id} does not know where its log begins: {error}")))?;
        let skipped = self.log.len().saturating_sub(COMPARED_MAX);
        for (index, committed) in (FIRST..).zip(&self.log).skip(skipped) {
            if committed.by >= term || index < first {
                continue;
            }
            let has = raft.raft_log.term(index).ok();
            hold!(has == Some(committed.term), "{id} leads in term {term} with entry {index} of {has:?}: {} is committed", committed.term);
        }
        Ok(())
    }

    /// A client has begun to write.
    pub fn begin(&mut self, number: u64) {
        self.fates.insert(number, Fate::Unknown);
    }

    /// A client was told how its write has ended; `floor` as it was when the write began.
    pub fn end(&mut self, number: u64, fate: Fate, floor: u64) -> Result<(), Violation> {
        let outcome = self.outcomes.get(&number).copied();
        match fate {
            Fate::Unknown => {}
            Fate::Made(revision) => {
                hold!(outcome == Some((revision, true)), "write {number} was confirmed at {revision}, and the log says {outcome:?}");
                hold!(revision > floor, "write {number} has revision {revision}, and {floor} was known when it began");
                self.floor = self.floor.max(revision);
            }
            Fate::Conflict => {
                let conflicts = matches!(outcome, Some((_, false)));
                hold!(conflicts, "write {number} was refused for a conflict, and the log says {outcome:?}");
            }
            Fate::Refused => hold!(outcome.is_none(), "write {number} was not proposed, and the log says {outcome:?}"),
        }
        self.fates.insert(number, fate);
        Ok(())
    }

    /// A client has read, and saw `state`; `floor` as it was when the read began.
    pub fn read(&mut self, id: u64, state: &State, floor: u64) -> Result<(), Violation> {
        let revision = state.revision();
        hold!(revision >= floor, "a read on {id} saw revision {revision}, and {floor} was known when it began");
        self.floor = self.floor.max(revision);
        Ok(())
    }

    /// A manager has ended by itself, and not for its disk.
    pub fn mourn(&self, id: u64, fatal: &Fatal) -> Result<(), Violation> {
        match fatal {
            Fatal::Removed => {
                let stays = |manager: &Manager| manager.raft_id == id && manager.role != ManagerRole::Leaving;
                let is_member = self.latest().managers().values().any(|manager| stays(manager));
                hold!(!is_member, "{id} believes that it was removed, and is a manager");
                Ok(())
            }
            Fatal::Log(_) | Fatal::Entry { .. } | Fatal::Snapshot(_) => Err(Violation(format!("{id} ends: {fatal}"))),
        }
    }
}

/// The object that a change is of.
fn key(change: &Change) -> Option<Key> {
    match change {
        Change::Put { object, .. } => Some((object.kind(), object.id().to_owned())),
        Change::Delete { kind, id, .. } => Some((*kind, id.clone())),
        Change::Answer(_) => None,
    }
}

fn same(expected: &State, found: &State, whole: bool) -> bool {
    let alike = expected.revision() == found.revision()
        && expected.events().len() == found.events().len()
        && expected.tasks().len() == found.tasks().len();
    let equal = || {
        expected.cluster_id() == found.cluster_id()
            && expected.events() == found.events()
            && expected.tasks() == found.tasks()
            && expected.services() == found.services()
            && expected.nodes() == found.nodes()
            && expected.networks() == found.networks()
            && expected.data() == found.data()
            && expected.managers() == found.managers()
            && expected.users() == found.users()
            && expected.cluster() == found.cluster()
            && expected.answers().iter().eq(found.answers().iter())
    };
    alike && (!whole || equal())
}

fn differ(expected: &State, found: &State) -> String {
    let (here, there) = (found.events().len(), expected.events().len());
    format!("revision {} with {here} events, not {} with {there}", found.revision(), expected.revision())
}
