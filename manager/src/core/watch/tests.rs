//! A watcher by chance: what it rebuilds from the pieces is what the tables hold, at each revision that it is told of.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rcluster_api::cluster::{Cluster, User, UserRole};
use rcluster_api::object::{Event, Stamp};

use super::*;
use crate::core::state::{CHANGES_MAX, Change, Transaction, decode_snapshot, encode_snapshot};

fn event(id: usize, bytes: usize) -> Object {
    let (id, message) = (format!("{id:04}").as_str().into(), "x".repeat(bytes));
    let text = String::new;
    Object::Event(Event { id, stamp: Stamp::default(), kind: text(), object_id: text(), object: text(), reason: text(), message })
}

fn user(id: usize, bytes: usize) -> Object {
    let (id, name) = (format!("{id:04}").as_str().into(), "x".repeat(bytes));
    Object::User(User { id, stamp: Stamp::default(), name, role: UserRole::Deploy, token_digest: String::new(), expires_at_ms: 0 })
}

fn put(state: &State, object: Object) -> Change {
    Change::Put { expected: state.version(object.kind(), object.id()), object }
}

fn apply(state: &mut State, changes: Vec<Change>) {
    state.apply(state.revision() + 1, &Transaction { at_ms: 1, changes }).unwrap();
}

type Tables = BTreeMap<Key, Object>;

fn tables(state: &State, kind: Option<Kind>) -> Tables {
    let meant = state.objects().filter(|object| kind.is_none_or(|kind| object.kind() == kind) && object.kind() != Kind::Cluster);
    meant.map(|object| ((object.kind(), object.id().to_owned()), object)).collect()
}

/// One that keeps what it is told.
#[derive(Debug, Default)]
struct Reader {
    tables: Tables,
    revision: u64,
    synced: bool,
}

impl Reader {
    fn read(&mut self, piece: Piece) {
        assert_eq!(piece.after, self.revision, "a gap");
        for object in piece.puts {
            self.tables.insert((object.kind(), object.id().to_owned()), object);
        }
        for key in piece.deletes {
            self.tables.remove(&key);
        }
        self.synced |= piece.synced;
        if !piece.partial {
            self.revision = piece.revision;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Objects to put, if the number is even, or to delete.
    Commit(Vec<usize>),
    /// Many at once.
    Flood,
    /// The reader reads all there is.
    Read,
    /// It reads so many pieces and is cut off.
    ReadSome(usize),
    /// The tables come as a snapshot from another manager.
    Install,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0_usize..40, 1..5).prop_map(Step::Commit),
        1 => Just(Step::Flood),
        4 => Just(Step::Read),
        2 => (0_usize..3).prop_map(Step::ReadSome),
        1 => Just(Step::Install),
    ]
}

fn commit(state: &mut State, numbers: &[usize]) {
    let mut changes = BTreeMap::new();
    for number in numbers {
        let object = if number % 3 == 0 { user(number / 2, *number) } else { event(number / 2, *number) };
        let (kind, id) = (object.kind(), object.id().to_owned());
        let expected = state.version(kind, &id);
        if number % 2 == 0 {
            changes.insert((kind, id), Change::Put { expected, object });
        } else if expected > 0 {
            changes.insert((kind, id.clone()), Change::Delete { expected, kind, id });
        }
    }
    apply(state, changes.into_values().collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_reader_has_what_the_tables_hold(steps in prop::collection::vec(step(), 1..60), all in any::<bool>()) {
        let kind = (!all).then_some(Kind::User);
        let mut state = State::new("c".to_owned());
        apply(&mut state, vec![put(&State::default(), Object::Cluster(Box::default()))]);
        let (mut reader, mut watcher): (Reader, Option<Watcher>) = (Reader::default(), None);
        for step in steps {
            let pieces_max = match step {
                Step::Commit(numbers) => { commit(&mut state, &numbers); continue }
                Step::Flood => {
                    let changes = (100..700).map(|id| put(&state, user(id, id))).collect();
                    apply(&mut state, changes);
                    continue;
                }
                Step::Install => {
                    state = decode_snapshot(&encode_snapshot(&state)).unwrap();
                    watcher = None;
                    continue;
                }
                Step::Read => usize::MAX,
                Step::ReadSome(pieces) => pieces,
            };
            if watcher.is_none() {
                let begin = |from| {
                    let mut watcher = Watcher::new(&state, kind.into_iter().collect(), from)?;
                    let pieces = watcher.turn(&state)?;
                    Ok::<_, ApiError>((watcher, pieces))
                };
                let begun = begin(reader.revision).or_else(|refused| {
                    assert_eq!(refused.code, ErrorCode::Compacted);
                    reader = Reader::default();
                    begin(0)
                });
                let (new, pieces) = begun.unwrap();
                reader.synced = false;
                pieces.into_iter().flatten().take(pieces_max).for_each(|piece| reader.read(piece));
                watcher = Some(new);
            } else if let Some(pieces) = watcher.as_mut().unwrap().turn(&state).unwrap() {
                pieces.take(pieces_max).for_each(|piece| reader.read(piece));
            }
            if pieces_max == usize::MAX {
                let known = reader.revision;
                prop_assert!(reader.synced);
                prop_assert!(known <= state.revision() && known + QUIET_MAX > state.revision());
                prop_assert_eq!(&reader.tables, &tables(&state, kind));
            } else {
                // It was cut off: what it has not read is lost with the stream.
                watcher = None;
                if reader.revision == 0 {
                    reader = Reader::default();
                }
            }
        }
    }
}

fn refusal(state: &State, kinds: &[Kind], from: u64) -> String {
    let told = Watcher::new(state, kinds.iter().copied().collect(), from).and_then(|mut watcher| watcher.turn(state).map(drop));
    told.map_or_else(|refused| refused.to_string(), |()| "told".to_owned())
}

#[test]
fn what_cannot_be_gone_on_from_is_refused() {
    let mut state = State::new("c".to_owned());
    for id in 0..3 {
        apply(&mut state, vec![put(&State::default(), event(id, 0))]);
    }
    assert_eq!(refusal(&state, &[], 1), "told");
    assert!(refusal(&state, &[], 4).starts_with("from_revision: revision 4 is not there yet: the newest is 3"));
    assert!(refusal(&state, &[Kind::Cluster], 0).starts_with("the cluster's own object"));
    let changes = (0..CHANGES_MAX).map(|id| put(&State::default(), user(id, 0))).collect();
    apply(&mut state, changes);
    let refused = refusal(&state, &[], 1);
    assert_eq!(
        refused,
        "the changes after revision 1 are no longer kept: the oldest revision to go on from is 3 (list again: watch from revision 0)"
    );
    assert_eq!(refusal(&state, &[], 3), "told");
}

#[test]
fn who_sees_nothing_of_interest_is_told_of_the_revision_now_and_then() {
    let mut state = State::new("c".to_owned());
    let mut watcher = Watcher::new(&state, [Kind::User].into(), 0).unwrap();
    let mut told = Vec::new();
    for id in 0..3 * QUIET_MAX {
        let pieces = watcher.turn(&state).unwrap().into_iter().flatten();
        told.extend(pieces.map(|piece| (piece.after, piece.revision, piece.puts.len(), piece.synced)));
        apply(&mut state, vec![put(&State::default(), event(usize::try_from(id).unwrap(), 0))]);
    }
    assert_eq!(told, [(0, 0, 0, true), (0, QUIET_MAX, 0, false), (QUIET_MAX, 2 * QUIET_MAX, 0, false)]);
    let cluster = Object::Cluster(Box::<Cluster>::default());
    apply(&mut state, vec![put(&State::default(), cluster)]);
    assert_eq!(watcher.turn(&state).unwrap().map(|pieces| pieces.count()), Some(1), "it has become 1024 revisions");
}
