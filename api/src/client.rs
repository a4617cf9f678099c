//! A connection to the managers: tries each, keeps the one that answers, moves on when it falls silent.
//!
//! Never repeats a call that may have been carried out: only failures to connect are retried with another manager.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use rustls::pki_types::UnixTime;
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

use crate::data::Payload;
use crate::error::{ApiError, ErrorCode};
use crate::id::random_id;
use crate::identity::{JoinToken, NotAToken, Part};
use crate::seal::{Key, UnlockKey};
use crate::tls::{Credentials, NOT_LOCKED, OTHER_CLUSTER, Refused, Security, SigningRequest, TlsError};
use crate::wire::v1;
use crate::wire::v1::admission_client::AdmissionClient;
use crate::wire::v1::control_client::ControlClient;
use crate::wire::v1::door_client::DoorClient;

/// Longest wait for one manager to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// How much earlier each manager is tried than the next in the list.
const HEAD_START: Duration = Duration::from_millis(100);
/// Largest message of a call, both ways.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Header of a key that makes a request take effect once, however often it is sent.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A key for one change.
pub fn idempotency_key() -> String {
    random_id(&mut rand::rng())
}

/// A request that may be sent again: under the same key it has effect once.
pub fn keyed<T>(key: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    // A key that cannot stand in a header is left out, and refused by nobody; ours can.
    if let Ok(key) = key.parse() {
        request.metadata_mut().insert(IDEMPOTENCY_KEY, key);
    }
    request
}

/// An endpoint for a manager's `HOST:PORT`, with the timeouts that every caller uses.
pub fn endpoint(addr: &str) -> Result<Endpoint, ApiError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| {
        ApiError::new(ErrorCode::Invalid, format!("{addr:?} is not a manager's address: {error}")).hint("write HOST:PORT")
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2)))
}

/// Opens a channel to the first of `addrs` that accepts one; a silent one does not hold the others up.
pub async fn connect(addrs: &[String], security: &Security) -> Result<Channel, ApiError> {
    if addrs.is_empty() {
        return Err(
            ApiError::new(ErrorCode::Invalid, "no manager's address is known").hint("choose a context, or give --managers HOST:PORT")
        );
    }
    check_own(security)?;
    let attempt = |(place, addr): (u32, &String)| {
        let addr = addr.clone();
        async move {
            tokio::time::sleep(HEAD_START * place).await;
            let connected = security.connect(endpoint(&addr)?).await;
            connected.map_err(|error| unreached(&addr, &error))
        }
    };
    let mut attempts: FuturesUnordered<_> = (0..).zip(addrs).map(attempt).collect();
    let (mut failures, mut refusal) = (Vec::new(), None);
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(channel) => return Ok(channel),
            Err(error) if error.code == ErrorCode::Unavailable => failures.push(error.message),
            // The others may have heard of another authority, and have clocks of their own.
            Err(error) if error.code == ErrorCode::Unauthenticated => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    Err(ApiError::new(ErrorCode::Unavailable, format!("no manager can be reached: {}", failures.join("; ")))
        .hint("check that managers run and that the addresses are right"))
}

/// Why there is no connection to the manager at `addr`.
fn unreached(addr: &str, error: &tonic::transport::Error) -> ApiError {
    match Refused::of(error) {
        Some(refused) => ApiError::new(ErrorCode::Unauthenticated, format!("{addr}: {refused}")).hint(refused.hint()),
        None => ApiError::new(ErrorCode::Unavailable, format!("{addr}: {}", root_cause(error))),
    }
}

/// Where a join token is. It is read when a host joins and not before: who has joined needs none, and it may be gone by then.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    Text(String),
    File(PathBuf),
}

/// Why there is no token at its place.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error("--token (RCLUSTER_JOIN_TOKEN): {0}")]
    Text(NotAToken),
    #[error("--token-file {path}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("--token-file {path}: {why}", path = path.display())]
    File { path: PathBuf, why: NotAToken },
}

impl TokenSource {
    /// Of the two flags that say where it is; the file comes first.
    pub fn of_flags(token: Option<String>, file: Option<PathBuf>) -> Option<Self> {
        file.map(Self::File).or(token.map(Self::Text))
    }

    /// The token.
    pub fn read(&self) -> Result<JoinToken, TokenError> {
        match self {
            Self::Text(text) => text.parse().map_err(TokenError::Text),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| TokenError::Unreadable { path: path.clone(), source })?;
                text.parse().map_err(|why| TokenError::File { path: path.clone(), why })
            }
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => formatter.write_str("Text"),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Refuses a user's certificate that has expired, by this host's clock. A manager does too, but does not say whose it is. Hosts whose
/// certificates have expired are not refused here: they try on, as clocks can be set.
fn check_own(security: &Security) -> Result<(), ApiError> {
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let own = security.credentials().and_then(|credentials| credentials.certificate().ok());
    let Some(own) = own.filter(|own| own.identity.part == Part::User && own.not_after < now) else { return Ok(()) };
    let message = format!("the certificate of user {} has expired", own.identity.id);
    Err(ApiError::new(ErrorCode::Unauthenticated, message)
        .hint("is this host's clock wrong? else an administrator makes another: rclusterctl user create NAME --role ROLE --access FILE"))
}

/// What a host that has joined is, and how it proves that; no credentials in a cluster without TLS.
#[derive(Debug)]
pub struct Joined {
    /// Of the node or manager.
    pub id: String,
    pub cluster_id: String,
    pub credentials: Option<Credentials>,
    /// A manager's.
    pub raft_id: u64,
    pub managers: Vec<v1::Peer>,
    /// A manager's, in a cluster with autolock.
    pub lock: Option<Lock>,
}

/// What the disk of a manager that joins is locked with before anything is written on it.
#[derive(Debug)]
pub struct Lock {
    pub key: UnlockKey,
    /// Of the key, as the tables count.
    pub generation: u64,
    /// The credentials by which it is reached while it is locked.
    pub door: Credentials,
}

/// Joins a cluster at one of `addrs`. `token`: none for a cluster without TLS. `addr`: where others reach a manager; empty for an agent.
pub async fn join(addrs: &[String], token: Option<&JoinToken>, name: &str, addr: &str) -> Result<Joined, ApiError> {
    join_as(addrs, token, Joiner { name, addr, etcd: false }).await
}

/// Who joins.
#[derive(Debug, Clone, Copy)]
pub struct Joiner<'a> {
    pub name: &'a str,
    /// Where others reach a manager; empty for an agent.
    pub addr: &'a str,
    /// A manager that was told of an etcd which keeps the cluster's state.
    pub etcd: bool,
}

/// Joins a cluster at one of `addrs`. `token`: none for a cluster without TLS.
pub async fn join_as(addrs: &[String], token: Option<&JoinToken>, joiner: Joiner<'_>) -> Result<Joined, ApiError> {
    let Joiner { name, addr, etcd } = joiner;
    let internal = |error: TlsError| ApiError::new(ErrorCode::Internal, error.to_string());
    let security = token.map_or_else(|| Ok(Security::plain()), Security::joining).map_err(internal)?;
    let request = SigningRequest::new().map_err(internal)?;
    // With a key of its own: this one stands on the disk in clear.
    let door = SigningRequest::new().map_err(internal)?;
    let asked = v1::JoinRequest {
        token: token.map(ToString::to_string).unwrap_or_default(),
        name: name.to_owned(),
        addr: addr.to_owned(),
        signing_request: request.request,
        etcd,
        door_request: door.request,
    };
    let channel = connect(addrs, &security).await.map_err(|error| {
        // However often it is tried.
        if error.message.contains(OTHER_CLUSTER) { ApiError { code: ErrorCode::Unauthenticated, ..error } } else { error }
    })?;
    let answer = AdmissionClient::new(channel).join(asked).await?.into_inner();
    let v1::JoinResponse { id, cluster_id, credentials, raft_id, managers, lock } = answer;
    let credentials = credentials.map(|credentials| Credentials::new(credentials, request.key));
    if token.is_some() && credentials.is_none() {
        return Err(ApiError::new(ErrorCode::Internal, "the cluster gave no certificate"));
    }
    let lock = lock.map(|lock| read_lock(lock, door.key)).transpose()?;
    Ok(Joined { id, cluster_id, credentials, raft_id, managers, lock })
}

fn read_lock(lock: v1::Lock, door_key: Payload) -> Result<Lock, ApiError> {
    let v1::Lock { unlock_key, generation, door } = lock;
    let key = unlock_key.and_then(|key| Key::from_bytes(&key.bytes));
    let (Some(key), Some(door)) = (key, door) else {
        return Err(ApiError::new(ErrorCode::Internal, "the cluster's unlock key is of another version").hint("upgrade this manager"));
    };
    Ok(Lock { key: UnlockKey(key), generation, door: Credentials::new(door, door_key) })
}

/// A new certificate for who has `security`'s, by a connection that shows it.
pub async fn renew(channel: Channel) -> Result<Credentials, ApiError> {
    let request = SigningRequest::new().map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    let answer = AdmissionClient::new(channel).renew(v1::RenewRequest { signing_request: request.request }).await?.into_inner();
    let credentials = answer.credentials.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the manager gave no certificate"))?;
    Ok(Credentials::new(credentials, request.key))
}

/// How a manager's door is.
#[derive(Debug)]
pub enum Door {
    /// It waits for the unlock key.
    Locked(DoorClient<Channel>),
    Open,
    /// Nobody knows.
    Unreachable(String),
}

/// Looks whether the manager at `addr` is locked.
pub async fn door(addr: &str, security: &Security) -> Door {
    let endpoint = match endpoint(addr) {
        Ok(endpoint) => endpoint,
        Err(error) => return Door::Unreachable(error.message),
    };
    match security.connect_locked(endpoint).await {
        Ok(channel) => Door::Locked(DoorClient::new(channel)),
        Err(error) => match root_cause(&error) {
            cause if cause.contains(NOT_LOCKED) => Door::Open,
            cause => Door::Unreachable(cause),
        },
    }
}

/// The innermost cause of an error: what a person needs to read.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Opens a connection for control calls.
pub async fn control(addrs: &[String], security: &Security) -> Result<ControlClient<Channel>, ApiError> {
    // What is too large to send the manager refuses, and says so; here only the call would break.
    Ok(ControlClient::new(connect(addrs, security).await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}
