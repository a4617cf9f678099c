//! Who watches: clients that are told of changes by any manager, lose it, and go on at another from the last revision that they were told.
//!
//! ```text
//!  read barrier ─► Watcher (manager's core/watch) ─► turn after each commit, sooner or later ─► wire, in order ─► client ─► checks
//!        ▲                                                                                                          │
//!        └──────────────────────── from the revision that it has, or anew when that is too old ◄────────────────────┘
//! ```
//!
//! The manager's end is driven as `rpc/watch` drives it.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IteratorRandom;
use rcluster_api::error::ErrorCode;
use rcluster_api::object::Kind;
use rcluster_manager::core::watch::{Piece, Watcher};

use crate::chance::mix;
use crate::check::{Violation, hold};
use crate::network::exponential;
use crate::users::Who;
use crate::world::{Event as Happening, World};

/// Mean time until a client looks for another manager.
const AGAIN_US: u64 = 200_000;
/// How long a watch may be silent before its manager asks whether it hears of everything.
const SILENT_US: u64 = 3_000_000;
/// Part of the pieces after which a client breaks its watch off.
const BROKEN_OFF: f64 = 0.03;
/// Who is so many revisions behind while clients go on writing has caught up.
const BEHIND_MAX: u64 = 50;

/// What happens to one watch of a client; what is of an earlier watch is not for the one that it has.
pub enum Event {
    /// The client looks for a manager.
    Begin,
    /// The manager's end looks at the tables.
    Turn,
    /// A piece arrives at the client.
    Piece(Box<Piece>),
    /// The manager's end has perhaps heard of nothing for a while.
    Listen,
    /// The client hears of the watch's end; whether it was too old.
    End { too_old: bool },
}

/// A manager's end of a watch.
struct End {
    host: usize,
    life: u64,
    watcher: Watcher,
    /// The revision of the tables that it has seen last.
    seen: u64,
    is_due: bool,
    /// When it last looked at the tables, or was told that there is no more.
    heard_us: u64,
}

/// One who watches.
pub struct Client {
    /// None: all.
    kinds: BTreeSet<Kind>,
    /// It was told of everything through this revision; 0: of nothing that it can go on from.
    told: u64,
    /// Pieces of a range that is not whole yet.
    range: Vec<Piece>,
    /// Rises with each watch.
    session: u64,
    end: Option<End>,
    /// When the last that is on its way arrives.
    last_us: u64,
}

impl World {
    /// The watchers of this seed.
    pub fn add_watchers(&mut self) {
        for client in 0..self.plan.watchers {
            // All, managers alone, and what clients write.
            let kinds = [&[][..], &[Kind::Manager], &[Kind::Event, Kind::Task]][client % 3].iter().copied().collect();
            self.watchers.push(Client { kinds, told: 0, range: Vec::new(), session: 0, end: None, last_us: 0 });
            self.queue.push(0, Happening::Watch(client, 0, Event::Begin));
        }
    }

    pub fn watch(&mut self, client: usize, session: u64, event: Event) -> Result<(), Violation> {
        if self.watchers[client].session != session {
            return Ok(());
        }
        match event {
            Event::Begin => self.look_for_manager(client),
            Event::Turn => self.turn_watch(client),
            Event::Listen => self.listen(client, session),
            Event::Piece(piece) => self.take_piece(client, *piece),
            Event::End { too_old } => {
                self.tell(|| format!("watcher {client} hears of its watch's end{}", if too_old { ": it is too old" } else { "" }));
                if too_old {
                    self.watched.1 += 1;
                    self.watchers[client].told = 0;
                }
                self.watch_again(client, session);
                Ok(())
            }
        }
    }

    fn look_for_manager(&mut self, client: usize) -> Result<(), Violation> {
        let session = self.watchers[client].session;
        let hosts = (0..self.hosts.len()).filter(|at| self.hosts[*at].process.is_some());
        match hosts.choose(&mut self.chances.watchers) {
            Some(host) => self.read(Who::Watcher(client, session), host),
            None => {
                self.watch_again(client, session);
                Ok(())
            }
        }
    }

    /// A client's watch is over, if it was this: it looks for another manager after a while.
    pub fn watch_again(&mut self, client: usize, session: u64) {
        let watching = &mut self.watchers[client];
        if watching.session != session {
            return;
        }
        watching.session += 1;
        watching.range.clear();
        watching.end = None;
        let at_us = self.now_us + exponential(&mut self.chances.watchers, AGAIN_US);
        self.queue.push(at_us, Happening::Watch(client, session + 1, Event::Begin));
    }

    /// A manager has what was committed before the client asked: the watch begins.
    pub fn begin_watch(&mut self, client: usize, session: u64, host: usize) -> Result<(), Violation> {
        self.tell(|| format!("watcher {client} begins at h{host} after {}", self.watchers[client].told));
        let (watching, at) = (&mut self.watchers[client], &self.hosts[host]);
        let Some(process) = at.process.as_ref().filter(|_| watching.session == session) else { return Ok(()) };
        let begun = Watcher::new(&process.store.state(), watching.kinds.clone(), watching.told);
        let watcher = begun.map_err(|error| Violation(format!("a watcher that was told of {} is refused: {error}", watching.told)))?;
        watching.end = Some(End { host, life: at.life, watcher, seen: watching.told, is_due: false, heard_us: self.now_us });
        self.queue.push(self.now_us + SILENT_US, Happening::Watch(client, session, Event::Listen));
        self.turn_watch(client)
    }

    /// One that hears nothing because it is cut off, or is no manager any more, would be silent for ever.
    fn listen(&mut self, client: usize, session: u64) -> Result<(), Violation> {
        let Some(End { host, heard_us, .. }) = self.watchers[client].end else { return Ok(()) };
        if heard_us + SILENT_US > self.now_us {
            self.queue.push(heard_us + SILENT_US, Happening::Watch(client, session, Event::Listen));
            return Ok(());
        }
        self.read(Who::Listener(client, session), host)
    }

    /// A manager's end has all that was committed when it asked.
    pub fn has_listened(&mut self, client: usize, session: u64) -> Result<(), Violation> {
        let watching = &mut self.watchers[client];
        let Some(end) = watching.end.as_mut().filter(|_| watching.session == session) else { return Ok(()) };
        end.heard_us = self.now_us;
        self.queue.push(self.now_us + SILENT_US, Happening::Watch(client, session, Event::Listen));
        self.turn_watch(client)
    }

    /// No leader has answered a manager's end.
    pub fn end_watch(&mut self, client: usize, session: u64) {
        let watching = &mut self.watchers[client];
        if watching.session == session && watching.end.take().is_some() {
            self.tell_watcher(client, Event::End { too_old: false });
        }
    }

    /// The manager's end looks at the tables, and tells what has changed.
    fn turn_watch(&mut self, client: usize) -> Result<(), Violation> {
        let watching = &mut self.watchers[client];
        let Some(End { host, life, watcher, seen, is_due, heard_us }) = &mut watching.end else { return Ok(()) };
        let at = &self.hosts[*host];
        let Some(process) = at.process.as_ref().filter(|_| at.life == *life) else { return Ok(()) };
        *is_due = false;
        *heard_us = self.now_us;
        let state = process.store.state();
        let (from, revision) = (*seen, state.revision());
        let too_old = from > 0 && self.checker.is_too_old(*host, from, revision);
        *seen = revision;
        let turned = watcher.turn(&state);
        let refused = turned.as_ref().is_err_and(|error| error.code == ErrorCode::Compacted);
        hold!(
            refused == too_old && refused == turned.is_err(),
            "a watcher that has seen {from} asks a manager at {revision}: {:?}, and it is {}too old",
            turned.as_ref().err(),
            if too_old { "" } else { "not " }
        );
        let Ok(pieces) = turned else {
            watching.end = None;
            self.tell_watcher(client, Event::End { too_old });
            return Ok(());
        };
        for piece in pieces.into_iter().flatten() {
            self.tell_watcher(client, Event::Piece(Box::new(piece)));
        }
        Ok(())
    }

    /// Something goes to a client, and arrives after all that went before it.
    fn tell_watcher(&mut self, client: usize, event: Event) {
        let watching = &mut self.watchers[client];
        let at_us = (self.now_us + self.network.latency()).max(watching.last_us);
        watching.last_us = at_us;
        self.queue.push(at_us, Happening::Watch(client, watching.session, event));
    }

    fn take_piece(&mut self, client: usize, piece: Piece) -> Result<(), Violation> {
        self.watched.0 += 1;
        self.hash = mix(self.hash, piece.revision);
        let watching = &mut self.watchers[client];
        hold!(
            piece.after == watching.told && piece.revision >= piece.after,
            "a watcher that was told of {} is told of {} to {}: a gap, or something twice",
            watching.told,
            piece.after,
            piece.revision
        );
        let is_whole = !piece.partial;
        watching.range.push(piece);
        if is_whole {
            let range = std::mem::take(&mut watching.range);
            self.checker.told(&watching.kinds, watching.told, &range)?;
            watching.told = range.last().map_or(0, |last| last.revision);
        }
        if !self.is_calm && self.chances.watchers.random_bool(BROKEN_OFF) {
            let session = self.watchers[client].session;
            self.watch_again(client, session);
        }
        Ok(())
    }

    /// After a round of a host: what its watchers have not seen, their ends look at soon.
    pub fn tell_watchers(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let revision = process.node.raft().store().state().revision();
        for client in 0..self.watchers.len() {
            let watching = &mut self.watchers[client];
            let Some(end) = watching.end.as_mut().filter(|end| end.host == host && end.seen != revision && !end.is_due) else { continue };
            end.is_due = true;
            let lag_us = if self.is_calm { 0 } else { self.plan.watch_lag_us };
            let pause_us = if lag_us == 0 { 0 } else { exponential(&mut self.chances.watchers, lag_us) };
            let at_us = process.busy_until_us.max(self.now_us) + pause_us;
            self.queue.push(at_us, Happening::Watch(client, watching.session, Event::Turn));
        }
    }

    /// A host's process has ended: its watchers hear of it after what was on its way.
    pub fn end_watches(&mut self, host: usize) {
        for client in 0..self.watchers.len() {
            if self.watchers[client].end.as_ref().is_some_and(|end| end.host == host) {
                self.watchers[client].end = None;
                self.tell_watcher(client, Event::End { too_old: false });
            }
        }
    }

    /// Whether all watchers are told of what was committed.
    pub fn inspect_watches(&self) -> Result<(), String> {
        let latest = self.checker.latest().revision();
        for (client, watching) in self.watchers.iter().enumerate() {
            let seen = watching.end.as_ref().map_or(0, |end| end.seen);
            // One that watches some kinds is not told of revisions that have changed nothing of interest to it.
            let told = if watching.kinds.is_empty() { watching.told } else { seen };
            if seen + BEHIND_MAX < latest || told + BEHIND_MAX < latest {
                return Err(format!("watcher {client} has seen {seen} and was told of {told} of {latest}"));
            }
        }
        Ok(())
    }
}
