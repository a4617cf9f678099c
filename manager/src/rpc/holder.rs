//! Who holds a stream open: it ends when its user is removed, when what the user showed expires or its authority is dropped, or when its role
//! is taken away.

use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use rcluster_api::cluster::{Cluster, User, UserRole};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::UserId;
use rcluster_base::clock::unix_ms;
use tonic::Request;

use super::auth::{self, Claims};
use crate::core::authorize::Caller;
use crate::core::state::State;
use crate::store::Store;

/// The clock is looked at this often at least: it may be set.
const LOOK: Duration = Duration::from_secs(60);

/// The user of a stream.
#[derive(Debug)]
pub struct Holder {
    store: Store,
    claims: Claims,
    role: UserRole,
    deed: &'static str,
}

/// What of the tables was looked at.
struct Seen {
    users: OrdMap<UserId, Arc<User>>,
    cluster: Option<Arc<Cluster>>,
}

impl Seen {
    fn of(state: &State) -> Self {
        Self { users: state.users().clone(), cluster: state.cluster().cloned() }
    }

    fn is_current(&self, state: &State) -> bool {
        let is_same = match (&self.cluster, state.cluster()) {
            (Some(seen), Some(now)) => Arc::ptr_eq(seen, now),
            (seen, now) => seen.is_none() && now.is_none(),
        };
        is_same && state.users().ptr_eq(&self.users)
    }
}

impl Holder {
    /// Who makes `request`, which needs `role`, by this manager's tables.
    pub fn new<T>(store: &Store, request: &Request<T>, role: UserRole, deed: &'static str) -> Result<Self, ApiError> {
        let holder = Self { store: store.clone(), claims: auth::of(request), role, deed };
        holder.check(&holder.store.state())?;
        Ok(holder)
    }

    /// Whether the stream may go on, and until when, Unix time; `None`: for as long as the tables say.
    fn check(&self, state: &State) -> Result<Option<u64>, ApiError> {
        let caller = auth::who(&self.claims, state)?;
        caller.needs(self.role, self.deed)?;
        let Caller::User { id, name, .. } = &caller else { return Ok(None) };
        let shown_ms = self.claims.validity().until_ms;
        if shown_ms.is_some_and(|until| until <= unix_ms()) {
            let why = format!("the certificate of user {name} has expired, which ended {}", self.deed);
            return Err(ApiError::new(ErrorCode::Unauthenticated, why).hint("connect anew, with the certificate that has replaced it"));
        }
        if self.claims.is_dropped(state) {
            let why = format!("the authority of the certificate of user {name} was dropped, which ended {}", self.deed);
            return Err(ApiError::new(ErrorCode::Unauthenticated, why).hint(
                "connect anew, with a certificate of the authority that issues now; who has none is given one by an administrator: \
                 rclusterctl user create NAME --role ROLE --access FILE",
            ));
        }
        let credentials_ms = state.users().get(id).map(|user| user.expires_at_ms).filter(|until| *until != 0);
        Ok([shown_ms, credentials_ms].into_iter().flatten().min())
    }

    /// Returns when the stream may not go on, with the reason.
    pub async fn over(&self) -> ApiError {
        let mut revisions = self.store.revisions();
        let mut seen = None;
        let mut until_ms = None;
        loop {
            revisions.borrow_and_update();
            let state = self.store.state();
            let is_due = until_ms.is_some_and(|until| until <= unix_ms());
            // Nearly all revisions are about something else.
            if is_due || !seen.as_ref().is_some_and(|seen: &Seen| seen.is_current(&state)) {
                match self.check(&state) {
                    Ok(until) => until_ms = until,
                    Err(why) => return why,
                }
                seen = Some(Seen::of(&state));
            }
            let wait = until_ms.map_or(LOOK, |until| Duration::from_millis(until.saturating_sub(unix_ms())).min(LOOK));
            tokio::select! {
                changed = revisions.changed() => {
                    if changed.is_err() {
                        return ApiError::new(ErrorCode::Unavailable, "this manager is stopping").hint("go on with another");
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
