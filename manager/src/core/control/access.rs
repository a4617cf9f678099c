//! Who may use the cluster and who may join it: users, join tokens, authorities.

use rcluster_api::cluster::{Authority, Cluster, JoinSecret, User, UserRole};
use rcluster_api::data::Payload;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::UserId;
use rcluster_api::object::{Kind, Object, Stamp};
use rcluster_api::validate;

use super::{not_found, note_removal};
use crate::core::members::cluster;
use crate::core::plan::{ChangeSet, Ctx, Note};
use crate::core::state::State;

/// Authorities that are trusted at once: one that issues, and those before it.
const AUTHORITIES_MAX: usize = 4;
/// How much longer an authority is trusted than what it has issued is valid: clocks of hosts differ.
pub const CLOCKS_DIFFER_MS: u64 = 3_600_000;

fn note(object: &str, reason: &'static str, message: String) -> Note {
    Note { kind: Kind::Cluster, object_id: rcluster_api::cluster::CLUSTER.to_owned(), object: object.to_owned(), reason, message }
}

/// The secret takes the place of the one before, which lets nobody join any more.
pub(super) fn rotate_token(state: &State, manager: bool, secret: Payload, now_ms: u64) -> Result<ChangeSet, ApiError> {
    let mut cluster = cluster(state)?.clone();
    let token = JoinSecret { secret, rotated_at_ms: now_ms };
    let whose = if manager { "managers" } else { "agents" };
    if manager {
        cluster.manager_token = token;
    } else {
        cluster.agent_token = token;
    }
    let notes = vec![note("join token", "Rotated", format!("the join token of {whose} was replaced by a user"))];
    Ok(ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, ..ChangeSet::default() })
}

/// `authority` issues from now on. `before`: the one that it was made after, by certificate.
pub(super) fn rotate_authority(state: &State, authority: Authority, before: &Payload, now_ms: u64) -> Result<ChangeSet, ApiError> {
    let mut cluster: Cluster = cluster(state)?.clone();
    if cluster.authorities.first().map(|first| &first.certificate) != Some(before) {
        return Err(ApiError::new(ErrorCode::Conflict, "the authority was rotated by someone else meanwhile").hint("look, then try again"));
    }
    if cluster.authorities.len() >= AUTHORITIES_MAX {
        return Err(ApiError::new(ErrorCode::Conflict, format!("{AUTHORITIES_MAX} authorities are trusted already")).hint(
            "once all hosts have renewed their certificates, end the trust in the old ones: rclusterctl cluster rotate-ca --drop-old",
        ));
    }
    if let Some(retired) = cluster.authorities.first_mut() {
        retired.retired_at_ms = now_ms;
    }
    cluster.authorities.insert(0, authority);
    let notes = vec![note("authority", "Rotated", "a new certificate authority issues from now on".to_owned())];
    Ok(ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, ..ChangeSet::default() })
}

/// Only the authority that issues is trusted from now on: what the others have issued, or still issue where their keys have got to, is
/// worth nothing.
pub(super) fn drop_authorities(state: &State) -> Result<ChangeSet, ApiError> {
    let mut cluster: Cluster = cluster(state)?.clone();
    if cluster.authorities.len() < 2 {
        return Err(
            ApiError::new(ErrorCode::Conflict, "there is no old authority to drop").hint("rclusterctl cluster rotate-ca makes a new one")
        );
    }
    cluster.authorities.truncate(1);
    let notes = vec![note("authority", "Dropped", "only the authority that issues is trusted from now on".to_owned())];
    Ok(ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, ..ChangeSet::default() })
}

/// Ends the trust in authorities all of whose certificates have expired.
pub fn lapse(state: &State, now_ms: u64) -> ChangeSet {
    let Some(cluster) = state.cluster() else { return ChangeSet::default() };
    let ends_ms = |authority: &Authority| {
        let retired = (authority.retired_at_ms > 0).then_some(authority.retired_at_ms)?;
        Some(retired.saturating_add(cluster.certificate_ttl_ms).saturating_add(CLOCKS_DIFFER_MS))
    };
    let has_lapsed = |authority: &&Authority| ends_ms(authority).is_some_and(|ends_ms| ends_ms <= now_ms);
    let wake_at_ms = cluster.authorities.iter().filter(|authority| !has_lapsed(authority)).filter_map(ends_ms).min();
    if !cluster.authorities.iter().any(|authority| has_lapsed(&authority)) {
        return ChangeSet { wake_at_ms, ..ChangeSet::default() };
    }
    let kept = cluster.authorities.iter().filter(|authority| !has_lapsed(authority)).cloned().collect();
    let cluster = Cluster { authorities: kept, ..(**cluster).clone() };
    let notes = vec![note("authority", "Dropped", "all that an old authority had issued has expired".to_owned())];
    ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, wake_at_ms, ..ChangeSet::default() }
}

/// Managers' disks are locked with `key` from now on, or, when it is empty, not at all. `generation`: of the change that the user knew of.
pub(super) fn set_unlock_key(state: &State, key: Payload, generation: u64) -> Result<ChangeSet, ApiError> {
    let mut cluster = cluster(state)?.clone();
    if cluster.unlock_generation != generation {
        return Err(ApiError::new(ErrorCode::Conflict, "the unlock key was changed by someone else meanwhile").hint("look, then try again"));
    }
    if cluster.authorities.is_empty() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "a cluster without TLS has no autolock: its managers would be unlocked in plain text",
        ));
    }
    let (reason, message) = match (cluster.unlock_key.0.is_empty(), key.0.is_empty()) {
        (true, true) => return Ok(ChangeSet::default()),
        (true, false) => ("On", "managers are locked when they start"),
        (false, true) => ("Off", "managers start without being unlocked"),
        (false, false) => ("Rotated", "managers are locked with another key"),
    };
    cluster.unlock_key = key;
    cluster.unlock_generation += 1;
    let notes = vec![note("autolock", reason, message.to_owned())];
    Ok(ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, ..ChangeSet::default() })
}

/// A user as asked for; its token or certificate is the caller's to make.
pub(super) fn create_user(
    state: &State,
    name: &str,
    role: UserRole,
    token_digest: String,
    expires_at_ms: u64,
    ctx: &mut Ctx,
) -> Result<(ChangeSet, UserId), ApiError> {
    validate::check_name("user", name)?;
    if state.find_user(name).is_some() {
        return Err(ApiError::new(ErrorCode::Conflict, format!("user {name} exists"))
            .field("name")
            .hint(format!("remove it first, rclusterctl user rm {name}, or choose another name")));
    }
    let user = User { id: UserId::random(&mut ctx.rng), stamp: Stamp::default(), name: name.to_owned(), role, token_digest, expires_at_ms };
    let id = user.id.clone();
    let message = format!("role {}", role.as_str());
    let notes = vec![Note { kind: Kind::User, object_id: id.to_string(), object: name.to_owned(), reason: "Created", message }];
    Ok((ChangeSet { puts: vec![Object::User(user)], notes, ..ChangeSet::default() }, id))
}

/// The last administrator that does not expire stays: in the end nobody could make another. One that expires is never that.
pub(super) fn remove_user(state: &State, name: &str, changes: &mut ChangeSet) -> Result<(), ApiError> {
    let user = state.find_user(name).ok_or_else(|| not_found(Kind::User, name))?;
    let others = state.users().values().filter(|other| other.role == UserRole::Admin && other.expires_at_ms == 0 && other.id != user.id);
    let going = |other: &User| changes.deletes.contains(&(Kind::User, other.id.to_string()));
    if user.role == UserRole::Admin && user.expires_at_ms == 0 && others.filter(|other| !going(other)).count() == 0 {
        return Err(ApiError::new(ErrorCode::Conflict, format!("user {name} is the last with the role admin that does not expire"))
            .hint("make another first: rclusterctl user create NAME --role admin"));
    }
    changes.deletes.push((Kind::User, user.id.to_string()));
    note_removal(Kind::User, user.id.as_str(), &user.name, changes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::{Change, Transaction};

    fn authority(name: u8, retired_at_ms: u64) -> Authority {
        Authority { certificate: Payload(vec![name]), retired_at_ms, ..Authority::default() }
    }

    fn state(authorities: Vec<Authority>) -> State {
        let cluster = Cluster { authorities, certificate_ttl_ms: 1000, ..Cluster::default() };
        let mut state = State::new("c".to_owned());
        let put = Change::Put { expected: 0, object: Object::Cluster(Box::new(cluster)) };
        state.apply(1, &Transaction { at_ms: 1, changes: vec![put] }).unwrap();
        state
    }

    fn names(changes: &ChangeSet) -> Vec<u8> {
        let Some(Object::Cluster(cluster)) = changes.puts.first() else { return Vec::new() };
        cluster.authorities.iter().map(|authority| authority.certificate.0[0]).collect()
    }

    #[test]
    fn an_authority_is_trusted_until_the_last_of_its_certificates_has_expired() {
        let state = state(vec![authority(3, 0), authority(2, 5000), authority(1, 2000)]);
        let first_ends = 2000 + 1000 + CLOCKS_DIFFER_MS;
        let before = lapse(&state, first_ends - 1);
        assert!(before.puts.is_empty() && before.wake_at_ms == Some(first_ends));
        let then = lapse(&state, first_ends);
        assert_eq!((names(&then), then.wake_at_ms), (vec![3, 2], Some(first_ends + 3000)));
        // The one that issues stays, however old it is.
        let last = lapse(&state, u64::MAX);
        assert_eq!((names(&last), last.wake_at_ms), (vec![3], None));
    }

    #[test]
    fn of_administrators_the_last_that_does_not_expire_stays() {
        let user = |name: &str, expires_at_ms: u64| User {
            id: UserId::from(format!("{name:0>16}")),
            stamp: Stamp::default(),
            name: name.to_owned(),
            role: UserRole::Admin,
            token_digest: String::new(),
            expires_at_ms,
        };
        let removed = |users: &[User], name: &str| {
            let mut state = State::new("c".to_owned());
            let changes = users.iter().map(|user| Change::Put { expected: 0, object: Object::User(user.clone()) }).collect();
            state.apply(1, &Transaction { at_ms: 1, changes }).unwrap();
            remove_user(&state, name, &mut ChangeSet::default()).map_err(|error| error.message)
        };
        let stays = Err("user a is the last with the role admin that does not expire".to_owned());
        assert_eq!(removed(&[user("a", 0), user("b", 5)], "a"), stays);
        assert_eq!(removed(&[user("a", 0), user("b", 5)], "b"), Ok(()));
        assert_eq!(removed(&[user("a", 0), user("b", 0)], "a"), Ok(()));
        // There is none that it could be the last of.
        assert_eq!(removed(&[user("b", 5)], "b"), Ok(()));
    }

    #[test]
    fn the_authority_before_is_retired_by_the_one_that_follows() {
        let state = state(vec![authority(1, 0)]);
        let changes = rotate_authority(&state, authority(2, 0), &Payload(vec![1]), 7).unwrap();
        let Object::Cluster(cluster) = &changes.puts[0] else { panic!("{changes:?}") };
        assert_eq!(cluster.authorities, [authority(2, 0), authority(1, 7)]);
    }
}
