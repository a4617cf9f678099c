//! Follows a rollout: from pictures of services, tasks and nodes to a verdict.
//!
//! In: a [`Picture`] kept up to date by its owner, and the time. Out: converged, failed with the task to blame, or what is still awaited and
//! when to look again. Never reads a clock and never talks to anyone.
//!
//! Converged means: for each service exactly the wanted tasks are live, all made from its current template, and all run and are healthy; a task that
//! started since the deploy has run for [`SETTLE_MS`], and one whose slot has failed for [`SETTLE_AFTER_FAILURE_MS`].
//! Failed means: a slot's tasks ended [`FAILURES_MAX`] times, or as often as the restart policy allows.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::health::Health;
use rcluster_api::object::{Availability, Kind, Node, NodeState, Object, Service, Task};
use rcluster_api::spec::{ConstraintKey, Mode, RestartCondition};
use rcluster_api::task::TaskState;

/// How long a new task must run before it counts: a program that ends at once has ended by then.
pub const SETTLE_MS: u64 = 500;
/// The same for a slot that has failed since the deploy.
pub const SETTLE_AFTER_FAILURE_MS: u64 = 3_000;
/// So many ends of one slot's tasks fail the rollout.
pub const FAILURES_MAX: usize = 3;

/// The objects of the cluster as a watch stream tells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    pub revision: u64,
    pub services: BTreeMap<String, Service>,
    pub tasks: BTreeMap<String, Task>,
    pub nodes: BTreeMap<String, Node>,
}

impl Picture {
    /// Takes in one message of a watch stream: what was put, and what was deleted by kind and id.
    pub fn update(&mut self, revision: u64, puts: impl IntoIterator<Item = Object>, deletes: impl IntoIterator<Item = (Kind, String)>) {
        self.revision = self.revision.max(revision);
        for object in puts {
            let id = object.id().to_owned();
            match object {
                Object::Service(service) => drop(self.services.insert(id, service)),
                Object::Task(task) => drop(self.tasks.insert(id, *task)),
                Object::Node(node) => drop(self.nodes.insert(id, node)),
                Object::Network(_) | Object::Event(_) | Object::Data(_) => {}
                Object::Manager(_) | Object::Cluster(_) | Object::User(_) => {}
            }
        }
        for (kind, id) in deletes {
            match kind {
                Kind::Service => drop(self.services.remove(&id)),
                Kind::Task => drop(self.tasks.remove(&id)),
                Kind::Node => drop(self.nodes.remove(&id)),
                Kind::Network | Kind::Event | Kind::Secret | Kind::Config => {}
                Kind::Manager | Kind::Cluster | Kind::User => {}
            }
        }
    }
}

/// A picture by the names of services: each is then asked for what is its own alone, however many there are.
struct ByService<'a>(BTreeMap<&'a str, Part<'a>>);

struct Part<'a> {
    service: &'a Service,
    /// In the order of their ids.
    tasks: Vec<&'a Task>,
}

impl<'a> ByService<'a> {
    fn of(picture: &'a Picture) -> Self {
        let mut tasks: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in picture.tasks.values() {
            tasks.entry(task.service_id.as_str()).or_default().push(task);
        }
        let part = |service: &'a Service| Part { service, tasks: tasks.remove(service.id.as_str()).unwrap_or_default() };
        Self(picture.services.values().map(part).map(|part| (part.service.spec.name.as_str(), part)).collect())
    }

    fn get(&self, name: &str) -> Option<&Part<'a>> {
        self.0.get(name)
    }
}

/// The task to blame for a failed rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    pub service: String,
    pub task: String,
    pub task_id: String,
    pub node: String,
    pub reason: String,
}

/// How a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Converged,
    /// Look again after the next change, and at this time if one is given.
    Progress {
        wake_at_ms: Option<u64>,
    },
    Failed(Blame),
    /// A service of the rollout was removed by someone.
    Gone {
        service: String,
    },
}

/// One task of a rollout as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskLine {
    pub service: String,
    /// With the slot as a number, so that web.10 comes after web.9.
    pub slot: u32,
    pub name: String,
    pub node: String,
    pub state: TaskState,
    pub message: String,
    /// Runs, and no check of its health says otherwise.
    pub serves: bool,
    /// Made from an older template, and still to be replaced.
    pub old: bool,
}

/// How many tasks of a service run, of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub service: String,
    pub running: usize,
    pub wanted: usize,
    /// Still running, to be stopped or replaced.
    pub leaving: usize,
    /// Exactly the wanted tasks are there, and run.
    pub complete: bool,
}

impl Tally {
    /// Whether tasks are still to start, or to stop.
    pub fn is_behind(&self) -> bool {
        !self.complete || self.leaving > 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    service: String,
    slot: u32,
    /// Tells global tasks apart, which all have slot 0.
    node: String,
}

impl Slot {
    fn of(task: &Task) -> Self {
        let node = if task.slot == 0 { task.node.clone() } else { String::new() };
        Self { service: task.service.clone(), slot: task.slot, node }
    }
}

/// A rollout that is being followed.
#[derive(Debug, Clone)]
pub struct Rollout {
    services: BTreeSet<String>,
    /// Of the transaction that began it: what is older is history.
    revision: u64,
    running_since: BTreeMap<String, u64>,
    /// Ended tasks of each slot, kept because the managers forget old ones.
    ends: BTreeMap<Slot, BTreeMap<String, u64>>,
}

impl Rollout {
    /// Follows `services` since the transaction `revision`.
    pub fn new(services: impl IntoIterator<Item = String>, revision: u64) -> Self {
        Self { services: services.into_iter().collect(), revision, running_since: BTreeMap::new(), ends: BTreeMap::new() }
    }

    /// Judges the picture at `now_ms`, by any clock that rises.
    pub fn observe(&mut self, picture: &Picture, now_ms: u64) -> Verdict {
        if picture.revision < self.revision {
            return Verdict::Progress { wake_at_ms: None };
        }
        let mut wake_at_ms: Option<u64> = None;
        let mut converged = true;
        let parts = ByService::of(picture);
        for name in self.services.clone() {
            let Some(part) = parts.get(&name).filter(|part| !part.service.removing) else {
                return Verdict::Gone { service: name };
            };
            if let Some(blame) = self.note_ends(part) {
                return Verdict::Failed(blame);
            }
            let settled_at = self.settled_at(part, now_ms);
            let standing = standing(picture, part);
            converged &= standing.is_complete() && settled_at <= now_ms;
            if settled_at > now_ms {
                wake_at_ms = Some(wake_at_ms.map_or(settled_at, |wake| wake.min(settled_at)));
            }
        }
        if converged { Verdict::Converged } else { Verdict::Progress { wake_at_ms } }
    }

    /// Counts the ends of tasks since the deploy; the task to blame when a slot has used up its tries.
    fn note_ends(&mut self, Part { service, tasks }: &Part<'_>) -> Option<Blame> {
        let current = |task: &&Task| task.spec_version == service.spec_version && task.stamp.version > self.revision;
        let mut blame: Option<(u64, Blame)> = None;
        for task in tasks.iter().copied().filter(current).filter(|task| ended_by_itself(task)) {
            let ends = self.ends.entry(Slot::of(task)).or_default();
            ends.insert(task.id.to_string(), service.spec_version);
            let count = ends.values().filter(|version| **version == service.spec_version).count();
            let worse = blame.as_ref().is_none_or(|(since, _)| task.status.since_ms >= *since);
            if count >= tries(service, task) && worse {
                blame = Some((task.status.since_ms, blame_of(task, count)));
            }
        }
        blame.map(|(_, blame)| blame)
    }

    /// When the last of the service's running tasks has run long enough.
    fn settled_at(&mut self, part: &Part<'_>, now_ms: u64) -> u64 {
        let mut settled = 0;
        for task in part.tasks.iter().filter(|task| task.serves()) {
            let since = *self.running_since.entry(task.id.to_string()).or_insert(now_ms);
            let settle = match self.ends.get(&Slot::of(task)) {
                Some(_) => SETTLE_AFTER_FAILURE_MS,
                None if task.stamp.version > self.revision => SETTLE_MS,
                None => 0,
            };
            settled = settled.max(since + settle);
        }
        settled
    }

    /// The tasks to show: those that are wanted, and those that are still leaving.
    pub fn lines(&self, picture: &Picture) -> Vec<TaskLine> {
        let mut lines: Vec<TaskLine> = Vec::new();
        let parts = ByService::of(picture);
        for Part { service, tasks } in self.services.iter().filter_map(|name| parts.get(name)) {
            let shown = tasks.iter().filter(|task| task.is_live());
            lines.extend(shown.map(|task| TaskLine {
                service: task.service.clone(),
                slot: task.slot,
                name: task.name.clone(),
                node: task.node.clone(),
                state: task.status.state,
                message: match task.health() {
                    Health::Starting if task.status.state == TaskState::Running => "no check of its health has succeeded yet".to_owned(),
                    _ => task.status.message.clone(),
                },
                serves: task.serves(),
                old: task.spec_version != service.spec_version,
            }));
        }
        lines.sort();
        lines
    }

    /// Where each service stands.
    pub fn tallies(&self, picture: &Picture) -> Vec<Tally> {
        let parts = ByService::of(picture);
        self.services.iter().filter_map(|name| parts.get(name)).map(|part| standing(picture, part).tally(part.service)).collect()
    }
}

/// Ended though it was to run; a lost node's tasks are `orphaned` and not to blame.
fn ended_by_itself(task: &Task) -> bool {
    task.is_wanted() && matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// How many ends of a slot fail the rollout.
fn tries(service: &Service, task: &Task) -> usize {
    let restart = service.spec.restart;
    let allowed = match restart.condition {
        RestartCondition::None => 1,
        RestartCondition::OnFailure if task.status.state == TaskState::Complete => 1,
        RestartCondition::OnFailure | RestartCondition::Any => {
            restart.max_attempts.map_or(FAILURES_MAX, |attempts| usize::try_from(attempts).unwrap_or(usize::MAX).saturating_add(1))
        }
    };
    allowed.min(FAILURES_MAX)
}

fn blame_of(task: &Task, count: usize) -> Blame {
    let times = if count > 1 { format!(", {count} times") } else { String::new() };
    let message = if task.status.message.is_empty() { exit_reason(task) } else { task.status.message.clone() };
    Blame {
        service: task.service.clone(),
        task: task.name.clone(),
        task_id: task.id.to_string(),
        node: task.node.clone(),
        reason: format!("{}{times}: {message}", task.status.state),
    }
}

fn exit_reason(task: &Task) -> String {
    let ended = task.status.containers.iter().find_map(|container| container.exit_code.map(|code| (container, code)));
    match ended {
        Some((container, _)) if container.oom_killed => format!("container {} ran out of memory", container.name),
        Some((container, code)) => format!("container {} ended with exit code {code}", container.name),
        None => "no reason was given".to_owned(),
    }
}

/// What there is of a service against what is wanted.
struct Standing {
    wanted: usize,
    live: usize,
    running: usize,
    old: usize,
    leaving: usize,
    /// Global services: every node that fits has its task.
    covered: bool,
}

impl Standing {
    fn is_complete(&self) -> bool {
        self.covered && self.old == 0 && self.live == self.wanted && self.running == self.wanted
    }

    fn tally(&self, service: &Service) -> Tally {
        Tally {
            service: service.spec.name.clone(),
            running: self.running.saturating_sub(self.old),
            wanted: self.wanted,
            leaving: self.leaving + self.old,
            complete: self.is_complete(),
        }
    }
}

fn standing(picture: &Picture, Part { service, tasks }: &Part<'_>) -> Standing {
    let live: Vec<&Task> = tasks.iter().copied().filter(|task| task.is_live()).collect();
    let is_current = |task: &&&Task| task.spec_version == service.spec_version;
    let running = live.iter().filter(|task| task.serves()).count();
    let (wanted, covered) = match service.spec.mode {
        Mode::Replicated => (service.spec.replicas() as usize, true),
        Mode::Global => {
            let fitting: Vec<&Node> = picture.nodes.values().filter(|node| fits(node, service)).collect();
            let has_task = |node: &Node| live.iter().filter(is_current).any(|task| task.node_id.as_ref() == Some(&node.id));
            (live.len().max(fitting.len()), fitting.iter().all(|node| has_task(node)))
        }
    };
    Standing {
        wanted,
        live: live.len(),
        running,
        old: live.iter().filter(|task| !is_current(task)).count(),
        leaving: tasks.iter().filter(|task| !task.is_wanted() && task.may_run()).count(),
        covered,
    }
}

/// Whether a global service is to have a task on this node.
fn fits(node: &Node, service: &Service) -> bool {
    node.state == NodeState::Ready
        && node.availability == Availability::Active
        && service.spec.placement.constraints.iter().all(|constraint| {
            let value = match &constraint.key {
                ConstraintKey::Id => Some(node.id.as_str()),
                ConstraintKey::Name => Some(node.name()),
                ConstraintKey::Role => Some("agent"),
                ConstraintKey::Label(label) => node.label(label),
            };
            (value == Some(constraint.value.as_str())) == constraint.equal
        })
}

#[cfg(test)]
mod tests;
