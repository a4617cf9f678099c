//! What a request changes of secrets and configs, and of the services that use them.
//!
//! In: the state and the part of a request. Out: the objects to write. Never: an error or a note that holds their bytes.

use std::collections::BTreeSet;

use rcluster_api::data::{Data, DataKind, DataSpec};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{DataId, ServiceId};
use rcluster_api::object::{Kind, Object, Service, Stamp};
use rcluster_api::spec::ServiceSpec;
use rcluster_api::validate::nearest;

use super::{Applied, Outcome, check_version, not_found, note_outcome, note_removal};
use crate::core::plan::{ChangeSet, Ctx, Note};
use crate::core::state::State;

/// A kind and a name.
pub(super) type Key = (DataKind, String);

/// Refuses a service that names what is neither there nor in the same request.
pub(super) fn check_uses(state: &State, spec: &ServiceSpec, new: &BTreeSet<Key>) -> Result<(), ApiError> {
    for (index, container) in spec.containers.iter().enumerate() {
        let mut places = [0_usize; 2];
        for (kind, used) in container.data() {
            let place = &mut places[usize::from(kind == DataKind::Config)];
            let field = format!("containers[{index}].{}s[{place}]", kind.as_str());
            *place += 1;
            if state.find_data(kind, &used.source).is_some_and(|data| data.spec.name == used.source)
                || new.contains(&(kind, used.source.clone()))
            {
                continue;
            }
            let known = state.data().values().filter(|data| data.spec.kind == kind).map(|data| data.spec.name.as_str());
            let known = known.chain(new.iter().filter(|(new, _)| *new == kind).map(|(_, name)| name.as_str()));
            let hint = match nearest(&used.source, known) {
                Some(name) => format!("did you mean {name}?"),
                None => format!("make it with `rclusterctl {} create {} FILE`, or in the same files", kind.as_str(), used.source),
            };
            let what = format!("{} {} of service {} does not exist", kind.as_str(), used.source, spec.name);
            return Err(ApiError::new(ErrorCode::Invalid, what).field(field).hint(hint));
        }
    }
    Ok(())
}

/// Creates or updates; a change of the bytes is added to `changed`.
pub(super) fn apply(
    state: &State,
    mut spec: DataSpec,
    expected: u64,
    ctx: &mut Ctx,
    changed: &mut BTreeSet<Key>,
    changes: &mut ChangeSet,
) -> Result<Applied, ApiError> {
    let (kind, name) = (spec.kind, spec.name.clone());
    let current = state.find_data(kind, &name).filter(|data| data.spec.name == name);
    check_version(kind.object_kind(), &name, expected, current.map_or(0, |data| data.stamp.version))?;
    spec.data = spec.data.or_else(|| current.and_then(|data| data.spec.data.clone()));
    let Some(payload) = &spec.data else {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{} {name} does not exist, and no data is given", kind.as_str()))
            .field("data")
            .hint("give data (base64), or in a manifest text or file"));
    };
    let (digest, size) = (payload.digest(), payload.0.len() as u64);
    let (data, outcome) = match current {
        Some(current) if current.spec == spec => ((**current).clone(), Outcome::Unchanged),
        Some(current) => {
            if current.spec.data != spec.data {
                changed.insert((kind, name.clone()));
            }
            (Data { spec, digest, size, ..(**current).clone() }, Outcome::Updated)
        }
        None => (Data { id: DataId::random(&mut ctx.rng), stamp: Stamp::default(), spec, digest, size }, Outcome::Created),
    };
    let kind = kind.object_kind();
    note_outcome(kind, data.id.as_str(), &name, outcome, changes);
    let applied = Applied { kind, name, id: data.id.to_string(), version: data.stamp.version, outcome };
    if outcome != Outcome::Unchanged {
        changes.puts.push(Object::Data(data));
    }
    Ok(applied)
}

/// Makes the tasks of all services that use what has changed outdated, so that each service's update policy replaces them.
pub(super) fn roll_users(state: &State, changed: &BTreeSet<Key>, changes: &mut ChangeSet) {
    if changed.is_empty() {
        return;
    }
    let used = |spec: &ServiceSpec| changed.iter().find(|(kind, name)| spec.data().any(|used| used == (*kind, name.as_str())));
    for current in state.services().values().filter(|service| !service.removing) {
        let staged = changes.puts.iter_mut().find_map(|put| match put {
            Object::Service(service) if service.id == current.id => Some(service),
            _ => None,
        });
        let spec = staged.as_ref().map_or(&current.spec, |service| &service.spec);
        let Some((kind, name)) = used(spec) else { continue };
        match staged {
            Some(service) => service.spec_version = current.spec_version + 1,
            None => changes.puts.push(Object::Service(Service { spec_version: current.spec_version + 1, ..(**current).clone() })),
        }
        changes.notes.push(Note {
            kind: Kind::Service,
            object_id: current.id.to_string(),
            object: current.spec.name.clone(),
            reason: "DataChanged",
            message: format!("{} {name} has changed: its tasks are replaced", kind.as_str()),
        });
    }
}

/// Removes what no service uses that stays.
pub(super) fn remove(
    state: &State,
    kind: DataKind,
    name: &str,
    going: &BTreeSet<ServiceId>,
    changes: &mut ChangeSet,
) -> Result<(), ApiError> {
    let data = state.find_data(kind, name).ok_or_else(|| not_found(kind.object_kind(), name))?;
    let name = data.spec.name.as_str();
    let users: Vec<&str> = state
        .services()
        .values()
        .filter(|service| !going.contains(&service.id) && service.spec.data().any(|used| used == (kind, name)))
        .map(|service| service.spec.name.as_str())
        .collect();
    if !users.is_empty() {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{} {name} is used by {}", kind.as_str(), users.join(", ")))
            .hint("remove those services first, or in the same command"));
    }
    changes.deletes.push((kind.object_kind(), data.id.to_string()));
    note_removal(kind.object_kind(), data.id.as_str(), name, changes);
    Ok(())
}
