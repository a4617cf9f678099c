//! The brain over time: what it does with what comes in while a proposal is in flight, and with what the store answers.

use std::time::Duration;

use rcluster_api::cluster::Cluster;
use rcluster_api::error::ErrorCode;
use rcluster_api::id::TaskId;
use rcluster_api::network::{HeldPort, NodeNetwork, Protocol};
use rcluster_api::object::{NodeDescription, NodeState, Object, TaskStatus};
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::node::liveness::Timing;
use rcluster_manager::core::node::register::Registration;
use rcluster_manager::core::state::{State, Transaction, encode_transaction};
use rcluster_manager::drive::{Brain, BrainEvent, Effect, Moment};
use rcluster_manager::found::first_state;
use rcluster_manager::store::ProposeError;
use serde_json::json;

/// A brain whose store is a table, and who was answered what.
struct Term {
    brain: Brain<&'static str, &'static str>,
    state: State,
    now_ms: u64,
    answers: Vec<String>,
}

impl Term {
    fn new() -> Self {
        let cluster = Object::Cluster(Box::new(Cluster { certificate_ttl_ms: 1000, ..Cluster::default() }));
        let state = first_state("world".to_owned(), vec![cluster]);
        let brain = Brain::new(state.clone(), "m1".to_owned(), 1, Timing::default(), moment(0));
        Self { brain, state, now_ms: 0, answers: Vec::new() }
    }

    fn now(&self) -> Moment {
        moment(self.now_ms)
    }

    /// What the brain wants to have proposed now.
    fn turn(&mut self) -> Option<Transaction> {
        let effects = self.brain.turn(self.now(), self.state.clone(), self.now_ms);
        self.note(effects)
    }

    fn note(&mut self, effects: Vec<Effect<&'static str, &'static str>>) -> Option<Transaction> {
        let mut proposed = None;
        for effect in effects {
            match effect {
                Effect::Propose(transaction) => proposed = Some(transaction),
                Effect::Answer(user, outcome, _) => self.answers.push(format!("{user}: {}", outcome.is_ok())),
                Effect::Registered(agent, outcome) => self.answers.push(format!("{agent}: {}", outcome.is_ok())),
            }
        }
        proposed
    }

    fn refuse(&mut self, error: ProposeError) {
        let effects = self.brain.proposed(self.now(), Err(error));
        assert!(self.note(effects).is_none());
    }

    fn commit(&mut self, transaction: &Transaction) {
        let revision = self.state.revision() + 1;
        self.state.apply(revision, transaction).expect("nobody else writes");
        let effects = self.brain.proposed(self.now(), Ok(revision));
        assert!(self.note(effects).is_none());
    }

    fn settle(&mut self) {
        while let Some(transaction) = self.turn() {
            self.commit(&transaction);
            self.now_ms += 1;
        }
    }

    /// A node with one task on it, which is assigned.
    fn with_a_task() -> (Self, TaskId) {
        let mut term = Self::new();
        term.register();
        let spec = json!({"containers": [{"image": "i"}]});
        let spec = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
        term.brain.take(term.now(), BrainEvent::Control { request: Request::Apply(vec![(Spec::Service(spec), 0)]), from: "user" });
        term.settle();
        assert_eq!(term.answers, ["user: true", "n1: true"]);
        let task = term.state.tasks().keys().next().expect("a task was made").clone();
        (term, task)
    }

    /// The node asks to take part.
    fn register(&mut self) {
        let description = NodeDescription { name: "n1".to_owned(), addr: "10.0.0.1".to_owned(), ..NodeDescription::default() };
        let registration = Registration { id: "n1".into(), incarnation: 1, description, tasks: [].into() };
        let register = BrainEvent::Register { registration: Box::new(registration), reports: Vec::new(), from: "n1" };
        self.brain.take(self.now(), register);
    }

    fn node(&self) -> NodeState {
        self.state.find_node("n1").expect("it has registered").state
    }

    fn report(&mut self, task: &TaskId, state: TaskState) {
        let status = TaskStatus { state, message: String::new(), since_ms: 1, containers: Vec::new(), ending: false };
        self.brain.take(self.now(), BrainEvent::Reports { node: "n1".into(), reports: vec![(task.clone(), status)] });
    }

    fn observed(&self, task: &TaskId) -> TaskState {
        self.state.tasks()[task].status.state
    }
}

fn moment(at_ms: u64) -> Moment {
    Moment { monotonic: Duration::from_millis(at_ms), unix_ms: 1_000_000 + at_ms }
}

#[test]
fn a_leader_goes_on_when_handing_over_has_failed() {
    let (mut term, task) = Term::with_a_task();
    term.report(&task, TaskState::Running);
    assert!(term.turn().is_some());
    term.refuse(ProposeError::NotLeader { leader: None });
    assert!(!term.brain.is_over());
    let wake_at = term.brain.wake_at().expect("nothing is in flight");
    assert!(wake_at > term.now().monotonic, "not in a loop without a pause");
    term.now_ms += 100;
    assert!(wake_at <= term.now().monotonic);
    term.settle();
    assert_eq!(term.observed(&task), TaskState::Running, "what was reported is not lost");
}

#[test]
fn a_leader_that_stood_still_does_not_take_that_for_its_nodes_silence() {
    let (mut term, _) = Term::with_a_task();
    term.settle();
    term.now_ms += 20_000;
    term.settle();
    assert_eq!(term.node(), NodeState::Ready, "what it has said meanwhile has not been read yet");
    let mut listen = |seconds: u32| {
        for _ in 0..seconds {
            term.now_ms += 1_000;
            term.settle();
        }
        term.node()
    };
    assert_eq!(listen(5), NodeState::Suspect, "it may be on its way back");
    assert_eq!(listen(6), NodeState::Down, "silence that was listened to counts");
}

/// Its session has ended over it, and nobody answers it when it comes anew.
#[test]
fn a_leader_that_stood_still_does_not_count_from_when_a_node_has_asked_in_vain() {
    let (mut term, task) = Term::with_a_task();
    term.report(&task, TaskState::Running);
    let proposed = term.turn().expect("the report is to be committed");
    term.now_ms += 5_000;
    term.register();
    // The disk answers.
    term.now_ms += 2_900;
    term.commit(&proposed);
    term.settle();
    term.now_ms += 1_000;
    term.settle();
    assert_eq!(term.node(), NodeState::Ready, "it can have heard for one second that it takes part");
}

#[test]
fn what_the_end_of_a_term_comes_before_was_not_carried_out() {
    let (mut term, task) = Term::with_a_task();
    term.answers.clear();
    term.report(&task, TaskState::Running);
    assert!(term.turn().is_some());
    let spec = ServiceSpec { name: "late".to_owned(), ..serde_json::from_value(json!({"containers": [{"image": "i"}]})).unwrap() };
    term.brain.take(term.now(), BrainEvent::Control { request: Request::Apply(vec![(Spec::Service(spec), 0)]), from: "user" });
    let effects = term.brain.end();
    let Some(Effect::Answer("user", Err(refusal), _)) = effects.first() else { panic!("{effects:?}") };
    assert_eq!((refusal.code, effects.len()), (ErrorCode::NotLeader, 1), "{refusal}");
    assert!(term.brain.is_over() && term.turn().is_none());
}

#[test]
fn a_lost_proposal_ends_the_term() {
    let (mut term, task) = Term::with_a_task();
    term.report(&task, TaskState::Running);
    assert!(term.turn().is_some());
    term.refuse(ProposeError::Unavailable);
    assert!(term.brain.is_over() && term.turn().is_none());
}

#[test]
fn what_comes_while_a_proposal_is_in_flight_waits_and_is_not_lost() {
    let (mut term, task) = Term::with_a_task();
    term.report(&task, TaskState::Running);
    let first = term.turn().expect("a report changes the task");
    term.report(&task, TaskState::Failed);
    assert!(term.turn().is_none() && term.brain.wake_at().is_none());
    term.commit(&first);
    assert_eq!(term.observed(&task), TaskState::Running);
    term.settle();
    assert!(term.state.tasks()[&task].status.state == TaskState::Failed);
}

#[test]
fn the_newest_of_two_reports_stands_when_the_first_is_not_committed() {
    let (mut term, task) = Term::with_a_task();
    term.report(&task, TaskState::Preparing);
    assert!(term.turn().is_some());
    term.report(&task, TaskState::Running);
    term.refuse(ProposeError::NotLeader { leader: None });
    term.now_ms += 100;
    term.settle();
    assert_eq!(term.observed(&task), TaskState::Running);
}

#[test]
fn what_a_node_tells_of_its_network_is_kept_also_by_one_that_does_not_know_and_when_a_proposal_fails() {
    let (mut term, _) = Term::with_a_task();
    let tell = |term: &mut Term, mtu| {
        let network = NodeNetwork { mtu, routes: vec!["10.7.0.0/16".parse().unwrap()], ..NodeNetwork::default() };
        term.brain.take(term.now(), BrainEvent::Network { node: "n1".into(), network });
    };
    let mtu = |term: &Term| term.state.find_node("n1").unwrap().description.network.as_ref().map(|network| network.mtu);
    tell(&mut term, 1400);
    assert!(term.turn().is_some());
    term.refuse(ProposeError::NotLeader { leader: None });
    term.now_ms += 100;
    term.settle();
    assert_eq!(mtu(&term), Some(1400));
    // Of two words the later one stands, and the same again is no news.
    tell(&mut term, 1300);
    tell(&mut term, 1450);
    term.settle();
    tell(&mut term, 1450);
    assert!(term.turn().is_none());
    assert_eq!(mtu(&term), Some(1450));
    term.register();
    term.settle();
    assert_eq!(mtu(&term), Some(1450), "its netd has not told the agent yet");
}

#[test]
fn what_all_nodes_tell_of_their_networks_at_once_goes_into_transactions_that_the_log_takes() {
    let mut term = Term::new();
    let names: Vec<String> = (1..=120).map(|number| format!("n{number}")).collect();
    for (name, last) in names.iter().zip(1..) {
        let description = NodeDescription { name: name.clone(), addr: format!("10.0.0.{last}"), ..NodeDescription::default() };
        let registration = Registration { id: name.as_str().into(), incarnation: 1, description, tasks: [].into() };
        let register = BrainEvent::Register { registration: Box::new(registration), reports: Vec::new(), from: "node" };
        term.brain.take(term.now(), register);
    }
    term.settle();
    let held = |port| HeldPort { protocol: Protocol::Tcp, port, by: "x".repeat(NodeNetwork::HOLDER_BYTES_MAX) };
    let network = NodeNetwork { mtu: 1400, held_ports: (1..=1024).map(held).collect(), ..NodeNetwork::default() };
    for name in &names {
        term.brain.take(term.now(), BrainEvent::Network { node: name.as_str().into(), network: network.clone() });
    }
    let mut parts = 0;
    while let Some(transaction) = term.turn() {
        let bytes = prost::Message::encoded_len(&encode_transaction(&transaction));
        assert!(bytes < 2 << 20, "{bytes} bytes in one transaction");
        parts += 1;
        if parts == 2 {
            term.refuse(ProposeError::NotLeader { leader: None });
            term.now_ms += 100;
        } else {
            assert!(term.brain.wake_at().is_none(), "it is in flight");
            term.commit(&transaction);
            term.now_ms += 1;
        }
    }
    assert!(parts > 2, "{parts} parts");
    for name in &names {
        assert_eq!(term.state.find_node(name).unwrap().description.network.as_ref(), Some(&network), "{name}");
    }
}
