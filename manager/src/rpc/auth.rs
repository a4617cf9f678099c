//! Who calls: what a connection's certificate proves, what a request's headers add.
//!
//! ```text
//! connection ── certificate ──► Peer ─┐
//! request ── Authorization: Bearer ───┼─► Claim ── the state, at the leader ──► Caller ── role ──► served or refused
//! another manager forwards ── x-… ────┘   (the headers of a forwarded request count only from a manager)
//! ```

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rcluster_api::data::Payload;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::{self, Identity, Part};
use rcluster_base::clock::unix_ms;
use tonic::{Request, Status};

use crate::core::authorize::{Caller, Claim, caller};
use crate::core::state::State;

/// Set by a manager that forwards: the part and id of the certificate that it saw, `PART ID`; `nobody`; or `plain`.
const ORIGIN: &str = "x-rcluster-origin";

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The listener speaks plain text.
    Plain,
    /// TLS without a certificate.
    Nobody,
    Certificate(Identity),
}

impl Peer {
    /// The holder of the certificate that was shown and verified, in DER form.
    pub fn of(certificate: Option<&[u8]>) -> Self {
        match certificate.map(identity::read) {
            Some(Ok(certificate)) => Self::Certificate(certificate.identity),
            Some(Err(_)) | None => Self::Nobody,
        }
    }

    fn is_manager(&self) -> bool {
        matches!(self, Self::Plain | Self::Certificate(Identity { part: Part::Manager, .. }))
    }
}

/// What a request claims, by its connection and its headers.
pub fn claim(peer: &Peer, headers: &HeaderMap) -> Claim {
    if peer.is_manager()
        && let Some(origin) = headers.get(ORIGIN).and_then(|value| value.to_str().ok())
    {
        return forwarded(origin, headers);
    }
    match peer {
        Peer::Plain => Claim::Plain,
        Peer::Certificate(Identity { part, id, cluster_id: _ }) => Claim::Certificate { part: *part, id: id.clone() },
        Peer::Nobody => token(headers),
    }
}

fn forwarded(origin: &str, headers: &HeaderMap) -> Claim {
    let part = |word: &str| [Part::Manager, Part::Agent, Part::User].into_iter().find(|part| part.as_str() == word);
    match origin.split_once(' ').and_then(|(word, id)| Some((part(word)?, id))) {
        Some((part, id)) => Claim::Certificate { part, id: id.to_owned() },
        None if origin == "plain" => Claim::Plain,
        None => token(headers),
    }
}

fn token(headers: &HeaderMap) -> Claim {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
    match bearer.map(str::trim).filter(|token| !token.is_empty()) {
        Some(token) => Claim::Token { digest: Payload(token.as_bytes().to_vec()).digest() },
        None => Claim::Nobody,
    }
}

/// The claim of a request that has come in, as the listener has set it.
pub fn of<T>(request: &Request<T>) -> Claim {
    request.extensions().get::<Claim>().cloned().unwrap_or(Claim::Nobody)
}

/// Refuses at once who cannot be served anywhere.
pub fn admit<T>(request: &Request<T>) -> Result<(), Status> {
    match of(request) {
        claim @ Claim::Nobody => Err(caller(&State::default(), &claim, 0).expect_err("nobody is refused").into()),
        Claim::Plain | Claim::Certificate { .. } | Claim::Token { .. } => Ok(()),
    }
}

/// Who calls, by this manager's state.
pub fn known<T>(request: &Request<T>, state: &State) -> Result<Caller, ApiError> {
    caller(state, &of(request), unix_ms())
}

/// Says in a request that is passed on to the leader who made it.
pub fn pass_on<T>(request: &mut Request<T>) {
    let origin = match of(request) {
        Claim::Plain => "plain".to_owned(),
        // A token is in a header of its own, and goes along.
        Claim::Nobody | Claim::Token { .. } => "nobody".to_owned(),
        Claim::Certificate { part, id } => format!("{} {id}", part.as_str()),
    };
    if let Ok(value) = origin.parse() {
        request.metadata_mut().insert(ORIGIN, value);
    }
}

/// The id of the agent that calls; in plain text it is not known, and anyone may be it.
pub fn agent<T>(request: &Request<T>, state: &State) -> Result<Option<String>, ApiError> {
    match known(request, state)? {
        Caller::Anyone => Ok(None),
        Caller::Agent(id) => Ok(Some(id)),
        other @ (Caller::Manager(_) | Caller::User { .. }) => {
            Err(ApiError::new(ErrorCode::Forbidden, format!("only agents may do this; the caller is {}", other.describe())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn peer(part: Part) -> Peer {
        Peer::Certificate(Identity { part, id: "i".into(), cluster_id: "c".into() })
    }

    #[test]
    fn only_managers_speak_for_others() {
        let forwarded = headers(&[(ORIGIN, "user u1")]);
        let user = Claim::Certificate { part: Part::User, id: "u1".into() };
        assert_eq!(claim(&peer(Part::Manager), &forwarded), user);
        assert_eq!(claim(&peer(Part::Agent), &forwarded), Claim::Certificate { part: Part::Agent, id: "i".into() });
        assert_eq!(claim(&Peer::Nobody, &forwarded), Claim::Nobody);
        assert_eq!(claim(&peer(Part::Manager), &headers(&[(ORIGIN, "nobody")])), Claim::Nobody);
        assert_eq!(claim(&peer(Part::User), &headers(&[(ORIGIN, "plain")])), Claim::Certificate { part: Part::User, id: "i".into() });
    }

    #[test]
    fn a_token_counts_where_there_is_no_certificate() {
        let bearer = headers(&[("authorization", "Bearer abc")]);
        let token = Claim::Token { digest: Payload(b"abc".to_vec()).digest() };
        assert_eq!(claim(&Peer::Nobody, &bearer), token);
        assert_eq!(claim(&peer(Part::Manager), &headers(&[(ORIGIN, "nobody"), ("authorization", "Bearer abc")])), token);
        assert_eq!(claim(&peer(Part::User), &bearer), Claim::Certificate { part: Part::User, id: "i".into() });
        assert_eq!(claim(&Peer::Nobody, &headers(&[("authorization", "Bearer ")])), Claim::Nobody);
    }
}
