//! `GET /v1/watch`: changes as lines of JSON, each a piece of a range of revisions; the last one is an error, if there was one.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object};
use rcluster_api::wire::v1;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{Api, Parameters, Refusal, view};
use crate::core::state::{Key, State};
use crate::core::watch::Piece;
use crate::rpc::watch;

/// What can be asked for: the managers are told of by `/v1/cluster`.
const KINDS: [Kind; 8] = [Kind::Service, Kind::Task, Kind::Node, Kind::Network, Kind::Event, Kind::Secret, Kind::Config, Kind::User];

fn refuse(field: &str, why: String) -> Refusal {
    Refusal(ApiError::new(ErrorCode::Invalid, why).field(field).hint("GET /v1/watch?from=REVISION&kind=KIND,…"))
}

/// `from` and `kind`, which may be repeated, or hold several with commas between them.
fn request(query: Vec<(String, String)>) -> Result<v1::WatchRequest, Refusal> {
    let (mut kinds, mut from_revision) = (Vec::new(), 0);
    for (name, value) in query {
        match name.as_str() {
            "from" => from_revision = value.parse().map_err(|_| refuse("from", format!("{value} is not a revision")))?,
            "kind" => {
                for word in value.split(',') {
                    let kind = KINDS.into_iter().find(|kind| kind.as_str() == word);
                    let known = || KINDS.map(Kind::as_str).join(", ");
                    kinds.push(kind.ok_or_else(|| refuse("kind", format!("there is no kind {word:?} to watch, but {}", known())))?);
                }
            }
            other => return Err(refuse(other, "there is no such parameter".to_owned())),
        }
    }
    let kinds = if kinds.is_empty() { KINDS.to_vec() } else { kinds };
    Ok(v1::WatchRequest { kinds: kinds.into_iter().map(|kind| v1::Kind::from(kind).into()).collect(), from_revision })
}

/// Objects with what their tasks tell now.
fn line(piece: Piece, state: &State) -> Result<Value, ApiError> {
    let Piece { after, revision, puts, deletes, synced, partial } = piece;
    let put = |object: Object| {
        let shown = match &object {
            Object::Service(service) => view(&object, state.tasks_of_service(&service.id).map(AsRef::as_ref)),
            Object::Node(node) => view(&object, state.tasks_of_node(&node.id).map(AsRef::as_ref)),
            Object::Network(_) => view(&object, state.tasks().values().map(AsRef::as_ref)),
            Object::Task(_) | Object::Event(_) | Object::Data(_) | Object::Manager(_) | Object::Cluster(_) | Object::User(_) => {
                view(&object, [])
            }
        };
        Ok(json!({ "kind": object.kind(), "object": shown? }))
    };
    let puts: Vec<Value> = puts.into_iter().map(put).collect::<Result<_, ApiError>>()?;
    let deletes: Vec<Value> = deletes.into_iter().map(|(kind, id): Key| json!({ "kind": kind, "id": id })).collect();
    Ok(json!({ "after": after, "revision": revision, "synced": synced, "partial": partial, "put": puts, "delete": deletes }))
}

pub(super) async fn get(api: Api, Parameters(query): Parameters<Vec<(String, String)>>) -> Result<Response, Refusal> {
    let pieces = watch::open(&api.control.router, api.request(request(query)?)).await.map_err(|status| {
        let refusal = ApiError::from(status);
        Refusal(if refusal.field == "from_revision" { refusal.field("from") } else { refusal })
    })?;
    let store = api.control.router.store.clone();
    let lines = pieces.map(move |piece| {
        let value = piece.and_then(|piece| line(piece, &store.state())).unwrap_or_else(|error| json!({ "error": error }));
        Ok::<_, Infallible>(Bytes::from(format!("{value}\n")))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
