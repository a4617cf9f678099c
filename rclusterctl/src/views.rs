//! Objects as they are printed: the JSON views of `rcluster_api::rest`, one value for every form of output.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::object::{Kind, Object, Task};
use rcluster_api::resource::Millis;
use rcluster_api::rest::{ClusterJson, DataJson, EventJson, ManagerJson, NetworkJson, NodeJson, ServiceJson, TaskJson, UserJson};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;
use serde::Serialize;

use crate::error::CliError;
use crate::session::{Change, Session};

/// One object as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum View {
    Service(Box<ServiceJson>),
    Task(Box<TaskJson>),
    Node(Box<NodeJson>),
    Manager(ManagerNode),
    Network(Box<NetworkJson>),
    Event(EventJson),
    Data(Box<DataJson>),
    User(UserJson),
}

/// A manager among the nodes: the fields that nodes have too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManagerNode {
    pub id: String,
    pub name: String,
    /// ready or down.
    pub status: String,
    pub availability: String,
    /// manager.
    pub role: String,
    pub addr: String,
    pub labels: BTreeMap<String, String>,
    /// Whether it leads the others.
    pub leader: bool,
}

/// All objects that views of some kinds are made from.
#[derive(Debug, Default)]
pub struct Objects {
    objects: BTreeMap<(Kind, String), Object>,
}

impl Objects {
    /// Reads those of `kind` (with `name`, if one is given) and the tasks that their views count.
    pub async fn read(session: &mut Session, kind: Kind, name: &str) -> Result<Self, CliError> {
        let mut objects = Self::default();
        objects.put(session.list(kind, name, "").await?);
        if objects.objects.is_empty() && !name.is_empty() {
            return Err(CliError::refused(
                format!("there is no {} {name}", kind.as_str()),
                format!("see rclusterctl get {}s", kind.as_str()),
            ));
        }
        if Self::kinds_for(kind).contains(&Kind::Task) && kind != Kind::Task {
            objects.put(session.list(Kind::Task, "", "").await?);
        }
        Ok(objects)
    }

    /// The kinds to watch for views of `kind`.
    pub fn kinds_for(kind: Kind) -> &'static [Kind] {
        match kind {
            Kind::Service => &[Kind::Service, Kind::Task],
            Kind::Task => &[Kind::Task],
            Kind::Node => &[Kind::Node, Kind::Task],
            Kind::Network => &[Kind::Network, Kind::Task],
            Kind::Event => &[Kind::Event],
            Kind::Secret => &[Kind::Secret, Kind::Task],
            Kind::Config => &[Kind::Config, Kind::Task],
            Kind::User => &[Kind::User],
            Kind::Manager | Kind::Cluster => &[],
        }
    }

    fn put(&mut self, objects: Vec<Object>) {
        self.objects.extend(objects.into_iter().map(|object| ((object.kind(), object.id().to_owned()), object)));
    }

    /// Takes in a message of a watch.
    pub fn update(&mut self, change: Change) {
        if change.fresh {
            self.objects.clear();
        }
        self.put(change.puts);
        for key in change.deletes {
            self.objects.remove(&key);
        }
    }

    /// All tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> + Clone {
        self.objects.values().filter_map(|object| match object {
            Object::Task(task) => Some(&**task),
            Object::Service(_) | Object::Node(_) | Object::Network(_) | Object::Event(_) | Object::Data(_) => None,
            Object::Manager(_) | Object::Cluster(_) | Object::User(_) => None,
        })
    }

    /// The views of `kind` in the order in which they are shown.
    pub fn views(&self, kind: Kind) -> Vec<View> {
        let of_kind = self.objects.values().filter(|object| object.kind() == kind);
        let mut views: Vec<View> = of_kind.filter_map(|object| self.view(object)).collect();
        views.sort_by_cached_key(View::order);
        views
    }

    /// Managers are shown by their standing, see [`cluster`].
    fn view(&self, object: &Object) -> Option<View> {
        Some(match object {
            Object::Service(service) => View::Service(Box::new(ServiceJson::new(service, self.tasks()))),
            Object::Task(task) => View::Task(Box::new(TaskJson::from(&**task))),
            Object::Node(node) => View::Node(Box::new(NodeJson::new(node, self.tasks()))),
            Object::Network(network) => View::Network(Box::new(NetworkJson::new(network, self.tasks()))),
            Object::Event(event) => View::Event(EventJson::from(event)),
            Object::Data(data) => View::Data(Box::new(DataJson::from(data))),
            Object::User(user) => View::User(UserJson::from(user)),
            Object::Manager(_) | Object::Cluster(_) => return None,
        })
    }
}

impl View {
    /// The kind as `-o name` prints it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Task(_) => "task",
            Self::Node(_) => "node",
            Self::Manager(_) => "manager",
            Self::Network(_) => "network",
            Self::Event(_) => "event",
            Self::Data(data) if data.kind == "Secret" => "secret",
            Self::Data(_) => "config",
            Self::User(_) => "user",
        }
    }

    /// The task, if it is one.
    pub fn task(&self) -> Option<&TaskJson> {
        match self {
            Self::Task(task) => Some(task),
            Self::Service(_) | Self::Node(_) | Self::Manager(_) | Self::Network(_) | Self::Event(_) => None,
            Self::Data(_) | Self::User(_) => None,
        }
    }

    /// The name, or the id of what has none.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(view) => &view.name,
            Self::Task(view) => &view.name,
            Self::Node(view) => &view.name,
            Self::Manager(view) => &view.name,
            Self::Network(view) => &view.name,
            Self::Event(view) => &view.id,
            Self::Data(view) => &view.name,
            Self::User(view) => &view.name,
        }
    }

    /// Names sort by their numbers: web.2 before web.10. Tasks of one slot: the newest first. Events: the oldest first.
    fn order(&self) -> (String, u32, std::cmp::Reverse<String>, String) {
        let (group, number, newest, rest) = match self {
            Self::Service(view) => (&view.name, 0, "", ""),
            Self::Task(view) => (&view.service, view.slot, view.created.as_str(), view.node.as_str()),
            Self::Node(view) => (&view.name, 0, "", ""),
            Self::Manager(view) => (&view.name, 0, "", ""),
            Self::Network(view) => (&view.name, 0, "", ""),
            Self::Event(view) => (&view.time, 0, "", view.id.as_str()),
            Self::Data(view) => (&view.name, 0, "", ""),
            Self::User(view) => (&view.name, 0, "", ""),
        };
        let (word, digits) = match self {
            Self::Node(_) | Self::Manager(_) => {
                let word = group.trim_end_matches(|c: char| c.is_ascii_digit());
                (word, group[word.len()..].parse().unwrap_or(number))
            }
            Self::Service(_) | Self::Task(_) | Self::Network(_) | Self::Event(_) | Self::Data(_) | Self::User(_) => {
                (group.as_str(), number)
            }
        };
        (word.to_owned(), digits, std::cmp::Reverse(newest.to_owned()), rest.to_owned())
    }
}

/// The tasks that `ps` shows without being asked for the ended ones: those that have not ended, and the last of a slot that was to run and
/// has not been replaced. `tasks`: of one service after the other, the newest of a slot first.
pub fn present(tasks: Vec<View>) -> Vec<View> {
    fn slot(task: &TaskJson) -> (String, u32, String) {
        (task.service.clone(), task.slot, if task.slot == 0 { task.node.clone() } else { String::new() })
    }
    let filled: BTreeSet<_> = tasks.iter().filter_map(View::task).filter(|task| !task.state.is_terminal()).map(slot).collect();
    let mut seen = BTreeSet::new();
    let is_present = |task: &TaskJson, newest: bool| {
        !task.state.is_terminal() || (newest && task.desired_state <= TaskState::Running && !filled.contains(&slot(task)))
    };
    tasks.into_iter().filter(|view| view.task().is_some_and(|task| is_present(task, seen.insert(slot(task))))).collect()
}

/// The managers' standing as it is printed.
pub fn cluster(response: v1::ClusterResponse) -> ClusterJson {
    let v1::ClusterResponse { leader, term, committed, applied, revision, managers, answered_by, cluster_id, store } = response;
    let view = |manager: v1::ManagerStatus| {
        let v1::ManagerStatus { id: _, name, addr, role, reachable, matched, voter, object_id: _, write_us } = manager;
        // Only the leader knows how far the others are.
        let lag = if matched == 0 { 0 } else { committed.saturating_sub(matched) };
        ManagerJson { name, addr, role, reachable, matched, voter, lag, write_us }
    };
    let mut managers: Vec<ManagerJson> = managers.into_iter().map(view).collect();
    managers.sort_by(|a, b| a.name.cmp(&b.name));
    ClusterJson { cluster_id, leader, term, committed, applied, revision, answered_by, store, managers }
}

/// What is said of managers that are fewer than they look.
pub fn warning(cluster: &ClusterJson) -> Option<&'static str> {
    let voters = cluster.managers.iter().filter(|manager| manager.voter).count();
    // Those whose state is in an etcd do not vote: one is enough.
    (voters == 2 && cluster.store == "raft").then_some(
        "warning: two managers vote, and a majority of two is both: the loss of either stops all changes. Join a third, which makes one loss \
         harmless: rclusterctl cluster token manager",
    )
}

/// The managers as they stand among the nodes.
pub fn manager_nodes(cluster: &ClusterJson) -> Vec<View> {
    let view = |manager: &ManagerJson| {
        View::Manager(ManagerNode {
            id: String::new(),
            name: manager.name.clone(),
            status: if manager.reachable { "ready" } else { "down" }.to_owned(),
            availability: "active".to_owned(),
            role: "manager".to_owned(),
            addr: manager.addr.clone(),
            labels: BTreeMap::new(),
            leader: manager.name == cluster.leader,
        })
    };
    cluster.managers.iter().map(view).collect()
}

/// A moment as Unix milliseconds: a time (RFC 3339), or a span before `now_ms`.
pub fn since(text: &str, now_ms: u64) -> Result<u64, CliError> {
    if let Ok(span) = text.parse::<Millis>() {
        return Ok(now_ms.saturating_sub(span.0));
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        CliError::usage(format!("--since {text}: neither a time span nor a time"), "write it like 10m, or like 2026-11-21T10:00:00Z")
    })?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// Milliseconds from a view's time until `now_ms`; `None` when there is none.
pub fn age_ms(time: &str, now_ms: u64) -> Option<u64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(now_ms.saturating_sub(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_managers_that_vote_are_warned_of() {
        let manager = |voter: bool| ManagerJson {
            voter,
            ..serde_json::from_value(serde_json::json!({"name": "m", "addr": "", "role": "",
            "reachable": true, "matched": 1, "voter": voter, "lag": 0, "write_us": 0}))
            .unwrap()
        };
        let warned = |store: &str, voters: &[bool]| {
            let managers = voters.iter().map(|voter| manager(*voter)).collect();
            let cluster = ClusterJson {
                store: store.to_owned(),
                managers,
                cluster_id: "c".to_owned(),
                leader: "m".to_owned(),
                term: 1,
                committed: 1,
                applied: 1,
                revision: 1,
                answered_by: "m".to_owned(),
            };
            warning(&cluster).is_some()
        };
        assert!(warned("raft", &[true, true]) && warned("raft", &[true, false, true]));
        assert!(!warned("raft", &[true]) && !warned("raft", &[true, true, true]) && !warned("etcd://e:1/c", &[true, true]));
    }

    /// `ID SLOT STATE DESIRED CREATED` each.
    fn tasks(lines: &[&str]) -> Vec<View> {
        let task = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            View::Task(Box::new(TaskJson {
                id: words[0].to_owned(),
                name: format!("web.{}", words[1]),
                service: "web".to_owned(),
                stack: String::new(),
                slot: words[1].parse().unwrap(),
                node: "n1".to_owned(),
                state: words[2].parse().unwrap(),
                health: rcluster_api::health::Health::None,
                desired_state: words[3].parse().unwrap(),
                message: String::new(),
                since: String::new(),
                restarts: 0,
                networks: Vec::new(),
                images: Vec::new(),
                containers: Vec::new(),
                created: words[4].to_owned(),
                version: 1,
            }))
        };
        let mut tasks: Vec<View> = lines.iter().map(task).collect();
        tasks.sort_by_cached_key(View::order);
        tasks
    }

    #[test]
    fn ended_tasks_are_shown_only_where_nothing_took_their_place() {
        let tasks = tasks(&[
            "a 10 running running 5",
            "b 10 failed running 4",
            "c 2 failed running 4",
            "d 2 failed running 3",
            "e 3 shutdown shutdown 3",
            "f 4 running shutdown 3",
        ]);
        let shown: Vec<String> = present(tasks).iter().filter_map(View::task).map(|task| task.id.clone()).collect();
        assert_eq!(shown, ["c", "f", "a"]);
    }

    #[test]
    fn a_moment_is_a_span_ago_or_a_time() {
        assert_eq!(since("10s", 15_000), Ok(5_000));
        assert_eq!(since("1970-01-01T00:00:01Z", 0), Ok(1_000));
        assert_eq!(since("yesterday", 0).unwrap_err().exit_code(), 2);
    }
}
