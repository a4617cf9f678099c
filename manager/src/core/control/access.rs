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
pub(super) fn rotate_authority(state: &State, authority: Authority, before: &Payload) -> Result<ChangeSet, ApiError> {
    let mut cluster: Cluster = cluster(state)?.clone();
    if cluster.authorities.first().map(|first| &first.certificate) != Some(before) {
        return Err(ApiError::new(ErrorCode::Conflict, "the authority was rotated by someone else meanwhile").hint("look, then try again"));
    }
    if cluster.authorities.len() >= AUTHORITIES_MAX {
        return Err(ApiError::new(ErrorCode::Conflict, format!("{AUTHORITIES_MAX} authorities are trusted already"))
            .hint("taking an old authority away is not built yet"));
    }
    cluster.authorities.insert(0, authority);
    let notes = vec![note("authority", "Rotated", "a new certificate authority issues from now on".to_owned())];
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

/// The last administrator stays: nobody could make another.
pub(super) fn remove_user(state: &State, name: &str, changes: &mut ChangeSet) -> Result<(), ApiError> {
    let user = state.find_user(name).ok_or_else(|| not_found(Kind::User, name))?;
    let others = state.users().values().filter(|other| other.role == UserRole::Admin && other.expires_at_ms == 0 && other.id != user.id);
    let going = |other: &User| changes.deletes.contains(&(Kind::User, other.id.to_string()));
    if user.role == UserRole::Admin && others.filter(|other| !going(other)).count() == 0 {
        return Err(ApiError::new(ErrorCode::Conflict, format!("user {name} is the last with the role admin that does not expire"))
            .hint("make another first: rclusterctl user create NAME --role admin"));
    }
    changes.deletes.push((Kind::User, user.id.to_string()));
    note_removal(Kind::User, user.id.as_str(), &user.name, changes);
    Ok(())
}
