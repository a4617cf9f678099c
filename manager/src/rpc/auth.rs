//! Who calls: what a connection's certificate proves, what a request's headers add.
//!
//! ```text
//! connection ── certificate ──► Peer ─┐
//! request ── Authorization: Bearer ───┼─► Claim ── the state, at the leader ──► Caller ── role ──► served or refused
//! another manager forwards ── x-… ────┘   (the headers of a forwarded request count only from a manager)
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rcluster_api::cluster::User;
use rcluster_api::data::Payload;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::{self, Identity, Part};
use rcluster_base::clock::unix_ms;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::methods::GRPC_PREFIX;
use crate::core::authorize::{Caller, Claim, caller};
use crate::core::state::State;

/// Set by a manager that forwards: the part and id of the certificate that it saw, `PART ID`; `nobody`; or `plain`.
const ORIGIN: &str = "x-rcluster-origin";
/// Set with it: the address from which the request came to that manager.
const ADDRESS: &str = "x-rcluster-address";
/// Set with it: when the certificate has expired by which it was made, in milliseconds of Unix time.
const UNTIL: &str = "x-rcluster-until";
/// Set with it: the digest of the certificate of the authority by which that one was believed.
const AUTHORITY: &str = "x-rcluster-authority";

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
}

/// What a certificate that was shown depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validity {
    /// When it has expired, Unix time.
    pub until_ms: Option<u64>,
    /// Digest of the certificate of the authority by which it was believed.
    pub authority: Option<Arc<str>>,
}

/// What a request claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who made the connection, or whose token came with it.
    own: Claim,
    /// For whom a manager passes the request on.
    other: Option<Claim>,
    /// Where it was made, as far as that is known.
    from: Option<SocketAddr>,
    /// Of the certificate that was shown.
    validity: Validity,
}

impl Claims {
    /// Neither certificate nor token.
    pub fn nobody() -> Self {
        Self { own: Claim::Nobody, other: None, from: None, validity: Validity::default() }
    }

    /// The same, by a connection from `addr` with a certificate of this validity: not those of a manager that passes the request on.
    #[must_use]
    pub fn by(self, addr: SocketAddr, validity: Validity) -> Self {
        if self.other.is_some() { self } else { Self { from: Some(addr), validity, ..self } }
    }

    /// What the certificate depends on by which the request was made.
    pub fn validity(&self) -> &Validity {
        &self.validity
    }

    /// Whether the certificate by which the request was made is of an authority that these tables do not trust any more.
    pub fn is_dropped(&self, state: &State) -> bool {
        let (Some(authority), Some(cluster)) = (&self.validity.authority, state.cluster()) else { return false };
        !cluster.authorities.iter().any(|trusted| *trusted.certificate.digest() == **authority)
    }

    /// Whether a manager passes the request on for somebody.
    pub fn is_passed_on(&self) -> bool {
        self.other.is_some()
    }

    /// Who made the connection, or whose token came with it.
    pub fn own(&self) -> &Claim {
        &self.own
    }

    /// Where the request was made.
    pub fn from(&self) -> Option<SocketAddr> {
        self.from
    }

    /// Who made the request, and who has passed it on, as audit events call them; what is claimed may be refused yet.
    pub fn describe(&self, state: &State) -> (String, String) {
        let through = self.other.as_ref().map(|_| claimed(&self.own, state)).unwrap_or_default();
        (claimed(self.made_by(), state), through)
    }

    fn made_by(&self) -> &Claim {
        self.other.as_ref().unwrap_or(&self.own)
    }
}

/// What a request claims, by its connection and its headers.
pub fn claims(peer: &Peer, headers: &HeaderMap) -> Claims {
    let (own, may_pass_on) = match peer {
        Peer::Plain => (Claim::Plain, true),
        Peer::Certificate(Identity { part, id, cluster_id: _ }) => {
            (Claim::Certificate { part: *part, id: id.clone() }, *part == Part::Manager)
        }
        Peer::Nobody => (token(headers), false),
    };
    let origin = headers.get(ORIGIN).filter(|_| may_pass_on);
    let other = origin.map(|origin| passed_on(origin.to_str().unwrap_or_default(), headers, &own));
    let said = |name| other.as_ref().and_then(|_| headers.get(name)?.to_str().ok());
    let from = said(ADDRESS).and_then(|addr| addr.parse().ok());
    let until_ms = said(UNTIL).and_then(|until| until.parse().ok());
    let validity = Validity { until_ms, authority: said(AUTHORITY).map(Arc::from) };
    Claims { own, other, from, validity }
}

fn claimed(claim: &Claim, state: &State) -> String {
    let user = |user: Option<&Arc<User>>, unknown: &str| user.map_or_else(|| unknown.to_owned(), |user| format!("user {}", user.name));
    match claim {
        Claim::Plain => "someone, without TLS".to_owned(),
        Claim::Nobody => "nobody".to_owned(),
        Claim::Token { digest } => user(state.users().values().find(|user| user.token_digest == *digest), "an unknown token"),
        Claim::Certificate { part: Part::User, id } => user(state.find_user(id), &format!("unknown user {id}")),
        Claim::Certificate { part: Part::Manager, id } => {
            format!("manager {}", state.find_manager(id).map_or(id.as_str(), |manager| manager.name.as_str()))
        }
        Claim::Certificate { part: Part::Agent, id } => format!("agent {}", state.find_node(id).map_or(id.as_str(), |node| node.name())),
    }
}

fn passed_on(origin: &str, headers: &HeaderMap, by: &Claim) -> Claim {
    let part = |word: &str| [Part::Manager, Part::Agent, Part::User].into_iter().find(|part| part.as_str() == word);
    match origin.split_once(' ').and_then(|(word, id)| Some((part(word)?, id))) {
        Some((part, id)) => Claim::Certificate { part, id: id.to_owned() },
        // Where there is TLS, nobody has come without.
        None if origin == "plain" && *by == Claim::Plain => Claim::Plain,
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

/// The claims of a request that has come in, as the listener has set them.
pub fn of<T>(request: &Request<T>) -> Claims {
    request.extensions().get::<Claims>().cloned().unwrap_or_else(Claims::nobody)
}

/// Whether a request was made in plain text.
pub fn is_plain<T>(request: &Request<T>) -> bool {
    *of(request).made_by() == Claim::Plain
}

/// Refuses at once who cannot be served anywhere.
pub fn admit<T>(request: &Request<T>) -> Result<(), Status> {
    match of(request).made_by() {
        Claim::Nobody => Err(stranger().into()),
        Claim::Plain | Claim::Certificate { .. } | Claim::Token { .. } => Ok(()),
    }
}

/// The refusal of a call of one who shows nothing, before its message is read; to join nobody need. REST refuses by itself: its bodies are
/// small, and its answers are read by people.
pub fn turn_away(request: &axum::extract::Request) -> Option<axum::response::Response> {
    const JOIN: &str = "/rcluster.v1.Admission/Join";
    let shows_nothing = request.extensions().get::<Claims>().is_none_or(|claims| *claims.made_by() == Claim::Nobody);
    let path = request.uri().path();
    (shows_nothing && path.starts_with(GRPC_PREFIX) && path != JOIN).then(|| Status::from(stranger()).into_http())
}

fn stranger() -> ApiError {
    caller(&State::default(), &Claim::Nobody, 0).expect_err("nobody is refused")
}

/// Who made a request, by this manager's state; one that was passed on counts only from a manager of the cluster.
pub fn known<T>(request: &Request<T>, state: &State) -> Result<Caller, ApiError> {
    who(&of(request), state)
}

/// Who claims, as [`known`].
pub fn who(claims: &Claims, state: &State) -> Result<Caller, ApiError> {
    let Claims { own, other, from: _, validity: _ } = claims;
    let Some(other) = other else { return caller(state, own, unix_ms()) };
    match caller(state, own, unix_ms())? {
        Caller::Anyone => {}
        Caller::Manager(id) if state.managers().values().any(|manager| manager.id.as_str() == id) => {}
        by @ (Caller::Manager(_) | Caller::Agent(_) | Caller::User { .. }) => {
            return Err(ApiError::new(ErrorCode::Forbidden, format!("{} may not pass requests on", by.describe())));
        }
    }
    caller(state, other, unix_ms())
}

/// Who has made the connection, by this manager's state.
pub fn peer<T>(request: &Request<T>, state: &State) -> Result<Caller, ApiError> {
    caller(state, &of(request).own, unix_ms())
}

/// Whether a manager has made the connection that was removed from the cluster.
pub fn is_removed_manager<T>(request: &Request<T>, state: &State) -> bool {
    match of(request).own {
        Claim::Certificate { part: Part::Manager, id } => {
            state.cluster().is_some_and(|cluster| cluster.revocations.iter().any(|revocation| revocation.id == id))
        }
        Claim::Certificate { .. } | Claim::Plain | Claim::Nobody | Claim::Token { .. } => false,
    }
}

/// Says in a request that is passed on to the leader who made it.
pub fn pass_on<T>(request: &mut Request<T>) {
    let origin = match of(request).made_by() {
        Claim::Plain => "plain".to_owned(),
        // A token is in a header of its own, and goes along.
        Claim::Nobody | Claim::Token { .. } => "nobody".to_owned(),
        Claim::Certificate { part, id } => format!("{} {id}", part.as_str()),
    };
    // An id that cannot stand in a header is none of ours.
    let origin = origin.parse().unwrap_or_else(|_| MetadataValue::from_static("nobody"));
    request.metadata_mut().insert(ORIGIN, origin);
    let Claims { from, validity: Validity { until_ms, authority }, .. } = of(request);
    if let Some(from) = from.and_then(|from| from.to_string().parse().ok()) {
        request.metadata_mut().insert(ADDRESS, from);
    }
    if let Some(until_ms) = until_ms {
        request.metadata_mut().insert(UNTIL, until_ms.into());
    }
    if let Some(authority) = authority.and_then(|authority| authority.parse().ok()) {
        request.metadata_mut().insert(AUTHORITY, authority);
    }
}

/// The id of the agent that calls; in plain text it is not known, and anyone may be it.
pub fn agent<T>(request: &Request<T>, state: &State) -> Result<Option<String>, ApiError> {
    match peer(request, state)? {
        Caller::Anyone => Ok(None),
        Caller::Agent(id) => Ok(Some(id)),
        other @ (Caller::Manager(_) | Caller::User { .. }) => {
            Err(ApiError::new(ErrorCode::Forbidden, format!("only agents may do this; the caller is {}", other.describe())))
        }
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::cluster::{Authority, Cluster};
    use rcluster_api::object::Object;

    use super::*;
    use crate::core::state::{Change, Transaction};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn peer_of(part: Part) -> Peer {
        Peer::Certificate(Identity { part, id: "i".into(), cluster_id: "c".into() })
    }

    fn made_by(peer: &Peer, headers: &HeaderMap) -> Claim {
        claims(peer, headers).made_by().clone()
    }

    #[test]
    fn only_managers_speak_for_others() {
        let passed_on = headers(&[(ORIGIN, "user u1")]);
        let user = Claim::Certificate { part: Part::User, id: "u1".into() };
        assert_eq!(made_by(&peer_of(Part::Manager), &passed_on), user);
        assert_eq!(made_by(&Peer::Plain, &passed_on), user);
        assert_eq!(made_by(&peer_of(Part::Agent), &passed_on), Claim::Certificate { part: Part::Agent, id: "i".into() });
        assert_eq!(made_by(&Peer::Nobody, &passed_on), Claim::Nobody);
        assert_eq!(made_by(&peer_of(Part::Manager), &headers(&[(ORIGIN, "nobody")])), Claim::Nobody);
        // With TLS nobody has come without.
        assert_eq!(made_by(&peer_of(Part::Manager), &headers(&[(ORIGIN, "plain")])), Claim::Nobody);
        assert_eq!(made_by(&Peer::Plain, &headers(&[(ORIGIN, "plain")])), Claim::Plain);
        let [here, there]: [SocketAddr; 2] = ["10.0.0.1:1", "10.0.0.2:2"].map(|addr| addr.parse().unwrap());
        let from = |part, origin| {
            claims(&peer_of(part), &headers(&[(origin, "user u1"), (ADDRESS, "10.0.0.2:2")])).by(here, Validity::default()).from()
        };
        assert_eq!(from(Part::Manager, ORIGIN), Some(there));
        assert_eq!(from(Part::Agent, ORIGIN), Some(here));
        assert_eq!(from(Part::Manager, "x-other"), Some(here), "its own request");
    }

    #[test]
    fn what_is_passed_on_counts_from_managers_that_are_some() {
        let state = State::new("c".into());
        let mut request = Request::new(());
        let origin = headers(&[(ORIGIN, "user u1")]);
        request.extensions_mut().insert(claims(&peer_of(Part::Manager), &origin));
        // A certificate of a manager that the tables do not have: it was removed.
        let refused = known(&request, &state).unwrap_err();
        assert_eq!(refused.message, "manager i may not pass requests on");
        assert_eq!(peer(&request, &state).unwrap(), Caller::Manager("i".into()));
    }

    #[test]
    fn a_certificate_is_dropped_with_its_authority_and_not_before_the_tables_say_who_is_trusted() {
        let [old, new] = [b"old", b"new"].map(|der| Payload(der.to_vec()));
        let by = |authority: &Payload| Validity { until_ms: None, authority: Some(authority.digest().into()) };
        let shown = |validity| claims(&peer_of(Part::User), &HeaderMap::new()).by("10.0.0.1:1".parse().unwrap(), validity);
        let passed_on = claims(&peer_of(Part::Manager), &headers(&[(ORIGIN, "user u1"), (AUTHORITY, &old.digest())]));
        let mut state = State::new("c".into());
        assert!(!shown(by(&old)).is_dropped(&state));
        let authorities = vec![Authority { certificate: new.clone(), ..Authority::default() }];
        let cluster = Object::Cluster(Box::new(Cluster { authorities, ..Cluster::default() }));
        state.apply(1, &Transaction { at_ms: 1, changes: vec![Change::Put { expected: 0, object: cluster }] }).unwrap();
        assert!(shown(by(&old)).is_dropped(&state) && passed_on.is_dropped(&state));
        assert!(!shown(by(&new)).is_dropped(&state));
        assert!(!shown(Validity::default()).is_dropped(&state), "a token, or plain text");
    }

    #[test]
    fn a_token_counts_where_there_is_no_certificate() {
        let bearer = headers(&[("authorization", "Bearer abc")]);
        let token = Claim::Token { digest: Payload(b"abc".to_vec()).digest() };
        assert_eq!(made_by(&Peer::Nobody, &bearer), token);
        assert_eq!(made_by(&peer_of(Part::Manager), &headers(&[(ORIGIN, "nobody"), ("authorization", "Bearer abc")])), token);
        assert_eq!(made_by(&peer_of(Part::User), &bearer), Claim::Certificate { part: Part::User, id: "i".into() });
        assert_eq!(made_by(&Peer::Nobody, &headers(&[("authorization", "Bearer ")])), Claim::Nobody);
    }
}
