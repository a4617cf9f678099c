//! Services' faces on their networks, and what nodes and the cluster say of theirs.

use std::net::Ipv6Addr;

use ipnet::IpNet;

use super::{WireError, missing, read_enum};
use crate::network::{
    AddressPool, Affinity, Allow, EndpointMode, HeldPort, IngressPolicy, NetworkPolicy, NodeNetwork, Peer, PolicyPort, Port, Ports,
    PublishMode, Published, WireguardKey,
};
use crate::wire::v1;

/// An endpoint mode as it stands in a message.
pub(super) fn endpoint_mode(number: i32) -> Result<EndpointMode, WireError> {
    match v1::EndpointMode::try_from(number).map_err(|_| missing("endpoint_mode"))? {
        v1::EndpointMode::Unspecified | v1::EndpointMode::Dnsrr => Ok(EndpointMode::Dnsrr),
        v1::EndpointMode::Vip => Ok(EndpointMode::Vip),
    }
}

/// As it was written before there was another: a service of an earlier version stands on the wire as it did.
impl From<EndpointMode> for v1::EndpointMode {
    fn from(mode: EndpointMode) -> Self {
        match mode {
            EndpointMode::Vip => Self::Vip,
            EndpointMode::Dnsrr => Self::Unspecified,
        }
    }
}

/// An affinity as it stands in a message.
pub(super) fn affinity(number: i32) -> Result<Affinity, WireError> {
    match v1::Affinity::try_from(number).map_err(|_| missing("affinity"))? {
        v1::Affinity::Unspecified => Ok(Affinity::None),
        v1::Affinity::Client => Ok(Affinity::Client),
    }
}

impl From<Affinity> for v1::Affinity {
    fn from(affinity: Affinity) -> Self {
        match affinity {
            Affinity::None => Self::Unspecified,
            Affinity::Client => Self::Client,
        }
    }
}

impl From<Port> for v1::Port {
    fn from(port: Port) -> Self {
        let Port { name, protocol, target, published } = port;
        let (published, mode, policy, allow_from) = match published {
            None => (0, v1::PublishMode::Unspecified, v1::IngressPolicy::Unspecified, Vec::new()),
            Some(Published { ports, mode, allow_from }) => {
                let (mode, policy) = match mode {
                    PublishMode::Ingress(policy) => (v1::PublishMode::Ingress, policy.into()),
                    PublishMode::Host => (v1::PublishMode::Host, v1::IngressPolicy::Unspecified),
                };
                (u32::from(ports.first()), mode, policy, allow_from.iter().map(ToString::to_string).collect())
            }
        };
        Self {
            name,
            protocol: v1::Protocol::from(protocol).into(),
            target: target.first().into(),
            count: target.count().into(),
            published,
            mode: mode.into(),
            policy: policy.into(),
            allow_from,
        }
    }
}

impl TryFrom<v1::Port> for Port {
    type Error = WireError;

    fn try_from(wire: v1::Port) -> Result<Self, WireError> {
        let v1::Port { name, protocol, target, count, published, mode, policy, allow_from } = wire;
        let ports = |first: u32, field| {
            let (first, count) = (u16::try_from(first), u16::try_from(count.max(1)));
            first.ok().zip(count.ok()).and_then(|(first, count)| Ports::new(first, count)).ok_or(missing(field))
        };
        let mode = match v1::PublishMode::try_from(mode).map_err(|_| missing("ports.mode"))? {
            v1::PublishMode::Unspecified => None,
            v1::PublishMode::Ingress if policy == 0 => Some(PublishMode::Ingress(IngressPolicy::default())),
            v1::PublishMode::Ingress => Some(PublishMode::Ingress(read_enum::<v1::IngressPolicy, _>(policy, "ports.policy")?)),
            v1::PublishMode::Host if policy == 0 => Some(PublishMode::Host),
            v1::PublishMode::Host => return Err(missing("ports.policy")),
        };
        let published = match mode {
            None if published == 0 && allow_from.is_empty() => None,
            None => return Err(missing("ports.mode")),
            Some(mode) => {
                let allow_from = allow_from.iter().map(|cidr| cidr.parse::<IpNet>()).collect::<Result<Vec<_>, _>>();
                let allow_from = allow_from.map_err(|_| missing("ports.allow_from"))?;
                Some(Published { ports: ports(published, "ports.published")?, mode, allow_from })
            }
        };
        let protocol = read_enum::<v1::Protocol, _>(protocol, "ports.protocol")?;
        Ok(Self { name, protocol, target: ports(target, "ports.target")?, published })
    }
}

impl From<NetworkPolicy> for v1::NetworkPolicy {
    fn from(policy: NetworkPolicy) -> Self {
        let NetworkPolicy { allow } = policy;
        let texts = |peers: Vec<Peer>| peers.iter().map(ToString::to_string).collect();
        let allow = allow.into_iter().map(|Allow { from, to, ports }| v1::Allow {
            from: texts(from),
            to: texts(to),
            ports: ports.into_iter().map(Into::into).collect(),
        });
        Self { allow: allow.collect() }
    }
}

impl TryFrom<v1::NetworkPolicy> for NetworkPolicy {
    type Error = WireError;

    fn try_from(wire: v1::NetworkPolicy) -> Result<Self, WireError> {
        let v1::NetworkPolicy { allow } = wire;
        let peers = |texts: Vec<String>, field| {
            texts.iter().map(|text| text.parse::<Peer>().map_err(|_| missing(field))).collect::<Result<Vec<_>, WireError>>()
        };
        let allow = allow.into_iter().map(|v1::Allow { from, to, ports }| -> Result<Allow, WireError> {
            let ports = ports.into_iter().map(PolicyPort::try_from).collect::<Result<Vec<_>, WireError>>()?;
            Ok(Allow { from: peers(from, "policy.allow.from")?, to: peers(to, "policy.allow.to")?, ports })
        });
        Ok(Self { allow: allow.collect::<Result<Vec<_>, WireError>>()? })
    }
}

impl From<PolicyPort> for v1::PolicyPort {
    fn from(port: PolicyPort) -> Self {
        let PolicyPort { protocol, ports } = port;
        Self { protocol: v1::Protocol::from(protocol).into(), first: ports.first().into(), last: ports.last().into() }
    }
}

impl TryFrom<v1::PolicyPort> for PolicyPort {
    type Error = WireError;

    fn try_from(wire: v1::PolicyPort) -> Result<Self, WireError> {
        let v1::PolicyPort { protocol, first, last } = wire;
        let protocol = read_enum::<v1::Protocol, _>(protocol, "policy.allow.ports.protocol")?;
        let ports = u16::try_from(first).ok().zip(u16::try_from(last).ok()).and_then(|(first, last)| Ports::between(first, last));
        Ok(Self { protocol, ports: ports.ok_or(missing("policy.allow.ports"))? })
    }
}

impl From<NodeNetwork> for v1::NodeNetwork {
    fn from(network: NodeNetwork) -> Self {
        let NodeNetwork { mtu, ipv6, routes, addresses6, no_encryption, wireguard_keys, held_ports, conditions } = network;
        let held_port =
            |HeldPort { protocol, port, by }| v1::HeldPort { protocol: v1::Protocol::from(protocol).into(), port: port.into(), by };
        Self {
            mtu,
            ipv6,
            routes: routes.iter().map(ToString::to_string).collect(),
            addresses6: addresses6.iter().map(ToString::to_string).collect(),
            no_encryption,
            wireguard_keys: wireguard_keys.into_iter().map(Into::into).collect(),
            held_ports: held_ports.into_iter().map(held_port).collect(),
            conditions,
        }
    }
}

impl TryFrom<v1::NodeNetwork> for NodeNetwork {
    type Error = WireError;

    fn try_from(wire: v1::NodeNetwork) -> Result<Self, WireError> {
        let v1::NodeNetwork { mtu, ipv6, routes, addresses6, no_encryption, wireguard_keys, held_ports, conditions } = wire;
        let routes =
            routes.iter().map(|cidr| cidr.parse::<IpNet>()).collect::<Result<Vec<_>, _>>().map_err(|_| missing("network.routes"))?;
        let addresses6 = addresses6
            .iter()
            .map(|ip6| ip6.parse::<Ipv6Addr>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| missing("network.addresses6"))?;
        let held_ports = held_ports
            .into_iter()
            .map(|v1::HeldPort { protocol, port, by }| {
                let protocol = read_enum::<v1::Protocol, _>(protocol, "network.held_ports.protocol")?;
                Ok(HeldPort { protocol, port: u16::try_from(port).map_err(|_| missing("network.held_ports.port"))?, by })
            })
            .collect::<Result<_, _>>()?;
        let wireguard_keys = wireguard_keys.into_iter().map(WireguardKey::try_from).collect::<Result<_, _>>()?;
        Ok(Self { mtu, ipv6, routes, addresses6, no_encryption, wireguard_keys, held_ports, conditions })
    }
}

impl From<WireguardKey> for v1::WireguardKey {
    fn from(key: WireguardKey) -> Self {
        let WireguardKey { epoch, key, port } = key;
        Self { epoch, key: key.to_vec(), port: port.into() }
    }
}

impl TryFrom<v1::WireguardKey> for WireguardKey {
    type Error = WireError;

    fn try_from(wire: v1::WireguardKey) -> Result<Self, WireError> {
        let v1::WireguardKey { epoch, key, port } = wire;
        let key = key.try_into().map_err(|_| missing("network.wireguard_keys.key"))?;
        let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or(missing("network.wireguard_keys.port"))?;
        Ok(Self { epoch, key, port })
    }
}

impl From<AddressPool> for v1::AddressPool {
    fn from(pool: AddressPool) -> Self {
        let AddressPool { cidr, prefix, cursor } = pool;
        Self { cidr: cidr.to_string(), prefix: prefix.into(), cursor }
    }
}

impl TryFrom<v1::AddressPool> for AddressPool {
    type Error = WireError;

    fn try_from(wire: v1::AddressPool) -> Result<Self, WireError> {
        let v1::AddressPool { cidr, prefix, cursor } = wire;
        let cidr = cidr.parse().map_err(|_| missing("pools.cidr"))?;
        Ok(Self { cidr, prefix: u8::try_from(prefix).map_err(|_| missing("pools.prefix"))?, cursor })
    }
}
