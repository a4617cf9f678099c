//! `check`: what is wrong with managers, nodes and their networks, as they tell it themselves.

use rcluster_api::network::{NodeNetwork, Port};
use rcluster_api::object::{Kind, Node, NodeState, Object, Service, Task};
use rcluster_api::rest::ClusterJson;
use rcluster_api::wire::v1;
use serde::Serialize;

use super::network::pools;
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
    let mut told = Told::default();
    let whole = ask(&mut session, &mut told).await;
    let mut faults = faults(&cluster, &told);
    // Without a leader, say, what they tell on their own is worth the more.
    faults
        .extend(whole.err().map(|error| Fault { at: "managers".to_owned(), what: format!("they do not tell all that is asked: {error}") }));
    if out.is_table() {
        output::data(&faults.iter().map(|Fault { at, what }| format!("{at}: {what}\n")).collect::<String>())?;
    } else {
        out.value(&faults)?;
    }
    if faults.is_empty() {
        return output::talk(&format!("nothing is wrong with {} managers and {} nodes", cluster.managers.len(), told.nodes.len()));
    }
    let count = if faults.len() == 1 { "1 thing is".to_owned() } else { format!("{} things are", faults.len()) };
    Err(CliError::refused(format!("{count} wrong"), "rclusterctl audit compares what nodes hold with what is wanted"))
}

/// What the managers tell of the cluster.
#[derive(Debug, Default)]
struct Told {
    nodes: Vec<Node>,
    services: Vec<Service>,
    tasks: Vec<Task>,
    pools: Vec<v1::PoolStatus>,
}

/// Gathers it, as far as it is told.
async fn ask(session: &mut Session, told: &mut Told) -> Result<(), CliError> {
    for kind in [Kind::Node, Kind::Service, Kind::Task] {
        for object in session.list(kind, "", "").await? {
            match object {
                Object::Node(node) => told.nodes.push(node),
                Object::Service(service) => told.services.push(service),
                Object::Task(task) => told.tasks.push(*task),
                _ => {}
            }
        }
    }
    told.pools = pools(session, Vec::new()).await?;
    Ok(())
}

fn faults(cluster: &ClusterJson, told: &Told) -> Vec<Fault> {
    let Told { nodes, services, tasks, pools } = told;
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
            Some(network) => {
                network.conditions.iter().for_each(|condition| say(node.name(), condition.clone()));
                withheld(node, network, services, tasks).into_iter().for_each(|what| say(node.name(), what));
            }
        }
    }
    for pool in pools.iter().filter(|pool| pool.free == 0) {
        say(&format!("pool {}", pool.cidr), "no subnet is free: rclusterctl network pool add CIDR adds another pool".to_owned());
    }
    faults
}

/// The ports that services publish at a node and that programs of its host have.
fn withheld(node: &Node, network: &NodeNetwork, services: &[Service], tasks: &[Task]) -> Vec<String> {
    let mut said = Vec::new();
    for service in services {
        let runs_here =
            || tasks.iter().any(|task| task.service_id == service.id && task.node_id.as_ref() == Some(&node.id) && task.may_run());
        let ports = service.spec.ports.iter().flat_map(Port::node_ports);
        for (port, _) in ports.filter(|(_, of_tasks)| !of_tasks || runs_here()) {
            let held = network.held().find(|(held, _)| *held == port);
            said.extend(held.map(|(_, by)| format!("{port} is held by {by}: it is not opened for service {}", service.spec.name)));
        }
    }
    said
}

fn because(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests {
    use rcluster_api::network::{HeldPort, Protocol};
    use rcluster_api::object::{Availability, NodeDescription, Stamp};
    use rcluster_api::rest::ManagerJson;
    use rcluster_api::spec::ServiceSpec;

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
        let held = |port| HeldPort { protocol: Protocol::Tcp, port, by: "nginx (pid 812)".to_owned() };
        let holds = NodeNetwork { held_ports: vec![held(79), held(80), held(81)], ..NodeNetwork::default() };
        let spec = serde_json::json!({"containers": [{"image": "a"}], "networks": ["lab"],
            "ports": ["80:80", {"target": 80, "published": 81, "mode": "host"}]});
        let spec = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
        let service = Service { id: "web".into(), stamp: Stamp::default(), spec, spec_version: 1, removing: false, vips: Vec::new() };
        let nodes = [
            node("n1", NodeState::Ready, Some(holds)),
            node("n2", NodeState::Down, Some(narrow.clone())),
            node("n3", NodeState::Ready, Some(narrow)),
            node("n4", NodeState::Ready, None),
        ];
        let pool = |cidr: &str, free| v1::PoolStatus { cidr: cidr.to_owned(), prefix: 24, subnets: 4, free };
        let pools = vec![pool("10.128.0.0/9", 0), pool("10.64.0.0/22", 1)];
        let told = Told { nodes: nodes.to_vec(), services: vec![service], tasks: Vec::new(), pools };
        let found = faults(&cluster, &told);
        let lines: Vec<String> = found.iter().map(|Fault { at, what }| format!("{at}: {what}")).collect();
        assert_eq!(
            lines,
            [
                "m3: the manager at m3:7443 is not reached",
                "n1: tcp port 80 is held by nginx (pid 812): it is not opened for service web",
                "n2: the node is down: no beat for 3 s",
                "n3: the path is narrow",
                "n4: its netd has not told of its network: look whether rcluster-netd runs there",
                "pool 10.128.0.0/9: no subnet is free: rclusterctl network pool add CIDR adds another pool",
            ]
        );
    }
}
