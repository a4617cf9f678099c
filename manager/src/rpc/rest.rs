//! REST under `/v1`: the same calls as Control, with the objects as JSON.

mod watch;

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use rcluster_api::client::{IDEMPOTENCY_KEY, root_cause};
use rcluster_api::cluster::UserRole;
use rcluster_api::data::{DataKind, DataSpec};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object, Task};
use rcluster_api::rest::{ClusterJson, DataJson, EventJson, ManagerJson, NetworkJson, NodeJson, ServiceJson, TaskJson, UserJson};
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_server::Control;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::audited::AuditedControl;
use super::auth::{self, Claims};
use super::metrics;

/// Largest body: a secret of the largest size, in base64, with room for what is around it.
const BODY_BYTES_MAX: usize = 2 << 20;

/// A refusal as HTTP has it.
pub(super) struct Refusal(pub(super) ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(json!({ "error": self.0 }))).into_response()
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        Self(status.into())
    }
}

type Answer = Result<Json<Value>, Refusal>;

/// The control calls, with who makes them.
struct Api {
    control: AuditedControl,
    claims: Claims,
    /// A token goes along when the call is forwarded, and a key.
    headers: HeaderMap,
}

impl FromRequestParts<AuditedControl> for Api {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, control: &AuditedControl) -> Result<Self, Infallible> {
        let claims = parts.extensions.get::<Claims>().cloned().unwrap_or_else(Claims::nobody);
        let taken = [AUTHORIZATION, HeaderName::from_static(IDEMPOTENCY_KEY)];
        let headers = taken.into_iter().filter_map(|name| parts.headers.get(&name).cloned().map(|value| (name, value)));
        Ok(Self { control: control.clone(), claims, headers: headers.collect() })
    }
}

impl Api {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut extensions = Extensions::new();
        extensions.insert(self.claims.clone());
        Request::from_parts(MetadataMap::from_headers(self.headers.clone()), extensions, message)
    }
}

/// The parameters of a path's query.
struct Parameters<T>(T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let does_not_fit = |error| Refusal(ApiError::new(ErrorCode::Invalid, format!("the query does not fit: {}", root_cause(&error))));
        Query::try_from_uri(&parts.uri).map(|Query(parameters)| Self(parameters)).map_err(does_not_fit)
    }
}

/// The name in a path.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(name) = Path::from_request_parts(parts, state)
            .await
            .map_err(|error| Refusal(ApiError::new(ErrorCode::Invalid, format!("the path has no name: {}", error.body_text()))))?;
        Ok(Self(name))
    }
}

/// The spec in a body, as JSON.
struct Sent<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, state).await.map_err(|error| {
            Refusal(match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    ApiError::new(ErrorCode::TooLarge, format!("the body has more than the limit of {BODY_BYTES_MAX} bytes"))
                }
                _ => ApiError::new(ErrorCode::Invalid, format!("the body did not come whole: {}", error.body_text())),
            })
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            Refusal(ApiError::new(ErrorCode::Invalid, format!("the body does not fit: {error}")).hint("send the spec as JSON"))
        })
    }
}

/// Narrows a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    service: String,
    #[serde(default)]
    stack: String,
}

/// Which version of an object a change was made for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default)]
    version: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaleBody {
    replicas: u32,
}

/// The routes.
pub fn routes(control: AuditedControl) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(figures))
        .route("/v1/cluster", get(cluster))
        .route("/v1/services", get(|api, query| list(api, Kind::Service, query)))
        .route("/v1/services/{name}", get(|api, path| one(api, Kind::Service, path)).put(put_service).delete(delete_service))
        .route("/v1/services/{name}/scale", axum::routing::post(scale))
        .route("/v1/networks", get(|api, query| list(api, Kind::Network, query)))
        .route("/v1/networks/{name}", get(|api, path| one(api, Kind::Network, path)).put(put_network).delete(delete_network))
        .route("/v1/secrets", get(|api, query| list(api, Kind::Secret, query)))
        .route("/v1/secrets/{name}", data_routes(DataKind::Secret))
        .route("/v1/configs", get(|api, query| list(api, Kind::Config, query)))
        .route("/v1/configs/{name}", data_routes(DataKind::Config))
        .route("/v1/nodes", get(|api, query| list(api, Kind::Node, query)))
        .route("/v1/nodes/{name}", get(|api, path| one(api, Kind::Node, path)))
        .route("/v1/tasks", get(|api, query| list(api, Kind::Task, query)))
        .route("/v1/tasks/{name}", get(|api, path| one(api, Kind::Task, path)))
        .route("/v1/users", get(|api, query| list(api, Kind::User, query)))
        .route("/v1/watch", get(watch::get))
        .route("/v1/events", get(|api, query| list(api, Kind::Event, query)))
        .fallback(|| async { Refusal(ApiError::new(ErrorCode::NotFound, "there is no such path").hint("the paths begin with /v1")) })
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(control)
}

async fn not_allowed(method: Method) -> Response {
    let refusal = Refusal(
        ApiError::new(ErrorCode::Invalid, format!("this path does not take {method}")).hint("the header `allow` says what it takes"),
    );
    (StatusCode::METHOD_NOT_ALLOWED, refusal).into_response()
}

/// This manager's figures, by its own tables: also when there is no leader.
async fn figures(api: Api) -> Result<Response, Refusal> {
    let (router, request) = (api.control.router.clone(), api.request(()));
    auth::admit(&request)?;
    router.permit(&request, UserRole::ReadOnly, "reading metrics").map_err(Refusal)?;
    // All objects are looked at.
    let text = tokio::task::spawn_blocking(move || metrics::text(&router)).await;
    let text = text.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string()));
    let text = text.map_err(|why| Refusal(ApiError::new(ErrorCode::Internal, format!("write the metrics: {why}"))))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

fn data_routes(kind: DataKind) -> MethodRouter<AuditedControl> {
    get(move |api, path| one(api, kind.object_kind(), path))
        .put(move |api: Api, name: Name, expected: Parameters<Expected>, spec: Sent<DataSpec>| async move {
            let spec = DataSpec { kind, name: name.0, ..spec.0 };
            apply(&api, Spec::Data(spec), expected.0.version).await
        })
        .delete(move |api: Api, name: Name| async move { remove(&api, kind.object_kind(), name.0).await })
}

async fn objects(api: &Api, request: v1::ListRequest) -> Result<Vec<Object>, Refusal> {
    let answer = api.control.list(api.request(request)).await?.into_inner();
    answer.objects.into_iter().map(|object| Object::try_from(object).map_err(|error| Refusal(error.into()))).collect()
}

async fn tasks(api: &Api) -> Result<Vec<Task>, Refusal> {
    let request = v1::ListRequest { kind: v1::Kind::Task.into(), ..v1::ListRequest::default() };
    let tasks = objects(api, request).await?.into_iter().filter_map(|object| match object {
        Object::Task(task) => Some(*task),
        _ => None,
    });
    Ok(tasks.collect())
}

/// Objects as JSON; services, nodes and networks with what their tasks tell.
async fn views(api: &Api, found: Vec<Object>) -> Result<Vec<Value>, Refusal> {
    let needs_tasks = found.iter().any(|object| matches!(object, Object::Service(_) | Object::Node(_) | Object::Network(_)));
    let tasks = if needs_tasks { tasks(api).await? } else { Vec::new() };
    found.iter().map(|object| view(object, &tasks).map_err(Refusal)).collect()
}

/// An object as JSON, with what `tasks` tell of it.
fn view<'a>(object: &Object, tasks: impl IntoIterator<Item = &'a Task>) -> Result<Value, ApiError> {
    let value = match object {
        Object::Service(service) => serde_json::to_value(ServiceJson::new(service, tasks)),
        Object::Node(node) => serde_json::to_value(NodeJson::new(node, tasks)),
        Object::Network(network) => serde_json::to_value(NetworkJson::new(network, tasks)),
        Object::Task(task) => serde_json::to_value(TaskJson::from(&**task)),
        Object::Event(event) => serde_json::to_value(EventJson::from(event)),
        Object::Data(data) => serde_json::to_value(DataJson::from(data)),
        Object::User(user) => serde_json::to_value(UserJson::from(user)),
        // The managers are told of by /v1/cluster, and what they share by nobody.
        Object::Manager(_) | Object::Cluster(_) => Ok(Value::Null),
    };
    value.map_err(|error| ApiError::new(ErrorCode::Internal, format!("encode as JSON: {error}")))
}

async fn list(api: Api, kind: Kind, Parameters(filter): Parameters<Filter>) -> Answer {
    let request = v1::ListRequest { kind: v1::Kind::from(kind).into(), name: String::new(), service: filter.service, stack: filter.stack };
    let found = objects(&api, request).await?;
    Ok(Json(Value::Array(views(&api, found).await?)))
}

async fn one(api: Api, kind: Kind, Name(name): Name) -> Answer {
    let request = v1::ListRequest { kind: v1::Kind::from(kind).into(), name, ..v1::ListRequest::default() };
    let mut found = objects(&api, request).await?;
    // A task's name is that of all tasks its slot has had: the one that lives is meant, else the last.
    let newest = |object: &Object| match object {
        Object::Task(task) => (task.is_live(), task.stamp.created_at_ms),
        Object::Service(_) | Object::Node(_) | Object::Network(_) | Object::Event(_) | Object::Data(_) => (true, 0),
        Object::Manager(_) | Object::Cluster(_) | Object::User(_) => (true, 0),
    };
    found.sort_by_key(newest);
    let one = found.pop().into_iter().collect();
    Ok(Json(views(&api, one).await?.pop().unwrap_or_default()))
}

async fn cluster(api: Api) -> Answer {
    let v1::ClusterResponse { leader, term, committed, applied, revision, managers, answered_by, cluster_id, store } =
        api.control.cluster(api.request(v1::ClusterRequest {})).await?.into_inner();
    let managers = managers.into_iter().map(|manager| ManagerJson {
        name: manager.name,
        addr: manager.addr,
        role: manager.role,
        reachable: manager.reachable,
        matched: manager.matched,
        voter: manager.voter,
        lag: committed.saturating_sub(manager.matched),
        write_us: manager.write_us,
    });
    let status = ClusterJson { cluster_id, leader, term, committed, applied, revision, answered_by, store, managers: managers.collect() };
    Ok(Json(json!(status)))
}

async fn apply(api: &Api, spec: Spec, expected_version: u64) -> Answer {
    let spec = v1::Spec { kind: Some(spec.into()), expected_version };
    let answer = api.control.apply(api.request(v1::ApplyRequest { specs: vec![spec] })).await?.into_inner();
    let outcome = |number: i32| match v1::Outcome::try_from(number) {
        Ok(v1::Outcome::Created) => "created",
        Ok(v1::Outcome::Updated) => "updated",
        _ => "unchanged",
    };
    let applied: Vec<Value> = answer
        .applied
        .into_iter()
        .map(|one| json!({ "name": one.name, "id": one.id, "version": one.version, "outcome": outcome(one.outcome) }))
        .collect();
    Ok(Json(json!({ "revision": answer.revision, "applied": applied })))
}

async fn put_service(api: Api, Name(name): Name, Parameters(expected): Parameters<Expected>, Sent(spec): Sent<ServiceSpec>) -> Answer {
    let spec = ServiceSpec { name, ..spec };
    apply(&api, Spec::Service(spec), expected.version).await
}

async fn put_network(api: Api, Name(name): Name, Parameters(expected): Parameters<Expected>, Sent(spec): Sent<NetworkSpec>) -> Answer {
    let spec = NetworkSpec { name, ..spec };
    apply(&api, Spec::Network(spec), expected.version).await
}

async fn remove(api: &Api, kind: Kind, name: String) -> Answer {
    let refs = vec![v1::Ref { kind: v1::Kind::from(kind).into(), name }];
    let answer = api.control.remove(api.request(v1::RemoveRequest { refs })).await?.into_inner();
    Ok(Json(json!({ "revision": answer.revision })))
}

async fn delete_service(api: Api, Name(name): Name) -> Answer {
    remove(&api, Kind::Service, name).await
}

async fn delete_network(api: Api, Name(name): Name) -> Answer {
    remove(&api, Kind::Network, name).await
}

async fn scale(api: Api, Name(service): Name, Sent(ScaleBody { replicas }): Sent<ScaleBody>) -> Answer {
    let answer = api.control.scale(api.request(v1::ScaleRequest { service, replicas })).await?.into_inner();
    Ok(Json(json!({ "revision": answer.revision, "replicas_before": answer.replicas_before })))
}
