//! The scope of a leader: made when the store says that this manager leads, dropped when it no longer does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_base::scope::Scope;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::brain::Outcome;
use super::logs::LogBroker;
use super::members;
use super::relays::RelayBroker;
use super::sessions::Sessions;
use super::shell::{Event, Shell};
use crate::core::control::Request;
use crate::core::node::liveness::Timing;
use crate::store::{Role, RoleKind, Store};

/// Events that wait for the brain; when full, sessions and requests wait.
const EVENTS_MAX: usize = 4096;
/// Longest wait of a user's request for its commit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What exists only while this manager leads.
#[derive(Debug)]
pub struct Term {
    /// The Raft term.
    pub number: u64,
    store: Store,
    pub timing: Timing,
    /// Origin of the brain's monotonic time.
    pub began: Instant,
    pub events: mpsc::Sender<Event>,
    pub sessions: Sessions,
    pub logs: LogBroker,
    pub relays: RelayBroker,
    /// Cancelled when the term ends.
    pub ended: CancellationToken,
}

impl Term {
    /// Has the brain carry out a user's request; answers once it is committed.
    ///
    /// What needs no commit rests on the state alone: a refusal, or that there is nothing to change. A leader that was replaced unheard
    /// may have an old one, so it answers that only once a quorum has said that it led when it looked.
    pub async fn request(&self, request: Request) -> Outcome {
        let outcome = self.decide(request).await;
        let rests_on_state = match &outcome {
            Ok((_, answer)) => !answer.is_of_a_commit(),
            Err(refusal) => refusal.code != ErrorCode::Unavailable,
        };
        if rests_on_state {
            let barrier = self.store.read_barrier().await;
            let role = self.store.role().borrow().clone();
            if barrier.is_err() || role.kind != RoleKind::Leader || role.term != self.number {
                let over = "this manager stopped leading before it could answer; the request was not carried out";
                return Err(ApiError::new(ErrorCode::Unavailable, over).hint("try again"));
            }
        }
        outcome
    }

    async fn decide(&self, request: Request) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let over =
            || ApiError::new(ErrorCode::Unavailable, "this manager stopped leading; the request may or may not have been carried out");
        self.events.send(Event::Control { request, from: reply }).await.map_err(|_| over())?;
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(over().hint("look at the state, then try again")),
            Err(_) => Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("no commit within {} s: the managers have no quorum, or their disks are slow", REQUEST_TIMEOUT.as_secs()),
            )
            .hint("`rclusterctl cluster status` shows the managers")),
        }
    }
}

/// Whether this manager leads, for everyone who needs to know.
#[derive(Debug, Clone)]
pub struct Leadership {
    term: watch::Receiver<Option<Arc<Term>>>,
}

impl Leadership {
    /// Starts watching the store's role in `scope`.
    pub fn start(store: Store, timing: Timing, scope: &mut Scope) -> Self {
        let (sender, term) = watch::channel(None);
        scope.spawn(follow_role(store, timing, sender));
        Self { term }
    }

    /// The term, if this manager leads.
    pub fn term(&self) -> Option<Arc<Term>> {
        self.term.borrow().clone()
    }

    /// Tells of changes.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Term>>> {
        self.term.clone()
    }
}

async fn follow_role(store: Store, timing: Timing, sender: watch::Sender<Option<Arc<Term>>>) {
    let mut role = store.role();
    let mut owned: Option<(u64, Scope, CancellationToken)> = None;
    loop {
        let now: Role = role.borrow_and_update().clone();
        let leads = now.kind == RoleKind::Leader;
        let same = owned.as_ref().is_some_and(|(number, ..)| leads && *number == now.term);
        if !same {
            if let Some((number, mut scope, ended)) = owned.take() {
                sender.send_replace(None);
                ended.cancel();
                scope.shutdown().await;
                info!(term = number, "no longer leading");
            }
            if leads {
                let (term, scope) = begin(&store, timing, now.term);
                owned = Some((now.term, scope, term.ended.clone()));
                sender.send_replace(Some(term));
                info!(term = now.term, "leading");
            }
        }
        if role.changed().await.is_err() {
            return;
        }
    }
}

fn begin(store: &Store, timing: Timing, number: u64) -> (Arc<Term>, Scope) {
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let term = Arc::new(Term {
        number,
        store: store.clone(),
        timing,
        began: Instant::now(),
        events,
        sessions: Sessions::default(),
        logs: LogBroker::default(),
        relays: RelayBroker::default(),
        ended: CancellationToken::new(),
    });
    let mut scope = Scope::new();
    scope.spawn(Shell::new(store.clone(), number, timing, term.began, inbox).run());
    scope.spawn(members::keep(store.clone(), term.clone()));
    (term, scope)
}
