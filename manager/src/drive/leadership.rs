//! The scope of a leader: made when the store says that this manager leads, dropped when it no longer does.

use std::sync::Arc;
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_base::scope::Scope;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::brain::{Ground, Outcome};
use super::logs::LogBroker;
use super::members;
use super::relays::RelayBroker;
use super::sessions::Sessions;
use super::shell::{Event, Shell};
use super::views::Views;
use crate::core::control::Request;
use crate::core::node::liveness::Timing;
use crate::store::{Role, RoleKind, Store};

/// Events that wait for the brain; when full, sessions and requests wait.
const EVENTS_MAX: usize = 4096;
/// Most users' requests that the brain has at once.
const REQUESTS_MAX: usize = 1024;
/// Longest wait of a user's request for its commit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do when nobody knows what has become of a request.
const LOOK: &str = "look at the state, then try again";

/// What exists only while this manager leads.
#[derive(Debug)]
pub struct Term {
    /// The Raft term.
    pub number: u64,
    store: Store,
    pub timing: Timing,
    /// Origin of the brain's monotonic time.
    pub began: std::time::Instant,
    pub events: mpsc::Sender<Event>,
    /// Of users' requests with the brain: the others wait here, and no agent behind them.
    places: Semaphore,
    pub sessions: Sessions,
    pub views: Views,
    pub logs: LogBroker,
    pub relays: RelayBroker,
    /// Cancelled when the term ends.
    pub ended: CancellationToken,
}

impl Term {
    /// Has the brain carry out a user's request; answers once it is committed.
    ///
    /// What needs no commit rests on the tables alone: a refusal, or that there is nothing to change. A leader that was replaced unheard
    /// may have old ones, so it answers that only once a quorum has said that it led when it looked.
    ///
    /// # Errors
    /// [`ErrorCode::NotLeader`]: it was not carried out, and whoever leads then may be asked. After [`ErrorCode::Unavailable`] it may or
    /// may not have been.
    pub async fn request(&self, request: Request) -> Outcome {
        let (outcome, ground) = self.decide(request).await?;
        if ground == Ground::Tables {
            let barrier = self.store.read_barrier().await;
            let role = self.store.role().borrow().clone();
            if barrier.is_err() || role.kind != RoleKind::Leader || role.term != self.number {
                let over = "this manager stopped leading before it could answer; the request was not carried out";
                return Err(ApiError::new(ErrorCode::NotLeader, over).hint("try again"));
            }
        }
        outcome
    }

    async fn decide(&self, request: Request) -> Result<(Outcome, Ground), ApiError> {
        let until = Instant::now() + REQUEST_TIMEOUT;
        let over = |code, what| ApiError::new(code, format!("this manager stopped leading; the request {what} carried out"));
        let late = |what, hint: &str| {
            let why = "the managers have no quorum, their disks are slow, or they have very much to do";
            ApiError::new(ErrorCode::Unavailable, format!("no commit within {} s: {why}; {what}", REQUEST_TIMEOUT.as_secs()))
                .hint(format!("`rclusterctl cluster status` shows the managers; {hint}"))
        };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let place = self.places.acquire().await.ok()?;
            self.events.send(Event::Control { request, from: reply }).await.ok()?;
            Some(place)
        };
        let asked = timeout_at(until, asked).await.map_err(|_| late("the request was not carried out", "try again"))?;
        let _place = asked.ok_or_else(|| over(ErrorCode::NotLeader, "was not").hint("try again"))?;
        match timeout_at(until, answer).await {
            Ok(answer) => answer.map_err(|_| over(ErrorCode::Unavailable, "may or may not have been").hint(LOOK)),
            Err(_) => Err(late("the request may still be carried out", LOOK)),
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
        began: std::time::Instant::now(),
        events,
        places: Semaphore::new(REQUESTS_MAX),
        sessions: Sessions::default(),
        views: Views::default(),
        logs: LogBroker::default(),
        relays: RelayBroker::default(),
        ended: CancellationToken::new(),
    });
    let mut scope = Scope::new();
    scope.spawn(Shell::new(store.clone(), number, timing, term.began, inbox).run());
    scope.spawn(members::keep(store.clone(), term.clone()));
    (term, scope)
}
