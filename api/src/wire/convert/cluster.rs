//! The cluster's own objects.

use super::{WireError, meta, missing, read_enum, wire_meta};
use crate::cluster::{Authority, CLUSTER, Cluster, JoinSecret, Manager, ManagerRole, Revocation, User, UserRole};
use crate::data::Payload;
use crate::network::AddressPool;
use crate::wire::v1;

/// A manager's role as it stands in a message; `None` for UNSPECIFIED.
pub fn manager_role(number: i32) -> Result<Option<ManagerRole>, WireError> {
    if number == 0 { Ok(None) } else { read_enum::<v1::ManagerRole, _>(number, "role").map(Some) }
}

/// A user's role as it stands in a message.
pub fn user_role(number: i32) -> Result<UserRole, WireError> {
    read_enum::<v1::UserRole, _>(number, "role")
}

impl From<Manager> for v1::Manager {
    fn from(manager: Manager) -> Self {
        let Manager { id, stamp, raft_id, name, addr, role } = manager;
        Self { meta: wire_meta(id, stamp), raft_id, name, addr, role: v1::ManagerRole::from(role).into() }
    }
}

impl TryFrom<v1::Manager> for Manager {
    type Error = WireError;

    fn try_from(wire: v1::Manager) -> Result<Self, WireError> {
        let v1::Manager { meta: wire_meta, raft_id, name, addr, role } = wire;
        let (id, stamp) = meta(wire_meta)?;
        let role = read_enum::<v1::ManagerRole, _>(role, "role")?;
        if raft_id == 0 {
            return Err(missing("raft_id"));
        }
        Ok(Self { id, stamp, raft_id, name, addr, role })
    }
}

impl From<Authority> for v1::Authority {
    fn from(authority: Authority) -> Self {
        let Authority { certificate, key, cross, retired_at_ms } = authority;
        Self { certificate: Some(certificate.into()), key: Some(key.into()), cross: Some(cross.into()), retired_at_ms }
    }
}

impl From<v1::Authority> for Authority {
    fn from(wire: v1::Authority) -> Self {
        let v1::Authority { certificate, key, cross, retired_at_ms } = wire;
        let bytes = |payload: Option<v1::Payload>| payload.map(Payload::from).unwrap_or_default();
        Self { certificate: bytes(certificate), key: bytes(key), cross: bytes(cross), retired_at_ms }
    }
}

impl From<JoinSecret> for v1::JoinToken {
    fn from(token: JoinSecret) -> Self {
        let JoinSecret { secret, rotated_at_ms } = token;
        Self { secret: Some(secret.into()), rotated_at_ms }
    }
}

impl From<v1::JoinToken> for JoinSecret {
    fn from(wire: v1::JoinToken) -> Self {
        let v1::JoinToken { secret, rotated_at_ms } = wire;
        Self { secret: secret.map(Payload::from).unwrap_or_default(), rotated_at_ms }
    }
}

impl From<Cluster> for v1::Cluster {
    fn from(cluster: Cluster) -> Self {
        let Cluster {
            stamp,
            managers_made,
            authorities,
            manager_token,
            agent_token,
            certificate_ttl_ms,
            revocations,
            nodes_awaited_until_ms,
            unlock_key,
            unlock_generation,
            vni_cursor,
            pools,
            node_numbers_made,
            key_epoch,
            key_epoch_at_ms,
        } = cluster;
        let revocations = revocations.into_iter().map(|Revocation { id, until_ms }| v1::Revocation { id, until_ms });
        Self {
            meta: wire_meta(CLUSTER.to_owned(), stamp),
            managers_made,
            authorities: authorities.into_iter().map(Into::into).collect(),
            manager_token: Some(manager_token.into()),
            agent_token: Some(agent_token.into()),
            certificate_ttl_ms,
            revocations: revocations.collect(),
            nodes_awaited_until_ms,
            unlock_key: (!unlock_key.0.is_empty()).then(|| unlock_key.into()),
            unlock_generation,
            vni_cursor,
            pools: pools.into_iter().map(Into::into).collect(),
            node_numbers_made,
            key_epoch,
            key_epoch_at_ms,
        }
    }
}

impl TryFrom<v1::Cluster> for Cluster {
    type Error = WireError;

    fn try_from(wire: v1::Cluster) -> Result<Self, WireError> {
        let v1::Cluster {
            meta: wire_meta,
            managers_made,
            authorities,
            manager_token,
            agent_token,
            certificate_ttl_ms,
            revocations,
            nodes_awaited_until_ms,
            unlock_key,
            unlock_generation,
            vni_cursor,
            pools,
            node_numbers_made,
            key_epoch,
            key_epoch_at_ms,
        } = wire;
        let (id, stamp) = meta::<String>(wire_meta)?;
        if id != CLUSTER {
            return Err(missing("id"));
        }
        let revocations = revocations.into_iter().map(|v1::Revocation { id, until_ms }| Revocation { id, until_ms });
        Ok(Self {
            stamp,
            managers_made,
            authorities: authorities.into_iter().map(Into::into).collect(),
            manager_token: manager_token.unwrap_or_default().into(),
            agent_token: agent_token.unwrap_or_default().into(),
            certificate_ttl_ms,
            revocations: revocations.collect(),
            nodes_awaited_until_ms,
            unlock_key: unlock_key.map(Payload::from).unwrap_or_default(),
            unlock_generation,
            vni_cursor,
            pools: pools.into_iter().map(AddressPool::try_from).collect::<Result<_, _>>()?,
            node_numbers_made,
            key_epoch,
            key_epoch_at_ms,
        })
    }
}

impl From<User> for v1::User {
    fn from(user: User) -> Self {
        let User { id, stamp, name, role, token_digest, expires_at_ms } = user;
        Self { meta: wire_meta(id, stamp), name, role: v1::UserRole::from(role).into(), token_digest, expires_at_ms }
    }
}

impl TryFrom<v1::User> for User {
    type Error = WireError;

    fn try_from(wire: v1::User) -> Result<Self, WireError> {
        let v1::User { meta: wire_meta, name, role, token_digest, expires_at_ms } = wire;
        let (id, stamp) = meta(wire_meta)?;
        Ok(Self { id, stamp, name, role: read_enum::<v1::UserRole, _>(role, "role")?, token_digest, expires_at_ms })
    }
}
