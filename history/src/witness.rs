//! Holds a history against the revisions that the store gave its answers.
//!
//! The revisions are one order that the store itself vouches for. It is the order of a linearizable store if it respects real time (a
//! deed that began after another had ended has no smaller revision, and a write a larger one), and if each answer is what the writes
//! before it, in that order, make it. Sorting and one pass: n log n.
//!
//! Several writes may share a revision, as the store commits several requests at once; which of them was last is what readers agree on.
//! A write of unknown outcome counts from the version at which a reader saw its value, and only there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Broken, Deed, Key, Operation, Outcome, Revision, Seen, Value};

/// Checks a whole history.
///
/// # Errors
/// The first deeds found that contradict each other.
pub fn check(history: &[Operation]) -> Result<(), Broken> {
    let timeline = Timeline::gather(history)?;
    timeline.check_real_time()?;
    history.iter().enumerate().try_for_each(|(at, operation)| match &operation.deed {
        Deed::Read { revision, objects } => objects.iter().try_for_each(|(key, seen)| timeline.check_seen(at, *key, *revision, *seen)),
        Deed::Write { key, value, expected, outcome } => timeline.check_write(at, *key, *value, *expected, *outcome),
    })
}

/// The writes of one object that one revision made.
#[derive(Debug, Default)]
struct Group {
    writes: BTreeMap<Value, usize>,
    /// What readers saw of them, and who first.
    last: Option<(Value, usize)>,
}

/// Every write at its revision.
struct Timeline<'h> {
    history: &'h [Operation],
    objects: BTreeMap<Key, BTreeMap<Revision, Group>>,
    /// Revision of each operation; of a write of unknown outcome, where it was seen.
    revisions: Vec<Option<Revision>>,
    bounds: Bounds,
    /// The writes of an object that may have happened and been written over before anyone saw it.
    hidden: BTreeMap<Key, Vec<Hidden>>,
    /// When the last was called of those who found a version of an object there.
    found: BTreeMap<(Key, Revision), Duration>,
}

/// A write that nobody saw.
struct Hidden {
    called: Duration,
    /// It happened while this was there, or not at all.
    expected: Option<Seen>,
}

/// What is known of the revision at a time, from those that had ended before it, and those that began after it.
#[derive(Default)]
struct Bounds {
    /// Ends, each with the largest revision by then and whose it is.
    ends: Vec<(Duration, Revision, usize)>,
    /// Calls, each with the smallest revision from then on.
    calls: Vec<(Duration, Revision)>,
}

impl Bounds {
    fn new(history: &[Operation], revisions: &[Option<Revision>]) -> Self {
        let known = || (0..history.len()).filter(|at| !history[*at].deed.is_unknown()).filter_map(|at| Some((at, revisions[at]?)));
        let mut ends: Vec<_> = known().map(|(at, revision)| (history[at].ended, revision, at)).collect();
        ends.sort_unstable();
        let mut largest = (0, 0);
        for (_, revision, at) in &mut ends {
            largest = largest.max((*revision, *at));
            (*revision, *at) = largest;
        }
        let mut calls: Vec<_> = known().map(|(at, revision)| (history[at].called, revision)).collect();
        calls.sort_unstable();
        let mut smallest = Revision::MAX;
        for (_, revision) in calls.iter_mut().rev() {
            smallest = smallest.min(*revision);
            *revision = smallest;
        }
        Self { ends, calls }
    }

    /// The largest revision of what ended before, and whose it is.
    fn before(&self, time: Duration) -> Option<(Revision, usize)> {
        let count = self.ends.partition_point(|(ended, ..)| *ended < time);
        self.ends[..count].last().map(|(_, revision, at)| (*revision, *at))
    }

    /// The smallest revision of what began after.
    fn after(&self, time: Duration) -> Revision {
        let first = self.calls.partition_point(|(called, _)| *called <= time);
        self.calls.get(first).map_or(Revision::MAX, |(_, revision)| *revision)
    }
}

impl<'h> Timeline<'h> {
    fn gather(history: &'h [Operation]) -> Result<Self, Broken> {
        let mut timeline = Self {
            history,
            objects: BTreeMap::new(),
            revisions: vec![None; history.len()],
            bounds: Bounds::default(),
            hidden: BTreeMap::new(),
            found: BTreeMap::new(),
        };
        let mut writers: BTreeMap<(Key, Value), usize> = BTreeMap::new();
        for (at, operation) in history.iter().enumerate() {
            match &operation.deed {
                Deed::Read { revision, objects: _ } => timeline.revisions[at] = Some(*revision),
                Deed::Write { key, value, expected: _, outcome } => match outcome {
                    Outcome::Written(revision) => {
                        timeline.revisions[at] = Some(*revision);
                        timeline.write(*key, *value, *revision, at);
                        timeline.take(&mut writers, *key, *value, at)?;
                    }
                    Outcome::Unknown => timeline.take(&mut writers, *key, *value, at)?,
                    Outcome::Unchanged(revision) => timeline.revisions[at] = Some(*revision),
                    Outcome::Conflict => {}
                },
            }
        }
        for (at, operation) in history.iter().enumerate() {
            let Deed::Read { revision: _, objects } = &operation.deed else { continue };
            for (key, seen) in objects.iter().filter_map(|(key, seen)| Some((*key, (*seen)?))) {
                let Some(writer) = writers.get(&(key, seen.value)).copied() else {
                    return Err(timeline.broken(format!("object {key} is read with a value that nobody wrote, {}", seen.value), &[at]));
                };
                timeline.saw(at, key, seen, writer)?;
            }
        }
        timeline.bounds = Bounds::new(history, &timeline.revisions);
        for (operation, revision) in history.iter().zip(&timeline.revisions) {
            if let Deed::Write { key, expected, outcome: Outcome::Unknown, .. } = operation.deed
                && revision.is_none()
            {
                timeline.hidden.entry(key).or_default().push(Hidden { called: operation.called, expected });
            }
        }
        for (at, operation) in history.iter().enumerate() {
            timeline.note_found(at, operation);
        }
        Ok(timeline)
    }

    /// What an answer tells that was there when its deed was done.
    fn note_found(&mut self, at: usize, Operation { called, deed, .. }: &Operation) {
        let versions: Vec<(Key, Revision)> = match deed {
            Deed::Read { objects, .. } => objects.iter().filter_map(|(key, seen)| Some((*key, (*seen)?.version))).collect(),
            Deed::Write { key, outcome: Outcome::Unchanged(revision), .. } => {
                self.before(*key, revision.saturating_add(1)).map(|(version, _)| (*key, version)).into_iter().collect()
            }
            Deed::Write { key, expected: Some(expected), outcome: Outcome::Written(_) | Outcome::Unknown, .. }
                if self.revisions[at].is_some() =>
            {
                vec![(*key, expected.version)]
            }
            Deed::Write { .. } => Vec::new(),
        };
        for version in versions {
            let last = self.found.entry(version).or_insert(*called);
            *last = (*last).max(*called);
        }
    }

    /// Two writes of one value could not be told apart.
    fn take(&self, writers: &mut BTreeMap<(Key, Value), usize>, key: Key, value: Value, at: usize) -> Result<(), Broken> {
        match writers.insert((key, value), at) {
            Some(other) => {
                Err(self.broken(format!("the value {value} is written to object {key} twice: the history cannot be checked"), &[other, at]))
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, key: Key, value: Value, revision: Revision, at: usize) {
        self.objects.entry(key).or_default().entry(revision).or_default().writes.insert(value, at);
    }

    /// A reader tells at which version a write took effect, and that it was the last of its revision.
    fn saw(&mut self, at: usize, key: Key, seen: Seen, writer: usize) -> Result<(), Broken> {
        match self.revisions[writer] {
            Some(revision) if revision != seen.version => {
                let why = format!("one write of object {key} took effect at revision {revision} and at {}", seen.version);
                return Err(self.broken(why, &[writer, at]));
            }
            Some(_) => {}
            None => {
                self.revisions[writer] = Some(seen.version);
                self.write(key, seen.value, seen.version, writer);
            }
        }
        let group = self.objects.entry(key).or_default().entry(seen.version).or_default();
        match group.last {
            Some((value, other)) if value != seen.value => {
                Err(self.broken(format!("object {key} has two values at version {}", seen.version), &[other, at]))
            }
            Some(_) => Ok(()),
            None => {
                group.last = Some((seen.value, at));
                Ok(())
            }
        }
    }

    /// What began after another ended is not before it.
    fn check_real_time(&self) -> Result<(), Broken> {
        for (at, Operation { called, deed, .. }) in self.history.iter().enumerate() {
            let (Some(own), Some((revision, before))) = (self.revisions[at], self.bounds.before(*called)) else { continue };
            let writes = matches!(deed, Deed::Write { outcome: Outcome::Written(_) | Outcome::Unknown, .. });
            if own < revision || (writes && own == revision) {
                let why = format!("the second began after the first had ended, yet has revision {own} after {revision}");
                return Err(self.broken(why, &[before, at]));
            }
        }
        Ok(())
    }

    /// The last writes of an object before a revision.
    fn before(&self, key: Key, revision: Revision) -> Option<(Revision, &Group)> {
        self.objects.get(&key)?.range(..revision).next_back().map(|(revision, group)| (*revision, group))
    }

    fn check_seen(&self, at: usize, key: Key, revision: Revision, seen: Option<Seen>) -> Result<(), Broken> {
        let last = self.before(key, revision.saturating_add(1));
        match (last, seen) {
            (None, None) => Ok(()),
            // That the value is one of them is known from `saw`.
            (Some((version, _)), Some(seen)) if version == seen.version => Ok(()),
            (Some((version, group)), seen) => {
                let seen = seen.map_or("no version".to_owned(), |seen| format!("version {}", seen.version));
                let why = format!("object {key} is read with {seen} at revision {revision}, but was written at {version}");
                Err(self.broken(why, &[group.writes.values().copied().next().unwrap_or(at), at]))
            }
            (None, Some(seen)) => {
                Err(self.broken(format!("object {key} is read at revision {revision} with the later version {}", seen.version), &[at]))
            }
        }
    }

    fn check_write(&self, at: usize, key: Key, value: Value, expected: Option<Seen>, outcome: Outcome) -> Result<(), Broken> {
        match (outcome, self.revisions[at], expected) {
            (Outcome::Written(_) | Outcome::Unknown, Some(revision), Some(expected)) => {
                self.check_exchange(at, (key, value), revision, expected)
            }
            (Outcome::Unchanged(_), Some(revision), _) => match self.before(key, revision.saturating_add(1)) {
                Some((_, group)) if group.writes.contains_key(&value) && group.last.is_none_or(|(last, _)| last == value) => Ok(()),
                found => {
                    let other = found.and_then(|(_, group)| group.writes.values().copied().next()).unwrap_or(at);
                    Err(self.broken(format!("object {key} did not hold the value {value} at revision {revision}"), &[other, at]))
                }
            },
            (Outcome::Conflict, _, Some(expected)) => self.check_conflict(at, key, expected),
            (Outcome::Written(_) | Outcome::Unknown | Outcome::Unchanged(_) | Outcome::Conflict, _, _) => Ok(()),
        }
    }

    /// What was expected was there, and one alone found it there.
    fn check_exchange(&self, at: usize, (key, value): (Key, Value), revision: Revision, expected: Seen) -> Result<(), Broken> {
        match self.before(key, revision) {
            Some((version, group)) if version == expected.version => {
                if let Some((last, reader)) = group.last.filter(|(last, _)| *last != expected.value) {
                    let why = format!("object {key} was written for the value {} of version {version}, which is {last}", expected.value);
                    return Err(self.broken(why, &[reader, at]));
                }
            }
            found => {
                let version = found.map_or("nothing".to_owned(), |(version, _)| format!("version {version}"));
                let other = found.and_then(|(_, group)| group.writes.values().copied().next()).unwrap_or(at);
                let why =
                    format!("object {key} was written at revision {revision} for version {}, but {version} was there", expected.version);
                return Err(self.broken(why, &[other, at]));
            }
        }
        let group = &self.objects[&key][&revision];
        // It found what was there before them all, and was the first.
        if let Some((_, reader)) = group.last.filter(|(last, _)| *last == value && group.writes.len() > 1) {
            let why = format!(
                "of several writes of object {key} at revision {revision} the last is the one that found version {}",
                expected.version
            );
            return Err(self.broken(why, &[at, reader]));
        }
        let exchanges = |other: &usize| matches!(self.history[*other].deed, Deed::Write { expected: Some(_), .. });
        match group.writes.values().copied().find(|other| *other != at && exchanges(other)) {
            Some(other) => {
                Err(self.broken(format!("two writes at revision {revision} found object {key} at the same version"), &[at, other]))
            }
            None => Ok(()),
        }
    }

    /// At some time between call and end it was something else.
    fn check_conflict(&self, at: usize, key: Key, expected: Seen) -> Result<(), Broken> {
        let Operation { called, ended, .. } = &self.history[at];
        let from = self.bounds.before(*called).map_or(0, |(revision, _)| revision);
        let to = self.bounds.after(*ended);
        let Some(groups) = self.objects.get(&key) else { return Ok(()) };
        let was_there = groups.range(..=from).next_back().is_some_and(|(version, _)| *version == expected.version);
        let next = groups.range(expected.version.saturating_add(1)..).next();
        let by_then = |group: &Group| group.writes.values().all(|write| self.history[*write].called <= *ended);
        let changed = next.is_some_and(|(version, group)| *version <= to && by_then(group));
        if was_there && !changed && !self.may_be_hidden(key, expected.version, *ended) {
            let why =
                format!("a write of object {key} for version {} was refused, but that was there from before until after", expected.version);
            return Err(self.broken(why, &[at]));
        }
        Ok(())
    }

    /// Whether a write that nobody saw may have taken a version's place by a time: nobody found that one there afterwards.
    fn may_be_hidden(&self, key: Key, version: Revision, ended: Duration) -> bool {
        let found_later = self.found.get(&(key, version)).is_some_and(|called| *called > ended);
        let last = self.objects.get(&key).and_then(|groups| groups.get(&version)?.last);
        let was_there = |seen: Seen| seen.version == version && last.is_none_or(|(value, _)| value == seen.value);
        let fits = |hidden: &Hidden| hidden.called <= ended && hidden.expected.is_none_or(was_there);
        !found_later && self.hidden.get(&key).is_some_and(|hidden| hidden.iter().any(fits))
    }

    fn broken(&self, why: String, operations: &[usize]) -> Broken {
        Broken { why, operations: operations.iter().map(|at| self.history[*at].clone()).collect() }
    }
}
