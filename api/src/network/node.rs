//! What nodes say of their networks.

use std::net::Ipv6Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{NodePort, Protocol};

/// A node's network, as its netd has found it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeNetwork {
    /// Of pods' interfaces; 0: not known.
    pub mtu: u32,
    /// Pods can have IPv6.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// The host's own, without the default one.
    pub routes: Vec<IpNet>,
    /// The host's own of IPv6, but those of links: no pod is to reach a node by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses6: Vec<Ipv6Addr>,
    /// Why it cannot encrypt; empty: it can, or is of before there was encryption.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_encryption: String,
    /// One for each epoch by which it sends; none: nothing encrypted can be sent to it. Not for people.
    #[serde(skip)]
    pub wireguard_keys: Vec<WireguardKey>,
    /// Ports of the host that others than rcluster hold.
    pub held_ports: Vec<HeldPort>,
    /// What is wrong, in words.
    pub conditions: Vec<String>,
}

impl NodeNetwork {
    /// Most of the host's routes that are kept.
    pub const ROUTES_MAX: usize = 256;
    /// Most addresses of IPv6 that are kept.
    pub const ADDRESSES6_MAX: usize = 64;
    /// Most ports of the host.
    pub const HELD_PORTS_MAX: usize = 1024;
    /// Most conditions.
    pub const CONDITIONS_MAX: usize = 32;
    /// Longest condition, and longest reason not to encrypt, in bytes.
    pub const CONDITION_BYTES_MAX: usize = 512;
    /// Longest word for who holds a port, in bytes.
    pub const HOLDER_BYTES_MAX: usize = 64;
    /// Most keys: by two epochs it sends, and for a third it may have one already.
    pub const WIREGUARD_KEYS_MAX: usize = 4;

    /// The ports that others than rcluster hold, with who, in words for people.
    pub fn held(&self) -> impl Iterator<Item = (NodePort, &str)> {
        self.held_ports.iter().map(|HeldPort { protocol, port, by }| (NodePort { protocol: *protocol, number: *port }, by.as_str()))
    }

    /// As much of what a node says as is kept of it.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.routes.truncate(Self::ROUTES_MAX);
        self.addresses6.truncate(Self::ADDRESSES6_MAX);
        self.held_ports.truncate(Self::HELD_PORTS_MAX);
        self.conditions.truncate(Self::CONDITIONS_MAX);
        self.wireguard_keys.truncate(Self::WIREGUARD_KEYS_MAX);
        shorten(&mut self.no_encryption, Self::CONDITION_BYTES_MAX);
        self.held_ports.iter_mut().for_each(|held| shorten(&mut held.by, Self::HOLDER_BYTES_MAX));
        self.conditions.iter_mut().for_each(|condition| shorten(condition, Self::CONDITION_BYTES_MAX));
        self
    }
}

fn shorten(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

/// The public half of a node's key pair, of which the other half never leaves its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireguardKey {
    pub epoch: u64,
    pub key: [u8; 32],
    /// At which the node takes what is encrypted with it, over UDP.
    pub port: u16,
}

/// A port of a host that someone holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPort {
    pub protocol: Protocol,
    pub port: u16,
    /// For people, such as `nginx (pid 812)`.
    pub by: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_node_says_a_bounded_part_is_kept() {
        let held = |port| HeldPort { protocol: Protocol::Tcp, port, by: format!("x{}", "é".repeat(300)) };
        let said = NodeNetwork {
            mtu: 1450,
            ipv6: true,
            routes: vec!["10.0.0.0/8".parse().unwrap(); 300],
            addresses6: vec!["2001:db8::1".parse().unwrap(); 100],
            no_encryption: "y".repeat(1000),
            wireguard_keys: vec![WireguardKey { epoch: 1, key: [7; 32], port: 51821 }; 100],
            held_ports: (1..=1100).map(held).collect(),
            conditions: vec!["x".repeat(1000); 40],
        };
        let kept = said.bounded();
        assert_eq!((kept.mtu, kept.routes.len(), kept.held_ports.len(), kept.conditions.len()), (1450, 256, 1024, 32));
        assert_eq!((kept.held_ports[0].by.len(), kept.conditions[0].len()), (63, 512), "whole letters are kept");
        assert_eq!((kept.no_encryption.len(), kept.wireguard_keys.len(), kept.addresses6.len()), (512, 4, 64));
        assert_eq!(kept.clone().bounded(), kept);
    }
}
