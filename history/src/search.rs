//! Searches for an order, without looking at revisions: Wing and Gong 1993, with Lowe's memory of what was tried (2017).
//!
//! A history is linearizable if and only if it is so for each object alone (Herlihy and Wing, theorem 1), so each key is searched by
//! itself. The calls that may come next are those before the first end of a call that has not been placed; each is tried, and what
//! has been tried is remembered by the set of the calls placed and the value they left, as the order that led there does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{Broken, Deed, Key, Operation, Outcome, Value};

/// Steps after which the search for one key is given up.
pub const STEPS_MAX: usize = 20_000_000;

/// Checks every key by itself. Writes of unknown outcome that nobody saw are left out at first: most histories have an order without them,
/// which is found much sooner.
///
/// # Errors
/// The first key that has no order, with the calls that could not be placed, or one whose search took more than [`STEPS_MAX`] steps.
pub fn check(history: &[Operation]) -> Result<(), Broken> {
    split(history).into_iter().try_for_each(|(key, calls)| {
        let seen: BTreeSet<Value> = calls.iter().filter_map(|call| call.claim.sees()).collect();
        let needed = |call: &&Call| call.ended.is_some() || call.claim.writes().is_some_and(|value| seen.contains(&value));
        let few: Vec<Call> = calls.iter().filter(needed).copied().collect();
        search(key, history, &few).or_else(|broken| if few.len() < calls.len() { search(key, history, &calls) } else { Err(broken) })
    })
}

/// What a call says about the one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Reads(Option<Value>),
    Writes(Value),
    Exchanges { expected: Value, value: Value },
    IsNot(Value),
}

impl Claim {
    /// The value that was there, if it happened.
    fn sees(self) -> Option<Value> {
        match self {
            Self::Reads(value) => value,
            Self::Exchanges { expected, value: _ } => Some(expected),
            Self::Writes(_) | Self::IsNot(_) => None,
        }
    }

    /// The value that is there if it happened.
    fn writes(self) -> Option<Value> {
        match self {
            Self::Writes(value) | Self::Exchanges { expected: _, value } => Some(value),
            Self::Reads(_) | Self::IsNot(_) => None,
        }
    }

    /// The value after it, if it can happen to this one.
    fn step(self, now: Option<Value>) -> Option<Option<Value>> {
        let (happens, after) = match self {
            Self::Reads(value) => (now == value, now),
            Self::Writes(value) => (true, Some(value)),
            Self::Exchanges { expected, value } => (now == Some(expected), Some(value)),
            Self::IsNot(value) => (now != Some(value), now),
        };
        happens.then_some(after)
    }
}

#[derive(Debug, Clone, Copy)]
struct Call {
    operation: usize,
    called: Duration,
    /// None: it may happen at any time after its call, or never.
    ended: Option<Duration>,
    claim: Claim,
}

/// The calls of each key, in the order in which they were called.
fn split(history: &[Operation]) -> BTreeMap<Key, Vec<Call>> {
    let mut keys: BTreeMap<Key, Vec<Call>> = BTreeMap::new();
    for (operation, Operation { client: _, called, ended, deed }) in history.iter().enumerate() {
        let mut add = |key: Key, ended: Option<Duration>, claim: Claim| {
            keys.entry(key).or_default().push(Call { operation, called: *called, ended, claim });
        };
        match deed {
            Deed::Read { revision: _, objects } => {
                objects.iter().for_each(|(key, seen)| add(*key, Some(*ended), Claim::Reads(seen.map(|seen| seen.value))));
            }
            Deed::Write { key, value, expected, outcome } => {
                let write = expected.map_or(Claim::Writes(*value), |seen| Claim::Exchanges { expected: seen.value, value: *value });
                match (outcome, expected) {
                    (Outcome::Written(_), _) => add(*key, Some(*ended), write),
                    (Outcome::Unchanged(_), _) => add(*key, Some(*ended), Claim::Reads(Some(*value))),
                    (Outcome::Conflict, Some(seen)) => add(*key, Some(*ended), Claim::IsNot(seen.value)),
                    // Nothing was expected: it says nothing about the object.
                    (Outcome::Conflict, None) => {}
                    (Outcome::Unknown, _) => add(*key, None, write),
                }
            }
        }
    }
    keys.values_mut().for_each(|calls| calls.sort_by_key(|call| (call.called, call.operation)));
    keys
}

/// The calls that are not placed yet, in two orders: by call and by end.
struct Open {
    placed: Vec<u64>,
    by_call: Links,
    by_end: Links,
    /// Place in `by_end` of each call.
    rank: Vec<usize>,
    unplaced_with_end: usize,
}

/// A list whose elements are taken out and put back in the opposite order, each in one step (Knuth's dancing links).
struct Links {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Links {
    /// The list 1, 2, … `count`; 0 is its head and its end.
    fn new(count: usize) -> Self {
        Self {
            next: (0..=count).map(|place| (place + 1) % (count + 1)).collect(),
            previous: (0..=count).map(|place| (place + count) % (count + 1)).collect(),
        }
    }

    fn take(&mut self, place: usize) {
        let (next, previous) = (self.next[place], self.previous[place]);
        (self.next[previous], self.previous[next]) = (next, previous);
    }

    fn put_back(&mut self, place: usize) {
        let (next, previous) = (self.next[place], self.previous[place]);
        (self.next[previous], self.previous[next]) = (place, place);
    }
}

impl Open {
    fn new(calls: &[Call]) -> Self {
        let mut by_end: Vec<usize> = (0..calls.len()).collect();
        by_end.sort_by_key(|call| calls[*call].ended.unwrap_or(Duration::MAX));
        let mut rank = vec![0; calls.len()];
        by_end.iter().enumerate().for_each(|(place, call)| rank[*call] = place + 1);
        Self {
            placed: vec![0; calls.len().div_ceil(64)],
            by_call: Links::new(calls.len()),
            by_end: Links::new(calls.len()),
            rank,
            unplaced_with_end: calls.iter().filter(|call| call.ended.is_some()).count(),
        }
    }

    fn place(&mut self, call: usize, calls: &[Call]) {
        self.placed[call / 64] ^= 1 << (call % 64);
        self.by_call.take(call + 1);
        self.by_end.take(self.rank[call]);
        self.unplaced_with_end -= usize::from(calls[call].ended.is_some());
    }

    fn undo(&mut self, call: usize, calls: &[Call]) {
        self.placed[call / 64] ^= 1 << (call % 64);
        self.by_call.put_back(call + 1);
        self.by_end.put_back(self.rank[call]);
        self.unplaced_with_end += usize::from(calls[call].ended.is_some());
    }

    /// Who may be next: those called before the first end. Calls of unknown outcome are tried last: most are not needed.
    fn candidates(&self, calls: &[Call], ends: &[Duration]) -> Vec<usize> {
        let first_end = ends[self.by_end.next[0]];
        let mut candidates = Vec::new();
        let mut place = self.by_call.next[0];
        while place != 0 && calls[place - 1].called <= first_end {
            candidates.push(place - 1);
            place = self.by_call.next[place];
        }
        // The last is tried first.
        candidates.reverse();
        candidates.sort_by_key(|call| calls[*call].ended.is_some());
        candidates
    }
}

fn search(key: Key, history: &[Operation], calls: &[Call]) -> Result<(), Broken> {
    let mut open = Open::new(calls);
    let mut ends = vec![Duration::MAX; calls.len() + 1];
    calls.iter().enumerate().for_each(|(call, timed)| ends[open.rank[call]] = timed.ended.unwrap_or(Duration::MAX));
    let mut tried: BTreeSet<(Vec<u64>, Option<Value>)> = BTreeSet::new();
    let mut value = None;
    // Of each call placed: who else might have been, and the value before it.
    let mut path: Vec<(usize, Vec<usize>, Option<Value>)> = Vec::new();
    let mut candidates = open.candidates(calls, &ends);
    let mut deepest = (usize::MAX, BTreeSet::new());
    for _ in 0..STEPS_MAX {
        if open.unplaced_with_end == 0 {
            return Ok(());
        }
        if let Some(call) = candidates.pop() {
            let Some(after) = calls[call].claim.step(value) else { continue };
            open.place(call, calls);
            if tried.insert((open.placed.clone(), after)) {
                path.push((call, std::mem::take(&mut candidates), value));
                value = after;
                candidates = open.candidates(calls, &ends);
                if open.unplaced_with_end < deepest.0 {
                    deepest = (open.unplaced_with_end, candidates.iter().map(|call| calls[*call].operation).collect());
                }
            } else {
                open.undo(call, calls);
            }
        } else if let Some((call, others, before)) = path.pop() {
            open.undo(call, calls);
            (candidates, value) = (others, before);
        } else {
            let why = format!(
                "no order of the calls of object {key} explains all answers; {} are left after the longest, next of which are",
                deepest.0.min(open.unplaced_with_end)
            );
            return Err(broken(why, history, &deepest.1));
        }
    }
    let why = format!("the search for an order of the {} calls of object {key} was given up after {STEPS_MAX} steps", calls.len());
    Err(broken(why, history, &deepest.1))
}

fn broken(why: String, history: &[Operation], operations: &BTreeSet<usize>) -> Broken {
    Broken { why, operations: operations.iter().map(|operation| history[*operation].clone()).collect() }
}
