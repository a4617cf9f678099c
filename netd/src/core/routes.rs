//! What the managers are told of the host's own routes, so that no network gets addresses that the host reaches elsewhere; and where pods get by
//! IPv6 through the host.

use std::collections::BTreeSet;

use ipnet::{Ipv4Net, Ipv6Net};

use super::uplink::OWN6;

/// Most that are told; of more the widest.
pub const ROUTES_MAX: usize = 256;

/// The routes that are to be told of those found: no default, nothing link-local (netd's own is), none within another.
pub fn told(found: impl IntoIterator<Item = Ipv4Net>) -> Vec<Ipv4Net> {
    let is_told = |route: &Ipv4Net| route.prefix_len() > 0 && !route.network().is_link_local();
    let found: BTreeSet<Ipv4Net> = found.into_iter().map(|route| route.trunc()).filter(is_told).collect();
    widest(found, Ipv4Net::prefix_len, |wide, narrow| wide.contains(narrow))
}

/// Where the host has ways to by IPv6, of those found: the default one and the others, none of these within another, nothing of a link or for many,
/// nothing of netd's own. Of very many the widest.
pub fn ways6(found: impl IntoIterator<Item = Ipv6Net>) -> Vec<Ipv6Net> {
    let is_way = |route: &Ipv6Net| {
        let first = route.network();
        let is_of_all = route.prefix_len() == 0;
        is_of_all || !(first.is_unicast_link_local() || first.is_multicast() || first.is_loopback() || OWN6.contains(route))
    };
    let found = found.into_iter().map(|route| route.trunc()).filter(is_way);
    let (default, others): (BTreeSet<Ipv6Net>, BTreeSet<Ipv6Net>) = found.partition(|route| route.prefix_len() == 0);
    default.into_iter().chain(widest(others, Ipv6Net::prefix_len, |wide, narrow| wide.contains(narrow))).collect()
}

/// Those of them, in order, that are within no other; of very many the widest.
fn widest<N: Copy + Ord>(found: BTreeSet<N>, length: fn(&N) -> u8, holds: fn(&N, &N) -> bool) -> Vec<N> {
    let mut widest: Vec<N> = Vec::new();
    // In order of their addresses, the wider of two that begin at the same one first.
    for route in found {
        if widest.last().is_none_or(|last| !holds(last, &route)) {
            widest.push(route);
        }
    }
    widest.sort_by_key(|route| (length(route), *route));
    widest.truncate(ROUTES_MAX);
    widest.sort_unstable();
    widest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_ipv6_are_the_default_one_and_the_widest_others() {
        let check = |found: &[&str], expected: &[&str]| {
            let ways = ways6(found.iter().map(|text| text.parse().unwrap()));
            assert_eq!(ways.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        };
        check(&["fe80::/64", "ff00::/8", "::1/128", "fd5c:7263::54:0/126"], &[]);
        check(&["::/0", "fe80::/64", "2001:db8::/32", "2001:db8:1::/48"], &["::/0", "2001:db8::/32"]);
        check(&["fd12::5/128", "fd12::/64", "2001:db8::1/128"], &["2001:db8::1/128", "fd12::/64"]);
        let many = (0..300_u128).map(|number| Ipv6Net::new((0x2001 << 112 | number << 64).into(), 64).unwrap());
        assert_eq!(ways6(many.chain(["fd00::/8".parse().unwrap()])).len(), ROUTES_MAX);
    }

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_lies_within_another_is_told_with_it() {
        let found = nets(&["0.0.0.0/0", "10.90.0.0/24", "10.90.0.7/32", "172.17.0.0/16", "10.0.0.0/8", "169.254.54.0/30", "10.90.0.0/16"]);
        assert_eq!(told(found), nets(&["10.0.0.0/8", "172.17.0.0/16"]));
    }

    #[test]
    fn of_very_many_the_widest_are_told() {
        let hosts = (0..300_u32).map(|number| Ipv4Net::new((0x0a00_0000 + number * 2).into(), 32).unwrap());
        let routes = told(hosts.chain(nets(&["192.168.0.0/16"])));
        assert_eq!((routes.len(), routes.last().map(ToString::to_string)), (ROUTES_MAX, Some("192.168.0.0/16".to_owned())));
    }
}
