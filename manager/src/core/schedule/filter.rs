//! What a node must be for a task to be put on it. A filter checks, and says in words why nodes failed it.

use rcluster_api::network::NodePort;
use rcluster_api::object::{Availability, Node, NodeState, Task};
use rcluster_api::resource::{Bytes, Cpus};
use rcluster_api::spec::{ConstraintKey, Placement};

use super::room::Room;

/// Most nodes that are named with what is in the way there.
const NAMED_MAX: usize = 3;

/// Why a node cannot take a task; nodes are grouped by it for the user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    Down,
    Suspect,
    Paused,
    Drained,
    Constraint(String),
    /// The node's policy does not grant what the task asks of the host.
    Policy(String),
    /// Its host reaches a network's addresses by a route of its own.
    Overlap(String),
    /// Someone has a port of the node that the task is to have there (`mode: host`).
    Port(NodePort),
    Memory,
    Cpus,
    MaxPerNode(u32),
    /// A task of a global service belongs on another node.
    OtherNode,
}

/// Whether every constraint holds on a node.
pub fn constraints_hold(placement: &Placement, node: &Node) -> bool {
    failed_constraint(placement, node).is_none()
}

fn failed_constraint(placement: &Placement, node: &Node) -> Option<String> {
    let holds = |key: &ConstraintKey, value: &str| match key {
        ConstraintKey::Id => node.id.as_str() == value,
        ConstraintKey::Name => node.name() == value,
        ConstraintKey::Role => value == "agent",
        ConstraintKey::Label(label) => node.label(label) == Some(value),
    };
    placement.constraints.iter().find(|constraint| holds(&constraint.key, &constraint.value) != constraint.equal).map(ToString::to_string)
}

/// The first reason why `room` cannot take `task`, which is to have `ports` of its node.
pub fn check(task: &Task, ports: &[NodePort], room: &Room<'_>) -> Result<(), Refusal> {
    let node = room.node;
    if task.node_id.as_ref().is_some_and(|id| *id != node.id) {
        return Err(Refusal::OtherNode);
    }
    match node.state {
        NodeState::Down => return Err(Refusal::Down),
        NodeState::Suspect => return Err(Refusal::Suspect),
        NodeState::Ready => {}
    }
    match node.availability {
        Availability::Drain => return Err(Refusal::Drained),
        Availability::Pause => return Err(Refusal::Paused),
        Availability::Active => {}
    }
    if let Some(constraint) = failed_constraint(&task.template.placement, node) {
        return Err(Refusal::Constraint(constraint));
    }
    if let Some(refusal) = node.description.policy.refusal(&task.template) {
        return Err(Refusal::Policy(refusal));
    }
    if let Some(overlap) = task.template.networks.iter().find_map(|attachment| room.crossed.get(&attachment.network)) {
        return Err(Refusal::Overlap(overlap.clone()));
    }
    if let Some(most) = task.template.placement.max_per_node
        && room.tasks_of(&task.service_id) >= most as usize
    {
        return Err(Refusal::MaxPerNode(most));
    }
    if let Some(port) = ports.iter().find(|port| room.ports.contains_key(*port)) {
        return Err(Refusal::Port(*port));
    }
    let needed = task.reserved();
    if needed.memory > room.free.memory {
        return Err(Refusal::Memory);
    }
    if needed.cpus > room.free.cpus {
        return Err(Refusal::Cpus);
    }
    Ok(())
}

/// "0/3 nodes fit web.4: 3 lack memory (need 64 GiB, best has 7.1 GiB free)".
pub fn explain(task: &Task, refused: &[(Refusal, &Room<'_>)]) -> String {
    let mut reasons: std::collections::BTreeMap<&Refusal, Vec<&Room<'_>>> = std::collections::BTreeMap::new();
    let counted = refused.iter().filter(|(refusal, _)| *refusal != Refusal::OtherNode);
    let total = counted.clone().count();
    if total == 0 {
        return format!("no node fits {}: the cluster has no agents yet", task.name);
    }
    for (refusal, room) in counted {
        reasons.entry(refusal).or_default().push(room);
    }
    let needed = task.reserved();
    let words = reasons.into_iter().map(|(refusal, rooms)| {
        let count = rooms.len();
        match refusal {
            Refusal::Down => format!("{count} down"),
            Refusal::Suspect => format!("{count} not answering"),
            Refusal::Paused => format!("{count} paused"),
            Refusal::Drained => format!("{count} drained"),
            Refusal::Constraint(constraint) => format!("{count} {} {constraint}", if count == 1 { "fails" } else { "fail" }),
            Refusal::Policy(refusal) => format!("{count} {} not {refusal}", if count == 1 { "does" } else { "do" }),
            Refusal::Overlap(overlap) => format!("{count} {} route {overlap}", if count == 1 { "has" } else { "have" }),
            Refusal::Port(port) => format!("{count} {} {port} taken ({})", if count == 1 { "has" } else { "have" }, holders(*port, &rooms)),
            Refusal::Memory => {
                let best = rooms.iter().map(|room| room.free.memory).max().unwrap_or(Bytes(0));
                format!("{count} {} memory (need {}, best has {} free)", lack(count), needed.memory.human(), best.human())
            }
            Refusal::Cpus => {
                let best = rooms.iter().map(|room| room.free.cpus).max().unwrap_or(Cpus(0));
                format!("{count} {} CPU (need {}, best has {best} free)", lack(count), needed.cpus)
            }
            Refusal::MaxPerNode(most) => format!("{count} already {} {most} (max_per_node)", if count == 1 { "has" } else { "have" }),
            Refusal::OtherNode => String::new(),
        }
    });
    format!("0/{total} nodes fit {}: {}", task.name, words.collect::<Vec<_>>().join(", "))
}

/// "n1: nginx (pid 812), n2: web.3".
fn holders(port: NodePort, rooms: &[&Room<'_>]) -> String {
    let mut by_name: Vec<(&str, &str)> =
        rooms.iter().map(|room| (room.node.name(), room.ports.get(&port).map_or("", String::as_str))).collect();
    by_name.sort_unstable();
    let mut named: Vec<String> = by_name.iter().take(NAMED_MAX).map(|(node, holder)| format!("{node}: {holder}")).collect();
    let more = rooms.len() - named.len();
    named.extend((more > 0).then(|| format!("and {more} more")));
    named.join(", ")
}

fn lack(count: usize) -> &'static str {
    if count == 1 { "lacks" } else { "lack" }
}
