//! Where a request is answered: here if this manager leads, else at the leader.

use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcluster_api::client::{IDEMPOTENCY_KEY, MESSAGE_BYTES_MAX, endpoint, root_cause};
use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1::control_client::ControlClient;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{ConnectError, Request, Response, Status};
use tracing::debug;

use super::audit::Audit;
use super::auth;
use super::figures::Figures;
use crate::core::members::Standing;
use crate::core::state::State;
use crate::drive::{Leadership, Term, standing_in};
use crate::store::{Member, ProposeError, Role, RoleKind, Store};

/// Set on a forwarded request, so that it is forwarded once at most.
const FORWARDED: &str = "x-rcluster-forwarded";
/// How long a request waits for a leader to be elected.
const LEADER_WAIT: Duration = Duration::from_secs(3);
/// How soon a leader that did not accept a connection is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Finds the leader for every request.
#[derive(Debug, Clone)]
pub struct Router {
    pub store: Store,
    pub leadership: Leadership,
    pub security: Security,
    /// What is counted of calls and connections.
    pub figures: Arc<Figures>,
    /// Where what is done is told of.
    pub audit: Audit,
    /// What calls that end by themselves are passed on by.
    link: Arc<Mutex<Option<Link>>>,
}

/// A connection to another manager that leads in a term.
#[derive(Debug, Clone)]
pub struct Link {
    term: u64,
    leader: Member,
    pub channel: Channel,
}

/// Where to go.
#[derive(Debug)]
pub enum Route {
    Here(Arc<Term>),
    There(Link),
}

impl Router {
    /// A router over the store's role.
    pub fn new(store: Store, leadership: Leadership, security: Security, audit: Audit) -> Self {
        Self { store, leadership, security, figures: Arc::default(), audit, link: Arc::default() }
    }

    /// Refuses a request of a user without this role, by the leader's state; `deed` says what it needs the role for.
    pub fn permit<T>(&self, request: &Request<T>, role: UserRole, deed: &str) -> Result<(), ApiError> {
        auth::known(request, &self.store.state())?.needs(role, deed)
    }

    /// The tables with all that was committed anywhere before the call: what a leader that has been deposed and does not know it has
    /// not seen, it does not judge by.
    pub async fn fresh(&self) -> Result<State, ApiError> {
        match self.store.read_barrier().await {
            Ok(()) => Ok(self.store.state()),
            Err(ProposeError::ShuttingDown) => Err(ApiError::new(ErrorCode::Unavailable, ProposeError::ShuttingDown.to_string())),
            Err(_) => Err(self.no_leader()),
        }
    }

    /// The same, for who has this role by them.
    pub async fn shown<T>(&self, request: &Request<T>, role: UserRole, deed: &str) -> Result<State, ApiError> {
        let state = self.fresh().await?;
        auth::known(request, &state)?.needs(role, deed)?;
        Ok(state)
    }

    /// Nobody leads, and what it needs that somebody does.
    pub fn no_leader(&self) -> ApiError {
        ApiError::new(ErrorCode::Unavailable, "the managers have no leader")
            .hint(format!("{}; `rclusterctl cluster status` shows them", needed(&self.store)))
    }

    /// How this manager sees the others.
    pub fn standing(&self) -> Standing {
        standing_in(&self.store)
    }

    /// [`Self::answer`], for who shows who they are, by the Control service.
    pub async fn ask<T, A, Here, There>(
        &self,
        request: Request<T>,
        here: impl Fn(Arc<Term>, Request<T>) -> Here,
        there: impl Fn(ControlClient<Channel>, Request<T>) -> There,
    ) -> Result<Response<A>, Status>
    where
        T: Clone,
        Here: Future<Output = Result<A, Status>>,
        There: Future<Output = Result<Response<A>, Status>>,
    {
        auth::admit(&request)?;
        self.answer(request, here, |channel, request| there(control(channel), request)).await
    }

    /// Has whoever leads answer a request: `here` when this manager does, else `there`. It is asked again, for a while, when it came to
    /// one that leads no more and was not carried out; and, under an idempotency key, when nobody knows whether it was.
    pub async fn answer<T, A, Here, There>(
        &self,
        request: Request<T>,
        here: impl Fn(Arc<Term>, Request<T>) -> Here,
        there: impl Fn(Channel, Request<T>) -> There,
    ) -> Result<Response<A>, Status>
    where
        T: Clone,
        Here: Future<Output = Result<A, Status>>,
        There: Future<Output = Result<Response<A>, Status>>,
    {
        let until = Instant::now() + LEADER_WAIT;
        let passed_on = is_forwarded(&request);
        let repeats = request.metadata().contains_key(IDEMPOTENCY_KEY);
        loop {
            let mut role = self.store.role();
            role.mark_unchanged();
            let asked = copy(&request);
            let answer = match self.find(&asked, until, true).await? {
                Route::Here(term) => here(term, asked).await.map(Response::new),
                Route::There(link) => {
                    let call = there(link.channel.clone(), forward(asked));
                    self.wait_for(&link, call).await
                }
            };
            let Err(status) = answer else { return answer };
            let refusal = ApiError::from(status.clone());
            let undone = refusal.code == ErrorCode::NotLeader;
            if passed_on || !(undone || repeats && refusal.code == ErrorCode::Unavailable) {
                return Err(status);
            }
            if Instant::now() >= until {
                // The one who asks cannot know who leads.
                return Err(if undone { ApiError { code: ErrorCode::Unavailable, ..refusal }.into() } else { status });
            }
            debug!(%refusal, "asking again");
            tokio::select! {
                () = sleep(TRY_AGAIN) => {}
                changed = role.changed() => changed.map_err(|_| Status::from(self.no_leader()))?,
            }
        }
    }

    /// Where `request` is to be answered, by a connection of its own; waits a little when there is no leader.
    pub async fn route<T>(&self, request: &Request<T>) -> Result<Route, Status> {
        self.find(request, Instant::now() + LEADER_WAIT, false).await
    }

    async fn find<T>(&self, request: &Request<T>, until: Instant, kept: bool) -> Result<Route, Status> {
        match timeout_at(until, self.leader(is_forwarded(request), kept)).await {
            Ok(route) => route,
            Err(_) => Err(self.no_leader().into()),
        }
    }

    async fn leader(&self, forwarded: bool, kept: bool) -> Result<Route, Status> {
        let mut role = self.store.role();
        let mut term = self.leadership.watch();
        loop {
            if let Some(term) = term.borrow_and_update().clone() {
                return Ok(Route::Here(term));
            }
            let now = role.borrow_and_update().clone();
            let leader = now.leader.filter(|_| now.kind != RoleKind::Leader && !forwarded);
            let linking = async {
                let link = match leader {
                    Some(leader) => self.link(now.term, leader, kept).await,
                    None => None,
                };
                if link.is_none() {
                    sleep(TRY_AGAIN).await;
                }
                link
            };
            tokio::select! {
                // None: it may have just died. The next leader is told by a change of the role, or it is tried again.
                link = linking => if let Some(link) = link { return Ok(Route::There(link)) },
                changed = role.changed() => changed.map_err(|_| Status::from(self.no_leader()))?,
                changed = term.changed() => changed.map_err(|_| Status::from(self.no_leader()))?,
            }
        }
    }

    /// A connection to the leader of a term. Streams have one of their own: a connection takes so many calls at once only.
    async fn link(&self, term: u64, leader: Member, kept: bool) -> Option<Link> {
        let known = self.kept().clone().filter(|link| kept && link.term == term && link.leader == leader);
        if known.is_some() {
            return known;
        }
        match self.connect(&leader.addr).await {
            Ok(channel) => {
                let link = Link { term, leader, channel };
                if kept {
                    *self.kept() = Some(link.clone());
                }
                Some(link)
            }
            Err(unreachable) => {
                debug!(leader = leader.name, %unreachable, "forwarding waits");
                None
            }
        }
    }

    async fn connect(&self, addr: &str) -> Result<Channel, ApiError> {
        let unreachable =
            |error: tonic::transport::Error| ApiError::new(ErrorCode::Unavailable, format!("the leader at {addr}: {}", root_cause(&error)));
        self.security.connect(endpoint(addr)?).await.map_err(unreachable)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer to a call that was passed on, for as long as nobody else leads: one who has lost power does not answer.
    async fn wait_for<A>(&self, link: &Link, call: impl Future<Output = Result<A, Status>>) -> Result<A, Status> {
        let mut role = self.store.role();
        let replaced = async {
            let other = |role: &Role| role.term > link.term && (role.leader.is_some() || role.kind == RoleKind::Leader);
            if role.wait_for(other).await.is_err() {
                // The store has stopped and tells of nothing more.
                std::future::pending::<()>().await;
            }
        };
        let answer = tokio::select! {
            answer = call => answer,
            () = replaced => {
                let why = format!("{} stopped leading before it answered; the request may or may not have been carried out", link.leader.name);
                Err(ApiError::new(ErrorCode::Unavailable, why).hint("look at the state, then try again").into())
            }
        };
        let Err(status) = answer else { return answer };
        // What the connection itself has to say; what a manager says has no cause here.
        if status.source().is_some() {
            self.kept().take_if(|kept| kept.term == link.term);
        }
        if was_sent(&status) {
            return Err(status);
        }
        let why = format!("{} takes no connection; the request was not carried out", link.leader.name);
        Err(ApiError::new(ErrorCode::NotLeader, why).hint("try again").into())
    }
}

/// Not when a connection that was closed could not be opened again.
fn was_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return false;
        }
        cause = error.source();
    }
    true
}

fn is_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED)
}

fn copy<T: Clone>(request: &Request<T>) -> Request<T> {
    Request::from_parts(request.metadata().clone(), request.extensions().clone(), request.get_ref().clone())
}

/// Control calls on a connection to the leader.
pub fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The request, marked as forwarded, with who made it.
pub fn forward<T>(request: Request<T>) -> Request<T> {
    let mut request = request;
    auth::pass_on(&mut request);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// What must be so for a manager to lead.
fn needed(store: &Store) -> String {
    if store.is_external() {
        format!("{} must answer the managers, which keep the state there", store.place())
    } else {
        "a majority of the managers must run and reach each other".to_owned()
    }
}
