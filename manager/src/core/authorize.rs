//! What a caller may do.
//!
//! In: what a connection's certificate or a bearer token claims, and the state. Out: the caller as the state knows it, or a refusal.
//! Never: trust in a name; a user counts for what its object says now.

use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::UserId;
use rcluster_api::identity::Part;

use super::state::State;

/// What a caller says of itself, with what its connection proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nobody is told from anybody: managers that were started with `--insecure`.
    Plain,
    /// Neither certificate nor token.
    Nobody,
    /// By a certificate of this cluster.
    Certificate { part: Part, id: String },
    /// By a bearer token with this digest.
    Token { digest: String },
}

/// A caller that the state knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    Anyone,
    /// By the id in its certificate.
    Manager(String),
    Agent(String),
    User {
        id: UserId,
        name: String,
        role: UserRole,
    },
}

/// Who `claim` is.
pub fn caller(state: &State, claim: &Claim, now_ms: u64) -> Result<Caller, ApiError> {
    let unknown = |why: String| ApiError::new(ErrorCode::Unauthenticated, why);
    match claim {
        Claim::Plain => Ok(Caller::Anyone),
        Claim::Nobody => Err(unknown("who calls shows neither a certificate nor a token".to_owned())
            .hint("choose a context with credentials, rclusterctl context ls, or send Authorization: Bearer TOKEN")),
        Claim::Certificate { part: Part::User, id } => user(state.users().get(&UserId::from(id.as_str())).map(AsRef::as_ref), now_ms),
        Claim::Token { digest } => user(state.users().values().find(|user| user.token_digest == *digest).map(AsRef::as_ref), now_ms),
        Claim::Certificate { part, id } => {
            let revoked = state.cluster().is_some_and(|cluster| cluster.revocations.iter().any(|revocation| revocation.id == *id));
            if revoked {
                return Err(unknown(format!("{} {id} was removed from the cluster", part.as_str()))
                    .hint("to bring the host back, join again with an empty state directory"));
            }
            Ok(if *part == Part::Manager { Caller::Manager(id.clone()) } else { Caller::Agent(id.clone()) })
        }
    }
}

fn user(found: Option<&rcluster_api::cluster::User>, now_ms: u64) -> Result<Caller, ApiError> {
    let unknown = |why: &str| ApiError::new(ErrorCode::Unauthenticated, why).hint("ask an administrator: rclusterctl user create NAME");
    let user = found.ok_or_else(|| unknown("the cluster has no user with these credentials: was it removed?"))?;
    if user.expires_at_ms != 0 && user.expires_at_ms <= now_ms {
        return Err(unknown(&format!("the credentials of user {} have expired", user.name)));
    }
    Ok(Caller::User { id: user.id.clone(), name: user.name.clone(), role: user.role })
}

impl Caller {
    /// Refuses unless a user with this role, or a greater one, calls.
    pub fn needs(&self, role: UserRole, deed: &str) -> Result<(), ApiError> {
        match self {
            Self::Anyone => Ok(()),
            Self::User { role: own, .. } if *own >= role => Ok(()),
            Self::User { name, role: own, .. } => {
                let (own, role) = (own.as_str(), role.as_str());
                Err(ApiError::new(ErrorCode::Forbidden, format!("user {name} has the role {own}; {deed} needs {role}"))
                    .hint(format!("ask an administrator for a user with the role {role}")))
            }
            Self::Manager(_) | Self::Agent(_) => {
                Err(ApiError::new(ErrorCode::Forbidden, format!("{deed} is for users; the caller is {}", self.describe())))
            }
        }
    }

    /// How messages and audit events call it.
    pub fn describe(&self) -> String {
        match self {
            Self::Anyone => "someone, without TLS".to_owned(),
            Self::Manager(id) => format!("manager {id}"),
            Self::Agent(id) => format!("agent {id}"),
            Self::User { name, .. } => format!("user {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::cluster::{Cluster, Revocation, User};
    use rcluster_api::object::{Object, Stamp};

    use super::*;
    use crate::core::state::{Change, Transaction};

    fn state() -> State {
        let user = |name: &str, role, digest: &str, expires_at_ms| {
            let (id, name) = (name.into(), name.to_owned());
            Object::User(User { id, stamp: Stamp::default(), name, role, token_digest: digest.to_owned(), expires_at_ms })
        };
        let cluster = Cluster { revocations: vec![Revocation { id: "gone".into(), until_ms: 99 }], ..Cluster::default() };
        let objects = [
            user("root", UserRole::Admin, "", 0),
            user("eve", UserRole::ReadOnly, "sha256:e", 0),
            user("old", UserRole::Deploy, "sha256:o", 50),
            Object::Cluster(Box::new(cluster)),
        ];
        let changes = objects.into_iter().map(|object| Change::Put { expected: 0, object }).collect();
        let mut state = State::new("c".into());
        state.apply(1, &Transaction { at_ms: 1, changes }).unwrap();
        state
    }

    fn check(claim: Claim, role: UserRole) -> String {
        match caller(&state(), &claim, 60).and_then(|caller| caller.needs(role, "this")) {
            Ok(()) => "may".to_owned(),
            Err(refusal) => format!("{}: {}", refusal.code.as_str(), refusal.message),
        }
    }

    fn certificate(part: Part, id: &str) -> Claim {
        Claim::Certificate { part, id: id.to_owned() }
    }

    fn token(digest: &str) -> Claim {
        Claim::Token { digest: digest.to_owned() }
    }

    #[test]
    fn a_user_may_what_its_role_allows() {
        assert_eq!(check(Claim::Plain, UserRole::Admin), "may");
        assert_eq!(check(certificate(Part::User, "root"), UserRole::Admin), "may");
        assert_eq!(check(token("sha256:e"), UserRole::ReadOnly), "may");
        assert_eq!(check(token("sha256:e"), UserRole::Deploy), "forbidden: user eve has the role read-only; this needs deploy");
        assert_eq!(check(certificate(Part::User, "root"), UserRole::ReadOnly), "may");
    }

    #[test]
    fn who_is_not_known_is_refused() {
        assert_eq!(check(Claim::Nobody, UserRole::ReadOnly), "unauthenticated: who calls shows neither a certificate nor a token");
        let unknown = "unauthenticated: the cluster has no user with these credentials: was it removed?";
        // No token is the digest of a user that has none.
        for claim in [token("sha256:x"), certificate(Part::User, "x")] {
            assert_eq!(check(claim, UserRole::ReadOnly), unknown);
        }
        assert_eq!(check(token("sha256:o"), UserRole::ReadOnly), "unauthenticated: the credentials of user old have expired");
        assert_eq!(check(certificate(Part::Agent, "n"), UserRole::ReadOnly), "forbidden: this is for users; the caller is agent n");
        let gone = "unauthenticated: manager gone was removed from the cluster";
        assert_eq!(check(certificate(Part::Manager, "gone"), UserRole::ReadOnly), gone);
    }
}
