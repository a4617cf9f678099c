//! The doing: containers through an OCI runtime, networks through netd. Every step can be repeated.

pub mod netd_client;
pub mod pod;
pub mod process;
pub mod runtime_cli;

use tokio::sync::Semaphore;

use crate::image::Store;
use crate::place::Places;
use netd_client::Netd;
use runtime_cli::Runtime;

/// So many tasks are prepared at once; the others wait their turn.
const PREPARING_MAX: usize = 8;

/// What every task on this node is done with.
#[derive(Debug)]
pub struct Tools {
    /// The node's name.
    pub node: String,
    pub places: Places,
    pub cgroup_parent: String,
    pub images: Store,
    pub runtime: Runtime,
    pub netd: Netd,
    preparing: Semaphore,
}

impl Tools {
    pub fn new(node: String, places: Places, cgroup_parent: String, images: Store, runtime: Runtime, netd: Netd) -> Self {
        Self { node, places, cgroup_parent, images, runtime, netd, preparing: Semaphore::new(PREPARING_MAX) }
    }
}
