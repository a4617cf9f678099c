//! The verbs that change objects without a manifest: rm, scale, node drain and its like; what those that create have in common.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::client::{idempotency_key, keyed};
use rcluster_api::object::{Availability, Kind, Object};
use rcluster_api::spec::Mode;
use rcluster_api::wire::v1;

use super::follow::{self, Ending};
use clap::ValueEnum;

use crate::args::{KindArg, LabelChange, Wait};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// Kinds that a user may remove.
fn check_removable(kind: Kind) -> Result<(), CliError> {
    match kind {
        Kind::Service | Kind::Network | Kind::Node | Kind::Secret | Kind::Config | Kind::Manager | Kind::User => Ok(()),
        Kind::Cluster => Err(CliError::usage("a cluster is not removed: stop its managers", "")),
        Kind::Task => Err(CliError::usage("a task cannot be removed: its service would make another", "see rclusterctl scale")),
        Kind::Event => Err(CliError::usage("events cannot be removed", "the managers keep the latest ones")),
    }
}

/// Asks the managers to remove objects: all or none.
pub async fn remove(session: &mut Session, refs: &[(Kind, String)]) -> Result<u64, CliError> {
    let refs: Vec<v1::Ref> = refs.iter().map(|(kind, name)| v1::Ref { kind: v1::Kind::from(*kind).into(), name: name.clone() }).collect();
    let key = idempotency_key();
    let response = session
        .call(|mut client| {
            let request = keyed(&key, v1::RemoveRequest { refs: refs.clone() });
            async move { client.remove(request).await }
        })
        .await?;
    Ok(response.revision)
}

/// Makes an object, or changes the one of its name, and prints its id.
pub async fn put(session: &mut Session, out: Out, kind: Kind, name: &str, spec: v1::spec::Kind) -> Result<(), CliError> {
    let spec = v1::Spec { kind: Some(spec), expected_version: 0 };
    let key = idempotency_key();
    let response = session
        .call(|mut client| {
            let request = keyed(&key, v1::ApplyRequest { specs: vec![spec.clone()] });
            async move { client.apply(request).await }
        })
        .await?;
    let id = response.applied.first().map(|applied| applied.id.clone()).unwrap_or_default();
    if out.is_table() {
        output::data(&format!("{id}\n"))
    } else {
        out.value(&serde_json::json!({ "kind": kind.as_str(), "name": name, "id": id }))
    }
}

/// What `rm KIND NAME…` means: each name is of the kind, unless it says its own (`network/lab`).
fn named(kind: Kind, names: &[String]) -> Result<Vec<(Kind, String)>, CliError> {
    let read = |name: &String| match name.split_once('/') {
        None => Ok((kind, name.clone())),
        Some((word, name)) => {
            let kind = KindArg::from_str(word, true)
                .map_err(|_| CliError::usage(format!("{word}/{name}: there is no kind {word}"), "write KIND/NAME, such as network/lab"))?;
            let kind = kind.object().ok_or_else(|| {
                CliError::usage(format!("{word}/{name}: images do not go together with other objects"), "use rclusterctl image rm")
            })?;
            Ok((kind, name.to_owned()))
        }
    };
    names.iter().map(read).collect()
}

/// `rm KIND NAME…`: all in one transaction, so that a network and the services on it can go together.
pub async fn rm(mut session: Session, kind: Kind, names: &[String], wait: Wait) -> Result<(), CliError> {
    let refs = named(kind, names)?;
    let mut ids = BTreeSet::new();
    for (kind, name) in &refs {
        check_removable(*kind)?;
        let found = session.list(*kind, name, "").await?;
        if found.is_empty() {
            return Err(CliError::refused(
                format!("there is no {} {name}: nothing was removed", kind.as_str()),
                format!("see rclusterctl get {}s", kind.as_str()),
            ));
        }
        ids.extend(found.iter().map(|object| (object.kind(), object.id().to_owned())));
    }
    let revision = remove(&mut session, &refs).await?;
    let what = refs.iter().map(|(kind, name)| format!("{} {name}", kind.as_str())).collect::<Vec<_>>().join(", ");
    if wait.detach {
        return output::talk(&format!("{what}: removal began"));
    }
    let elapsed_ms = follow::until_gone(session, &ids, revision, wait.timeout, &what).await?;
    output::talk(&format!("{what}: removed in {}", output::rows::seconds(elapsed_ms)))
}

/// Refuses before the first of several services has been scaled.
async fn check_scalable(session: &mut Session, name: &str) -> Result<(), CliError> {
    match session.list(Kind::Service, name, "").await?.first() {
        Some(Object::Service(service)) if service.spec.mode == Mode::Global => {
            Err(CliError::refused(format!("service {name} is global: it has one task on each node"), "nothing was scaled"))
        }
        Some(_) => Ok(()),
        None => Err(CliError::refused(format!("there is no service {name}: nothing was scaled"), "see rclusterctl get services")),
    }
}

/// `scale SERVICE=N…`.
pub async fn scale(mut session: Session, out: Out, targets: &[(String, u32)], wait: Wait) -> Result<(), CliError> {
    for (service, _) in targets {
        check_scalable(&mut session, service).await?;
    }
    let mut revision = 0;
    for (service, replicas) in targets {
        let request = v1::ScaleRequest { service: service.clone(), replicas: *replicas };
        let key = idempotency_key();
        let response = session
            .call(|mut client| {
                let request = keyed(&key, request.clone());
                async move { client.scale(request).await }
            })
            .await?;
        revision = revision.max(response.revision);
        output::talk(&format!("service {service}: {} -> {replicas} replicas", response.replicas_before))?;
    }
    if wait.detach {
        return Ok(());
    }
    let services = targets.iter().map(|(service, _)| service.clone()).collect();
    let ending = Ending { verb: "scaling", timeout: wait.timeout };
    let elapsed_ms = follow::rollout(session, &services, revision, ending).await?;
    let done = format!("converged in {}", output::rows::seconds(elapsed_ms));
    if out.is_table() { output::data(&format!("{done}\n")) } else { output::talk(&done) }
}

async fn update_node(session: &mut Session, request: v1::UpdateNodeRequest) -> Result<(), CliError> {
    let key = idempotency_key();
    session
        .call(|mut client| {
            let request = keyed(&key, request.clone());
            async move { client.update_node(request).await }
        })
        .await
        .map(|_| ())
}

/// `node drain|activate|pause NODE`.
pub async fn availability(mut session: Session, node: &str, availability: Availability) -> Result<(), CliError> {
    let request = v1::UpdateNodeRequest {
        node: node.to_owned(),
        availability: v1::Availability::from(availability).into(),
        labels_set: BTreeMap::new().into_iter().collect(),
        labels_removed: Vec::new(),
    };
    update_node(&mut session, request).await?;
    output::talk(&match availability {
        Availability::Active => format!("node {node} is given work again"),
        Availability::Pause => format!("node {node} keeps its tasks and gets no new ones"),
        Availability::Drain => format!("node {node}: its tasks move away; rclusterctl describe node {node} shows those left"),
    })
}

/// `node label NODE KEY=VALUE… KEY-…`.
pub async fn label(mut session: Session, node: &str, changes: &[LabelChange]) -> Result<(), CliError> {
    let mut labels_set = BTreeMap::new();
    let mut labels_removed = Vec::new();
    for change in changes {
        match change {
            LabelChange::Set(key, value) => drop(labels_set.insert(key.clone(), value.clone())),
            LabelChange::Remove(key) => labels_removed.push(key.clone()),
        }
    }
    let request = v1::UpdateNodeRequest {
        node: node.to_owned(),
        availability: v1::Availability::Unspecified.into(),
        labels_set: labels_set.into_iter().collect(),
        labels_removed,
    };
    update_node(&mut session, request).await?;
    output::talk(&format!("node {node}: labels changed"))
}
