//! A cluster without a network: tables, the brain's plans applied to them, and agents that do as they are told when asked to.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::cluster::Cluster;
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::network::REST_MS;
use rcluster_api::object::{
    Availability, Capacity, ContainerStatus, Kind, Node, NodeDescription, NodeState, Object, Service, Task, TaskStatus,
};
use rcluster_api::resource::{Bytes, Cpus};
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_manager::core::control::{self, Answer, Request};
use rcluster_manager::core::node::register::{Registration, register};
use rcluster_manager::core::node::report;
use rcluster_manager::core::plan::{ChangeSet, Ctx, Dirty, plan, stage};
use rcluster_manager::core::state::{Draft, State, encode_transaction};
use rcluster_manager::found::first_state;

/// The cluster and the time in it.
pub struct World {
    pub state: State,
    pub now_ms: u64,
    seen: State,
    seed: u64,
    /// What the last plan left for the next.
    left: Dirty,
}

/// The store's limit for one transaction.
const TRANSACTION_BYTES_MAX: usize = 8 << 20;

impl World {
    pub fn new(seed: u64) -> Self {
        let cluster = Object::Cluster(Box::new(Cluster { certificate_ttl_ms: 1000, ..Cluster::default() }));
        let state = first_state("world".to_owned(), vec![cluster]);
        Self { seen: state.clone(), state, now_ms: 1_000_000, seed: seed * 1_000_000, left: Dirty::default() }
    }

    /// Plans with what `stage_first` puts on the draft, applies, and goes on until nothing changes.
    pub fn turn(&mut self, stage_first: impl FnOnce(&mut Draft, &mut Ctx)) -> usize {
        let mut stage_first = Some(stage_first);
        let mut commits = 0;
        loop {
            self.seed += 1;
            let mut ctx = Ctx::new(self.now_ms, self.seed);
            let mut draft = Draft::new(self.state.clone(), self.now_ms);
            if let Some(stage_first) = stage_first.take() {
                stage_first(&mut draft, &mut ctx);
            }
            let mut dirty = std::mem::take(&mut self.left);
            dirty.add_difference(&self.seen, draft.state());
            self.seen = self.state.clone();
            let planned = plan(draft, &dirty, &mut ctx);
            let transaction = planned.transaction;
            self.left = planned.left;
            if transaction.changes.is_empty() {
                assert!(!planned.goes_on, "a plan that did nothing wants to go on");
                return commits;
            }
            let bytes = prost::Message::encoded_len(&encode_transaction(&transaction));
            assert!(bytes <= TRANSACTION_BYTES_MAX, "{bytes} bytes in one transaction");
            self.now_ms += 1;
            self.state.apply(self.state.revision() + 1, &transaction).expect("nobody else writes");
            self.check();
            commits += 1;
            assert!(commits < 50, "the plan does not come to rest: {transaction:#?}");
        }
    }

    /// The time that a plan asked to be woken at has come.
    pub fn wake(&mut self) {
        self.turn(|_, _| {});
    }

    /// So much time passes that the addresses of ended tasks have rested.
    pub fn rest(&mut self) {
        self.now_ms += REST_MS + 1000;
        self.left = Dirty::everything();
        self.wake();
    }

    pub fn request(&mut self, request: Request) -> Result<Answer, String> {
        let mut outcome = None;
        self.turn(|draft, ctx| {
            outcome = Some(control::decide(draft.state(), request, ctx).map(|(changes, answer)| {
                stage(draft, changes, ctx);
                answer
            }));
        });
        outcome.expect("decided").map_err(|refusal| refusal.to_string())
    }

    pub fn network(&mut self, name: &str) {
        let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
        self.request(Request::Apply(vec![(Spec::Network(spec), 0)])).unwrap();
    }

    /// A network with a subnet of its own.
    pub fn network_of(&mut self, name: &str, subnet: &str) {
        let spec = NetworkSpec { name: name.to_owned(), subnet: Some(subnet.parse().unwrap()), ..NetworkSpec::default() };
        self.request(Request::Apply(vec![(Spec::Network(spec), 0)])).unwrap();
    }

    pub fn service(&mut self, name: &str, spec: serde_json::Value) {
        let spec = ServiceSpec { name: name.to_owned(), ..serde_json::from_value(spec).unwrap() };
        self.request(Request::Apply(vec![(Spec::Service(spec), 0)])).unwrap();
    }

    pub fn node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let description = NodeDescription {
            name: name.to_owned(),
            addr: format!("10.0.0.{}", name.trim_start_matches('n').parse::<u8>().unwrap()),
            capacity: Capacity { cpus: Cpus(2000), memory: Bytes(4 << 30) },
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..NodeDescription::default()
        };
        let known = self.tasks_on(name);
        self.register(&Registration { id: name.into(), incarnation: 1, description, tasks: known });
    }

    /// A node asks to take part, and may.
    pub fn register(&mut self, registration: &Registration) {
        let now_ms = self.now_ms;
        self.turn(|draft, ctx| {
            let changes = register(draft.state(), registration, now_ms).unwrap();
            stage(draft, changes, ctx);
        });
    }

    fn tasks_on(&self, node: &str) -> BTreeSet<TaskId> {
        self.state.tasks_of_node(&NodeId::from(node)).map(|task| task.id.clone()).collect()
    }

    pub fn node_state(&mut self, name: &str, state: NodeState) {
        let node = (**self.state.find_node(name).unwrap()).clone();
        let puts = vec![Object::Node(Node { state, ..node })];
        self.turn(|draft, ctx| stage(draft, ChangeSet { puts, ..ChangeSet::default() }, ctx));
    }

    /// The service as a later leader may write it.
    pub fn change_service(&mut self, name: &str, change: impl FnOnce(&mut Service)) {
        let mut service = (**self.state.find_service(name).unwrap()).clone();
        change(&mut service);
        let puts = vec![Object::Service(service)];
        self.turn(|draft, ctx| stage(draft, ChangeSet { puts, ..ChangeSet::default() }, ctx));
    }

    pub fn availability(&mut self, name: &str, availability: Availability) {
        let request = Request::UpdateNode {
            node: name.to_owned(),
            availability: Some(availability),
            labels_set: BTreeMap::new(),
            labels_removed: Vec::new(),
        };
        self.request(request).unwrap();
    }

    /// An agent's word on one of its tasks.
    pub fn report(&mut self, task: &TaskId, state: TaskState, message: &str) {
        let Some(before) = self.state.tasks().get(task).cloned() else { return };
        let container = ContainerStatus { name: "c".to_owned(), pid: Some(7), started_at_ms: self.now_ms, ..ContainerStatus::default() };
        let containers = if state == TaskState::Running { vec![container] } else { before.status.containers.clone() };
        self.hear(&before, &TaskStatus { state, message: message.to_owned(), since_ms: self.now_ms, containers, ending: false });
    }

    /// An agent's word that a task's first container has ended; others of its pod may still run.
    pub fn container_ends(&mut self, task: &TaskId) {
        let before = self.state.tasks().get(task).cloned().expect("the task is there");
        let mut status = before.status.clone();
        (status.containers[0].pid, status.containers[0].exit_code) = (None, Some(1));
        self.hear(&before, &status);
    }

    fn hear(&mut self, before: &Task, status: &TaskStatus) {
        let node = before.node_id.clone().expect("only tasks on nodes are reported");
        self.turn(|draft, ctx| {
            if let Some(after) = report::merge(before, &node, status) {
                stage(draft, ChangeSet { puts: vec![Object::Task(Box::new(after))], ..ChangeSet::default() }, ctx);
            }
        });
    }

    /// Every agent that is up does what its assignments say, until all is at rest.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            let due = self.state.tasks().values().find_map(|task| {
                let node = self.state.nodes().get(task.node_id.as_ref()?)?;
                if node.state == NodeState::Down || task.status.state < TaskState::Assigned {
                    return None;
                }
                let state = task.status.state;
                if task.is_wanted() && state < TaskState::Running {
                    Some((task.id.clone(), TaskState::Running))
                } else if !task.is_wanted() && (!state.is_terminal() || state == TaskState::Orphaned) {
                    Some((task.id.clone(), TaskState::Shutdown))
                } else {
                    None
                }
            });
            match due {
                Some((task, state)) => self.report(&task, state, ""),
                None => {
                    let waits = self.state.tasks().values().map(|task| task.start_after_ms).filter(|at| *at > self.now_ms).min();
                    match waits {
                        Some(at) => {
                            self.now_ms = at;
                            self.wake();
                        }
                        None => return,
                    }
                }
            }
        }
        panic!("the cluster does not settle");
    }

    pub fn task(&self, name: &str) -> Task {
        let named = self.state.tasks().values().filter(|task| task.name == name);
        (**named.max_by_key(|task| (task.is_live(), task.stamp.created_at_ms)).unwrap_or_else(|| panic!("no task {name}"))).clone()
    }

    pub fn running(&self, service: &str) -> usize {
        self.state
            .tasks()
            .values()
            .filter(|task| task.service == service && task.is_wanted() && task.status.state == TaskState::Running)
            .count()
    }

    /// One line for each task: name, node, state, desired state, message.
    pub fn picture(&self) -> String {
        let mut lines: Vec<String> = self
            .state
            .tasks()
            .values()
            .map(|task| {
                let node = if task.node.is_empty() { "-" } else { &task.node };
                let line = format!("{} {node} {} {} {}", task.name, task.status.state, task.desired_state, task.status.message);
                line.trim_end().to_owned()
            })
            .collect();
        lines.sort();
        lines.join("\n")
    }

    /// What must hold after every commit.
    pub fn check(&self) {
        let mut addresses = BTreeMap::new();
        let mut slots: BTreeMap<(String, u32), usize> = BTreeMap::new();
        for task in self.state.tasks().values() {
            let holds = !task.status.state.is_terminal() || task.may_run();
            for attached in task.networks.iter().filter(|_| holds) {
                let other = addresses.insert((attached.network_id.clone(), attached.ip), task.name.clone());
                assert_eq!(other, None, "{} held twice, by {}", attached.ip, task.name);
            }
            if task.is_live() && task.slot > 0 {
                *slots.entry((task.service_id.to_string(), task.slot)).or_default() += 1;
            }
            if task.status.state >= TaskState::Assigned {
                assert!(task.node_id.is_some(), "{} is {} on no node", task.name, task.status.state);
                assert_eq!(task.networks.len(), task.template.networks.len(), "{} has no address", task.name);
            }
        }
        for service in self.state.services().values() {
            for vip in &service.vips {
                let other = addresses.insert((vip.network_id.clone(), vip.ip), service.spec.name.clone());
                assert_eq!(other, None, "{} held twice, by {}", vip.ip, service.spec.name);
            }
        }
        for ((service, slot), live) in slots {
            assert!(live <= 2, "{live} live tasks in slot {slot} of {service}");
        }
        let mut numbers = BTreeSet::new();
        for node in self.state.nodes().values() {
            assert!(node.number > 0 && numbers.insert(node.number), "{} has the number {}", node.name(), node.number);
            let used: u64 = self
                .state
                .tasks_of_node(&node.id)
                .filter(|task| task.may_run() && task.status.state != TaskState::Orphaned)
                .map(|task| task.reserved().memory.0)
                .sum();
            assert!(used <= node.description.capacity.memory.0, "{} is overbooked", node.name());
        }
        assert!(self.state.events().values().all(|event| event.kind != Kind::Event.as_str()));
    }
}
