//! Whether the state has room for what a request adds.
//!
//! In: the state, what a request changes, a limit. Out: a refusal that says how much it would be. Never: a refusal of what makes the state
//! smaller, however full it is.

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Object, Service};
use rcluster_api::spec::Mode;
use rcluster_api::validate;

use crate::core::plan::ChangeSet;
use crate::core::state::{State, weight};

/// Bytes of all objects in the tables, roughly: each manager has them in memory, and a snapshot is as large.
pub const STATE_BYTES_MAX: usize = 512 << 20;

/// Refuses what would make the state larger than `limit`.
pub(super) fn check(state: &State, changes: &ChangeSet, limit: usize) -> Result<(), ApiError> {
    let (mut added, mut removed) = (0_usize, 0_usize);
    for put in &changes.puts {
        added += weight(put);
        removed += state.weight(put.kind(), put.id());
        if let Object::Service(service) = put {
            let before = state.services().get(&service.id).map_or(0, |before| tasks_weight(state, before));
            added += tasks_weight(state, service).saturating_sub(before);
        }
    }
    removed += changes.deletes.iter().map(|(kind, id)| state.weight(*kind, id)).sum::<usize>();
    let after = (state.bytes() + added).saturating_sub(removed);
    if added <= removed || after <= limit {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::TooLarge,
        format!("with this, the cluster's state would have about {after} bytes; it has {} and the limit is {limit}", state.bytes()),
    )
    .hint("remove what is not needed: services, secrets, configs; removing and scaling down are always allowed"))
}

/// What a service's tasks will take.
fn tasks_weight(state: &State, service: &Service) -> usize {
    const TASK: usize = 512;
    let replicas = match service.spec.mode {
        Mode::Replicated => usize::try_from(service.spec.replicas()).unwrap_or(usize::MAX),
        Mode::Global => state.nodes().len().max(1),
    };
    let words = validate::words_bytes(&service.spec.dns_search, &service.spec.extra_hosts);
    replicas.saturating_mul(TASK + validate::text_bytes(&service.spec.containers) + words)
}

#[cfg(test)]
mod tests {
    use rcluster_api::data::{Data, DataKind, DataSpec, Payload};
    use rcluster_api::object::{Kind, Stamp};
    use rcluster_api::spec::ServiceSpec;

    use super::*;
    use crate::core::state::{Change, Transaction, decode_snapshot, encode_snapshot};

    fn config(id: &str, bytes: usize) -> Object {
        let spec = DataSpec { name: id.to_owned(), data: Some(Payload(vec![7; bytes])), ..serde_json::from_str("{}").unwrap() };
        let spec = DataSpec { kind: DataKind::Config, ..spec };
        Object::Data(Data { id: id.into(), stamp: Stamp::default(), spec, digest: String::new(), size: bytes as u64 })
    }

    fn service(replicas: u32) -> Object {
        let spec =
            ServiceSpec { name: "web".to_owned(), replicas: Some(replicas), ..serde_json::from_str(r#"{"containers": []}"#).unwrap() };
        Object::Service(Service::new("web".into(), spec))
    }

    fn apply(state: &mut State, changes: Vec<Change>) {
        state.apply(state.revision() + 1, &Transaction { at_ms: 1, changes }).unwrap();
    }

    fn put(expected: u64, object: Object) -> Change {
        Change::Put { expected, object }
    }

    #[test]
    fn the_bytes_of_the_state_are_those_of_its_objects() {
        let mut state = State::new("c".to_owned());
        apply(&mut state, vec![put(0, config("a", 1000)), put(0, config("b", 10)), put(0, service(3))]);
        apply(&mut state, vec![put(1, config("a", 500)), Change::Delete { expected: 1, kind: Kind::Config, id: "b".into() }]);
        let sum = |state: &State| state.objects().map(|object| weight(&object)).sum::<usize>();
        assert_eq!((state.bytes(), sum(&state)), (512 + 500 + 512, 512 + 500 + 512));
        assert_eq!(decode_snapshot(&encode_snapshot(&state)).unwrap().bytes(), state.bytes());
    }

    #[test]
    fn a_full_state_takes_what_makes_it_smaller() {
        let mut state = State::new("c".to_owned());
        apply(&mut state, vec![put(0, config("a", 1000)), put(0, service(3))]);
        let limit = state.bytes() + 600;
        let try_put = |object: Object| {
            let changes = ChangeSet { puts: vec![object], ..ChangeSet::default() };
            check(&state, &changes, limit).map_err(|refused| refused.message)
        };
        assert_eq!(try_put(config("b", 88)), Ok(()));
        assert_eq!(
            try_put(config("b", 89)).unwrap_err(),
            "with this, the cluster's state would have about 2625 bytes; it has 2024 and the limit is 2624"
        );
        assert_eq!(try_put(config("a", 1600)), Ok(()));
        assert!(try_put(config("a", 1601)).is_err());
        assert_eq!(try_put(service(4)), Ok(()), "one more task");
        assert!(try_put(service(5)).is_err());
        let over = |object: Object| check(&state, &ChangeSet { puts: vec![object], ..ChangeSet::default() }, 10);
        assert!(over(config("a", 999)).is_ok() && over(service(1)).is_ok() && over(config("a", 1001)).is_err());
    }
}
