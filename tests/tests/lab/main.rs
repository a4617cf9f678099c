//! The lab story, one claim a test: real binaries in namespaces, real packets, real power cuts.
//!
//! Labs take turns: two at once would measure each other.

mod audit;
mod certificates;
mod claims;
mod containers;
mod disaster;
mod encrypted;
mod faults;
mod images;
mod lifecycle;
mod managers;
mod ports;
mod relay;
mod secrets;
mod six;
mod stale;
mod terminal;
mod update;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rcluster_tests::lab::Lab;
use rcluster_tests::leftovers::Inventory;

static TURN: Mutex<()> = Mutex::new(());

/// A lab for one test; checks at the end that nothing is left of it.
pub struct Turn {
    lab: Option<Lab>,
    before: Inventory,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// A lab called `name`.
    pub fn new(name: &str, managers: usize, agents: usize) -> Self {
        Self::with(name, managers, agents, &[])
    }

    /// The same with more flags of `lab up`.
    pub fn with(name: &str, managers: usize, agents: usize, flags: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Inventory::take().unwrap();
        let lab = Lab::up_with(&format!("t-{name}"), managers, agents, flags).unwrap();
        Self { lab: Some(lab), before, _turn: turn }
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("the lab is up until finish")
    }

    /// Takes the lab down; nothing may be left of it.
    pub fn finish(mut self) {
        self.lab.take().expect("finished once").down().unwrap();
        rcluster_tests::lab::wait_for("nothing is left behind", std::time::Duration::from_secs(60), || {
            Inventory::check_nothing_new(&self.before).map(Some)
        })
        .unwrap();
    }
}

/// A network and a replicated service of the demo's server on it, whose name stands for its tasks' addresses.
pub fn web(network: &str, service: &str, replicas: usize) -> String {
    balanced(network, service, replicas).replace("  containers:\n", "  endpoint_mode: dnsrr\n  containers:\n")
}

/// The same with an address of its own.
pub fn balanced(network: &str, service: &str, replicas: usize) -> String {
    format!(
        "kind: Network\nname: {network}\n---\nkind: Service\nname: {service}\nspec:\n  replicas: {replicas}\n  networks: [{network}]\n  \
         containers:\n    - image: rcluster/probe:demo\n      args: [serve, --port, \"8080\"]\n"
    )
}

/// The server once on every node.
pub fn everywhere(network: &str, service: &str) -> String {
    web(network, service, 1).replace("  replicas: 1\n", "  mode: global\n")
}

/// A number from the environment, for runs that are longer than usual or just as another one was.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name} is {text:?}: {error}")))
}
