//! The Admission service: who joins, and who renews a certificate.

use std::sync::Arc;
use std::time::Duration;

use rcluster_api::cluster::Cluster;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::random_id;
use rcluster_api::identity::{self, Identity, JoinToken, Part};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::admission_client::AdmissionClient;
use rcluster_api::wire::v1::admission_server::Admission;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};
use tracing::info;

use super::audit::Call;
use super::auth;
use super::route::Router;
use crate::ca::{self, CaError};
use crate::core::authorize::Caller;
use crate::core::control::{Answer, Request as Asked};
use crate::core::members;
use crate::core::state::State;
use crate::drive::Term;
use crate::store::Store;

/// Lets hosts in, here or through the leader.
#[derive(Debug, Clone)]
pub struct AdmissionService {
    router: Router,
}

impl AdmissionService {
    /// A service that finds the leader by `router`.
    pub fn new(router: Router) -> Self {
        Self { router }
    }
}

impl From<CaError> for ApiError {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Request(_) | CaError::Name(_) => Self::new(ErrorCode::Invalid, error.to_string()),
            CaError::None => Self::new(ErrorCode::Conflict, error.to_string()),
            CaError::Issue(_) => Self::new(ErrorCode::Internal, error.to_string()),
        }
    }
}

/// A certificate of the cluster for `part` with `id`.
pub fn issue(state: &State, part: Part, id: &str, addr: &str, name: &str, request: &[u8]) -> Result<v1::Credentials, ApiError> {
    let cluster = members::cluster(state)?;
    let identity = Identity { part, id: id.to_owned(), cluster_id: state.cluster_id().to_owned() };
    let hosts = [name, ca::host(addr)];
    let hosts: &[&str] = if part == Part::Manager { &hosts } else { &[] };
    Ok(ca::issue(&cluster.authorities, &identity, hosts, request, Duration::from_millis(cluster.certificate_ttl_ms))?)
}

/// Whether the token lets anyone join, and whom. Secrets are compared by their digests: how long it takes says nothing of them.
fn check_token(cluster: &Cluster, text: &str) -> Result<bool, ApiError> {
    let refused = |why: String| ApiError::new(ErrorCode::Unauthenticated, why);
    let token: JoinToken = text.parse().map_err(|error: rcluster_api::identity::NotAToken| refused(error.to_string()))?;
    let known = if token.manager { &cluster.manager_token } else { &cluster.agent_token };
    if Sha256::digest(&token.secret) != Sha256::digest(&known.secret.0) || known.secret.0.is_empty() {
        let part = if token.manager { "manager" } else { "agent" };
        return Err(refused("the join token is not taken: it is of another cluster, or was rotated".to_owned())
            .hint(format!("print the one that is: rclusterctl cluster token {part}")));
    }
    Ok(token.manager)
}

/// Refuses a manager that would keep the state elsewhere than the others do.
fn check_store(store: &Store, etcd: bool) -> Result<(), ApiError> {
    let refused = |why: String, hint: &str| Err(ApiError::new(ErrorCode::Invalid, why).hint(hint));
    match (store.is_external(), etcd) {
        (true, false) => {
            refused(format!("this cluster keeps its state in {}", store.place()), "join with --store, as the other managers were started")
        }
        (false, true) => refused("this cluster keeps its state among its managers".to_owned(), "join without --store"),
        (true, true) | (false, false) => Ok(()),
    }
}

/// The token that lets a manager, else an agent, join.
pub fn join_token(cluster: &Cluster, manager: bool) -> Result<JoinToken, ApiError> {
    let authority = cluster.authorities.first().ok_or(ApiError::from(CaError::None))?;
    let secret = if manager { &cluster.manager_token } else { &cluster.agent_token }.secret.0.clone();
    Ok(JoinToken { manager, authority: identity::digest(&authority.certificate.0), secret })
}

/// A new bearer token: 256 random bits.
pub fn bearer_token() -> String {
    format!("rct_{}", identity::encode(&rand::random::<[u8; 32]>()))
}

/// What a manager that joins locks its disk with; it is told what it will read in the tables. A version that does not ask for a door locks
/// itself once it has those.
fn lock(state: &State, id: &str, door_request: &[u8]) -> Result<Option<v1::Lock>, ApiError> {
    let cluster = members::cluster(state)?;
    if cluster.unlock_key.0.is_empty() || door_request.is_empty() {
        return Ok(None);
    }
    let door = ca::issue_door(&cluster.authorities, state.cluster_id(), id, door_request)?;
    Ok(Some(v1::Lock { unlock_key: Some(cluster.unlock_key.clone().into()), generation: cluster.unlock_generation, door: Some(door) }))
}

fn peers(state: &State) -> Vec<v1::Peer> {
    let peer = |manager: &rcluster_api::cluster::Manager| v1::Peer {
        raft_id: manager.raft_id,
        name: manager.name.clone(),
        addr: manager.addr.clone(),
    };
    state.managers().values().map(|manager| peer(manager)).collect()
}

#[tonic::async_trait]
impl Admission for AdmissionService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let what = |message: &v1::JoinRequest| {
            let v1::JoinRequest { name, addr, .. } = message;
            if addr.is_empty() { format!("agent {name}") } else { format!("manager {name} at {addr}") }
        };
        let call = Call::begin(&self.router, &request, "Admission/Join", what);
        let outcome = self.let_in(request).await;
        call.end(&outcome);
        outcome
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let call = Call::begin(&self.router, &request, "Admission/Renew", |_| String::new());
        let outcome = self.issue_anew(request).await;
        call.end(&outcome);
        outcome
    }
}

impl AdmissionService {
    async fn let_in(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let here = |term, request| self.admit(term, request);
        let there = |leader, request| async { AdmissionClient::new(leader).join(request).await };
        self.router.answer(request, here, there).await
    }

    async fn admit(&self, term: Arc<Term>, request: Request<v1::JoinRequest>) -> Result<v1::JoinResponse, Status> {
        let is_plain = auth::is_plain(&request);
        let v1::JoinRequest { token, name, addr, signing_request, etcd, door_request } = request.into_inner();
        let state = self.router.fresh().await?;
        let cluster = members::cluster(&state)?;
        let plain = cluster.authorities.is_empty();
        // Before anything is written for it.
        ca::check_request(&signing_request).map_err(ApiError::from)?;
        if !door_request.is_empty() {
            ca::check_request(&door_request).map_err(ApiError::from)?;
        }
        let manager = if plain && is_plain { !addr.is_empty() } else { check_token(cluster, &token)? };
        let (id, raft_id) = if manager {
            check_store(&self.router.store, etcd)?;
            let standing = self.router.standing();
            match term.request(Asked::AddManager { name: name.clone(), addr: addr.clone(), standing }).await? {
                (_, Answer::ManagerAdded(manager)) => (manager.id.to_string(), manager.raft_id),
                (_, other) => return Err(super::control::unexpected(&other)),
            }
        } else {
            (random_id(&mut rand::rng()), 0)
        };
        let state = self.router.store.state();
        let part = if manager { Part::Manager } else { Part::Agent };
        let credentials = if plain { None } else { Some(issue(&state, part, &id, &addr, &name, &signing_request)?) };
        let lock = if manager { lock(&state, &id, &door_request)? } else { None };
        info!(name, id, part = part.as_str(), addr, "joined");
        let managers = peers(&state);
        Ok(v1::JoinResponse { id, cluster_id: state.cluster_id().to_owned(), credentials, raft_id, managers, lock })
    }

    async fn issue_anew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        auth::admit(&request)?;
        let here = |_, request| self.renewed(request);
        let there = |leader, request| async { AdmissionClient::new(leader).renew(request).await };
        self.router.answer(request, here, there).await
    }

    async fn renewed(&self, request: Request<v1::RenewRequest>) -> Result<v1::RenewResponse, Status> {
        let state = self.router.fresh().await?;
        // Its connection ends within a moment; nobody exchanges it for a good one until then.
        if auth::of(&request).is_dropped(&state) {
            let why = "the certificate cannot be renewed: its authority was dropped";
            return Err(ApiError::new(ErrorCode::Unauthenticated, why)
                .hint("a user is given another by an administrator, rclusterctl user create NAME --role ROLE --access FILE; a host joins again")
                .into());
        }
        let (part, id) = match auth::known(&request, &state)? {
            Caller::Manager(id) => (Part::Manager, id),
            Caller::Agent(id) => (Part::Agent, id),
            Caller::User { id, .. } => (Part::User, id.to_string()),
            Caller::Anyone => return Err(ApiError::from(CaError::None).into()),
        };
        let manager = state.find_manager(&id);
        let (addr, name) = manager.map(|manager| (manager.addr.as_str(), manager.name.as_str())).unwrap_or_default();
        if part == Part::Manager && manager.is_none() {
            return Err(ApiError::new(ErrorCode::Forbidden, format!("{id} is no manager of the cluster")).into());
        }
        let credentials = issue(&state, part, &id, addr, name, &request.get_ref().signing_request)?;
        info!(id, part = part.as_str(), "renewed a certificate");
        Ok(v1::RenewResponse { credentials: Some(credentials) })
    }
}
