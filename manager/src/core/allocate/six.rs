//! Where networks' IPv6 addresses come from: each network has a /64 of the cluster's own /48 (RFC 4193), which follows from the cluster's id.
//!
//! In it whoever has an IPv4 address of the network has it once more, in the last 32 bits (`rcluster_api::network::address6`): what is given
//! out, rests and is kept of the one is so of the other.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use rcluster_api::network::PREFIX6;
use sha2::{Digest, Sha256};

const CLUSTER_PREFIX: u8 = 48;

/// A cluster's /48: the same on every manager, and hardly another cluster's.
pub(super) fn of_cluster(cluster_id: &str) -> Ipv6Net {
    let digest = Sha256::digest(cluster_id.as_bytes());
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&digest[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(bytes), CLUSTER_PREFIX)
}

/// The first of its /64 that is not taken, from that with the network's number on.
pub(super) fn subnet(cluster: Ipv6Net, vni: u32, taken: &BTreeSet<Ipv6Net>) -> Option<Ipv6Net> {
    let [.., high, low] = vni.to_be_bytes();
    let first = u16::from_be_bytes([high, low]);
    let numbered = |number: u16| {
        let bits = cluster.network().to_bits() | u128::from(number) << (128 - u32::from(PREFIX6));
        Ipv6Net::new(Ipv6Addr::from_bits(bits), PREFIX6).ok()
    };
    (0..=u16::MAX).filter_map(|step| numbered(first.wrapping_add(step))).find(|subnet| !taken.contains(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_first_that_is_not_taken() {
        let cluster = of_cluster("a");
        assert!(cluster.addr().is_unique_local() && cluster == of_cluster("a") && cluster != of_cluster("b"));
        let mut taken = BTreeSet::new();
        for expected in [0xffff, 0, 1] {
            let chosen = subnet(cluster, 0x01_ffff, &taken).unwrap();
            assert!(cluster.contains(&chosen) && chosen.prefix_len() == 64 && chosen.addr().segments()[3] == expected, "{chosen}");
            taken.insert(chosen);
        }
    }
}
