//! The Control service: what users, rclusterctl and REST ask for.

use std::pin::Pin;
use std::sync::Arc;

use prost::Message as _;
use rcluster_api::cluster::{Cluster, ManagerRole, UserRole};
use rcluster_api::data::{DataKind, Payload};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::{self, Part};
use rcluster_api::object::{Kind, Object};
use rcluster_api::seal::Key;
use rcluster_api::spec::Spec;
use rcluster_api::wire::convert;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_api::wire::v1::control_server::Control;
use rcluster_api::wire::v1::{self};
use rcluster_base::clock::unix_ms;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use super::route::{Route, Router, control, forward};
use super::{admission, auth, backup, logs, network, once, relay, watch};
use crate::ca;
use crate::core::control::{Answer, Outcome, Request as Asked};
use crate::core::members;
use crate::core::state::State;
use crate::drive::Term;

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers control calls, here or through the leader.
#[derive(Debug, Clone)]
pub struct ControlService {
    pub(super) router: Router,
}

impl ControlService {
    /// A service that finds the leader by `router`.
    pub fn new(router: Router) -> Self {
        Self { router }
    }
}

fn specs(request: v1::ApplyRequest) -> Result<Vec<(Spec, u64)>, ApiError> {
    let nothing = || ApiError::new(ErrorCode::Invalid, "a spec of the request is empty");
    request
        .specs
        .into_iter()
        .map(|spec| Ok((Spec::try_from(spec.kind.ok_or_else(nothing)?).map_err(ApiError::from)?, spec.expected_version)))
        .collect()
}

pub fn unexpected(answer: &Answer) -> Status {
    ApiError::new(ErrorCode::Internal, format!("the brain gave another kind of answer: {answer:?}")).into()
}

fn applied_response(revision: u64, answer: Answer) -> Result<v1::ApplyResponse, Status> {
    let Answer::Applied(applied) = answer else { return Err(unexpected(&answer)) };
    let applied = applied
        .into_iter()
        .map(|one| v1::Applied {
            kind: v1::Kind::from(one.kind).into(),
            name: one.name,
            id: one.id,
            version: one.version,
            outcome: match one.outcome {
                Outcome::Created => v1::Outcome::Created,
                Outcome::Updated => v1::Outcome::Updated,
                Outcome::Unchanged => v1::Outcome::Unchanged,
            }
            .into(),
        })
        .collect();
    Ok(v1::ApplyResponse { revision, applied })
}

/// The objects that a list asks for, in a stable order.
fn list(state: &State, request: &v1::ListRequest) -> Result<Vec<Object>, ApiError> {
    let v1::ListRequest { kind, name, service, stack } = request;
    let in_stack = |of: &str| stack.is_empty() || of == stack;
    let kind = convert::kind(*kind).map_err(ApiError::from)?;
    let data = |kind| match name.is_empty() {
        true => {
            let all = state.data().values().filter(|data| data.spec.kind == kind && in_stack(&data.spec.stack));
            all.map(|data| Object::Data(data.listed())).collect()
        }
        false => state.find_data(kind, name).map(|data| Object::Data(data.shown())).into_iter().collect(),
    };
    let objects: Vec<Object> = match kind {
        Kind::Service if !name.is_empty() => state.find_service(name).map(|s| Object::Service((**s).clone())).into_iter().collect(),
        Kind::Network if !name.is_empty() => state.find_network(name).map(|n| Object::Network((**n).clone())).into_iter().collect(),
        Kind::Node if !name.is_empty() => state.find_node(name).map(|n| Object::Node((**n).clone())).into_iter().collect(),
        Kind::Service => state.services().values().filter(|s| in_stack(&s.spec.stack)).map(|s| Object::Service((**s).clone())).collect(),
        Kind::Network => state.networks().values().filter(|n| in_stack(&n.spec.stack)).map(|n| Object::Network((**n).clone())).collect(),
        Kind::Node => state.nodes().values().map(|n| Object::Node((**n).clone())).collect(),
        Kind::Task => state
            .tasks()
            .values()
            .filter(|t| name.is_empty() || t.id.as_str() == name || t.name == *name)
            .filter(|t| service.is_empty() || t.service == *service || t.service_id.as_str() == service)
            .filter(|t| in_stack(&t.stack))
            .map(|t| Object::Task(Box::new((**t).clone())))
            .collect(),
        Kind::Secret => data(DataKind::Secret),
        Kind::Config => data(DataKind::Config),
        Kind::Event => state.events().values().map(|e| Object::Event((**e).clone())).collect(),
        Kind::Manager if !name.is_empty() => state.find_manager(name).map(|m| Object::Manager((**m).clone())).into_iter().collect(),
        Kind::User if !name.is_empty() => state.find_user(name).map(|u| Object::User((**u).clone())).into_iter().collect(),
        Kind::Manager => state.managers().values().map(|m| Object::Manager((**m).clone())).collect(),
        Kind::User => state.users().values().map(|u| Object::User((**u).clone())).collect(),
        Kind::Cluster => {
            return Err(ApiError::new(ErrorCode::Forbidden, "the cluster's own object holds its keys and never leaves the managers")
                .hint("`rclusterctl cluster status` shows the managers"));
        }
    };
    if !name.is_empty() && objects.is_empty() {
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no {} {name}", kind.as_str()))
            .hint(format!("`rclusterctl get {}s` lists them", kind.as_str())));
    }
    Ok(objects)
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::ApplyRequest>| async move {
            self.router.permit(&request, UserRole::Deploy, "deploying")?;
            let key = once::key(&request, &self.router.store.state(), "Apply", v1::ApplyRequest::encode_to_vec)?;
            let (revision, answer) = term.request(once::with(key, Asked::Apply(specs(request.into_inner())?))).await?;
            applied_response(revision, answer)
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.apply(request).await };
        self.router.ask(request, here, there).await
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::RemoveRequest>| async move {
            let state = self.router.store.state();
            let caller = auth::known(&request, &state)?;
            let key = once::key(&request, &state, "Remove", v1::RemoveRequest::encode_to_vec)?;
            let refs = request.into_inner().refs.into_iter().map(|v1::Ref { kind, name }| Ok((convert::kind(kind)?, name)));
            let refs: Vec<(Kind, String)> = refs.collect::<Result<_, convert::WireError>>().map_err(ApiError::from)?;
            let of_users = |kind: &Kind| match kind {
                Kind::Service | Kind::Task | Kind::Network | Kind::Event | Kind::Secret | Kind::Config => true,
                Kind::Node | Kind::Manager | Kind::Cluster | Kind::User => false,
            };
            let role = if refs.iter().all(|(kind, _)| of_users(kind)) { UserRole::Deploy } else { UserRole::Admin };
            caller.needs(role, "removing")?;
            let asked = match &refs[..] {
                [(Kind::Manager, name)] => Asked::RemoveManager { manager: name.clone(), standing: self.router.standing() },
                _ => Asked::Remove(refs),
            };
            let (revision, _) = term.request(once::with(key, asked)).await?;
            Ok::<_, Status>(v1::RemoveResponse { revision })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.remove(request).await };
        self.router.ask(request, here, there).await
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::ScaleRequest>| async move {
            self.router.permit(&request, UserRole::Deploy, "scaling")?;
            let key = once::key(&request, &self.router.store.state(), "Scale", v1::ScaleRequest::encode_to_vec)?;
            let v1::ScaleRequest { service, replicas } = request.into_inner();
            match term.request(once::with(key, Asked::Scale { service, replicas })).await? {
                (revision, Answer::Scaled { replicas_before }) => Ok::<_, Status>(v1::ScaleResponse { revision, replicas_before }),
                (_, other) => Err(unexpected(&other)),
            }
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.scale(request).await };
        self.router.ask(request, here, there).await
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        // Any manager may answer: it asks the leader how far it must have come.
        auth::admit(&request)?;
        let state = self.router.shown(&request, UserRole::ReadOnly, "listing").await?;
        let objects = list(&state, request.get_ref())?.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListResponse { revision: state.revision(), objects, now_ms: unix_ms() }))
    }

    type WatchStream = Answers<v1::WatchResponse>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let pieces = watch::open(&self.router, request).await?;
        Ok(Response::new(Box::pin(pieces.map(|piece| piece.map(watch::response).map_err(Status::from)))))
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Result<Response<v1::UpdateNodeResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::UpdateNodeRequest>| async move {
            self.router.permit(&request, UserRole::Admin, "changing a node")?;
            let key = once::key(&request, &self.router.store.state(), "UpdateNode", v1::UpdateNodeRequest::encode_to_vec)?;
            let v1::UpdateNodeRequest { node, availability, labels_set, labels_removed } = request.into_inner();
            let availability = convert::availability(availability).map_err(ApiError::from)?;
            let asked = once::with(key, Asked::UpdateNode { node, availability, labels_set, labels_removed });
            let (revision, _) = term.request(asked).await?;
            Ok::<_, Status>(v1::UpdateNodeResponse { revision })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.update_node(request).await };
        self.router.ask(request, here, there).await
    }

    type LogsStream = Answers<v1::LogLine>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        auth::admit(&request)?;
        match self.router.route(&request).await? {
            Route::There(leader) => control(leader.channel)
                .logs(forward(request))
                .await
                .map(|answer| Response::new(Box::pin(answer.into_inner()) as Self::LogsStream)),
            Route::Here(term) => {
                self.router.fresh().await?;
                Ok(Response::new(logs::stream(&self.router, term, request)?))
            }
        }
    }

    type RelayStream = Answers<v1::RelayOutput>;

    async fn relay(&self, request: Request<Streaming<v1::RelayInput>>) -> Result<Response<Self::RelayStream>, Status> {
        relay::stream(&self.router, request).await.map(Response::new)
    }

    async fn cluster(&self, request: Request<v1::ClusterRequest>) -> Result<Response<v1::ClusterResponse>, Status> {
        auth::admit(&request)?;
        // Without a leader a manager's own picture is worth more than none.
        match self.router.route(&request).await {
            Ok(Route::There(leader)) => match control(leader.channel)
                .cluster(forward(Request::from_parts(request.metadata().clone(), request.extensions().clone(), v1::ClusterRequest {})))
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(status) if status.code() == Code::Unavailable => {}
                Err(status) => return Err(status),
            },
            Ok(Route::Here(_)) | Err(_) => {}
        }
        self.router.permit(&request, UserRole::ReadOnly, "seeing the managers")?;
        let state = self.router.store.state();
        let status = self.router.store.status();
        let object_id = |raft_id: u64| {
            let manager = state.managers().values().find(|manager| manager.raft_id == raft_id);
            manager.map(|manager| manager.id.to_string()).unwrap_or_default()
        };
        let managers = status.members.into_iter().map(|member| v1::ManagerStatus {
            id: member.id,
            name: member.name,
            addr: member.addr,
            role: member.role,
            reachable: member.reachable,
            matched: member.matched,
            voter: member.voter,
            object_id: object_id(member.id),
            write_us: member.write_us,
        });
        Ok(Response::new(v1::ClusterResponse {
            leader: status.leader,
            term: status.term,
            committed: status.committed,
            applied: status.applied,
            revision: state.revision(),
            managers: managers.collect(),
            answered_by: status.answered_by,
            cluster_id: state.cluster_id().to_owned(),
            store: self.router.store.place().to_owned(),
        }))
    }

    async fn update_manager(&self, request: Request<v1::UpdateManagerRequest>) -> Result<Response<v1::UpdateManagerResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::UpdateManagerRequest>| async move {
            self.router.permit(&request, UserRole::Admin, "changing a manager")?;
            let key = once::key(&request, &self.router.store.state(), "UpdateManager", v1::UpdateManagerRequest::encode_to_vec)?;
            let v1::UpdateManagerRequest { manager, role, addr } = request.into_inner();
            let role = convert::manager_role(role).map_err(ApiError::from)?;
            if role == Some(ManagerRole::Leaving) {
                return Err(ApiError::new(ErrorCode::Invalid, "a manager leaves by being removed").field("role").into());
            }
            let standing = self.router.standing();
            let (revision, _) = term.request(once::with(key, Asked::UpdateManager { manager, role, addr, standing })).await?;
            Ok::<_, Status>(v1::UpdateManagerResponse { revision })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.update_manager(request).await };
        self.router.ask(request, here, there).await
    }

    async fn join_token(&self, request: Request<v1::JoinTokenRequest>) -> Result<Response<v1::JoinTokenResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::JoinTokenRequest>| async move {
            self.router.shown(&request, UserRole::Admin, "reading join tokens").await?;
            once::refuse(&request, "reading or rotating a join token")?;
            let v1::JoinTokenRequest { manager, rotate } = request.into_inner();
            if rotate {
                let secret = Payload(identity::join_secret(&mut rand::rng()));
                term.request(Asked::RotateToken { manager, secret }).await?;
            }
            let state = self.router.fresh().await?;
            let token = admission::join_token(members::cluster(&state)?, manager)?.to_string();
            let managers = state.managers().values().map(|manager| manager.addr.clone()).collect();
            Ok::<_, Status>(v1::JoinTokenResponse { token, managers })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.join_token(request).await };
        self.router.ask(request, here, there).await
    }

    async fn create_user(&self, request: Request<v1::CreateUserRequest>) -> Result<Response<v1::CreateUserResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::CreateUserRequest>| async move {
            self.router.permit(&request, UserRole::Admin, "creating a user")?;
            once::refuse(&request, "creating a user")?;
            let v1::CreateUserRequest { name, role, ttl_ms, signing_request } = request.into_inner();
            let role = convert::user_role(role).map_err(ApiError::from)?;
            if !signing_request.is_empty() {
                // Before anything is written for it.
                ca::check_request(&signing_request).map_err(ApiError::from)?;
                members::cluster(&self.router.store.state())?.authorities.first().ok_or(ApiError::from(ca::CaError::None))?;
            }
            let token = if signing_request.is_empty() { admission::bearer_token() } else { String::new() };
            let token_digest = if token.is_empty() { String::new() } else { Payload(token.clone().into_bytes()).digest() };
            let expires_at_ms = if ttl_ms == 0 { 0 } else { unix_ms().saturating_add(ttl_ms) };
            let (_, answer) = term.request(Asked::CreateUser { name, role, token_digest, expires_at_ms }).await?;
            let Answer::UserCreated(id) = answer else { return Err(unexpected(&answer)) };
            let credentials = if signing_request.is_empty() {
                None
            } else {
                let state = self.router.store.state();
                Some(admission::issue(&state, Part::User, id.as_str(), "", "", &signing_request)?)
            };
            Ok::<_, Status>(v1::CreateUserResponse { id: id.to_string(), token, credentials })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.create_user(request).await };
        self.router.ask(request, here, there).await
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::RotateAuthorityResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::RotateAuthorityRequest>| async move {
            self.router.permit(&request, UserRole::Admin, "rotating the authority")?;
            once::refuse(&request, "rotating the authority")?;
            let state = self.router.store.state();
            let before = members::cluster(&state)?.authorities.first().cloned().ok_or(ApiError::from(ca::CaError::None))?;
            let authority = ca::succeed(&before).map_err(ApiError::from)?;
            let digest = authority.certificate.digest();
            term.request(Asked::RotateAuthority { authority, before: before.certificate }).await?;
            Ok::<_, Status>(v1::RotateAuthorityResponse { digest })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.rotate_authority(request).await };
        self.router.ask(request, here, there).await
    }

    async fn drop_authorities(
        &self,
        request: Request<v1::DropAuthoritiesRequest>,
    ) -> Result<Response<v1::DropAuthoritiesResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::DropAuthoritiesRequest>| async move {
            self.router.permit(&request, UserRole::Admin, "dropping old authorities")?;
            let key = once::key(&request, &self.router.store.state(), "DropAuthorities", v1::DropAuthoritiesRequest::encode_to_vec)?;
            let (revision, _) = term.request(once::with(key, Asked::DropAuthorities)).await?;
            Ok::<_, Status>(v1::DropAuthoritiesResponse { revision })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.drop_authorities(request).await };
        self.router.ask(request, here, there).await
    }

    type BackupStream = Answers<v1::BackupChunk>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        auth::admit(&request)?;
        match self.router.route(&request).await? {
            Route::There(leader) => control(leader.channel)
                .backup(forward(request))
                .await
                .map(|answer| Response::new(Box::pin(answer.into_inner()) as Self::BackupStream)),
            Route::Here(_) => {
                let state = self.router.fresh().await?;
                let caller = auth::known(&request, &state)?;
                caller.needs(UserRole::Admin, "making a backup")?;
                Ok(Response::new(backup::stream(state, &self.router.store, &caller).await?))
            }
        }
    }

    async fn autolock(&self, request: Request<v1::AutolockRequest>) -> Result<Response<v1::AutolockResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::AutolockRequest>| async move {
            let state = self.router.shown(&request, UserRole::Admin, "the unlock key").await?;
            if self.router.store.is_external() {
                let why = "the state of this cluster is in an etcd, which autolock does not seal";
                return Err(ApiError::new(ErrorCode::Conflict, why).hint("encrypt the disks of etcd's hosts").into());
            }
            let cluster = members::cluster(&state)?;
            let action = v1::AutolockAction::try_from(request.get_ref().action).unwrap_or_default();
            if action != v1::AutolockAction::Show {
                once::refuse(&request, "changing the unlock key")?;
            }
            if let Some(key) = autolock(cluster, action)? {
                term.request(Asked::SetUnlockKey { key, generation: cluster.unlock_generation }).await?;
            }
            let key = members::cluster(&self.router.store.state())?.unlock_key.clone();
            Ok::<_, Status>(v1::AutolockResponse { unlock_key: (!key.0.is_empty()).then(|| key.into()) })
        };
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.autolock(request).await };
        self.router.ask(request, here, there).await
    }

    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<v1::NetView>, Status> {
        network::view(&self.router, request).await.map(Response::new)
    }

    async fn update_pools(&self, request: Request<v1::UpdatePoolsRequest>) -> Result<Response<v1::UpdatePoolsResponse>, Status> {
        let here = move |term: Arc<Term>, request: Request<v1::UpdatePoolsRequest>| network::update_pools(&self.router, term, request);
        let there = |mut leader: ControlClient<Channel>, request| async move { leader.update_pools(request).await };
        self.router.ask(request, here, there).await
    }
}

/// The unlock key that is to be, empty for none; `None` when it stays.
fn autolock(cluster: &Cluster, action: v1::AutolockAction) -> Result<Option<Payload>, ApiError> {
    let conflict = |why: &str, hint: &str| Err(ApiError::new(ErrorCode::Conflict, why).hint(hint));
    let new = || Ok(Some(Payload(Key::random().bytes().to_vec())));
    match (action, cluster.unlock_key.0.is_empty()) {
        (v1::AutolockAction::Show, _) => Ok(None),
        (v1::AutolockAction::On, true) | (v1::AutolockAction::Rotate, false) => new(),
        (v1::AutolockAction::On, false) => {
            conflict("autolock is on", "rclusterctl cluster unlock-key prints the key; --rotate makes another")
        }
        (v1::AutolockAction::Rotate, true) => conflict("autolock is off: there is no unlock key", "rclusterctl cluster autolock on"),
        (v1::AutolockAction::Off, _) => Ok(Some(Payload::default())),
        (v1::AutolockAction::Unspecified, _) => Err(ApiError::new(ErrorCode::Invalid, "no action is asked for").field("action")),
    }
}
