//! The cluster itself: its managers, its certificate authorities and tokens, the people who use it.

use serde::{Deserialize, Serialize};

use crate::data::Payload;
use crate::id::{ManagerId, UserId};
use crate::network::AddressPool;
use crate::object::Stamp;

/// The id of the one [`Cluster`].
pub const CLUSTER: &str = "cluster";

/// What a manager is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagerRole {
    Voter,
    /// Keeps a copy of the state, does not vote.
    Standby,
    /// Is forgotten once Raft's configuration is without it; until then the others must still reach it.
    Leaving,
}

/// A manager as the managers keep it. They change Raft's configuration until it is what these objects say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    pub id: ManagerId,
    pub stamp: Stamp,
    /// From [`Cluster::managers_made`]; never used again.
    pub raft_id: u64,
    pub name: String,
    /// `HOST:PORT`.
    pub addr: String,
    pub role: ManagerRole,
}

/// A certificate authority of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authority {
    /// DER.
    pub certificate: Payload,
    /// PKCS #8, DER.
    pub key: Payload,
    /// The same key's certificate by the authority before it, DER; empty for the first.
    pub cross: Payload,
    /// When another began to issue in its place, Unix time; 0: it issues.
    pub retired_at_ms: u64,
}

/// What lets a host join.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JoinSecret {
    pub secret: Payload,
    pub rotated_at_ms: u64,
}

/// A node or manager that was removed: its certificate is no longer taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub id: String,
    /// When the certificate expires at the latest, Unix time.
    pub until_ms: u64,
}

/// What the managers share. It never leaves them: it holds keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    pub stamp: Stamp,
    /// The last Raft id that was given.
    pub managers_made: u64,
    /// The first issues; the others are trusted still. Empty when the cluster was made without TLS.
    pub authorities: Vec<Authority>,
    pub manager_token: JoinSecret,
    pub agent_token: JoinSecret,
    pub certificate_ttl_ms: u64,
    pub revocations: Vec<Revocation>,
    /// Nodes that no leader has heard yet are not taken for lost before this time, Unix time: a restored cluster waits for them longer. 0:
    /// there is no such time.
    pub nodes_awaited_until_ms: u64,
    /// What managers' disks are locked with; empty: they are not.
    pub unlock_key: Payload,
    /// Rises with each change of it.
    pub unlock_generation: u64,
    /// VNI after which the next is sought, so that a freed one rests; 0: none was given yet.
    pub vni_cursor: u32,
    /// What subnets are chosen from; none: 10.128.0.0/9 by /24.
    pub pools: Vec<AddressPool>,
    /// The last [`Node::number`](crate::object::Node::number) that was given.
    pub node_numbers_made: u32,
    /// The newest for which nodes make keys; 0: no network was ever encrypted.
    pub key_epoch: u64,
    /// When it last rose, Unix time.
    pub key_epoch_at_ms: u64,
}

/// What someone may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserRole {
    /// Sees everything but the bytes of secrets.
    ReadOnly,
    /// Also changes services, networks, secrets and configs, and works in containers.
    Deploy,
    /// Everything.
    Admin,
}

impl UserRole {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::ReadOnly, Self::Deploy, Self::Admin];

    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for UserRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| format!("role {text:?}: read-only, deploy or admin"))
    }
}

/// Someone who may use the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub stamp: Stamp,
    pub name: String,
    pub role: UserRole,
    /// Of the bearer token, see [`Payload::digest`]; empty: there is none.
    pub token_digest: String,
    /// Unix time; 0: never.
    pub expires_at_ms: u64,
}

impl ManagerRole {
    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Standby => "standby",
            Self::Leaving => "leaving",
        }
    }
}
