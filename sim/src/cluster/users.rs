//! Who uses the cluster: people who deploy, scale, update and remove services, each their own, and one who drains and pauses nodes.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::IndexedRandom;
use rcluster_api::object::{Availability, Kind};
use rcluster_api::spec::{Mode, NetworkSpec, ServiceSpec, Spec};
use rcluster_manager::core::control::Request;
use rcluster_manager::core::state::State;
use rcluster_manager::drive::{BrainEvent, Outcome};
use serde_json::json;

use super::{Cluster, Event, Here};
use crate::check::{Violation, hold};
use crate::network::exponential;

/// How long a user waits for an answer, as `Term::request` does.
const PATIENCE_US: u64 = 10_000_000;
/// How often it is looked whether all nodes take part.
const CALM_THINK_US: u64 = 500_000;
const SERVICES: [&str; 3] = ["web", "db", "jobs"];
const IMAGES: [&str; 8] = ["steady:1", "steady:2", "steady:3", "steady:4", "steady:5", "crash:1", "memory:1", "ends:1"];
const REPLICAS_MAX: u32 = 5;

/// A user's request, as its answer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub user: usize,
    number: u64,
}

/// What a user has asked for, and what must be so once that is confirmed.
#[derive(Debug, Clone)]
enum Intent {
    Network,
    Service(Box<ServiceSpec>),
    Scale(String, u32),
    Remove(String),
    Node(String, Availability),
}

/// A user.
#[derive(Debug)]
pub struct User {
    number: u64,
    waits: Option<(Intent, u64)>,
}

impl User {
    pub fn new(_at: usize) -> Self {
        Self { number: 0, waits: None }
    }
}

impl Cluster {
    /// A user's next request, to a manager that takes itself for the leader.
    pub(super) fn act(&mut self, at: usize, here: &mut Here<'_>) -> Result<(), Violation> {
        let pause_us = exponential(&mut self.chance, self.plan.think_us).max(10_000);
        // Once the faults are over one of them sees to it that all nodes take part again.
        match (self.is_calm, at) {
            (false, _) => self.later(here.now_us + pause_us, Event::User(at)),
            (true, 0) => self.later(here.now_us + CALM_THINK_US, Event::User(at)),
            (true, _) => return Ok(()),
        }
        if self.users[at].waits.as_ref().is_some_and(|(_, since_us)| since_us + PATIENCE_US > here.now_us) {
            return Ok(());
        }
        let Some(host) = self.any_lead() else { return Ok(()) };
        let Some(intent) = self.intend(at, here.checker.latest()) else { return Ok(()) };
        let user = &mut self.users[at];
        user.number += 1;
        user.waits = Some((intent.clone(), here.now_us));
        let from = Asked { user: at, number: user.number };
        here.tell(|| format!("user {at} asks {}: {}", here.hosts[host].name, intent.words()));
        self.tell_brain(host, BrainEvent::Control { request: intent.request(), from }, here);
        Ok(())
    }

    /// What a user wants next; once the faults are over, that all nodes take part again.
    fn intend(&mut self, at: usize, state: &State) -> Option<Intent> {
        let chance = &mut self.chance;
        if at == 0 && state.find_network("lab").is_none() {
            return Some(Intent::Network);
        }
        if self.is_calm {
            let idle = state.nodes().values().find(|node| node.availability != Availability::Active);
            return idle.filter(|_| at == 0).map(|node| Intent::Node(node.name().to_owned(), Availability::Active));
        }
        let name = format!("{}{at}", SERVICES.choose(chance)?);
        let known = state.find_service(&name);
        match chance.random_range(0..10) {
            0..=1 if at == 0 => {
                let nodes: Vec<&str> = state.nodes().values().map(|node| node.name()).collect();
                let availability = *[Availability::Active, Availability::Pause, Availability::Drain].choose(chance)?;
                nodes.choose(chance).map(|node| Intent::Node((*node).to_owned(), availability))
            }
            _ if known.is_some_and(|known| known.removing) => None,
            0..=3 if known.is_some_and(|known| known.spec.mode == Mode::Replicated) => {
                Some(Intent::Scale(name, chance.random_range(0..=REPLICAS_MAX)))
            }
            4 if known.is_some() => Some(Intent::Remove(name)),
            _ => {
                let order = if chance.random() { "stop-first" } else { "start-first" };
                let mut spec = json!({
                    "containers": [{"image": IMAGES.choose(chance)?}],
                    "update": {"parallelism": chance.random_range(0..3), "order": order},
                    "restart": {"delay": "500ms", "delay_max": "8s"},
                });
                if state.find_network("lab").is_some() && chance.random() {
                    spec["networks"] = json!(["lab"]);
                }
                // A service keeps its mode.
                if name.starts_with("jobs") {
                    spec["mode"] = json!("global");
                } else {
                    spec["replicas"] = json!(chance.random_range(1..=REPLICAS_MAX));
                }
                let spec: ServiceSpec = serde_json::from_value(spec).expect("the spec is written right");
                Some(Intent::Service(Box::new(ServiceSpec { name, ..spec })))
            }
        }
    }

    /// A user has an answer: what was confirmed must be so in the log at that revision.
    pub(super) fn answered(&mut self, asked: &Asked, outcome: Outcome, here: &Here<'_>) -> Result<(), Violation> {
        let user = &mut self.users[asked.user];
        if user.number != asked.number {
            return Ok(());
        }
        let Some((intent, _)) = user.waits.take() else { return Ok(()) };
        here.tell(|| {
            format!("user {} is answered: {}", asked.user, outcome.as_ref().map_or_else(ToString::to_string, |(at, _)| at.to_string()))
        });
        self.counts.requests += 1;
        let Ok((revision, _)) = outcome else { return Ok(()) };
        let Some(state) = here.checker.state_at(revision) else {
            return Err(Violation(format!("a user was told of revision {revision}, which is not committed")));
        };
        hold!(intent.holds(state), "a user was told that this was done at revision {revision}, and it was not: {}", intent.words());
        Ok(())
    }
}

/// A network with so few addresses that they are given out again and again, and enough for all tasks that are ever wanted.
fn lab() -> NetworkSpec {
    let spec: NetworkSpec = serde_json::from_value(json!({"subnet": "10.128.0.0/26"})).expect("the spec is written right");
    NetworkSpec { name: "lab".to_owned(), ..spec }
}

impl Intent {
    fn words(&self) -> String {
        match self {
            Self::Network => "a network".to_owned(),
            Self::Service(spec) => {
                let image = spec.containers.first().map(|container| container.image.as_str()).unwrap_or_default();
                format!("{} of {image}, {} replicas, {:?}", spec.name, spec.replicas(), spec.update)
            }
            Self::Scale(service, replicas) => format!("{service} with {replicas} replicas"),
            Self::Remove(service) => format!("no {service}"),
            Self::Node(node, availability) => format!("{node} {availability:?}"),
        }
    }

    fn request(self) -> Request {
        match self {
            Self::Network => Request::Apply(vec![(Spec::Network(lab()), 0)]),
            Self::Service(spec) => Request::Apply(vec![(Spec::Service(*spec), 0)]),
            Self::Scale(service, replicas) => Request::Scale { service, replicas },
            Self::Remove(service) => Request::Remove(vec![(Kind::Service, service)]),
            Self::Node(node, availability) => {
                Request::UpdateNode { node, availability: Some(availability), labels_set: BTreeMap::new(), labels_removed: Vec::new() }
            }
        }
    }

    fn holds(&self, state: &State) -> bool {
        match self {
            Self::Network => state.find_network("lab").is_some(),
            Self::Service(spec) => state.find_service(&spec.name).is_some_and(|service| {
                service
                    .spec
                    .containers
                    .iter()
                    .map(|container| &container.image)
                    .eq(spec.containers.iter().map(|container| &container.image))
            }),
            Self::Scale(name, replicas) => state.find_service(name).is_some_and(|service| service.spec.replicas() == *replicas),
            Self::Remove(name) => state.find_service(name).is_none_or(|service| service.removing),
            Self::Node(name, availability) => state.find_node(name).is_some_and(|node| node.availability == *availability),
        }
    }
}
