//! The doing: containers through an OCI runtime, networks through netd. Every step can be repeated.

mod gate;
pub mod monitor;
pub mod netd_client;
pub mod pod;
pub mod process;
pub mod runtime_cli;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::container::PullPolicy;
use rcluster_api::id::TaskId;
use rcluster_api::object::Task;
use rcluster_api::policy::NodePolicy;
use rcluster_api::tls::Security;
use tokio::sync::{Semaphore, watch};

use crate::config::Config;
use crate::data::Data;
use crate::image::Store;
use crate::image::pull::Puller;
use crate::place::Places;
use netd_client::Netd;
use runtime_cli::Runtime;

/// So many tasks are prepared at once; the others wait their turn.
const PREPARING_MAX: usize = 8;
/// So many commands of users run by monitors at once: fewer than one monitor serves, so that its container's health can be checked still.
const BY_MONITOR_MAX: usize = 24;

/// What every task on this node is done with.
#[derive(Debug)]
pub struct Tools {
    /// The node's name.
    pub node: String,
    pub places: Places,
    pub cgroup_parent: String,
    pub images: Images,
    pub netd: Netd,
    /// The secrets and configs of the node's tasks.
    pub data: Data,
    /// Tasks of the managers' set to which no node sends any more.
    pub released: watch::Sender<BTreeSet<TaskId>>,
    /// What containers may have of this host.
    pub policy: NodePolicy,
    /// Who has a permit may have a monitor run a user's command.
    pub by_monitor: Arc<Semaphore>,
    /// How the managers are reached.
    pub security: Security,
    runtimes: Runtimes,
    preparing: Semaphore,
}

/// The node's images and the way to more.
#[derive(Debug)]
pub struct Images {
    pub store: Store,
    pub puller: Puller,
    /// For containers that do not say.
    pub policy: PullPolicy,
}

/// rcluster's own OCI runtime, and others by the names that services give.
#[derive(Debug)]
pub struct Runtimes {
    pub own: Runtime,
    pub others: BTreeMap<String, Runtime>,
}

impl Tools {
    pub fn new(config: &Config, places: Places, images: Images, netd: Netd, security: Security) -> Self {
        let own = Runtime { program: config.runtime.clone(), root: places.runtime_root(), foreign: None };
        let others = config.runtimes.iter().map(|(name, program)| {
            let root = places.foreign_runtime_root(name);
            (name.clone(), Runtime { program: config.runtime.clone(), root, foreign: Some(program.clone()) })
        });
        Self {
            node: config.name.clone(),
            security,
            cgroup_parent: config.cgroup_parent.clone(),
            images,
            netd,
            data: Data::new(),
            released: watch::Sender::default(),
            policy: config.policy.clone(),
            runtimes: Runtimes { others: others.collect(), own },
            by_monitor: Arc::new(Semaphore::new(BY_MONITOR_MAX)),
            preparing: Semaphore::new(PREPARING_MAX),
            places,
        }
    }

    /// Whether the runtime that a task asks for is known here.
    pub fn knows_runtime(&self, task: &Task) -> bool {
        task.template.runtime.is_empty() || self.runtimes.others.contains_key(&task.template.runtime)
    }

    /// The runtime of a task. One that is not known here, and so made no container, is as good as our own.
    pub fn runtime(&self, task: &Task) -> &Runtime {
        self.runtimes.others.get(&task.template.runtime).unwrap_or(&self.runtimes.own)
    }
}
