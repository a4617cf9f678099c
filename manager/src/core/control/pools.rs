//! What subnets are chosen from. Pools are added, and neither change nor go: addresses of theirs are in use.

use ipnet::Ipv4Net;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::network::AddressPool;
use rcluster_api::object::{Kind, Object};
use rcluster_api::validate;

use crate::core::allocate;
use crate::core::members::cluster;
use crate::core::plan::{ChangeSet, Note};
use crate::core::state::State;

/// Pools of a cluster.
const POOLS_MAX: usize = 64;

/// All of them are pools from now on, behind those that there are, or none is.
pub(super) fn add(state: &State, more: &[(Ipv4Net, u8)]) -> Result<ChangeSet, ApiError> {
    let mut cluster = cluster(state)?.clone();
    let mut pools = allocate::pools(state);
    // First: each of them is compared with all that there is.
    let count = pools.len() + more.len();
    if count > POOLS_MAX {
        let message = format!("{count} pools are more than the limit of {POOLS_MAX}");
        return Err(ApiError::new(ErrorCode::Invalid, message).field("add").hint("add fewer and wider ones"));
    }
    let mut notes = Vec::new();
    for (index, (cidr, prefix)) in more.iter().enumerate() {
        check(state, &pools, *cidr, *prefix).map_err(|(field, message, hint)| {
            ApiError::new(ErrorCode::Invalid, message).field(format!("add[{index}].{field}")).hint(hint)
        })?;
        // The search begins at the first of them.
        let pool = AddressPool { cidr: *cidr, prefix: *prefix, cursor: 0 };
        let last = allocate::subnet_count(&pool).saturating_sub(1);
        pools.push(AddressPool { cursor: last, ..pool });
        notes.push(Note {
            kind: Kind::Cluster,
            object_id: rcluster_api::cluster::CLUSTER.to_owned(),
            object: "address pools".to_owned(),
            reason: "PoolAdded",
            message: format!("subnets of /{prefix} are chosen from {cidr} too"),
        });
    }
    cluster.pools = pools;
    Ok(ChangeSet { puts: vec![Object::Cluster(Box::new(cluster))], notes, ..ChangeSet::default() })
}

/// The field that is to blame, why, and what mends it.
fn check(state: &State, pools: &[AddressPool], cidr: Ipv4Net, prefix: u8) -> Result<(), (&'static str, String, &'static str)> {
    const ANOTHER: &str = "choose another range; rclusterctl network pool ls shows the pools, get node NAME -o json a node's routes";
    if cidr.trunc() != cidr {
        return Err(("cidr", format!("{cidr} has host bits set"), "write the first address of the range"));
    }
    if !AddressPool::PREFIXES.contains(&prefix) || prefix < cidr.prefix_len() {
        let message = format!("subnets of /{prefix} cannot be chosen from {cidr}");
        return Err(("prefix", message, "choose a prefix from 16 to 29 that is not shorter than the pool's own"));
    }
    let reserved = validate::not_for_pods(cidr);
    let pool = pools.iter().find(|pool| allocate::overlap(&pool.cidr, &cidr));
    let why = match (reserved, pool) {
        (Some((range, what)), _) => Some(format!("overlaps {range}, which is {what}")),
        (None, Some(pool)) => Some(format!("overlaps pool {}", pool.cidr)),
        (None, None) => allocate::network_across(state, cidr)
            .map(|(network, subnet)| format!("overlaps {subnet} of network {network}"))
            .or_else(|| allocate::collision(state, cidr)),
    };
    why.map_or(Ok(()), |why| Err(("cidr", format!("pool {cidr} {why}"), ANOTHER)))
}

#[cfg(test)]
mod tests {
    use rcluster_api::cluster::Cluster;
    use rcluster_api::network::NodeNetwork;
    use rcluster_api::object::{Network, Node, NodeDescription};
    use rcluster_api::spec::NetworkSpec;

    use super::*;
    use crate::core::state::Draft;

    /// A network with a subnet of its own, and a node with a route.
    fn state(pools: Vec<AddressPool>) -> State {
        let mut draft = Draft::new(State::new("c".into()), 1);
        draft.put(Object::Cluster(Box::new(Cluster { pools, ..Cluster::default() })));
        let subnet = Some("10.77.0.0/24".parse().unwrap());
        let spec = NetworkSpec { name: "lab".to_owned(), subnet, ..NetworkSpec::default() };
        let network = Network { vni: Some(4096), subnet, ..Network::new("net".into(), spec) };
        draft.put(Object::Network(network));
        let network = NodeNetwork { routes: vec!["172.16.0.0/12".parse().unwrap()], ..NodeNetwork::default() };
        let description =
            NodeDescription { name: "n1".to_owned(), addr: "10.90.0.101".to_owned(), network: Some(network), ..NodeDescription::default() };
        draft.put(Object::Node(Node { number: 1, ..Node::new("n1".into(), description, 1, 0) }));
        draft.state().clone()
    }

    fn added(state: &State, more: &[(&str, u8)]) -> Result<Vec<AddressPool>, String> {
        let more: Vec<(Ipv4Net, u8)> = more.iter().map(|(cidr, prefix)| (cidr.parse().unwrap(), *prefix)).collect();
        let changes = add(state, &more).map_err(|refusal| refusal.to_string())?;
        assert_eq!(changes.notes.len(), more.len());
        match &changes.puts[..] {
            [Object::Cluster(cluster)] => Ok(cluster.pools.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pools_come_behind_those_that_there_are() {
        let pools = added(&state(Vec::new()), &[("10.200.0.0/16", 24), ("192.168.0.0/20", 28)]);
        assert!(pools.is_err(), "the pool of old holds the first: {pools:?}");
        let mut pools = added(&state(Vec::new()), &[("192.168.0.0/20", 28)]).unwrap();
        let words = |pools: &[AddressPool]| pools.iter().map(|pool| format!("{} by /{}", pool.cidr, pool.prefix)).collect::<Vec<_>>();
        assert_eq!(words(&pools), ["10.128.0.0/9 by /24", "192.168.0.0/20 by /28"]);
        pools = added(&state(pools), &[("192.0.2.0/26", 26)]).unwrap();
        assert_eq!(words(&pools), ["10.128.0.0/9 by /24", "192.168.0.0/20 by /28", "192.0.2.0/26 by /26"]);
        assert_eq!(pools.iter().map(|pool| pool.cursor).collect::<Vec<_>>(), [(1 << 15) - 1, 255, 0]);
    }

    #[test]
    fn what_others_have_is_refused_by_name() {
        let state = state(Vec::new());
        for (cidr, prefix, expected) in [
            ("192.168.0.9/20", 24, "add[0].cidr: 192.168.0.9/20 has host bits set"),
            ("192.168.0.0/26", 24, "add[0].prefix: subnets of /24 cannot be chosen from 192.168.0.0/26"),
            ("192.168.0.0/20", 30, "add[0].prefix: subnets of /30 cannot be chosen from 192.168.0.0/20"),
            ("169.254.54.0/24", 24, "add[0].cidr: pool 169.254.54.0/24 overlaps 169.254.0.0/16, which is link-local"),
            ("10.128.0.0/16", 24, "add[0].cidr: pool 10.128.0.0/16 overlaps pool 10.128.0.0/9"),
            ("10.77.0.0/16", 24, "add[0].cidr: pool 10.77.0.0/16 overlaps 10.77.0.0/24 of network lab"),
            ("10.90.0.0/16", 24, "add[0].cidr: pool 10.90.0.0/16 holds the address 10.90.0.101 of node n1"),
            ("172.17.0.0/16", 24, "add[0].cidr: pool 172.17.0.0/16 overlaps route 172.16.0.0/12 of node n1"),
        ] {
            let refused = added(&state, &[(cidr, prefix)]).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
        let refused = added(&state, &[("192.168.0.0/20", 24), ("192.168.8.0/24", 24)]).unwrap_err();
        assert!(refused.starts_with("add[1].cidr: pool 192.168.8.0/24 overlaps pool 192.168.0.0/20"), "{refused}");
        let many: Vec<String> = (0..64).map(|third| format!("192.168.{third}.0/24")).collect();
        let many: Vec<(&str, u8)> = many.iter().map(|cidr| (cidr.as_str(), 24)).collect();
        assert!(added(&state, &many).unwrap_err().starts_with("add: 65 pools are more than the limit of 64"));
        let wrong: Vec<(&str, u8)> = vec![("192.168.0.9/20", 24); 64];
        assert!(added(&state, &wrong).unwrap_err().starts_with("add: 65 pools are more than the limit of 64"), "they are not looked at");
    }
}
