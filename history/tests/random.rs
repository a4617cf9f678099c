//! Histories by chance: of a store that is right, both checkers take all; of one that is not, they say what trying every order says.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rcluster_history::{Deed, Operation, Outcome, Seen, search, witness};

/// What a client asks, and how its call lies around the moment at which the store does it.
#[derive(Debug, Clone)]
struct Asked {
    key: u32,
    write: bool,
    expects: bool,
    /// Its answer is lost.
    lost: bool,
    /// Of a lost one: it never came to the store.
    never: bool,
    before: u64,
    after: u64,
    /// It is committed together with the one before it. One that expects is not: what it would find there, nobody has seen.
    together: bool,
    /// How old a value a store that is wrong answers with.
    stale: usize,
}

fn asked(keys: u32) -> impl Strategy<Value = Asked> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), any::<bool>(), prop::bool::weighted(0.3));
    (0..keys, flags, 0..40_u64, 0..40_u64, prop_oneof![2 => Just(0_usize), 1 => 1..3_usize]).prop_map(
        |(key, (write, expects, lost, never, together), before, after, stale)| Asked {
            key,
            write,
            expects,
            lost,
            never,
            before,
            after,
            together,
            stale,
        },
    )
}

/// What a store answers that carries these out one after the other, 10 ms apart; `wrong`: it answers some from what was.
fn run(asked: &[Asked], wrong: bool) -> Vec<Operation> {
    let mut objects: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
    let (mut revision, mut was_write, mut moment) = (1, false, 100);
    // A client can expect only what an answer has told.
    let mut told: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
    let mut history = Vec::new();
    for (at, asked) in asked.iter().enumerate() {
        let together = asked.together && was_write && asked.write && !asked.expects;
        moment += if together { 0 } else { 10 };
        let held = objects.entry(asked.key).or_default();
        let told = told.entry(asked.key).or_default();
        let shown = if wrong { held.len().saturating_sub(asked.stale) } else { held.len() };
        let (seen, value) = (held[..shown].last().copied(), at as u64 + 1);
        let deed = if asked.write {
            let expected = if asked.expects { if at % 3 == 0 { told.first().copied() } else { told.last().copied() } } else { None };
            let conflict = expected.is_some_and(|expected| held.last() != Some(&expected)) && (!wrong || asked.stale == 0);
            let unheard = asked.lost && asked.never;
            let happens = !conflict && !unheard;
            if happens {
                revision += u64::from(!together);
                // Who was told that version does not know what it is of.
                told.retain(|told| told.version != revision);
                held.push(Seen { version: revision, value });
            }
            was_write = happens;
            let outcome = match (asked.lost, conflict) {
                (true, _) => Outcome::Unknown,
                (false, true) => Outcome::Conflict,
                (false, false) => Outcome::Written(revision),
            };
            if let Outcome::Written(version) = outcome {
                told.push(Seen { version, value });
            }
            Deed::Write { key: asked.key, value, expected, outcome }
        } else {
            was_write = false;
            told.extend(seen);
            Deed::Read { revision, objects: BTreeMap::from([(asked.key, seen)]) }
        };
        let time = Duration::from_millis;
        history.push(Operation { client: at as u32, called: time(moment - asked.before), ended: time(moment + asked.after), deed });
    }
    history
}

/// Every order of the deeds of object 0 that time allows, one after the other.
fn some_order_explains(history: &[Operation]) -> bool {
    fn go(history: &[Operation], left: &[usize], now: Option<u64>) -> bool {
        if left.iter().all(|at| history[*at].deed.is_unknown()) {
            return true;
        }
        left.iter().any(|at| {
            let next = &history[*at];
            let late = left.iter().any(|other| !history[*other].deed.is_unknown() && history[*other].ended < next.called);
            let after = match &next.deed {
                Deed::Read { objects, .. } => (objects[&0].map(|seen| seen.value) == now).then_some(now),
                Deed::Write { value, expected, outcome, .. } => {
                    let fits = expected.is_none_or(|expected| now == Some(expected.value));
                    match outcome {
                        Outcome::Written(_) | Outcome::Unknown => fits.then_some(Some(*value)),
                        Outcome::Unchanged(_) => (now == Some(*value)).then_some(now),
                        Outcome::Conflict => (!fits).then_some(now),
                    }
                }
            };
            let left: Vec<usize> = left.iter().copied().filter(|other| other != at).collect();
            !late && after.is_some_and(|after| go(history, &left, after))
        })
    }
    go(history, &(0..history.len()).collect::<Vec<_>>(), None)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn a_store_that_is_right_is_never_accused(asked in prop::collection::vec(asked(3), 0..60)) {
        let history = run(&asked, false);
        prop_assert_eq!(witness::check(&history), Ok(()));
        prop_assert_eq!(search::check(&history), Ok(()));
    }

    #[test]
    fn the_search_says_what_trying_every_order_says(asked in prop::collection::vec(asked(1), 0..7)) {
        let history = run(&asked, true);
        prop_assert_eq!(search::check(&history).is_ok(), some_order_explains(&history));
    }

    #[test]
    fn what_the_witness_takes_has_an_order(asked in prop::collection::vec(asked(1), 0..7)) {
        let history = run(&asked, true);
        if witness::check(&history).is_ok() {
            prop_assert!(some_order_explains(&history));
        }
    }
}

/// The second property would hold of nothing if the store that is wrong were never caught, or always.
#[test]
fn the_histories_are_of_both_kinds() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(asked(1), 4..7);
    let right = (0..500).filter(|_| some_order_explains(&run(&strategy.new_tree(&mut runner).unwrap().current(), true))).count();
    assert!((100..460).contains(&right), "{right} of 500 are right");
}

#[test]
fn thousands_of_operations_are_checked_in_a_moment() {
    let one = |at: u64| Asked {
        key: (at % 16) as u32,
        write: at.is_multiple_of(2),
        expects: at.is_multiple_of(6),
        lost: at.is_multiple_of(50),
        never: at.is_multiple_of(100),
        before: at % 37 + 3,
        after: at % 41 + 2,
        together: false,
        stale: 0,
    };
    let history = run(&(0..20_000).map(one).collect::<Vec<_>>(), false);
    witness::check(&history).unwrap();
    search::check(&history).unwrap();
}
