//! The Control service: what users, rclusterctl and REST ask for.

use std::pin::Pin;

use rcluster_api::data::DataKind;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object};
use rcluster_api::spec::Spec;
use rcluster_api::wire::convert;
use rcluster_api::wire::v1::control_server::Control;
use rcluster_api::wire::v1::{self};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::route::{Route, Router, forward};
use super::{logs, relay, watch};
use crate::core::control::{Answer, Outcome, Request as Asked};
use crate::core::state::State;

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers control calls, here or through the leader.
#[derive(Debug, Clone)]
pub struct ControlService {
    router: Router,
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

fn unexpected(answer: &Answer) -> Status {
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
    let data = |kind| {
        let all = state.data().values().filter(|data| data.spec.kind == kind && in_stack(&data.spec.stack));
        let named = all.filter(|data| name.is_empty() || data.spec.name == *name || data.id.as_str() == name);
        named.map(|data| Object::Data(if name.is_empty() { data.listed() } else { data.shown() })).collect()
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
        match self.router.route(&request).await? {
            Route::There(mut leader) => leader.apply(forward(request)).await,
            Route::Here(term) => {
                let (revision, answer) = term.request(Asked::Apply(specs(request.into_inner())?)).await?;
                applied_response(revision, answer).map(Response::new)
            }
        }
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => leader.remove(forward(request)).await,
            Route::Here(term) => {
                let refs = request.into_inner().refs.into_iter().map(|v1::Ref { kind, name }| Ok((convert::kind(kind)?, name)));
                let refs = refs.collect::<Result<_, convert::WireError>>().map_err(ApiError::from)?;
                let (revision, _) = term.request(Asked::Remove(refs)).await?;
                Ok(Response::new(v1::RemoveResponse { revision }))
            }
        }
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleResponse>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => leader.scale(forward(request)).await,
            Route::Here(term) => {
                let v1::ScaleRequest { service, replicas } = request.into_inner();
                match term.request(Asked::Scale { service, replicas }).await? {
                    (revision, Answer::Scaled { replicas_before }) => Ok(Response::new(v1::ScaleResponse { revision, replicas_before })),
                    (_, other) => Err(unexpected(&other)),
                }
            }
        }
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => leader.list(forward(request)).await,
            Route::Here(_) => {
                self.router.store.read_barrier().await.map_err(|error| ApiError::new(ErrorCode::Unavailable, error.to_string()))?;
                let state = self.router.store.state();
                let objects = list(&state, request.get_ref())?.into_iter().map(Into::into).collect();
                Ok(Response::new(v1::ListResponse { revision: state.revision(), objects }))
            }
        }
    }

    type WatchStream = Answers<v1::WatchResponse>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => {
                leader.watch(forward(request)).await.map(|answer| Response::new(Box::pin(answer.into_inner()) as Self::WatchStream))
            }
            Route::Here(term) => {
                self.router.store.read_barrier().await.map_err(|error| ApiError::new(ErrorCode::Unavailable, error.to_string()))?;
                let kinds = request.into_inner().kinds.into_iter().map(convert::kind).collect::<Result<_, _>>().map_err(ApiError::from)?;
                Ok(Response::new(watch::stream(self.router.store.clone(), &term, kinds)))
            }
        }
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Result<Response<v1::UpdateNodeResponse>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => leader.update_node(forward(request)).await,
            Route::Here(term) => {
                let v1::UpdateNodeRequest { node, availability, labels_set, labels_removed } = request.into_inner();
                let availability = convert::availability(availability).map_err(ApiError::from)?;
                let (revision, _) = term.request(Asked::UpdateNode { node, availability, labels_set, labels_removed }).await?;
                Ok(Response::new(v1::UpdateNodeResponse { revision }))
            }
        }
    }

    type LogsStream = Answers<v1::LogLine>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => {
                leader.logs(forward(request)).await.map(|answer| Response::new(Box::pin(answer.into_inner()) as Self::LogsStream))
            }
            Route::Here(term) => Ok(Response::new(logs::stream(self.router.store.clone(), term, request.into_inner())?)),
        }
    }

    type RelayStream = Answers<v1::RelayOutput>;

    async fn relay(&self, request: Request<Streaming<v1::RelayInput>>) -> Result<Response<Self::RelayStream>, Status> {
        match self.router.route(&request).await? {
            Route::There(mut leader) => {
                // A user's connection that breaks ends the answer too, and with it this call: the error itself need not be passed on.
                let request = request.map(|inputs| inputs.map_while(Result::ok));
                leader.relay(forward(request)).await.map(|answer| Response::new(Box::pin(answer.into_inner()) as Self::RelayStream))
            }
            Route::Here(term) => Ok(Response::new(relay::stream(self.router.store.clone(), term, request.into_inner()).await?)),
        }
    }

    async fn cluster(&self, request: Request<v1::ClusterRequest>) -> Result<Response<v1::ClusterResponse>, Status> {
        let own = || {
            let status = self.router.store.status();
            let managers = status.members.into_iter().map(|member| v1::ManagerStatus {
                id: member.id,
                name: member.name,
                addr: member.addr,
                role: member.role,
                reachable: member.reachable,
                matched: member.matched,
            });
            v1::ClusterResponse {
                leader: status.leader,
                term: status.term,
                committed: status.committed,
                applied: status.applied,
                revision: self.router.store.state().revision(),
                managers: managers.collect(),
                answered_by: status.answered_by,
            }
        };
        // Without a leader a manager's own picture is worth more than none.
        match self.router.route(&request).await {
            Ok(Route::There(mut leader)) => Ok(leader.cluster(forward(request)).await.unwrap_or_else(|_| Response::new(own()))),
            Ok(Route::Here(_)) | Err(_) => Ok(Response::new(own())),
        }
    }
}
