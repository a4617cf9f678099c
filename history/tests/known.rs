//! Histories that are known to be right, and known to be wrong, by both checkers.

use std::collections::BTreeMap;
use std::time::Duration;

use rcluster_history::{Deed, Operation, Outcome, Seen, search, witness};

const UNKNOWN: Outcome = Outcome::Unknown;

fn operation(called: u64, ended: u64, deed: Deed) -> Operation {
    Operation { client: 0, called: Duration::from_millis(called), ended: Duration::from_millis(ended), deed }
}

/// A write of object 1, from and to these times.
fn write(times: (u64, u64), value: u64, outcome: Outcome) -> Operation {
    operation(times.0, times.1, Deed::Write { key: 1, value, expected: None, outcome })
}

/// One that expects this value at this version.
fn exchange(times: (u64, u64), (version, before): (u64, u64), value: u64, outcome: Outcome) -> Operation {
    operation(times.0, times.1, Deed::Write { key: 1, value, expected: Some(Seen { version, value: before }), outcome })
}

/// A read of object 1 at this revision, which found this version and value; version 0: nothing.
fn read(times: (u64, u64), revision: u64, (version, value): (u64, u64)) -> Operation {
    let seen = (version > 0).then_some(Seen { version, value });
    operation(times.0, times.1, Deed::Read { revision, objects: BTreeMap::from([(1, seen)]) })
}

fn at(revision: u64) -> Outcome {
    Outcome::Written(revision)
}

fn right(history: &[Operation]) {
    witness::check(history).unwrap();
    search::check(history).unwrap();
}

/// Both find it; the witness says this.
fn wrong(history: &[Operation], why: &str) {
    let broken = witness::check(history).unwrap_err();
    assert!(broken.why.contains(why), "{broken}");
    search::check(history).unwrap_err();
}

#[test]
fn what_can_have_happened() {
    right(&[]);
    right(&[read((0, 1), 5, (0, 0)), write((2, 3), 1, at(6)), read((4, 5), 6, (6, 1))]);
    // Each of two at once may be first.
    right(&[write((0, 9), 1, at(6)), write((0, 9), 2, at(5)), read((10, 11), 6, (6, 1))]);
    right(&[write((0, 9), 1, at(6)), read((1, 2), 5, (0, 0)), read((3, 4), 6, (6, 1))]);
    // Two requests in one commit: one of them was last.
    right(&[write((0, 9), 1, at(6)), write((0, 9), 2, at(6)), read((10, 11), 6, (6, 2)), read((10, 11), 7, (6, 2))]);
    // A write whose outcome nobody was told happened, much later, or did not.
    right(&[write((0, 1), 1, UNKNOWN), read((2, 3), 5, (0, 0)), read((4, 5), 6, (6, 1))]);
    right(&[write((0, 1), 1, UNKNOWN), read((2, 3), 5, (0, 0))]);
    // One found the version that both expected, the other was told.
    let (first, second) = (exchange((2, 5), (3, 1), 2, at(4)), exchange((2, 5), (3, 1), 3, Outcome::Conflict));
    right(&[write((0, 1), 1, at(3)), first, second, read((6, 7), 4, (4, 2))]);
    right(&[write((0, 1), 1, at(3)), exchange((2, 3), (3, 1), 1, Outcome::Unchanged(3))]);
    // What nobody saw may have been there for a while, and made another's expectation wrong.
    right(&[write((0, 1), 1, at(3)), write((2, 3), 2, UNKNOWN), exchange((4, 5), (3, 1), 3, Outcome::Conflict), write((6, 7), 4, at(9))]);
}

#[test]
fn a_stale_read() {
    let (first, second) = (write((0, 1), 1, at(5)), write((2, 3), 2, at(6)));
    wrong(&[first.clone(), second.clone(), read((4, 5), 6, (5, 1))], "is read with version 5 at revision 6, but was written at 6");
    wrong(&[first.clone(), second.clone(), read((4, 5), 5, (5, 1))], "has revision 5 after 6");
    // Two readers, of whom the later sees the older value, while the write is still under way.
    wrong(&[first, write((2, 9), 2, at(6)), read((3, 4), 6, (6, 2)), read((5, 6), 5, (5, 1))], "has revision 5 after 6");
}

#[test]
fn a_write_that_is_lost() {
    wrong(&[write((0, 1), 1, at(5)), read((2, 3), 6, (0, 0))], "is read with no version at revision 6, but was written at 5");
    wrong(&[write((0, 1), 1, at(5)), write((2, 3), 2, at(6)), read((4, 5), 9, (5, 1))], "was written at 6");
    // It was seen, so it happened; then it was gone.
    wrong(&[write((0, 1), 1, UNKNOWN), read((2, 3), 5, (5, 1)), read((4, 5), 6, (0, 0))], "is read with no version at revision 6");
}

#[test]
fn a_write_that_is_applied_twice() {
    let history = [write((0, 1), 1, at(5)), write((2, 3), 2, at(6)), read((4, 5), 6, (6, 2)), read((6, 7), 7, (7, 1))];
    wrong(&history, "took effect at revision 5 and at 7");
    let history =
        [write((0, 1), 1, UNKNOWN), read((2, 3), 5, (5, 1)), write((4, 5), 2, at(6)), read((6, 7), 6, (6, 2)), read((8, 9), 7, (7, 1))];
    wrong(&history, "took effect at revision 5 and at 7");
}

#[test]
fn an_order_that_time_forbids() {
    // Each answer fits its revision; the revisions do not fit the clock.
    wrong(&[write((0, 1), 1, at(6)), write((2, 3), 2, at(5)), read((4, 5), 6, (6, 1))], "has revision 5 after 6");
    // A write cannot have a revision that was there before it began. Without revisions there is nothing wrong with it.
    let history = [write((0, 1), 1, at(5)), write((2, 3), 2, at(5)), read((4, 5), 5, (5, 2))];
    assert!(witness::check(&history).unwrap_err().why.contains("has revision 5 after 5"));
    search::check(&history).unwrap();
}

#[test]
fn a_value_that_nobody_wrote() {
    wrong(&[write((0, 1), 1, at(5)), read((2, 3), 6, (6, 7))], "a value that nobody wrote, 7");
    // Nor before it was written.
    wrong(&[read((0, 1), 5, (5, 1)), write((2, 3), 1, UNKNOWN)], "has revision 5 after 5");
}

#[test]
fn expectations_that_were_not_kept() {
    let first = write((0, 1), 1, at(3));
    // Both found the same version: an update is lost.
    let both = [first.clone(), exchange((2, 9), (3, 1), 2, at(4)), exchange((2, 9), (3, 1), 3, at(5))];
    wrong(&both, "was written at revision 5 for version 3, but version 4 was there");
    let both = [first.clone(), exchange((2, 9), (3, 1), 2, at(4)), exchange((2, 9), (3, 1), 3, at(4))];
    wrong(&both, "two writes at revision 4 found object 1 at the same version");
    wrong(&[first.clone(), exchange((2, 3), (3, 1), 2, Outcome::Conflict), read((4, 5), 4, (3, 1))], "was refused, but that was there");
    let stale = [first, write((2, 3), 2, at(4)), exchange((4, 5), (3, 1), 1, Outcome::Unchanged(4))];
    wrong(&stale, "did not hold the value 1 at revision 4");
}

#[test]
fn a_refusal_that_no_write_explains() {
    let first = write((0, 1), 1, at(3));
    let refused = |expected| exchange((6, 7), expected, 9, Outcome::Conflict);
    let why = "was refused, but that was there from before until after";
    // Nobody saw the write that was not answered, and what it expected was over.
    let unheard = |expected| exchange((4, 5), expected, 3, Outcome::Unknown);
    let second = exchange((2, 3), (3, 1), 2, at(4));
    right(&[first.clone(), second.clone(), unheard((4, 2)), refused((4, 2))]);
    wrong(&[first.clone(), second, unheard((3, 1)), refused((4, 2))], why);
    // Or was never there, for the other write of its version was the last.
    let other = write((0, 1), 2, at(3));
    let (read, refused_first) = (read((2, 3), 3, (3, 1)), refused((3, 1)));
    wrong(&[first.clone(), other, read, unheard((3, 2)), refused_first.clone()], why);
    // Or somebody found afterwards what it had written over.
    let unheard = write((4, 5), 3, Outcome::Unknown);
    right(&[first.clone(), unheard.clone(), refused_first.clone()]);
    let later = exchange((8, 9), (3, 1), 4, at(5));
    wrong(&[first.clone(), unheard, refused_first.clone(), later], why);
    // What began later has not changed it either.
    wrong(&[first, refused_first, write((8, 9), 4, at(5))], why);
}

#[test]
fn what_was_found_was_another_value() {
    let both = [write((0, 9), 1, at(5)), write((0, 9), 2, at(5)), read((10, 11), 5, (5, 1))];
    let exchange_for = |value| [&both[..], &[exchange((12, 13), (5, value), 3, at(6))]].concat();
    right(&exchange_for(1));
    wrong(&exchange_for(2), "was written for the value 2 of version 5, which is 1");
}

#[test]
fn who_found_what_was_there_was_the_first_of_its_revision() {
    let writes = [write((0, 1), 1, at(3)), exchange((2, 9), (3, 1), 2, at(4)), write((2, 9), 3, at(4))];
    let read_as = |value| [&writes[..], &[read((10, 11), 4, (4, value))]].concat();
    right(&read_as(3));
    wrong(&read_as(2), "the last is the one that found version 3");
}

#[test]
fn two_values_of_one_version() {
    let history = [write((0, 9), 1, at(5)), write((0, 9), 2, at(5)), read((10, 11), 5, (5, 1)), read((12, 13), 6, (5, 2))];
    wrong(&history, "has two values at version 5");
}

#[test]
fn the_deeds_are_shown() {
    let broken = witness::check(&[write((0, 1), 1, at(5)), read((2, 3), 6, (0, 0))]).unwrap_err().to_string();
    assert!(broken.contains("client 0, 0.000000 to 0.001000: Write { key: 1, value: 1, expected: None, outcome: Written(5) }"), "{broken}");
    assert!(broken.contains("client 0, 0.002000 to 0.003000: Read { revision: 6, objects: {1: None} }"), "{broken}");
}
