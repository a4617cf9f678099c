//! Audit events: who did what, on which object, from where, with which outcome. Lines of JSON in this manager's log.
//!
//! A request that is passed on is told of by both managers: by the one that it came to, and by the leader, which says through whom.

use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rcluster_api::cluster::UserRole;
use rcluster_api::rest::timestamp;
use rcluster_base::clock::unix_ms;
use serde::Serialize;
use tonic::{Code, Request, Status};

use super::auth::{self, Claims};
use super::methods::{OUTCOMES, code_place};
use super::route::Router;
use crate::core::audit::{Flood, Outcome};
use crate::core::authorize::Caller;
use crate::core::state::State;
use crate::meter::Counter;
use crate::store::Store;

/// Events that wait to be written.
const EVENTS_MAX: usize = 8192;
/// How long the writer waits for more: thousands of changes a second cost it a few hundred writes.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes of one write, about.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of what an event says of its objects.
const WHAT_BYTES_MAX: usize = 1024;

/// Where audit events go; clones share it. The default tells nobody.
#[derive(Debug, Clone, Default)]
pub struct Audit(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    manager: String,
    flood: Mutex<Flood>,
    events: Option<SyncSender<Event>>,
    writer: Option<JoinHandle<()>>,
    /// Events that found no room: whoever reads the log does not.
    lost: Counter,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.events = None;
        if let Some(writer) = self.writer.take() {
            // It ends once it has written what is left; if it has panicked, that was told.
            drop(writer.join());
        }
    }
}

/// What a line says.
#[derive(Debug, Serialize)]
struct Event {
    #[serde(skip)]
    at_ms: u64,
    /// The manager that tells.
    manager: String,
    who: String,
    /// The manager that has passed it on, if one has.
    #[serde(skip_serializing_if = "String::is_empty")]
    through: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<SocketAddr>,
    method: Cow<'static, str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    what: String,
    outcome: &'static str,
    /// Refusals before this one that were not told of, because there were too many.
    #[serde(skip_serializing_if = "is_zero")]
    omitted: u64,
    /// Events that were lost since this manager was started, because the log was not taken.
    #[serde(skip_serializing_if = "is_zero")]
    lost: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// As the log's other lines are in JSON.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    target: &'static str,
    fields: &'a Event,
}

/// A call that is being answered and is told of when it has been, or when its caller has gone: then it goes without an end.
#[derive(Debug)]
pub struct Call {
    audit: Audit,
    store: Store,
    claims: Claims,
    method: &'static str,
    /// Names of objects, never their content.
    pub what: String,
    ended: bool,
}

impl Call {
    /// A call begins; `method`: as figures call it.
    pub fn begin<T>(router: &Router, request: &Request<T>, method: &'static str, what: impl FnOnce(&T) -> String) -> Self {
        let (audit, store) = (router.audit.clone(), router.store.clone());
        Self { audit, store, claims: auth::of(request), method, what: what(request.get_ref()), ended: false }
    }

    /// It was answered.
    pub fn end<T>(mut self, outcome: &Result<T, Status>) {
        self.ended = true;
        let place = outcome.as_ref().map_or_else(|status| code_place(status.code()), |_| 0);
        self.audit.tell(&self.store.state(), &self.claims, self.method.into(), std::mem::take(&mut self.what), place);
    }

    /// It was answered, and nobody need know.
    pub fn end_untold(mut self) {
        self.ended = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (state, what) = (self.store.state(), std::mem::take(&mut self.what));
        let outcome = left(auth::who(&self.claims, &state).ok().as_ref());
        self.audit.tell_as(outcome, &state, &self.claims, self.method.into(), what, code_place(Code::Cancelled));
    }
}

impl Audit {
    /// To standard error, as manager `manager`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(manager: &str) -> std::io::Result<Self> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let writer = std::thread::Builder::new().name("audit".to_owned()).spawn(move || write(&events))?;
        let (events, writer) = (Some(sender), Some(writer));
        let (flood, lost) = (Mutex::default(), Counter::default());
        Ok(Self(Arc::new(Inner { manager: manager.to_owned(), flood, events, writer, lost })))
    }

    /// Tells of a call that has ended; `outcome`: a place in [`OUTCOMES`].
    pub fn tell(&self, state: &State, claims: &Claims, method: Cow<'static, str>, what: String, outcome: usize) {
        self.tell_as(judged(outcome), state, claims, method, what, outcome);
    }

    fn tell_as(&self, judged: Outcome, state: &State, claims: &Claims, method: Cow<'static, str>, what: String, outcome: usize) {
        let at_ms = unix_ms();
        let Some(omitted) = self.judge(judged, at_ms) else { return };
        let (who, through) = claims.describe(state);
        self.send(Event { who, through, from: claims.from(), what: shortened(what), omitted, ..self.event(at_ms, method, outcome) });
    }

    /// Tells of what somebody without an identity did.
    pub fn tell_of_someone(&self, from: Option<SocketAddr>, method: &'static str, outcome: usize) {
        let at_ms = unix_ms();
        let Some(omitted) = self.judge(judged(outcome), at_ms) else { return };
        self.send(Event { who: "someone".to_owned(), from, omitted, ..self.event(at_ms, method.into(), outcome) });
    }

    fn judge(&self, outcome: Outcome, at_ms: u64) -> Option<u64> {
        self.0.flood.lock().unwrap_or_else(PoisonError::into_inner).judge(outcome, at_ms)
    }

    fn event(&self, at_ms: u64, method: Cow<'static, str>, outcome: usize) -> Event {
        let (manager, outcome, lost) = (self.0.manager.clone(), OUTCOMES[outcome], self.0.lost.value());
        let (who, through, what) = (String::new(), String::new(), String::new());
        Event { at_ms, manager, who, through, from: None, method, what, outcome, omitted: 0, lost }
    }

    fn send(&self, event: Event) {
        let Some(events) = &self.0.events else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = events.try_send(event) {
            self.0.lost.count();
        }
    }
}

/// How a call ended that was answered with `outcome`, a place in [`OUTCOMES`].
fn judged(outcome: usize) -> Outcome {
    if outcome == 0 { Outcome::Done } else { Outcome::Refused }
}

/// How a call ended whose caller went away, `None`: one who is not known. Who may change nothing has changed nothing, and could go away
/// as often as there is room for events.
fn left(caller: Option<&Caller>) -> Outcome {
    match caller {
        Some(Caller::Anyone | Caller::Manager(_) | Caller::User { id: _, name: _, role: UserRole::Deploy | UserRole::Admin }) => {
            Outcome::Unknown
        }
        Some(Caller::Agent(_) | Caller::User { id: _, name: _, role: UserRole::ReadOnly }) | None => Outcome::Refused,
    }
}

fn shortened(mut what: String) -> String {
    if what.len() > WHAT_BYTES_MAX {
        let end = (0..=WHAT_BYTES_MAX).rev().find(|end| what.is_char_boundary(*end)).unwrap_or_default();
        what.truncate(end);
        what.push('…');
    }
    what
}

/// Writes events as they come, until no more can.
fn write(events: &Receiver<Event>) {
    let mut lines = Vec::new();
    while let Ok(first) = events.recv() {
        std::thread::sleep(GATHER);
        let mut next = Some(first);
        while let Some(event) = next {
            let line = Line { timestamp: timestamp(event.at_ms), level: "INFO", target: "audit", fields: &event };
            // Nothing in it cannot be JSON.
            if serde_json::to_writer(&mut lines, &line).is_ok() {
                lines.push(b'\n');
            }
            next = if lines.len() < WRITE_BYTES { events.try_recv().ok() } else { None };
        }
        // There is nowhere else to tell that standard error is gone.
        drop(std::io::stderr().lock().write_all(&lines));
        lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_change_nothing_hides_nothing_by_going_away() {
        let user = |role| Caller::User { id: "u1".into(), name: "eve".into(), role };
        let [sees, deploys] = [UserRole::ReadOnly, UserRole::Deploy].map(|role| left(Some(&user(role))));
        assert_eq!((sees, deploys), (Outcome::Refused, Outcome::Unknown));
        assert_eq!((left(None), left(Some(&Caller::Agent("n1".into())))), (Outcome::Refused, Outcome::Refused));
        assert_eq!(left(Some(&Caller::Anyone)), Outcome::Unknown, "without TLS it may be anyone");
    }

    #[test]
    fn a_line_is_json_whatever_names_hold() {
        let audit = Audit::default();
        let event =
            Event { who: "user \"x\"\n".to_owned(), what: shortened("é".repeat(600)), ..audit.event(0, "Control/Apply".into(), 7) };
        let line = Line { timestamp: timestamp(event.at_ms), level: "INFO", target: "audit", fields: &event };
        let text = serde_json::to_string(&line).unwrap();
        assert!(!text.contains('\n'), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["fields"]["who"], "user \"x\"\n");
        assert_eq!(value["fields"]["outcome"], "permission_denied");
        assert_eq!(value["fields"]["what"].as_str().unwrap().chars().count(), WHAT_BYTES_MAX / 2 + 1);
    }
}
