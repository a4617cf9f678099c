//! Subnets for networks and addresses for tasks.
//!
//! Subnets are chosen from the cluster's pools: 10.128.0.0/9 as long as nobody has said others, a /24 for each network. In a subnet the
//! first address, the second (kept for a gateway) and the last are never given out. Both are sought from where the last search ended, so
//! that what is freed is not given out again at once.

use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;
use rcluster_api::network::{AddressPool, subnet_size};

/// The pool of a cluster that has no other.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::from_bits(POOL_START), 9);
const POOL_START: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const POOL_SUBNETS: u32 = 1 << 15;

/// [`POOL`], with its cursor at the highest of the subnets in use: where the search went on before there were cursors.
pub fn first_pool(in_use: &[Ipv4Net]) -> AddressPool {
    let number =
        |subnet: &Ipv4Net| POOL.contains(subnet).then(|| (u32::from(subnet.broadcast()) - POOL_START) >> (32 - AddressPool::PREFIX));
    let cursor = in_use.iter().filter_map(number).max().unwrap_or(POOL_SUBNETS - 1);
    AddressPool { cidr: POOL, prefix: AddressPool::PREFIX, cursor }
}

/// The next subnet that shares no address with `taken`, from the first pool that has one, and the pools as they are then.
pub fn subnet(pools: &[AddressPool], taken: &[Ipv4Net]) -> Option<(Ipv4Net, Vec<AddressPool>)> {
    pools.iter().enumerate().find_map(|(place, pool)| {
        let count = subnets(pool);
        let after = pool.cursor.saturating_add(1).min(count);
        let number = first_free(pool, after..count, taken).or_else(|| first_free(pool, 0..after, taken))?;
        let mut pools = pools.to_vec();
        pools[place].cursor = number;
        Some((numbered(pool, number)?, pools))
    })
}

/// How many subnets a pool has.
pub fn subnets(pool: &AddressPool) -> u32 {
    let bits = pool.prefix.checked_sub(pool.cidr.prefix_len());
    bits.filter(|_| (8..=30).contains(&pool.prefix)).and_then(|bits| 1_u32.checked_shl(bits.into())).unwrap_or_default()
}

/// How many of a pool's subnets share an address with `taken`.
pub fn subnets_taken(pool: &AddressPool, taken: &[Ipv4Net]) -> u32 {
    let count = subnets(pool);
    let in_pool = taken.iter().filter(|net| count > 0 && overlap(net, &pool.cidr));
    let mut ranges: Vec<(u32, u32)> = in_pool.map(|net| (number_of(pool, net.network()), number_of(pool, net.broadcast()))).collect();
    ranges.sort_unstable();
    let (mut sum, mut next) = (0, 0);
    for (first, last) in ranges {
        let first = first.max(next);
        if first <= last {
            sum += last - first + 1;
            next = last + 1;
        }
    }
    sum
}

/// The subnet of that number.
fn numbered(pool: &AddressPool, number: u32) -> Option<Ipv4Net> {
    let offset = number.checked_shl(32 - u32::from(pool.prefix))?;
    Ipv4Net::new(Ipv4Addr::from(u32::from(pool.cidr.network()).checked_add(offset)?), pool.prefix).ok()
}

/// The number of the subnet that an address is in: of the first or the last for one before or behind the pool.
fn number_of(pool: &AddressPool, address: Ipv4Addr) -> u32 {
    let address = address.clamp(pool.cidr.network(), pool.cidr.broadcast());
    (u32::from(address) - u32::from(pool.cidr.network())) >> (32 - u32::from(pool.prefix))
}

/// The first number in the range whose subnet is free; what is taken is passed over as a whole.
fn first_free(pool: &AddressPool, numbers: Range<u32>, taken: &[Ipv4Net]) -> Option<u32> {
    let mut number = numbers.start;
    while number < numbers.end {
        let subnet = numbered(pool, number)?;
        match taken.iter().filter(|net| overlap(net, &subnet)).map(|net| number_of(pool, net.broadcast())).max() {
            Some(last) => number = last.max(number) + 1,
            None => return Some(number),
        }
    }
    None
}

/// Whether two subnets share an address.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Whether an address of a subnet is one that tasks can have.
pub fn is_given_out(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    let (address, base) = (u32::from(address), u32::from(subnet.network()));
    address.checked_sub(base).is_some_and(|offset| (2..=subnet_size(subnet) + 1).contains(&offset))
}

/// The next free address after `cursor` (an offset in the subnet), and the new cursor.
pub fn address(subnet: Ipv4Net, cursor: u32, is_free: impl Fn(u32) -> bool) -> Option<(Ipv4Addr, u32)> {
    let base = u32::from(subnet.network());
    let last = subnet_size(subnet) + 1;
    let first = if cursor < last { (cursor + 1).max(2) } else { 2 };
    let offset = (first..=last).chain(2..first).find(|offset| is_free(base + offset))?;
    Some((Ipv4Addr::from(base + offset), offset))
}

/// The pool with its cursor so many subnets further, or half of those that it has.
pub fn pool_ahead(pool: AddressPool, numbers: u32) -> AddressPool {
    let count = subnets(&pool).max(1);
    AddressPool { cursor: (pool.cursor % count + numbers.min(count / 2)) % count, ..pool }
}

/// A cursor of addresses half a subnet further.
pub fn ahead(subnet: Ipv4Net, cursor: u32) -> u32 {
    let size = subnet_size(subnet).max(1);
    (cursor.max(2) - 2 + size / 2) % size + 2
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_given_in_turn_until_none_is_left() {
        let subnet = net("10.128.3.0/29");
        let mut used = BTreeSet::new();
        let mut cursor = 0;
        let mut given = Vec::new();
        while let Some((ip, next)) = address(subnet, cursor, |ip| !used.contains(&ip)) {
            assert!(is_given_out(subnet, ip));
            used.insert(u32::from(ip));
            cursor = next;
            given.push(ip.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert_eq!(given.len(), subnet_size(subnet) as usize);
        assert!([0, 1, 7, 8].into_iter().all(|last| !is_given_out(subnet, Ipv4Addr::new(10, 128, 3, last))));
        used.remove(&u32::from(Ipv4Addr::new(10, 128, 3, 3)));
        used.remove(&u32::from(Ipv4Addr::new(10, 128, 3, 5)));
        let next = |cursor| address(subnet, cursor, |ip| !used.contains(&ip)).unwrap().1;
        assert_eq!(next(3), 5, "a freed address before the cursor rests");
        assert_eq!(next(6), 3, "the search wraps round");
    }

    #[test]
    fn subnets_are_given_in_turn_and_not_again_at_once() {
        let pool = AddressPool { cidr: net("10.200.0.0/20"), prefix: 22, cursor: 3 };
        assert_eq!(subnets(&pool), 4);
        let mut pools = vec![pool];
        let mut given = Vec::new();
        for _ in 0..6 {
            let (chosen, after) = subnet(&pools, &[]).unwrap();
            pools = after;
            given.push(chosen.to_string());
        }
        let [a, b, c, d] = ["10.200.0.0/22", "10.200.4.0/22", "10.200.8.0/22", "10.200.12.0/22"];
        assert_eq!(given, [a, b, c, d, a, b]);
    }

    #[test]
    fn what_is_taken_is_passed_over_and_counted_once() {
        let pools = [
            AddressPool { cidr: net("10.200.0.0/22"), prefix: 24, cursor: 3 },
            AddressPool { cidr: net("10.210.0.0/23"), prefix: 24, cursor: 1 },
        ];
        for (taken, chosen, counts) in [
            (vec![], Some("10.200.0.0/24"), [0, 0]),
            (vec!["10.200.0.7/32"], Some("10.200.1.0/24"), [1, 0]),
            (vec!["10.200.0.0/23", "10.200.1.0/24", "192.168.0.0/16"], Some("10.200.2.0/24"), [2, 0]),
            (vec!["10.0.0.0/9"], Some("10.200.0.0/24"), [0, 0]),
            (vec!["10.200.0.0/16"], Some("10.210.0.0/24"), [4, 0]),
            (vec!["10.128.0.0/9", "10.200.3.0/24"], None, [4, 2]),
        ] {
            let taken: Vec<Ipv4Net> = taken.into_iter().map(net).collect();
            let counted = pools.map(|pool| subnets_taken(&pool, &taken));
            assert_eq!(counted, counts, "{taken:?}");
            assert_eq!(subnet(&pools, &taken).map(|(subnet, _)| subnet.to_string()).as_deref(), chosen, "{taken:?}");
        }
    }

    #[test]
    fn a_cluster_from_before_there_were_cursors_goes_on_above_the_highest_subnet() {
        let next = |in_use: &[&str]| {
            let in_use: Vec<Ipv4Net> = in_use.iter().map(|subnet| net(subnet)).collect();
            subnet(&[first_pool(&in_use)], &in_use).unwrap().0.to_string()
        };
        assert_eq!(next(&[]), "10.128.0.0/24");
        assert_eq!(next(&["10.128.0.0/24", "10.128.4.0/24", "10.9.0.0/16"]), "10.128.5.0/24");
        assert_eq!(next(&["10.255.255.0/24"]), "10.128.0.0/24");
    }
}
