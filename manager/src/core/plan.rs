//! Runs the passes in order over one draft: orchestrate → allocate → schedule → trim (authorities, events), so that a new task is assigned in the commit that
//! creates it.
//!
//! In: a state, what is dirty, the time and a source of ids. Out: one transaction (perhaps empty) and when to look again. Never: IO,
//! a clock of its own, or a memory between calls: what must be remembered is in the state.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rcluster_api::id::{EventId, ServiceId};
use rcluster_api::object::{Event, Kind, Object, Stamp};

use super::control::access;
use super::state::{Answered, Draft, State, Transaction, weight};
use super::{allocate, orchestrate, schedule};

/// Most objects that one part of a plan writes; the rest follows in the next plan.
pub const OBJECTS_PER_PART_MAX: usize = 1000;
/// Most bytes of them, roughly: a plan has six parts (networks, reports, requests and three passes), and all of them stay well below the
/// store's limit for one transaction, each having written one thing too many.
pub const BYTES_PER_PART_MAX: usize = 1 << 20;
/// Most events that are kept.
pub const EVENTS_MAX: usize = 1000;

/// The time and the source of ids and jitter of one plan.
#[derive(Debug)]
pub struct Ctx {
    pub now_ms: u64,
    pub rng: ChaCha8Rng,
    events: u32,
}

impl Ctx {
    /// A context for one plan; equal arguments give equal ids.
    pub fn new(now_ms: u64, seed: u64) -> Self {
        Self { now_ms, rng: ChaCha8Rng::seed_from_u64(seed), events: 0 }
    }

    /// An event whose id sorts after all earlier ones of the same proposer.
    pub fn event(&mut self, note: Note) -> Event {
        self.events += 1;
        let Note { kind, object_id, object, reason, message } = note;
        let tie = rand::Rng::random::<u16>(&mut self.rng);
        Event {
            id: EventId::from(format!("{:012x}{:04x}{tie:04x}", self.now_ms, self.events)),
            stamp: Stamp::default(),
            kind: kind.as_str().to_owned(),
            object_id,
            object,
            reason: reason.to_owned(),
            message,
        }
    }
}

/// Something worth telling people, not yet an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub kind: Kind,
    pub object_id: String,
    pub object: String,
    pub reason: &'static str,
    pub message: String,
}

/// What may have changed since the last plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Everything is to be looked at: a new leader, a change of nodes, an expired wait.
    pub all: bool,
    pub services: BTreeSet<ServiceId>,
}

impl Dirty {
    /// Everything.
    pub fn everything() -> Self {
        Self { all: true, services: BTreeSet::new() }
    }

    /// Whether there is nothing to look at.
    pub fn is_clean(&self) -> bool {
        !self.all && self.services.is_empty()
    }

    /// Adds what differs between two states.
    pub fn add_difference(&mut self, old: &State, new: &State) {
        use imbl::ordmap::DiffItem;
        if self.all {
            return;
        }
        if !old.nodes().diff(new.nodes()).all(|_| false) || !old.networks().diff(new.networks()).all(|_| false) {
            self.all = true;
            return;
        }
        for item in old.services().diff(new.services()) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
            self.services.insert(id.clone());
        }
        for item in old.tasks().diff(new.tasks()) {
            let (DiffItem::Add(_, task) | DiffItem::Remove(_, task) | DiffItem::Update { new: (_, task), .. }) = item;
            self.services.insert(task.service_id.clone());
        }
    }

    /// The services to look at, by id.
    pub fn services<'a>(&'a self, state: &'a State) -> Box<dyn Iterator<Item = &'a ServiceId> + 'a> {
        if self.all { Box::new(state.services().keys()) } else { Box::new(self.services.iter()) }
    }
}

/// What a pass wants changed.
#[derive(Debug, Default)]
pub struct ChangeSet {
    pub puts: Vec<Object>,
    pub deletes: Vec<(Kind, String)>,
    pub notes: Vec<Note>,
    /// How the request was answered that this is for.
    pub answered: Option<Answered>,
    /// When to run the pass again although nothing changed, Unix time in milliseconds.
    pub wake_at_ms: Option<u64>,
    /// It was full before it was done: the next plan goes on at once.
    pub goes_on: bool,
    /// Services that were not looked at to the end.
    pub unfinished: BTreeSet<ServiceId>,
    /// How many of `puts` have been weighed, and what they weigh.
    pub weighed: (usize, usize),
}

impl ChangeSet {
    /// Whether a pass has written enough; if so it goes on with the next plan.
    pub fn is_full(&mut self) -> bool {
        let (count, bytes) = self.weighed;
        let bytes = bytes + self.puts.iter().skip(count).map(weight).sum::<usize>();
        self.weighed = (self.puts.len(), bytes);
        let full = self.puts.len() >= OBJECTS_PER_PART_MAX || bytes >= BYTES_PER_PART_MAX;
        self.goes_on |= full;
        full
    }

    /// Asks to be run again at `at_ms`, or earlier if that was asked for.
    pub fn wake_at(&mut self, at_ms: u64) {
        self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
    }
}

/// One transaction to propose, and when to plan again.
#[derive(Debug)]
pub struct Plan {
    pub transaction: Transaction,
    pub wake_at_ms: Option<u64>,
    /// There is more to do than went into the transaction.
    pub goes_on: bool,
    /// What is dirty still when the transaction is committed.
    pub left: Dirty,
}

type Pass = fn(&Draft, &Dirty, &mut Ctx) -> ChangeSet;

const PASSES: [Pass; 5] = [orchestrate::pass, allocate::pass, schedule::pass, trim_authorities, trim_events];

/// Plans what should change; `draft` may already hold what came in from users and agents, so that cause and effect are one commit.
pub fn plan(mut draft: Draft, dirty: &Dirty, ctx: &mut Ctx) -> Plan {
    let mut wake_at_ms: Option<u64> = None;
    let mut left = Dirty::default();
    let mut goes_on = false;
    for pass in PASSES {
        let mut changes = pass(&draft, dirty, ctx);
        wake_at_ms = [wake_at_ms, changes.wake_at_ms].into_iter().flatten().min();
        left.services.append(&mut changes.unfinished);
        goes_on |= changes.goes_on;
        stage(&mut draft, changes, ctx);
    }
    Plan { transaction: draft.into_transaction(), wake_at_ms, goes_on, left }
}

/// Puts a pass's changes on the draft; its notes become events.
pub fn stage(draft: &mut Draft, changes: ChangeSet, ctx: &mut Ctx) {
    for object in changes.puts {
        draft.put(object);
    }
    for (kind, id) in changes.deletes {
        draft.delete(kind, &id);
    }
    for note in changes.notes {
        draft.put(Object::Event(ctx.event(note)));
    }
    if let Some(answered) = changes.answered {
        draft.answer(answered);
    }
}

fn trim_authorities(draft: &Draft, _dirty: &Dirty, ctx: &mut Ctx) -> ChangeSet {
    access::lapse(draft.state(), ctx.now_ms)
}

/// Forgets the oldest events beyond [`EVENTS_MAX`]; only when well over, so that not every transaction carries deletes.
fn trim_events(draft: &Draft, _dirty: &Dirty, _ctx: &mut Ctx) -> ChangeSet {
    let events = draft.state().events();
    let over = events.len().saturating_sub(EVENTS_MAX);
    let deletes =
        if over < EVENTS_MAX / 10 { Vec::new() } else { events.keys().take(over).map(|id| (Kind::Event, id.to_string())).collect() };
    ChangeSet { deletes, ..ChangeSet::default() }
}
