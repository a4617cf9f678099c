//! Subnets for networks and addresses for tasks.
//!
//! The cluster's pool is 10.128.0.0/9, a /24 for each network. In a subnet the first address, the second (kept for a gateway) and the
//! last are never given out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rcluster_api::object::Network;

const POOL_START: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const POOL_SUBNETS: u32 = 1 << 15;
const SUBNET_PREFIX: u8 = 24;

/// The subnet that was asked for, or the next of the pool that overlaps no other network's.
pub fn subnet<'a>(networks: impl Iterator<Item = &'a Network>, asked: Option<Ipv4Net>) -> Option<Ipv4Net> {
    if asked.is_some() {
        return asked;
    }
    let used: Vec<Ipv4Net> = networks.filter_map(|network| network.subnet.or(network.spec.subnet)).collect();
    let candidate = |index: u32| Ipv4Net::new(Ipv4Addr::from(POOL_START + (index << 8)), SUBNET_PREFIX).ok();
    let in_pool = |subnet: &Ipv4Net| (u32::from(subnet.broadcast()).checked_sub(POOL_START)).map(|offset| offset >> 8);
    let after = used.iter().filter_map(in_pool).filter(|index| *index < POOL_SUBNETS).max().map_or(0, |highest| highest + 1);
    (after..POOL_SUBNETS).chain(0..after).filter_map(candidate).find(|free| !used.iter().any(|taken| overlap(taken, free)))
}

/// Whether two subnets share an address.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// How many addresses tasks can have in a subnet.
pub fn size(subnet: Ipv4Net) -> u32 {
    (u32::from(subnet.broadcast()) - u32::from(subnet.network())).saturating_sub(2)
}

/// The next free address after `cursor` (an offset in the subnet), and the new cursor.
pub fn address(subnet: Ipv4Net, cursor: u32, used: &BTreeSet<u32>) -> Option<(Ipv4Addr, u32)> {
    let base = u32::from(subnet.network());
    let last = size(subnet) + 1;
    let first = if cursor < last { (cursor + 1).max(2) } else { 2 };
    let offset = (first..=last).chain(2..first).find(|offset| !used.contains(&(base + offset)))?;
    Some((Ipv4Addr::from(base + offset), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_in_turn_until_none_is_left() {
        let subnet: Ipv4Net = "10.128.3.0/29".parse().unwrap();
        let mut used = BTreeSet::new();
        let mut cursor = 0;
        let mut given = Vec::new();
        while let Some((ip, next)) = address(subnet, cursor, &used) {
            used.insert(u32::from(ip));
            cursor = next;
            given.push(ip.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert_eq!(given.len(), size(subnet) as usize);
        used.remove(&u32::from(Ipv4Addr::new(10, 128, 3, 3)));
        used.remove(&u32::from(Ipv4Addr::new(10, 128, 3, 5)));
        assert_eq!(address(subnet, 3, &used).unwrap().1, 5, "a freed address before the cursor rests");
        assert_eq!(address(subnet, 6, &used).unwrap().1, 3, "the search wraps round");
    }
}
