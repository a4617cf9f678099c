//! What the managers are told of the host's own routes, so that no network gets addresses that the host reaches elsewhere.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

/// Most that are told; of more the widest.
pub const ROUTES_MAX: usize = 256;

/// The routes that are to be told of those found: no default, nothing link-local (netd's own is), none within another.
pub fn told(found: impl IntoIterator<Item = Ipv4Net>) -> Vec<Ipv4Net> {
    let is_told = |route: &Ipv4Net| route.prefix_len() > 0 && !route.network().is_link_local();
    let found: BTreeSet<Ipv4Net> = found.into_iter().map(|route| route.trunc()).filter(is_told).collect();
    let mut widest: Vec<Ipv4Net> = Vec::new();
    // In order of their addresses, the wider of two that begin at the same one first.
    for route in found {
        if widest.last().is_none_or(|last| !last.contains(&route)) {
            widest.push(route);
        }
    }
    widest.sort_by_key(|route| (route.prefix_len(), route.network()));
    widest.truncate(ROUTES_MAX);
    widest.sort_unstable();
    widest
}

#[cfg(test)]
mod tests {
    use super::*;

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
