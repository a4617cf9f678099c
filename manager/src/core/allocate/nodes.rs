//! Nodes' numbers: small ones, for marks and addresses that have no room for an id. The next is sought after the last that was given, so
//! that one just freed rests.

use std::collections::BTreeSet;

use rcluster_api::cluster::Cluster;
use rcluster_api::object::Node;

use crate::core::state::State;

/// So many fit into the link-local addresses that are made of them.
const LAST: u32 = 8191;

/// The nodes that have no number yet, with one as far as there are any; and the cluster, if it has to remember what the last one was.
pub fn numbered(state: &State) -> (Vec<Node>, Option<Cluster>) {
    let made = state.cluster().map_or(0, |cluster| cluster.node_numbers_made);
    let mut used: BTreeSet<u32> = state.nodes().values().map(|node| node.number).collect();
    let mut last = made;
    let mut nodes = Vec::new();
    for node in state.nodes().values().filter(|node| node.number == 0) {
        let Some(number) = next(last, &used) else { break };
        used.insert(number);
        last = number;
        nodes.push(Node { number, ..(**node).clone() });
    }
    let moved = state.cluster().filter(|_| last != made);
    (nodes, moved.map(|cluster| Cluster { node_numbers_made: last, ..(**cluster).clone() }))
}

/// A number that no node has.
fn next(last: u32, used: &BTreeSet<u32>) -> Option<u32> {
    (last.saturating_add(1)..=LAST).chain(1..=LAST).find(|number| !used.contains(number))
}

/// The last number that was given, so many further.
pub fn ahead(last: u32, numbers: u32) -> u32 {
    (last % LAST + numbers) % LAST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_number_is_after_the_last_and_goes_round() {
        let used = BTreeSet::from([0, 1, 2, 4, LAST]);
        let cases = [(0, 3), (1, 3), (3, 5), (4, 5), (LAST, 3), (u32::MAX, 3)];
        for (last, expected) in cases {
            assert_eq!(next(last, &used), Some(expected), "after {last}");
        }
        assert_eq!(next(7, &(0..=LAST).collect()), None);
    }
}
