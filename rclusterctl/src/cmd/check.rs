//! `check`: what is wrong with managers, nodes and their networks, as they tell it themselves.

use rcluster_api::object::{Kind, Node, NodeState, Object};
use rcluster_api::rest::ClusterJson;
use rcluster_api::wire::v1;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;
use crate::views;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Fault {
    /// A manager's, a node's or a pool's name.
    at: String,
    what: String,
}

/// `check`.
pub async fn check(mut session: Session, out: Out) -> Result<(), CliError> {
    let cluster = views::cluster(session.cluster().await?);
    let nodes: Vec<Node> = session.list(Kind::Node, "", "").await?.into_iter().filter_map(node).collect();
    let pools = session.call(|mut client| async move { client.update_pools(v1::UpdatePoolsRequest::default()).await }).await?.pools;
    let faults = faults(&cluster, &nodes, &pools);
    if out.is_table() {
        output::data(&faults.iter().map(|Fault { at, what }| format!("{at}: {what}\n")).collect::<String>())?;
    } else {
        out.value(&faults)?;
    }
    if faults.is_empty() {
        return output::talk(&format!("nothing is wrong with {} managers and {} nodes", cluster.managers.len(), nodes.len()));
    }
    let count = if faults.len() == 1 { "1 thing is".to_owned() } else { format!("{} things are", faults.len()) };
    Err(CliError::refused(format!("{count} wrong"), "rclusterctl audit compares what nodes hold with what is wanted"))
}

fn node(object: Object) -> Option<Node> {
    match object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}

fn faults(cluster: &ClusterJson, nodes: &[Node], pools: &[v1::PoolStatus]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut say = |at: &str, what: String| faults.push(Fault { at: at.to_owned(), what });
    for manager in cluster.managers.iter().filter(|manager| !manager.reachable) {
        say(&manager.name, format!("the manager at {} is not reached", manager.addr));
    }
    if let Some(warning) = views::warning(cluster) {
        say("managers", warning.trim_start_matches("warning: ").to_owned());
    }
    for node in nodes {
        match node.state {
            NodeState::Ready => {}
            NodeState::Suspect | NodeState::Down => {
                say(node.name(), format!("the node is {}{}", node.state.as_str(), because(&node.message)));
                continue;
            }
        }
        match &node.description.network {
            None => say(node.name(), "its netd has not told of its network: look whether rcluster-netd runs there".to_owned()),
            Some(network) => network.conditions.iter().for_each(|condition| say(node.name(), condition.clone())),
        }
    }
    for pool in pools.iter().filter(|pool| pool.free == 0) {
        say(&format!("pool {}", pool.cidr), "no subnet is free: rclusterctl network pool add CIDR adds another pool".to_owned());
    }
    faults
}

fn because(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests {
    use rcluster_api::network::NodeNetwork;
    use rcluster_api::object::{Availability, NodeDescription, Stamp};
    use rcluster_api::rest::ManagerJson;

    use super::*;

    #[test]
    fn faults_are_told_with_whose_they_are() {
        let manager = |name: &str, reachable: bool| ManagerJson {
            name: name.to_owned(),
            addr: format!("{name}:7443"),
            role: String::new(),
            reachable,
            matched: 1,
            voter: true,
            lag: 0,
            write_us: 0,
        };
        let cluster = ClusterJson {
            cluster_id: "c".to_owned(),
            leader: "m1".to_owned(),
            term: 1,
            committed: 1,
            applied: 1,
            revision: 1,
            answered_by: "m1".to_owned(),
            store: "raft".to_owned(),
            managers: vec![manager("m1", true), manager("m2", true), manager("m3", false)],
        };
        let node = |name: &str, state: NodeState, network: Option<NodeNetwork>| Node {
            id: name.into(),
            stamp: Stamp::default(),
            description: NodeDescription { name: name.to_owned(), network, ..NodeDescription::default() },
            availability: Availability::Active,
            labels: std::collections::BTreeMap::new(),
            state,
            message: "no beat for 3 s".to_owned(),
            since_ms: 0,
            incarnation: 1,
            number: 1,
        };
        let narrow = NodeNetwork { conditions: vec!["the path is narrow".to_owned()], ..NodeNetwork::default() };
        let nodes = [
            node("n1", NodeState::Ready, Some(NodeNetwork::default())),
            node("n2", NodeState::Down, Some(narrow.clone())),
            node("n3", NodeState::Ready, Some(narrow)),
            node("n4", NodeState::Ready, None),
        ];
        let pool = |cidr: &str, free| v1::PoolStatus { cidr: cidr.to_owned(), prefix: 24, subnets: 4, free };
        let found = faults(&cluster, &nodes, &[pool("10.128.0.0/9", 0), pool("10.64.0.0/22", 1)]);
        let lines: Vec<String> = found.iter().map(|Fault { at, what }| format!("{at}: {what}")).collect();
        assert_eq!(
            lines,
            [
                "m3: the manager at m3:7443 is not reached",
                "n2: the node is down: no beat for 3 s",
                "n3: the path is narrow",
                "n4: its netd has not told of its network: look whether rcluster-netd runs there",
                "pool 10.128.0.0/9: no subnet is free: rclusterctl network pool add CIDR adds another pool",
            ]
        );
    }
}
