//! Networks' policies, as users write them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{CIDR_BYTES, Number, Ports, Protocol, Text, split_protocol};

/// Who may speak with whom on a network, and who may come to it by published ports: whom no rule allows may not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    #[serde(default)]
    pub allow: Vec<Allow>,
}

/// One allowance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    pub from: Vec<Peer>,
    pub to: Vec<Peer>,
    /// Of the containers; none: all ports of all protocols.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
}

/// A side of an allowance; written `web`, `*` or `192.0.2.0/24`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Everyone on the network.
    All,
    /// The tasks of a service, by its name.
    Service(String),
    /// Who comes by a published port under one of these addresses.
    Range(IpNet),
}

impl Peer {
    /// Bytes of its text, at most.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::All => 1,
            Self::Service(name) => name.len(),
            Self::Range(_) => CIDR_BYTES,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(formatter, "*"),
            Self::Service(name) => write!(formatter, "{name}"),
            Self::Range(cidr) => write!(formatter, "{cidr}"),
        }
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::All),
            cidr if cidr.contains('/') => {
                cidr.parse().map(Self::Range).map_err(|_| format!("{cidr:?} is no CIDR: write one such as 192.0.2.0/24"))
            }
            name => Ok(Self::Service(name.to_owned())),
        }
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("a service's name, * for all, or a CIDR", PhantomData))
    }
}

/// Ports of containers; written `80`, `8000-8009` or `53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyPort {
    pub protocol: Protocol,
    pub ports: Ports,
}

impl FromStr for PolicyPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = split_protocol(text)?;
        Ok(Self { protocol, ports: ports.parse()? })
    }
}

impl Serialize for PolicyPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.protocol {
            Protocol::Tcp => self.ports.serialize(serializer),
            Protocol::Udp => serializer.collect_str(&format_args!("{}/udp", self.ports)),
        }
    }
}

impl<'de> Deserialize<'de> for PolicyPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Number("a port such as 80, a range such as 8000-8009, or either with /udp", PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_comes_back_as_it_is_written() {
        for (written, printed) in [
            (json!({}), json!({"allow": []})),
            (
                json!({"allow": [{"from": ["web", "*", "192.0.2.0/24", "fd00::/8"], "to": ["db"], "ports": [80, "81", "90-99/tcp", "53/udp"]}]}),
                json!({"allow": [{"from": ["web", "*", "192.0.2.0/24", "fd00::/8"], "to": ["db"], "ports": [80, 81, "90-99", "53/udp"]}]}),
            ),
            (json!({"allow": [{"from": ["web"], "to": ["*"], "ports": []}]}), json!({"allow": [{"from": ["web"], "to": ["*"]}]})),
        ] {
            let policy: NetworkPolicy = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(&policy).unwrap(), printed, "{written}");
            assert_eq!(serde_json::from_value::<NetworkPolicy>(printed).unwrap(), policy, "{written}");
        }
        for (written, why) in [
            (json!({"from": ["10.0.0/8"], "to": ["db"]}), "\"10.0.0/8\" is no CIDR: write one such as 192.0.2.0/24"),
            (json!({"from": ["web"], "to": ["db"], "ports": [0]}), "\"0\" is not a port: write a number from 1 to 65535"),
            (json!({"from": ["web"], "to": ["db"], "ports": ["80/icmp"]}), "\"icmp\" is neither tcp nor udp"),
        ] {
            assert_eq!(serde_json::from_value::<Allow>(written.clone()).unwrap_err().to_string(), why, "{written}");
        }
    }
}
