//! Where a request is answered: here if this manager leads, else at the leader.

use std::sync::Arc;
use std::time::Duration;

use rcluster_api::client::{MESSAGE_BYTES_MAX, endpoint, root_cause};
use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1::control_client::ControlClient;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::debug;

use super::auth;
use crate::core::members::Standing;
use crate::core::state::State;
use crate::drive::{Leadership, Term, standing_in};
use crate::store::{RoleKind, Store};

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
}

/// Where to go.
#[derive(Debug)]
pub enum Route {
    Here(Arc<Term>),
    /// A connection to the leader.
    There(Channel),
}

impl Router {
    /// A router over the store's role.
    pub fn new(store: Store, leadership: Leadership, security: Security) -> Self {
        Self { store, leadership, security }
    }

    /// Refuses a request of a user without this role, by the leader's state; `deed` says what it needs the role for.
    pub fn permit<T>(&self, request: &Request<T>, role: UserRole, deed: &str) -> Result<(), ApiError> {
        auth::known(request, &self.store.state())?.needs(role, deed)
    }

    /// The tables with all that was committed anywhere before the call: what a leader that has been deposed and does not know it has
    /// not seen, it does not judge by.
    pub async fn fresh(&self) -> Result<State, ApiError> {
        self.store.read_barrier().await.map_err(|error| {
            ApiError::new(ErrorCode::Unavailable, error.to_string()).hint("try again: a majority of the managers must reach each other")
        })?;
        Ok(self.store.state())
    }

    /// How this manager sees the others.
    pub fn standing(&self) -> Standing {
        standing_in(&self.store)
    }

    /// A fresh connection: what a leader that has just died would swallow is not sent at all.
    pub async fn connect(&self, addr: &str) -> Result<Channel, ApiError> {
        let unreachable =
            |error: tonic::transport::Error| ApiError::new(ErrorCode::Unavailable, format!("the leader at {addr}: {}", root_cause(&error)));
        self.security.connect(endpoint(addr)?).await.map_err(unreachable)
    }

    /// Where `request` is to be answered; waits a little when there is no leader.
    pub async fn route<T>(&self, request: &Request<T>) -> Result<Route, Status> {
        let forwarded = request.metadata().contains_key(FORWARDED);
        match tokio::time::timeout(LEADER_WAIT, self.leader(forwarded)).await {
            Ok(route) => route,
            Err(_) => Err(no_leader().into()),
        }
    }

    async fn leader(&self, forwarded: bool) -> Result<Route, Status> {
        let mut role = self.store.role();
        let mut term = self.leadership.watch();
        loop {
            if let Some(term) = term.borrow_and_update().clone() {
                return Ok(Route::Here(term));
            }
            let now = role.borrow_and_update().clone();
            if let Some(leader) = now.leader
                && now.kind != RoleKind::Leader
                && !forwarded
            {
                match self.connect(&leader.addr).await {
                    Ok(channel) => return Ok(Route::There(channel)),
                    // It may have just died: the next leader is told by a change of the role, or it is tried again.
                    Err(unreachable) => debug!(leader = leader.name, %unreachable, "forwarding waits"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(TRY_AGAIN) => {}
                changed = role.changed() => changed.map_err(|_| Status::from(no_leader()))?,
                changed = term.changed() => changed.map_err(|_| Status::from(no_leader()))?,
            }
        }
    }
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

fn no_leader() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the managers have no leader")
        .hint("a majority of the managers must run and reach each other; `rclusterctl cluster status` shows them")
}
