//! Limits on what each user asks for, and on who has no certificate, by address. Managers and agents are not counted, but for their
//! handshakes: what they say must get through, and is theirs alone to say.
//!
//! A caller's counters hang on its connection, or are looked up by its token: to count a request takes two atomics.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::RETRY_AFTER;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::Part;
use tonic::Status;

use super::auth::{Claims, Peer};
use super::methods::GRPC_PREFIX;
use super::rest::Refusal;
use crate::config::Limits;
use crate::core::authorize::Claim;
use crate::core::limit::take;
use crate::core::state::State;

/// Callers whose counters are kept apart; those beyond are counted together.
const CALLERS_MAX: usize = 8192;
/// Connections of all that are counted, of the listener's 8,192.
const USERS_CONNECTIONS_MAX: u32 = 6144;
/// Connections that stand for no longer than it takes to say that they are too many: who comes then is hung up on.
const REFUSED_CONNECTIONS_MAX: u32 = 256;
/// Header of gRPC refusals: how long to wait.
const RETRY_AFTER_MS: &str = "retry-after-ms";

/// Counts what callers ask for; clones share it.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    started: Instant,
    callers: Mutex<BTreeMap<Key, Arc<Share>>>,
    /// All that come when too many are known.
    others: Arc<Share>,
    /// Those who are counted, together.
    all: Arc<Share>,
}

/// Who is counted by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// By the id of its object.
    User(String),
    /// Of IPv6 the network: a host has as many addresses of it as it likes.
    Address(IpAddr),
}

/// What a caller does.
#[derive(Debug, Default)]
pub struct Share {
    /// When its bucket of requests is full again, see [`take`]; since the limiter was made.
    full_at_ns: AtomicU64,
    requests: AtomicU32,
    streams: AtomicU32,
    /// Of an address: who has just come and has not said yet who it is. Apart from the connections that stand, as it may be anyone.
    handshakes: AtomicU32,
    connections: AtomicU32,
    refused: AtomicU32,
}

/// What is counted while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Stream,
    Handshake,
    Connection,
    /// A connection that is too many, while it is told so.
    Refused,
}

/// Something of a caller's that lasts until this goes.
#[derive(Debug)]
pub struct Held {
    caller: Arc<Share>,
    kind: Kind,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.caller.counter(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a caller is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    AtOnce { kind: Kind, limit: u32 },
    PerSecond { limit: u32, wait: Duration },
}

/// How soon it may be worth to ask again when something else has to end first.
const SOON: Duration = Duration::from_secs(1);

impl Share {
    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Request => &self.requests,
            Kind::Stream => &self.streams,
            Kind::Handshake => &self.handshakes,
            Kind::Connection => &self.connections,
            Kind::Refused => &self.refused,
        }
    }

    fn hold(self: &Arc<Self>, kind: Kind, limit: u32) -> Result<Held, TooMany> {
        let before = self.counter(kind).fetch_add(1, Ordering::Relaxed);
        // Given back at once when it is too much.
        let held = Held { caller: self.clone(), kind };
        if before < limit { Ok(held) } else { Err(TooMany::AtOnce { kind, limit }) }
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        let nothing = |kind| self.counter(kind).load(Ordering::Relaxed) == 0;
        let kinds = [Kind::Request, Kind::Stream, Kind::Handshake, Kind::Connection, Kind::Refused];
        self.full_at_ns.load(Ordering::Relaxed) <= now_ns && kinds.into_iter().all(nothing)
    }
}

impl Limiter {
    /// Each caller may do so much.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits, started: Instant::now(), callers: Mutex::default(), others: Arc::default(), all: Arc::default() }))
    }

    /// The counters of who has made a connection; `None`: it is not counted.
    pub fn connected(&self, peer: &Peer, addr: IpAddr) -> Option<Arc<Share>> {
        match peer {
            Peer::Certificate(identity) => match identity.part {
                Part::Manager | Part::Agent => None,
                Part::User => Some(self.caller(Key::User(identity.id.clone()))),
            },
            Peer::Nobody | Peer::Plain => Some(self.caller(Key::Address(network(addr)))),
        }
    }

    /// The counters for a request that comes by a connection with `connection`'s; `None`: it is not counted.
    pub fn asking(&self, claims: &Claims, connection: Option<&Arc<Share>>, state: impl FnOnce() -> State) -> Option<Arc<Share>> {
        // The manager that it came to has counted it.
        if claims.is_passed_on() {
            return None;
        }
        let user = match claims.own() {
            Claim::Token { digest } => state().users().values().find(|user| user.token_digest == *digest).cloned(),
            Claim::Plain | Claim::Nobody | Claim::Certificate { .. } => None,
        };
        // What nobody's token is, is counted by the address: there are many.
        user.map(|user| self.caller(Key::User(user.id.to_string()))).or_else(|| connection.cloned())
    }

    /// Somebody has connected, of whom nothing is known yet but the address: held for the handshake, which has a deadline.
    pub fn arrived(&self, addr: IpAddr) -> Result<Held, TooMany> {
        self.caller(Key::Address(network(addr))).hold(Kind::Handshake, self.0.limits.connections)
    }

    /// A connection of a caller stands; of one, and of all together: managers and agents have what is left.
    pub fn hold_connection(&self, caller: &Arc<Share>) -> Result<[Held; 2], TooMany> {
        Ok([caller.hold(Kind::Connection, self.0.limits.connections)?, self.0.all.hold(Kind::Connection, USERS_CONNECTIONS_MAX)?])
    }

    /// A connection that is too many is to be told so.
    pub fn hold_refused(&self) -> Result<Held, TooMany> {
        self.0.all.hold(Kind::Refused, REFUSED_CONNECTIONS_MAX)
    }

    /// A request is to be answered, or a stream to be begun.
    pub fn begin(&self, caller: &Arc<Share>, is_stream: bool) -> Result<Held, TooMany> {
        let Limits { requests_per_second, requests, streams, connections: _ } = self.0.limits;
        let held = if is_stream { caller.hold(Kind::Stream, streams) } else { caller.hold(Kind::Request, requests) }?;
        let now_ns = self.now_ns();
        let taken =
            caller.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| take(full, now_ns, requests_per_second).ok());
        match taken {
            Ok(_) => Ok(held),
            Err(full) => {
                let wait = take(full, now_ns, requests_per_second).err().unwrap_or_default();
                Err(TooMany::PerSecond { limit: requests_per_second, wait: Duration::from_nanos(wait) })
            }
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn caller(&self, key: Key) -> Arc<Share> {
        let mut callers = self.0.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.get(&key) {
            return known.clone();
        }
        if callers.len() >= CALLERS_MAX {
            let now_ns = self.now_ns();
            callers.retain(|_, caller| Arc::strong_count(caller) > 1 || !caller.is_idle(now_ns));
        }
        if callers.len() >= CALLERS_MAX {
            return self.0.others.clone();
        }
        callers.entry(key).or_default().clone()
    }
}

fn network(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => IpAddr::V4(addr),
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & (u128::MAX << 64))),
    }
}

impl TooMany {
    fn wait(self) -> Duration {
        match self {
            Self::AtOnce { .. } => SOON,
            Self::PerSecond { wait, .. } => wait,
        }
    }

    fn error(self) -> ApiError {
        let wait_ms = self.wait().as_millis() + 1;
        let (why, hint) = match self {
            Self::AtOnce { kind: Kind::Request, limit } => {
                (format!("{limit} requests of this caller are being answered, which is the limit"), "wait for answers before asking more")
            }
            Self::AtOnce { kind: Kind::Stream, limit } => {
                (format!("this caller has {limit} streams open, which is the limit"), "end watches, followed logs and commands first")
            }
            Self::AtOnce { kind: Kind::Handshake | Kind::Connection | Kind::Refused, limit } => {
                (format!("this caller has {limit} connections, which is the limit"), "use a connection for many requests")
            }
            Self::PerSecond { limit, .. } => {
                let hint = format!("try again in {wait_ms} ms");
                let why = format!("this caller makes more than {limit} requests a second, which is the limit");
                return ApiError::new(ErrorCode::TooMany, why).hint(hint);
            }
        };
        ApiError::new(ErrorCode::TooMany, why).hint(hint)
    }

    /// The refusal of a request.
    pub fn refusal(self, request: &Request) -> Response {
        let wait_ms = u64::try_from(self.wait().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let is_grpc = request.uri().path().starts_with(GRPC_PREFIX);
        let mut response = if is_grpc { Status::from(self.error()).into_http() } else { Refusal(self.error()).into_response() };
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1000)));
        response.headers_mut().insert(RETRY_AFTER_MS, HeaderValue::from(wait_ms));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(Limits { requests_per_second: 1000, requests: 2, streams: 1, connections: 3 })
    }

    fn at(text: &str) -> Arc<Share> {
        limiter().connected(&Peer::Nobody, text.parse().unwrap()).unwrap()
    }

    #[test]
    fn what_a_caller_holds_is_limited_until_it_goes() {
        let (limiter, caller) = (limiter(), at("10.0.0.1"));
        let held: Vec<Held> = (0..2).map(|_| limiter.begin(&caller, false).unwrap()).collect();
        assert_eq!(limiter.begin(&caller, false).unwrap_err(), TooMany::AtOnce { kind: Kind::Request, limit: 2 });
        let stream = limiter.begin(&caller, true).unwrap();
        assert_eq!(limiter.begin(&caller, true).unwrap_err(), TooMany::AtOnce { kind: Kind::Stream, limit: 1 });
        drop((held, stream));
        limiter.begin(&caller, false).unwrap();
        limiter.begin(&caller, true).unwrap();
        assert!(caller.requests.load(Ordering::Relaxed) == 0 && caller.streams.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn callers_are_counted_apart_and_idle_ones_are_forgotten() {
        let limiter = limiter();
        let of = |text: &str| limiter.connected(&Peer::Nobody, text.parse().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&of("2001:db8::1"), &of("2001:db8::2:3")), "one network");
        assert!(Arc::ptr_eq(&of("10.0.0.1"), &of("::ffff:10.0.0.1")), "one host");
        let busy = of("10.0.0.1");
        let held = limiter.begin(&busy, false).unwrap();
        for number in 0..CALLERS_MAX {
            drop(limiter.caller(Key::User(number.to_string())));
        }
        assert!(limiter.0.callers.lock().unwrap().len() <= CALLERS_MAX);
        assert!(Arc::ptr_eq(&of("10.0.0.1"), &busy));
        drop(held);
    }

    #[test]
    fn who_arrives_finds_room_beside_connections_that_stand_and_are_refused() {
        let (limiter, addr) = (limiter(), "10.0.0.1".parse().unwrap());
        let nobody = limiter.connected(&Peer::Nobody, addr).unwrap();
        let standing: Vec<[Held; 2]> = (0..3).map(|_| limiter.hold_connection(&nobody).unwrap()).collect();
        assert_eq!(limiter.hold_connection(&nobody).unwrap_err(), TooMany::AtOnce { kind: Kind::Connection, limit: 3 });
        let refused: Vec<Held> = std::iter::from_fn(|| limiter.hold_refused().ok()).take(1000).collect();
        assert_eq!(refused.len(), 256);
        let arrived: Vec<Held> = (0..3).map(|_| limiter.arrived(addr).unwrap()).collect();
        assert_eq!(limiter.arrived(addr).unwrap_err(), TooMany::AtOnce { kind: Kind::Handshake, limit: 3 });
        drop((standing, refused, arrived));
        limiter.arrived(addr).unwrap();
        limiter.hold_refused().unwrap();
    }

    #[test]
    fn who_keeps_the_cluster_is_not_counted() {
        let peer = |part| {
            let identity = rcluster_api::identity::Identity { part, id: "i".into(), cluster_id: "c".into() };
            limiter().connected(&Peer::Certificate(identity), "10.0.0.1".parse().unwrap()).is_some()
        };
        assert_eq!([Part::Manager, Part::Agent, Part::User].map(peer), [false, false, true]);
    }
}
